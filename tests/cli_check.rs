//! `slrc check`: the page of every model in the repository, and of models made to have one thing each.

#[path = "support/cli.rs"]
mod cli;
#[path = "support/made.rs"]
mod made;

use std::io::Read as _;

use cli::Workspace;
use made::Made;
use onnx_protobuf::{Message as _, ModelProto, TensorProto};
use serde_json::Value;

const SMALL: &[&str] = &["mnist_cnn", "mnist_deep8", "mnist_mlp", "mnist_vit", "tokens_bert"];

/// Exports with pages of their own; the others are in the table.
const PAGES: &[&str] = &[
    "bert_tiny.dynamo",
    "mobilenet_v2.dynamo",
    "resnet18.dynamo",
    "resnet18.dynamo_raw",
    "resnet18.torchscript",
    "vgg11_bn.torchscript_train",
    "vit_small_patch16_224.torchscript",
    "vit_small_patch16_224_sdpa_opset23.dynamo",
];

fn exports() -> Vec<String> {
    let entries = std::fs::read_dir(cli::models().join("exports")).expect("models/exports");
    let names = entries.filter_map(|e| e.expect("entry").file_name().into_string().ok());
    let mut names: Vec<String> = names.filter_map(|n| n.strip_suffix(".onnx.gz").map(String::from)).collect();
    names.sort();
    names
}

fn unpack(work: &Workspace, name: &str) {
    let path = cli::models().join(format!("exports/{name}.onnx.gz"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).expect(name)).read_to_end(&mut bytes).expect(name);
    work.write(&format!("{name}.onnx"), bytes);
}

#[test]
fn pages() {
    let work = Workspace::new();
    for name in SMALL {
        insta::assert_snapshot!(format!("page_{name}"), work.ok(&format!("check MODELS/{name}/model.onnx")).stdout);
    }
    for name in PAGES {
        unpack(&work, name);
        insta::assert_snapshot!(format!("page_{name}"), work.ok(&format!("check {name}.onnx")).stdout);
    }
}

fn findings(report: &Value) -> Vec<(String, u64)> {
    let all = report["findings"].as_array().expect("findings");
    all.iter().map(|f| (f["kind"].as_str().expect("kind").into(), f["count"].as_u64().expect("count"))).collect()
}

fn finding<'a>(report: &'a Value, kind: &str) -> Option<&'a Value> {
    report["findings"].as_array().expect("findings").iter().find(|f| f["kind"] == kind)
}

#[test]
fn every_export_has_its_findings() {
    let work = Workspace::new();
    let mut out = String::new();
    for name in exports() {
        unpack(&work, &name);
        let report = work.json(&format!("check {name}.onnx --json"));
        let kinds: Vec<String> = findings(&report).iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        out.push_str(&format!("{name}: {}\n", kinds.join(", ")));
        // How these files were made is known: models/exports/README.md.
        let cnn = ["mnist_cnn", "mobilenet", "resnet", "vgg"].iter().any(|n| name.starts_with(n));
        let convolutions = if cnn && name.ends_with(".dynamo") { report_convolutions(&work, &name) } else { 0 };
        let found = finding(&report, "folded-batch-norm").map_or(0, |f| f["count"].as_u64().expect("count"));
        assert_eq!(found, convolutions, "{name}");
    }
    insta::assert_snapshot!("every_export", out);
}

/// Convolutions in a file: in the networks here a BatchNorm followed every one.
fn report_convolutions(work: &Workspace, name: &str) -> u64 {
    use onnx_protobuf::Message as _;
    let bytes = std::fs::read(work.path(&format!("{name}.onnx"))).expect("model");
    let model = onnx_protobuf::ModelProto::parse_from_bytes(&bytes).expect("a model");
    model.graph.node.iter().filter(|n| n.op_type == "Conv").count() as u64
}

