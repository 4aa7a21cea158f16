//! Networks that classify every token: cut where a local head has the same tokens, and nowhere else.

#[path = "support/cli.rs"]
mod cli;

use cli::{Array, Values, Workspace, model, npz};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, Message as _, ModelProto, NodeProto, TensorProto};
use slrc_plan::random::Sequence;

/// Tokens of a sample: the 7 x 7 positions of the image.
const TOKENS: usize = 49;
const CLASSES: i64 = 5;

fn floats(name: &str, dims: &[i64], rng: &mut Sequence) -> TensorProto {
    let count = dims.iter().product::<i64>();
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: (0..count).map(|_| rng.symmetric(0.3)).collect(),
        ..Default::default()
    }
}

fn node(name: &str, op: &str, inputs: &[&str], output: &str, ints: &[(&str, &[i64])]) -> NodeProto {
    let attribute = |(name, ints): &(&str, &[i64])| AttributeProto {
        name: (*name).into(),
        type_: AttributeType::INTS.into(),
        ints: ints.to_vec(),
        ..Default::default()
    };
    NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        attribute: ints.iter().map(attribute).collect(),
        ..Default::default()
    }
}

/// Two convolutions on images, their result read as `[N, 49, 8]`, `mixers` layers on the tokens, a classifier of each
/// token.
fn network(work: &Workspace, name: &str, mixers: usize) {
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(model("mnist_cnn")).expect("model")).expect("a model");
    let mut rng = Sequence::new(1, 0, 0);
    let mut nodes = vec![
        node("stem", "Conv", &["input", "stem.weight"], "a", &[("strides", &[4, 4])]),
        node("stem_relu", "Relu", &["a"], "b", &[]),
        node("conv", "Conv", &["b", "conv.weight"], "c", &[("pads", &[1, 1, 1, 1])]),
        node("conv_relu", "Relu", &["c"], "d", &[]),
        node("tokens", "Reshape", &["d", "shape"], "t0", &[]),
    ];
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![3],
        data_type: 7,
        int64_data: vec![0, 49, 8],
        ..Default::default()
    };
    let mut initializers =
        vec![floats("stem.weight", &[8, 1, 4, 4], &mut rng), floats("conv.weight", &[8, 8, 3, 3], &mut rng), shape];
    for i in 0..mixers {
        let (weight, from, mid, to) =
            (format!("mix{i}.weight"), format!("t{i}"), format!("m{i}"), format!("t{}", i + 1));
        nodes.push(node(&format!("mix{i}"), "MatMul", &[&from, &weight], &mid, &[]));
        nodes.push(node(&format!("mix{i}_relu"), "Relu", &[&mid], &to, &[]));
        initializers.push(floats(&weight, &[8, 8], &mut rng));
    }
    nodes.push(node("classifier", "MatMul", &[&format!("t{mixers}"), "classifier.weight"], "logits", &[]));
    initializers.push(floats("classifier.weight", &[8, CLASSES], &mut rng));
    let graph = m.graph.mut_or_insert_default();
    (graph.node, graph.initializer) = (nodes, initializers);
    graph.value_info.clear();
    work.write(name, m.write_to_bytes().expect("serialize"));
}

#[test]
fn no_cut_where_a_head_has_no_tokens_to_classify() {
    let work = Workspace::new();
    network(&work, "images.onnx", 0);
    // The only places: after each ReLU, before the tokens are made.
    let why = "the network classifies 49 tokens, and a local head needs the same, [N, 49, D], here";
    let line = "partition images.onnx --batch 4 -o plan";
    work.fails(&format!("{line} --modules 2"), 3, &["the network allows only 0", &format!("stem_relu: {why}")]);
    work.fails(&format!("{line} --at stem_relu"), 3, &[&format!("cannot cut at \"stem_relu\": {why}")]);
    // A place that is not offered anyway.
    let named =
        "boundary 1, after \"conv_relu\", has shape 4x8x7x7: a local head needs the same tokens, [N, 49, D], there";
    work.fails(&format!("{line} --at conv_relu"), 3, &[named, "cut elsewhere (--at), or use --modules 1"]);
    work.ok(&format!("{line} --modules 1"));
}

