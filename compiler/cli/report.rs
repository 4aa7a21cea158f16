//! `report.html`: a run in pictures, one file without links.

use std::fmt::Write as _;

use plotters::prelude::*;
use slrc_plan::plan::Plan;
use slrc_runtime::trainer::metrics::Line;

use crate::html::escape;
use crate::table::bytes;

const SIZE: (u32, u32) = (720, 300);
/// Points drawn of a curve; longer logs are averaged in groups.
const POINTS: usize = 400;

/// Curves of one picture.
struct Chart<'a> {
    title: &'a str,
    unit: &'a str,
    /// Name and one value per line of the log.
    curves: Vec<(String, Vec<f64>)>,
    /// Fixed bounds, or those of the values.
    bounds: Option<(f64, f64)>,
    /// Where no curve is expected.
    legend: SeriesLabelPosition,
}

/// The report of a run.
pub(crate) fn html(plan: &Plan, lines: &[Line]) -> String {
    let k = plan.modules.len();
    let steps: Vec<f64> = lines.iter().map(|l| l.step as f64).collect();
    let module = |i: usize| if i + 1 == k { "network".to_string() } else { format!("module {}", i + 1) };
    let of_modules = |f: &dyn Fn(&Line, usize) -> f64| -> Vec<(String, Vec<f64>)> {
        (0..k).map(|i| (module(i), lines.iter().map(|l| f(l, i)).collect())).collect()
    };
    let mut charts = vec![
        Chart {
            title: "Loss at each head",
            unit: "nats",
            curves: of_modules(&|l, i| f64::from(l.modules[i].loss)),
            bounds: None,
            legend: SeriesLabelPosition::UpperRight,
        },
        Chart {
            title: "Accuracy of the batch at each head",
            unit: "%",
            curves: of_modules(&|l, i| 100.0 * f64::from(l.modules[i].accuracy)),
            bounds: Some((0.0, 100.0)),
            legend: SeriesLabelPosition::LowerRight,
        },
    ];
    if lines.first().is_some_and(|l| !l.boundaries.is_empty()) {
        let boundary = |f: &dyn Fn(&slrc_runtime::trainer::metrics::BoundaryLine) -> f64| -> Vec<(String, Vec<f64>)> {
            (0..k - 1)
                .map(|i| (format!("{} | {}", i + 1, i + 2), lines.iter().map(|l| f(&l.boundaries[i])).collect()))
                .collect()
        };
        charts.push(Chart {
            title: "Cosine of g and e at each boundary",
            unit: "",
            curves: boundary(&|b| f64::from(b.cosine)),
            bounds: Some((-1.0, 1.0)),
            legend: SeriesLabelPosition::LowerRight,
        });
        charts.push(Chart {
            title: "Discord R at each boundary, log10",
            unit: "",
            curves: boundary(&|b| f64::from(b.discord).max(1e-12).log10()),
            bounds: None,
            legend: SeriesLabelPosition::UpperRight,
        });
    }
    let mut out = String::from(
        "<!doctype html><meta charset=\"utf-8\"><title>slrc run</title>\
         <style>body{font:15px system-ui,sans-serif;max-width:46em;margin:2em auto;color:#222}\
         table{border-collapse:collapse}td,th{padding:.2em 1em .2em 0;text-align:left}svg{display:block;margin:1.2em 0}</style>",
    );
    let _ = write!(out, "<h1>{}</h1>", escape(&plan.model.name));
    let s = &plan.settings;
    let _ = write!(
        out,
        "<table><tr><td>modules<td>{k} ({})<tr><td>batch<td>{}<tr><td>reconcile<td>{} {}<tr><td>optimizer<td>{}\
         <tr><td>planned peak<td>{}</table>",
        escape(&s.partition),
        s.batch_text(),
        s.reconcile,
        if s.reconcile == "off" { "" } else { &s.distance },
        escape(&s.optimizer),
        bytes(plan.memory.peak())
    );
    for c in &charts {
        out.push_str(&draw(c, &steps));
    }
    out.push_str("<h2>Last logged step</h2><table><tr><th>module<th>loss<th>accuracy");
    if let Some(last) = lines.last() {
        for (i, m) in last.modules.iter().enumerate() {
            let _ = write!(out, "<tr><td>{}<td>{:.4}<td>{:.1} %", module(i), m.loss, 100.0 * m.accuracy);
        }
    }
    out.push_str("</table>\n");
    out
}

/// Means of neighbouring values, at most [`POINTS`] of them.
fn thin(values: &[f64]) -> Vec<f64> {
    let group = values.len().div_ceil(POINTS).max(1);
    values.chunks(group).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect()
}

fn draw(c: &Chart<'_>, steps: &[f64]) -> String {
    let mut svg = String::new();
    // Drawing into a string cannot fail for want of space; a chart that cannot be drawn is left out.
    let _ = try_draw(&mut svg, c, steps);
    svg
}

fn try_draw(svg: &mut String, c: &Chart<'_>, steps: &[f64]) -> Result<(), Box<dyn std::error::Error>> {
    let x = thin(steps);
    let curves: Vec<(String, Vec<f64>)> = c.curves.iter().map(|(n, v)| (n.clone(), thin(v))).collect();
    let all = || curves.iter().flat_map(|(_, v)| v.iter().copied()).filter(|v| v.is_finite());
    let (low, high) = c.bounds.unwrap_or_else(|| {
        let (l, h) = all().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let margin = ((h - l) * 0.05).max(1e-6 * h.abs().max(1.0));
        (l - margin, h + margin)
    });
    // Without a point there are no bounds, and axes without bounds never end.
    if !(low < high && (high - low).is_finite()) {
        return Ok(());
    }
    let end = x.last().copied().unwrap_or(1.0).max(x.first().copied().unwrap_or(0.0) + 1.0);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(c.title, ("sans-serif", 16))
        .margin(8)
        .margin_right(16)
        .x_label_area_size(34)
        .y_label_area_size(52)
        .build_cartesian_2d(x.first().copied().unwrap_or(0.0)..end, low..high)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(230, 230, 230))
        .x_labels(6)
        .y_labels(6)
        .x_desc("step")
        .y_desc(c.unit)
        .x_label_formatter(&|v| format!("{v:.0}"))
        .draw()?;
    let n = curves.len();
    for (i, (name, values)) in curves.iter().enumerate() {
        // From blue for the first module to red for the last.
        let color = HSLColor(0.62 * (1.0 - i as f64 / (n.max(2) - 1) as f64), 0.75, 0.45);
        let points = x.iter().copied().zip(values.iter().copied());
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(c.legend.clone())
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}