#[test]
fn a_model_that_cannot_be_imported_has_its_whole_page() {
    let work = Workspace::new();
    let made = Made::new(&[0, 8], &[0, 4])
        .domain("com.example")
        .node("Gemm", "x w1 b1", "a")
        .node("com.example.Gelu", "a", "g")
        .node("Greater", "a zero", "flag")
        .node("Cast", "flag", "gate")
        .int("to", 1)
        .node("Gemm", "g w2 b2", "h")
        .node("Mul", "h gate", "m")
        .node("com.example.Gelu", "m", "k")
        .node("Frobnicate", "k", "f")
        // Of a kind that is not imported: its batch statistics are used.
        .node("BatchNormalization", "x bs bb bm bv", "normal new_mean new_var")
        .node("Cast", "new_mean", "kept")
        .int("to", 1)
        .node("Gemm", "kept w4", "p")
        .node("Gemm", "f w3 b3", "q")
        .node("Add", "p q", "y")
        // What the output does not need does not count.
        .node("NotAnOperator", "x", "unused")
        .weight("w1", &[8, 16])
        .weight("b1", &[16])
        .weight("w2", &[16, 16])
        .weight("b2", &[16])
        .weight("w3", &[16, 4])
        .weight("b3", &[4])
        .weight("w4", &[8, 4])
        .weight("bs", &[8])
        .weight("bb", &[8])
        .weight("bm", &[8])
        .weight("bv", &[8])
        .constant("zero", &[], 0.0);
    work.write("made.onnx", made.bytes());
    let ran = work.slrc("check made.onnx");
    assert_eq!(ran.code, Some(3));
    insta::assert_snapshot!("missing", format!("{}-- stderr\n{}", ran.stdout, ran.stderr));
    let ran = work.slrc("check made.onnx --json");
    assert_eq!(ran.code, Some(3), "with --json too");
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    insta::assert_snapshot!("missing_json", ran.stdout);
    assert_eq!(report["trainable"], false);
    let counts: Vec<(&str, u64)> = report["missing"]
        .as_array()
        .expect("missing")
        .iter()
        .map(|m| (m["op"].as_str().expect("op"), m["count"].as_u64().expect("count")))
        .collect();
    assert_eq!(counts, [("com.example.Gelu", 2), ("Frobnicate", 1)]);
}

#[test]
fn files_and_shapes_that_stop_it() {
    let work = Workspace::new();
    let mut t = cli::Transcript::new(&work);
    work.write("text.onnx", "The quick brown fox jumps over the lazy dog.\n".repeat(20));
    t.fails("no model", "check text.onnx", 3, &["not a valid ONNX model"]);
    t.fails("no file", "check none.onnx", 3, &["cannot read"]);
    t.fails("nothing named", "check", 2, &["name a model"]);
    insta::assert_snapshot!("stopped", t.finish());
    // A page, and why not.
    let open = Made::new(&[0, -1], &[0, 4]).node("Gemm", "x w", "y").weight("w", &[8, 4]);
    work.write("open.onnx", open.bytes());
    let ran = work.slrc("check open.onnx");
    assert_eq!(ran.code, Some(3));
    assert!(ran.stdout.contains("open.onnx cannot be trained as it is"), "{}", ran.stdout);
    assert!(ran.stdout.contains("pass the unknown extents with --shape x=Nx?"), "{}", ran.stdout);
    assert!(work.ok("check open.onnx --shape x=Nx8").stdout.contains("open.onnx can be trained"));
    let one = Made::new(&[0, 8], &[0, 1]).node("Gemm", "x w", "y").weight("w", &[8, 1]);
    work.write("regression.onnx", one.bytes());
    let ran = work.slrc("check regression.onnx");
    assert_eq!(ran.code, Some(3));
    assert!(ran.stdout.contains("slrc trains classifiers"), "{}", ran.stdout);
}

