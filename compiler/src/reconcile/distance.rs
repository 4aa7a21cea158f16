//! Distances between the input gradient g and the output gradient e, as scalars of the graph. Where a boundary has
//! several tensors, g and e are all of them, side by side.

use slrc_plan::ScalarFn;

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::spec::Distance;

/// `<x, y>` over all tensors, shape `[]`.
pub(super) fn inner(b: &mut Builder<'_>, x: &[NodeId], y: &[NodeId]) -> NodeId {
    let one = |b: &mut Builder<'_>, x, y| {
        let product = b.mul(x, y);
        b.sum_all(product)
    };
    let mut sum = one(b, x[0], y[0]);
    for (&x, &y) in x.iter().zip(y).skip(1) {
        let next = one(b, x, y);
        sum = b.add(sum, next);
    }
    sum
}

/// `x - y`, tensor by tensor.
pub(super) fn difference(b: &mut Builder<'_>, x: &[NodeId], y: &[NodeId]) -> Vec<NodeId> {
    x.iter().zip(y).map(|(&x, &y)| b.sub(x, y)).collect()
}

/// `x`, or 1 where it is not positive, so that dividing by it is safe for values and derivatives.
fn positive_or_one(b: &mut Builder<'_>, x: NodeId) -> NodeId {
    let zero = b.zeros_like(x);
    let one = b.splat_like(x, 1.0);
    let flag = b.map(ScalarFn::Lt, &[zero, x]);
    b.select(flag, x, one)
}

/// `D(g, e)`; g = 0 or e = 0 gives a finite value with a finite derivative.
pub(super) fn distance(b: &mut Builder<'_>, kind: Distance, g: &[NodeId], e: &[NodeId]) -> NodeId {
    match kind {
        Distance::Squared => {
            let batch = b.shape(g[0])[0] as f64;
            let d = difference(b, g, e);
            let square = inner(b, &d, &d);
            b.scale(square, batch)
        }
        Distance::Relative => {
            let d = difference(b, g, e);
            let square = inner(b, &d, &d);
            let (gg, ee) = (inner(b, g, g), inner(b, e, e));
            let scale = b.add(gg, ee);
            let scale = positive_or_one(b, scale);
            b.div(square, scale)
        }
        Distance::Cosine => {
            let (ge, gg, ee) = (inner(b, g, e), inner(b, g, g), inner(b, e, e));
            let gg = positive_or_one(b, gg);
            let ee = positive_or_one(b, ee);
            let rg = b.map(ScalarFn::Rsqrt, &[gg]);
            let re = b.map(ScalarFn::Rsqrt, &[ee]);
            let cosine = b.mul(ge, rg);
            let cosine = b.mul(cosine, re);
            let one = b.splat_like(cosine, 1.0);
            b.sub(one, cosine)
        }
    }
}
