//! Differentiation as a function on the graph: gradients and directional derivatives are more IR, so they can be
//! differentiated again. Knows nothing of modules, losses or optimizers.

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::{Jvp, Vjp};

/// Gradients of the scalar `objective` with respect to `wrt`, in the same order; zeros where it does not depend on one.
///
/// New nodes get the builder's phase, and the origin of the node they differentiate.
pub fn gradients(b: &mut Builder<'_>, objective: NodeId, wrt: &[NodeId]) -> Vec<NodeId> {
    let seed = b.splat_like(objective, 1.0);
    pullback(b, &[(objective, seed)], wrt)
}

/// `sum over (value, weight) of weight * d value / d wrt`: gradients for given upstream gradients.
pub fn pullback(b: &mut Builder<'_>, seeds: &[(NodeId, NodeId)], wrt: &[NodeId]) -> Vec<NodeId> {
    let count = b.graph().len();
    let live = {
        let needed = b.graph().needed(seeds.iter().map(|s| s.0));
        let dependent = b.graph().dependent(wrt.iter().copied());
        let mut live: Vec<bool> = needed.iter().zip(&dependent).map(|(n, d)| *n && *d).collect();
        live.truncate(count);
        live
    };
    let mut grads: Vec<Option<NodeId>> = vec![None; count];
    for &(value, weight) in seeds {
        accumulate(b, &mut grads, value, weight);
    }
    let outer = b.origin;
    for i in (0..count).rev() {
        let node = NodeId(i as u32);
        let (true, Some(upstream)) = (live[i], grads[i]) else { continue };
        let operands = b.graph().node(node).operands.clone();
        if !operands.iter().any(|o| live[o.index()]) {
            continue;
        }
        let op = b.graph().node(node).op.clone();
        b.origin = b.graph().node(node).origin;
        let parts = op.rule().vjp(&mut Vjp { b, node, operands: operands.clone(), upstream });
        assert_eq!(parts.len(), operands.len(), "vjp of {op}");
        for (o, part) in operands.into_iter().zip(parts) {
            if let Some(part) = part.filter(|_| live[o.index()]) {
                accumulate(b, &mut grads, o, part);
            }
        }
    }
    b.origin = outer;
    wrt.iter().map(|w| grads[w.index()].unwrap_or_else(|| b.zeros_like(*w))).collect()
}

/// The one place where contributions are summed.
fn accumulate(b: &mut Builder<'_>, grads: &mut [Option<NodeId>], to: NodeId, part: NodeId) {
    debug_assert_eq!(b.graph().shape(to), b.graph().shape(part), "gradient of {}", b.graph().node(to).op);
    let slot = grads[to.index()];
    grads[to.index()] = Some(match slot {
        Some(sum) => b.add(sum, part),
        None => part,
    });
}

/// Directional derivatives of `targets` when each `(x, direction)` moves; zeros where a target does not depend on them.
pub fn pushforward(b: &mut Builder<'_>, moves: &[(NodeId, NodeId)], targets: &[NodeId]) -> Vec<NodeId> {
    let count = b.graph().len();
    let needed = b.graph().needed(targets.iter().copied());
    let dependent = b.graph().dependent(moves.iter().map(|m| m.0));
    let mut tangents: Vec<Option<NodeId>> = vec![None; count];
    for &(x, direction) in moves {
        tangents[x.index()] = Some(direction);
    }
    let outer = b.origin;
    for i in 0..count {
        let node = NodeId(i as u32);
        if !needed[i] || !dependent[i] || tangents[i].is_some() || !b.graph().ty(node).is_real() {
            continue;
        }
        let operands = b.graph().node(node).operands.clone();
        let directions: Vec<_> = operands.iter().map(|o| tangents[o.index()]).collect();
        if directions.iter().all(Option::is_none) {
            continue;
        }
        let op = b.graph().node(node).op.clone();
        b.origin = b.graph().node(node).origin;
        tangents[i] = op.rule().jvp(&mut Jvp { b, node, operands, tangents: directions });
    }
    b.origin = outer;
    targets.iter().map(|t| tangents[t.index()].unwrap_or_else(|| b.zeros_like(*t))).collect()
}
