//! Training with products by cuBLASLt and cuDNN (`--libraries`), on the stand-in's libraries: as on the CPU, the same
//! bits however the device runs, and as many products as the plan has of those that a library computes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use slrc_plan::Plan;
use slrc_plan::buffer::{Space, align};
use slrc_plan::launch::LaunchArg;
use slrc_plan::plan::Program;
use slrc_runtime::device::Device as _;

use super::precision::{TF32, WITH_KINKS};
use super::support::cuda_host::{Options, Order, Ran, Streams, in_child, real};
use super::{Case, EXACT, Limits, Trained, case, compare, compiled, on_cpu, train};

/// What training yields, and what libraries do of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Yield {
    trained: Trained,
    /// Of each module, a step and an evaluation: kernels that libraries compute.
    kernels: Vec<[BTreeSet<String>; 2]>,
    /// Bytes that they work in, beside the plan's.
    workspace: usize,
}

impl Yield {
    /// Kernels of all steps, and of all evaluations.
    fn products(&self) -> [usize; 2] {
        [0, 1].map(|kind| self.kernels.iter().map(|m| m[kind].len()).sum())
    }
}

fn with_library(case: Case) -> Yield {
    let (c, tensors) = compiled(&case, "cuda");
    let device = case.load(&c.plan, &c.kernels.expect("kernels").into());
    let used = device.library();
    let allocated = device.allocated();
    let kernels = used.kernels.iter().map(|m| m.each_ref().map(|k| k.keys().cloned().collect())).collect();
    Yield { trained: train(&case, c.plan, Box::new(device), allocated, &tensors), kernels, workspace: used.workspace }
}

/// A machine with both libraries.
fn libraries() -> Options {
    Options { cublaslt: true, cudnn: true, ..Options::default() }
}

/// Every product runs as a product and every other kernel as before, in as many bytes.
fn check_counts(case: &Case, ran: &Ran<Yield>) {
    let (c, _) = compiled(case, "cuda");
    let (counts, [step, eval]) = (&ran.counts, ran.value.products());
    let products = case.steps * step as u64 + eval as u64;
    let by_library = counts.launches.iter().filter(|(name, _)| name.starts_with("cublas") || name.starts_with("cudnn"));
    assert_eq!(by_library.map(|(_, n)| n).sum::<u64>(), products);
    // A product takes the place of all launches of its kernel, or of its part of one.
    let own = |p: &Program, theirs: &BTreeSet<String>| {
        p.launches.iter().map(|l| l.without(|k| theirs.contains(k)).len()).sum::<usize>() as u64
    };
    let modules = c.plan.modules.iter().zip(&ran.value.kernels);
    let own = modules.map(|(m, k)| case.steps * own(&m.step, &k[0]) + own(&m.eval, &k[1])).sum::<u64>();
    assert_eq!(counts.launches.values().sum::<u64>(), own + products);
    let programs = c.plan.modules.len() as u64;
    let expected = match (case.graphs, case.steps) {
        (false, _) => (0, 0),
        // The first run of a program is not recorded.
        (true, steps) => (programs, (steps - 1) * programs),
    };
    assert_eq!((counts.graphs_captured, counts.graph_launches), expected);
    assert_eq!(counts.peak_bytes, ran.value.trained.allocated as u64);
    let workspaces = u64::from(ran.value.workspace > 0);
    assert_eq!(counts.calls("cuMemAlloc_v2"), 1 + workspaces);
}

/// Expects `products` kernels of a step and of an evaluation to be libraries', and a workspace of so many bytes.
fn check(test: &str, case: Case, limits: Limits, products: [usize; 2], workspace: usize) {
    let base = in_child(test, &libraries(), case.clone(), with_library);
    compare(&case, &base.value.trained, &on_cpu(&case), limits);
    if !real() {
        // A real library may have no algorithm for one of them, or another.
        assert_eq!((base.value.products(), base.value.workspace), (products, workspace));
        check_counts(&case, &base);
    }
    let eager = Case { graphs: false, ..case.clone() };
    let in_turn = Case { in_turn: true, ..case.clone() };
    for (order, streams, case) in [
        (Order::Forward, Streams::Eager, &eager),
        (Order::Reverse, Streams::Lazy, &case),
        (Order::Random(1), Streams::Random(1), &case),
        (Order::Random(2), Streams::Lazy, &eager),
        (Order::Forward, Streams::Lazy, &in_turn),
    ] {
        let ran = in_child(test, &Options { order, streams, ..libraries() }, case.clone(), with_library);
        let same = |t: &Trained| (t.losses.clone(), t.gradients.clone(), t.weights.clone(), t.logits.clone());
        // A failure's numbers would be too many to read.
        let agree = same(&ran.value.trained) == same(&base.value.trained);
        assert!(agree, "{}: {order:?}, {streams:?}: other bits", case.model);
        if !real() {
            check_counts(case, &ran);
        }
    }
}

