//! Local laws the builder applies as nodes are made.
//!
//! Rules for rules: a law never makes more work, is directional (so that applying laws ends), holds for every
//! finite operand, and is exact in real arithmetic. Rounding may differ from the unsimplified form; a value
//! multiplied by zero is zero even where it would have been NaN or infinite.

use slrc_plan::scalar::ScalarFn;

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::Op;
use crate::ir::ops::map::{Map, scalar_f64};
use crate::ir::ops::shape::{Broadcast, Concat, Pad, Reshape, Slice, Transpose};
use crate::ir::types::DType;

/// `1/n * n` may miss 1 by an ulp: constants this close to 1 are 1.
const UNIT_TOLERANCE: f64 = 1e-15;

fn op<'a>(b: &'a Builder<'_>, x: NodeId) -> &'a Op {
    &b.graph().node(x).op
}

fn splat(b: &Builder<'_>, x: NodeId) -> Option<f64> {
    op(b, x).splat()
}

/// The scalar function and operands of an elementwise node.
fn as_map(b: &Builder<'_>, x: NodeId) -> Option<(ScalarFn, Vec<NodeId>)> {
    let n = b.graph().node(x);
    match n.op {
        Op::Map(Map(f)) => Some((f, n.operands.clone())),
        _ => None,
    }
}

fn as_unary(b: &Builder<'_>, x: NodeId, f: ScalarFn) -> Option<NodeId> {
    as_map(b, x).filter(|(g, _)| *g == f).map(|(_, o)| o[0])
}

fn as_broadcast(b: &Builder<'_>, x: NodeId) -> Option<NodeId> {
    let n = b.graph().node(x);
    matches!(n.op, Op::Broadcast(_)).then(|| n.operands[0])
}

/// `x * c` with a constant `c`.
pub(super) fn as_scaled(b: &Builder<'_>, x: NodeId) -> Option<(NodeId, f64)> {
    let (f, o) = as_map(b, x)?;
    match f {
        ScalarFn::Neg => Some((o[0], -1.0)),
        ScalarFn::Mul => splat(b, o[1]).map(|c| (o[0], c)),
        _ => None,
    }
}

/// Operands of a commutative function in one order: by id, constants last.
pub(crate) fn canonical_order(b: &Builder<'_>, f: ScalarFn, x: &[NodeId]) -> Vec<NodeId> {
    let mut x = x.to_vec();
    if matches!(f, ScalarFn::Add | ScalarFn::Mul | ScalarFn::Eq | ScalarFn::And | ScalarFn::Or) {
        x.sort_by_key(|&n| (splat(b, n).is_some(), n));
    }
    x
}

pub(crate) fn map(b: &mut Builder<'_>, f: ScalarFn, x: &[NodeId]) -> Option<NodeId> {
    if x.len() != f.arity() || x.iter().any(|&o| b.graph().shape(o) != b.graph().shape(x[0])) {
        return None;
    }
    fold(b, f, x).or_else(|| algebra(b, f, x)).or_else(|| hoist(b, f, x))
}

/// A number-valued function of constants is a constant.
fn fold(b: &mut Builder<'_>, f: ScalarFn, x: &[NodeId]) -> Option<NodeId> {
    if f.result() != slrc_plan::scalar::ResultKind::Number {
        return None;
    }
    let v: Option<Vec<f64>> = x.iter().map(|&o| splat(b, o)).collect();
    let v = v?;
    let at = |i: usize| v.get(i).copied().unwrap_or(0.0);
    let shape = b.shape(x[0]);
    Some(b.splat(scalar_f64(f, at(0), at(1), at(2)), &shape))
}

