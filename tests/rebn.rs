//! `--rebn`: BatchNormalization put back computes what the file did until it is trained, and an export with it, or with
//! it folded again, computes what the trained network does.
#![allow(clippy::print_stdout, reason = "measured numbers, for --nocapture")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/made.rs"]
mod made;
mod support;

use std::collections::BTreeMap;
use std::io::Read as _;

use cli::{Workspace, npz, samples};
use made::Made;
use onnx_protobuf::{Message as _, ModelProto};
use slrc_compiler::ir::graph::VarKind;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;
use slrc_compiler::weights::initial_weights;
use slrc_runtime::data::npz::read_npz;
use slrc_runtime::session::NamedTensor;
use support::steps::{Batch, Oracle};

/// An export of the folder, in a file.
fn export(work: &Workspace, name: &str) -> OnnxFile {
    let path = support::root().join("models/exports").join(format!("{name}.onnx.gz"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).expect(name)).read_to_end(&mut bytes).expect(name);
    OnnxFile::open(&work.write(&format!("{name}.onnx"), bytes)).expect(name)
}

fn spec(text: &str) -> SpecFile {
    slrc_plan::yaml::from_str(text).expect("spec")
}

/// BatchNorms come back where the exporter took them away: as many as PyTorch's networks have.
#[test]
fn real_exports_get_back_what_they_had() {
    let work = Workspace::new();
    // Biases that are zero before training are dropped: of linear layers, and those that VGG's convolutions have beside
    // their norms.
    let dropped = |name: &str| match name {
        "mobilenet_v2.dynamo" => 1000,
        "vgg11_bn.dynamo" => 4096 + 4096 + 1000 + 2752,
        _ => 0,
    };
    for (name, norms) in
        [("resnet18.dynamo", 20), ("resnet50.dynamo", 53), ("mobilenet_v2.dynamo", 52), ("vgg11_bn.dynamo", 8)]
    {
        let file = export(&work, name);
        let planner = Planner::new(&file, &spec("{batch: 2, repair: {rebn: true}}")).expect(name);
        let network = planner.network();
        let put: Vec<&str> =
            network.nodes.iter().filter(|n| n.op == "BatchNormalization").map(|n| n.name.as_str()).collect();
        assert_eq!(put.len(), norms, "{name}");
        let trained = |n: &slrc_compiler::onnx::import::Imported| -> usize {
            n.graph.variables.iter().filter(|v| v.kind == VarKind::Weight).map(|v| v.ty.count()).sum()
        };
        // The same network's export that kept BatchNorm trains as many numbers.
        let kept = export(&work, &name.replace(".dynamo", ".torchscript"));
        let kept = Planner::new(&kept, &spec("batch: 2")).expect(name);
        assert_eq!(trained(network) + dropped(name), trained(kept.network()), "{name}");
        assert_eq!(planner.candidates().cuts.len(), kept.candidates().cuts.len(), "{name}: cut as the original is");
    }
}

fn read(path: &std::path::Path) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(path).expect("model")).expect("a model")
}

/// mnist_cnn as the dynamo exporter folds it, with weights of a trained network: convolutions of unequal scale, biases
/// that are not zero.
fn folded_cnn(work: &Workspace) -> &'static str {
    export(work, "mnist_cnn.dynamo");
    let mut m = read(&work.path("mnist_cnn.dynamo.onnx"));
    let graph = m.graph.mut_or_insert_default();
    let mut biases = Vec::new();
    for n in graph.node.iter_mut().filter(|n| n.op_type == "Conv") {
        let channels = graph.initializer.iter().find(|t| t.name == n.input[1]).expect("a weight").dims[0];
        n.input.push(format!("{}_bias", n.input[1]));
        biases.push((n.input[2].clone(), vec![channels]));
    }
    for (name, dims) in biases {
        graph.initializer.push(onnx_protobuf::TensorProto { name, dims, data_type: 1, ..Default::default() });
    }
    for t in graph.initializer.iter_mut().filter(|t| t.data_type == 1) {
        let mut rng = slrc_plan::random::Sequence::new(5, slrc_plan::random::stream_of(&t.name), 0);
        let count: i64 = t.dims.iter().product();
        let fan_in = (t.dims.iter().skip(1).product::<i64>() as f32).sqrt();
        let scale = if t.dims.len() > 1 { 1.5 / fan_in } else { 0.3 };
        t.raw_data.clear();
        t.float_data = (0..count).map(|_| scale * rng.normal()).collect();
    }
    work.write("folded.onnx", m.write_to_bytes().expect("serialize"));
    "folded.onnx"
}

