//! How many bytes a graph's values take, and when they take most.

use crate::fuse::layout::must_be_stored;
use crate::fuse::prologues::Prologues;
use crate::fuse::scores::{Scores, find};
use crate::ir::graph::{Graph, InputKind, NodeId, RootKind};
use crate::ir::op::{Class, Op};

/// What a step holds, and a moment of it: the fullest, to begin with.
#[derive(Clone)]
pub(super) struct Pressure {
    /// The last node computed before the moment.
    pub(super) moment: NodeId,
    /// Bytes held at the fullest moment, as far as a graph tells: nothing is fused yet.
    pub(super) bytes: usize,
    /// By node: bytes held when it has been computed.
    held: Vec<usize>,
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

/// Per cent of what is held at a moment, below which another is apart from it.
const APART: usize = 95;
/// Per cent of what is held at the fullest moment, above which others are looked at: nothing is fused yet, so that
/// these may turn out to be the fullest.
const FULL: usize = 90;

/// The first moment of those when most is held, and how much that is.
fn fullest(held: &[usize]) -> Option<(NodeId, usize)> {
    let (at, bytes) = held.iter().enumerate().max_by_key(|&(i, bytes)| (bytes, std::cmp::Reverse(i)))?;
    Some((NodeId(at as u32), *bytes))
}

/// The fullest moment before `at` from which it is apart: in between, clearly less is held. Nothing where that one is
/// clearly less full than the fullest of all, `most`.
fn earlier(held: &[usize], at: usize, most: usize) -> Option<NodeId> {
    let between = held[..at].iter().rposition(|&bytes| bytes < held[at] / 100 * APART)?;
    fullest(&held[..between]).filter(|&(_, bytes)| bytes >= most / 100 * FULL).map(|(moment, _)| moment)
}

impl Pressure {
    /// Bytes held when a node has been computed.
    pub(super) fn held(&self, id: NodeId) -> usize {
        self.held[id.index()]
    }

    /// Moves to the fullest moment before this one that is nearly as full as the fullest of all, and apart from this
    /// one; whether there is one.
    pub(super) fn move_earlier(&mut self) -> bool {
        let found = earlier(&self.held, self.moment.index(), self.bytes);
        self.moment = found.unwrap_or(self.moment);
        found.is_some()
    }

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
        let mut now = 0i64;
        let held: Vec<usize> = change
            .iter()
            .take(g.len())
            .map(|c| {
                now += c;
                now.max(0) as usize
            })
            .collect();
        let (moment, bytes) = fullest(&held).unwrap_or((NodeId(0), 0));
        Pressure { moment, bytes, held, needed, users, scores }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_the_fullest() {
        let held = [0, 9400, 9500, 9300, 400, 9600, 9700, 9000, 9800, 10000, 300];
        assert_eq!(fullest(&held), Some((NodeId(9), 10000)));
        // 9800 is of the same hill, 9700 of another.
        assert_eq!(earlier(&held, 9, 10000), Some(NodeId(6)));
        assert_eq!(earlier(&held, 6, 10000), Some(NodeId(2)));
        // Nothing lies before that, and what is much less full does not count.
        assert_eq!(earlier(&held, 2, 10000), None);
        assert_eq!(earlier(&held, 6, 11000), None);
    }
}
