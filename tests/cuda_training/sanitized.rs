//! Whole training steps with kernels compiled under the sanitizers, at sizes small enough for every run.
//!
//! A plan's buffers lie side by side in one allocation, and many take the same bytes in turn: a sanitizer sees one
//! block, and an access past a buffer's end passes for one of its neighbour. So the plan is spread out first: every
//! buffer of every program gets bytes of its own, between gaps that kernels are forbidden.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use slrc_compiler::onnx::file::sha256_hex;
use slrc_plan::buffer::align;
use slrc_plan::launch::{Launch, LaunchArg};
use slrc_plan::validate::validate;
use slrc_plan::{Buffer, DType, Dims, Plan, Space};
use slrc_runtime::cuda::code::Kernels;
use slrc_runtime::device::Device as _;

use crate::support::cuda_host::device::guard;
use crate::support::cuda_host::{Options, Sanitizer, in_child, in_child_failing, real};
use crate::{Case, DIFFERENCES, EXACT, Limits, Trained, case, compare, compiled, on_cpu, train};

/// Least bytes between two buffers, and before the first.
const GAP: usize = 256;

/// A training, and what is done to its plan.
#[derive(Clone, Serialize, Deserialize)]
struct Altered {
    case: Case,
    /// Gaps between buffers.
    spread: bool,
    /// A statement on `x`, a pointer to a buffer, for a launch of one warp behind all others of the first module.
    planted: Option<(Space, String)>,
}

/// Gives buffers of one space places one after another, from `end` on, and returns the gaps behind them.
fn place<'a>(buffers: impl Iterator<Item = &'a mut Buffer>, end: &mut usize) -> Vec<Buffer> {
    let mut gaps = Vec::new();
    for b in buffers {
        b.offset = *end;
        *end += align(b.bytes) + GAP;
        let start = b.offset + b.bytes;
        gaps.push(Buffer { offset: start, bytes: *end - start, ..b.clone() });
    }
    gaps
}

/// Spreads a plan out and returns its gaps.
fn spread(plan: &mut Plan) -> Vec<Buffer> {
    let mut gaps = Vec::new();
    for &space in Space::ALL.iter().filter(|&&s| s != Space::Arena) {
        let mut end = GAP;
        gaps.extend(place(plan.buffers.iter_mut().filter(|b| b.space == space), &mut end));
        let m = &mut plan.memory;
        *match space {
            Space::Parameter => &mut m.parameter,
            Space::Optimizer => &mut m.optimizer,
            Space::Constant => &mut m.constant,
            Space::Input => &mut m.input,
            Space::Scalar => &mut m.scalar,
            Space::Metric => &mut m.metric,
            Space::Arena => unreachable!("filtered out"),
        } = end;
    }
    // Programs share no bytes either: gaps stay where they are from one to the next.
    let mut end = GAP;
    gaps.extend(place(plan.buffers.iter_mut().filter(|b| b.space == Space::Arena), &mut end));
    for m in &mut plan.modules {
        for p in [&mut m.step, &mut m.eval] {
            gaps.extend(place(p.buffers.iter_mut(), &mut end));
            p.arena_bytes = end;
        }
    }
    (plan.memory.arena, plan.memory.eval_arena) = (end, end);
    let before = |b: &Buffer| Buffer { offset: 0, bytes: GAP, ..b.clone() };
    let first: Vec<Buffer> =
        Space::ALL.iter().filter_map(|&s| gaps.iter().find(|g| g.space == s)).map(before).collect();
    gaps.extend(first);
    gaps
}

/// Adds a launch to the first module's training that runs `statement`, in which `x` is the middle one of a space's
/// buffers of numbers and `COUNT` how many it holds.
fn plant(plan: &mut Plan, source: &mut String, space: Space, statement: &str) {
    let all = if space == Space::Arena { &plan.modules[0].step.buffers } else { &plan.buffers };
    let buffers: Vec<&Buffer> = all.iter().filter(|b| b.space == space && b.dtype == DType::F32).collect();
    let x = buffers[buffers.len() / 2];
    let statement = statement.replace("COUNT", &x.count().to_string());
    let id = x.id.clone();
    source.push_str(&format!("\nextern \"C\" __global__ void planted(float* x) {{\n  {statement}\n}}\n"));
    let step = &mut plan.modules[0].step;
    step.launches.push(Launch {
        kernels: step.kernels.last().map(|k| k.id.clone()).into_iter().collect(),
        function: "planted".into(),
        grid: Dims(vec![1, 1, 1]),
        blocks: Vec::new(),
        follows: BTreeMap::new(),
        block: 32,
        shared: 0,
        args: vec![LaunchArg::Buffer(id)],
    });
    plan.kernels_sha256 = Some(sha256_hex(source.as_bytes()));
}

fn altered(a: Altered) -> Trained {
    let (c, tensors) = compiled(&a.case, "cuda");
    let (mut plan, mut source) = (c.plan, c.kernels.expect("kernels"));
    let gaps = if a.spread { spread(&mut plan) } else { Vec::new() };
    validate(&plan).expect("the plan still holds");
    if let Some((space, statement)) = &a.planted {
        plant(&mut plan, &mut source, *space, statement);
    }
    let device = a.case.load(&plan, &Kernels::from(source));
    for gap in &gaps {
        guard(device.address(gap), gap.bytes);
    }
    let allocated = device.allocated();
    train(&a.case, plan, Box::new(device), allocated, &tensors)
}

