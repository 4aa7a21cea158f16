//! Model-local functions mean what their bodies say in place of each call, and cannot be used to fill memory.

use std::collections::BTreeMap;

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::type_proto::{Tensor as TensorType, Value as TypeValue};
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto, TypeProto,
    ValueInfoProto,
};
use slrc_compiler::ir::Tensor;
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::forward::{Given, Value, forward};
use slrc_compiler::onnx::tensor::Elem;

fn node(domain: &str, op: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let strings = |v: &[&str]| v.iter().map(|s| s.to_string()).collect();
    NodeProto {
        domain: domain.into(),
        op_type: op.into(),
        name: format!("n_{}", output[0]),
        input: strings(input),
        output: strings(output),
        attribute,
        ..Default::default()
    }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, type_: AttributeType::FLOAT.into(), ..Default::default() }
}

fn reference(name: &str, to: &str) -> AttributeProto {
    let (name, ref_attr_name) = (name.into(), to.into());
    AttributeProto { name, ref_attr_name, type_: AttributeType::FLOAT.into(), ..Default::default() }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.into(), version, ..Default::default() }
}

fn function(name: &str, input: &[&str], output: &[&str], node: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        domain: "local".into(),
        name: name.into(),
        input: input.iter().map(|s| s.to_string()).collect(),
        output: output.iter().map(|s| s.to_string()).collect(),
        node,
        opset_import: vec![opset("", 20), opset("local", 1)],
        ..Default::default()
    }
}

fn value(name: &str) -> ValueInfoProto {
    let tensor = TensorType { elem_type: 1, ..Default::default() };
    let ty = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

fn open(functions: Vec<FunctionProto>, nodes: Vec<NodeProto>) -> Result<OnnxFile, String> {
    let graph = GraphProto { node: nodes, input: vec![value("x")], output: vec![value("y")], ..Default::default() };
    let opset_import = vec![opset("", 20), opset("local", 1)];
    let model = ModelProto { ir_version: 9, graph: Some(graph).into(), functions, opset_import, ..Default::default() };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.write_to_bytes().expect("bytes")).expect("a file");
    OnnxFile::open(&path).map_err(|e| e.to_string())
}

/// `scaled(a) = alpha a`, with a default.
fn scaled() -> FunctionProto {
    let body = vec![
        node("", "Constant", &[], &["c"], vec![reference("value_float", "alpha")]),
        node("", "Mul", &["a", "c"], &["out"], vec![]),
    ];
    FunctionProto { attribute_proto: vec![float("alpha", 3.0)], ..function("scaled", &["a"], &["out"], body) }
}

#[test]
fn calls_are_their_bodies() {
    // both(a) = (relu(a) * factor + 3 a, a): a nested call with the caller's attribute, one with the default, and an
    // input handed on.
    let body = vec![
        node("", "Relu", &["a"], &["t"], vec![]),
        node("local", "scaled", &["t"], &["u"], vec![reference("alpha", "factor")]),
        node("local", "scaled", &["a"], &["v"], vec![]),
        node("", "Add", &["u", "v"], &["sum"], vec![]),
    ];
    let mut both = function("both", &["a"], &["sum", "a"], body);
    both.attribute = vec!["factor".into()];
    // Two calls, whose inner names must not meet.
    let nodes = vec![
        node("local", "both", &["x"], &["p", "q"], vec![float("factor", 2.0)]),
        node("local", "both", &["p"], &["r"], vec![float("factor", -1.0)]),
        node("", "Sub", &["r", "q"], &["y"], vec![]),
    ];
    let file = open(vec![scaled(), both], nodes).expect("a model");
    let given = BTreeMap::from([("x".to_string(), Given::Data(Elem::Float, vec![4]))]);
    let f = forward(&file, &given).unwrap_or_else(|e| panic!("{e}"));
    let x = vec![-2.0, -0.5, 0.25, 3.0];
    let mut env = Env::default();
    env.inputs.insert(f.inputs["x"], Tensor::new(vec![4], x.clone()));
    let Value::Node(y, Elem::Float) = f.outputs[0] else { panic!("a computed output") };
    let both = |a: f64, factor: f64| a.max(0.0) * factor + 3.0 * a;
    let expected: Vec<f64> = x.iter().map(|&x| both(both(x, 2.0), -1.0) - x).collect();
    assert_eq!(evaluate(&f.graph, &env, &[y])[0].data, expected);
}

fn graph(name: &str, nodes: Vec<NodeProto>) -> AttributeProto {
    let g = GraphProto { node: nodes, output: vec![value("t")], ..Default::default() };
    AttributeProto { name: name.into(), g: Some(g).into(), type_: AttributeType::GRAPH.into(), ..Default::default() }
}

