//! Reductions.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "ReduceSum", note: "", convert: |cx| reduce(cx, 13, |cx, x, axes| cx.b.sum(x, axes)) },
    Entry { op: "ReduceMean", note: "", convert: |cx| reduce(cx, 18, |cx, x, axes| cx.b.mean(x, axes)) },
    Entry { op: "ReduceMax", note: "", convert: |cx| reduce(cx, 18, |cx, x, axes| cx.b.max(x, axes)) },
    Entry { op: "ReduceMin", note: "-max(-x)", convert: |cx| reduce(cx, 18, minimum) },
    Entry { op: "ReduceL2", note: "sqrt(sum(x^2))", convert: |cx| reduce(cx, 18, norm) },
    Entry { op: "ReduceSumSquare", note: "sum(x^2)", convert: |cx| reduce(cx, 18, sum_square) },
    Entry { op: "ReduceLogSumExp", note: "", convert: |cx| reduce(cx, 18, |cx, x, axes| cx.b.log_sum_exp(x, axes)) },
];

type R = Result<Vec<Out>, String>;

fn minimum(cx: &mut Cx<'_, '_, '_>, x: NodeId, axes: &[usize]) -> NodeId {
    let minus = cx.b.neg(x);
    let m = cx.b.max(minus, axes);
    cx.b.neg(m)
}

fn sum_square(cx: &mut Cx<'_, '_, '_>, x: NodeId, axes: &[usize]) -> NodeId {
    let square = cx.b.mul(x, x);
    cx.b.sum(square, axes)
}

fn norm(cx: &mut Cx<'_, '_, '_>, x: NodeId, axes: &[usize]) -> NodeId {
    let s = sum_square(cx, x, axes);
    cx.b.map(ScalarFn::Sqrt, &[s])
}

/// Axes are an input since opset `since`, an attribute before.
fn reduce(cx: &mut Cx<'_, '_, '_>, since: i64, f: fn(&mut Cx<'_, '_, '_>, NodeId, &[usize]) -> NodeId) -> R {
    let elem = cx.elem(0)?;
    let x = cx.real(0)?;
    let shape = cx.b.shape(x);
    let given = if cx.present(1) {
        Some(cx.known_ints(1, "the axes")?)
    } else if cx.opset < since || cx.has("axes") {
        cx.ints("axes")
    } else {
        None
    };
    let axes = match given {
        Some(a) if !a.is_empty() => cx.axes(&a, shape.len())?,
        _ if cx.int("noop_with_empty_axes", 0) != 0 => return Ok(vec![Out::Node(x, elem)]),
        _ => (0..shape.len()).collect(),
    };
    let mut y = f(cx, x, &axes);
    if cx.int("keepdims", 1) == 0 {
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
        y = cx.b.reshape(y, &kept);
    }
    Ok(vec![Out::Node(y, elem)])
}
