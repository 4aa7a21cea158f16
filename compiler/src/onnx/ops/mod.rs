//! Conversions of ONNX ops to IR, a file a family. Most are decompositions; the tables here are also what
//! `slrc ops` and docs/ops.md print.

mod activation;
mod arrange;
mod attention;
mod bits;
mod constant;
mod control;
mod einsum;
mod elementwise;
mod index;
mod linear;
mod linear_attention;
mod loss;
mod norm;
mod place;
mod pool;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod sample;
mod search;
mod shape;
mod signal;
mod trigonometry;
mod window;

use onnx_protobuf::NodeProto;

use crate::onnx::node::{Cx, Out};
pub(crate) use random::DRAW;

/// A conversion.
pub(crate) type Convert = fn(&mut Cx<'_, '_, '_>) -> Result<Vec<Out>, String>;

/// One supported ONNX op.
pub struct Entry {
    /// ONNX operator.
    pub op: &'static str,
    /// How it is computed, and what of it is not supported.
    pub note: &'static str,
    pub(crate) convert: Convert,
}

const FAMILIES: &[&[Entry]] = &[
    activation::OPS,
    arrange::OPS,
    attention::OPS,
    bits::OPS,
    constant::OPS,
    control::OPS,
    einsum::OPS,
    elementwise::OPS,
    index::OPS,
    linear::OPS,
    linear_attention::OPS,
    loss::OPS,
    norm::OPS,
    place::OPS,
    pool::OPS,
    quantize::OPS,
    random::OPS,
    recurrent::OPS,
    reduce::OPS,
    resize::OPS,
    sample::OPS,
    search::OPS,
    shape::OPS,
    signal::OPS,
    trigonometry::OPS,
];

/// Every supported op, by name.
pub fn all() -> Vec<&'static Entry> {
    let mut out: Vec<&Entry> = FAMILIES.iter().flat_map(|f| f.iter()).collect();
    out.sort_by_key(|e| e.op);
    out
}

pub(crate) fn find(n: &NodeProto) -> Option<&'static Entry> {
    if !(n.domain.is_empty() || n.domain == "ai.onnx") {
        return None;
    }
    FAMILIES.iter().flat_map(|f| f.iter()).find(|e| e.op == n.op_type)
}

pub(crate) fn unsupported(n: &NodeProto) -> String {
    if !(n.domain.is_empty() || n.domain == "ai.onnx") {
        "only ONNX's own operators are supported".into()
    } else {
        "not supported".into()
    }
}

/// One float output.
pub(crate) fn real(id: crate::ir::graph::NodeId) -> Result<Vec<Out>, String> {
    Ok(vec![Out::Node(id, crate::onnx::tensor::Elem::Float)])
}