#[test]
fn calls_in_a_branch_are_their_bodies() {
    let branch = |name: &str, alpha: f32| {
        graph(name, vec![node("local", "scaled", &["x"], &["t"], vec![float("alpha", alpha)])])
    };
    let mut c = node("", "Constant", &[], &["c"], vec![]);
    c.attribute.push(AttributeProto {
        name: "value_int".into(),
        i: 1,
        type_: AttributeType::INT.into(),
        ..Default::default()
    });
    let branches = vec![branch("then_branch", -2.0), branch("else_branch", 5.0)];
    let file = open(vec![scaled()], vec![c, node("", "If", &["c"], &["y"], branches)]).expect("a model");
    let given = BTreeMap::from([("x".to_string(), Given::Data(Elem::Float, vec![2]))]);
    let f = forward(&file, &given).unwrap_or_else(|e| panic!("{e}"));
    let mut env = Env::default();
    env.inputs.insert(f.inputs["x"], Tensor::new(vec![2], vec![1.0, 2.0]));
    let Value::Node(y, Elem::Float) = f.outputs[0] else { panic!("a computed output") };
    assert_eq!(evaluate(&f.graph, &env, &[y])[0].data, [-2.0, -4.0]);
}

/// Functions that hand a graph or numbers down, twice in each call: 2^40 copies of it in the end.
#[test]
fn attributes_handed_down_do_not_fill_memory() {
    let handed = |name: &str, kind: AttributeType| AttributeProto {
        name: name.into(),
        ref_attr_name: "given".into(),
        type_: kind.into(),
        ..Default::default()
    };
    let mut functions = Vec::new();
    for i in 0..40 {
        let both = ["then_branch", "else_branch"].map(|b| handed(b, AttributeType::GRAPH)).to_vec();
        let twice = graph("given", vec![node("", "If", &["a"], &["t"], both)]);
        let callee = if i == 0 { ("", "Relu".to_string()) } else { ("local", format!("f{}", i - 1)) };
        let call = node(callee.0, &callee.1, &["a"], &["b"], vec![twice]);
        functions.push(function(&format!("f{i}"), &["a"], &["b"], vec![call]));
    }
    let call =
        node("local", "f39", &["x"], &["y"], vec![graph("given", vec![node("", "Neg", &["x"], &["t"], vec![])])]);
    let e = open(functions, vec![call]).err().expect("too many copies");
    assert!(e.contains("nodes and attributes"), "{e}");
    // A constant of a megabyte, a thousand times.
    let constants = (0..1000)
        .map(|i| node("", "Constant", &[], &[&format!("c{i}")], vec![handed("value_floats", AttributeType::FLOATS)]));
    let many = function("many", &["a"], &["c0"], constants.collect());
    let floats = AttributeProto {
        name: "given".into(),
        floats: vec![1.0; 1 << 18],
        type_: AttributeType::FLOATS.into(),
        ..Default::default()
    };
    let e =
        open(vec![many], vec![node("local", "many", &["x"], &["y"], vec![floats])]).err().expect("too many numbers");
    assert!(e.contains("nodes and attributes"), "{e}");
}

#[test]
fn calls_that_make_no_sense() {
    let call = |name: &str| vec![node("local", name, &["x"], &["y"], vec![])];
    let own = function("own", &["a"], &["b"], vec![node("local", "own", &["a"], &["b"], vec![])]);
    let mut old = scaled();
    old.opset_import[0].version = 13;
    // Each function calls the one before eight times: 8^12 nodes.
    let mut bomb = vec![scaled()];
    bomb[0].name = "f0".into();
    for i in 1..=12 {
        let names: Vec<String> = (0..=8).map(|k| if k == 8 { "b".into() } else { format!("v{k}") }).collect();
        let inner = (0..8).map(|k| {
            let from = if k == 0 { "a" } else { &names[k] };
            node("local", &format!("f{}", i - 1), &[from], &[&names[k + 1]], vec![])
        });
        bomb.push(function(&format!("f{i}"), &["a"], &["b"], inner.collect()));
    }
    let two = vec![node("local", "scaled", &["x", "x"], &["y"], vec![])];
    for (functions, nodes, words) in [
        (vec![own], call("own"), "calls itself"),
        (vec![old], call("scaled"), "is written for opset 13 of ONNX, the model for 20"),
        (bomb, call("f12"), "make more than 524288 nodes"),
        (vec![scaled(), scaled()], call("scaled"), "two of its functions have the same name"),
        (vec![scaled()], two, "has more inputs or outputs than it"),
    ] {
        let e = open(functions, nodes).err().expect(words);
        assert!(e.contains(words), "{e}");
    }
}
