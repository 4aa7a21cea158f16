//! Gradient isolation, seen from outside: what a module learns does not depend on the modules behind it.

#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use cli::{Tensor, Workspace, npz, samples, tensors, write_tensors};
use slrc_plan::random::Sequence;

/// Module of every tensor of the checkpoint (parameters and optimizer state).
fn owners(work: &Workspace, plan: &str) -> BTreeMap<String, usize> {
    let p = slrc_runtime::folder::read_plan(&work.path(plan)).expect("a plan");
    let parameters = p.parameters.iter().map(|d| (d.name.clone(), d.module));
    parameters.chain(p.optimizer_state.iter().map(|d| (d.name.clone(), d.module))).collect()
}

/// Weights with those of some modules, heads and running statistics included, replaced by others.
fn changed(weights: &BTreeMap<String, Tensor>, of: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
    let mut rng = Sequence::new(3, 1, 4);
    let change = |t: &Tensor, rng: &mut Sequence| {
        let data = t.data.iter().map(|x| x + 0.1 * rng.normal().abs() + 0.01).collect();
        Tensor { shape: t.shape.clone(), data }
    };
    let pairs = weights.iter().map(|(n, t)| (n.clone(), if of(n) { change(t, &mut rng) } else { t.clone() }));
    pairs.collect()
}

/// Everything a run holds after three steps.
fn train(work: &Workspace, options: &str, given: &BTreeMap<String, Tensor>, name: &str) -> BTreeMap<String, Tensor> {
    write_tensors(&work.path("given.safetensors"), given);
    work.ok(&format!("partition {options} --init-from given.safetensors -o plan"));
    work.ok(&format!("train plan --data train.npz --steps 3 --log-every 1 -o {name}"));
    let mut all = cli::parameters(&work.path(name));
    all.extend(tensors(&work.path(name).join("checkpoint/optimizer.safetensors")));
    all
}

/// Losses, accuracies and boundary numbers of the first `k` modules in every step.
fn log(work: &Workspace, run: &str, k: usize) -> String {
    let text = std::fs::read_to_string(work.path(run).join("metrics.jsonl")).expect("metrics");
    let mut out = String::new();
    for line in text.lines() {
        let l: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let modules = l["modules"].as_array().expect("modules");
        let boundaries = l["boundaries"].as_array().expect("boundaries");
        out.push_str(&format!("{:?} {:?}\n", &modules[..k], &boundaries[..k - 1]));
    }
    out
}

fn check(name: &str, options: &str) {
    let work = Workspace::new();
    let options = format!("MODELS/{name}/model.onnx --batch 8 {options}");
    work.write("train.npz", npz(&samples(name, 24, 1)));
    work.ok(&format!("partition {options} -o plan"));
    let owner = owners(&work, "plan");
    let last = owner.values().copied().max().expect("modules");
    assert!(last >= 2, "{options}: one module has no neighbours");
    let mut weights = tensors(&work.path("plan/weights.safetensors"));
    weights.retain(|n, _| owner.contains_key(n));
    let base = train(&work, &options, &weights, "base");
    for k in 1..last {
        // Behind module k everything is different: modules 1 to k do not notice, in any bit.
        let behind = changed(&weights, |n| owner[n] > k);
        let run = train(&work, &options, &behind, &format!("behind{k}"));
        for (n, t) in &base {
            let same = run[n].data.iter().zip(&t.data).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same || owner[n] > k, "{options}: \"{n}\" of module {} sees the modules behind {k}", owner[n]);
        }
        assert_eq!(log(&work, &format!("behind{k}"), k), log(&work, "base", k), "{options}");
        // The modules behind did learn something else.
        let update = |run: &BTreeMap<String, Tensor>, from: &BTreeMap<String, Tensor>, n: &str| -> Vec<f32> {
            run[n].data.iter().zip(&from[n].data).map(|(a, b)| a - b).collect()
        };
        let differ = weights.keys().filter(|n| owner[*n] == k + 1);
        let differ = differ.filter(|n| update(&run, &behind, n) != update(&base, &weights, n)).count();
        assert!(differ > 0, "{options}: module {} learns the same from other weights", k + 1);
        // The other way round it is no secret: module k + 1 sees what module k hands to it.
        let before = changed(&weights, |n| owner[n] == k);
        let run = train(&work, &options, &before, &format!("before{k}"));
        let of_next: Vec<&String> = weights.keys().filter(|n| owner[*n] == k + 1).collect();
        assert!(of_next.iter().any(|n| run[*n] != base[*n]), "{options}: module {} does not see module {k}", k + 1);
        for (n, t) in base.iter().filter(|(n, _)| owner[*n] < k) {
            assert!(run[n] == *t, "{options}: \"{n}\" of module {} sees module {k}", owner[n]);
        }
    }
}

#[test]
fn off() {
    check("mnist_cnn", "--modules 3 --reconcile off");
}

#[test]
fn exact() {
    check("mnist_cnn", "--modules 3 --reconcile exact");
}

#[test]
fn finite_difference() {
    check("mnist_cnn", "--modules 3 --reconcile finite-difference");
}

#[test]
fn tangent() {
    check("mnist_cnn", "--modules 3 --reconcile tangent");
}

#[test]
fn bp_free() {
    check("mnist_mlp", "--per-layer --reconcile bp-free --optimizer adamw");
}

#[test]
fn squared_and_relative() {
    check("mnist_mlp", "--modules 2 --reconcile exact --distance squared");
    check("mnist_mlp", "--modules 2 --reconcile finite-difference --distance relative");
}

/// What is carried along is as isolated as what a head reads.
#[test]
fn skips() {
    let inner = "--allow-skips 1 --at /layer1/layer1.0/relu/Relu,/layer2/layer2.0/relu/Relu";
    check("mnist_cnn", &format!("{inner} --reconcile exact"));
    check("mnist_cnn", &format!("{inner} --reconcile finite-difference"));
}

#[test]
fn transformers() {
    check("mnist_vit", "--modules 2 --reconcile finite-difference");
    check("tokens_bert", "--modules 3 --reconcile exact --optimizer adamw");
}

/// The gradient a module hands forward matters where gradients are reconciled, and nowhere else.
#[test]
fn the_output_gradient_is_used_by_reconciliation_alone() {
    let work = Workspace::new();
    work.write("train.npz", npz(&samples("mnist_cnn", 24, 1)));
    for (mode, sees) in [("off", false), ("exact", true), ("finite-difference", true), ("tangent", true)] {
        let options = format!("MODELS/mnist_cnn/model.onnx --batch 8 --modules 2 --momentum 0 --reconcile {mode}");
        work.ok(&format!("partition {options} -o plan"));
        let owner = owners(&work, "plan");
        let mut weights = tensors(&work.path("plan/weights.safetensors"));
        weights.retain(|n, _| owner.contains_key(n));
        // Module 1 hands on the same output but, with another head, another output gradient.
        let head = changed(&weights, |n| n.starts_with("head.1."));
        let one = |given: &BTreeMap<String, Tensor>, run: &str| {
            write_tensors(&work.path("given.safetensors"), given);
            work.ok(&format!("partition {options} --init-from given.safetensors -o plan"));
            work.ok(&format!("train plan --data train.npz --steps 1 -o {run}"));
            cli::parameters(&work.path(run))
        };
        let (base, other) = (one(&weights, &format!("{mode}-base")), one(&head, &format!("{mode}-head")));
        let differ = weights.keys().any(|n| owner[n] == 2 && base[n] != other[n]);
        assert_eq!(differ, sees, "reconcile {mode}");
    }
}