fn logits(work: &Workspace, name: &str) -> Vec<f64> {
    read_npz(&work.path(name)).expect("logits").remove(0).1.to_f64()
}

/// The network's logits by the f64 interpreter, on the inference graphs of a plan.
fn oracle_logits(work: &Workspace, model: &str, text: &str) -> Vec<f64> {
    let file = OnnxFile::open(&work.path(model)).expect(model);
    let spec = spec(text);
    let mut planner = Planner::new(&file, &spec).expect(model);
    let c = planner.compile(&spec.partition, &mut |_, _| {}).expect(model);
    let (weights, _) = initial_weights(&c, planner.file(), &[]).expect("weights");
    let weights: Vec<NamedTensor> =
        weights.into_iter().map(|w| NamedTensor { name: w.name, shape: w.shape, data: w.data }).collect();
    let heads = Oracle::new(&c, &weights).infer(&Batch::random(&c, 4));
    heads.last().expect("the network's own head").0.data.clone()
}

/// In f64 the only difference is that 1 - epsilon is rounded to f32 in the file: its inverse root is 1 to 3e-8, and
/// eight layers add that up.
#[test]
fn before_training_the_function_is_the_files() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    for modules in [1, 3] {
        let plain = oracle_logits(&work, model, &format!("{{batch: 4, partition: {{modules: {modules}}}}}"));
        let text = format!("{{batch: 4, partition: {{modules: {modules}}}, repair: {{rebn: true}}}}");
        let repaired = oracle_logits(&work, model, &text);
        let error = support::relative(&plain, &repaired);
        println!("{modules} modules: {error:e}");
        assert!(plain.iter().any(|x| x.abs() > 0.1), "{plain:?}");
        assert!(error > 0.0 && error < 1e-6, "{error:e}");
    }
}

/// What of a graph a user of the file relies on.
fn nodes(m: &ModelProto) -> Vec<String> {
    m.graph
        .node
        .iter()
        .map(|n| format!("{} {} {:?} {:?} {:?}", n.name, n.op_type, n.input, n.output, n.attribute))
        .collect()
}

/// Logits of f32 programs that were compiled apart: sums in another order, some roundings of 6e-8 a layer.
const F32: f64 = 1e-5;

