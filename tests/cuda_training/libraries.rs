//! Training with products by cuBLASLt (`--libraries cublaslt`), on the stand-in's library: as on the CPU, the same bits
//! however the device runs, and as many products as the plan has of those the library computes.

use serde::{Deserialize, Serialize};
use slrc_runtime::device::Device as _;

use super::precision::TF32;
use super::support::cuda_host::{Counts, Options, Order, Ran, Streams, in_child, real};
use super::{Case, EXACT, Limits, Trained, case, compare, compiled, on_cpu, train};

/// What training yields, and how many kernels of a step and of an evaluation the library computes.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Yield {
    trained: Trained,
    products: [usize; 2],
}

fn with_library(case: Case) -> Yield {
    let (c, tensors) = compiled(&case, "cuda");
    let device = case.load(&c.plan, &c.kernels.expect("kernels").into());
    let used = device.library();
    let allocated = device.allocated();
    let count = |kind: usize| used.kernels.iter().map(|m| m[kind].len()).sum();
    let products = [count(0), count(1)];
    Yield { trained: train(&case, c.plan, Box::new(device), allocated, &tensors), products }
}

fn library() -> Options {
    Options { cublaslt: true, ..Options::default() }
}

/// Every product runs as a product and every other kernel as before, in as many bytes.
fn check_counts(case: &Case, ran: &Ran<Yield>) {
    let (c, _) = compiled(case, "cuda");
    let (counts, [step, eval]): (&Counts, _) = (&ran.counts, ran.value.products);
    let products = case.steps * step as u64 + eval as u64;
    assert_eq!(counts.launches["cublasLtMatmul"], products);
    let launches = |f: &dyn Fn(&slrc_plan::plan::ModulePlan) -> usize| c.plan.modules.iter().map(f).sum::<usize>();
    let all = case.steps as usize * launches(&|m| m.step.launches.len()) + launches(&|m| m.eval.launches.len());
    // No kernel of these models that the library computes takes two launches.
    assert_eq!(counts.launches.values().sum::<u64>(), all as u64);
    let programs = c.plan.modules.len() as u64;
    let expected = match (case.graphs, case.steps) {
        (false, _) => (0, 0),
        // The first run of a program is not recorded.
        (true, steps) => (programs, (steps - 1) * programs),
    };
    assert_eq!((counts.graphs_captured, counts.graph_launches), expected);
    assert_eq!(counts.peak_bytes, ran.value.trained.allocated as u64);
    assert_eq!(counts.calls("cuMemAlloc_v2"), 1, "no workspace");
}

/// Expects `products` kernels of a step and of an evaluation to be the library's.
fn check(test: &str, model: &str, spec: &str, limits: Limits, products: [usize; 2]) {
    let case = Case { library: true, ..case(model, spec, 3) };
    let base = in_child(test, &library(), case.clone(), with_library);
    compare(&case, &base.value.trained, &on_cpu(&case), limits);
    if !real() {
        // A real library may have no algorithm for one of them.
        assert_eq!(base.value.products, products);
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
        let ran = in_child(test, &Options { order, streams, ..library() }, case.clone(), with_library);
        let same = |t: &Trained| (t.losses.clone(), t.gradients.clone(), t.weights.clone(), t.logits.clone());
        // A failure's numbers would be too many to read.
        let agree = same(&ran.value.trained) == same(&base.value.trained);
        assert!(agree, "{model}: {order:?}, {streams:?}: other bits");
        if !real() {
            check_counts(case, &ran);
        }
    }
}

/// Counts here and below were read off the plans: products without an epilogue, with a bias alone, and in evaluations
/// with a bias and a ReLU.
#[test]
fn vision_transformer() {
    let spec = "{batch: 2, partition: {modules: 2}, reconcile: {mode: exact, distance: relative, lambda: 0.1}}";
    check("libraries::vision_transformer", "mnist_vit", spec, EXACT, [32, 11]);
}

#[test]
fn perceptron() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: exact, distance: squared, lambda: 1.0}}";
    check("libraries::perceptron", "mnist_mlp", spec, EXACT, [8, 4]);
}

#[test]
fn tf32_vision_transformer() {
    let spec = "{batch: 3, partition: {modules: 2}, reconcile: {mode: exact}, precision: tf32}";
    check("libraries::tf32_vision_transformer", "mnist_vit", spec, TF32, [31, 11]);
}

/// The library's own sums differ from the kernels': what is compared above is the library's work.
#[test]
fn a_library_computes_other_bits() {
    let spec = "{batch: 2, partition: {modules: 2}}";
    let [own, theirs] = [false, true].map(|library| {
        let case = Case { library, ..case("mnist_vit", spec, 1) };
        let options = Options { cublaslt: true, ..Options::default() };
        in_child("libraries::a_library_computes_other_bits", &options, case, with_library).value
    });
    assert_eq!(own.products, [0, 0]);
    assert_ne!(own.trained.weights, theirs.trained.weights);
    assert_eq!(own.trained.allocated, theirs.trained.allocated, "a library takes no memory of the plan's");
}