/// Weights behind a comparison alone are found by the file's form; a plan bears it out: they are not moved.
#[test]
fn where_gradients_end() {
    let work = Workspace::new();
    let made = Made::new(&[0, 8], &[0, 4])
        .node("Gemm", "x w1", "a")
        .node("Greater", "a zero", "flag")
        .node("Cast", "flag", "gate")
        .int("to", 1)
        .node("Gemm", "gate w2 b2", "y")
        .weight("w1", &[8, 16])
        .weight("w2", &[16, 4])
        .weight("b2", &[4])
        .constant("zero", &[], 0.0);
    work.write("gate.onnx", made.bytes());
    let report = work.json("check gate.onnx --json");
    let f = finding(&report, "gradient-ends-discrete").expect("an end");
    assert_eq!(f["names"], serde_json::json!(["n_flag (Greater)"]));
    assert!(f["says"].as_str().expect("text").contains("1 weight reaches the output in no other way: \"w1\""), "{f}");
    let x = cli::Array::new("x", &[8, 8], cli::Values::F32((0..64).map(|i| (i as f32 * 0.7).sin()).collect()));
    let y = cli::Array::new("y", &[8], cli::Values::I64((0..8).map(|i| i % 4).collect()));
    work.write("d.npz", cli::npz(&[x, y]));
    work.ok("partition gate.onnx --modules 1 --batch 8 -o plan");
    work.ok("train plan --data d.npz --steps 3 -o run");
    let (before, after) = (cli::tensors(&work.path("plan/weights.safetensors")), cli::parameters(&work.path("run")));
    assert_eq!(before["w1"], after["w1"], "no gradient reaches it");
    assert_ne!(before["w2"], after["w2"]);
}

/// Three convolutions with activations and a classifier.
fn plain_cnn(norm: &str) -> Made {
    let made = Made::new(&[0, 3, 8, 8], &[0, 4])
        .node("Conv", "x c1 b1", "a1")
        .node("Relu", "a1", "r1")
        .node("Conv", "r1 c2 b2", "a2")
        .node("Relu", "a2", "r2")
        .node("Conv", "r2 c3 b3", "a3")
        .node("Relu", "a3", "r3");
    let made = match norm {
        "" => made.node("Identity", "r3", "n3"),
        op => made.node(op, "r3 s t", "n3").weight("s", &[4]).weight("t", &[4]),
    };
    made.node("GlobalAveragePool", "n3", "p")
        .node("Conv", "p g1 h1", "squeezed")
        .node("Relu", "squeezed", "sr")
        .node("Conv", "sr g2 h2", "excited")
        .node("Sigmoid", "excited", "gate")
        .node("Mul", "r3 gate", "m")
        .node("GlobalAveragePool", "m", "q")
        .node("Flatten", "q", "flat")
        .node("Gemm", "flat w", "y")
        .weight("c1", &[4, 3, 3, 3])
        .weight("b1", &[4])
        .weight("c2", &[4, 4, 3, 3])
        .weight("b2", &[4])
        .weight("c3", &[4, 4, 3, 3])
        .weight("b3", &[4])
        .weight("g1", &[2, 4, 1, 1])
        .weight("h1", &[2])
        .weight("g2", &[4, 2, 1, 1])
        .weight("h2", &[4])
        .weight("w", &[4, 4])
}

#[test]
fn a_network_without_batch_norm_is_not_said_to_have_had_it() {
    let work = Workspace::new();
    work.write("plain.onnx", plain_cnn("").bytes());
    let report = work.json("check plain.onnx --json");
    let f = finding(&report, "folded-batch-norm").expect("a finding");
    // The convolutions that gate channels have biases of their own.
    assert_eq!(f["count"], 3, "{f}");
    assert!(f["says"].as_str().expect("text").contains("nothing in the file tells which this is"), "{f}");
    // Another normalisation is what such a network has instead.
    work.write("normed.onnx", plain_cnn("InstanceNormalization").bytes());
    assert!(finding(&work.json("check normed.onnx --json"), "folded-batch-norm").is_none());
}

/// Each way an exporter names what it folds; two convolutions are too few to be judged by form.
#[test]
fn names_that_folding_gives() {
    let work = Workspace::new();
    for (weight, bias, result, found) in [
        ("onnx::Conv_7", "onnx::Conv_8", "a", true),
        ("c.weight", "c.weight_bias", "a", true),
        ("c.weight", "c.bias", "getitem_3", true),
        ("c.weight", "c.bias", "getitem", true),
        ("c.weight", "c.bias", "a", false),
        ("onnx::Conv", "c.bias", "getitems", false),
    ] {
        let made = Made::new(&[0, 3, 8, 8], &[0, 4])
            .node("Conv", &format!("x {weight} {bias}"), result)
            .node("Relu", result, "r")
            .node("Conv", "r d e", "b")
            .node("GlobalAveragePool", "b", "p")
            .node("Flatten", "p", "y")
            .weight(weight, &[4, 3, 3, 3])
            .weight(bias, &[4])
            .weight("d", &[4, 4, 3, 3])
            .weight("e", &[4]);
        work.write("m.onnx", made.bytes());
        let report = work.json("check m.onnx --json");
        let names = finding(&report, "folded-batch-norm").map(|f| f["names"].clone());
        assert_eq!(names, found.then(|| serde_json::json!([format!("n_{result}")])), "{weight} {bias} {result}");
    }
}