#[test]
fn an_export_has_the_norms_or_folds_them() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    work.write("train.npz", npz(&samples("mnist_cnn", 40, 1)));
    work.write("test.npz", npz(&samples("mnist_cnn", 21, 2)));
    let shown = work.ok(&format!("partition {model} --rebn --modules 3 --batch 8 -o plan")).stdout;
    let done = "rebn: BatchNormalization behind 8 convolutions, by names that exporters give where they fold";
    assert!(shown.contains(done), "{shown}");
    assert!(work.ok("plan show plan").stdout.contains(done));
    assert!(std::fs::read_to_string(work.path("plan/plan.yaml")).expect("plan").contains(done));
    work.ok(&format!("partition {model} --rebn --modules 3 --batch 8 --check plan"));
    work.ok("train plan --data train.npz --steps 20 -o run");
    work.ok("eval run --data test.npz --save-logits trained.npz");
    let trained = logits(&work, "trained.npz");
    work.ok("export run -o kept.onnx");
    work.ok("export run --fold -o folded_again.onnx");
    let (source, kept, folded) =
        (read(&work.path(model)), read(&work.path("kept.onnx")), read(&work.path("folded_again.onnx")));
    let ports = |m: &ModelProto| (m.opset_import.clone(), m.graph.input.clone(), m.graph.output.clone(), m.ir_version);
    assert_eq!(ports(&kept), ports(&source));
    assert_eq!(ports(&folded), ports(&source));
    let norms: Vec<_> = kept.graph.node.iter().filter(|n| n.op_type == "BatchNormalization").collect();
    assert_eq!(norms.len(), 8);
    assert!(norms.iter().all(|n| n.output.len() == 1 && n.attribute.iter().all(|a| a.name != "training_mode")));
    assert!(kept.graph.node.iter().all(|n| n.metadata_props.is_empty()), "no mark stays");
    assert_eq!(nodes(&folded), nodes(&source), "folded, the file has its own nodes again");
    let names =
        |m: &ModelProto| m.graph.initializer.iter().map(|t| t.name.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(&folded), names(&source));
    for file in ["kept.onnx", "folded_again.onnx"] {
        work.ok(&format!("partition {file} --modules 1 --batch 8 -o again"));
        work.ok(&format!("train again --data test.npz --steps 0 -o idle_{file}"));
        work.ok(&format!("eval idle_{file} --data test.npz --save-logits again.npz"));
        let error = support::relative(&trained, &logits(&work, "again.npz"));
        println!("{file}: {error:e}");
        assert!(error < F32, "{file}: {error:e}");
    }
    let in_f64 = |file: &str| oracle_logits(&work, file, "{batch: 4, partition: {modules: 1}}");
    let error = support::relative(&in_f64("kept.onnx"), &in_f64("folded_again.onnx"));
    println!("folded in f64: {error:e}");
    // Folded weights are rounded to f32 once, a relative 6e-8 in each of eight layers.
    assert!(error < 1e-6, "{error:e}");
    // An export of the export is the export.
    work.ok("export idle_folded_again.onnx -o once_more.onnx");
    cli::same_file(&work.path("folded_again.onnx"), &work.path("once_more.onnx"));
}

/// As in a network exported with a classifier beside its own, for training alone.
#[test]
fn what_the_output_does_not_need_is_folded_as_it_was() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    let mut m = read(&work.path(model));
    let graph = m.graph.mut_or_insert_default();
    let first = graph.node.iter().find(|n| n.op_type == "Conv").expect("a convolution").clone();
    for (i, name) in first.input[1..].iter().zip(["aside", "aside_bias"]) {
        let tensor = graph.initializer.iter().find(|t| t.name == *i).expect("a tensor").clone();
        graph.initializer.push(onnx_protobuf::TensorProto { name: name.into(), ..tensor });
    }
    let mut aside = onnx_protobuf::NodeProto { name: "aside.conv".into(), ..first };
    aside.input.splice(1.., ["aside".to_string(), "aside_bias".to_string()]);
    aside.output = vec!["beside".into()];
    graph.node.push(aside);
    graph.output.push(onnx_protobuf::ValueInfoProto { name: "beside".into(), ..graph.output[0].clone() });
    work.write("beside.onnx", m.write_to_bytes().expect("serialize"));
    let m = read(&work.path("beside.onnx"));
    work.write("train.npz", npz(&samples("mnist_cnn", 8, 1)));
    work.ok("partition beside.onnx --rebn --modules 2 --batch 8 -o plan");
    work.ok("train plan --data train.npz --steps 1 -o run");
    work.ok("export run --fold -o back.onnx");
    let back = read(&work.path("back.onnx"));
    assert_eq!(nodes(&back), nodes(&m));
    for name in ["aside", "aside_bias"] {
        let values = |m: &ModelProto| {
            let t = m.graph.initializer.iter().find(|t| t.name == name).expect("a tensor");
            let raw = t.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            raw.chain(t.float_data.iter().copied()).collect::<Vec<f32>>()
        };
        let (was, is) = (values(&m), values(&back));
        assert!(!was.is_empty() && was.len() == is.len());
        // 1 - epsilon is rounded to f32, and so is what is folded.
        assert!(was.iter().zip(&is).all(|(a, b)| (a - b).abs() <= 2e-7 * a.abs()), "{name}");
    }
}

