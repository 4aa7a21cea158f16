//! Damaged and strange models: whatever the bytes, compiling ends with a plan or a typed error, and what compiles also
//! runs.
//!
//! Mutations are seeded, so a failure names the case and repeats. Weights have no data: importing needs none.
#![allow(clippy::print_stdout, reason = "the counts, for --nocapture")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/mutate.rs"]
mod mutate;
#[path = "support/mutate_model.rs"]
mod mutate_model;

use mutate::{Dice, cases, no_panic};
use mutate_model::change;
use onnx_protobuf::{Message as _, ModelProto};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::device::{Device, ProgramKind, StepContext};

/// A model without the data of its large tensors.
fn bare(name: &str) -> ModelProto {
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(cli::model(name)).expect("model")).expect("a model");
    let graph = m.graph.mut_or_insert_default();
    graph.initializer.iter_mut().filter(|t| t.raw_data.len() > 256).for_each(|t| t.raw_data.clear());
    graph.value_info.clear();
    m
}

/// Most bytes and operations of a plan that is tried out.
const RUN_BYTES: usize = 64 << 20;
const RUN_FLOPS: u64 = 200_000_000;

/// Compiles, and runs a step and an inference if the plan is small. What was reached, for the count.
fn compile(path: &std::path::Path, bytes: &[u8], spec: &str) -> &'static str {
    std::fs::write(path, bytes).expect("a file");
    let Ok(file) = slrc_compiler::onnx::file::OnnxFile::open(path) else { return "opening" };
    let spec = slrc_plan::yaml::from_str(spec).expect("a spec");
    // Whatever the file is, it has a page.
    let _ = slrc_compiler::diagnose::diagnose(&file, &spec);
    let compiled = match slrc_compiler::pipeline::compile(&file, &spec, &mut |_, _| {}) {
        Ok(c) => c,
        Err(e) => {
            let text = e.to_string();
            assert!(!text.contains("internal error"), "{text}");
            return "compiling";
        }
    };
    let flops: u64 = compiled.plan.modules.iter().map(|m| m.step.flops).sum();
    if compiled.plan.memory.peak() > RUN_BYTES || flops > RUN_FLOPS {
        return "running";
    }
    let mut device = CpuDevice::load(&compiled.plan, Some(1)).expect("a plan that compiles can be loaded");
    for m in &compiled.plan.modules {
        for kind in [ProgramKind::Step, ProgramKind::Eval] {
            // All inputs and weights are zero; an index may still be refused.
            let _ = device.run(m.index, kind, StepContext { seed: 1, pass: 0 });
        }
    }
    "the end"
}

const CASES: &[(&str, &str)] = &[
    ("mnist_mlp", "{batch: 2, partition: {modules: 2}}"),
    ("mnist_cnn", "{batch: 2, partition: {modules: 1}, reconcile: {mode: 'off'}}"),
    ("mnist_vit", "{batch: 2, partition: {modules: 1}, repair: {rebn: [node_conv2d], dropout: 0.1}}"),
    ("tokens_bert", "{batch: 2, partition: {modules: 1}}"),
];

/// Runs `count` mutations of every model and returns how many came how far.
fn run(name: &str, count: u64, change: impl Fn(&ModelProto, &mut Dice) -> Vec<u8>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    let mut reached = std::collections::BTreeMap::<&str, usize>::new();
    for (model, spec) in CASES {
        let source = bare(model);
        let whole = source.write_to_bytes().expect("serialize");
        assert_eq!(compile(&path, &whole, spec), "the end", "{model} itself");
        for seed in cases(count) {
            let bytes = change(&source, &mut Dice::new(seed));
            let what = format!("{name} {model} {seed}");
            *reached.entry(no_panic(&what, || compile(&path, &bytes, spec))).or_default() += 1;
        }
    }
    // A mutation that never gets past the first check tests nothing else.
    for stage in ["compiling", "the end"] {
        assert!(reached.contains_key(stage), "{name}: no case ends at {stage}: {reached:?}");
    }
}

#[test]
fn bytes() {
    run("bytes", 200, |m, dice| dice.mangle(m.write_to_bytes().expect("serialize")));
}

#[test]
fn structure() {
    run("structure", 200, |m, dice| {
        let mut m = m.clone();
        for _ in 0..1 + dice.below(3) {
            change(m.graph.mut_or_insert_default(), dice);
        }
        if dice.below(20) == 0 {
            m.opset_import[0].version = dice.integer();
        }
        m.write_to_bytes().expect("serialize")
    });
}
