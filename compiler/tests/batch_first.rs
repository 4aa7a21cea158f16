//! Local heads classify samples: a value whose first extent counts something else is no place to cut.

#[path = "common/protos.rs"]
mod protos;

use protos::{floats, model, node, open};
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;

#[test]
fn values_whose_first_extent_is_not_the_batch_are_no_cuts() {
    let nodes = vec![
        node("MatMul", &["x", "w"], &["a"]),
        node("Relu", &["a"], &["h"]),
        // Without a permutation, all dimensions in reverse.
        node("Transpose", &["h"], &["turned"]),
        node("MatMul", &["u", "turned"], &["b"]),
        node("Relu", &["b"], &["sideways"]),
        node("Transpose", &["sideways"], &["back"]),
        node("MatMul", &["back", "v"], &["logits"]),
    ];
    let weight =
        |name: &str, rows: i64, columns: i64| floats(name, &[rows, columns], &vec![0.1; (rows * columns) as usize]);
    let weights = vec![weight("w", 8, 16), weight("u", 16, 16), weight("v", 16, 10)];
    let file = open(&model(&[4, 8], nodes, weights, &["logits"]));
    let planner = Planner::new(&file, &SpecFile::default()).unwrap_or_else(|e| panic!("{e}"));
    let found = planner.candidates();
    assert!(found.cuts.iter().all(|c| c.name != "turned"));
    let why = found.rejected.iter().find(|r| r.name == "turned").map(|r| r.reason.as_str()).unwrap_or_default();
    assert!(why.contains("the network classifies 4 samples"), "{why}");
}
