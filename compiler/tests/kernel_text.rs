//! Text of `kernels.cu` for two small models, for people: a change of what a device runs is read here as a diff.

mod common;

use std::collections::BTreeSet;

use slrc_compiler::pipeline::{Compiled, compile};
use slrc_compiler::spec::SpecFile;
use slrc_plan::kernel::Phase;

/// A model compiled for CUDA.
fn compiled(model: &str, spec: &str) -> Compiled {
    let mut spec: SpecFile = slrc_plan::yaml::from_str(spec).expect("spec");
    spec.target = Some("cuda".into());
    compile(&common::small(model), &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{model}: {e}"))
}

/// The functions that do the work of one phase of a module's training step, in the source's order, with those that they
/// call where several kernels share a launch.
fn functions(c: &Compiled, module: usize, phase: Phase) -> String {
    let step = &c.plan.modules[module - 1].step;
    let ids: BTreeSet<&str> = step.kernels.iter().filter(|k| k.phase == phase).map(|k| k.id.as_str()).collect();
    let launches = step.launches.iter().filter(|l| l.kernels.iter().any(|id| ids.contains(id.as_str())));
    let names: BTreeSet<&str> = launches.map(|l| l.function.as_str()).collect();
    let source = c.kernels.as_ref().expect("kernels");
    // Each function stands with its head comment between empty lines.
    let all: Vec<(&str, &str)> = source.split("\n\n").filter_map(|text| Some((name(text)?, text))).collect();
    let launched: Vec<&str> = all.iter().filter(|(n, _)| names.contains(n)).map(|(_, text)| *text).collect();
    assert_eq!(launched.len(), names.len(), "functions of the {phase:?} phase");
    let called = |n: &str| launched.iter().any(|text| text.contains(&format!("    {n}(")));
    let found: Vec<&str> = all.iter().filter(|(n, _)| names.contains(n) || called(n)).map(|(_, text)| *text).collect();
    found.join("\n\n")
}

/// The name of a function that does a kernel's work, or that of several.
fn name(text: &str) -> Option<&str> {
    let (before, _) = text.split_once("(\n")?;
    before.rsplit(' ').next()
}

/// All of a plan of local learning: no reconciliation, and the optimizer with two moments.
#[test]
fn perceptron_local_adamw() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: 'off'}, optimizer: {kind: adamw}}";
    insta::assert_snapshot!("perceptron_local_adamw", compiled("mnist_mlp", spec).kernels.expect("kernels"));
}

/// What reconciliation by finite differences adds to the second module: perturbed passes through convolutions and
/// normalisation, and the combined gradients.
#[test]
fn convolutional_finite_differences() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: finite-difference}}";
    let text = functions(&compiled("mnist_cnn", spec), 2, Phase::Reconcile);
    insta::assert_snapshot!("convolutional_finite_differences", text);
}

/// Products on tensor cores: the source's last convolution, and the functions they share.
#[test]
fn convolutional_tf32() {
    let c = compiled("mnist_cnn", "{batch: 8, partition: {modules: 2}, precision: tf32}");
    let source = c.kernels.as_ref().expect("kernels");
    let shared = source.split("\n\n").filter(|text| text.contains("asm("));
    let convolution = |text: &&str| name(text).is_some_and(|n| n.starts_with("conv_forward"));
    let function = source.split("\n\n").filter(convolution).last();
    let text: Vec<&str> = shared.chain(function).collect();
    insta::assert_snapshot!("convolutional_tf32", text.join("\n\n"));
}

/// The gradients of a layer's weights and bias: one pass over the gradient of its result serves both.
#[test]
fn transformer_weights_and_bias() {
    let c = compiled("mnist_vit", "{batch: 8, partition: {modules: 1}, precision: bf16}");
    let sums = |text: &&str| name(text).is_some() && text.contains("sums of b as it is read");
    let text = c.kernels.as_ref().expect("kernels").split("\n\n").find(sums).expect("a product that sums its operand");
    insta::assert_snapshot!("transformer_weights_and_bias", text);
}

/// Attention on tensor cores: scores, softmax and its product with the values.
#[test]
fn transformer_attention_bf16() {
    let c = compiled("mnist_vit", "{batch: 8, partition: {modules: 1}, precision: bf16}");
    let attention = |text: &&str| name(text).is_some_and(|n| n.starts_with("attention"));
    let text = c.kernels.as_ref().expect("kernels").split("\n\n").find(attention).expect("attention");
    insta::assert_snapshot!("transformer_attention_bf16", text);
}
