//! `slrc export`: the user's own graph with trained weights, which computes what `slrc eval` computes.

#[path = "support/cli.rs"]
mod cli;
#[path = "support/made.rs"]
mod made;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cli::{Array, Values, Workspace, npz, parameters, samples};
use made::Made;
use onnx_protobuf::{AttributeProto, Message as _, ModelProto, TensorProto, attribute_proto::AttributeType};
use slrc_runtime::data::npz::read_npz;

const MODELS: &[(&str, usize)] = &[("mnist_cnn", 3), ("mnist_vit", 3), ("mnist_mlp", 2), ("tokens_bert", 3)];

fn read(path: &Path) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(path).expect("model")).expect("a model")
}

/// Float initializers by name.
fn floats(m: &ModelProto) -> BTreeMap<String, Vec<f32>> {
    let of = m.graph.initializer.iter().filter(|t| t.data_type == 1);
    of.map(|t| {
        let raw = t.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        (t.name.clone(), if t.raw_data.is_empty() { t.float_data.clone() } else { raw })
    })
    .collect()
}

/// What of a graph a user of the file relies on.
fn interface(m: &ModelProto) -> String {
    let initializers: BTreeSet<&str> = m.graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let mut out = format!("ir {} {:?}\n", m.ir_version, m.opset_import);
    for v in m.graph.input.iter().filter(|i| !initializers.contains(i.name.as_str())).chain(&m.graph.output) {
        out.push_str(&format!("{v:?}\n"));
    }
    for n in &m.graph.node {
        out.push_str(&format!("{} {} {:?} {:?} {:?}\n", n.name, n.op_type, n.input, n.output, n.attribute));
    }
    out
}

/// Whether a tensor is a local head's; a model may well call its own classifier `head`.
fn of_a_head(name: &str) -> bool {
    name.strip_prefix("head.").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn logits(work: &Workspace, name: &str) -> Vec<f64> {
    read_npz(&work.path(name)).expect("logits").remove(0).1.to_f64()
}

#[test]
fn an_export_is_the_models_graph_with_trained_weights() {
    for &(name, k) in MODELS {
        let work = Workspace::new();
        work.ok(&format!("partition MODELS/{name}/model.onnx --modules {k} --batch 8 -o plan"));
        work.write("train.npz", npz(&samples(name, 40, 1)));
        work.write("test.npz", npz(&samples(name, 21, 2)));
        work.ok("train plan --data train.npz --steps 12 -o run");
        work.ok("export run -o out.onnx");
        let (source, out) = (read(&cli::model(name)), read(&work.path("out.onnx")));
        assert_eq!(interface(&out), interface(&source), "{name}: nodes, inputs and outputs are the source's");
        assert!(out.metadata_props.iter().all(|p| !p.key.starts_with("slrc")), "{name}: nothing of slrc's stays in it");
        let (before, after, trained) = (floats(&source), floats(&out), parameters(&work.path("run")));
        let names = |m: &BTreeMap<String, Vec<f32>>| m.keys().cloned().collect::<Vec<String>>();
        assert_eq!(names(&after), names(&before), "{name}");
        let mut unmoved = Vec::new();
        for (n, values) in &after {
            match trained.get(n) {
                Some(t) => {
                    assert_eq!(values, &t.data, "{name}: \"{n}\" is the checkpoint's");
                    unmoved.extend((values == &before[n]).then_some(n));
                }
                // Numbers that are no weights: scales, masks.
                None => assert_eq!(values, &before[n], "{name}: \"{n}\" is the source's"),
            }
        }
        assert!(trained.keys().any(|n| of_a_head(n)), "{name}: heads are trained but not exported");
        let missing: Vec<&String> = trained.keys().filter(|n| !of_a_head(n) && !after.contains_key(*n)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?} are trained but not exported");
        // A key's bias does not reach the softmax: its gradient is zero but for rounding.
        unmoved.retain(|n| !n.ends_with(".key.bias"));
        assert!(unmoved.is_empty(), "{name}: {unmoved:?} have not been trained");
        // Imported again, cut elsewhere, and not trained, it gives the same logits.
        work.ok("eval run --data test.npz --save-logits a.npz");
        work.ok("partition out.onnx --modules 1 --batch 8 -o again");
        work.ok("train again --data test.npz --steps 0 -o idle");
        work.ok("eval idle --data test.npz --save-logits b.npz");
        let (a, b) = (logits(&work, "a.npz"), logits(&work, "b.npz"));
        assert!(a.iter().chain(&b).all(|x| x.is_finite()), "{name}: logits that are no numbers");
        let largest = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let error = a.iter().zip(&b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs())) / largest;
        // Modules are compiled apart, so f32 sums may be taken in another order: a few roundings of 6e-8.
        assert!(error < 1e-5, "{name}: {error:e}");
        // An export of the export is the export.
        work.ok("export idle -o again.onnx");
        cli::same_file(&work.path("out.onnx"), &work.path("again.onnx"));
    }
}

