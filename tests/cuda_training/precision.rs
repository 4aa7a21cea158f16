//! Training with products in TF32 and bf16: as in f32, up to the rounding of operands.

use crate::support::cuda_host::{Options, in_child};
use crate::{Case, Limits, Tensors, case, check, numbers, on_cuda};

/// An operand is off by up to 2^-12 of itself in TF32 and 2^-9 in bf16. A loss has seen some layers of products; a
/// gradient twice as many, and it is judged by its own size, which is smaller than that of its terms.
pub(crate) const TF32: Limits = Limits { loss: 1e-3, gradient: 1e-2, later: 1e-2 };
const BF16: Limits = Limits { loss: 8e-3, gradient: 8e-2, later: 8e-2 };
/// With ReLUs and pooling, a rounding may turn a choice over, and a pixel's gradient is then there or not: in small
/// images that is a good part of a filter's gradient. What is lost altogether is still seen.
pub(crate) const WITH_KINKS: Limits = Limits { gradient: 0.5, later: 3e-2, ..TF32 };

#[test]
fn tf32_convolutional() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: exact}, precision: tf32}";
    check("precision::tf32_convolutional", case("mnist_cnn", spec, 2), WITH_KINKS);
}

#[test]
fn tf32_vision_transformer() {
    let spec = "{batch: 3, partition: {modules: 2}, reconcile: {mode: exact}, precision: tf32}";
    check("precision::tf32_vision_transformer", case("mnist_vit", spec, 2), TF32);
}

#[test]
fn bf16_vision_transformer() {
    let spec = "{batch: 4, partition: {modules: 2}, reconcile: {mode: exact}, precision: bf16}";
    check("precision::bf16_vision_transformer", case("mnist_vit", spec, 2), BF16);
}

/// Gradients of one step, of a plan with cuts that do not depend on the mode.
fn gradients(precision: &str, reconcile: &str) -> Tensors {
    let cuts = "at: [node_add_3, node_add_5]";
    let spec = format!("{{batch: 16, partition: {{{cuts}}}, reconcile: {{{reconcile}}}, precision: {precision}}}");
    let case: Case = case("mnist_vit", &spec, 1);
    let test = "precision::steps_of_finite_differences_suit_the_precision";
    in_child(test, &Options::default(), case, on_cuda).value.gradients
}

/// What reconciliation adds to all gradients.
fn added(total: &Tensors, local: &Tensors) -> Vec<f64> {
    let differences = total.iter().map(|(name, t)| {
        let pairs = numbers(t).into_iter().zip(numbers(&local[name]));
        pairs.map(|(t, l)| t - l).collect::<Vec<f64>>()
    });
    differences.flatten().collect()
}

/// With the default step, finite differences find the reconciliation gradient; f32's step drowns in the roundings.
#[test]
fn steps_of_finite_differences_suit_the_precision() {
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let exact = added(&gradients("f32", "mode: exact"), &gradients("f32", "mode: off"));
    // Measured 0.1, 1.5 and 4.3 % (docs/method.md).
    for (precision, limit) in [("f32", 0.004), ("tf32", 0.04), ("bf16", 0.1)] {
        let local = gradients(precision, "mode: off");
        let error = |reconcile: &str| {
            let found = added(&gradients(precision, reconcile), &local);
            let difference: Vec<f64> = found.iter().zip(&exact).map(|(f, e)| f - e).collect();
            norm(&difference) / norm(&exact)
        };
        let usual = error("mode: finite-difference");
        assert!(usual < limit, "{precision}: {usual} of the reconciliation gradient");
        if precision != "f32" {
            let short = error("mode: finite-difference, step: 0.001");
            assert!(short > 2.0 * usual, "{precision}: a step of 1e-3 is as good, {short} to {usual}");
        }
    }
}
