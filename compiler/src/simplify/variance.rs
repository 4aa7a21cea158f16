//! The sum of squared differences from the mean, in the pass that computes the mean.
//!
//! Where rows do not stay in cache, as in BatchNorm, the mean costs one pass over memory and the variance another one.
//! For any number s a channel, sum((x - m)^2) = sum((x - s)^2) - n (m - s)^2, and that needs no m. With s = 0 most
//! digits would cancel where the mean is large; s is an element of x, which is within some deviations of m, so that
//! only as many bits cancel as (m - s)^2 is larger than the variance.

use slrc_plan::{Combine, ScalarFn};

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::{Class, Op};
use crate::ir::ops::map::Map;
use crate::ir::ops::reduce::Reduce;
use crate::ir::ops::shape::Slice;
use crate::simplify::{as_broadcast, as_sub};

/// The value of a sum of `squares`, if they are of differences from the mean over the same dimensions of something that
/// lies in memory.
pub(super) fn in_one_pass(b: &mut Builder<'_>, r: &Reduce, squares: NodeId) -> Option<NodeId> {
    let (x, mean) = centred(b, r, squares)?;
    let shape = b.shape(x);
    let n: usize = r.axes.iter().map(|&a| shape[a]).product();
    let rows_in_cache = r.axes[..] == [shape.len() - 1];
    let stored = matches!(b.graph().node(x).op.rule().class(), Class::Kernel | Class::Leaf);
    if rows_in_cache || !stored || n < 2 {
        return None;
    }
    let narrow = b.shape(mean);
    let one = Slice { starts: vec![0; shape.len()], steps: vec![1; shape.len()], shape: narrow };
    let s = b.slice(x, one);
    let wide = b.broadcast(s, &shape);
    let d = b.sub(x, wide);
    let square = b.mul(d, d);
    let about_s = b.sum(square, &r.axes);
    let shift = b.sub(mean, s);
    let shift = b.mul(shift, shift);
    let shift = b.scale(shift, n as f64);
    let difference = b.sub(about_s, shift);
    let zero = b.zeros_like(difference);
    // Rounding must not make it negative; a NaN stays one.
    let below = b.map(ScalarFn::Lt, &[difference, zero]);
    Some(b.select(below, zero, difference))
}

/// `x` and its mean `m`, where `squares` is `(x - m)^2`.
fn centred(b: &Builder<'_>, r: &Reduce, squares: NodeId) -> Option<(NodeId, NodeId)> {
    let n = b.graph().node(squares);
    let [c, d] = n.operands[..] else { return None };
    if r.combine != Combine::Sum || c != d || !matches!(n.op, Op::Map(Map(ScalarFn::Mul))) {
        return None;
    }
    let (x, wide) = as_sub(b, c)?;
    let m = as_broadcast(b, wide)?;
    is_mean(b, r, m, x).then_some((x, m))
}

fn is_mean(b: &Builder<'_>, r: &Reduce, m: NodeId, x: NodeId) -> bool {
    let g = b.graph();
    let terms: usize = r.axes.iter().map(|&a| g.shape(x)[a]).product();
    let sums_x = |id: NodeId| matches!(&g.node(id).op, Op::Reduce(s) if s == r) && g.node(id).operands[0] == x;
    let n = g.node(m);
    let (scaled, factor) = match (&n.op, &n.operands[..]) {
        (Op::Map(Map(ScalarFn::Mul)), &[a, b]) if sums_x(a) => (true, g.node(b).op.splat()),
        (Op::Map(Map(ScalarFn::Mul)), &[a, b]) if sums_x(b) => (true, g.node(a).op.splat()),
        (Op::Map(Map(ScalarFn::Div)), &[a, b]) if sums_x(a) => (false, g.node(b).op.splat()),
        _ => return false,
    };
    let expected = if scaled { 1.0 / terms as f64 } else { terms as f64 };
    factor.is_some_and(|f| (f - expected).abs() <= 1e-12 * expected)
}
