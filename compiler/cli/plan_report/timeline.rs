//! What is live from kernel to kernel through a step, one module after the other.

use plotters::prelude::*;
use slrc_plan::buffer::Space;
use slrc_plan::kernel::Kernel;
use slrc_plan::plan::Plan;

use super::one::One;
use crate::explain::places;
use crate::html::escape;
use crate::table::bytes;

/// Largest peak that is drawn: a damaged plan may have any.
const LARGEST: usize = 1 << 50;
const SIZE: (u32, u32) = (900, 380);
const RESIDENT: RGBColor = RGBColor(140, 150, 165);
const BOUNDARY: RGBColor = RGBColor(214, 150, 80);
const ARENA: RGBColor = RGBColor(38, 110, 190);
const PLAIN: RGBColor = RGBColor(226, 226, 226);
const AGAIN: RGBColor = RGBColor(120, 120, 120);
const PEAK: RGBColor = RGBColor(180, 40, 40);

/// Live bytes over a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Moment {
    /// Where the kernel begins and ends, in parts of the step's work.
    from: f64,
    to: f64,
    boundary: usize,
    arena: usize,
}

/// A step from its first kernel to its last.
struct Course {
    /// What is there from beginning to end.
    resident: usize,
    moments: Vec<Moment>,
    /// Where modules end, in parts of the step's work; in a step without any, of its kernels.
    ends: Vec<f64>,
}

impl Course {
    fn of(plan: &Plan) -> Course {
        let m = &plan.memory;
        // Of a damaged plan's kernels, the work may not be what it says of the whole.
        let total = |of: fn(&Kernel) -> u64| {
            plan.modules.iter().flat_map(|m| &m.step.kernels).map(of).fold(0, u64::saturating_add)
        };
        let mut of: fn(&Kernel) -> u64 = |k| k.flops;
        if total(of) == 0 {
            of = |_| 1;
        }
        let work = total(of).max(1);
        let (mut done, mut moments, mut ends) = (0u64, Vec::new(), Vec::new());
        let part = |done: u64| done as f64 / work as f64;
        for module in &plan.modules {
            // Bytes that come and go at each kernel.
            let mut change = vec![[0i128; 2]; module.step.kernels.len() + 1];
            for p in places(plan, module) {
                let kind = usize::from(p.is_boundary());
                change[p.live.start][kind] += p.bytes as i128;
                change[p.live.end][kind] -= p.bytes as i128;
            }
            let mut now = [0i128; 2];
            for (k, change) in module.step.kernels.iter().zip(change) {
                now.iter_mut().zip(change).for_each(|(n, c)| *n += c);
                let [arena, boundary] = now.map(|n| usize::try_from(n).unwrap_or(0));
                let from = part(done);
                done = done.saturating_add(of(k));
                moments.push(Moment { from, to: part(done), boundary, arena });
            }
            ends.push(part(done));
        }
        Course { resident: m.peak() - m.of(Space::Arena), moments, ends }
    }

    /// Corners of the curve of what `size` says is live.
    fn curve(&self, unit: f64, size: impl Fn(&Moment) -> usize) -> Vec<(f64, f64)> {
        let corners = |m: &Moment| {
            let y = (self.resident + size(m)) as f64 / unit;
            [(100.0 * m.from, y), (100.0 * m.to, y)]
        };
        self.moments.iter().flat_map(corners).collect()
    }
}

pub(super) fn html(plan: &Plan, one: &One) -> String {
    let mut out = String::from(
        "<p>What is live while each kernel runs, stacked, along the step's floating-point work; modules between vertical \
         lines. The red line is what is allocated: the planned peak.</p>\n<p class=\"key\">",
    );
    let mut key = |color: RGBColor, what: &str| {
        out.push_str(&format!("<span style=\"background:rgb({},{},{})\"></span>{what}", color.0, color.1, color.2));
    };
    key(RESIDENT, "weights, optimizer state, batch");
    key(BOUNDARY, "boundaries");
    key(ARENA, "the rest of the arena");
    if let One::Compiled { .. } = one {
        key(PLAIN, "K = 1");
        key(AGAIN, "K = 1, recomputing");
    }
    out.push_str("</p>\n");
    match draw(plan, one) {
        Ok(svg) => out.push_str(&svg),
        Err(e) => out.push_str(&format!("<p>The picture cannot be drawn: {}</p>\n", escape(&e.to_string()))),
    }
    out.push_str(&match one {
        One::Itself => "<p>The plan is one module: end-to-end backpropagation.</p>\n".to_string(),
        One::Unknown(why) => format!("<p>No comparison with one module: {}.</p>\n", escape(why)),
        One::Compiled { plain, recomputing } => format!(
            "<p>The same network as one module, end-to-end backpropagation, has a peak of {} with nothing computed again \
             and of {} with elementwise work computed again; this plan, {}.</p>\n",
            bytes(plain.memory.peak()),
            bytes(recomputing.memory.peak()),
            bytes(plan.memory.peak())
        ),
    });
    out
}

