//! The plans of a sweep as a picture: stacked memory above, work below.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use slrc_compiler::spec::Recompute;

use super::row::Row;

const HEIGHT: u32 = 520;
const RESIDENT: RGBColor = RGBColor(140, 150, 165);
const OTHER: RGBColor = RGBColor(205, 210, 218);
const WORKING: RGBColor = RGBColor(38, 110, 190);
const WORK: RGBColor = RGBColor(214, 120, 40);
const GRID: RGBColor = RGBColor(230, 230, 230);

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws plans from left to right.
pub(super) fn svg(model: &str, batch: usize, rows: &[Row]) -> Result<String, Box<dyn std::error::Error>> {
    let mut out = String::new();
    {
        let width = (160 + 80 * rows.len() as u32).max(560);
        let root = SVGBackend::with_string(&mut out, (width, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let root =
            root.titled(&format!("{model}, batch {batch} (*: on the front of peak and work)"), ("sans-serif", 16))?;
        let (above, below) = root.split_vertically(HEIGHT * 11 / 20);
        memory(&above, rows)?;
        work(&below, rows)?;
        root.present()?;
    }
    Ok(out)
}

/// A part of every bar: its name, its colour, and its size in a plan.
type Part<'a> = (&'static str, RGBColor, &'a dyn Fn(&Row) -> f64);

fn memory(area: &Area<'_>, rows: &[Row]) -> Drawn {
    let most = rows.iter().map(|r| r.peak_bytes).max().unwrap_or(0);
    let (name, unit) = if most >= 1 << 30 { ("GiB", (1u64 << 30) as f64) } else { ("MiB", (1u64 << 20) as f64) };
    let parts: &[Part<'_>] = &[
        ("weights + optimizer", RESIDENT, &|r| r.resident_bytes as f64 / unit),
        ("batch, constants", OTHER, &|r| r.other_bytes as f64 / unit),
        ("working memory", WORKING, &|r| r.working_bytes as f64 / unit),
    ];
    bars(area, rows, &format!("peak, {name}"), parts)
}

fn work(area: &Area<'_>, rows: &[Row]) -> Drawn {
    bars(area, rows, "work, of K = 1", &[("work a step", WORK, &|r| r.work_of_one)])
}

fn label(r: &Row) -> String {
    let recompute = if r.modules == 1 && r.recompute == Recompute::Elementwise.name() { ", recomp." } else { "" };
    format!("K = {}{recompute}{}", r.modules, if r.front { " *" } else { "" })
}

/// Bars of stacked parts, one bar a plan.
fn bars(area: &Area<'_>, rows: &[Row], axis: &str, parts: &[Part<'_>]) -> Drawn {
    let highest = rows.iter().map(|r| parts.iter().map(|p| (p.2)(r)).sum::<f64>()).fold(0.0, f64::max);
    // Axes without an extent never end.
    let room = if parts.len() > 1 { 1.5 } else { 1.2 };
    let top = if highest > 0.0 { highest * room } else { 1.0 };
    let digits = if highest < 10.0 { 1 } else { 0 };
    let end = rows.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .x_labels(0)
        .y_labels(5)
        .y_desc(axis)
        .y_label_formatter(&|y| format!("{y:.digits$}"))
        .draw()?;
    let mut floors = vec![0.0; rows.len()];
    for &(name, color, size) in parts {
        let mut boxes = Vec::new();
        for (i, r) in rows.iter().enumerate() {
            let (left, right, floor) = (i as f64 + 0.2, i as f64 + 0.8, floors[i]);
            floors[i] += size(r);
            boxes.push(Rectangle::new([(left, floor), (right, floors[i])], color.filled()));
        }
        chart
            .draw_series(boxes)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
    }
    for (i, r) in rows.iter().enumerate() {
        let digits = if floors[i] < 10.0 { 2 } else { 0 };
        let text = format!("{:.digits$}", floors[i]);
        let middle = ("sans-serif", 12).into_text_style(area).pos(centred(VPos::Bottom));
        chart.draw_series([Text::new(text, (i as f64 + 0.5, floors[i] + top * 0.01), middle)])?;
        let (x, y) = chart.backend_coord(&(i as f64 + 0.5, 0.0));
        let below = ("sans-serif", 12).into_text_style(area).pos(centred(VPos::Top));
        let (left, above) = area.get_base_pixel();
        area.draw_text(&label(r), &below, (x - left, y - above + 6))?;
    }
    if parts.len() == 1 {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .draw()?;
    Ok(())
}

fn centred(vertical: VPos) -> Pos {
    Pos::new(HPos::Center, vertical)
}
