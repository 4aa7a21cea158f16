//! `slrc plan diff`: what two plans mean to whoever runs them, compared.

pub(crate) mod kernels;
mod render;

use serde::Serialize;
use slrc_plan::buffer::Space;
use slrc_plan::plan::{ModulePlan, Plan, Settings};
use slrc_runtime::folder::read_plan;

use crate::args::{DiffArgs, DiffFormat};
use crate::diff::kernels::{KernelChanges, compare};
use crate::failure::Failure;
use crate::output;
use crate::plan::folder;

pub(crate) fn run(a: &DiffArgs) -> Result<(), Failure> {
    let diff = Diff::of(&read_plan(&folder(&a.old))?, &read_plan(&folder(&a.new))?);
    match a.format {
        DiffFormat::Text => output::print(&diff.document().text()),
        DiffFormat::Markdown => output::print(&diff.document().markdown()),
        DiffFormat::Json => {
            output::line(serde_json::to_string_pretty(&diff).map_err(|e| Failure::Run(e.to_string()))?);
        }
    }
    Ok(())
}

/// A thing that has another value.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Change<T> {
    pub(crate) name: &'static str,
    pub(crate) old: T,
    pub(crate) new: T,
}

/// A module's share of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ModuleFigures {
    pub(crate) first_node: String,
    pub(crate) last_node: String,
    pub(crate) head: String,
    pub(crate) parameters: usize,
    pub(crate) arena_bytes: usize,
    pub(crate) kernels: usize,
    /// Zero where the target is no CUDA device.
    pub(crate) launches: usize,
    pub(crate) flops: u64,
}

impl ModuleFigures {
    fn of(m: &ModulePlan) -> ModuleFigures {
        ModuleFigures {
            first_node: m.first.clone(),
            last_node: m.last.clone(),
            head: m.head.clone(),
            parameters: m.parameters,
            arena_bytes: m.step.arena_bytes,
            kernels: m.step.kernels.len(),
            launches: m.step.launches.len(),
            flops: m.step.flops,
        }
    }
}

/// A module of either plan.
#[derive(Debug, Serialize)]
pub(crate) struct ModuleChange {
    pub(crate) index: usize,
    /// Absent where the old plan has fewer modules.
    pub(crate) old: Option<ModuleFigures>,
    /// Absent where the new plan has fewer modules.
    pub(crate) new: Option<ModuleFigures>,
}

/// What `--format json` prints; field names are part of the interface.
#[derive(Debug, Serialize)]
pub(crate) struct Diff {
    /// Whether the plans are the same in every respect.
    pub(crate) equal: bool,
    /// Settings that changed, and the model.
    pub(crate) settings: Vec<Change<String>>,
    /// Bytes, changed or not, the peak last.
    pub(crate) memory: Vec<Change<usize>>,
    /// Modules, changed or not.
    pub(crate) modules: Vec<ModuleChange>,
    /// Kernels of training steps that have no counterpart.
    pub(crate) kernels: KernelChanges,
    /// Parts of the plan that differ, said by the above or not.
    pub(crate) sections: Vec<String>,
}

impl Diff {
    pub(crate) fn of(old: &Plan, new: &Plan) -> Diff {
        Diff {
            equal: old == new,
            settings: settings(old, new),
            memory: memory(old, new),
            modules: modules(old, new),
            kernels: compare(old, new),
            sections: sections(old, new),
        }
    }
}

fn settings(old: &Plan, new: &Plan) -> Vec<Change<String>> {
    let of = |p: &Plan| {
        let (m, s) = (&p.model, &p.settings);
        [
            ("model", m.name.clone()),
            ("model file", m.sha256.clone()),
            ("output", m.output.clone()),
            ("spec", s.spec_sha256.clone()),
            ("target", s.target.clone()),
            ("precision", s.precision.name().to_string()),
            ("batch", s.batch_text()),
            ("seed", s.seed.to_string()),
            ("repairs", repairs(s)),
            ("partition", s.partition.clone()),
            ("reconcile", s.reconcile.clone()),
            ("distance", s.distance.clone()),
            ("optimizer", s.optimizer.clone()),
        ]
    };
    let pairs = of(old).into_iter().zip(of(new));
    let changes = pairs.map(|((name, old), (_, new))| Change { name, old, new });
    changes.filter(|c| c.old != c.new).collect()
}

fn repairs(s: &Settings) -> String {
    if s.repairs.is_empty() { "none".into() } else { s.repairs.join("; ") }
}

fn memory(old: &Plan, new: &Plan) -> Vec<Change<usize>> {
    let of = |p: &Plan| {
        let m = &p.memory;
        let other = m.constant + m.scalar + m.metric;
        [
            ("parameters", m.parameter),
            ("optimizer", m.optimizer),
            ("arena", m.of(Space::Arena)),
            ("input", m.input),
            ("other", other),
            ("peak", m.peak()),
        ]
    };
    of(old).into_iter().zip(of(new)).map(|((name, old), (_, new))| Change { name, old, new }).collect()
}

fn modules(old: &Plan, new: &Plan) -> Vec<ModuleChange> {
    let figures = |p: &Plan, i: usize| p.modules.get(i).map(ModuleFigures::of);
    (0..old.modules.len().max(new.modules.len()))
        .map(|i| ModuleChange { index: i + 1, old: figures(old, i), new: figures(new, i) })
        .collect()
}

/// Names of the parts of a plan that are not equal.
fn sections(old: &Plan, new: &Plan) -> Vec<String> {
    let mut out: Vec<String> = [
        ("inputs", old.inputs != new.inputs),
        ("labels", old.labels != new.labels),
        ("scalars", old.scalars != new.scalars),
        ("parameters", old.parameters != new.parameters),
        ("optimizer state", old.optimizer_state != new.optimizer_state),
        ("constants", old.constants != new.constants),
        ("boundaries", old.boundaries != new.boundaries),
        ("buffers outside the arenas", old.buffers != new.buffers),
        ("kernels.cu", old.kernels_sha256 != new.kernels_sha256),
    ]
    .into_iter()
    .filter(|s| s.1)
    .map(|s| s.0.to_string())
    .collect();
    for (a, b) in old.modules.iter().zip(&new.modules) {
        for (name, x, y) in [("step", &a.step, &b.step), ("eval", &a.eval, &b.eval)] {
            for (part, differ) in [
                ("buffers", x.buffers != y.buffers),
                ("kernels", x.kernels != y.kernels),
                ("launches", x.launches != y.launches),
            ] {
                if differ {
                    out.push(format!("module {} {name} {part}", a.index));
                }
            }
        }
        if a.metrics != b.metrics || a.eval_outputs != b.eval_outputs {
            out.push(format!("module {} reports", a.index));
        }
    }
    out
}
