//! Import of every model in the repository: what arrives in the IR, that two exporters' files of one network are the
//! same network, and that a model that cannot be imported says all that stands in the way.

mod common;

use std::collections::BTreeMap;

use slrc_compiler::ir::graph::VarKind;
use slrc_compiler::ir::verify::{Spec, verify};
use slrc_compiler::onnx::OnnxError;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::import::{ImportOptions, Imported, import};

fn imported(name: &str, file: &OnnxFile) -> Imported {
    let net = import(file, &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    verify(&net.graph, Spec::open("import")).unwrap_or_else(|e| panic!("{name}: {e}"));
    net
}

fn export(name: &str) -> Imported {
    imported(name, &common::export(name))
}

/// Trained numbers.
fn trained(net: &Imported) -> usize {
    net.graph.variables.iter().filter(|v| v.kind == VarKind::Weight).map(|v| v.ty.count()).sum()
}

/// How often each op occurs among what the roots need.
fn ops(net: &Imported) -> BTreeMap<String, usize> {
    let g = &net.graph;
    let needed = g.needed(g.roots.iter().map(|r| r.value));
    g.ids().filter(|id| needed[id.index()]).fold(BTreeMap::new(), |mut n, id| {
        *n.entry(g.node(id).op.rule().name().to_string()).or_insert(0) += 1;
        n
    })
}

#[test]
fn every_model_imports() {
    let small = common::SMALL.iter().map(|n| (n.to_string(), common::small(n)));
    let large = common::exports().into_iter().map(|n| (n.clone(), common::export(&n)));
    let mut out = String::new();
    for (name, file) in small.chain(large) {
        let net = imported(&name, &file);
        let ops = ops(&net);
        out.push_str(&format!(
            "{name}: {} ONNX nodes, {} IR nodes, {} variables, {} trained numbers, logits {}\n",
            net.nodes.len(),
            ops.values().sum::<usize>(),
            net.graph.variables.len(),
            trained(&net),
            net.graph.ty(net.logits),
        ));
        let list: Vec<String> = ops.iter().map(|(op, n)| format!("{n} {op}")).collect();
        out.push_str(&format!("    {}\n", list.join(", ")));
        net.notes.iter().for_each(|n| out.push_str(&format!("    note: {n}\n")));
    }
    insta::assert_snapshot!("every_model", out);
}

/// PyTorch's parameter count of each export, from the table in models/exports/README.md.
fn parameters_in_pytorch() -> BTreeMap<String, usize> {
    let readme = std::fs::read_to_string(common::models().join("exports/README.md")).expect("README");
    let rows = readme.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix(".onnx.gz`")?;
        Some((name.to_string(), cells.get(6)?.replace(',', "").parse().ok()?))
    });
    rows.collect()
}

/// Numbers an export has no tensor for although PyTorch trains them: the exporter drops a bias that is zero before
/// training.
const DROPPED_ZERO_BIAS: &[(&str, usize)] = &[
    ("vit_small_patch16_224.dynamo", 1000),
    ("vit_small_patch16_224_sdpa.dynamo", 1000),
    ("vit_small_patch16_224_sdpa_opset23.dynamo", 1000),
];

/// Files whose exporter folded BatchNorm into the convolutions: its scales and shifts are gone, and every convolution
/// has a bias instead.
fn is_folded(name: &str) -> bool {
    let norms = ["mnist_cnn", "mobilenet", "resnet", "vgg"].iter().any(|n| name.starts_with(n));
    norms && name.ends_with(".dynamo")
}

/// Merged and dropped tensors notwithstanding, what is trained is what PyTorch trains.
#[test]
fn what_is_trained_is_what_pytorch_trains() {
    let table = parameters_in_pytorch();
    assert_eq!(table.keys().cloned().collect::<Vec<_>>(), common::exports(), "the table lists every export");
    for (name, wanted) in table {
        let net = export(&name);
        let dropped = DROPPED_ZERO_BIAS.iter().find(|d| d.0 == name).map_or(0, |d| d.1);
        if is_folded(&name) {
            let convolutions: usize = net.nodes.iter().filter(|n| n.op == "Conv").count();
            assert!(trained(&net) < wanted, "{name}: {convolutions} folded convolutions");
        } else {
            assert_eq!(trained(&net) + dropped, wanted, "{name}");
        }
    }
}

