//! Small nodes, and what is asked of nodes, where a model is rewritten before import.

use onnx_protobuf::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType, tensor_proto::DataType};
use protobuf::Enum as _;

/// Whether an operator is ONNX's own.
pub(crate) fn is_onnx_op(n: &NodeProto) -> bool {
    n.domain.is_empty() || n.domain == "ai.onnx"
}

/// Input `i`, unless it is left out.
pub(crate) fn named(n: &NodeProto, i: usize) -> Option<&str> {
    n.input.get(i).map(String::as_str).filter(|s| !s.is_empty())
}

pub(crate) fn int_attribute(n: &NodeProto, name: &str) -> Option<i64> {
    n.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}

/// Number `i` of an attribute; 0 where it does not say.
pub(crate) fn axis_of<'a>(n: &'a NodeProto, name: &str) -> impl Fn(usize) -> i64 + 'a {
    let ints: &[i64] = n.attribute.iter().find(|a| a.name == name).map_or(&[], |a| &a.ints);
    move |i| ints.get(i).copied().unwrap_or(0)
}

pub(crate) fn int_of(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::INT.into(), i, ..Default::default() }
}

pub(crate) fn ints_of(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::INTS.into(), ints, ..Default::default() }
}

pub(crate) fn call(op: &str, input: &[&str], output: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
    NodeProto { op_type: op.into(), input: names(input), output: names(output), attribute, ..Default::default() }
}

pub(crate) fn identity(from: &str, to: &str) -> NodeProto {
    call("Identity", &[from], &[to], Vec::new())
}

/// A tensor of the file as a node, which is never a weight.
pub(crate) fn constant(name: &str, t: TensorProto) -> NodeProto {
    let attribute = AttributeProto {
        name: "value".into(),
        type_: AttributeType::TENSOR.into(),
        t: Some(t).into(),
        ..Default::default()
    };
    call("Constant", &[], &[name], vec![attribute])
}

/// A number without dimensions.
pub(crate) fn integer(name: &str, i: i64) -> NodeProto {
    constant(name, TensorProto { data_type: DataType::INT64.value(), int64_data: vec![i], ..Default::default() })
}

/// A list of numbers.
pub(crate) fn integers(name: &str, all: Vec<i64>) -> NodeProto {
    let (dims, data_type) = (vec![all.len() as i64], DataType::INT64.value());
    constant(name, TensorProto { dims, data_type, int64_data: all, ..Default::default() })
}

pub(crate) fn flag(name: &str, on: bool) -> NodeProto {
    let data_type = DataType::BOOL.value();
    constant(name, TensorProto { data_type, int32_data: vec![i32::from(on)], ..Default::default() })
}
