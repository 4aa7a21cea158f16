//! `If` with a condition that is known at import means the branch that is taken, in every respect: values, names,
//! weights, exports.

#[path = "common/protos.rs"]
mod protos;

use onnx_protobuf::{GraphProto, Message as _, ModelProto, NodeProto, TensorProto};
use protos::{bytes, flag, floats, graph_attribute, inner, int, ints, model, node, open, open_bytes, run, with};
use slrc_compiler::onnx::export::{Norms, Trained, export, skeleton};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;
use slrc_compiler::weights::initial_weights;

fn either(condition: &str, output: &[&str], then: GraphProto, other: GraphProto) -> NodeProto {
    let branches = vec![graph_attribute("then_branch", then), graph_attribute("else_branch", other)];
    with(node("If", &[condition], output), branches)
}

/// y = x + a if c, else x * a, with names that both branches use.
fn add_or_multiply(c: bool) -> ModelProto {
    let branch = |op: &str| inner(vec![node(op, &["x", "a"], &["t"])], vec![], &["t"]);
    let nodes = vec![either("c", &["y"], branch("Add"), branch("Mul"))];
    model(&[3], nodes, vec![floats("a", &[1], &[10.0]), flag("c", c)], &["y"])
}

#[test]
fn the_branch_is_the_condition_s() {
    for (c, expected) in [(true, [11.0, 12.0, 13.0]), (false, [10.0, 20.0, 30.0])] {
        let y = run(&open(&add_or_multiply(c)), &[3], &[1.0, 2.0, 3.0]).expect("a value");
        assert_eq!(y.data, expected);
    }
}

/// y = x squeezed if its middle extent is 1, else its row sums: what PyTorch's squeeze is exported as.
fn squeeze(extent: i64) -> ModelProto {
    let squeezed = inner(vec![node("Squeeze", &["x", "one"], &["s"])], vec![], &["s"]);
    let summed = inner(vec![with(node("ReduceSum", &["x", "one"], &["s"]), vec![int("keepdims", 0)])], vec![], &["s"]);
    let nodes = vec![
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "one"], &["extent"]),
        node("Equal", &["extent", "one"], &["c"]),
        either("c", &["y"], squeezed, summed),
    ];
    model(&[2, extent, 2], nodes, vec![ints("one", &[1], &[1])], &["y"])
}

