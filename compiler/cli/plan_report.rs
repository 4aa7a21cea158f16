//! `slrc plan report`: a plan as one page, `plan.html`, that needs nothing from outside.

mod chain;
mod one;
mod timeline;

use std::fmt::Write as _;

use slrc_plan::buffer::{Buffer, Space, align};
use slrc_plan::plan::{Plan, describe};
use slrc_runtime::files::write_atomic;
use slrc_runtime::folder::read_plan;

use crate::args::ReportArgs;
use crate::document::{Section, Span};
use crate::explain::{self, Fullest};
use crate::failure::Failure;
use crate::html::escape;
use crate::output;
use crate::plan::folder;
use crate::table::{bytes, count, flops};
use one::One;

/// Name of the page in a plan folder.
pub(crate) const PAGE: &str = "plan.html";
/// Buffers named at the peak.
const TOP: usize = 20;

pub(crate) fn run(a: &ReportArgs) -> Result<(), Failure> {
    let at = folder(&a.plan);
    let plan = read_plan(&at)?;
    let out = a.out.clone().unwrap_or_else(|| at.join(PAGE));
    let page = page(&plan, &One::of(&plan, &at));
    write_atomic(&out, page.as_bytes())?;
    output::line(format!("{} written, {}", out.display(), bytes(page.len())));
    Ok(())
}

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{margin-bottom:.2em}h2{margin-top:2em}p{margin:.6em 0}\
table{border-collapse:collapse;width:100%}\
td,th{padding:.25em 1em .25em 0;text-align:left;vertical-align:top;border-bottom:1px solid #eee}\
th{font-weight:600;border-bottom-color:#bbb}\
p,h1,.name{overflow-wrap:anywhere}\
td:first-child,.right{white-space:nowrap}.right{text-align:right}\
.name{font-family:ui-monospace,monospace;font-size:13px}\
svg{display:block;margin:1em 0;max-width:100%;height:auto}\
.key span{display:inline-block;width:1em;height:.8em;margin:0 .4em 0 1.2em;border:1px solid #999}\
@media(max-width:600px){body{padding:0 .5em}td,th,.name{font-size:11px;padding-right:.5em}}";

/// The whole page. It is XML, too.
fn page(plan: &Plan, one: &One) -> String {
    let s = &plan.settings;
    let title = format!("Plan of {}", plan.model.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{0}</title><style>{STYLE}</style></head>\n\
         <body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    let work: u64 = plan.modules.iter().map(|m| m.step.flops).fold(0, u64::saturating_add);
    let total = plan.memory.peak();
    let _ = writeln!(
        out,
        "<p>{}, batch {}, reconcile {}, {}. Peak <b>{}</b> ({} bytes), {} a step, {} trained numbers.</p>",
        match plan.modules.len() {
            1 => "1 module".to_string(),
            k => format!("{k} modules"),
        },
        s.batch_text(),
        escape(&s.reconcile),
        escape(&s.target),
        bytes(total),
        count(total),
        flops(work),
        count(plan.parameter_count())
    );
    out.push_str("<h2>Modules</h2>\n<p>Data flows downwards; no gradient flows back through a boundary.</p>\n");
    out.push_str(&chain::svg(plan));
    out.push_str("<h2>Memory during a step</h2>\n");
    out.push_str(&timeline::html(plan, one));
    out.push_str(&boundaries(plan).html());
    out.extend(peak(plan).iter().map(Section::html));
    out.push_str(&settings(plan).html());
    out.push_str("</body></html>\n");
    out
}

/// What is handed on.
fn boundaries(plan: &Plan) -> Section {
    let find = |id: &str| plan.buffers.iter().find(|b| b.id == id);
    let of = |b: Option<&Buffer>| b.map_or(0, |b| align(b.bytes));
    let rows: Vec<Vec<String>> = plan
        .boundaries
        .iter()
        .flat_map(|d| d.tensors().map(move |tensor| (d.index, tensor)))
        .map(|(index, (value, x, e))| {
            let (x, e) = (find(x), e.and_then(find));
            vec![
                format!("{index} to {}", index + 1),
                value.to_string(),
                x.map_or(String::new(), |b| describe(b.dtype, &b.shape)),
                bytes(of(x) + of(e)),
                if e.is_some() { "x and e" } else { "x" }.to_string(),
            ]
        })
        .collect();
    let note = if rows.is_empty() {
        "One module: nothing crosses."
    } else {
        "x is a module's output, e the gradient of its local loss with respect to x. Both are constants to the next \
         module; labels reach every module besides."
    };
    Section {
        title: "Boundaries",
        header: vec!["module", "value", "shape", "size", "what crosses"],
        right: vec![3],
        names: vec![1, 2],
        rows,
        lines: vec![vec![Span::Words(note.into())]],
    }
}

/// What is live at the peak, and what would lower it.
fn peak(plan: &Plan) -> [Section; 2] {
    let mut section = Section { title: "What is live at the peak", ..Section::default() };
    let mut advice = Section { title: "What would lower the peak", ..Section::default() };
    let Some(m) = explain::largest(plan) else { return [section, advice] };
    let f = Fullest::of(plan, m, TOP);
    section.lines = f.more().into_iter().chain([f.headline]).map(|l| vec![Span::Words(l)]).collect();
    section.header = explain::HEADER.to_vec();
    section.right = explain::RIGHT.to_vec();
    section.names = vec![2];
    section.rows = f.rows;
    advice.lines = f.advice.into_iter().map(|l| vec![Span::Words(l)]).collect();
    [section, advice]
}

fn settings(plan: &Plan) -> Section {
    let s = &plan.settings;
    let distance = if s.reconcile == "off" { String::new() } else { format!(", {} distance", s.distance) };
    let m = &plan.memory;
    let all = [
        ("model", plan.model.name.clone()),
        ("model's SHA-256", plan.model.sha256.clone()),
        ("trained output", plan.model.output.clone()),
        ("spec's SHA-256", s.spec_sha256.clone()),
        ("partition", s.partition.clone()),
        ("reconcile", format!("{}{distance}", s.reconcile)),
        ("optimizer", s.optimizer.clone()),
        ("batch", s.batch_text()),
        ("seed", s.seed.to_string()),
        ("target", s.target.clone()),
        ("precision", s.precision.name().to_string()),
        ("parameters", bytes(m.parameter)),
        ("optimizer state", bytes(m.optimizer)),
        ("arena", bytes(m.of(Space::Arena))),
        ("batch and labels", bytes(m.input)),
        ("format", plan.format.clone()),
    ];
    let repairs = s.repairs.iter().map(|r| ("repair", r.clone()));
    Section {
        title: "Settings",
        header: vec!["setting", "value"],
        names: vec![1],
        rows: all.into_iter().chain(repairs).map(|(name, value)| vec![name.to_string(), value]).collect(),
        ..Section::default()
    }
}