fn algebra(b: &mut Builder<'_>, f: ScalarFn, x: &[NodeId]) -> Option<NodeId> {
    let constant = |b: &Builder<'_>, i: usize| x.get(i).and_then(|&o| splat(b, o));
    match f {
        ScalarFn::Copy => (b.graph().ty(x[0]).dtype == DType::F32).then_some(x[0]),
        ScalarFn::Neg => match as_scaled(b, x[0]) {
            Some((y, -1.0)) => Some(y),
            Some((y, c)) => Some(b.scale(y, -c)),
            None => None,
        },
        ScalarFn::Add => {
            if constant(b, 1) == Some(0.0) {
                return Some(x[0]);
            }
            if let Some(y) = as_unary(b, x[1], ScalarFn::Neg) {
                return Some(b.sub(x[0], y));
            }
            if let Some(y) = as_unary(b, x[0], ScalarFn::Neg) {
                return Some(b.sub(x[1], y));
            }
            join_pads(b, x[0], x[1])
        }
        ScalarFn::Sub => {
            if x[0] == x[1] {
                return Some(b.zeros_like(x[0]));
            }
            if constant(b, 1) == Some(0.0) {
                return Some(x[0]);
            }
            if constant(b, 0) == Some(0.0) {
                return Some(b.neg(x[1]));
            }
            as_unary(b, x[1], ScalarFn::Neg).map(|y| b.add(x[0], y))
        }
        ScalarFn::Mul => {
            let c = constant(b, 1)?;
            if c == 0.0 {
                return Some(x[1]);
            }
            if (c - 1.0).abs() <= UNIT_TOLERANCE {
                return Some(x[0]);
            }
            if let Some((y, d)) = as_scaled(b, x[0]) {
                return Some(b.scale(y, c * d));
            }
            ((c + 1.0).abs() <= UNIT_TOLERANCE).then(|| b.neg(x[0]))
        }
        ScalarFn::Div => {
            let c = constant(b, 1)?;
            let exact = c.is_normal() && c.to_bits() & ((1 << 52) - 1) == 0;
            exact.then(|| b.scale(x[0], 1.0 / c))
        }
        ScalarFn::Select => {
            if x[1] == x[2] {
                return Some(x[1]);
            }
            if let Some(flag) = as_unary(b, x[0], ScalarFn::Not) {
                return Some(b.select(flag, x[2], x[1]));
            }
            let same = |o: &Option<(ScalarFn, Vec<NodeId>)>| {
                o.as_ref().filter(|(g, o)| *g == ScalarFn::Select && o[0] == x[0]).map(|(_, o)| (o[1], o[2]))
            };
            let (then, other) = (as_map(b, x[1]), as_map(b, x[2]));
            if let Some((a, _)) = same(&then) {
                return Some(b.select(x[0], a, x[2]));
            }
            same(&other).map(|(_, c)| b.select(x[0], x[1], c))
        }
        _ => None,
    }
}

/// A function of values that all repeat along the same dimensions is computed before they repeat.
fn hoist(b: &mut Builder<'_>, f: ScalarFn, x: &[NodeId]) -> Option<NodeId> {
    let mut from: Option<Vec<usize>> = None;
    let mut inner = Vec::with_capacity(x.len());
    for &o in x {
        if splat(b, o).is_some() {
            inner.push(None);
            continue;
        }
        let y = as_broadcast(b, o)?;
        let shape = b.shape(y);
        if from.get_or_insert_with(|| shape.clone()) != &shape {
            return None;
        }
        inner.push(Some(y));
    }
    let from = from?;
    let wide = b.shape(x[0]);
    let small: Vec<NodeId> = x
        .iter()
        .zip(inner)
        .map(|(&o, i)| i.unwrap_or_else(|| b.splat(splat(b, o).expect("checked above"), &from)))
        .collect();
    let y = b.map(f, &small);
    Some(b.broadcast(y, &wide))
}

/// Gradients of slices: zeros around neighbouring parts, added up, are the joined parts with zeros around.
fn join_pads(b: &mut Builder<'_>, x: NodeId, y: NodeId) -> Option<NodeId> {
    if let Some(z) = join_two_pads(b, x, y).or_else(|| join_two_pads(b, y, x)) {
        return Some(z);
    }
    for (sum, other) in [(x, y), (y, x)] {
        let Some((ScalarFn::Add, parts)) = as_map(b, sum) else { continue };
        for (part, rest) in [(parts[0], parts[1]), (parts[1], parts[0])] {
            if let Some(z) = join_two_pads(b, part, other).or_else(|| join_two_pads(b, other, part)) {
                return Some(b.add(z, rest));
            }
        }
    }
    None
}

fn join_two_pads(b: &mut Builder<'_>, x: NodeId, y: NodeId) -> Option<NodeId> {
    let as_pad = |b: &Builder<'_>, n: NodeId| match op(b, n) {
        Op::Pad(p) if p.interior.iter().all(|&i| i == 0) => Some((p.clone(), b.graph().node(n).operands[0])),
        _ => None,
    };
    let ((px, ix), (py, iy)) = (as_pad(b, x)?, as_pad(b, y)?);
    let rank = px.low.len();
    let moved: Vec<usize> = (0..rank).filter(|&d| px.low[d] != py.low[d] || px.high[d] != py.high[d]).collect();
    let &[d] = &moved[..] else { return None };
    if px.low[d] + b.graph().shape(ix)[d] != py.low[d] {
        return None;
    }
    let joined = b.concat(&[ix, iy], d);
    let mut pad = px;
    pad.high[d] = py.high[d];
    Some(b.pad(joined, pad))
}