#[test]
fn conditions_on_shapes_are_known() {
    let y = run(&open(&squeeze(1)), &[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]).expect("a value");
    assert_eq!((y.shape, y.data), (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
    let y = run(&open(&squeeze(2)), &[2, 2, 2], &[1., 2., 3., 4., 5., 6., 7., 8.]).expect("a value");
    assert_eq!((y.shape, y.data), (vec![2, 2], vec![4.0, 6.0, 12.0, 14.0]));
}

#[test]
fn branches_within_branches() {
    // The inner If reads a value of the branch around it; its own names are those of the other branches.
    let deepest = |op: &str| inner(vec![node(op, &["t", "t"], &["u"])], vec![], &["u"]);
    let nested = |c: &str| {
        let nodes = vec![
            node("Add", &["x", "x"], &["t"]),
            node("Not", &[c], &["e"]),
            either("e", &["v"], deepest("Sub"), deepest("Mul")),
        ];
        inner(nodes, vec![], &["v"])
    };
    let nodes = vec![
        either("c", &["p"], nested("c"), nested("c")),
        node("Not", &["c"], &["d"]),
        either("d", &["q"], nested("c"), nested("d")),
        node("Add", &["p", "q"], &["y"]),
    ];
    // c: p = (2x)^2; d is false, so the second is the else branch, whose Not is true: q = 2x - 2x.
    let file = open(&model(&[2], nodes, vec![flag("c", true)], &["y"]));
    assert_eq!(run(&file, &[2], &[1.0, -3.0]).expect("a value").data, [4.0, 36.0]);
}

#[test]
fn what_a_branch_hands_on() {
    // A captured value, an initializer of the branch, one result twice, and one nobody asks for.
    let then =
        inner(vec![node("Mul", &["x", "k"], &["t"])], vec![floats("k", &[2], &[3.0, 4.0])], &["x", "k", "t", "t", "t"]);
    let other = inner(vec![node("Neg", &["x"], &["k"])], vec![], &["k"; 5]);
    let nodes = vec![either("c", &["a", "b", "k", "d", ""], then, other), node("Sum", &["a", "b", "k", "d"], &["y"])];
    let file = open(&model(&[2], nodes, vec![flag("c", true)], &["y"]));
    assert_eq!(run(&file, &[2], &[1.0, 2.0]).expect("a value").data, [1. + 3. + 3. + 3., 2. + 4. + 8. + 8.]);
}

#[test]
fn conditions_on_data_are_refused() {
    let branch = |op: &str| inner(vec![node(op, &["x"], &["t"])], vec![], &["t"]);
    let nodes = vec![
        with(node("ReduceMax", &["x"], &["m"]), vec![int("keepdims", 0)]),
        node("Less", &["m", "zero"], &["c"]),
        either("c", &["y"], branch("Neg"), branch("Relu")),
    ];
    let file = open(&model(&[4, 2], nodes, vec![floats("zero", &[], &[0.0])], &["y"]));
    let e = Planner::new(&file, &SpecFile::default()).err().expect("refused").to_string();
    assert!(e.contains("node \"y\" (If, opset 20): its condition depends on the data"), "{e}");
    assert!(e.contains("--shape"), "{e}");
}

/// A perceptron with its second layer in a branch; both branches have weights, of the same names.
fn layers(c: bool) -> ModelProto {
    let raw = |name: &str, n: i64, by: f32| TensorProto {
        // Beyond what stays in the message.
        raw_data: (0..n * 64).flat_map(|i| (by * ((i % 13) as f32 - 6.0)).to_le_bytes()).collect(),
        ..floats(name, &[64, n], &[])
    };
    let then = inner(vec![node("MatMul", &["h", "w"], &["t"])], vec![raw("w", 10, 0.01)], &["t"]);
    let other =
        inner(vec![node("MatMul", &["h", "w"], &["t"]), node("Neg", &["t"], &["u"])], vec![raw("w", 10, 0.02)], &["u"]);
    let nodes =
        vec![node("MatMul", &["x", "w"], &["g"]), node("Relu", &["g"], &["h"]), either("c", &["logits"], then, other)];
    model(&[8, 64], nodes, vec![raw("w", 64, 0.05), flag("c", c)], &["logits"])
}

fn reopened(bytes: &[u8]) -> OnnxFile {
    open_bytes(bytes).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn weights_of_a_branch_are_trained_and_exported() {
    let x: Vec<f64> = (0..8 * 64).map(|i| f64::from(i % 17) / 8.0 - 1.0).collect();
    for (c, name) in [(true, "logits/w"), (false, "logits/w_")] {
        let file = open(&layers(c));
        let mut spec = SpecFile::default();
        spec.partition.modules = Some(1);
        let mut planner = Planner::new(&file, &spec).unwrap_or_else(|e| panic!("{e}"));
        let names: Vec<&str> = planner.network().sources.keys().map(String::as_str).collect();
        assert_eq!(names, [name, "w"]);
        assert!(
            planner.network().notes.iter().any(|n| n.contains("\"logits\" takes its")),
            "{:?}",
            planner.network().notes
        );
        let compiled = planner.compile(&spec.partition, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        let (mut weights, _) = initial_weights(&compiled, planner.file(), &[]).unwrap_or_else(|e| panic!("{e}"));
        weights.retain(|w| w.name == "w" || w.name == name);
        let bare = skeleton(planner.file(), &compiled.network.sources).unwrap_or_else(|e| panic!("{e}"));
        let trained = weights.iter().map(|w| Trained { name: &w.name, shape: &w.shape, data: &w.data });
        let out = export(&reopened(&bare), &trained.collect::<Vec<_>>(), Norms::Kept).unwrap_or_else(|e| panic!("{e}"));
        // The export holds one branch, no condition, and computes what the file does.
        let graph = ModelProto::parse_from_bytes(&out).expect("a model").graph;
        assert!(graph.node.iter().all(|n| n.op_type != "If"));
        assert_eq!(graph.initializer.len(), 2);
        let (y, again) =
            (run(&file, &[8, 64], &x).expect("a value"), run(&reopened(&out), &[8, 64], &x).expect("a value"));
        assert_eq!(y, again);
    }
}

#[test]
fn names_within_are_new_only_where_they_are_taken() {
    let then = inner(vec![node("MatMul", &["x", "own"], &["t"])], vec![floats("own", &[2, 2], &[1.0; 4])], &["t"]);
    let other = inner(vec![node("MatMul", &["x", "w"], &["t"])], vec![floats("w", &[2, 2], &[2.0; 4])], &["t"]);
    let nodes =
        vec![node("MatMul", &["x", "w"], &["h"]), either("c", &["i"], then, other), node("Add", &["h", "i"], &["y"])];
    for (c, names) in [(true, ["own", "w"]), (false, ["i/w", "w"])] {
        let w = floats("w", &[2, 2], &[1.0; 4]);
        let file = open(&model(&[8, 2], nodes.clone(), vec![w, flag("c", c)], &["y"]));
        let planner = Planner::new(&file, &SpecFile::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(planner.network().sources.keys().map(String::as_str).collect::<Vec<_>>(), names);
    }
}

#[test]
fn damaged_branches_are_errors() {
    let then = || inner(vec![node("Neg", &["x"], &["t"])], vec![], &["t"]);
    let initializers = vec![flag("c", true), floats("two", &[2], &[1.0, 0.0])];
    for (what, n) in [
        ("no branches", node("If", &["c"], &["y"])),
        ("no condition", with(node("If", &[], &["y"]), vec![graph_attribute("then_branch", then())])),
        ("fewer results than the node", either("c", &["z", "y"], then(), then())),
        ("two conditions", either("two", &["y"], then(), then())),
        ("itself", either("y", &["y"], then(), then())),
    ] {
        let file = open_bytes(&bytes(&model(&[8, 2], vec![n], initializers.clone(), &["y"]))).expect("a model");
        assert!(Planner::new(&file, &SpecFile::default()).is_err(), "{what}");
    }
}
