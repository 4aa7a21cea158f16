//! `--dropout`: it stands where networks of a kind have it, is random in training alone, and exports do not hold it.

#[path = "support/cli.rs"]
mod cli;
#[path = "support/made.rs"]
mod made;

use std::io::Read as _;
use std::path::Path;

use cli::{Workspace, npz, parameters, samples};
use made::Made;
use onnx_protobuf::{Message as _, ModelProto};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;

fn read(path: &Path) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(path).expect("model")).expect("a model")
}

/// Every Dropout: what it reads, and who reads it.
fn places(file: &OnnxFile, dropout: &str) -> Vec<String> {
    let spec: SpecFile =
        slrc_plan::yaml::from_str(&format!("{{batch: 2, repair: {{dropout: '{dropout}'}}}}")).expect("spec");
    let planner = Planner::new(file, &spec).expect("planner");
    let nodes = &planner.network().nodes;
    let readers = |value: &str| -> Vec<String> {
        let all = nodes.iter().filter(|n| n.inputs.iter().any(|i| i == value));
        all.map(|n| format!("{} {}", n.op, n.name)).collect()
    };
    let put = nodes.iter().filter(|n| n.op == "Dropout");
    put.map(|n| format!("{} -> {}", n.inputs[0], readers(&n.output).join(", "))).collect()
}

#[test]
fn usual_places() {
    let mut out = String::new();
    for name in ["mnist_vit", "tokens_bert", "mnist_cnn", "mnist_deep8"] {
        let file = OnnxFile::open(&cli::model(name)).expect(name);
        let all = places(&file, "0.1");
        out.push_str(&format!("{name}: {}\n", all.len()));
        all.iter().for_each(|p| out.push_str(&format!("    {p}\n")));
    }
    insta::assert_snapshot!("usual", out);
}

/// Two a block in transformers of both exporters, attention spelled out or not; one in front of a CNN's classifier.
#[test]
fn as_many_as_the_networks_had() {
    let work = Workspace::new();
    for (name, count) in [
        ("vit_small_patch16_224.torchscript", 24),
        ("vit_small_patch16_224_sdpa.dynamo", 24),
        ("vit_small_patch16_224_sdpa_opset23.dynamo", 24),
        ("bert_tiny.dynamo", 4),
        ("bert_tiny.torchscript", 4),
        ("mobilenet_v2.dynamo", 1),
        ("resnet18.torchscript", 1),
    ] {
        let path = cli::models().join(format!("exports/{name}.onnx.gz"));
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(std::fs::File::open(path).expect(name)).read_to_end(&mut bytes).expect(name);
        let file = OnnxFile::open(&work.write(&format!("{name}.onnx"), bytes)).expect(name);
        assert_eq!(places(&file, "0.1").len(), count, "{name}");
    }
}

/// A sum of two layers is no residual: neither is the branch.
#[test]
fn a_sum_of_two_layers_is_left_alone() {
    let work = Workspace::new();
    let made = Made::new(&[0, 4, 8], &[0, 4, 5])
        .node("Transpose", "x", "turned")
        .ints("perm", &[0, 2, 1])
        .node("MatMul", "x turned", "scores")
        .node("Softmax", "scores", "weights")
        .node("MatMul", "weights x", "mixed")
        .node("MatMul", "mixed wo", "projected")
        .node("Add", "x projected", "s")
        .node("MatMul", "s w1", "l1")
        .node("MatMul", "s w2", "l2")
        .node("Add", "l1 l2", "y")
        .weight("wo", &[8, 8])
        .weight("w1", &[8, 5])
        .weight("w2", &[8, 5]);
    let file = OnnxFile::open(&work.write("m.onnx", made.bytes())).expect("model");
    assert_eq!(places(&file, "0.1"), ["projected -> Add n_s"]);
}

#[test]
fn inference_and_exports_do_not_know_of_it() {
    for (name, modules) in [("mnist_vit", 3), ("mnist_cnn", 2)] {
        let work = Workspace::new();
        work.write("train.npz", npz(&samples(name, 32, 1)));
        let partition = format!("partition MODELS/{name}/model.onnx --modules {modules} --batch 8");
        work.ok(&format!("{partition} -o without"));
        let shown = work.ok(&format!("{partition} --dropout 0.25 -o with")).stdout;
        assert!(shown.contains("\ndropout 0.25: at "), "{shown}");
        for plan in ["with", "without"] {
            work.ok(&format!("train {plan} --data train.npz --steps 0 -o idle_{plan}"));
            work.ok(&format!("eval idle_{plan} --data train.npz --save-logits {plan}.npz"));
            work.ok(&format!("train {plan} --data train.npz --steps 3 -o run_{plan}"));
        }
        cli::same_file(&work.path("with.npz"), &work.path("without.npz"));
        assert_ne!(
            parameters(&work.path("run_with")),
            parameters(&work.path("run_without")),
            "{name}: training is random"
        );
        work.ok("train with --data train.npz --steps 3 -o again");
        assert_eq!(parameters(&work.path("again")), parameters(&work.path("run_with")), "{name}: and repeats");
        work.ok("export run_with -o out.onnx");
        let (source, out) = (read(&cli::model(name)), read(&work.path("out.onnx")));
        let graph = |m: &ModelProto| {
            let names: std::collections::BTreeSet<String> =
                m.graph.initializer.iter().map(|t| t.name.clone()).collect();
            (m.graph.node.clone(), m.graph.input.clone(), m.graph.output.clone(), names)
        };
        assert_eq!(graph(&out), graph(&source), "{name}: the graph is the file's");
    }
}

#[test]
fn named_places() {
    let file = OnnxFile::open(&cli::model("mnist_cnn")).expect("model");
    let all = places(&file, "0.5@/maxpool/MaxPool,/layer3/layer3.0/relu_1/Relu,/maxpool/MaxPool");
    assert_eq!(
        all,
        [
            "/maxpool/MaxPool_output_0 -> Conv /layer1/layer1.0/conv1/Conv, Add /layer1/layer1.0/Add",
            "/layer3/layer3.0/relu_1/Relu_output_0 -> GlobalAveragePool /avgpool/GlobalAveragePool",
        ]
    );
}

#[test]
fn what_is_refused() {
    let work = Workspace::new();
    let mut t = cli::Transcript::new(&work);
    let vit = |rate: &str| format!("partition MODELS/mnist_vit/model.onnx --dropout={rate} -o plan");
    for rate in ["1", "1.5", "-0.1", "nan", "much", "0.1@"] {
        t.fails("no rate", &vit(rate), 2, &["repair.dropout: "]);
    }
    t.fails("no such node", &vit("0.1@nowhere"), 3, &["has no node or value \"nowhere\""]);
    t.fails("the output", &vit("0.1@logits"), 3, &["is an output of the model"]);
    t.fails("no kind", "partition MODELS/mnist_mlp/model.onnx --dropout 0.1 -o plan", 3, &["0.1@NODE"]);
    let made = Made::new(&[0, 3, 8, 8], &[0, 4])
        .node("Conv", "x c", "a")
        .node("Relu", "a", "r")
        .node("Dropout", "r", "d")
        .node("Flatten", "d", "f")
        .node("Gemm", "f w", "y")
        .weight("c", &[2, 3, 3, 3])
        .weight("w", &[72, 4]);
    work.write("has.onnx", made.bytes());
    t.fails("it has some", "partition has.onnx --dropout 0.1 -o plan", 3, &["has dropout already"]);
    insta::assert_snapshot!("refused", t.finish());
    work.ok("partition has.onnx --dropout 0.1@n_r --modules 1 -o plan");
}
