//! Models of the repository, for tests.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use slrc_compiler::onnx::file::OnnxFile;

/// The repository's models folder, from the compiler's package or the root's.
pub(crate) fn models() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = package.join("models");
    if here.is_dir() { here } else { package.join("../models") }
}

/// Names of the small models that hold their weights.
pub(crate) const SMALL: &[&str] = &["mnist_cnn", "mnist_deep8", "mnist_mlp", "mnist_vit", "tokens_bert"];

/// Opens a small model.
pub(crate) fn small(name: &str) -> OnnxFile {
    OnnxFile::open(&models().join(name).join("model.onnx")).expect(name)
}

/// Names of the weightless exports of large models, `model.exporter`.
pub(crate) fn exports() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(models().join("exports"))
        .expect("models/exports")
        .filter_map(|e| e.expect("entry").file_name().to_str()?.strip_suffix(".onnx.gz").map(str::to_string))
        .collect();
    names.sort();
    assert!(names.len() > 20, "exports are missing");
    names
}

/// Opens an export; its large weights have no data, which import does not need.
pub(crate) fn export(name: &str) -> OnnxFile {
    let packed = std::fs::File::open(models().join("exports").join(format!("{name}.onnx.gz"))).expect(name);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).expect(name);
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).expect("write");
    OnnxFile::open(&path).expect(name)
}
