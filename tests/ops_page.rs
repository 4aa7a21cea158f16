//! docs/ops.md: what is supported, written from the code. The test fails when the page is stale; `SLRC_BLESS=1`
//! rewrites it.

#[path = "../compiler/tests/common/mod.rs"]
mod models;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use slrc_compiler::ir::op::Class;
use slrc_compiler::ir::samples::all;
use slrc_compiler::ir::{Graph, Op};
use slrc_compiler::onnx::import::{ImportOptions, import};
use slrc_compiler::onnx::ops;
use slrc_plan::ScalarFn;
use slrc_plan::scalar::ResultKind;

/// Networks of models/ that hold each ONNX operator.
fn networks() -> BTreeMap<String, BTreeSet<String>> {
    let small = models::SMALL.iter().map(|n| (n.to_string(), models::small(n)));
    let large = models::exports().into_iter().map(|n| (n.clone(), models::export(&n)));
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, file) in small.chain(large) {
        let network = name.split('.').next().unwrap_or_default().to_string();
        let net = import(&file, &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for n in net.nodes {
            out.entry(n.op).or_default().insert(network.clone());
        }
    }
    out
}

/// What an op is in a graph: its class, and in how many samples it occurs.
fn samples_of(wanted: &dyn Fn(&Op) -> bool) -> (Option<Class>, usize) {
    let holds = |g: &Graph| g.ids().map(|id| g.node(id).op.clone()).find(|op| wanted(op));
    let found: Vec<Op> = all().iter().filter_map(|s| holds(&s.graph)).collect();
    (found.first().map(|op| op.rule().class()), found.len())
}

fn class(c: Class) -> &'static str {
    match c {
        Class::Leaf => "memory, or a number known when compiling",
        Class::View => "another way to look at its operand",
        Class::Pointwise => "part of a fused region",
        Class::Reduction => "part of a fused region, reducing",
        Class::Kernel => "a kernel of its own",
        Class::Composite => "rewritten before lowering",
    }
}

fn page() -> String {
    let mut out = String::from(
        "# Operators\n\n\
         Written by `tests/ops_page.rs` from the code; `SLRC_BLESS=1 cargo test --test ops_page` rewrites it.\n\n\
         ## ONNX operators\n\n\
         Operators of other domains are not supported; model-local functions are inlined. A model with operators that are \
         not listed is refused with all of them at once. *Networks* counts those of [models/](../models) whose \
         files hold the operator: their import is compared with PyTorch's parameter counts and between exporters. All are \
         held to ONNX's own [node tests](#conformance). What a node says that a conversion does not look at, an attribute \
         or an input that a later opset added, is an error.\n\n\
         | operator | how, and what not | networks |\n|---|---|---|\n",
    );
    let networks = networks();
    for e in ops::all() {
        let used = networks.get(e.op).map_or_else(String::new, |n| {
            let first: Vec<&str> = n.iter().take(2).map(String::as_str).collect();
            let more = if n.len() > 2 { format!(" and {} more", n.len() - 2) } else { String::new() };
            format!("{}{more}", first.join(", "))
        });
        let _ = writeln!(out, "| {} | {} | {used} |", e.op, e.note.replace('|', "\\|"));
    }
    let _ = write!(
        out,
        "\n{} operators.\n\n## IR ops\n\n\
         Every op has a shape rule, a meaning in f64, a gradient and a directional derivative. *Samples* are the small \
         graphs of `compiler/src/ir/samples.rs` that hold it. Over each sample, value, first and second derivative are \
         compared: in f64 with central differences, and on the CPU device with the interpreter.\n\n\
         | op | how it runs | samples |\n|---|---|---|\n",
        ops::all().len()
    );
    for name in Op::NAMES {
        let (c, n) = samples_of(&|op| op.rule().name() == *name);
        let _ = writeln!(out, "| {name} | {} | {n} |", class(c.expect("every op has a sample")));
    }
    let _ = write!(
        out,
        "\n## Scalar functions\n\n\
         What `map` computes element by element; their formulas are in `runtime/plan/src/scalar.rs`. A flag is one byte, \
         0 or 1.\n\n| function | arguments | result | samples |\n|---|---|---|---|\n"
    );
    for f in ScalarFn::ALL {
        let (_, n) = samples_of(&|op| matches!(op, Op::Map(m) if m.0 == *f));
        let result = match f.result() {
            ResultKind::Number => "number",
            ResultKind::Flag => "flag",
        };
        let _ = writeln!(out, "| {f} | {} | {result} | {n} |", f.arity());
    }
    out.push_str(&conformance());
    out
}

