//! `slrc plan explain`: what is live where a plan needs most memory, and what that rests on.

use std::ops::Range;

use slrc_plan::buffer::{Buffer, DType, Space, align};
use slrc_plan::kernel::{Kernel, Phase};
use slrc_plan::plan::{ModulePlan, Plan};
use slrc_runtime::folder::read_plan;

use crate::args::ExplainArgs;
use crate::failure::Failure;
use crate::output;
use crate::plan::folder;
use crate::table::{bytes, table};

pub(crate) fn run(a: &ExplainArgs) -> Result<(), Failure> {
    let plan = read_plan(&folder(&a.plan))?;
    let module = match a.module {
        None => largest(&plan),
        Some(k) => plan.modules.iter().find(|m| m.index == k),
    };
    let Some(m) = module else {
        let k = a.module.unwrap_or_default();
        return Err(Failure::Usage(format!("--module {k}: the plan has modules 1 to {}", plan.modules.len())));
    };
    if a.csv {
        output::print(&csv(&places(&plan, m)));
    } else {
        output::print(&text(&plan, m, a.top));
    }
    Ok(())
}

/// Buffers that follow each other in one place, each written over the one before it by the kernel where that dies.
pub(crate) struct Place<'a> {
    buffers: Vec<&'a Buffer>,
    /// Kernels from first to one past the last.
    pub(crate) live: Range<usize>,
    pub(crate) bytes: usize,
}

impl Place<'_> {
    /// Whether it is where a boundary lies.
    pub(crate) fn is_boundary(&self) -> bool {
        self.buffers.iter().any(|b| b.live.is_none())
    }
}

/// What the arena has to hold during a module's training step, in order of time.
pub(crate) fn places<'a>(plan: &'a Plan, m: &'a ModulePlan) -> Vec<Place<'a>> {
    let own = m.step.buffers.iter().filter_map(|b| b.live.map(|l| (l.first, l.last, b)));
    let handed = plan.handed(m.index, &m.step).into_iter().map(|(b, l)| (l.first, l.last, b));
    let mut sorted: Vec<(usize, usize, &Buffer)> = own.chain(handed).filter(|(_, _, b)| b.bytes > 0).collect();
    sorted.sort_by_key(|&(first, last, b)| (first, last, b.offset));
    let mut out: Vec<Place<'_>> = Vec::new();
    for (first, last, b) in sorted {
        // A plan that holds lets live buffers meet in one place only in this way.
        let before = out.iter_mut().find(|p| p.live.end == first + 1 && p.buffers[0].offset == b.offset);
        match before {
            Some(place) => {
                place.buffers.push(b);
                place.live.end = last + 1;
            }
            None => out.push(Place { buffers: vec![b], live: first..last + 1, bytes: align(b.bytes) }),
        }
    }
    out
}

