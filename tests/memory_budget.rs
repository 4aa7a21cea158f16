//! `memory-budget` takes as few modules as fit: against every plan there is, and from budget to budget.

#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use cli::{Transcript, Workspace, model};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use slrc_compiler::budget::OverBudget;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::{CompileError, Compiled, compile};
use slrc_compiler::spec::{PartitionFile, SpecFile};

/// Networks and settings.
const NETWORKS: &[(&str, &str)] = &[
    ("mnist_cnn", "batch: 16"),
    ("mnist_cnn", "{batch: 5, reconcile: {mode: exact, distance: squared}, head: {kind: mlp-sr}, recompute: none}"),
    ("mnist_vit", "{batch: 8, optimizer: {kind: adamw}}"),
    ("mnist_deep8", "{batch: 32, reconcile: {mode: 'off', monitor: false}}"),
    ("tokens_bert", "{batch: 12, optimizer: {momentum: 0}}"),
    ("mnist_mlp", "batch: 4"),
];

struct Network {
    what: String,
    file: OnnxFile,
    spec: SpecFile,
}

impl Network {
    fn new(&(name, settings): &(&str, &str)) -> Network {
        let file = OnnxFile::open(&model(name)).expect("model");
        Network { what: format!("{name}, {settings}"), file, spec: slrc_plan::yaml::from_str(settings).expect("spec") }
    }

    fn compile(&self, partition: PartitionFile) -> Result<Compiled, CompileError> {
        compile(&self.file, &SpecFile { partition, ..self.spec.clone() }, &mut |_, _| {})
    }

    /// The batch as a whole.
    fn within(&self, budget: usize) -> Result<Compiled, Box<OverBudget>> {
        self.within_in(budget, Some(1))
    }

    fn within_in(&self, budget: usize, micro_batches: Option<usize>) -> Result<Compiled, Box<OverBudget>> {
        let partition = PartitionFile { memory_budget: Some(budget.to_string()), ..PartitionFile::default() };
        let spec = SpecFile { partition, micro_batches, ..self.spec.clone() };
        match compile(&self.file, &spec, &mut |_, _| {}) {
            Ok(c) => Ok(c),
            Err(CompileError::Budget(e)) => Err(e),
            Err(e) => panic!("{}: {e}", self.what),
        }
    }

    /// Peak and work of every partition there is, by its number of modules.
    fn every_plan(&self) -> BTreeMap<usize, Vec<(usize, u64)>> {
        let one = self.compile(PartitionFile { modules: Some(1), ..PartitionFile::default() }).expect("a plan");
        let names: Vec<String> = one.candidates.cuts.iter().map(|c| c.name.clone()).collect();
        let mut out = BTreeMap::from([(1, vec![figures(&one)])]);
        for chosen in 1u32..1 << names.len() {
            let at = (0..names.len()).filter(|&i| chosen >> i & 1 == 1).map(|i| names[i].clone()).collect();
            let c = self.compile(PartitionFile { at, ..PartitionFile::default() }).expect("a plan");
            out.entry(c.plan.modules.len()).or_insert_with(Vec::new).push(figures(&c));
        }
        out
    }
}

fn figures(c: &Compiled) -> (usize, u64) {
    (c.plan.memory.peak(), c.plan.modules.iter().map(|m| m.step.flops).sum())
}

/// One budget, against every plan there is.
fn check(network: &Network, every: &BTreeMap<usize, Vec<(usize, u64)>>, budget: usize) {
    let what = format!("{} within {budget}", network.what);
    let fits = |all: &&Vec<(usize, u64)>| all.iter().any(|p| p.0 <= budget);
    let fewest = every.iter().find(|(_, all)| fits(all)).map(|(k, _)| *k);
    match network.within(budget) {
        Ok(c) => {
            let (peak, work) = figures(&c);
            assert!(peak <= budget, "{what}: {peak}");
            assert_eq!(Some(c.plan.modules.len()), fewest, "{what}");
            let others = every[&c.plan.modules.len()].iter().filter(|p| p.0 <= budget);
            let least = others.map(|p| p.1).min().expect("a plan");
            // The work of a segment that was not compiled is only likely.
            assert!(work <= least + least / 100, "{what}: work {work}, where {least} would do");
        }
        Err(e) => {
            assert_eq!(fewest, None, "{what}");
            let smallest = every.iter().flat_map(|(&k, all)| all.iter().map(move |p| (p.0, k))).min();
            assert_eq!(Some((e.memory.peak(), e.modules)), smallest, "{what}");
            assert_eq!(e.budget, budget);
        }
    }
}

#[test]
fn as_few_modules_as_fit_of_convolutions() {
    NETWORKS.iter().filter(|n| n.0 == "mnist_cnn" || n.0 == "mnist_deep8").for_each(as_few_modules_as_fit);
}