#[test]
fn large_constants_of_nodes_come_back() {
    // More than what stays in a decoded message: such data is left in the file until it is asked for.
    let side = 32i64;
    let data: Vec<u8> = (0..side * side).flat_map(|i| ((i % 7) as f32 / 16.0).to_le_bytes()).collect();
    let t = TensorProto { dims: vec![side, side], data_type: 1, raw_data: data.clone(), ..Default::default() };
    let mut m = Made::new(&[0, side], &[0, 3]).weight("w", &[side, side]).weight("v", &[side, 3]);
    m = m.node("Constant", "", "big");
    m.graph.node[0].attribute.push(AttributeProto {
        name: "value".into(),
        type_: AttributeType::TENSOR.into(),
        t: Some(t).into(),
        ..Default::default()
    });
    m = m.node("MatMul", "x w", "h").node("MatMul", "h big", "k").node("MatMul", "k v", "y");
    let work = Workspace::new();
    work.write("m.onnx", m.bytes());
    let x = Array::new("x", &[4, 32], Values::F32((0..128).map(|i| (i as f32).sin()).collect()));
    work.write("d.npz", npz(&[x, Array::new("y", &[4], Values::I64(vec![0, 1, 2, 0]))]));
    work.ok("partition m.onnx --modules 1 --batch 4 -o plan");
    work.ok("train plan --data d.npz --steps 2 -o run");
    work.ok("export run -o out.onnx");
    let out = read(&work.path("out.onnx"));
    let constant = out.graph.node.iter().find(|n| n.op_type == "Constant").expect("a constant");
    assert_eq!(constant.attribute[0].t.raw_data, data);
    assert!(constant.attribute[0].t.external_data.is_empty());
    work.ok("eval run --data d.npz --save-logits a.npz");
    work.ok("partition out.onnx --modules 1 --batch 4 -o again");
    work.ok("train again --data d.npz --steps 0 -o idle");
    work.ok("eval idle --data d.npz --save-logits b.npz");
    assert_eq!(logits(&work, "a.npz"), logits(&work, "b.npz"));
}

#[test]
fn merged_initializers_get_their_own_weights() {
    let work = Workspace::new();
    // As exporters write a freshly initialised network: one initializer for every LayerNorm weight that is all ones.
    let mut m = read(&cli::model("mnist_vit"));
    let graph = m.graph.mut_or_insert_default();
    let scale = |n: &onnx_protobuf::NodeProto| (n.op_type == "LayerNormalization").then(|| n.input[1].clone());
    let scales: Vec<String> = graph.node.iter().filter_map(scale).collect();
    assert!(scales.len() >= 3);
    graph.node.iter_mut().filter(|n| n.op_type == "LayerNormalization").for_each(|n| n.input[1] = scales[0].clone());
    graph.initializer.retain(|t| !scales[1..].contains(&t.name));
    work.write("merged.onnx", m.write_to_bytes().expect("serialize"));
    work.write("train.npz", npz(&samples("mnist_vit", 24, 1)));
    work.ok("partition merged.onnx --modules 2 --batch 8 -o plan");
    work.ok("train plan --data train.npz --steps 4 -o run");
    work.ok("export run -o out.onnx");
    let (trained, out) = (parameters(&work.path("run")), read(&work.path("out.onnx")));
    let used: BTreeSet<String> = out.graph.node.iter().filter_map(scale).collect();
    assert_eq!(used.len(), scales.len(), "every use has an initializer of its own");
    let values = floats(&out);
    for n in &used {
        assert_eq!(values[n], trained[n].data, "\"{n}\"");
    }
    let distinct: BTreeSet<Vec<u32>> = used.iter().map(|n| values[n].iter().map(|x| x.to_bits()).collect()).collect();
    assert_eq!(distinct.len(), scales.len(), "each was trained by itself");
    assert_eq!(out.graph.node.len(), m.graph.node.len());
    // Tied on request, they stay one.
    work.write("s.yaml", format!("model: merged.onnx\nbatch: 8\npartition: {{modules: 1}}\ntie: ['{}']\n", scales[0]));
    work.ok("train s.yaml --data train.npz --steps 4 -o tied");
    work.ok("export tied -o tied.onnx");
    let tied = read(&work.path("tied.onnx"));
    let used: BTreeSet<String> = tied.graph.node.iter().filter_map(scale).collect();
    assert_eq!(used.into_iter().collect::<Vec<String>>(), [scales[0].clone()]);
}

/// A word for each of six, by an embedding that is the output layer too and a layer that is used twice.
fn shares_weights() -> Made {
    Made::new(&[0, 6], &[0, 6, 12])
        .of_indices(&[0, 6])
        .node("Gather", "table x", "e")
        .node("MatMul", "e w", "h1")
        .node("Tanh", "h1", "t1")
        .node("MatMul", "t1 w", "h2")
        .node("Tanh", "h2", "t2")
        .node("Transpose", "table", "turned")
        .node("MatMul", "t2 turned", "y")
        .weight("table", &[12, 8])
        .weight("w", &[8, 8])
}

