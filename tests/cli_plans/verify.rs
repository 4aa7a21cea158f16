//! `slrc plan verify` and `slrc partition --check`: they pass on what holds, and on nothing else.

use std::fs;

use crate::cli::{Workspace, tensors, tree, write_tensors};
use crate::{edit, partition, read};

/// A command that finds something: exit code 5, `words` on standard output, nothing written.
fn finds(work: &Workspace, line: &str, words: &[&str]) -> String {
    let before = tree(&work.path(""));
    let ran = work.slrc(line);
    assert_eq!(ran.code, Some(5), "slrc {line}\n{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    for word in words {
        assert!(ran.stdout.contains(word), "slrc {line}\ndoes not say {word:?}:\n{}", ran.stdout);
    }
    assert!(tree(&work.path("")) == before, "slrc {line} writes");
    ran.stdout
}

#[test]
fn a_sound_plan_holds() {
    let work = Workspace::new();
    for target in ["cpu", "cuda:sm_80"] {
        partition(&work, "mnist_mlp", &format!("--modules 2 --target {target}"), "a");
        let out = work.ok("plan verify a").stdout;
        assert!(out.starts_with("a holds: 2 modules, peak ") && out.lines().count() == 1, "{out}");
    }
    let peak = read(&work.path("a")).memory.peak();
    for limit in [format!("{peak}"), "1GiB".into()] {
        work.ok(&format!("plan verify a --max-peak {limit}"));
    }
    finds(&work, &format!("plan verify a --max-peak {}", peak - 1), &["peak: ", "(1 bytes, 0.0 %)"]);
}

#[test]
fn a_peak_is_held_against_another() {
    let work = Workspace::new();
    partition(&work, "mnist_mlp", "--modules 2", "a");
    edit(&work, "a", |p| p.memory.arena = p.memory.arena.max(p.memory.eval_arena));
    partition(&work, "mnist_mlp", "--modules 2", "b");
    let peak = read(&work.path("a")).memory.peak();
    // 1 % more, to the byte.
    edit(&work, "b", |p| p.memory.arena += peak / 100);
    work.ok("plan verify a --against b");
    work.ok("plan verify b --against a --max-peak +1%");
    finds(&work, "plan verify b --against a", &["more than the", "of the old plan"]);
    finds(&work, "plan verify b --against a --max-peak +0.9%", &["0.9 %"]);
    work.fails("plan verify b --max-peak +1%", 2, &["--against"]);
    let ran = work.slrc("plan verify b --max-peak much");
    assert!(ran.code == Some(2) && ran.stderr.contains("2GiB"), "{}", ran.stderr);
}

#[test]
fn every_violation_is_found() {
    let work = Workspace::new();
    let fresh = || partition(&work, "mnist_mlp", "--modules 2 --target cuda:sm_80", "a");
    fresh();
    edit(&work, "a", |p| {
        let second = p.parameters[1].buffer.clone();
        p.buffers.iter_mut().find(|b| b.id == second).expect("a buffer").offset = 0;
    });
    finds(&work, "plan verify a", &["overlaps"]);
    fresh();
    edit(&work, "a", |p| p.parameters[0].module = 2);
    finds(&work, "plan verify a", &["isolation: "]);
    fresh();
    edit(&work, "a", |p| p.memory.parameter = usize::MAX);
    finds(&work, "plan verify a --max-peak 1GiB", &["overflow"]);
    fresh();
    let source = fs::read_to_string(work.path("a/kernels.cu")).expect("kernels");
    work.write("a/kernels.cu", format!("{source}\n"));
    finds(&work, "plan verify a", &["kernels.cu: its SHA-256 is"]);
    fresh();
    let mut all = tensors(&work.path("a/weights.safetensors"));
    let moved = all.remove("fc2.bias").expect("a bias");
    all.insert("stranger".into(), moved);
    all.get_mut("fc1.weight").expect("a weight").shape.reverse();
    write_tensors(&work.path("a/weights.safetensors"), &all);
    let said = finds(&work, "plan verify a", &["\"fc2.bias\" is missing", "\"stranger\" is not", "\"fc1.weight\" has"]);
    assert_eq!(said.lines().count(), 3, "a line a violation: {said}");
    for name in ["kernels.cu", "weights.safetensors", "plan.yaml"] {
        fresh();
        fs::remove_file(work.path("a").join(name)).expect("remove");
        work.fails("plan verify a", 4, &[name]);
    }
    work.write("a/plan.yaml", "words");
    work.fails("plan verify a", 4, &["not a plan"]);
}

