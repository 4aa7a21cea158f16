//! Models put together by hand, node by node.
#![allow(dead_code, reason = "each test file uses a part")]

use onnx_protobuf::type_proto::{Tensor, Value};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto::Dimension,
};
use slrc_plan::random::Sequence;

/// A model under construction: one input `x`, one output `y`.
pub(crate) struct Made {
    pub(crate) graph: GraphProto,
    opsets: Vec<(&'static str, i64)>,
    pub(crate) ir_version: i64,
}

fn port(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
    let dims = dims.iter().map(|&d| {
        let mut dim = Dimension::new();
        match d {
            -1 => {}
            0 => dim.set_dim_param("batch".into()),
            d => dim.set_dim_value(d),
        }
        dim
    });
    let shape = TensorShapeProto { dim: dims.collect(), ..Default::default() };
    let tensor = Tensor { elem_type, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

impl Made {
    /// Extents of input and output; the batch is written 0, an open one -1.
    pub(crate) fn new(x: &[i64], y: &[i64]) -> Made {
        let graph = GraphProto {
            name: "made".into(),
            input: vec![port("x", 1, x)],
            output: vec![port("y", 1, y)],
            ..Default::default()
        };
        Made { graph, opsets: vec![("", 20)], ir_version: 9 }
    }

    /// The input holds table indices.
    pub(crate) fn of_indices(mut self, x: &[i64]) -> Made {
        self.graph.input = vec![port("x", 7, x)];
        self
    }

    pub(crate) fn opset(mut self, version: i64) -> Made {
        self.opsets[0].1 = version;
        self
    }

    /// Another operator set.
    pub(crate) fn domain(mut self, name: &'static str) -> Made {
        self.opsets.push((name, 1));
        self
    }

    /// A node named after its first output, `op` with its domain.
    pub(crate) fn node(mut self, op: &str, inputs: &str, outputs: &str) -> Made {
        let (domain, op) = op.rsplit_once('.').unwrap_or(("", op));
        let words = |s: &str| s.split_whitespace().map(String::from).collect::<Vec<_>>();
        let output = words(outputs);
        self.graph.node.push(NodeProto {
            name: format!("n_{}", output[0]),
            op_type: op.into(),
            domain: domain.into(),
            input: words(inputs),
            output,
            ..Default::default()
        });
        self
    }

    /// An integer attribute of the last node.
    pub(crate) fn int(mut self, name: &str, i: i64) -> Made {
        let node = self.graph.node.last_mut().expect("a node");
        node.attribute.push(AttributeProto {
            name: name.into(),
            type_: AttributeType::INT.into(),
            i,
            ..Default::default()
        });
        self
    }

    /// A list of integers as an attribute of the last node.
    pub(crate) fn ints(mut self, name: &str, ints: &[i64]) -> Made {
        let node = self.graph.node.last_mut().expect("a node");
        node.attribute.push(AttributeProto {
            name: name.into(),
            type_: AttributeType::INTS.into(),
            ints: ints.to_vec(),
            ..Default::default()
        });
        self
    }

    /// A float initializer of random numbers.
    pub(crate) fn weight(mut self, name: &str, dims: &[i64]) -> Made {
        let count: i64 = dims.iter().product();
        let mut rng = Sequence::new(3, slrc_plan::random::stream_of(name), 0);
        let data = (0..count).map(|_| 0.5 * rng.normal()).collect();
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: 1,
            float_data: data,
            ..Default::default()
        });
        self
    }

    /// A float initializer of one number, over and over.
    pub(crate) fn constant(mut self, name: &str, dims: &[i64], value: f32) -> Made {
        let count: i64 = dims.iter().product();
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: 1,
            float_data: vec![value; count as usize],
            ..Default::default()
        });
        self
    }

    /// Lists every initializer as an input, as old files do.
    pub(crate) fn list_initializers(&mut self) {
        let all: Vec<ValueInfoProto> = self.graph.initializer.iter().map(|t| port(&t.name, 1, &t.dims)).collect();
        self.graph.input.extend(all);
    }

    /// The file.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let opset = |&(domain, version): &(&str, i64)| OperatorSetIdProto {
            domain: domain.into(),
            version,
            ..Default::default()
        };
        let model = ModelProto {
            ir_version: self.ir_version,
            producer_name: "hand".into(),
            opset_import: self.opsets.iter().map(opset).collect(),
            graph: Some(self.graph).into(),
            ..Default::default()
        };
        model.write_to_bytes().expect("serialize")
    }
}