#[test]
fn tied_weights_take_the_sum_of_their_uses_steps() {
    let work = Workspace::new();
    work.write("m.onnx", shares_weights().bytes());
    let words: Vec<i64> = (0..8 * 6).map(|i| (i * i + 5 * i) % 12).collect();
    let next = words.iter().map(|w| (w * 5 + 1) % 12).collect();
    work.write(
        "train.npz",
        npz(&[Array::new("x", &[8, 6], Values::I64(words)), Array::new("y", &[8, 6], Values::I64(next))]),
    );
    let before = floats(&read(&work.path("m.onnx")));
    // One step without momentum moves a weight by its gradient.
    let step = "--modules 1 --batch 8 --optimizer sgd --momentum 0 --lr 0.5";
    for (name, ties) in [("tied", "--tie table,w"), ("apart", "")] {
        work.ok(&format!("partition m.onnx {step} {ties} -o {name}.plan"));
        work.ok(&format!("train {name}.plan --data train.npz --steps 1 --no-shuffle -o {name}"));
    }
    let (tied, apart) = (parameters(&work.path("tied")), parameters(&work.path("apart")));
    assert_eq!(tied.keys().collect::<Vec<_>>(), ["table", "w"], "one weight of all uses");
    assert_eq!(apart.len(), 4, "a weight for each use");
    for (name, t) in &tied {
        let uses: Vec<_> = apart.iter().filter(|(n, _)| *n == name || n.starts_with(&format!("{name}@"))).collect();
        assert_eq!(uses.len(), 2, "{name}");
        let moved = |data: &[f32]| -> Vec<f64> {
            data.iter().zip(&before[name]).map(|(x, old)| f64::from(*x) - f64::from(*old)).collect()
        };
        let (ours, one, other) = (moved(&t.data), moved(&uses[0].1.data), moved(&uses[1].1.data));
        let sum: Vec<f64> = one.iter().zip(&other).map(|(a, b)| a + b).collect();
        let largest = |v: &[f64]| v.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let error: Vec<f64> = ours.iter().zip(&sum).map(|(a, b)| a - b).collect();
        // A weight near 1 is stored to 6e-8, three of them are compared, and steps are some hundredths.
        assert!(largest(&error) < 4e-7, "{name}: {:e} of {:e}", largest(&error), largest(&sum));
        assert!(largest(&one).min(largest(&other)) > 1e-3, "{name}: every use has a gradient");
    }
    // It learns, and the file that comes back still shares.
    work.ok("train tied.plan --data train.npz --steps 20 --log-every 1 -o run");
    let lines = std::fs::read_to_string(work.path("run/metrics.jsonl")).expect("metrics");
    let losses: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).expect("a line")).collect();
    let loss = |i: usize| losses[i]["modules"][0]["loss"].as_f64().expect("a loss");
    assert!(loss(19) < loss(0), "{} to {}", loss(0), loss(19));
    work.ok("export run -o out.onnx");
    let out = read(&work.path("out.onnx"));
    assert_eq!(interface(&out), interface(&read(&work.path("m.onnx"))), "nodes read what they read");
    let trained = parameters(&work.path("run"));
    for (name, data) in floats(&out) {
        assert_eq!(data, trained[&name].data, "{name}");
    }
    // No cut separates what is shared.
    work.fails("partition m.onnx --modules 2 --batch 8 --tie table,w -o cut", 3, &["cut"]);
}

#[test]
fn batch_norm_in_training_mode_becomes_inference() {
    let work = Workspace::new();
    // As an exporter's TRAINING mode writes it: training_mode 1, and outputs for the running statistics.
    let mut m = read(&cli::model("mnist_cnn"));
    for n in m.graph.mut_or_insert_default().node.iter_mut().filter(|n| n.op_type == "BatchNormalization") {
        for a in n.attribute.iter_mut().filter(|a| a.name == "training_mode") {
            a.i = 1;
        }
        let y = n.output[0].clone();
        n.output.push(format!("{y}.mean"));
        n.output.push(format!("{y}.var"));
    }
    work.write("training.onnx", m.write_to_bytes().expect("serialize"));
    work.write("train.npz", npz(&samples("mnist_cnn", 24, 1)));
    work.ok("partition training.onnx --modules 3 --batch 8 -o plan");
    work.ok("train plan --data train.npz --steps 4 -o run");
    work.ok("export run -o out.onnx");
    work.ok("partition MODELS/mnist_cnn/model.onnx --modules 3 --batch 8 -o usual");
    work.ok("train usual --data train.npz --steps 4 -o usual_run");
    work.ok("export usual_run -o usual.onnx");
    let (out, usual) = (read(&work.path("out.onnx")), read(&work.path("usual.onnx")));
    assert_eq!(floats(&out), floats(&usual), "both modes train alike");
    assert_eq!(interface(&out), interface(&usual), "and are exported alike");
}