#[test]
fn cuts_between_tokens_are_found_and_train() {
    let work = Workspace::new();
    network(&work, "tokens.onnx", 2);
    work.ok("partition tokens.onnx --batch 4 --modules 2 -o plan");
    let plan = slrc_runtime::folder::read_plan(&work.path("plan")).expect("a plan");
    assert_eq!((plan.modules[0].last.as_str(), plan.modules[0].head.as_str()), ("mix0_relu", "token"));
    let mut rng = Sequence::new(2, 0, 0);
    let x = (0..12 * 784).map(|_| rng.normal()).collect();
    let y = (0..12 * TOKENS).map(|_| i64::from(rng.word()) % CLASSES).collect();
    let arrays = [Array::new("x", &[12, 1, 28, 28], Values::F32(x)), Array::new("y", &[12, TOKENS], Values::I64(y))];
    work.write("data.npz", npz(&arrays));
    work.ok("train plan --data data.npz --steps 3 -o run");
    let scores = work.json("eval run --data data.npz --json");
    assert_eq!(scores["heads"].as_array().map(Vec::len), Some(2), "{scores}");
}

/// Tokens without a label: what stands there makes no difference, and a step is one on the labels that count.
#[test]
fn ignored_labels() {
    let work = Workspace::new();
    network(&work, "tokens.onnx", 2);
    work.write("ignoring.yaml", "model: tokens.onnx\nbatch: 4\npartition: {modules: 2}\nignore-label: -100\n");
    work.ok("partition --spec ignoring.yaml -o plan");
    work.ok("partition tokens.onnx --batch 4 --modules 2 -o strict");
    let mut rng = Sequence::new(2, 0, 0);
    let x: Vec<f32> = (0..4 * 784).map(|_| rng.normal()).collect();
    let y: Vec<i64> = (0..4 * TOKENS).map(|i| if i % 7 > 2 { -100 } else { i as i64 % CLASSES }).collect();
    let write = |name: &str, y: &[i64]| {
        let x = Array::new("x", &[4, 1, 28, 28], Values::F32(x.clone()));
        work.write(name, npz(&[x, Array::new("y", &[4, TOKENS], Values::I64(y.to_vec()))]));
    };
    write("data.npz", &y);
    work.ok("train plan --data data.npz --steps 2 -o run");
    let why = "label -100 of sample 0 is outside 0..5, the classes of the network";
    work.fails("train strict --data data.npz --steps 2 -o other", 4, &[why]);
    write("other.npz", &y.iter().map(|&l| if l < 0 { -1 } else { l }).collect::<Vec<i64>>());
    let why = "label -1 of sample 0 is outside 0..5, the classes of the network, and not -100, which is ignored";
    work.fails("train plan --data other.npz --steps 2 -o other", 4, &[why]);
    // Where every label counts, means are the same, ignoring or not.
    write("full.npz", &y.iter().map(|&l| l.max(0)).collect::<Vec<i64>>());
    let loss = |plan: &str, data: &str| {
        work.ok(&format!("train {plan} --data {data} --steps 0 -o {plan}_{data}"));
        let scores = work.json(&format!("eval {plan}_{data} --data {data} --json"));
        scores["heads"][1]["loss"].as_f64().expect("a loss")
    };
    let [ignoring, strict, few] =
        [("plan", "full.npz"), ("strict", "full.npz"), ("plan", "data.npz")].map(|(plan, data)| loss(plan, data));
    assert!((ignoring - strict).abs() < 1e-5, "{ignoring} {strict}");
    assert!((few - strict).abs() > 1e-4, "{few} {strict}");
    work.write("wrong.yaml", "model: tokens.onnx\nignore-label: 3\n");
    work.fails("partition --spec wrong.yaml -o p", 2, &["ignore-label: a number below 0, such as -100"]);
}
