//! Models made to do harm: each is refused with a word on what is wrong, whatever it names is left alone, and neither
//! memory nor time is lost over it. Tests with a number are named after what was found in other loaders of ONNX files.

#[path = "../common/protos.rs"]
mod protos;

mod external;
mod numbers;
mod structure;

use onnx_protobuf::ModelProto;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::{CompileError, Planner};
use slrc_compiler::spec::SpecFile;

/// An import that is taken; whether there is anything to train is another matter.
fn taken(file: &OnnxFile) {
    match Planner::new(file, &SpecFile::default()).err() {
        None | Some(CompileError::Network(_)) => {}
        Some(e) => panic!("{e}"),
    }
}

/// What is said of a file that is opened, but not imported; it has a page all the same.
fn refusal_of(file: &OnnxFile) -> String {
    match slrc_compiler::diagnose::diagnose(file, &SpecFile::default()).error {
        // A network that cannot be trained was imported.
        Some(CompileError::Onnx(e)) => e.to_string(),
        Some(e) => panic!("imported, then: {e}"),
        None => panic!("imported"),
    }
}

/// What is said of a model that is not imported.
fn refusal(model: &ModelProto) -> String {
    match protos::open_bytes(&protos::bytes(model)) {
        Ok(file) => refusal_of(&file),
        Err(e) => e,
    }
}

fn refused(what: &str, model: &ModelProto, words: &str) {
    let said = refusal(model);
    assert!(said.contains(words), "{what}: {said}");
}
