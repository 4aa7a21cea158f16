//! Models and specs that cannot be compiled: what is said of each, and that nothing is written.

#[path = "support/cli.rs"]
mod cli;

use cli::{Tensor, Transcript, Workspace, model, write_tensors, zip_of};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{Message as _, ModelProto, StringStringEntryProto};

fn proto(name: &str) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(model(name)).expect("model")).expect("a model")
}

fn save(work: &Workspace, name: &str, model: &ModelProto) {
    work.write(name, model.write_to_bytes().expect("serialize"));
}

#[test]
fn files_that_are_no_models() {
    let work = Workspace::new();
    let whole = std::fs::read(model("mnist_mlp")).expect("model");
    work.write("empty.onnx", b"");
    work.write("cut.onnx", &whole[..whole.len() / 2]);
    work.write(
        "picture.onnx",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00",
    );
    work.write("archive.onnx", zip_of(&[("model.onnx".into(), whole.clone())]));
    work.write("text.onnx", "The quick brown fox jumps over the lazy dog.\n".repeat(20));
    let mut no_graph = proto("mnist_mlp");
    no_graph.graph.clear();
    save(&work, "no_graph.onnx", &no_graph);
    let mut no_opset = proto("mnist_mlp");
    no_opset.opset_import.clear();
    save(&work, "no_opset.onnx", &no_opset);
    let mut no_output = proto("mnist_mlp");
    no_output.graph.mut_or_insert_default().output.clear();
    save(&work, "no_output.onnx", &no_output);
    let mut no_nodes = proto("mnist_mlp");
    no_nodes.graph.mut_or_insert_default().node.clear();
    save(&work, "no_nodes.onnx", &no_nodes);
    std::fs::create_dir(work.path("folder.onnx")).expect("a folder");
    let mut t = Transcript::new(&work);
    let malformed = "is not a valid ONNX model";
    t.fails("missing", "partition nowhere.onnx -o plan", 3, &["cannot read nowhere.onnx"]);
    t.fails("a folder", "partition folder.onnx -o plan", 3, &["folder.onnx", "it is a folder"]);
    t.fails("empty", "partition empty.onnx -o plan", 3, &["empty.onnx", malformed]);
    t.fails("cut in half", "partition cut.onnx -o plan", 3, &["cut.onnx", malformed, "truncated"]);
    t.fails("a picture", "partition picture.onnx -o plan", 3, &["picture.onnx", malformed]);
    t.fails("an archive", "partition archive.onnx -o plan", 3, &["archive.onnx", malformed]);
    t.fails("a text", "partition text.onnx -o plan", 3, &["text.onnx", malformed]);
    t.fails("without a graph", "partition no_graph.onnx -o plan", 3, &["no_graph.onnx", malformed, "graph"]);
    t.fails("without an opset", "partition no_opset.onnx -o plan", 3, &["opset"]);
    t.fails("without outputs", "partition no_output.onnx -o plan", 3, &["no outputs"]);
    t.fails("without nodes", "partition no_nodes.onnx -o plan", 3, &["logits"]);
    insta::assert_snapshot!("no_models", t.finish());
}

