//! One plan of a sweep: what it needs, what it computes, and how much of the network local heads train.

use serde::Serialize;
use slrc_compiler::pipeline::Compiled;
use slrc_plan::buffer::{Space, align};
use slrc_plan::plan::{ModulePlan, Plan};

use crate::roofline::{self, Gpu};

/// A plan in numbers; field names are part of what `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) modules: usize,
    /// What of a step is computed again.
    pub(super) recompute: &'static str,
    /// ONNX nodes that modules end with, the last module's left out.
    pub(super) cuts: Vec<String>,
    #[serde(skip)]
    pub(super) short_cuts: Vec<String>,
    /// What `slrc plan show` calls the peak: the sum of the next three.
    pub(super) peak_bytes: usize,
    /// The network's own weights and their optimizer state.
    pub(super) resident_bytes: usize,
    /// Arena, boundaries included, and local heads.
    pub(super) working_bytes: usize,
    /// Batch, constants, and reported numbers.
    pub(super) other_bytes: usize,
    pub(super) arena_bytes: usize,
    /// Weights and optimizer state of local heads.
    pub(super) head_bytes: usize,
    /// Working memory as a part of that of one module without recomputation.
    pub(super) working_of_one: f64,
    /// Floating-point operations of a step.
    pub(super) flops: u64,
    /// Work as a part of that of one module without recomputation.
    pub(super) work_of_one: f64,
    pub(super) kernels: usize,
    /// For CUDA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) launches: Option<usize>,
    /// Roofline estimate of a step, a bound from below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) estimate_seconds: Option<f64>,
    pub(super) local_heads: usize,
    /// Of the network's own trained numbers, the part that a local head's loss trains.
    pub(super) locally_trained_parameters: f64,
    /// Of a step's work, the part done for local heads' losses.
    pub(super) locally_trained_work: f64,
    /// No other plan has a lower peak without more work, nor less work without a higher peak.
    pub(super) front: bool,
}

impl Row {
    /// A compiled plan in numbers; `one` is the plan that parts are of, this one if absent.
    pub(super) fn new(c: &Compiled, one: Option<&Row>, gpu: Option<&Gpu>) -> Row {
        let plan = &c.plan;
        let m = &plan.memory;
        let head_bytes = head_bytes(c);
        let resident_bytes = m.parameter + m.optimizer - head_bytes;
        let working_bytes = m.of(Space::Arena) + head_bytes;
        let passes = plan.settings.micro_batches;
        let flops = work(&plan.modules).saturating_mul(passes as u64);
        let (before, own) = plan.modules.split_at(plan.modules.len() - 1);
        let numbers = |all: &[ModulePlan]| all.iter().map(|m| m.parameters - m.head_parameters).sum::<usize>();
        let part = |some: f64, rest: f64| if some + rest > 0.0 { some / (some + rest) } else { 0.0 };
        let launches = passes * plan.modules.iter().map(|m| m.step.launches.len()).sum::<usize>();
        Row {
            modules: plan.modules.len(),
            recompute: c.spec.recompute.name(),
            cuts: c.cuts.iter().map(|k| k.node.clone()).collect(),
            short_cuts: c.cuts.iter().map(|k| short(&k.node).to_string()).collect(),
            peak_bytes: m.peak(),
            resident_bytes,
            working_bytes,
            other_bytes: m.peak() - resident_bytes - working_bytes,
            arena_bytes: m.of(Space::Arena),
            head_bytes,
            working_of_one: one.map_or(1.0, |o| working_bytes as f64 / o.working_bytes.max(1) as f64),
            flops,
            work_of_one: one.map_or(1.0, |o| flops as f64 / o.flops.max(1) as f64),
            kernels: plan.modules.iter().map(|m| m.step.kernels.len()).sum(),
            launches: (launches > 0).then_some(launches),
            estimate_seconds: gpu.map(|g| passes as f64 * estimate(plan, g)),
            local_heads: before.len(),
            locally_trained_parameters: part(numbers(before) as f64, numbers(own) as f64),
            locally_trained_work: part(work(before) as f64, work(own) as f64),
            front: false,
        }
    }
}

fn work(modules: &[ModulePlan]) -> u64 {
    modules.iter().map(|m| m.step.flops).sum()
}

fn estimate(plan: &Plan, gpu: &Gpu) -> f64 {
    plan.modules.iter().map(|m| roofline::estimate(plan, m, gpu).seconds()).sum()
}

/// Bytes of local heads' weights and of their optimizer state.
fn head_bytes(c: &Compiled) -> usize {
    let plan = &c.plan;
    let of_head = |name: &str| c.modules.iter().any(|m| m.head_variables.contains(name));
    let parameters = plan.parameters.iter().filter(|p| of_head(&p.name)).map(|p| &p.buffer);
    // State is called by its parameter's name and one word more.
    let state = plan.optimizer_state.iter().filter(|o| o.name.rsplit_once('.').is_some_and(|(p, _)| of_head(p)));
    let buffers: Vec<&String> = parameters.chain(state.map(|o| &o.buffer)).collect();
    plan.buffers.iter().filter(|b| buffers.contains(&&b.id)).map(|b| align(b.bytes)).sum()
}

/// A node's name without the scopes that most nodes share: `/layer1/layer1.0/relu_1/Relu` is `layer1.0/relu_1`.
fn short(node: &str) -> &str {
    let name = node.trim_start_matches('/');
    let Some((scopes, _)) = name.rsplit_once('/') else { return name };
    scopes.rmatch_indices('/').nth(1).map_or(scopes, |(at, _)| &scopes[at + 1..])
}

/// Marks the rows that no other row beats.
pub(super) fn mark_front(rows: &mut [Row]) {
    let all: Vec<(usize, u64)> = rows.iter().map(|r| (r.peak_bytes, r.flops)).collect();
    for (row, own) in rows.iter_mut().zip(&all) {
        row.front = !all.iter().any(|o| o.0 <= own.0 && o.1 <= own.1 && o != own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_to_their_last_scopes() {
        for (long, wanted) in [
            ("/layer1/layer1.0/relu_1/Relu", "layer1.0/relu_1"),
            ("/maxpool/MaxPool", "maxpool"),
            ("/a/b/c/d/Add", "c/d"),
            ("node_relu_3", "node_relu_3"),
            ("/Relu", "Relu"),
            ("", ""),
        ] {
            assert_eq!(short(long), wanted, "{long}");
        }
    }
}