fn under(sanitizer: Sanitizer) -> Options {
    Options { sanitizer, ..Options::default() }
}

const PERCEPTRON: &str = "{batch: 3, partition: {modules: 2}, reconcile: {mode: exact}}";

/// Small models that have every kernel family between them: model, a value behind which Dropout is put, and spec.
const CASES: &[(&str, Option<&str>, &str, Limits)] = &[
    ("mnist_mlp", None, PERCEPTRON, EXACT),
    ("mnist_mlp", Some("relu"), "{batch: 2, partition: {modules: 2}, reconcile: {mode: 'off'}}", EXACT),
    ("mnist_cnn", None, "{batch: 2, partition: {modules: 2}, reconcile: {mode: exact}}", EXACT),
    ("mnist_cnn", None, "{batch: 3, partition: {modules: 2}, reconcile: {mode: finite-difference}}", DIFFERENCES),
    ("mnist_vit", None, "{batch: 2, partition: {modules: 2}, reconcile: {mode: 'off'}}", EXACT),
    ("tokens_bert", None, "{batch: 2, partition: {modules: 2}, reconcile: {mode: tangent}}", EXACT),
    ("tokens_bert", None, "{batch: 3, partition: {modules: 1}, optimizer: {kind: adamw, eps: 0.001}}", EXACT),
];

fn cases() -> impl Iterator<Item = (Case, Limits)> {
    CASES.iter().map(|&(model, dropout, spec, limits)| {
        (Case { dropout: dropout.map(str::to_string), ..case(model, spec, 1) }, limits)
    })
}

#[test]
fn every_family_is_among_the_cases() {
    let plans: Vec<Plan> = cases().map(|(case, _)| compiled(&case, "cuda").0.plan).collect();
    let steps = plans.iter().flat_map(|p| &p.modules).flat_map(|m| &m.step.kernels);
    let found: BTreeSet<&str> = steps.map(|k| k.run.family()).collect();
    let all = [
        "attention",
        "conv",
        "copy",
        "fill",
        "gather",
        "map",
        "matmul",
        "random",
        "reduce",
        "row",
        "scatter-add",
        "window",
    ];
    assert!(found.iter().eq(&all), "{found:?}");
}

/// One step and one evaluation of every case, without a report and with the CPU's results.
fn clean(test: &str, sanitizer: Sanitizer, spread: bool) {
    if real() {
        return; // Sanitizers are the stand-in's.
    }
    for (case, limits) in cases() {
        let model = &case.model;
        let ran = in_child(test, &under(sanitizer), Altered { case: case.clone(), spread, planted: None }, altered);
        assert!(ran.counts.launches.values().sum::<u64>() >= 10, "{model}: {:?}", ran.counts.launches);
        compare(&case, &ran.value, &on_cpu(&case), limits);
    }
}

#[test]
fn steps_stay_in_bounds() {
    clean("sanitized::steps_stay_in_bounds", Sanitizer::Address, true);
}

/// Laid out as the plan says: a kernel that writes in place must leave every element to one thread.
#[test]
fn steps_have_no_races() {
    clean("sanitized::steps_have_no_races", Sanitizer::Thread, false);
}

/// An access of one element outside a buffer, of any kind and in any space, ends the step; without gaps it lies in the
/// same allocation, and nothing is seen.
#[test]
fn planted_overruns_are_found() {
    if real() {
        return; // Sanitizers are the stand-in's.
    }
    let (test, options) = ("sanitized::planted_overruns_are_found", under(Sanitizer::Address));
    for (space, statement) in [
        (Space::Arena, "x[COUNT] = 1.0f;"),
        (Space::Arena, "x[-1] = 1.0f;"),
        (Space::Arena, "x[0] = x[COUNT];"),
        (Space::Parameter, "x[COUNT] = 1.0f;"),
        (Space::Optimizer, "x[0] = x[-1];"),
        (Space::Scalar, "x[COUNT] = 1.0f;"),
        (Space::Metric, "x[-1] = 1.0f;"),
    ] {
        let planted = Some((space, statement.to_string()));
        let a = Altered { case: case("mnist_mlp", PERCEPTRON, 1), spread: true, planted };
        let output = in_child_failing(test, &options, a.clone(), altered);
        for word in ["use-after-poison", "in planted", "kernels.cu"] {
            assert!(output.contains(word), "{space:?} {statement} does not say {word:?}:\n{output}");
        }
        in_child(test, &options, Altered { spread: false, ..a }, altered);
    }
}

/// A race in one launch of a step ends it.
#[test]
fn a_planted_race_is_found() {
    if real() {
        return; // Sanitizers are the stand-in's.
    }
    let planted = Some((Space::Arena, "x[0] = float(threadIdx.x);".to_string()));
    let a = Altered { case: case("mnist_mlp", PERCEPTRON, 1), spread: false, planted };
    let output = in_child_failing("sanitized::a_planted_race_is_found", &under(Sanitizer::Thread), a, altered);
    for word in ["race", "planted", "CUDA_ERROR_LAUNCH_FAILED"] {
        assert!(output.contains(word), "does not say {word:?}:\n{output}");
    }
}