fn draw(plan: &Plan, one: &One) -> Result<String, Box<dyn std::error::Error>> {
    let others: Vec<&Plan> = match one {
        One::Compiled { plain, recomputing } => vec![plain, recomputing],
        One::Itself | One::Unknown(_) => Vec::new(),
    };
    let most = others.iter().map(|p| p.memory.peak()).max().unwrap_or(0).max(plan.memory.peak());
    // Axes of such lengths overflow.
    if most > LARGEST {
        return Err("its sizes are those of no machine".into());
    }
    let (name, unit) = match most {
        0..1_048_576 => ("KiB", 1024.0),
        1_048_576..1_073_741_824 => ("MiB", 1_048_576.0),
        _ => ("GiB", 1_073_741_824.0),
    };
    let top = (most as f64 / unit * 1.1).max(1e-3);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .margin_right(20)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..100.0, 0.0..top)?;
        let digits = if top < 10.0 { 1 } else { 0 };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(230, 230, 230))
            .label_style(("sans-serif", 13))
            .x_labels(6)
            .y_labels(6)
            .x_desc("of the step's work, %")
            .y_desc(format!("live, {name}"))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.digits$}"))
            .draw()?;
        let area = |mut curve: Vec<(f64, f64)>, color: RGBColor| {
            let end = curve.last().map_or(0.0, |p| p.0);
            curve.extend([(end, 0.0), (0.0, 0.0)]);
            Polygon::new(curve, color.filled())
        };
        let courses: Vec<Course> = others.iter().map(|p| Course::of(p)).collect();
        let whole = |m: &Moment| m.boundary + m.arena;
        if let Some(c) = courses.first() {
            chart.draw_series([area(c.curve(unit, whole), PLAIN)])?;
        }
        let own = Course::of(plan);
        chart.draw_series([
            area(own.curve(unit, whole), ARENA),
            area(own.curve(unit, |m| m.boundary), BOUNDARY),
            area(own.curve(unit, |_| 0), RESIDENT),
        ])?;
        // Kernels without work have no width, and are seen as lines.
        chart.draw_series(LineSeries::new(own.curve(unit, whole), ARENA.stroke_width(1)))?;
        if let Some(c) = courses.get(1) {
            chart.draw_series(LineSeries::new(c.curve(unit, whole), AGAIN.stroke_width(1)))?;
        }
        let peak = plan.memory.peak() as f64 / unit;
        chart.draw_series(LineSeries::new([(0.0, peak), (100.0, peak)], PEAK.stroke_width(1)))?;
        let mut before = 0.0;
        for (i, &end) in own.ends.iter().enumerate() {
            let x = 100.0 * end;
            if i + 1 < own.ends.len() {
                chart.draw_series(LineSeries::new([(x, 0.0), (x, top)], RGBColor(90, 90, 90).stroke_width(1)))?;
            }
            // Numbers that would not fit between their lines are left out.
            if x - before > 2.5 {
                let style = ("sans-serif", 12).into_text_style(&root);
                chart.draw_series([Text::new((i + 1).to_string(), (before + 0.4, top * 0.985), style)])?;
            }
            before = x;
        }
        root.present()?;
    }
    // The name of SVG's namespace is not needed inside a page, and looks like a link.
    Ok(svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "") + "\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use slrc_plan::buffer::align;

    use super::*;

    #[test]
    fn the_course_is_what_is_live_at_each_kernel() {
        let text = include_str!("../../../runtime/plan/tests/every_family.yaml");
        let plan: Plan = slrc_plan::yaml::from_str(text).expect("a plan");
        let course = Course::of(&plan);
        let mut moments = course.moments.iter();
        for m in &plan.modules {
            for (i, k) in m.step.kernels.iter().enumerate() {
                let moment = moments.next().expect("a moment a kernel");
                // What is written in place lies where its operand does.
                let here = m.step.buffers.iter().filter(|b| b.live.is_some_and(|l| l.first <= i && i <= l.last));
                let places: BTreeMap<usize, usize> = here.map(|b| (b.offset, align(b.bytes))).collect();
                assert_eq!(moment.arena, places.values().sum::<usize>(), "module {}, {}", m.index, k.id);
                let handed = plan.handed(m.index, &m.step).into_iter().filter(|(_, l)| l.first <= i && i <= l.last);
                let bytes: usize = handed.map(|(b, _)| align(b.bytes)).sum();
                assert_eq!(moment.boundary, bytes, "module {}, {}", m.index, k.id);
            }
        }
        assert!(moments.next().is_none());
        assert!((course.ends.last().copied().unwrap_or(0.0) - 1.0).abs() < 1e-12);
        assert!(course.moments.windows(2).all(|w| w[0].to == w[1].from), "no gap");
    }
}