/// The axes along which there is more than one element.
pub(crate) fn long_axes(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    axes.iter().copied().filter(|&a| shape.get(a) != Some(&1)).collect()
}

pub(crate) fn sum(b: &mut Builder<'_>, x: NodeId, axes: &[usize]) -> Option<NodeId> {
    let shape = b.shape(x);
    let axes = long_axes(&shape, axes);
    if axes.is_empty() {
        return Some(x);
    }
    if axes.iter().any(|&a| a >= shape.len()) {
        return None;
    }
    let mut kept = shape.clone();
    axes.iter().for_each(|&a| kept[a] = 1);
    if let Some(v) = splat(b, x) {
        let n: usize = axes.iter().map(|&a| shape[a]).product();
        return Some(b.splat(v * n as f64, &kept));
    }
    if let Some(y) = as_broadcast(b, x) {
        let narrow = b.shape(y);
        let times: usize = axes.iter().filter(|&&a| narrow[a] == 1).map(|&a| shape[a]).product();
        let inner = b.sum(y, &axes);
        let scaled = b.scale(inner, times as f64);
        return Some(b.broadcast(scaled, &kept));
    }
    if let Some((y, c)) = as_scaled(b, x) {
        let s = b.sum(y, &axes);
        return Some(b.scale(s, c));
    }
    let (f, o) = as_map(b, x)?;
    match f {
        ScalarFn::Mul | ScalarFn::Div => {
            for (factor, rest) in [(o[1], o[0]), (o[0], o[1])] {
                if f == ScalarFn::Div && factor == o[0] {
                    continue;
                }
                if let Some(narrow) = invariant(b, factor, &axes) {
                    let s = b.sum(rest, &axes);
                    let wide = b.broadcast(narrow, &kept);
                    return Some(b.map(f, &[s, wide]));
                }
            }
            None
        }
        ScalarFn::Add | ScalarFn::Sub if factorable(b, o[0], &axes) || factorable(b, o[1], &axes) => {
            if let Some(known) = b.graph().sums.of_terms(x, &axes) {
                return Some(known);
            }
            let left = b.sum(o[0], &axes);
            let right = b.sum(o[1], &axes);
            let value = b.map(f, &[left, right]);
            b.graph_mut().sums.set_of_terms(x, &axes, value);
            Some(value)
        }
        _ => None,
    }
}

/// The operand of a broadcast that is constant along all of `axes`.
fn invariant(b: &Builder<'_>, x: NodeId, axes: &[usize]) -> Option<NodeId> {
    as_broadcast(b, x).filter(|&y| axes.iter().all(|&a| b.graph().shape(y)[a] == 1))
}

/// Whether a sum over `axes` becomes cheaper by taking it term by term.
fn factorable(b: &mut Builder<'_>, x: NodeId, axes: &[usize]) -> bool {
    if invariant(b, x, axes).is_some() || splat(b, x).is_some() {
        return true;
    }
    let n = b.graph().node(x);
    let (&Op::Map(Map(f)), o) = (&n.op, &n.operands) else { return false };
    match f {
        ScalarFn::Mul => o.iter().any(|&y| invariant(b, y, axes).is_some()),
        ScalarFn::Div => invariant(b, o[1], axes).is_some(),
        ScalarFn::Neg | ScalarFn::Add | ScalarFn::Sub => {
            if let Some(known) = b.graph().sums.is_cheaper(x, axes) {
                return known;
            }
            let factorable = o.clone().into_iter().any(|y| factorable(b, y, axes));
            b.graph_mut().sums.set_cheaper(x, axes, factorable);
            factorable
        }
        _ => false,
    }
}

pub(crate) fn broadcast(b: &mut Builder<'_>, x: NodeId, shape: &[usize]) -> Option<NodeId> {
    let from = b.shape(x);
    if from == shape {
        return Some(x);
    }
    if from.len() != shape.len() || from.iter().zip(shape).any(|(&f, &t)| f != t && f != 1) {
        return None;
    }
    if let Some(v) = splat(b, x) {
        return Some(b.splat(v, shape));
    }
    let inner = as_broadcast(b, x)?;
    Some(b.emit(Broadcast { shape: shape.to_vec() }, &[inner]))
}

