//! Import of every model in the repository.

mod common;

use slrc_compiler::ir::verify::{Spec, verify};
use slrc_compiler::onnx::import::{ImportOptions, import};

#[test]
fn every_model_imports() {
    let mut lines = Vec::new();
    let small = common::SMALL.iter().map(|n| (n.to_string(), common::small(n)));
    let large = common::exports().into_iter().map(|n| (n.clone(), common::export(&n)));
    for (name, file) in small.chain(large) {
        let t = std::time::Instant::now();
        let imported = import(&file, &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        verify(&imported.graph, Spec::open("import")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let trained: usize = imported
            .graph
            .variables
            .iter()
            .filter(|v| v.kind == slrc_compiler::ir::graph::VarKind::Weight)
            .map(|v| v.ty.count())
            .sum();
        let live = imported.graph.needed(imported.graph.roots.iter().map(|r| r.value)).iter().filter(|x| **x).count();
        lines.push(format!(
            "{name}: {} onnx nodes, {live} ir nodes, {} variables, {trained} trained, logits {} {:?}\n    {}",
            imported.nodes.len(),
            imported.graph.variables.len(),
            imported.graph.ty(imported.logits),
            t.elapsed(),
            imported.notes.join("\n    ")
        ));
    }
    println!("{}", lines.join("\n"));
}
