//! Where the largest elements are.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::types::DType;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::arrange::marks;
use crate::onnx::ops::norm::softmax_axes;
use crate::onnx::ops::shape::any;
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "ArgMax", note: "", convert: |cx| arg(cx, false) },
    Entry { op: "ArgMin", note: "", convert: |cx| arg(cx, true) },
    Entry { op: "Hardmax", note: "", convert: hardmax },
    Entry { op: "TopK", note: "K known at import, at most 64", convert: top_k },
];

type R = Result<Vec<Out>, String>;

/// The index of the largest element of `axis`, the first or last of several; the axis stays with extent 1.
fn largest(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, last: bool) -> Result<NodeId, String> {
    let s = cx.b.shape(x);
    let top = cx.b.max(x, &[axis]);
    let top = cx.b.broadcast(top, &s);
    let flags = cx.b.map(ScalarFn::Eq, &[x, top]);
    let mut along = vec![1; s.len()];
    along[axis] = s[axis];
    // The first is the largest of what counts down.
    let n = s[axis] as f64;
    let count = |i: usize| if last { i as f64 } else { n - 1.0 - i as f64 };
    let range = cx.table(DType::F32, &along, count)?;
    let range = cx.b.broadcast(range, &s);
    let none = cx.b.splat(-1.0, &s);
    let marked = cx.b.select(flags, range, none);
    let found = cx.b.max(marked, &[axis]);
    if last {
        return Ok(found);
    }
    let minus = cx.b.neg(found);
    Ok(cx.b.offset(minus, n - 1.0))
}

fn arg(cx: &mut Cx<'_, '_, '_>, min: bool) -> R {
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", 0), s.len())?;
    let (keep, last) = (cx.int("keepdims", 1) != 0, cx.int("select_last_index", 0) != 0);
    let x = cx.real(0)?;
    let x = if min { cx.b.neg(x) } else { x };
    let mut y = largest(cx, x, axis, last)?;
    if !keep {
        let kept: Vec<usize> = (0..s.len()).filter(|&d| d != axis).map(|d| s[d]).collect();
        y = cx.b.reshape(y, &kept);
    }
    Ok(vec![Out::Node(y, Elem::Int)])
}

fn hardmax(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let s = cx.b.shape(x);
    let axes = softmax_axes(cx, s.len())?;
    // Several axes are the last ones, and one together.
    let kept: usize = if axes.len() == 1 { 0 } else { s[..s.len() - axes.len()].iter().product() };
    let (flat, axis) = match axes[..] {
        [axis] => (x, axis),
        _ => (cx.b.reshape(x, &[kept, s.iter().product::<usize>() / kept.max(1)]), 1),
    };
    let at = largest(cx, flat, axis, false)?;
    let mut narrow = cx.b.shape(at);
    narrow.remove(axis);
    let at = cx.b.reshape(at, &narrow);
    let n = cx.b.shape(flat)[axis];
    let flags = marks(cx, at, axis, n)?;
    let y = cx.b.number(flags);
    real(cx.b.reshape(y, &s))
}

/// The K largest (or smallest) elements in order, one after the other.
fn top_k(cx: &mut Cx<'_, '_, '_>) -> R {
    let k = if cx.present(1) { cx.known_number(1, "K")? } else { cx.int("k", 0) as f64 };
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", -1), s.len())?;
    let (top, _) = (cx.int("largest", 1) != 0, cx.int("sorted", 1));
    if !(1.0..=64.0).contains(&k) || k as usize > s[axis] {
        return Err(format!("the first {k} of {} elements are not supported", s[axis]));
    }
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.number(x);
    let mut left = if top { x } else { cx.b.neg(x) };
    let lowest = cx.b.splat(f64::from(f32::MIN), &s);
    let zero = cx.b.zeros_like(x);
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for _ in 0..k as usize {
        let at = largest(cx, left, axis, false)?;
        let mut narrow = s.clone();
        narrow.remove(axis);
        let row = cx.b.reshape(at, &narrow);
        let flags = marks(cx, row, axis, s[axis])?;
        let own = cx.b.select(flags, x, zero);
        values.push(cx.b.sum(own, &[axis]));
        indices.push(at);
        left = cx.b.select(flags, lowest, left);
    }
    let (values, indices) = (cx.b.concat(&values, axis), cx.b.concat(&indices, axis));
    Ok(vec![Out::Node(values, elem), Out::Node(indices, Elem::Int)])
}