/// Compiles in memory; a panic fails the test.
fn compile(work: &Workspace, bytes: &[u8]) -> Result<(), String> {
    let path = work.write("model.onnx", bytes);
    let file = slrc_compiler::onnx::file::OnnxFile::open(&path).map_err(|e| e.to_string())?;
    let spec = slrc_plan::yaml::from_str("{batch: 4, partition: {modules: 2}}").map_err(|e| e.to_string())?;
    let compiled = slrc_compiler::pipeline::compile(&file, &spec, &mut |_, _| {}).map_err(|e| e.to_string())?;
    slrc_compiler::weights::initial_weights(&compiled, &file, &[]).map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn truncated_anywhere() {
    let work = Workspace::new();
    let whole = std::fs::read(model("mnist_mlp")).expect("model");
    assert_eq!(compile(&work, &whole), Ok(()), "the whole file compiles");
    let early = 0..600;
    let spread = (0..200).map(|i| i * whole.len() / 200);
    let late = whole.len() - 600..whole.len();
    for length in early.chain(spread).chain(late) {
        let e = compile(&work, &whole[..length]);
        assert!(e.is_err(), "the first {length} of {} bytes compile", whole.len());
    }
}

#[test]
fn nodes_that_cannot_be_imported() {
    let work = Workspace::new();
    let mut m = proto("mnist_mlp");
    let nodes = &mut m.graph.mut_or_insert_default().node;
    let relu: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].op_type == "Relu").collect();
    nodes[relu[0]].op_type = "Frobnicate".into();
    nodes[relu[1]].op_type = "FastGelu".into();
    nodes[relu[1]].domain = "com.acme".into();
    save(&work, "two.onnx", &m);
    let mut m = proto("mnist_cnn");
    let conv = m.graph.mut_or_insert_default().node.iter_mut().find(|n| n.name == "/layer1/layer1.0/conv2/Conv");
    let group = conv.expect("a node").attribute.iter_mut().find(|a| a.name == "group").expect("group");
    group.i = 3;
    save(&work, "group.onnx", &m);
    let mut m = proto("mnist_cnn");
    let nodes = &mut m.graph.mut_or_insert_default().node;
    let last = nodes.len() - 1;
    nodes.swap(0, last);
    save(&work, "order.onnx", &m);
    let mut m = proto("mnist_mlp");
    let graph = m.graph.mut_or_insert_default();
    graph.node.iter_mut().filter(|n| n.op_type == "Gemm").for_each(|n| n.input.truncate(1));
    save(&work, "inputs.onnx", &m);
    let mut m = proto("mnist_mlp");
    let graph = m.graph.mut_or_insert_default();
    graph.initializer.iter_mut().find(|t| t.name == "fc2.weight").expect("fc2.weight").dims = vec![64, 127];
    save(&work, "dims.onnx", &m);
    let mut m = proto("mnist_mlp");
    m.graph.mut_or_insert_default().initializer.retain(|t| t.name != "fc2.weight");
    save(&work, "lost.onnx", &m);
    let mut m = proto("mnist_mlp");
    let graph = m.graph.mut_or_insert_default();
    let rename = |n: &mut String| *n = n.replace("fc2.", "head.1.linear.");
    graph.initializer.iter_mut().for_each(|t| rename(&mut t.name));
    graph.node.iter_mut().for_each(|n| n.input.iter_mut().for_each(rename));
    save(&work, "names.onnx", &m);
    let mut t = Transcript::new(&work);
    let names = "partition names.onnx --modules 2 -o plan";
    t.fails("a weight with the name of a head's", names, 3, &["head.1.linear.", "--head"]);
    t.fails(
        "two unsupported operators, named at once",
        "partition two.onnx -o plan",
        3,
        &["2 nodes", "\"node_relu\" (Frobnicate, opset 20)", "\"node_relu_1\" (com.acme.FastGelu", "slrc ops"],
    );
    t.fails("groups that do not divide", "partition group.onnx -o plan", 3, &["/layer1/layer1.0/conv2/Conv", "Conv"]);
    t.fails("nodes out of order", "partition order.onnx -o plan", 3, &["before the node that makes it"]);
    t.fails("too few inputs", "partition inputs.onnx -o plan", 3, &["node_linear", "Gemm", "input 1 is missing"]);
    t.fails("a weight that does not fit", "partition dims.onnx -o plan", 3, &["node_linear_1", "127"]);
    t.fails(
        "a weight that is not there",
        "partition lost.onnx -o plan",
        3,
        &["node_linear_1", "fc2.weight", "nothing defines"],
    );
    insta::assert_snapshot!("nodes", t.finish());
}

