//! What the command says about itself, and how it takes usage errors.

#[path = "support/cli.rs"]
mod cli;

use cli::Workspace;

/// Every verb with a help text of its own.
const VERBS: &[&str] = &[
    "",
    "check",
    "partition",
    "compile",
    "train",
    "eval",
    "export",
    "plan",
    "plan show",
    "plan diff",
    "plan verify",
    "plan explain",
    "plan report",
    "plan sweep",
    "profile",
    "bench",
    "devices",
    "ops",
];

#[test]
fn help_texts() {
    let work = Workspace::new();
    for verb in VERBS {
        let help = work.ok(&format!("{verb} --help")).stdout;
        let name = if verb.is_empty() { "slrc".into() } else { verb.replace(' ', "_") };
        insta::assert_snapshot!(format!("help_{name}"), help);
    }
}

#[test]
fn every_verb_is_listed() {
    let work = Workspace::new();
    let help = work.ok("--help").stdout;
    let commands = help.split("Commands:").nth(1).and_then(|h| h.split("Options:").next()).expect("a list of commands");
    for line in commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   ")) {
        let verb = line.split_whitespace().next().expect("a verb");
        if verb != "help" {
            assert!(work.ok(&format!("{verb} --help")).stdout.contains("Usage: slrc "), "{verb}");
        }
    }
}

#[test]
fn usage_errors_exit_with_2() {
    let work = Workspace::new();
    for (line, word) in [
        ("", "Usage: slrc"),
        ("frobnicate", "frobnicate"),
        ("partition m.onnx --modules three", "three"),
        ("partition m.onnx --modules 3 --per-layer", "--per-layer"),
        ("partition m.onnx --per-layer --at a", "--at"),
        ("partition m.onnx --modules 3 --at a", "--at"),
        ("partition m.onnx --modules 3 --memory-budget 2GiB", "--memory-budget"),
        ("partition m.onnx --per-layer --memory-budget 2GiB", "--memory-budget"),
        ("partition m.onnx --memory-budget 2GiB --at a", "--memory-budget"),
        ("partition m.onnx --memory-budget -1", "-1"),
        ("partition m.onnx --memory-budget 2 parsecs", "parsecs"),
        ("partition m.onnx --memory-budget 99999999TiB", "more bytes than can be counted"),
        ("plan sweep m.onnx --memory-budget 2GiB", "--memory-budget"),
        ("partition m.onnx --head round", "gap-linear"),
        ("partition m.onnx --reconcile maybe", "finite-difference"),
        ("partition m.onnx --distance far", "cosine"),
        ("partition m.onnx --optimizer lion", "adamw"),
        ("partition m.onnx --init zero", "keep"),
        ("partition m.onnx --lambda much", "much"),
        ("partition m.onnx --seed -1", "-1"),
        ("train plan", "--data"),
        ("train plan --data d.npz --steps 3 --epochs 2", "--epochs"),
        ("eval run", "--data"),
        ("export run", "--out"),
        ("plan", "show"),
    ] {
        let ran = work.slrc(line);
        assert_eq!(ran.code, Some(2), "slrc {line}\n{}", ran.stderr);
        assert!(ran.stderr.contains(word), "slrc {line}\n{}", ran.stderr);
        assert_eq!(ran.stdout, "", "slrc {line}");
    }
    assert_eq!(cli::tree(&work.path("")).len(), 0, "usage errors write nothing");
}

#[test]
fn version_is_the_packages() {
    assert_eq!(Workspace::new().ok("--version").stdout.trim(), concat!("slrc ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn ops_are_those_of_the_importer() {
    let text = Workspace::new().ok("ops").stdout;
    let all = slrc_compiler::onnx::ops::all();
    for e in &all {
        assert!(text.lines().any(|l| l.split_whitespace().next() == Some(e.op)), "{} is not listed", e.op);
    }
    assert!(text.ends_with(&format!("\n{} operators\n", all.len())), "{text}");
    for op in ["Conv", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization", "Softmax", "Gather"] {
        assert!(all.iter().any(|e| e.op == op), "{op} is not supported");
    }
}