/// Rows as the benchmarks of allocation solvers have them.
fn csv(places: &[Place<'_>]) -> String {
    let rows = places.iter();
    let rows = rows.map(|p| format!("{},{},{},{}\n", p.buffers[0].id, p.live.start, p.live.end, p.bytes));
    format!("id,lower,upper,size\n{}", rows.collect::<String>())
}

/// The kernel at which most is live, and how much.
fn fullest(places: &[Place<'_>], kernels: usize) -> (usize, usize) {
    let live = |i: usize| places.iter().filter(|p| p.live.contains(&i)).map(|p| p.bytes).sum::<usize>();
    (0..kernels).map(|i| (i, live(i))).rev().max_by_key(|x| x.1).unwrap_or_default()
}

/// What a buffer is, by the part of the step that writes it and the part that needs it last.
fn purpose(b: &Buffer, plan: &Plan, m: &ModulePlan) -> &'static str {
    let p = &m.step;
    let Some(live) = b.live else {
        let handed_on = plan.boundaries.iter().any(|d| d.index == m.index && d.holds(&b.id));
        return if handed_on { "boundary, for the next module" } else { "boundary, from the module before" };
    };
    let phase = |i: usize| p.kernels.get(i).map(|k| k.phase);
    let early = |f: Option<Phase>| matches!(f, Some(Phase::Forward | Phase::Head | Phase::Loss));
    if b.id.ends_with(".partials") {
        return "workspace";
    }
    if live.first == live.last {
        return "used inside one kernel";
    }
    match phase(live.first) {
        Some(Phase::Reconcile) => "reconciliation",
        Some(Phase::Backward | Phase::Update) => "gradient",
        _ if early(phase(live.last)) => "activation",
        _ if b.dtype == DType::U8 => "mask or positions kept for backward",
        _ => "activation kept for backward",
    }
}

/// The ONNX node in a buffer's id, `m<k>/<node>:<what>`; what slrc added has none.
fn node<'a>(b: &'a Buffer, writer: Option<&'a Kernel>) -> &'a str {
    let name = b.id.split_once('/').map_or(b.id.as_str(), |x| x.1);
    let name = name.rsplit_once(':').map_or(name, |x| x.0);
    // Ids have one slash where a name begins with another.
    writer.map_or(name, |k| k.nodes.iter().find(|n| n.trim_start_matches('/') == name).map_or("", String::as_str))
}

/// What is live where a module needs most memory.
pub(crate) struct Fullest {
    pub(crate) headline: String,
    /// Size, part of the plan's peak, node, purpose, kernels that need it; the largest buffers first.
    pub(crate) rows: Vec<Vec<String>>,
    /// How many smaller buffers are left out, and their bytes.
    pub(crate) left_out: (usize, usize),
    /// What would lower the peak.
    pub(crate) advice: Vec<String>,
}

/// Header of [`Fullest::rows`].
pub(crate) const HEADER: [&str; 5] = ["size", "of peak", "node", "what", "kernels"];
/// Columns of [`Fullest::rows`] that are aligned to the right.
pub(crate) const RIGHT: [usize; 2] = [0, 1];

/// The module whose arena makes the peak.
pub(crate) fn largest(plan: &Plan) -> Option<&ModulePlan> {
    plan.modules.iter().rev().max_by_key(|m| m.step.arena_bytes)
}

impl Fullest {
    /// Looks at a module; at most `top` buffers are named.
    pub(crate) fn of(plan: &Plan, m: &ModulePlan, top: usize) -> Fullest {
        let step = &m.step;
        let places = places(plan, m);
        let (at, live) = fullest(&places, step.kernels.len());
        let peak = plan.memory.peak();
        let share = |n: usize| format!("{:.1} %", 100.0 * n as f64 / peak.max(1) as f64);
        let what = step.kernels.get(at).map_or(String::new(), |k| {
            format!("{}, {} {} {}", k.id, k.phase.name(), k.run.family(), k.nodes.join(", "))
        });
        let headline = format!(
            "peak {}; module {} of {}: arena {}, of which {} live at once at kernel {at} of {} ({})",
            bytes(peak),
            m.index,
            plan.modules.len(),
            bytes(step.arena_bytes),
            bytes(live),
            step.kernels.len(),
            what.trim_end()
        );
        let mut rows: Vec<(usize, Vec<String>)> = Vec::new();
        for p in places.iter().filter(|p| p.live.contains(&at)) {
            // Of buffers in one place, the one that is there when the kernel has run.
            let here = |b: &&&Buffer| b.live.is_some_and(|l| l.first <= at && at <= l.last);
            let b = p.buffers.iter().rev().find(here).unwrap_or(&p.buffers[0]);
            let (name, live) = match b.live {
                Some(l) => (node(b, step.kernels.get(l.first)), l.first..l.last + 1),
                None => (b.id.as_str(), p.live.clone()),
            };
            let span = format!("{} to {}", live.start, live.end.saturating_sub(1));
            rows.push((p.bytes, vec![name.into(), purpose(b, plan, m).into(), span]));
        }
        // Stable: equal sizes stay in order of time.
        rows.sort_by_key(|r| std::cmp::Reverse(r.0));
        let left_out = (rows.len().saturating_sub(top), rows.iter().skip(top).map(|r| r.0).sum());
        let shown = rows.into_iter().take(top).map(|(n, rest)| [vec![bytes(n), share(n)], rest].concat()).collect();
        Fullest { headline, rows: shown, left_out, advice: advice(plan, m, &places, at, live) }
    }

    /// What is said of the buffers left out, if any are.
    pub(crate) fn more(&self) -> Option<String> {
        let (count, size) = self.left_out;
        (count > 0).then(|| format!("and {count} smaller buffers, {}", bytes(size)))
    }
}

fn text(plan: &Plan, m: &ModulePlan, top: usize) -> String {
    let mut f = Fullest::of(plan, m, top);
    let mut out = format!("{}\n\n{}", f.headline, table(&HEADER, &RIGHT, std::mem::take(&mut f.rows)));
    out.extend(f.more().map(|more| format!("{more}\n")));
    out.push_str("\nwhat would lower the peak\n\n");
    out.extend(f.advice.iter().map(|line| format!("* {line}\n")));
    out
}

/// What follows from the plan alone.
fn advice(plan: &Plan, m: &ModulePlan, places: &[Place<'_>], at: usize, live: usize) -> Vec<String> {
    let memory = &plan.memory;
    let peak = memory.peak();
    let share = |n: usize| format!("{} ({:.1} %)", bytes(n), 100.0 * n as f64 / peak.max(1) as f64);
    let mut out = vec![format!(
        "of the peak, the arena is {}, parameters {}, optimizer state {}",
        share(memory.of(Space::Arena)),
        share(memory.parameter),
        share(memory.optimizer)
    )];
    let others = plan.modules.iter().filter(|o| o.index != m.index);
    if let Some(next) = others.max_by_key(|o| o.step.arena_bytes) {
        let (own, other) = (m.step.arena_bytes, next.step.arena_bytes);
        out.push(if own > other {
            let n = next.index;
            let (next, spare) = (bytes(other), bytes(own - other));
            format!("less in module {} alone saves at most {spare}: then module {n} is largest, with {next}", m.index)
        } else {
            format!("less in module {} alone saves nothing: module {} needs {}", m.index, next.index, bytes(other))
        });
    }
    let batch = plan.settings.batch;
    // A gradient has its parameter's shape, whose first extent may be the batch by chance.
    let parameter = |b: &Buffer| plan.buffers.iter().any(|w| w.space == Space::Parameter && w.shape == b.shape);
    let of_batch = |p: &&Place<'_>| {
        let b = p.buffers[0];
        p.live.contains(&at) && b.shape.first() == Some(&batch) && !parameter(b)
    };
    let n: usize = places.iter().filter(of_batch).map(|p| p.bytes).sum();
    out.push(format!(
        "{} of the {} live here have the batch of {batch} as first extent, by their shapes, and shrink with it",
        bytes(n),
        bytes(live)
    ));
    if memory.optimizer > memory.arena {
        out.push(format!(
            "optimizer state outweighs the arena: an optimizer without any (sgd with momentum 0) saves {}",
            bytes(memory.optimizer)
        ));
    }
    out
}