#[test]
fn weights_in_other_files() {
    let work = Workspace::new();
    // The weight of a layer moves into a file beside the model.
    let external = |location: &str, length: Option<usize>| {
        let mut m = proto("mnist_mlp");
        let t =
            m.graph.mut_or_insert_default().initializer.iter_mut().find(|t| t.name == "fc2.weight").expect("weight");
        let data = std::mem::take(&mut t.raw_data);
        t.data_location = DataLocation::EXTERNAL.into();
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
        t.external_data.push(entry("location", location.into()));
        t.external_data.extend(length.map(|n| entry("length", n.to_string())));
        (m, data)
    };
    let (m, data) = external("weights.bin", None);
    save(&work, "m/model.onnx", &m);
    let mut t = Transcript::new(&work);
    let partition = "partition m/model.onnx --modules 2 -o plan";
    t.fails("no such file", partition, 3, &["\"fc2.weight\"", "weights.bin", "--init random"]);
    work.write("m/weights.bin", &data[..100]);
    t.fails("a short file", partition, 3, &["\"fc2.weight\"", "100 bytes"]);
    let (m, _) = external("weights.bin", Some(1 << 20));
    save(&work, "m/long.onnx", &m);
    t.fails("a file shorter than said", "partition m/long.onnx --modules 2 -o plan", 3, &["weights.bin", "100 bytes"]);
    work.write("secret.bin", &data);
    for (name, location) in [("up", "../secret.bin"), ("absolute", "/etc/hostname")] {
        let (m, _) = external(location, None);
        save(&work, &format!("m/{name}.onnx"), &m);
        let line = format!("partition m/{name}.onnx --modules 2 -o plan");
        t.fails("a file outside the model's folder", &line, 3, &[location, "outside the model's folder"]);
    }
    std::os::unix::fs::symlink("../secret.bin", work.path("m/link.bin")).expect("a link");
    let (m, _) = external("link.bin", None);
    save(&work, "m/link.onnx", &m);
    t.fails("a link to outside", "partition m/link.onnx --modules 2 -o plan", 3, &["link.bin", "outside"]);
    insta::assert_snapshot!("external_data", t.finish());
    // With the file there, or without weights asked for, it compiles.
    work.ok("partition m/long.onnx --modules 2 --init random -o random");
    work.write("m/weights.bin", &data);
    work.ok(partition);
    work.ok("partition MODELS/mnist_mlp/model.onnx --modules 2 -o inside");
    cli::same_file(&work.path("plan/weights.safetensors"), &work.path("inside/weights.safetensors"));
    cli::same_file(&work.path("plan/plan.yaml").with_file_name("model.onnx"), &work.path("inside/model.onnx"));
}