#[test]
fn shared_weights_are_told_from_merged_ones() {
    let work = Workspace::new();
    let made = Made::new(&[0, 6], &[0, 6, 12])
        .of_indices(&[0, 6])
        .node("Gather", "table x", "e")
        .node("MatMul", "e w", "h1")
        .node("Add", "h1 zeros", "i1")
        .node("MatMul", "i1 w", "h2")
        .node("Add", "h2 zeros", "i2")
        .node("Transpose", "table", "turned")
        .node("MatMul", "i2 turned", "y")
        .weight("table", &[12, 8])
        .weight("w", &[8, 8])
        .constant("zeros", &[8], 0.0);
    work.write("tied.onnx", made.bytes());
    let report = work.json("check tied.onnx --json");
    let names = |kind: &str| -> Vec<String> {
        let shared = finding(&report, kind).expect(kind)["shared"].as_array().expect("shared").clone();
        shared.iter().map(|s| s["name"].as_str().expect("name").to_string()).collect()
    };
    assert_eq!(names("merged-initializers"), ["zeros"]);
    assert_eq!(names("shared-weights"), ["table", "w"]);
    let f = finding(&report, "shared-weights").expect("a finding");
    assert!(f["says"].as_str().expect("text").contains("an embedding that is the matrix of a product too"), "{f}");
    assert_eq!(f["option"], "--tie table,w keeps one weight of each");
    assert_eq!(f["shared"][0]["nodes"], serde_json::json!(["n_e", "n_turned"]));
}

/// Quantized networks can be computed, and not trained: they are refused, however they are written.
#[test]
fn quantized_networks_are_refused() {
    let work = Workspace::new();
    let made = || Made::new(&[0, 6], &[0, 4]).constant("s", &[], 0.1).weight("v", &[8, 4]);
    let rounded = made()
        .node("MatMul", "x w", "h")
        .node("QuantizeLinear", "h s", "q")
        .node("DequantizeLinear", "q s", "d")
        .node("MatMul", "d v", "y")
        .weight("w", &[6, 8]);
    let dynamic = made()
        .node("MatMul", "x w", "h")
        .node("DynamicQuantizeLinear", "h", "q scale zero")
        .node("DequantizeLinear", "q scale zero", "d")
        .node("MatMul", "d v", "y")
        .weight("w", &[6, 8]);
    let whole =
        made().node("DequantizeLinear", "w s", "f").node("MatMul", "x f", "h").node("MatMul", "h v", "y").bytes();
    let mut whole = ModelProto::parse_from_bytes(&whole).expect("a model");
    whole.graph.mut_or_insert_default().initializer.push(TensorProto {
        name: "w".into(),
        dims: vec![6, 8],
        data_type: 3,
        raw_data: (0..48).collect(),
        ..Default::default()
    });
    let whole = whole.write_to_bytes().expect("bytes");
    for (bytes, first) in [
        (rounded.bytes(), "\"n_q\" (QuantizeLinear) and 1 more"),
        (dynamic.bytes(), "\"n_q\" (DynamicQuantizeLinear) and 1 more"),
        (whole, "\"n_f\" (DequantizeLinear):"),
    ] {
        work.write("m.onnx", bytes);
        work.fails("partition m.onnx -o plan", 3, &["the network is quantized, by", first]);
        let ran = work.slrc("check m.onnx");
        assert_eq!(ran.code, Some(3), "{}", ran.stderr);
        assert!(ran.stdout.contains("the network is quantized"), "{}", ran.stdout);
    }
    // Bytes of an image that are made floats are none of the network's.
    let image =
        made().node("QuantizeLinear", "x s", "q").node("DequantizeLinear", "q s", "d").node("MatMul", "d w", "h");
    work.write("m.onnx", image.node("MatMul", "h v", "y").weight("w", &[6, 8]).bytes());
    work.ok("check m.onnx");
}