#[test]
fn as_few_modules_as_fit_of_others() {
    NETWORKS.iter().filter(|n| n.0 != "mnist_cnn" && n.0 != "mnist_deep8").for_each(as_few_modules_as_fit);
}

fn as_few_modules_as_fit(network: &(&str, &str)) {
    let network = Network::new(network);
    let every = network.every_plan();
    let least: Vec<usize> = every.values().filter_map(|all| all.iter().map(|p| p.0).min()).collect();
    // With more modules that need more memory, nothing fits that did not.
    for (_, &peak) in least.iter().enumerate().filter(|&(i, peak)| least[..i].iter().all(|fewer| fewer > peak)) {
        // Met to the byte, and refused, or met with more modules, one below.
        check(&network, &every, peak);
        check(&network, &every, peak - 1);
    }
    check(&network, &every, usize::MAX);
    let smallest = *least.iter().min().expect("a plan");
    let config = Config { cases: 3, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let property = |budget| {
        check(&network, &every, budget);
        Ok(())
    };
    runner.run(&(smallest..least[0] + least[0] / 8), property).expect("every budget");
}

/// Budgets tried from what is refused to what one module takes.
const RUNGS: usize = 10;

/// More memory never takes more modules.
#[test]
fn monotone() {
    for network in NETWORKS.iter().step_by(2).map(Network::new) {
        let refused = network.within(1).expect_err("a byte is too little");
        let smallest = refused.memory.peak();
        assert_eq!(network.within(smallest).expect("met exactly").plan.memory.peak(), smallest, "{}", network.what);
        let one = network.compile(PartitionFile { modules: Some(1), ..PartitionFile::default() }).expect("a plan");
        let whole = one.plan.memory.peak();
        let mut before = usize::MAX;
        for rung in 0..=RUNGS {
            let budget = smallest - 1 + (whole + 1 - smallest) * rung / RUNGS;
            let what = format!("{} within {budget}", network.what);
            let Ok(c) = network.within(budget) else {
                assert!(budget < smallest, "{what}");
                continue;
            };
            assert!(smallest <= c.plan.memory.peak() && c.plan.memory.peak() <= budget, "{what}");
            assert!(c.plan.modules.len() <= before, "{what}: more modules than with less memory");
            before = c.plan.modules.len();
        }
        assert_eq!(before, 1, "{}", network.what);
    }
}

/// Where no number of modules fits, as few micro-batches as make one fit: none that there are fewer of does, and more
/// memory never takes more of them.
#[test]
fn micro_batches_where_nothing_else_fits() {
    for network in [NETWORKS[0], NETWORKS[2], NETWORKS[4]].iter().map(Network::new) {
        let batch = network.spec.batch.expect("a batch");
        let divisors: Vec<usize> = (1..=batch).filter(|&n| batch.is_multiple_of(n)).collect();
        let smallest: Vec<usize> = divisors
            .iter()
            .map(|&n| network.within_in(1, Some(n)).expect_err("a byte is too little").memory.peak())
            .collect();
        let mut before = usize::MAX;
        for (i, &budget) in smallest.iter().enumerate().rev() {
            let what = format!("{}, {} micro-batches at {budget}", network.what, divisors[i]);
            let c = network.within_in(budget, None).unwrap_or_else(|e| panic!("{what}: {e}"));
            let fewest = divisors[smallest.iter().position(|&s| s <= budget).expect("this one")];
            assert_eq!((c.plan.settings.micro_batches, c.plan.settings.samples()), (fewest, batch), "{what}");
            assert!(c.plan.memory.peak() <= budget && fewest <= before, "{what}");
            before = fewest;
        }
        let least = *smallest.iter().min().expect("one");
        let refused = network.within_in(least - 1, None).expect_err("nothing fits");
        assert_eq!((refused.micro_batches, refused.memory.peak()), (batch, least), "{}", network.what);
    }
}

const MODEL: &str = "MODELS/mnist_cnn/model.onnx";

/// The plans that a refusal promises are there.
#[test]
fn ways_out_lead_out() {
    let work = Workspace::new();
    let settings = [("batch", "--batch 32"), ("optimizer", "--optimizer adamw"), ("recompute", "--recompute none")];
    let line = |but: &str| -> String {
        let all = settings.iter().filter(|s| !but.contains(s.0)).map(|s| format!(" {}", s.1));
        format!("partition {MODEL} --micro-batches 1{}", all.collect::<String>())
    };
    let refused = work.fails(&format!("{} --memory-budget 1MiB", line("")), 3, &["1.0 MiB (1048576 bytes)"]).stderr;
    let smallest = work.ok(&format!("{} --modules 3", line(""))).stdout;
    let peak = |out: &str| {
        let line = out.lines().find(|l| l.starts_with("peak")).expect("a peak");
        line.trim_start_matches("peak").split("  all").next().map(|p| p.trim().to_string()).expect("a size")
    };
    assert!(refused.contains(&format!("the smallest peak is {} (", peak(&smallest))), "{refused}");
    assert!(refused.contains("bytes), in 3 modules\n"), "{refused}");
    let plan = work.json("plan show plan --json");
    let ends = plan["modules"].as_array().expect("modules").iter().map(|m| m["last_node"].as_str().expect("a name"));
    let ends: Vec<&str> = ends.collect();
    let ways: Vec<(&str, &str)> = refused.lines().filter_map(|l| l.strip_prefix("    --")?.split_once("  ")).collect();
    assert!(ways.len() >= 3, "{refused}");
    for (options, promised) in ways {
        let out = work.ok(&format!("{} --at {} --{options}", line(options), ends[..2].join(","))).stdout;
        assert_eq!(peak(&out), promised.trim(), "--{options}\n{refused}");
    }
}

#[test]
fn refusals() {
    let work = Workspace::new();
    let mut t = Transcript::new(&work);
    let line = |options: &str| format!("partition {MODEL} --micro-batches 1 {options}");
    t.fails("a smaller batch", &line("--batch 32 --memory-budget 2MiB"), 3, &["--batch"]);
    t.fails("other settings", &line("--batch 32 --memory-budget 4.2MiB --optimizer adamw"), 3, &["--momentum 0"]);
    t.fails(
        "no way",
        &line("--batch 1 --reconcile off --no-monitor --momentum 0 --memory-budget 1kB"),
        3,
        &["nothing fits"],
    );
    t.fails(
        "one place only",
        "partition MODELS/mnist_mlp/model.onnx --batch 4 --memory-budget 1MiB --micro-batches 1",
        3,
        &["1 module\n"],
    );
    insta::assert_snapshot!("refusals", t.finish());
    work.write("zero.yaml", "partition: {memory-budget: 0}");
    work.write("unit.yaml", "partition: {memory-budget: 2 parsecs}");
    work.write("two.yaml", "partition: {memory-budget: 2GiB, per-layer: true}");
    work.write("lambdas.yaml", "{partition: {memory-budget: 2GiB}, reconcile: {lambdas: {2: 0.5}}}");
    for (options, words) in [
        ("--spec zero.yaml", "partition.memory-budget: at least 1 byte"),
        (
            "--spec unit.yaml",
            "partition.memory-budget: `2 parsecs` is not a size; write a number and a unit, such as 2GiB",
        ),
        ("--spec two.yaml", "partition: give only one of"),
        ("--spec lambdas.yaml", "reconcile.lambdas: "),
        ("--memory-budget 0", "partition.memory-budget: at least 1 byte"),
        ("--memory-budget 2G", "`2G` is not a size; write a number and a unit, such as 2GiB"),
    ] {
        work.fails(&line(options), 2, &[words]);
    }
}

#[test]
fn the_command_says_what_was_reached() {
    let work = Workspace::new();
    let settings = "--batch 32 --lambda 0.5";
    let out = work.ok(&format!("partition {MODEL} {settings} --memory-budget 4.5mib")).stdout;
    let json = work.json("plan show plan --json");
    let peak = json["totals"]["peak_bytes"].as_u64().expect("bytes") as usize;
    let modules = json["modules"].as_array().expect("modules").len();
    assert!(modules > 1 && peak <= 9 << 19, "{modules} modules, {peak} bytes");
    let said = format!("\nmemory budget 4.5 MiB: {modules} modules, peak ");
    assert!(out.contains(&said), "{out}");
    assert!(out.contains(", memory-budget 4608KiB, "), "{out}");
    work.ok(&format!("partition {MODEL} {settings} --memory-budget 4.5MiB --check plan"));
    let drifted = work.slrc(&format!("partition {MODEL} {settings} --memory-budget 6MiB --check plan"));
    assert_eq!(drifted.code, Some(5), "{}", drifted.stderr);
    // The spec's key is the option.
    let model = cli::model("mnist_cnn").display().to_string();
    work.write(
        "spec.yaml",
        format!("{{model: {model}, batch: 32, reconcile: {{lambda: 0.5}}, partition: {{memory-budget: 4608KiB}}}}"),
    );
    work.ok("partition --spec spec.yaml -o again");
    let text = |folder: &str, name: &str| std::fs::read_to_string(work.path(folder).join(name)).expect("a file");
    for name in ["plan.yaml", "partition.txt"] {
        assert_eq!(text("plan", name).replace("model", ""), text("again", name).replace("model", ""), "{name}");
    }
    assert_eq!(text("plan", "partition.txt").matches("ends here").count(), modules - 1);
    // An option wins.
    let other = work.ok("partition --spec spec.yaml --modules 2 -o other").stdout;
    assert!(other.contains("modules 2") && !other.contains("memory budget"), "{other}");
}