pub(crate) fn reshape(b: &mut Builder<'_>, x: NodeId, shape: &[usize]) -> Option<NodeId> {
    let from = b.shape(x);
    if from == shape {
        return Some(x);
    }
    if from.iter().product::<usize>() != shape.iter().product::<usize>() {
        return None;
    }
    if let Some(v) = splat(b, x) {
        return Some(b.splat(v, shape));
    }
    let n = b.graph().node(x);
    match (&n.op, n.operands.first()) {
        (Op::Reshape(Reshape { .. }), Some(&y)) => Some(b.reshape(y, shape)),
        _ => None,
    }
}

pub(crate) fn transpose(b: &mut Builder<'_>, x: NodeId, p: &[usize]) -> Option<NodeId> {
    let from = b.shape(x);
    if p.len() != from.len() || p.iter().any(|&d| d >= from.len()) {
        return None;
    }
    let shape: Vec<usize> = p.iter().map(|&d| from[d]).collect();
    if let Some(v) = splat(b, x) {
        return Some(b.splat(v, &shape));
    }
    // Moving only extents of 1 leaves the elements where they are.
    if p.iter().filter(|&&d| from[d] != 1).is_sorted() {
        return Some(b.reshape(x, &shape));
    }
    let n = b.graph().node(x);
    match (&n.op, &n.operands.clone()[..]) {
        (Op::Transpose(Transpose { permutation: q }), &[y]) => {
            let composed: Vec<usize> = p.iter().map(|&d| q[d]).collect();
            Some(b.transpose(y, &composed))
        }
        // (A B)^T = B^T A^T: the product is written the way it is read.
        (Op::MatMul(_), &[l, r]) if is_matrix_transpose(p) => {
            let (lt, rt) = (b.matrix_transpose(l), b.matrix_transpose(r));
            Some(b.matmul(rt, lt))
        }
        _ => None,
    }
}

/// Whether a permutation exchanges the last two dimensions and nothing else.
fn is_matrix_transpose(p: &[usize]) -> bool {
    let n = p.len();
    n >= 2 && p[n - 1] == n - 2 && p[n - 2] == n - 1 && (0..n - 2).all(|d| p[d] == d)
}

pub(crate) fn slice(b: &mut Builder<'_>, x: NodeId, s: &Slice) -> Option<NodeId> {
    let from = b.shape(x);
    if s.shape == from && s.starts.iter().all(|&i| i == 0) {
        return Some(x);
    }
    if let Some(v) = splat(b, x) {
        return Some(b.splat(v, &s.shape));
    }
    let n = b.graph().node(x);
    match (&n.op, n.operands.first()) {
        (Op::Pad(p), Some(&y)) if *s == p.hole(b.graph().shape(y)) => Some(y),
        _ => None,
    }
}

pub(crate) fn pad(b: &mut Builder<'_>, x: NodeId, p: &Pad) -> Option<NodeId> {
    let shape = b.shape(x);
    let none = |v: &[usize]| v.iter().all(|&i| i == 0);
    let interior = shape.iter().zip(&p.interior).any(|(&e, &i)| e > 1 && i > 0);
    if none(&p.low) && none(&p.high) && !interior && p.low.len() == shape.len() {
        return Some(x);
    }
    if splat(b, x) == Some(0.0) && p.low.len() == shape.len() && p.interior.len() == shape.len() {
        let wide: Vec<usize> = (0..shape.len())
            .map(|d| p.low[d] + shape[d] + shape[d].saturating_sub(1) * p.interior[d] + p.high[d])
            .collect();
        return Some(b.splat(0.0, &wide));
    }
    None
}

pub(crate) fn concat(b: &mut Builder<'_>, parts: &[NodeId], axis: usize) -> Option<NodeId> {
    if let &[only] = parts {
        return (axis < b.graph().ty(only).rank()).then_some(only);
    }
    let same = |b: &Builder<'_>, p: NodeId| matches!(op(b, p), Op::Concat(Concat { axis: a }) if *a == axis);
    if !parts.iter().any(|&p| same(b, p)) {
        return None;
    }
    let flat: Vec<NodeId> =
        parts.iter().flat_map(|&p| if same(b, p) { b.graph().node(p).operands.clone() } else { vec![p] }).collect();
    Some(b.concat(&flat, axis))
}