#[test]
fn what_is_named_and_what_is_refused() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    let plan = |options: &str| format!("partition {model} --modules 1 --batch 8 -o plan {options}");
    let first = "node_Conv_125";
    let shown = work.ok(&plan(&format!("--rebn={first},node_Conv_131"))).stdout;
    assert!(shown.contains("rebn: BatchNormalization behind 2 convolutions, as named"), "{shown}");
    let diff = work.ok("plan diff plan plan").stdout;
    assert!(!diff.contains("repairs"), "{diff}");
    std::fs::rename(work.path("plan"), work.path("named")).expect("rename");
    work.ok(&plan(""));
    let diff = work.ok("plan diff plan named").stdout;
    assert!(diff.contains("rebn: BatchNormalization behind 2 convolutions, as named"), "{diff}");
    let mut t = cli::Transcript::new(&work);
    t.fails("no such convolution", &plan("--rebn=node_Conv_126"), 3, &["did you mean \"node_Conv_125\"?"]);
    let kept = format!("{}/mnist_cnn/model.onnx", "MODELS");
    t.fails("BatchNorm was kept", &format!("partition {kept} --rebn -o p"), 3, &["no convolution seems to have had"]);
    t.fails("it follows already", &format!("partition {kept} --rebn=/conv1/Conv -o p"), 3, &["follows"]);
    work.write("bad.yaml", format!("model: {model}\nrepair: {{rebn: yes please}}\n"));
    t.fails("no list", "partition --spec bad.yaml -o p", 2, &["true, false or a list"]);
    work.write("none.yaml", format!("model: {model}\nrepair: {{rebn: []}}\n"));
    t.fails("an empty list", "partition --spec none.yaml -o p", 2, &["repair.rebn"]);
    let old = Made::new(&[0, 2, 8, 8], &[0, 4]).opset(6).node("Conv", "x c", "a").weight("c", &[4, 2, 3, 3]);
    work.write("old.onnx", old.bytes());
    t.fails("an old opset", "partition old.onnx --rebn=n_a -o p", 3, &["from opset 7 on"]);
    work.write("train.npz", npz(&samples("mnist_cnn", 16, 1)));
    work.ok("train plan --data train.npz --steps 0 -o run");
    t.fails("nothing to fold", "export run --fold -o out.onnx", 4, &["was not made with --rebn"]);
    insta::assert_snapshot!("refused", t.finish());
}

/// A spec says it too, and its plan is that of the option; `rebn: false` is no repair.
#[test]
fn a_spec_and_an_option_are_one() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    work.write("s.yaml", format!("model: {model}\nbatch: 8\npartition: {{modules: 2}}\nrepair: {{rebn: true}}\n"));
    work.ok("partition --spec s.yaml -o by_spec");
    work.ok(&format!("partition {model} --batch 8 --modules 2 --rebn -o by_option"));
    for name in ["plan.yaml", "model.onnx", "weights.safetensors"] {
        cli::same_file(&work.path(&format!("by_spec/{name}")), &work.path(&format!("by_option/{name}")));
    }
    // The page of a plan compiles the network anew from the folder's model, which is the repaired one.
    work.ok("plan report by_spec");
    let page = std::fs::read_to_string(work.path("by_spec/plan.html")).expect("page");
    assert!(!page.contains("other weights than the plan"), "the comparison is there");
    work.write("plain.yaml", format!("model: {model}\nrepair: {{rebn: false}}\n"));
    let report = work.json("check --spec plain.yaml --json");
    let kinds = |r: &serde_json::Value| -> Vec<String> {
        r["findings"].as_array().expect("findings").iter().map(|f| f["kind"].as_str().expect("kind").into()).collect()
    };
    assert!(kinds(&report).contains(&"folded-batch-norm".to_string()));
    let report = work.json("check --spec s.yaml --json");
    assert!(report["network"]["repairs"][0].as_str().expect("a repair").starts_with("rebn: "), "{report}");
    assert!(!kinds(&report).contains(&"folded-batch-norm".to_string()), "what is repaired is no finding");
}

