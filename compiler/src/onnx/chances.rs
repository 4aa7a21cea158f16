//! Draws of 0 or 1 in a file for inference: each is its chance, as in a plan's inference, so that an export draws no
//! random numbers where training dropped something out by them ([`crate::onnx::ops`] says of import the same).
//!
//! A uniform number that is compared with a known one, and the flag cast to a float, becomes the chance in the draw's
//! shape; a Bernoulli of floats becomes the chances it is given. Other draws stay.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};
use protobuf::Enum as _;

use crate::onnx::protos::{call, constant, identity, int_attribute, int_of, integers, is_onnx_op, named};
use crate::onnx::tensor::is_weight_type;

/// `Expand` is there, and comparisons broadcast, from this opset on.
const FROM: i64 = 8;

/// A comparison that a chance takes the place of.
struct Draw {
    /// What is drawn: position of its node.
    node: usize,
    chance: f32,
    /// Extents of what it is compared with, of one element.
    dims: Vec<i64>,
}

/// Puts chances in the place of draws.
pub(crate) fn settle(graph: &mut GraphProto, initializers: &[TensorProto], opset: i64) {
    if opset < FROM {
        return;
    }
    let makers: BTreeMap<&str, usize> =
        graph.node.iter().enumerate().flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i))).collect();
    let known = Known { nodes: &graph.node, makers: &makers, initializers };
    let mut taken: BTreeSet<String> = graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
    taken.extend(known.initializers.iter().map(|t| t.name.clone()));
    let mut new_name = |wanted: String| {
        let mut name = wanted;
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        name
    };
    let (mut nodes, mut settled) = (Vec::new(), false);
    for n in &graph.node {
        if is_onnx_op(n) && n.op_type == "Bernoulli" && is_float(int_attribute(n, "dtype").unwrap_or(1)) {
            let (Some(from), Some(to)) = (named(n, 0), named(n, 0).and(n.output.first())) else {
                nodes.push(n.clone());
                continue;
            };
            nodes.push(match int_attribute(n, "dtype") {
                Some(to_type) => call("Cast", &[from], &[to], vec![int_of("to", to_type)]),
                None => identity(from, to),
            });
            settled = true;
            continue;
        }
        let mut n = n.clone();
        if let Some((flag, draw)) = number_of_flag(&n).and_then(|flag| Some((flag, known.draw(flag)?))) {
            let shape = new_name(format!("{flag}.shape"));
            nodes.push(known.shape_of(draw.node, &shape));
            let one = new_name(format!("{flag}.chance"));
            let (data_type, float_data) = (DataType::FLOAT.value(), vec![draw.chance]);
            nodes.push(constant(&one, TensorProto { dims: draw.dims, data_type, float_data, ..Default::default() }));
            let spread = new_name(format!("{flag}.chances"));
            nodes.push(call("Expand", &[&one, &shape], &[&spread], Vec::new()));
            n.input[0] = spread;
            settled = true;
        }
        nodes.push(n);
    }
    if !settled {
        return;
    }
    graph.node = nodes;
    drop_unread(graph);
}

fn is_float(data_type: i64) -> bool {
    i32::try_from(data_type).is_ok_and(is_weight_type)
}

/// The flag that a node makes a float of.
fn number_of_flag(n: &NodeProto) -> Option<&str> {
    let to_float = n.op_type == "Cast" && int_attribute(n, "to").is_some_and(is_float) || n.op_type == "CastLike";
    named(n, 0).filter(|_| is_onnx_op(n) && to_float)
}

/// Takes away draws, and comparisons of them, that nothing reads any more.
fn drop_unread(graph: &mut GraphProto) {
    let ops = ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "RandomUniform", "RandomUniformLike"];
    // Comparisons first, then what they compared.
    for of in [&ops[..4], &ops[4..]] {
        let mut read: BTreeSet<String> =
            graph.node.iter().flat_map(crate::onnx::import::reads).map(str::to_string).collect();
        read.extend(graph.output.iter().map(|o| o.name.clone()));
        graph.node.retain(|n| !of.contains(&n.op_type.as_str()) || n.output.iter().any(|o| read.contains(o)));
    }
}

