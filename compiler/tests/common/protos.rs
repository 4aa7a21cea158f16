//! ONNX models made in tests, piece by piece, and what they compute.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::type_proto::{Tensor as TensorType, Value as TypeValue};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension::Value as Extent,
};
use slrc_compiler::ir::Tensor;
use slrc_compiler::ir::graph::{Root, RootKind};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::forward::{Given, Value, forward};
use slrc_compiler::onnx::import::read_weight;
use slrc_compiler::onnx::tensor::Elem;
use slrc_compiler::simplify::{Mode, specialise};

pub(crate) fn strings(v: &[&str]) -> Vec<String> {
    v.iter().map(|s| s.to_string()).collect()
}

/// A node named after its first output.
pub(crate) fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    let name = output.first().copied().unwrap_or(op).to_string();
    NodeProto { op_type: op.into(), name, input: strings(input), output: strings(output), ..Default::default() }
}

pub(crate) fn with(mut n: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    n.attribute.extend(attributes);
    n
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, type_: AttributeType::INT.into(), ..Default::default() }
}

pub(crate) fn ints_attribute(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: ints.to_vec(), type_: AttributeType::INTS.into(), ..Default::default() }
}

pub(crate) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, type_: AttributeType::FLOAT.into(), ..Default::default() }
}

pub(crate) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        s: s.as_bytes().to_vec(),
        type_: AttributeType::STRING.into(),
        ..Default::default()
    }
}

pub(crate) fn graph_attribute(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { name: name.into(), g: Some(g).into(), type_: AttributeType::GRAPH.into(), ..Default::default() }
}

pub(crate) fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: data.to_vec(),
        ..Default::default()
    }
}

pub(crate) fn ints(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 7,
        int64_data: data.to_vec(),
        ..Default::default()
    }
}

pub(crate) fn flag(name: &str, data: bool) -> TensorProto {
    TensorProto { name: name.into(), data_type: 9, int32_data: vec![i32::from(data)], ..Default::default() }
}

/// A tensor value; without extents its shape is not said.
pub(crate) fn value(name: &str, code: i32, dims: Option<&[i64]>) -> ValueInfoProto {
    let dim = |&d: &i64| Dimension { value: Some(Extent::DimValue(d)), ..Default::default() };
    let shape = dims.map(|d| TensorShapeProto { dim: d.iter().map(dim).collect(), ..Default::default() });
    let tensor = TensorType { elem_type: code, shape: shape.into(), ..Default::default() };
    let ty = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

/// A graph inside a node.
pub(crate) fn inner(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, output: &[&str]) -> GraphProto {
    let output = output.iter().map(|o| value(o, 1, None)).collect();
    GraphProto { name: "inner".into(), node: nodes, initializer, output, ..Default::default() }
}

/// A model of opset 20 with an input `x` and outputs `y..`.
pub(crate) fn model(dims: &[i64], nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, output: &[&str]) -> ModelProto {
    let mut graph = inner(nodes, initializer, output);
    graph.input.push(value("x", 1, Some(dims)));
    let opset_import = vec![OperatorSetIdProto { version: 20, ..Default::default() }];
    ModelProto { ir_version: 9, graph: Some(graph).into(), opset_import, ..Default::default() }
}

pub(crate) fn bytes(model: &ModelProto) -> Vec<u8> {
    model.write_to_bytes().expect("bytes")
}

pub(crate) fn open_bytes(bytes: &[u8]) -> Result<OnnxFile, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).expect("a file");
    OnnxFile::open(&path).map_err(|e| e.to_string())
}

pub(crate) fn open(model: &ModelProto) -> OnnxFile {
    open_bytes(&bytes(model)).unwrap_or_else(|e| panic!("{e}"))
}

/// The first output for an input `x` in inference, weights as the file has them.
pub(crate) fn run(file: &OnnxFile, shape: &[usize], x: &[f64]) -> Result<Tensor, String> {
    let given = BTreeMap::from([("x".to_string(), Given::Data(Elem::Float, shape.to_vec()))]);
    let f = forward(file, &given).map_err(|e| e.to_string())?;
    let mut env = Env::default();
    env.inputs.insert(f.inputs["x"], Tensor::new(shape.to_vec(), x.to_vec()));
    for (name, source) in &f.sources {
        let id = f.graph.variable(name).expect("a variable");
        let data = read_weight(file, &source.source).map_err(|e| e.to_string())?;
        let shape = f.graph.variables[id.index()].ty.shape.clone();
        env.variables.insert(id, Tensor::new(shape, data.iter().map(|&x| f64::from(x)).collect()));
    }
    match &f.outputs[0] {
        Value::Node(y, _) => {
            let mut graph = f.graph.clone();
            graph.roots = vec![Root { kind: RootKind::Report("output".into()), value: *y }];
            let graph = specialise(&graph, Mode::Eval);
            let y = graph.roots[0].value;
            Ok(evaluate(&graph, &env, &[y]).remove(0))
        }
        Value::Known(c) => Ok(Tensor::new(c.shape.clone(), c.data.clone())),
    }
}