/// A case of three steps.
fn by(libraries: &str, model: &str, spec: &str) -> Case {
    Case { libraries: libraries.into(), ..case(model, spec, 3) }
}

/// What the stand-in's cuDNN works in.
const WORKSPACE: usize = 4096;

/// Counts here and below were read off the plans: products without an epilogue, with a bias alone, and in evaluations
/// with a bias and a ReLU.
#[test]
fn vision_transformer() {
    let spec = "{batch: 2, partition: {modules: 2}, reconcile: {mode: exact, distance: relative, lambda: 0.1}}";
    check("libraries::vision_transformer", by("cublaslt", "mnist_vit", spec), EXACT, [33, 11], 0);
}

#[test]
fn perceptron() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: exact, distance: squared, lambda: 1.0}}";
    check("libraries::perceptron", by("cublaslt", "mnist_mlp", spec), EXACT, [8, 4], 0);
}

#[test]
fn tf32_vision_transformer() {
    let spec = "{batch: 3, partition: {modules: 2}, reconcile: {mode: exact}, precision: tf32}";
    check("libraries::tf32_vision_transformer", by("cublaslt", "mnist_vit", spec), TF32, [37, 11], 0);
}

/// Convolutions alone.
#[test]
fn convolutional() {
    let spec = "{batch: 4, partition: {modules: 2}, reconcile: {mode: exact, distance: relative, lambda: 0.1}}";
    check("libraries::convolutional", by("cudnn", "mnist_cnn", spec), EXACT, [23, 8], WORKSPACE);
}

/// Convolutions and matrix products, each by its library.
#[test]
fn tf32_convolutional_by_both() {
    let spec = "{batch: 4, partition: {modules: 3}, reconcile: {mode: exact}, precision: tf32}";
    check(
        "libraries::tf32_convolutional_by_both",
        by("cublaslt,cudnn", "mnist_cnn", spec),
        WITH_KINKS,
        [45, 12],
        WORKSPACE,
    );
}

/// Bytes of the counters by which blocks take turns: one a block of the largest launch that has them.
fn counters(plan: &Plan) -> usize {
    let launches = plan.modules.iter().flat_map(|m| [&m.step, &m.eval]).flat_map(|p| &p.launches);
    let most = launches.filter(|l| l.args.contains(&LaunchArg::Turns)).map(|l| l.grid[0]).max();
    align(most.unwrap_or(0) * 4)
}

/// The libraries' own sums differ from the kernels': what is compared above is the libraries' work.
#[test]
fn a_library_computes_other_bits() {
    for (model, library) in [("mnist_vit", "cublaslt"), ("mnist_cnn", "cudnn")] {
        let spec = "{batch: 2, partition: {modules: 2}}";
        let [own, theirs] = ["none", library].map(|libraries_asked| {
            let case = Case { libraries: libraries_asked.into(), ..case(model, spec, 1) };
            in_child("libraries::a_library_computes_other_bits", &libraries(), case, with_library).value
        });
        assert_eq!(own.products(), [0, 0]);
        assert_ne!(own.trained.weights, theirs.trained.weights);
        // Sums along columns are kernels of their own beside a library, with fewer counters and another arena.
        let [of_own, of_theirs] = ["none", library].map(|asked| {
            let (c, _) = compiled(&Case { libraries: asked.into(), ..case(model, spec, 1) }, "cuda");
            counters(&c.plan) + align(c.plan.memory.of(Space::Arena))
        });
        let beside = (theirs.trained.allocated - of_theirs) - (own.trained.allocated - of_own);
        assert_eq!(beside, theirs.workspace, "a library takes no memory of the plan's");
    }
}
