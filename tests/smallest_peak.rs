//! `modules: K` finds the cuts whose plan has the smallest peak of all: against every plan there is.

#[path = "support/cli.rs"]
mod cli;

use cli::model;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::partition::Candidate;
use slrc_compiler::pipeline::{Compiled, compile};
use slrc_compiler::spec::{PartitionFile, SpecFile};

fn compiled(file: &OnnxFile, spec: &SpecFile) -> Compiled {
    compile(file, spec, &mut |_, _| {}).expect("a plan")
}

/// Every choice of `k` of the cuts.
fn choices(cuts: &[Candidate], k: usize) -> Vec<Vec<String>> {
    if k == 0 {
        return vec![vec![]];
    }
    let with_first = |i: usize| {
        let rest = choices(&cuts[i + 1..], k - 1);
        let name = cuts[i].name.clone();
        rest.into_iter().map(move |r| [vec![name.clone()], r].concat())
    };
    (0..cuts.len()).flat_map(with_first).collect()
}

fn check(name: &str, settings: &str, most_modules: usize) {
    let file = OnnxFile::open(&model(name)).expect("model");
    let spec: SpecFile = slrc_plan::yaml::from_str(settings).expect("spec");
    for k in 2..=most_modules {
        let modules = PartitionFile { modules: Some(k), ..PartitionFile::default() };
        let chosen = compiled(&file, &SpecFile { partition: modules, ..spec.clone() });
        let peak = |c: &Compiled| c.plan.memory.peak();
        let all = choices(&chosen.candidates.cuts, k - 1).into_iter().map(|at| {
            let c =
                compiled(&file, &SpecFile { partition: PartitionFile { at, ..Default::default() }, ..spec.clone() });
            peak(&c)
        });
        let best = all.min().expect("a choice");
        assert_eq!(peak(&chosen), best, "{name} in {k} modules, {settings}");
    }
}

#[test]
fn no_other_cuts_need_less_memory() {
    check("mnist_cnn", "batch: 16", 5);
    check("mnist_cnn", "{batch: 4, reconcile: {mode: exact, distance: squared}, head: {kind: mlp-sr}}", 4);
    check("mnist_vit", "{batch: 8, optimizer: {kind: adamw}}", 4);
    check("mnist_deep8", "{batch: 32, reconcile: {mode: 'off', monitor: false}}", 4);
}
