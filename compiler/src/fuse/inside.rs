//! Parts written where the whole will be: what only a concatenation uses is computed straight into its memory.
//!
//! The gradients of queries, keys and values are parts of one tensor, and so are the branches of many networks. A part
//! may lie inside if what makes it can write any strides, if nothing else reads it, and if the views between it and the
//! concatenation only rearrange dimensions.

use std::collections::BTreeSet;

use crate::fuse::layout::{Layout, Layouts, Owner};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::{Class, Op};

/// Moves parts into the concatenations that use them.
pub(super) fn place(g: &Graph, l: &mut Layouts) {
    let roots: BTreeSet<NodeId> = g.roots.iter().map(|r| r.value).collect();
    for id in g.ids() {
        let Op::Concat(c) = &g.node(id).op else { continue };
        let Some(whole) = l.memory(id).cloned().filter(|m| m.owner == Owner::Node(id)) else { continue };
        let mut start = 0;
        for (slot, &o) in g.node(id).operands.iter().enumerate() {
            let offset = whole.offset + start * whole.strides[c.axis];
            start += g.shape(o)[c.axis];
            let Some(part) = only_used_here(g, l, o, id).filter(|p| !roots.contains(p)) else { continue };
            let Some(strides) = rearranged(g, l, part, &l.operands[&(id, slot)], g.shape(o), &whole.strides) else {
                continue;
            };
            l.put_inside(part, id, slot, Layout { owner: Owner::Node(part), offset, strides });
        }
    }
}

/// What stands behind views of single use, if its kernel can write any strides and nobody but `user` reads it.
fn only_used_here(g: &Graph, l: &Layouts, mut id: NodeId, mut user: NodeId) -> Option<NodeId> {
    let used_once = |id: NodeId, user: NodeId| {
        let needed = g.users(id).into_iter().filter(|u| l.is_needed(*u));
        needed.eq([user]) && g.node(user).operands.iter().filter(|&&o| o == id).count() == 1
    };
    loop {
        if !used_once(id, user) {
            return None;
        }
        let n = g.node(id);
        match n.op.rule().class() {
            Class::View => (id, user) = (n.operands[0], id),
            _ if l.memory(id)?.owner != Owner::Node(id) => return None,
            Class::Pointwise => return Some(id),
            Class::Kernel if matches!(n.op, Op::MatMul(_)) => return Some(id),
            _ => return None,
        }
    }
}

/// The strides of `part` in memory where its view `seen`, of a shape, has the strides `to`: dimension for dimension, if
/// the view has every element once.
fn rearranged(
    g: &Graph,
    l: &Layouts,
    part: NodeId,
    seen: &Layout,
    shape: &[usize],
    to: &[usize],
) -> Option<Vec<usize>> {
    let own = l.memory(part)?;
    let extents = g.shape(part);
    if seen.owner != own.owner
        || seen.offset != own.offset
        || extents.iter().product::<usize>() != shape.iter().product()
    {
        return None;
    }
    (0..extents.len())
        .map(|e| {
            if extents[e] == 1 {
                return Some(0);
            }
            let d = (0..shape.len()).find(|&d| shape[d] == extents[e] && seen.strides[d] == own.strides[e])?;
            Some(to[d])
        })
        .collect()
}
