//! The modules as a chain from top to bottom, each with its local head beside it.

use std::fmt::Write as _;

use slrc_plan::buffer::align;
use slrc_plan::plan::{ModulePlan, Plan, describe};

use crate::html::{escape, shortened};
use crate::table::{bytes, count};

const WIDTH: usize = 900;
/// A module's box.
const BOX: (usize, usize) = (600, 76);
/// A head's box begins here.
const HEAD: usize = 660;
/// From one module to the next: the arrow and what is said beside it.
const GAP: usize = 46;
const MARGIN: usize = 8;
/// Most characters of a node's name in its box, and of a value's beside its arrow.
const NODE: usize = 62;
const VALUE: usize = 58;
/// Pixels of the longest arena bar.
const BAR: usize = 150;

pub(super) fn svg(plan: &Plan) -> String {
    let n = plan.modules.len();
    // The batch enters above.
    let height = MARGIN + 34 + n * BOX.1 + n.saturating_sub(1) * GAP + MARGIN;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui,sans-serif\" font-size=\"13\" fill=\"#222\">\n<title>modules</title>\n"
    );
    let inputs: Vec<&str> = plan.inputs.iter().map(|i| i.name.as_str()).collect();
    let top = MARGIN + 34;
    arrow(&mut out, MARGIN, top);
    text(&mut out, 40, MARGIN + 18, &format!("batch: {}", shortened(&inputs.join(", "), VALUE)), &inputs.join(", "));
    let most = plan.modules.iter().map(|m| m.step.arena_bytes).max().unwrap_or(0);
    for (i, m) in plan.modules.iter().enumerate() {
        let y = top + i * (BOX.1 + GAP);
        module(&mut out, m, y, most, i + 1 == n);
        if i + 1 < n {
            arrow(&mut out, y + BOX.1, y + BOX.1 + GAP);
            crossing(&mut out, plan, i, y + BOX.1);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// A line of text; the whole of it where it was shortened, as a hint.
fn text(out: &mut String, x: usize, y: usize, shown: &str, whole: &str) {
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\">{}<title>{}</title></text>", escape(shown), escape(whole));
}

fn arrow(out: &mut String, from: usize, to: usize) {
    let (tip, x) = (to - 7, 22);
    let _ = writeln!(
        out,
        "<path d=\"M{x} {from}V{tip}\" stroke=\"#555\" stroke-width=\"1.5\"/>\
         <path d=\"M{} {tip}h10l-5 7z\" fill=\"#555\"/>",
        x - 5
    );
}

fn module(out: &mut String, m: &ModulePlan, y: usize, most: usize, last: bool) {
    let (w, h) = BOX;
    let (fill, edge) = ("#eef4fb", "#6f97c2");
    let _ = writeln!(
        out,
        "<rect x=\"0.5\" y=\"{y}.5\" width=\"{w}\" height=\"{}\" rx=\"5\" fill=\"{fill}\" stroke=\"{edge}\"/>",
        h - 1
    );
    let _ = writeln!(out, "<text x=\"12\" y=\"{}\" font-size=\"20\" font-weight=\"600\">{}</text>", y + 28, m.index);
    let mono = "font-family=\"ui-monospace,monospace\" font-size=\"12\"";
    for (dy, word, node) in [(22, "from", &m.first), (42, "to", &m.last)] {
        let _ = writeln!(
            out,
            "<text x=\"52\" y=\"{0}\" fill=\"#666\">{word}</text>\
             <text x=\"92\" y=\"{0}\" {mono}>{1}<title>{2}</title></text>",
            y + dy,
            escape(&shortened(node, NODE)),
            escape(node)
        );
    }
    let own = m.parameters.saturating_sub(m.head_parameters);
    let _ = writeln!(out, "<text x=\"52\" y=\"{}\">{} parameters</text>", y + 64, count(own));
    // The arena as a bar, in proportion to the largest.
    let bar = (BAR * m.step.arena_bytes.min(most)).checked_div(most).unwrap_or(0).max(1);
    let x = 240;
    let _ = writeln!(
        out,
        "<rect x=\"{x}\" y=\"{}\" width=\"{BAR}\" height=\"10\" fill=\"#dbe5f0\"/>\
         <rect x=\"{x}\" y=\"{}\" width=\"{bar}\" height=\"10\" fill=\"#266ebe\"/>\
         <text x=\"{}\" y=\"{}\">arena {}</text>",
        y + 55,
        y + 55,
        x + BAR + 10,
        y + 64,
        bytes(m.step.arena_bytes)
    );
    head(out, m, y, last);
}

fn head(out: &mut String, m: &ModulePlan, y: usize, last: bool) {
    let (name, detail) = if last {
        ("the network's own output".to_string(), "its loss trains this module".to_string())
    } else {
        (format!("local head: {}", shortened(&m.head, 20)), format!("{} parameters", count(m.head_parameters)))
    };
    let middle = y + BOX.1 / 2;
    let (fill, edge) = if last { ("#eef7ee", "#74a874") } else { ("#fdf3e7", "#cf9a58") };
    let _ = writeln!(
        out,
        "<path d=\"M{} {middle}H{HEAD}\" stroke=\"#555\" stroke-width=\"1.5\"/>\
         <rect x=\"{HEAD}.5\" y=\"{}.5\" width=\"{}\" height=\"50\" rx=\"5\" fill=\"{fill}\" stroke=\"{edge}\"/>",
        BOX.0 + 1,
        middle - 25,
        WIDTH - HEAD - 2
    );
    text(out, HEAD + 12, middle - 5, &name, &m.head);
    let _ = writeln!(out, "<text x=\"{}\" y=\"{}\" fill=\"#666\">{detail}</text>", HEAD + 12, middle + 15);
}

/// What boundary `i` (from 0) hands on.
fn crossing(out: &mut String, plan: &Plan, i: usize, y: usize) {
    let Some(d) = plan.boundaries.get(i) else { return };
    let find = |id: &str| plan.buffers.iter().find(|b| b.id == id);
    let Some(x) = find(&d.x) else { return };
    let size = d.buffers().filter_map(find).map(|b| align(b.bytes)).sum();
    text(out, 40, y + 19, &shortened(&d.value, VALUE), &d.value);
    let what = if d.e.is_some() { "x and e" } else { "x" };
    let others = match d.carried.len() {
        0 => String::new(),
        n => format!(" and {n} carried along"),
    };
    let line = format!("{what}: {}{others}, {}", describe(x.dtype, &x.shape), bytes(size));
    let _ = writeln!(out, "<text x=\"40\" y=\"{}\" fill=\"#666\">{}</text>", y + 37, escape(&line));
}
