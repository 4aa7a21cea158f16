//! Plans of the small models, word for word. A snapshot's diff shows what a change of the compiler does to real plans.

use slrc_compiler::ir::text;

use crate::common;
use crate::{compile_text, no_snapshots_but, small};

/// Model, name of the setting, spec.
pub(crate) const SNAPSHOTS: &[(&str, &str, &str)] = &[
    ("mnist_mlp", "bp", "partition: {modules: 1}"),
    ("mnist_mlp", "finite-difference", "partition: {modules: 2}"),
    (
        "mnist_mlp",
        "exact-relative",
        "partition: {modules: 2}\nreconcile: {mode: exact, distance: relative, warmup: 100}\noptimizer: {nesterov: true}",
    ),
    ("mnist_mlp", "bp-free", "partition: {per-layer: true}\nreconcile: {mode: bp-free, distance: squared}"),
    ("mnist_cnn", "finite-difference", "partition: {modules: 2}"),
    (
        "mnist_deep8",
        "local-adamw",
        "partition: {modules: 3}\nreconcile: {mode: off, monitor: false}\nhead: {kind: gap-linear}\n\
         optimizer: {kind: adamw, schedule: cosine, warmup: 5}",
    ),
    ("mnist_vit", "local", "partition: {modules: 2}\nreconcile: {mode: off}"),
    ("tokens_bert", "finite-difference", "partition: {modules: 2}"),
];

/// The same, of plans too long to read a diff of: what else is checked of plans is checked of these too.
pub(crate) const CHECKED: &[(&str, &str, &str)] = &[
    ("mnist_cnn", "conv-heads", "partition: {modules: 4}\nreconcile: {mode: tangent}\nhead: {kind: conv}"),
    ("mnist_cnn", "mlp-sr-heads", "partition: {modules: 3}\nhead: {kind: mlp-sr}"),
    ("mnist_deep8", "bp-free", "partition: {per-layer: true}\nreconcile: {mode: bp-free}"),
    ("mnist_vit", "finite-difference", "partition: {modules: 3}"),
    ("mnist_vit", "exact", "partition: {modules: 2}\nreconcile: {mode: exact}\noptimizer: {kind: adamw}"),
    ("tokens_bert", "exact", "partition: {modules: 3}\nreconcile: {mode: exact, distance: squared}"),
];

#[test]
fn small_models() {
    for (model, setting, _) in SNAPSHOTS {
        let name = format!("{model}.{setting}");
        let e = small().iter().find(|e| e.name == name).expect("compiled");
        insta::assert_snapshot!(name, slrc_plan::yaml::to_string(&e.compiled.plan).expect("yaml"));
    }
    no_snapshots_but("plans", SNAPSHOTS.iter().map(|(model, setting, _)| format!("{model}.{setting}")));
}

/// Compiling again, in the same process and so with other hash seeds, gives the same bytes.
#[test]
fn compiling_twice_gives_the_same_bytes() {
    for (model, setting, spec) in SNAPSHOTS.iter().chain(CHECKED) {
        let again = compile_text(&common::small(model), spec);
        let first = small().iter().find(|e| e.name == format!("{model}.{setting}")).expect("compiled");
        let text = |c: &slrc_compiler::pipeline::Compiled| {
            let graphs = c.modules.iter().map(|m| text::print(&m.train) + &text::print(&m.eval)).collect::<String>();
            (slrc_plan::yaml::to_string(&c.plan).expect("yaml"), graphs)
        };
        assert!(text(&again) == text(&first.compiled), "{model}.{setting} differs when compiled again");
    }
}

/// A plan read back from its text is the same plan.
#[test]
fn plan_text_round_trips() {
    for e in small() {
        let written = slrc_plan::yaml::to_string(&e.compiled.plan).expect("yaml");
        let read: slrc_plan::Plan = slrc_plan::yaml::from_str(&written).expect("reads back");
        assert!(read == e.compiled.plan, "{} differs when read back", e.name);
    }
}