/// Files of an IR version before 4 list initializers among their inputs.
#[test]
fn old_files_list_what_is_put_in() {
    let work = Workspace::new();
    let mut made = Made::new(&[0, 2, 8, 8], &[0, 4])
        .opset(9)
        .node("Conv", "x c b", "a")
        .node("Relu", "a", "r")
        .node("GlobalAveragePool", "r", "p")
        .node("Flatten", "p", "f")
        .node("Gemm", "f w v", "y")
        .weight("c", &[4, 2, 3, 3])
        .weight("b", &[4])
        .weight("w", &[4, 4])
        .weight("v", &[4]);
    made.ir_version = 3;
    made.list_initializers();
    work.write("old.onnx", made.bytes());
    let x = cli::Array::new("x", &[8, 2, 8, 8], cli::Values::F32((0..1024).map(|i| (i as f32).sin()).collect()));
    let y = cli::Array::new("y", &[8], cli::Values::I64((0..8).map(|i| i % 4).collect()));
    work.write("d.npz", cli::npz(&[x, y]));
    work.ok("partition old.onnx --rebn=n_a --modules 1 --batch 8 -o plan");
    work.ok("train plan --data d.npz --steps 2 -o run");
    work.ok("export run -o kept.onnx");
    work.ok("export run --fold -o folded.onnx");
    let listed = |name: &str| -> BTreeMap<String, bool> {
        let m = read(&work.path(name));
        let inputs: Vec<String> = m.graph.input.iter().map(|i| i.name.clone()).collect();
        m.graph.initializer.iter().map(|t| (t.name.clone(), inputs.contains(&t.name))).collect()
    };
    assert_eq!(listed("kept.onnx").len(), 7);
    assert!(listed("kept.onnx").values().all(|&is| is), "{:?}", listed("kept.onnx"));
    assert_eq!(listed("folded.onnx"), listed("old.onnx"));
}

/// Mean loss of the data set by `slrc eval`, of the network's own head.
fn eval_loss(work: &Workspace, run: &str) -> f64 {
    let report = work.json(&format!("eval {run} --data all.npz --json"));
    report["heads"].as_array().expect("heads").last().expect("a head")["loss"].as_f64().expect("a loss")
}

/// Loss of the first training step, of the network's own head.
fn first_loss(work: &Workspace, plan: &str) -> f64 {
    work.ok(&format!("train {plan} --data all.npz --steps 1 --no-shuffle -o {plan}.run"));
    let lines = std::fs::read_to_string(work.path(&format!("{plan}.run/metrics.jsonl"))).expect("metrics");
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("json");
    line["modules"].as_array().expect("modules").last().expect("a module")["loss"].as_f64().expect("a loss")
}