#[test]
fn options_that_do_not_fit_the_model() {
    let work = Workspace::new();
    let mut t = Transcript::new(&work);
    let cnn = "partition MODELS/mnist_cnn/model.onnx -o plan";
    let mlp = "partition MODELS/mnist_mlp/model.onnx -o plan";
    t.fails("no samples", &format!("{cnn} --batch 0"), 2, &["batch", "at least 1"]);
    t.fails(
        "a shape without a name",
        &format!("{cnn} --shape Nx1x28x28"),
        2,
        &["--shape Nx1x28x28", "input=Nx3x32x32"],
    );
    t.fails("a shape that is none", &format!("{cnn} --shape input=Nxonex28"), 2, &["input", "Nxonex28"]);
    t.fails("an extent of zero", &format!("{cnn} --shape input=Nx1x0x28"), 2, &["input", "Nx1x0x28"]);
    t.fails("a shape of no input", &format!("{cnn} --shape image=Nx1x28x28"), 3, &["\"image\"", "it has input"]);
    t.fails("too few dimensions", &format!("{cnn} --shape input=Nx784"), 3, &["\"input\"", "4 dimensions", "2"]);
    t.fails("another batch", &format!("{cnn} --batch 4 --shape input=5x1x28x28"), 3, &["\"input\"", "batch is 4"]);
    t.fails("channels that do not fit", &format!("{cnn} --shape input=Nx3x28x28"), 3, &["/conv1/Conv", "3"]);
    t.fails(
        "a size that does not fit",
        &format!("{mlp} --modules 2 --shape input=Nx1x14x14"),
        3,
        &["\"logits\"", "8x10", "batch of 32", "--shape"],
    );
    t.fails("no modules", &format!("{cnn} --modules 0"), 2, &["partition.modules", "at least 1"]);
    t.fails(
        "too many modules",
        &format!("{cnn} --modules 9"),
        3,
        &["9 modules", "allows only 4", "5 modules", "--at", "/conv1/Conv"],
    );
    t.fails(
        "a misspelt node",
        &format!("{cnn} --at /maxpool/MaxPol"),
        3,
        &["/maxpool/MaxPol", "did you mean \"/maxpool/MaxPool\"?"],
    );
    t.fails("no node at all", &format!("{cnn} --at frobnicate"), 3, &["frobnicate", "no such node"]);
    t.fails(
        "inside a residual block",
        &format!("{cnn} --at /layer1/layer1.0/relu/Relu"),
        3,
        &["/layer1/layer1.0/relu/Relu", "2 tensors are live"],
    );
    t.fails("after the output", &format!("{cnn} --at /fc/Gemm"), 3, &["/fc/Gemm", "later layer"]);
    t.fails(
        "a head for sequences",
        &format!("{cnn} --modules 2 --head token"),
        3,
        &["token", "[N, T, D]", "boundary 1", "--head auto"],
    );
    t.fails(
        "a head for images",
        &format!("{mlp} --modules 2 --head conv"),
        3,
        &["conv", "[N, C, H, W]", "--head auto"],
    );
    t.fails(
        "bp-free with deep modules",
        &format!("{cnn} --modules 2 --reconcile bp-free"),
        3,
        &["bp-free", "of a single layer", "--per-layer"],
    );
    t.fails("a learning rate below zero", &format!("{cnn} --lr=-1"), 2, &["optimizer.lr", "-1"]);
    t.fails("a lambda that is no number", &format!("{cnn} --lambda nan"), 2, &["reconcile.lambda", "NaN"]);
    t.fails(
        "momentum of adamw",
        &format!("{cnn} --optimizer adamw --momentum 0.5"),
        2,
        &["optimizer.momentum", "belongs to sgd"],
    );
    insta::assert_snapshot!("options", t.finish());
}

#[test]
fn given_weights_that_do_not_fit() {
    let work = Workspace::new();
    let mut t = Transcript::new(&work);
    let line = "partition MODELS/mnist_mlp/model.onnx --modules 2 -o plan --init-from";
    t.fails("missing", &format!("{line} nowhere.safetensors"), 4, &["nowhere.safetensors"]);
    work.write("garbage.safetensors", "garbage, not tensors");
    t.fails("garbage", &format!("{line} garbage.safetensors"), 4, &["garbage.safetensors", "not a safetensors file"]);
    let one = |data: Vec<f32>| [("fc2.bias".to_string(), Tensor { shape: vec![data.len()], data })].into();
    write_tensors(&work.path("shape.safetensors"), &one(vec![0.0; 63]));
    t.fails("a shape that does not fit", &format!("{line} shape.safetensors"), 3, &["fc2.bias", "[63]", "[64]"]);
    let mut data = vec![0.0; 64];
    data[5] = f32::NAN;
    write_tensors(&work.path("nan.safetensors"), &one(data));
    t.fails("not a number", &format!("{line} nan.safetensors"), 3, &["fc2.bias", "NaN"]);
    insta::assert_snapshot!("given_weights", t.finish());
}

