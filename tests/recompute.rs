//! Computing again rather than keeping changes how many bytes a step needs, and nothing of what it learns.

#[path = "support/cli.rs"]
mod cli;

use cli::{Workspace, npz, samples};

/// Some units in the last place, over three steps.
const ROUNDING: f32 = 2e-6;

/// Arena of the largest module, in bytes.
fn arena(work: &Workspace, plan: &str) -> usize {
    slrc_runtime::folder::read_plan(&work.path(plan)).expect("a plan").memory.arena
}

/// Compiles at given cuts, trains three steps both ways, compares the weights, and returns the arenas: kept, and
/// computed again. The same functions are applied to the same numbers, but factors of a product may be multiplied in
/// another order; `limit` is what that may add up to, relative to the largest element of a tensor.
fn both(model: &str, options: &str, limit: f32) -> (usize, usize) {
    let work = Workspace::new();
    work.write("train.npz", npz(&samples(model, 48, 1)));
    let arenas = ["none", "elementwise", "products"].map(|what| {
        work.ok(&format!("partition MODELS/{model}/model.onnx --batch 16 {options} --recompute {what} -o {what}"));
        work.ok(&format!("train {what} --data train.npz --steps 3 --log-every 1 -o run-{what}"));
        arena(&work, what)
    });
    let kept = cli::parameters(&work.path("run-none"));
    for what in ["elementwise", "products"] {
        let again = cli::parameters(&work.path(&format!("run-{what}")));
        assert!(kept.keys().eq(again.keys()));
        for (name, k) in &kept {
            let largest = k.data.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let apart = k.data.iter().zip(&again[name].data).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart <= limit * largest, "{model} {options} {what}: {name} differs by {apart:e} of {largest:e}");
        }
    }
    // What is computed again is chosen before anything is fused, so the smaller of two ways may turn out the larger.
    assert!(arenas[2] <= arenas[0], "{model} {options}: {arenas:?}");
    (arenas[0], arenas[1])
}

#[test]
fn end_to_end_training_needs_less() {
    for model in ["mnist_cnn", "mnist_deep8", "mnist_vit"] {
        let (kept, again) = both(model, "--modules 1", ROUNDING);
        assert!(10 * again < 9 * kept, "{model}: {again} of {kept} bytes");
    }
}

#[test]
fn reconciled_modules_learn_the_same() {
    for mode in ["finite-difference", "exact", "tangent", "off"] {
        // A difference of two gradients times lambda / s = 300.
        let limit = if mode == "finite-difference" { 300.0 * ROUNDING } else { ROUNDING };
        both("mnist_cnn", &format!("--at /layer2/layer2.0/relu_1/Relu --reconcile {mode}"), limit);
        both("mnist_vit", &format!("--at node_add_2 --reconcile {mode}"), limit);
    }
}

/// What a product stores is kept with its bias and its residual, and the heads of attention as they are read: nothing
/// is added or moved a second time.
#[test]
fn what_is_kept_is_what_is_used() {
    let work = Workspace::new();
    let once: [(usize, usize); 2] = ["none", "elementwise"].map(|what| {
        work.ok(&format!("partition MODELS/mnist_vit/model.onnx --batch 16 --modules 1 --recompute {what} -o {what}"));
        let plan = slrc_runtime::folder::read_plan(&work.path(what)).expect("a plan");
        let kernels = &plan.modules[0].step.kernels;
        let count = |family: &str| kernels.iter().filter(|k| k.run.family() == family).count();
        (count("map"), count("copy"))
    });
    let [kept, again] = once;
    assert!(again.0 <= kept.0 && again.1 <= kept.1, "maps and copies: {kept:?} kept, {again:?} computed again");
}

#[test]
fn an_unknown_choice_is_an_error() {
    let work = Workspace::new();
    work.fails(
        "partition MODELS/mnist_cnn/model.onnx --recompute everything -o plan",
        2,
        &["everything", "elementwise"],
    );
}
