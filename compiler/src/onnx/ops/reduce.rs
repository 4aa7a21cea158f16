//! Reductions.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::ops::shape::Slice;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "ReduceSum", note: "", convert: |cx| reduce(cx, 13, |cx, x, axes| cx.b.sum(x, axes)) },
    Entry { op: "ReduceMean", note: "", convert: |cx| reduce(cx, 18, |cx, x, axes| cx.b.mean(x, axes)) },
    Entry { op: "ReduceMax", note: "", convert: |cx| reduce(cx, 18, |cx, x, axes| cx.b.max(x, axes)) },
    Entry { op: "ReduceMin", note: "-max(-x)", convert: |cx| reduce(cx, 18, minimum) },
    Entry { op: "ReduceProd", note: "product of slices, at most 64", convert: product },
    Entry { op: "ReduceL1", note: "sum(|x|)", convert: |cx| reduce(cx, 18, sum_abs) },
    Entry { op: "ReduceLogSum", note: "log(sum(x))", convert: |cx| reduce(cx, 18, log_sum) },
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

fn sum_abs(cx: &mut Cx<'_, '_, '_>, x: NodeId, axes: &[usize]) -> NodeId {
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    cx.b.sum(abs, axes)
}

fn log_sum(cx: &mut Cx<'_, '_, '_>, x: NodeId, axes: &[usize]) -> NodeId {
    let s = cx.b.sum(x, axes);
    cx.b.map(ScalarFn::Log, &[s])
}

/// Most factors of a product.
const FACTORS: usize = 64;

fn product(cx: &mut Cx<'_, '_, '_>) -> R {
    let shape = cx.shape(0)?;
    if shape.iter().any(|&d| d > FACTORS) {
        return Err(format!("products of more than {FACTORS} numbers are not supported"));
    }
    reduce(cx, 18, |cx, x, axes| {
        axes.iter().fold(x, |x, &d| {
            let mut shape = cx.b.shape(x);
            let (n, rank) = (shape[d], shape.len());
            shape[d] = 1;
            let mut y = cx.b.splat(1.0, &shape);
            for i in 0..n {
                let mut starts = vec![0; rank];
                starts[d] = i;
                let part = cx.b.slice(x, Slice { starts, steps: vec![1; rank], shape: shape.clone() });
                y = cx.b.mul(y, part);
            }
            y
        })
    })
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
    let (elem, keep) = (cx.elem(0)?, cx.int("keepdims", 1) != 0);
    let nothing = cx.int("noop_with_empty_axes", 0) != 0;
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
        _ if nothing => {
            let y = f(cx, x, &[]);
            return Ok(vec![Out::Node(y, elem)]);
        }
        _ => (0..shape.len()).collect(),
    };
    let mut y = f(cx, x, &axes);
    if !keep {
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
        y = cx.b.reshape(y, &kept);
    }
    Ok(vec![Out::Node(y, elem)])
}