#[test]
fn drift_is_found() {
    let work = Workspace::new();
    let options = "--modules 2 --target cuda:sm_80";
    let check = format!("partition MODELS/mnist_mlp/model.onnx --batch 4 {options} --check a");
    let fresh = || partition(&work, "mnist_mlp", options, "a");
    fresh();
    let before = tree(&work.path(""));
    assert_eq!(work.ok(&check).stdout, "a is what the model and the spec compile to\n");
    assert!(tree(&work.path("")) == before, "a check writes nothing");
    finds(&work, &check.replace("--batch 4", "--batch 8"), &["plan.yaml differs", "settings", "batch", "peak"]);
    edit(&work, "a", |p| p.modules[0].head = "conv".into());
    finds(&work, &check, &["plan.yaml differs"]);
    for name in ["kernels.cu", "model.onnx"] {
        fresh();
        let mut bytes = fs::read(work.path("a").join(name)).expect("a file");
        bytes.push(b'\n');
        work.write(&format!("a/{name}"), bytes);
        finds(&work, &check, &[&format!("{name} differs")]);
        fs::remove_file(work.path("a").join(name)).expect("remove");
        finds(&work, &check, &[&format!("{name} is missing")]);
    }
    fresh();
    let mut all = tensors(&work.path("a/weights.safetensors"));
    all.get_mut("fc1.bias").expect("a bias").data[0] += 1.0;
    write_tensors(&work.path("a/weights.safetensors"), &all);
    finds(&work, &check, &["weights.safetensors differs in 1 of", "\"fc1.bias\""]);
    work.write("a/plan.yaml", "words");
    finds(&work, &check, &["plan.yaml differs", "not a plan"]);
    work.fails(&check.replace("--check a", "--check nowhere"), 4, &["nowhere/plan.yaml"]);
    let ran = work.slrc(&format!("{check} -o b"));
    assert!(ran.code == Some(2) && ran.stderr.contains("--check"), "{}", ran.stderr);
}

/// Random weights are drawn anew: their values are no drift, their names and shapes are.
#[test]
fn random_weights_do_not_drift() {
    let work = Workspace::new();
    let options = "--modules 2 --init random";
    let check = format!("partition MODELS/mnist_mlp/model.onnx --batch 4 {options} --check a");
    partition(&work, "mnist_mlp", options, "a");
    let holds = "a is what the model and the spec compile to\n";
    assert_eq!(work.ok(&check).stdout, holds);
    let path = work.path("a/weights.safetensors");
    let whole = tensors(&path);
    let mut other = whole.clone();
    other.values_mut().flat_map(|t| &mut t.data).for_each(|x| *x += 1.0);
    write_tensors(&path, &other);
    assert_eq!(work.ok(&check).stdout, holds, "values are random");
    let mut other = whole.clone();
    other.get_mut("fc1.weight").expect("a weight").shape.reverse();
    write_tensors(&path, &other);
    finds(&work, &check, &["weights.safetensors differs in 1 of", "\"fc1.weight\""]);
    let mut other = whole.clone();
    other.remove("fc2.bias");
    write_tensors(&path, &other);
    finds(&work, &check, &["weights.safetensors differs in 1 of", "\"fc2.bias\""]);
    write_tensors(&path, &whole);
    // Weights that are kept are compared, and a seed is a setting.
    finds(&work, &check.replace("--init random", ""), &["plan.yaml differs", "weights.safetensors differs in"]);
    finds(&work, &format!("{check} --seed 1"), &["plan.yaml differs", "seed"]);
}