/// What `compiler/tests/conformance/cases.txt` holds, by suite.
fn conformance() -> String {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("compiler/tests/conformance/cases.txt");
    let list = std::fs::read_to_string(list).expect("the list of official cases");
    let cases: Vec<(&str, &str)> = list
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once(' '))
        .map(|(name, said)| (name.split('/').next().unwrap_or_default(), said))
        .collect();
    let mut out = String::from(
        "\n## Conformance\n\n\
         ONNX's own node tests, as the onnx package generates them and as an older wheel carries them, and the models \
         beside them (small ones converted from PyTorch, simple ones, known networks in full size: `light`), evaluated by \
         the importer and the f64 interpreter. `compiler/tests/conformance/cases.txt` says of each that it passes, or why it \
         is left out; a change in either direction fails the build. Of a case that passes, first and second derivative are \
         compared with differences where floats depend on floats, but for known networks; so they are of Trilu, whose cases \
         are of integers, and of GlobalLpPool, which has none (`own.rs` beside the list). *Of numbers* leaves out strings, \
         sequences, optionals and types that are not read.\n\n\
         | package | cases | pass | of all | of numbers | derivatives agree | at a kink, or infinite |\n|---|---|---|---|---|---|---|\n",
    );
    for suite in cases.iter().map(|c| c.0).collect::<BTreeSet<_>>() {
        let said = || cases.iter().filter(|c| c.0 == suite).map(|c| c.1);
        let pass = said().filter(|s| s.starts_with("pass")).count();
        let odd = |s: &&str| s.starts_with("out") && (s.ends_with(" data") || s.contains("sequences, optionals"));
        let (all, numbers) = (said().count(), said().filter(|s| !odd(s)).count());
        let ends = |word: &str| said().filter(|s| s.starts_with("pass") && s.ends_with(word)).count();
        let percent = |n: usize| format!("{:.1} %", 100.0 * pass as f64 / n as f64);
        let (whole, part) = (percent(all), percent(numbers));
        let rough = ends(" kink") + ends(" nan");
        let suite = if suite.starts_with('1') { format!("onnx {suite}") } else { format!("models, {suite}") };
        let _ = writeln!(out, "| {suite} | {all} | {pass} | {whole} | {part} | {} | {rough} |", ends(" grad"));
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    cases.iter().filter_map(|c| c.1.strip_prefix("out ")).for_each(|r| *reasons.entry(r).or_default() += 1);
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(r, n)| (std::cmp::Reverse(*n), *r));
    out.push_str("\n| left out | cases |\n|---|---|\n");
    for (reason, n) in reasons {
        let _ = writeln!(out, "| {} | {n} |", reason.replace('|', "\\|"));
    }
    out
}

#[test]
fn the_page_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ops.md");
    let page = page();
    if std::env::var_os("SLRC_BLESS").is_some() {
        std::fs::write(&path, &page).expect("write");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(page.lines()).find(|(a, b)| a != b);
    assert!(written == page, "docs/ops.md is stale: SLRC_BLESS=1 cargo test --test ops_page rewrites it; {differs:?}");
}

/// Every op and every scalar function is in some sample.
#[test]
fn everything_is_sampled() {
    let page = page();
    let before = page.lines().take_while(|l| *l != "## Conformance");
    let unsampled: Vec<&str> = before.filter(|l| l.ends_with("| 0 |")).collect();
    assert!(unsampled.is_empty(), "{unsampled:?}");
}
