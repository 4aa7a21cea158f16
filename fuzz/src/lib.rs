//! What must hold of any bytes and any text, and how one is made from another.
//!
//! The same functions are run by libFuzzer, with coverage to guide it (`fuzz_targets/`), and by
//! `examples/search.rs`, which needs no more than a stable compiler. Mutations are those of the tests, seeded.

#[path = "../../tests/support/mutate.rs"]
mod mutate;
#[path = "../../tests/support/mutate_model.rs"]
mod mutate_model;
#[path = "../../tests/support/mutate_plan.rs"]
mod mutate_plan;

use std::path::Path;

use onnx_protobuf::{Message as _, ModelProto, TensorProto};
use slrc_compiler::diagnose::diagnose;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::CompileError;
use slrc_compiler::spec::SpecFile;
use slrc_plan::plan::Plan;

use mutate::Dice;

/// Any bytes are an error, or a model that has a page; the graph of one that can be imported holds together. How far
/// they came.
pub fn import(bytes: &[u8]) -> &'static str {
    // Files beside the model are in a folder that does not exist.
    let Ok(file) = OnnxFile::from_bytes(Path::new("/nonexistent/model.onnx"), bytes.to_vec()) else { return "opened" };
    match diagnose(&file, &spec()).error {
        None => "cut",
        Some(CompileError::Onnx(_)) => "imported",
        Some(e @ (CompileError::Verify(_) | CompileError::Isolation(_) | CompileError::Plan(_))) => {
            panic!("slrc's own fault: {e}")
        }
        Some(_) => "looked at",
    }
}

fn spec() -> SpecFile {
    SpecFile { batch: Some(2), ..SpecFile::default() }
}

/// Any text is an error or a plan; a plan that is accepted is written and read as the same. How far it came.
pub fn plan(text: &str) -> &'static str {
    let Ok(plan) = slrc_plan::yaml::from_str::<Plan>(text) else { return "read" };
    if slrc_plan::validate::validate(&plan).is_err() {
        return "validated";
    }
    let written = slrc_plan::yaml::to_string(&plan).expect("a plan can be written");
    let again: Plan = slrc_plan::yaml::from_str(&written).expect("what was written can be read");
    assert_eq!(slrc_plan::yaml::to_string(&again).expect("a plan can be written"), written);
    "accepted"
}

/// A model without the data of its large tensors, which an import does not look at.
pub fn bare(bytes: &[u8]) -> Vec<u8> {
    let Ok(mut model) = ModelProto::parse_from_bytes(bytes) else { return bytes.to_vec() };
    let graph = model.graph.mut_or_insert_default();
    graph.initializer.iter_mut().filter(|t| t.raw_data.len() > 256).for_each(|t| t.raw_data.clear());
    model.write_to_bytes().unwrap_or_else(|_| bytes.to_vec())
}

/// A model of ONNX's node tests with those of its inputs that are integers or flags as initializers: shapes and axes
/// have to be known for an import to go on. `inputs` are their files.
pub fn with_known_inputs(bytes: &[u8], inputs: &dyn Fn(usize) -> Option<Vec<u8>>) -> Vec<u8> {
    let Ok(mut model) = ModelProto::parse_from_bytes(bytes) else { return bytes.to_vec() };
    let graph = model.graph.mut_or_insert_default();
    for (i, input) in std::mem::take(&mut graph.input).into_iter().enumerate() {
        let known =
            inputs(i).and_then(|b| TensorProto::parse_from_bytes(&b).ok()).filter(|t| matches!(t.data_type, 6 | 7 | 9));
        match known {
            Some(mut t) => {
                t.name = input.name;
                graph.initializer.push(t);
            }
            None => graph.input.push(input),
        }
    }
    model.write_to_bytes().unwrap_or_else(|_| bytes.to_vec())
}

/// A model with one to four changes, mostly of its structure.
pub fn change_model(bytes: &[u8], seed: u64) -> Vec<u8> {
    let dice = &mut Dice::new(seed);
    let parsed = if dice.below(5) == 0 { None } else { ModelProto::parse_from_bytes(bytes).ok() };
    let Some(mut model) = parsed.filter(|m| m.graph.is_some()) else { return dice.mangle(bytes.to_vec()) };
    for _ in 0..1 + dice.below(4) {
        mutate_model::change(model.graph.mut_or_insert_default(), dice);
    }
    if dice.below(30) == 0
        && let Some(o) = model.opset_import.first_mut()
    {
        o.version = dice.integer();
    }
    model.write_to_bytes().unwrap_or_else(|_| bytes.to_vec())
}

/// A plan's text with one to four changes.
pub fn change_plan(text: &str, seed: u64) -> String {
    let dice = &mut Dice::new(seed);
    let mut text = text.to_string();
    if dice.below(5) == 0 {
        return String::from_utf8_lossy(&dice.mangle(text.into_bytes())).into_owned();
    }
    for _ in 0..1 + dice.below(4) {
        let size = if dice.below(4) == 0 { mutate_plan::Size::Large } else { mutate_plan::Size::Small };
        if text.lines().count() > 1 && text.bytes().any(|b| b.is_ascii_digit()) {
            text = mutate_plan::replace(&text, dice, size);
        }
    }
    text
}