/// What can be told of values without computing.
struct Known<'a> {
    nodes: &'a [NodeProto],
    makers: &'a BTreeMap<&'a str, usize>,
    initializers: &'a [TensorProto],
}

impl Known<'_> {
    fn maker(&self, name: &str) -> Option<(usize, &NodeProto)> {
        let &i = self.makers.get(name)?;
        Some((i, self.nodes.get(i)?)).filter(|(_, n)| is_onnx_op(n))
    }

    /// A uniform number below 1 compared with a known one.
    fn draw(&self, flag: &str) -> Option<Draw> {
        let (_, n) = self.maker(flag)?;
        let (left, right) = (named(n, 0)?, named(n, 1)?);
        // Whether the flag says that the left one is less.
        let less = match n.op_type.as_str() {
            "Less" | "LessOrEqual" => true,
            "Greater" | "GreaterOrEqual" => false,
            _ => return None,
        };
        let (node, other, drawn_less) = match (self.uniform(left), self.uniform(right)) {
            (Some(i), None) => (i, right, less),
            (None, Some(i)) => (i, left, !less),
            _ => return None,
        };
        let (number, dims) = self.number(other)?;
        let below = number.clamp(0.0, 1.0);
        Some(Draw { node, chance: if drawn_less { below } else { 1.0 - below }, dims })
    }

    fn uniform(&self, name: &str) -> Option<usize> {
        let (i, n) = self.maker(name)?;
        let float = |name: &str, default: f32| n.attribute.iter().find(|a| a.name == name).map_or(default, |a| a.f);
        let plain = float("low", 0.0) == 0.0 && float("high", 1.0) == 1.0;
        (plain && matches!(n.op_type.as_str(), "RandomUniform" | "RandomUniformLike")).then_some(i)
    }

    /// The one number of a float tensor that the file holds, behind casts between floats, and its extents.
    fn number(&self, name: &str) -> Option<(f32, Vec<i64>)> {
        let mut name = name;
        // No file is deeper than this without being made to be.
        for _ in 0..16 {
            if let Some(t) = self.initializers.iter().find(|t| t.name == name) {
                return number_in(t);
            }
            let (_, n) = self.maker(name)?;
            match n.op_type.as_str() {
                "Identity" | "CastLike" => name = named(n, 0)?,
                "Cast" if int_attribute(n, "to").is_some_and(is_float) => name = named(n, 0)?,
                "Constant" => {
                    let a = n.attribute.first()?;
                    return match a.name.as_str() {
                        "value" => number_in(&a.t),
                        "value_float" => Some((a.f, Vec::new())),
                        _ => None,
                    };
                }
                _ => return None,
            }
        }
        None
    }

    /// A node that makes the shape of what another draws.
    fn shape_of(&self, draw: usize, name: &str) -> NodeProto {
        let n = &self.nodes[draw];
        match named(n, 0) {
            Some(like) => call("Shape", &[like], &[name], Vec::new()),
            None => {
                let dims = n.attribute.iter().find(|a| a.name == "shape").map_or_else(Vec::new, |a| a.ints.clone());
                integers(name, dims)
            }
        }
    }
}

fn number_in(t: &TensorProto) -> Option<(f32, Vec<i64>)> {
    if t.dims.iter().product::<i64>() != 1 {
        return None;
    }
    let raw = |n: usize| (t.raw_data.len() == n).then_some(&t.raw_data[..]);
    let x = match DataType::from_i32(t.data_type)? {
        DataType::FLOAT => {
            raw(4).and_then(|r| r.try_into().ok().map(f32::from_le_bytes)).or_else(|| t.float_data.first().copied())?
        }
        DataType::DOUBLE => raw(8)
            .and_then(|r| r.try_into().ok().map(f64::from_le_bytes))
            .or_else(|| t.double_data.first().copied())? as f32,
        _ => return None,
    };
    Some((x, t.dims.clone()))
}
