//! How many bytes a graph's values take, and when they take most.

use crate::fuse::layout::must_be_stored;
use crate::fuse::scores::{Scores, find};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Class;

/// The fullest moment of a step.
pub(super) struct Pressure {
    /// The last node computed before it.
    pub(super) moment: NodeId,
    /// Bytes held then, as far as a graph tells: nothing is fused yet.
    pub(super) bytes: usize,
    /// By node: whether any root needs it.
    pub(super) needed: Vec<bool>,
    /// By node: who uses it.
    pub(super) users: Vec<Vec<NodeId>>,
    /// What attention's kernels compute for themselves.
    pub(super) scores: Scores,
}

impl Pressure {
    pub(super) fn of(g: &Graph) -> Pressure {
        let needed = g.needed(g.roots.iter().map(|r| r.value));
        let users = g.all_users(&needed);
        let scores = find(g, &needed);
        let hard = must_be_stored(g, &needed, &scores);
        let mut elsewhere = vec![false; g.len()];
        g.roots.iter().for_each(|r| elsewhere[r.value.index()] = true);
        let stored = |id: NodeId| match g.node(id).op.rule().class() {
            Class::Leaf | Class::View | Class::Composite => false,
            Class::Pointwise => hard[id.index()],
            Class::Reduction | Class::Kernel => !scores.holds(id),
        };
        // The last node that reads each value, itself or through views and expressions.
        let mut last: Vec<usize> = (0..g.len()).collect();
        let mut change = vec![0i64; g.len() + 1];
        for id in g.ids().rev().filter(|id| needed[id.index()]) {
            let by = users[id.index()].iter();
            last[id.index()] =
                by.map(|&u| if stored(u) { u.index() } else { last[u.index()] }).max().unwrap_or(id.index());
            if stored(id) && !elsewhere[id.index()] {
                let bytes = g.ty(id).bytes() as i64;
                change[id.index()] += bytes;
                change[last[id.index()] + 1] -= bytes;
            }
        }
        let (mut now, mut bytes, mut at) = (0i64, 0i64, 0);
        for (i, c) in change.iter().take(g.len()).enumerate() {
            now += c;
            if now > bytes {
                (bytes, at) = (now, i);
            }
        }
        Pressure { moment: NodeId(at as u32), bytes: bytes.max(0) as usize, needed, users, scores }
    }
}