#[test]
fn folded_files_say_so() {
    for name in common::exports() {
        let said = export(&name).notes.iter().any(|n| n.contains("no BatchNormalization") && n.contains("fold"));
        assert_eq!(said, is_folded(&name), "{name}");
    }
}

/// Kinds and types of the variables, as a set with repetition.
fn variables(net: &Imported) -> BTreeMap<String, usize> {
    net.graph.variables.iter().fold(BTreeMap::new(), |mut n, v| {
        // A linear layer's weight may arrive transposed.
        let mut shape = v.ty.shape.clone();
        if shape.len() == 2 {
            shape.sort_unstable();
        }
        *n.entry(format!("{} {shape:?}", v.kind.name())).or_insert(0) += 1;
        n
    })
}

/// The two exporters spell a network differently (Identity nodes, computed zero biases, shape arithmetic); in the IR
/// the same network is left.
#[test]
fn exporters_agree() {
    for network in ["mnist_cnn", "mobilenet_v2", "resnet18", "resnet18_cifar", "resnet50", "vgg11_bn", "vgg11_bn_cifar"]
    {
        let [a, b] = ["torchscript", "dynamo_raw"].map(|e| export(&format!("{network}.{e}")));
        assert_eq!(ops(&a), ops(&b), "{network}");
        assert_eq!(variables(&a), variables(&b), "{network}");
    }
    let [a, b] = ["torchscript", "dynamo"].map(|e| export(&format!("bert_tiny.{e}")));
    assert_eq!(ops(&a), ops(&b));
    assert_eq!(variables(&a), variables(&b));
    // Attention, spelled out in three ways and as one operator.
    let spelled = ["vit_small_patch16_224.torchscript", "vit_small_patch16_224_sdpa.torchscript"].map(export);
    assert_eq!(variables(&spelled[0]), variables(&spelled[1]));
    let heads = "vit_small_patch16_224";
    for other in ["_sdpa.dynamo", "_sdpa_opset23.dynamo"] {
        let [a, b] = [".dynamo", other].map(|e| export(&format!("{heads}{e}")));
        assert_eq!(variables(&a), variables(&b), "{other}");
        assert_eq!(ops(&a).get("matmul"), ops(&b).get("matmul"), "{other}");
    }
    // The file of the folder next door is the same network as the exports.
    let own = imported("mnist_cnn", &common::small("mnist_cnn"));
    assert_eq!(ops(&own), ops(&export("mnist_cnn.torchscript")));
}

/// Every node that stands in the way is named at once, with its operator, opset and reason; nodes that only depend on
/// one are not.
#[test]
fn everything_unsupported_is_listed_at_once() {
    let path = common::models().join("mnist_cnn/model.onnx");
    let relus: Vec<String> = imported("mnist_cnn", &common::small("mnist_cnn"))
        .nodes
        .iter()
        .filter(|n| n.op == "Relu")
        .map(|n| n.name.clone())
        .collect();
    let mut bytes = std::fs::read(path).expect("model");
    // A node's operator is field 4, a string: the tag, the length, the name.
    let at: Vec<usize> = (0..bytes.len() - 6).filter(|&i| bytes[i..].starts_with(b"\x22\x04Relu")).collect();
    assert_eq!(at.len(), relus.len());
    let (first, last) = (at[0], at[at.len() - 1]);
    bytes[first + 2..first + 6].copy_from_slice(b"Rely");
    bytes[last + 2..last + 6].copy_from_slice(b"ReLu");
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).expect("write");
    let file = OnnxFile::open(&path).expect("well formed");
    let error = import(&file, &ImportOptions::default()).expect_err("two nodes are not supported");
    let OnnxError::Nodes(listed) = &error else { panic!("{error}") };
    let places: Vec<(&str, &str, i64)> = listed.iter().map(|e| (e.node.as_str(), e.op.as_str(), e.opset)).collect();
    assert_eq!(places, [(relus[0].as_str(), "Rely", 17), (relus[relus.len() - 1].as_str(), "ReLu", 17)]);
    let text = error.to_string();
    assert!(text.starts_with("2 nodes cannot be imported"), "{text}");
    assert!(listed.iter().all(|e| text.contains(&e.to_string())), "{text}");
}
