//! Damaged and strange models: whatever the bytes, compiling ends with a plan or a typed error, and what compiles also
//! runs.
//!
//! Mutations are seeded, so a failure names the case and repeats. Weights have no data: importing needs none.
#![allow(clippy::print_stdout, reason = "the counts, for --nocapture")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/mutate.rs"]
mod mutate;

use mutate::{Dice, cases, no_panic};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{GraphProto, Message as _, ModelProto, TensorProto, type_proto};
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

fn change(g: &mut GraphProto, dice: &mut Dice) {
    let ops = slrc_compiler::onnx::ops::all();
    let names: Vec<String> = g
        .node
        .iter()
        .flat_map(|n| n.output.clone())
        .chain(g.initializer.iter().map(|t| t.name.clone()))
        .chain(g.input.iter().map(|i| i.name.clone()))
        .collect();
    let at = dice.below(g.node.len());
    match dice.below(12) {
        0 => g.node[at].op_type = ops[dice.below(ops.len())].op.to_string(),
        1 => {
            let n = &mut g.node[at];
            if !n.input.is_empty() {
                let slot = dice.below(n.input.len());
                n.input[slot] = if dice.below(5) == 0 { String::new() } else { dice.pick(&names).clone() };
            }
        }
        2 => g.node[at].input.push(dice.pick(&names).clone()),
        3 => drop(g.node[at].input.pop()),
        4 => {
            let n = &mut g.node[at];
            if dice.below(2) == 0 { n.output.push(format!("extra{at}")) } else { drop(n.output.pop()) }
        }
        5 => drop(g.node.remove(at)),
        6 => {
            let other = dice.below(g.node.len());
            g.node.swap(at, other);
        }
        7 | 8 => {
            let with: Vec<usize> = (0..g.node.len()).filter(|&i| !g.node[i].attribute.is_empty()).collect();
            if with.is_empty() {
                return;
            }
            let n = &mut g.node[*dice.pick(&with)];
            let a = dice.below(n.attribute.len());
            let a = &mut n.attribute[a];
            match dice.below(6) {
                0 => {
                    a.name =
                        dice.pick(&["axis", "axes", "perm", "pads", "strides", "group", "epsilon", "to"]).to_string()
                }
                1 => {
                    a.type_ =
                        dice.pick(&[AttributeType::INT, AttributeType::INTS, AttributeType::FLOAT]).to_owned().into()
                }
                2 => a.f = dice.pick(&[f32::NAN, -1.0, 0.0, 1e30]).to_owned(),
                3 => drop(a.ints.pop()),
                _ if a.ints.is_empty() => a.i = dice.integer(),
                _ => {
                    let i = dice.below(a.ints.len());
                    a.ints[i] = dice.integer();
                }
            }
        }
        9 => {
            if !g.initializer.is_empty() {
                let t = dice.below(g.initializer.len());
                tensor(&mut g.initializer[t], dice);
            }
        }
        10 => {
            let i = dice.below(g.input.len());
            let ty = g.input[i].type_.mut_or_insert_default();
            if let Some(type_proto::Value::TensorType(t)) = &mut ty.value {
                match dice.below(4) {
                    0 => t.elem_type = dice.below(20) as i32,
                    1 => drop(t.shape.mut_or_insert_default().dim.pop()),
                    _ => {
                        let dims = &mut t.shape.mut_or_insert_default().dim;
                        if !dims.is_empty() {
                            let d = dice.below(dims.len());
                            dims[d].set_dim_value(dice.integer());
                        }
                    }
                }
            }
        }
        _ => {
            let constants: Vec<usize> = (0..g.node.len()).filter(|&i| g.node[i].op_type == "Constant").collect();
            if !constants.is_empty() {
                let n = &mut g.node[*dice.pick(&constants)];
                n.attribute.iter_mut().filter_map(|a| a.t.as_mut()).for_each(|t| tensor(t, dice));
            }
        }
    }
}

fn tensor(t: &mut TensorProto, dice: &mut Dice) {
    match dice.below(5) {
        0 => t.data_type = dice.below(24) as i32,
        1 => drop(t.dims.pop()),
        2 => t.dims.push(dice.integer()),
        3 if !t.dims.is_empty() => {
            let d = dice.below(t.dims.len());
            t.dims[d] = dice.integer();
        }
        _ if t.raw_data.len() >= 8 => {
            let at = 8 * dice.below(t.raw_data.len() / 8);
            t.raw_data[at..at + 8].copy_from_slice(&dice.integer().to_le_bytes());
        }
        _ => t.raw_data.push(0),
    }
}
