//! `slrc partition` and `slrc plan show`: what every option does to the plan.

#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use cli::{Tensor, Workspace, model, tensors, write_tensors};
use onnx_protobuf::{Message as _, ModelProto};
use slrc_plan::Plan;
use slrc_plan::plan::Role;

/// Compiles with options and reads the plan back.
fn plan(work: &Workspace, line: &str) -> Plan {
    work.ok(&format!("partition {line} -o plan"));
    read(work, "plan")
}

fn read(work: &Workspace, folder: &str) -> Plan {
    slrc_runtime::folder::read_plan(&work.path(folder)).expect("a plan")
}

fn cnn(work: &Workspace, options: &str) -> Plan {
    plan(work, &format!("MODELS/mnist_cnn/model.onnx --batch 4 {options}"))
}

fn weights(work: &Workspace) -> BTreeMap<String, Tensor> {
    tensors(&work.path("plan/weights.safetensors"))
}

/// Float initializers as the file has them.
fn initializers(name: &str) -> BTreeMap<String, Vec<f32>> {
    let proto = ModelProto::parse_from_bytes(&std::fs::read(model(name)).expect("model")).expect("a model");
    let floats = proto.graph.initializer.iter().filter(|t| t.data_type == 1 && !t.raw_data.is_empty());
    floats
        .map(|t| {
            (t.name.clone(), t.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        })
        .collect()
}

#[test]
fn a_plan_folder_is_complete() {
    let work = Workspace::new();
    let out = work.ok("partition MODELS/mnist_cnn/model.onnx --modules 3 --batch 8").stdout;
    let mut names: Vec<String> = cli::tree(&work.path("plan")).into_keys().collect();
    names.sort();
    assert_eq!(
        names,
        ["model.onnx", "partition.txt", "plan.yaml", "weights.safetensors"],
        "the default folder is plan"
    );
    assert!(out.ends_with("plan written to plan\n"), "{out}");
    // The table partition prints is the one `plan show` prints.
    let shown = work.ok("plan show plan").stdout;
    assert!(out.starts_with(&shown));
    insta::assert_snapshot!("plan_show_mnist_cnn", shown);
    assert_eq!(work.ok("plan show plan/plan.yaml").stdout, shown);
    insta::assert_snapshot!(
        "partition_report_mnist_cnn",
        std::fs::read_to_string(work.path("plan/partition.txt")).expect("report")
    );
}

#[test]
fn a_profile_names_kernels() {
    let work = Workspace::new();
    let p = cnn(&work, "--modules 2");
    let before = cli::tree(&work.path(""));
    let text = work.ok("profile plan --steps 1 --top 4").stdout;
    assert!(text.starts_with("a step of 4 samples: ") && text.contains("conv forward"), "{text}");
    let tables: Vec<&str> = text.split("\n\n").collect();
    let counts = tables[1].lines().skip(1).flat_map(|l| l.split_whitespace().find_map(|w| w.parse::<usize>().ok()));
    assert_eq!(counts.sum::<usize>(), p.modules.iter().map(|m| m.step.kernels.len()).sum::<usize>(), "{text}");
    let slowest: Vec<&str> = tables[2].lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect();
    let all = p.modules.iter().flat_map(|m| m.step.kernels.iter().map(move |k| format!("m{}.{}", m.index, k.id)));
    let all: Vec<String> = all.collect();
    assert!(slowest.len() == 4 && slowest.iter().all(|s| all.iter().any(|a| a == s)), "{text}");
    assert_eq!(cli::tree(&work.path("")), before, "a profile leaves nothing");
}

#[test]
fn json_says_what_the_plan_says() {
    let work = Workspace::new();
    for (name, k) in [("mnist_cnn", 3), ("mnist_vit", 3), ("mnist_mlp", 2), ("tokens_bert", 3)] {
        let p = plan(&work, &format!("MODELS/{name}/model.onnx --modules {k} --batch 4"));
        let json = work.json("plan show plan --json");
        let modules = json["modules"].as_array().expect("modules");
        assert_eq!(modules.len(), k);
        for (j, m) in modules.iter().zip(&p.modules) {
            assert_eq!(j["index"], m.index);
            assert_eq!(j["name"], format!("m{}", m.index));
            assert_eq!(j["first_node"], m.first);
            assert_eq!(j["last_node"], m.last);
            assert_eq!(j["head"], m.head);
            assert_eq!(j["arena_bytes"], m.step.arena_bytes);
            assert_eq!(j["flops"], m.step.kernels.iter().map(|k| k.flops).sum::<u64>());
            // Counted from the weights themselves.
            let trained = |p: &&slrc_plan::plan::ParameterDecl| p.role == Role::Weight && p.module == m.index;
            let file = weights(&work);
            let counted: usize = p.parameters.iter().filter(trained).map(|d| file[&d.name].data.len()).sum();
            assert_eq!(j["parameters"], counted, "{name} module {}", m.index);
            let head = format!("head.{}.", m.index);
            let of_head = |d: &&slrc_plan::plan::ParameterDecl| trained(d) && d.name.starts_with(&head);
            let counted: usize = p.parameters.iter().filter(of_head).map(|d| file[&d.name].data.len()).sum();
            assert_eq!(j["head_parameters"], counted, "{name} module {}", m.index);
            assert_eq!(counted > 0, m.index < k, "{name} module {}", m.index);
        }
        let last = modules.last().expect("a module");
        assert_eq!(last["head"], "network");
        let totals = &json["totals"];
        let sum = |key: &str| modules.iter().map(|m| m[key].as_u64().expect("a number")).sum::<u64>();
        let most = |key: &str| modules.iter().map(|m| m[key].as_u64().expect("a number")).max();
        assert_eq!(totals["parameters"].as_u64(), Some(sum("parameters")));
        assert_eq!(totals["flops"].as_u64(), Some(sum("flops")));
        assert_eq!(totals["arena_bytes"].as_u64(), most("arena_bytes"), "one arena, as large as the largest module's");
        assert_eq!(totals["optimizer_bytes"], p.memory.optimizer);
        assert_eq!(totals["peak_bytes"], p.memory.peak());
    }
}

#[test]
fn modules_per_layer_at() {
    let work = Workspace::new();
    for k in 1..=4 {
        let p = cnn(&work, &format!("--modules {k}"));
        assert_eq!(p.modules.len(), k);
        assert_eq!(p.settings.partition, format!("modules {k}"));
    }
    assert_eq!(cnn(&work, "").modules.len(), 4, "four modules where nothing is said");
    let layers = cnn(&work, "--per-layer");
    assert_eq!(layers.settings.partition, "per-layer");
    assert_eq!(layers.modules.len(), 4, "stem and three residual blocks, which cannot be cut inside");
    let mlp = plan(&work, "MODELS/mnist_mlp/model.onnx --batch 4 --per-layer");
    assert_eq!(mlp.modules.len(), 2);
    let at = cnn(&work, "--at /maxpool/MaxPool,/layer2/layer2.0/relu_1/Relu");
    let ends: Vec<&str> = at.modules.iter().map(|m| m.last.as_str()).collect();
    assert_eq!(ends, ["/maxpool/MaxPool", "/layer2/layer2.0/relu_1/Relu", "/fc/Gemm"]);
    // A place that is only unwise is taken when asked for.
    let unwise = cnn(&work, "--at /conv1/Conv");
    assert_eq!(unwise.modules[0].last, "/conv1/Conv");
}

#[test]
fn batch_and_shape() {
    let work = Workspace::new();
    let input = |p: &Plan| p.buffers.iter().find(|b| b.id == p.inputs[0].buffer).expect("input").shape.0.clone();
    let of = |work: &Workspace, options: &str| {
        let p = plan(work, &format!("MODELS/mnist_cnn/model.onnx --modules 2 {options}"));
        (p.settings.batch, input(&p))
    };
    assert_eq!(of(&work, ""), (32, vec![32, 1, 28, 28]));
    assert_eq!(of(&work, "--batch 7"), (7, vec![7, 1, 28, 28]));
    assert_eq!(of(&work, "--shape input=9x1x28x28"), (9, vec![9, 1, 28, 28]));
    assert_eq!(of(&work, "--batch 3 --shape input=Nx1x32x20"), (3, vec![3, 1, 32, 20]));
    let p = plan(
        &work,
        "MODELS/tokens_bert/model.onnx --modules 2 --batch 6 --shape input_ids=Nx16 --shape attention_mask=Nx16",
    );
    assert_eq!(p.inputs.len(), 2);
    assert_eq!(p.inputs[0].index_below, Some(64), "token ids index a table of 64 rows");
}

#[test]
fn every_head() {
    let work = Workspace::new();
    for (kind, first) in [
        ("auto", "linear.weight"),
        ("gap-linear", "linear.weight"),
        ("pool-linear", "linear.weight"),
        ("conv", "conv.weight"),
        ("mlp-sr", "conv1.weight"),
        ("linear", "linear.weight"),
    ] {
        let p = cnn(&work, &format!("--modules 2 --head {kind}"));
        assert_eq!(p.modules[0].head, if kind == "auto" { "pool-linear" } else { kind });
        let names: Vec<&str> =
            p.parameters.iter().map(|d| d.name.as_str()).filter(|n| n.starts_with("head.1.")).collect();
        assert!(names.contains(&format!("head.1.{first}").as_str()), "{kind}: {names:?}");
        assert!(p.modules[0].head_parameters > 0 && p.modules[1].head_parameters == 0);
    }
    let gap = cnn(&work, "--modules 2 --head gap-linear").modules[0].head_parameters;
    let pool = cnn(&work, "--modules 2 --head pool-linear").modules[0].head_parameters;
    assert_eq!(gap - 10, (pool - 10) / 4, "2x2 pooling has four times the weights, and the same ten biases");
    for (name, cut) in [("mnist_vit", "node_add_3"), ("tokens_bert", "node_layer_norm_2")] {
        for kind in ["auto", "token"] {
            let p = plan(&work, &format!("MODELS/{name}/model.onnx --batch 4 --at {cut} --head {kind}"));
            assert_eq!(p.modules[0].head, "token");
            assert!(p.parameters.iter().any(|d| d.name == "head.1.norm.weight"));
        }
    }
}

#[test]
fn every_reconciliation() {
    let work = Workspace::new();
    let kernels = |p: &Plan| p.modules.iter().map(|m| m.step.kernels.len()).sum::<usize>();
    let off = cnn(&work, "--modules 3 --reconcile off");
    for mode in ["exact", "finite-difference", "tangent"] {
        let p = cnn(&work, &format!("--modules 3 --reconcile {mode}"));
        assert_eq!((p.settings.reconcile.as_str(), p.settings.distance.as_str()), (mode, "cosine"));
        assert!(kernels(&p) > kernels(&off), "{mode} does no more work than off");
    }
    let free = plan(&work, "MODELS/mnist_mlp/model.onnx --batch 4 --per-layer --reconcile bp-free");
    assert_eq!(free.settings.reconcile, "bp-free");
    assert_eq!(cnn(&work, "--modules 3").settings.reconcile, "finite-difference", "the default");
    // Lambda: as given, or the distance's usual one.
    let lambda = |p: &Plan| p.scalars.iter().find(|s| s.name == "lambda").map(|s| s.schedule.base);
    assert_eq!(lambda(&off), None);
    for (distance, usual) in [("squared", 3.0), ("relative", 0.02), ("cosine", 0.3)] {
        let p = cnn(&work, &format!("--modules 3 --distance {distance}"));
        assert_eq!(p.settings.distance, distance);
        assert_eq!(lambda(&p), Some(usual));
        assert_eq!(lambda(&cnn(&work, &format!("--modules 3 --distance {distance} --lambda 0.7"))), Some(0.7));
    }
    // Boundary numbers are reported unless they are not wanted.
    assert!(off.modules[1].metrics.boundary.is_some());
    let blind = cnn(&work, "--modules 3 --reconcile off --no-monitor");
    assert!(blind.modules[1].metrics.boundary.is_none());
    assert!(kernels(&blind) < kernels(&off));
    assert!(blind.boundaries.iter().all(|b| b.e.is_none()), "nothing reads e, so nothing hands it on");
}

#[test]
fn every_optimizer() {
    let work = Workspace::new();
    let state = |p: &Plan, suffix: &str| p.optimizer_state.iter().filter(|o| o.name.ends_with(suffix)).count();
    let lr = |p: &Plan| p.scalars.iter().find(|s| s.name == "lr").map(|s| s.schedule.base);
    let trained = |p: &Plan| p.parameters.iter().filter(|d| d.role == Role::Weight).count();
    let sgd = cnn(&work, "--modules 2");
    assert_eq!(state(&sgd, ".momentum_buffer"), trained(&sgd));
    assert_eq!(lr(&sgd), Some(0.05));
    let plain = cnn(&work, "--modules 2 --optimizer sgd --momentum 0 --lr 0.125 --weight-decay 0.001");
    assert_eq!(plain.optimizer_state.len(), 0, "no momentum, no state");
    assert_eq!(lr(&plain), Some(0.125));
    assert_eq!(plain.settings.optimizer, "sgd lr=0.125 momentum=0 weight-decay=0.001");
    let adamw = cnn(&work, "--modules 2 --optimizer adamw");
    assert_eq!((state(&adamw, ".exp_avg"), state(&adamw, ".exp_avg_sq")), (trained(&adamw), trained(&adamw)));
    assert_eq!(lr(&adamw), Some(0.001));
}

#[test]
fn weights_keep_random_from_file() {
    let work = Workspace::new();
    for name in ["mnist_cnn", "mnist_mlp", "mnist_vit", "tokens_bert"] {
        plan(&work, &format!("MODELS/{name}/model.onnx --batch 4 --modules 2"));
        let ours = weights(&work);
        let theirs = initializers(name);
        let kept = theirs.iter().filter(|(n, v)| ours.get(*n).is_some_and(|t| t.data == **v)).count();
        let present = theirs.keys().filter(|n| ours.contains_key(*n)).count();
        assert_eq!(kept, present, "{name}: weights are the model's own, under their names");
        assert!(kept * 10 >= theirs.len() * 8, "{name}: {kept} of {} initializers are weights", theirs.len());
    }
    let kept = {
        cnn(&work, "--modules 2");
        weights(&work)
    };
    let random = |seed: u64| {
        cnn(&work, &format!("--modules 2 --init random --seed {seed}"));
        weights(&work)
    };
    let (one, again, two) = (random(1), random(1), random(2));
    assert_eq!(one, again);
    let name = "conv1.weight";
    assert!(one[name] != two[name] && one[name] != kept[name]);
    assert!(one.keys().eq(kept.keys()));
    // Replacements by name, in the network and in a head; unknown names are told.
    let mut given = BTreeMap::new();
    for name in ["fc.bias", "head.1.linear.bias"] {
        let t = &kept[name];
        given.insert(name.to_string(), Tensor { shape: t.shape.clone(), data: vec![0.25; t.data.len()] });
    }
    given.insert("stranger".into(), Tensor { shape: vec![1], data: vec![1.0] });
    write_tensors(&work.path("given.safetensors"), &given);
    let ran =
        work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 2 --init-from given.safetensors -o plan");
    assert!(ran.stderr.contains("1 tensors of --init-from are not in the plan: stranger"), "{}", ran.stderr);
    let replaced = weights(&work);
    for (name, t) in &kept {
        assert_eq!(&replaced[name], given.get(name).unwrap_or(t), "{name}");
    }
}

#[test]
fn a_spec_says_all_and_options_override_it() {
    let work = Workspace::new();
    std::fs::copy(model("mnist_cnn"), work.path("net.onnx")).expect("copy");
    let text = "
model: ../net.onnx
batch: 4
shapes: {input: Nx1x28x28}
partition: {modules: 3}
head: {kind: gap-linear}
reconcile: {mode: exact, distance: squared, lambda: 2, lambdas: {2: 0.5}, warmup: 10, monitor: true}
optimizer: {kind: sgd, lr: 0.1, momentum: 0.8, nesterov: true, weight-decay: 1.0e-4, schedule: cosine, warmup: 5, last: 0.001}
freeze: ['conv1.*']
init: random
init-from: given.safetensors
seed: 9
";
    work.write("specs/s.yaml", text);
    let mut given = BTreeMap::new();
    given.insert("fc.bias".to_string(), Tensor { shape: vec![10], data: vec![0.5; 10] });
    write_tensors(&work.path("specs/given.safetensors"), &given);
    let p = plan(&work, "--spec specs/s.yaml");
    let s = &p.settings;
    assert_eq!((s.batch, s.seed, s.partition.as_str()), (4, 9, "modules 3"));
    assert_eq!((s.reconcile.as_str(), s.distance.as_str()), ("exact", "squared"));
    assert_eq!(s.optimizer, "sgd nesterov lr=0.1 momentum=0.8 weight-decay=0.0001");
    assert_eq!(p.modules[0].head, "gap-linear");
    let role = |name: &str| p.parameters.iter().find(|d| d.name == name).map(|d| d.role);
    assert_eq!(role("conv1.weight"), Some(Role::Frozen));
    assert_eq!(role("fc.weight"), Some(Role::Weight));
    let mut lambdas: Vec<(&str, f64, u64)> = p
        .scalars
        .iter()
        .filter(|s| s.name.starts_with("lambda"))
        .map(|s| (s.name.as_str(), s.schedule.base, s.schedule.warmup))
        .collect();
    lambdas.sort_by_key(|l| l.0);
    assert_eq!(lambdas, [("lambda", 2.0, 10), ("lambda.2", 0.5, 10)]);
    assert_eq!(weights(&work)["fc.bias"].data, [0.5; 10], "paths in a spec are relative to it");
    let p = plan(
        &work,
        "--spec specs/s.yaml --batch 6 --modules 2 --head conv --reconcile off --optimizer sgd --lr 0.2 --momentum 0.7 --weight-decay 0 --seed 3",
    );
    let s = &p.settings;
    assert_eq!((s.batch, s.seed, s.partition.as_str(), s.reconcile.as_str()), (6, 3, "modules 2", "off"));
    assert_eq!(
        (p.modules[0].head.as_str(), s.optimizer.as_str()),
        ("conv", "sgd nesterov lr=0.2 momentum=0.7 weight-decay=0")
    );
    // Another distance brings its own lambda, not the spec's.
    let p = plan(&work, "--spec specs/s.yaml --distance cosine");
    assert_eq!(p.scalars.iter().find(|s| s.name == "lambda").map(|s| s.schedule.base), Some(0.3));
    // A model on the command line wins over the spec's.
    work.write("specs/short.yaml", "model: ../net.onnx\nbatch: 4\npartition: {modules: 3}\n");
    let p = plan(&work, "MODELS/mnist_deep8/model.onnx --spec specs/short.yaml");
    assert_eq!(p.modules.len(), 3);
    assert!(p.modules[2].last.contains("Gemm"), "{}", p.modules[2].last);
}

#[test]
fn a_plan_replaces_a_plan_and_nothing_else() {
    let work = Workspace::new();
    let first = cnn(&work, "--modules 2");
    assert_ne!(cnn(&work, "--modules 3"), first);
    std::fs::create_dir(work.path("empty")).expect("a folder");
    work.ok("partition MODELS/mnist_cnn/model.onnx --modules 2 -o empty");
    let before = cli::tree(&work.path(""));
    work.ok("partition MODELS/mnist_cnn/model.onnx --modules 2 -o empty");
    assert_eq!(cli::tree(&work.path("")), before, "a repetition changes nothing and leaves nothing beside it");
}
