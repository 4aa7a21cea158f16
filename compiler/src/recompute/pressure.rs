//! How many bytes a graph's values take, and when they take most.

use crate::fuse::layout::must_be_stored;
use crate::fuse::prologues::Prologues;
use crate::fuse::scores::{Scores, find};
use crate::ir::graph::{Graph, InputKind, NodeId, RootKind};
use crate::ir::op::{Class, Op};

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

/// Whether a value is what the module before hands over: it is held until its last use.
pub(super) fn is_boundary(g: &Graph, id: NodeId) -> bool {
    match g.node(id).op {
        Op::Input(i) => match g.inputs[i.index()].kind {
            InputKind::Boundary(_) | InputKind::BoundaryGradient(_) => true,
            InputKind::Data | InputKind::Labels => false,
        },
        _ => false,
    }
}

impl Pressure {
    pub(super) fn of(g: &Graph) -> Pressure {
        let needed = g.needed(g.roots.iter().map(|r| r.value));
        let users = g.all_users(&needed);
        let scores = find(g, &needed);
        let hard = must_be_stored(g, &needed, &scores, &Prologues::default());
        // Numbers reported and new values of variables have places of their own; a boundary is held to the end.
        let (mut elsewhere, mut handed_on) = (vec![false; g.len()], vec![false; g.len()]);
        for r in &g.roots {
            match r.kind {
                RootKind::Output(_) | RootKind::Boundary(_) | RootKind::OutputGradient(_) => {
                    handed_on[r.value.index()] = true;
                }
                RootKind::Update(_) | RootKind::Report(_) => elsewhere[r.value.index()] = true,
            }
        }
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
            let bytes = g.ty(id).bytes() as i64;
            if handed_on[id.index()] {
                change[id.index()] += bytes;
            } else if is_boundary(g, id) {
                change[0] += bytes;
                change[last[id.index()] + 1] -= bytes;
            } else if stored(id) && !elsewhere[id.index()] {
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