/// With statistics measured on all of the data, a step over all of the data computes in training what it does in
/// inference: its own statistics are those. And in inference that is what the file computes. Neither would be so if a
/// mean, a variance, a scale or a bias were another.
#[test]
fn calibrated_it_trains_from_the_files_function() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    work.write("all.npz", npz(&samples("mnist_cnn", 40, 1)));
    for modules in [1, 3] {
        let options = format!("--modules {modules} --batch 40");
        work.ok(&format!("partition {model} {options} -o plain"));
        work.ok(&format!("partition {model} {options} --rebn -o identity"));
        let shown = work.ok(&format!("partition {model} {options} --rebn --calibrate all.npz -o plan")).stdout;
        let done = "calibrate: statistics of 40 samples in 8 BatchNormalizations that rebn put in";
        assert!(shown.contains(done), "{shown}");
        work.ok(&format!("partition {model} {options} --rebn --calibrate all.npz --check plan"));
        let mut found = Vec::new();
        for plan in ["plain", "plan"] {
            work.ok(&format!("train {plan} --data all.npz --steps 0 -o {plan}.idle"));
            work.ok(&format!("eval {plan}.idle --data all.npz --save-logits {plan}.npz"));
            found.push(logits(&work, &format!("{plan}.npz")));
        }
        let error = support::relative(&found[0], &found[1]);
        let (file, calibrated) = (eval_loss(&work, "plain.idle"), eval_loss(&work, "plan.idle"));
        let (trained, identity) = (first_loss(&work, "plan"), first_loss(&work, "identity"));
        println!("{modules} modules: {error:e}; losses {file} {calibrated} {trained} {identity}");
        assert!(error > 0.0 && error < F32, "{error:e}");
        // Reports of both are f32 sums of 40 samples.
        assert!((calibrated - file).abs() < 1e-5 * file, "{calibrated} {file}");
        assert!((trained - file).abs() < 1e-4 * file, "{trained} {file}");
        assert!((identity - file).abs() > 1e-2 * file, "what is not calibrated differs: {identity} {file}");
        for name in ["plain.idle", "plan.idle", "plan.run", "identity.run"] {
            std::fs::remove_dir_all(work.path(name)).expect("removed");
        }
    }
}

/// A spec says it too; fewer samples than a batch are as many as they are, and labels are of no use.
#[test]
fn calibration_by_a_spec_and_what_is_refused() {
    let work = Workspace::new();
    let model = folded_cnn(&work);
    let mut data = samples("mnist_cnn", 5, 1);
    work.write("few.npz", npz(&data));
    let x = data.remove(0);
    let labels = cli::Array::new("y", &[5, 2], cli::Values::I64(vec![-7; 10]));
    work.write("odd.npz", npz(&[x, labels]));
    let text = |data: &str, more: &str| {
        format!(
            "model: {model}\nbatch: 8\npartition: {{modules: 2}}\nrepair: {{rebn: true, calibrate: {data}}}\n{more}"
        )
    };
    work.write("s.yaml", text("few.npz", ""));
    let shown = work.ok("partition --spec s.yaml -o by_spec").stdout;
    assert!(shown.contains("statistics of 5 samples"), "{shown}");
    work.ok(&format!("partition {model} --batch 8 --modules 2 --rebn --calibrate odd.npz -o by_option"));
    for name in ["plan.yaml", "model.onnx", "weights.safetensors"] {
        cli::same_file(&work.path(&format!("by_spec/{name}")), &work.path(&format!("by_option/{name}")));
    }
    work.write("random.yaml", text("few.npz", "init: random\n"));
    let plan = format!("partition {model} --batch 8 -o p");
    let mut t = cli::Transcript::new(&work);
    t.fails("nothing to calibrate", &format!("{plan} --calibrate few.npz"), 2, &["only BatchNormalization that rebn"]);
    t.fails("random weights", "partition --spec random.yaml -o p", 2, &["statistics are of the model's own weights"]);
    let other = format!("{plan} --rebn --calibrate few.npz --init-from by_spec/weights.safetensors");
    t.fails("other weights", &other, 2, &["statistics are of the model's own weights"]);
    t.fails("no data", &format!("{plan} --rebn --calibrate none.npz"), 4, &["none.npz"]);
    work.write("small.npz", npz(&[cli::Array::new("x", &[5, 3], cli::Values::F32(vec![0.0; 15]))]));
    t.fails("other data", &format!("{plan} --rebn --calibrate small.npz"), 4, &["small.npz"]);
    insta::assert_snapshot!("calibration_refused", t.finish());
}
