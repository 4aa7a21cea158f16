//! `slrc plan diff`

use crate::cli::Workspace;
use crate::{edit, partition, read, split_epilogue};

#[test]
fn equal_plans() {
    let work = Workspace::new();
    partition(&work, "mnist_cnn", "--modules 2", "a");
    partition(&work, "mnist_cnn", "--modules 2", "b");
    for line in ["plan diff a b", "plan diff a/plan.yaml b"] {
        assert_eq!(work.ok(line).stdout, "the plans are equal\n");
    }
    assert_eq!(work.ok("plan diff a b --format markdown").stdout, "### the plans are equal\n");
    assert_eq!(work.json("plan diff a b --format json")["equal"], true);
}

#[test]
fn what_changed() {
    let work = Workspace::new();
    partition(&work, "mnist_cnn", "--modules 2 --reconcile off --no-monitor", "a");
    partition(&work, "mnist_cnn", "--modules 3 --reconcile off --no-monitor --optimizer adamw", "b");
    insta::assert_snapshot!("diff_text", work.ok("plan diff a b").stdout);
    insta::assert_snapshot!("diff_markdown", work.ok("plan diff a b --format markdown").stdout);
    let json = work.json("plan diff a b --format json");
    let (a, b) = (read(&work.path("a")), read(&work.path("b")));
    assert_eq!(json["equal"], false);
    let memory = |name: &str| json["memory"].as_array().expect("memory").iter().find(|m| m["name"] == name).cloned();
    for (name, old, new) in [
        ("parameters", a.memory.parameter, b.memory.parameter),
        ("optimizer", a.memory.optimizer, b.memory.optimizer),
        ("arena", a.memory.arena, b.memory.arena),
        ("peak", a.memory.peak(), b.memory.peak()),
    ] {
        let m = memory(name).expect("named");
        assert_eq!((m["old"].as_u64(), m["new"].as_u64()), (Some(old as u64), Some(new as u64)), "{name}");
    }
    let parts = json["memory"].as_array().expect("memory").iter().filter(|m| m["name"] != "peak");
    let sum: u64 = parts.filter_map(|m| m["new"].as_u64()).sum();
    assert_eq!(sum as usize, b.memory.peak(), "the parts are the peak");
    for (i, m) in json["modules"].as_array().expect("modules").iter().enumerate() {
        assert_eq!(m["new"]["last_node"], b.modules[i].last);
        assert_eq!(m["old"].is_null(), i >= a.modules.len());
    }
}

#[test]
fn kernels_fused_and_split() {
    let work = Workspace::new();
    for folder in ["a", "b"] {
        partition(&work, "mnist_mlp", "--modules 2", folder);
    }
    edit(&work, "b", |p| split_epilogue(p, 0, "node_relu"));
    let apart = work.ok("plan diff a b").stdout;
    assert!(
        apart.contains("module 1: 1 kernel more\nmodule 1: forward map node_relu left matmul node_linear\n"),
        "{apart}"
    );
    let joined = work.ok("plan diff b a").stdout;
    assert!(
        joined.contains("module 1: 1 kernel fewer\nmodule 1: forward map node_relu joined matmul node_linear\n"),
        "{joined}"
    );
    let json = work.json("plan diff b a --format json");
    assert_eq!(json["kernels"]["fused"][0]["parts"].as_array().map(Vec::len), Some(2));
    assert_eq!(json["kernels"]["gone"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_difference_in_the_text_alone_is_told() {
    let work = Workspace::new();
    for folder in ["a", "b"] {
        partition(&work, "mnist_mlp", "--modules 2", folder);
    }
    edit(&work, "b", |p| p.scalars[0].schedule.base += 1.0);
    let text = work.ok("plan diff a b").stdout;
    assert!(text.contains("unchanged; the plans differ") && text.ends_with("\nscalars\n"), "{text}");
}

#[test]
fn launches_of_cuda_plans() {
    let work = Workspace::new();
    partition(&work, "mnist_mlp", "--modules 2 --target cuda:sm_80", "a");
    partition(&work, "mnist_mlp", "--modules 2 --target cuda:sm_80 --reconcile off", "b");
    partition(&work, "mnist_mlp", "--modules 2", "c");
    let text = work.ok("plan diff a b").stdout;
    assert!(text.contains("launches"), "{text}");
    assert!(work.ok("plan diff a c").stdout.contains(" -> 0\n"));
    assert!(!work.ok("plan diff c c").stdout.contains("launches"));
}

#[test]
fn plans_that_cannot_be_read() {
    let work = Workspace::new();
    partition(&work, "mnist_mlp", "--modules 2", "a");
    work.fails("plan diff a nowhere", 4, &["nowhere/plan.yaml"]);
    work.fails("plan diff nowhere a", 4, &["nowhere/plan.yaml"]);
    let ran = work.slrc("plan diff a a --format html");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("markdown"), "{}", ran.stderr);
}