#[test]
fn specs_that_make_no_sense() {
    let work = Workspace::new();
    let mut t = Transcript::new(&work);
    let cases = [
        ("unknown field", "modul: 3", 2, &["unknown field `modul`", "partition"][..]),
        ("unknown field below", "optimizer: {learning-rate: 1}", 2, &["learning-rate", "lr"]),
        ("not YAML", "partition: {modules: 3", 2, &["s.yaml", "line"]),
        ("a list", "- 1\n- 2", 2, &["s.yaml"]),
        ("a word for a number", "batch: many", 2, &["batch", "many"]),
        ("a negative number", "batch: -3", 2, &["batch", "-3"]),
        ("no such choice", "reconcile: {distance: euclid}", 2, &["euclid", "cosine"]),
        ("two ways to cut", "partition: {modules: 2, per-layer: true}", 2, &["partition", "only one of"]),
        ("three ways to cut", "partition: {modules: 2, per-layer: true, at: [a]}", 2, &["only one of"]),
        ("momentum of adamw", "optimizer: {kind: adamw, momentum: 0.9}", 2, &["optimizer.momentum"]),
        ("betas of sgd", "optimizer: {betas: [0.9, 0.99]}", 2, &["optimizer.betas", "adamw"]),
        ("betas beyond 1", "optimizer: {kind: adamw, betas: [0.9, 1.5]}", 2, &["optimizer.betas"]),
        ("nesterov without momentum", "optimizer: {nesterov: true, momentum: 0}", 2, &["optimizer.nesterov"]),
        ("steps without their length", "optimizer: {schedule: step}", 2, &["optimizer.every"]),
        ("an end of no schedule", "optimizer: {last: 0.1}", 2, &["optimizer.last", "cosine"]),
        ("infinite rate", "optimizer: {lr: .inf}", 2, &["optimizer.lr", "inf"]),
        ("a step of zero", "reconcile: {step: 0}", 2, &["reconcile.step"]),
        ("lambda of no module", "reconcile: {lambdas: {2: 0.1, 9: 0.1}}", 2, &["reconcile.lambdas.9", "4 modules"]),
        ("lambda of module 1", "reconcile: {lambdas: {1: 0.1}}", 2, &["reconcile.lambdas.1", "2"]),
        ("lambda of one module", "{partition: {modules: 1}, reconcile: {lambdas: {2: 0.1}}}", 2, &["only one module"]),
        ("a shape that is none", "shapes: {input: 3by3}", 2, &["shapes.input", "3by3"]),
        ("no such output", "output: probabilities", 3, &["probabilities", "logits"]),
        ("frozen, but not there", "freeze: [conv9.weight]", 3, &["freeze", "conv9.weight"]),
        ("a prefix of nothing", "freeze: ['layr1.*']", 3, &["freeze", "\"layr1.*\"", "\"layer1*\""]),
        ("tied, but not there", "tie: [embedding]", 3, &["tie", "embedding"]),
    ];
    for (what, text, code, words) in cases {
        work.write("s.yaml", format!("{text}\n"));
        let what = format!("{what}: {}", text.replace('\n', "\\n"));
        t.fails(&what, "partition MODELS/mnist_cnn/model.onnx --spec s.yaml -o plan", code, words);
    }
    work.write("s.yaml", "batch: 4\n");
    t.fails("no model", "partition --spec s.yaml -o plan", 2, &["name a model", "model:"]);
    t.fails("no model to train", "train s.yaml --data d.npz -o run", 2, &["name a model", "model:"]);
    work.write("s.yaml", "model: lost.onnx\n");
    t.fails("a model that is not there", "partition --spec s.yaml -o plan", 3, &["lost.onnx"]);
    t.fails("no spec", "partition m.onnx --spec nowhere.yaml -o plan", 2, &["nowhere.yaml"]);
    t.fails("no spec to train", "train nowhere.yaml --data d.npz -o run", 2, &["nowhere.yaml"]);
    t.fails(
        "a model instead of a plan",
        "train MODELS/mnist_cnn/model.onnx --data d.npz",
        2,
        &["is a model", "slrc partition"],
    );
    work.write("bytes.yaml", [0xff, 0xfe, 0x00, 0x80]);
    t.fails("bytes instead of a spec", "partition m.onnx --spec bytes.yaml", 2, &["bytes.yaml", "UTF-8"]);
    insta::assert_snapshot!("specs", t.finish());
}
