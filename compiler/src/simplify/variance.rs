//! The sum of squared differences from the mean, in the pass that computes the mean.
//!
//! Where rows do not stay in cache, as in BatchNorm, the mean costs one pass over memory and the variance another one.
//! For any number s a channel, sum((x - m)^2) = sum((x - s)^2) - n (m - s)^2, and that needs no m. With s = 0 most
//! digits would cancel where the mean is large: as many bits as (m - s)^2 is larger than the variance. So s is an
//! element of x, which is within some deviations of m; x has to lie in memory for that. Where sums are to be taken
//! while x is computed, s is what m is expected to be near ([`crate::ir::ops::mode::Near`]): the running mean, or the
//! mean of the same layer in the pass before. The first steps of a network whose running means are still those it
//! began with lose some bits, until they have followed: after n steps 0.9^n of the distance is left.

use std::collections::BTreeMap;

use slrc_plan::{Combine, ScalarFn};

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::{Class, Op};
use crate::ir::ops::keep::Keep;
use crate::ir::ops::map::Map;
use crate::ir::ops::reduce::Reduce;
use crate::ir::ops::shape::Slice;
use crate::simplify::{as_broadcast, as_sub};

/// What means are expected to be near.
#[derive(Default)]
pub(super) struct About {
    /// By mean.
    expected: BTreeMap<NodeId, NodeId>,
    /// By what a mean was first expected to be near, that mean.
    first: BTreeMap<NodeId, NodeId>,
}

impl About {
    /// `mean` is expected to be near `about`; nearer still to the first of which that was said: a running mean is then
    /// read before it is updated only.
    pub(super) fn learn(&mut self, mean: NodeId, about: NodeId) {
        let first = *self.first.entry(about).or_insert(mean);
        self.expected.entry(mean).or_insert(if first == mean { about } else { first });
    }
}

/// The value of a sum of `squares`, if they are of differences from the mean over the same dimensions, and something
/// near the mean is known: expected, or an element of what lies in memory.
pub(super) fn in_one_pass(b: &mut Builder<'_>, r: &Reduce, squares: NodeId, about: &About) -> Option<NodeId> {
    let (x, mean) = centred(b, r, squares)?;
    let shape = b.shape(x);
    let n: usize = r.axes.iter().map(|&a| shape[a]).product();
    let rows_in_cache = r.axes[..] == [shape.len() - 1];
    let stored = matches!(b.graph().node(x).op.rule().class(), Class::Kernel | Class::Leaf);
    let expected = about.expected.get(&mean).copied();
    if rows_in_cache || !(stored || expected.is_some()) || n < 2 {
        return None;
    }
    let s = expected.unwrap_or_else(|| {
        let narrow = b.shape(mean);
        b.slice(x, Slice { starts: vec![0; shape.len()], steps: vec![1; shape.len()], shape: narrow })
    });
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
    let sum = b.select(below, zero, difference);
    // Computed again later, it would hold all of x for the sake of s.
    Some(b.emit(Keep { later: false }, &[sum]))
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
