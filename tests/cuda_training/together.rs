//! Kernels that share a launch: the same bits as one by one, as `slrc profile` runs them, in any order of threads.

use serde::{Deserialize, Serialize};

use super::support::cuda_host::{Options, Order, in_child, real};
use super::{Case, Tensors, case, compiled, feed_seeded, named, session_on_cuda};

/// How a step's kernels are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Together,
    OneByOne,
}

/// Weights and optimizer state after the last step.
fn trained((case, way): (Case, Way)) -> Tensors {
    let mut session = session_on_cuda(&case);
    for step in 0..case.steps {
        feed_seeded(&mut session, 100 + step);
        match way {
            Way::Together => drop(session.pass(step, step + 1).expect("a step")),
            Way::OneByOne => session.profile_pass(step, &mut |_, _, _| {}).expect("a step"),
        }
    }
    let mut all = named(session.parameters().expect("parameters"));
    all.extend(named(session.optimizer_state().expect("state")));
    all
}

/// `followed` is how many kernels work on rows of a product in its launch.
fn check(test: &str, case: Case, followed: usize) {
    let (c, _) = compiled(&case, "cuda");
    let launches = || c.plan.modules.iter().flat_map(|m| &m.step.launches);
    assert_eq!(launches().map(|l| l.follows.len()).sum::<usize>(), followed);
    let (together, alone) = (launches().count(), launches().map(|l| l.one_by_one().len()).sum::<usize>());
    assert!(together < alone, "no kernels share a launch");
    let base = in_child(test, &Options::default(), (case.clone(), Way::OneByOne), trained);
    assert_eq!(base.counts.launches.values().sum::<u64>(), case.steps * alone as u64);
    let orders: &[Order] = if real() { &[] } else { &[Order::Reverse, Order::Random(3)] };
    for order in [None].into_iter().chain(orders.iter().copied().map(Some)) {
        let options = order.map_or_else(Options::default, |order| Options { order, ..Options::default() });
        let ran = in_child(test, &options, (case.clone(), Way::Together), trained);
        assert_eq!(ran.counts.launches.values().sum::<u64>(), case.steps * together as u64);
        assert!(ran.value == base.value, "{order:?}: other bits");
    }
}

#[test]
fn convolutional() {
    let spec = "{batch: 4, partition: {modules: 2}, reconcile: {mode: finite-difference}}";
    check("together::convolutional", case("mnist_cnn", spec, 3), 3);
}

#[test]
fn vision_transformer() {
    let spec = "{batch: 3, partition: {modules: 2}, reconcile: {mode: 'off'}, optimizer: {kind: adamw}}";
    check("together::vision_transformer", case("mnist_vit", spec, 3), 13);
}

#[test]
fn on_tensor_cores() {
    let spec = "{batch: 4, partition: {modules: 1}, precision: tf32}";
    check("together::on_tensor_cores", case("mnist_cnn", spec, 2), 1);
}

/// Tiles of more rows, by tensor cores, and rows that fill no tile.
#[test]
fn vision_transformer_on_tensor_cores() {
    let spec = "{batch: 5, partition: {modules: 1}, reconcile: {mode: 'off'}, precision: bf16}";
    check("together::vision_transformer_on_tensor_cores", case("mnist_vit", spec, 2), 12);
}
