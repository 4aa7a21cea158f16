//! What a graph remembers of sums over long chains of terms, such as the gradients of a residual stream: every term's
//! sum is a part of the next one's, and to walk all terms for each of them would take the square of their number.

use std::collections::BTreeMap;

use crate::ir::graph::NodeId;

/// By summed value and axes. Nodes do not change, so that what was found of one stays true.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    cheaper: BTreeMap<(NodeId, Vec<usize>), bool>,
    of_terms: BTreeMap<(NodeId, Vec<usize>), NodeId>,
}

impl Sums {
    /// Whether a sum is cheaper term by term, if that was asked before.
    pub(super) fn is_cheaper(&self, id: NodeId, axes: &[usize]) -> Option<bool> {
        self.cheaper.get(&(id, axes.to_vec())).copied()
    }

    /// Remembers whether a sum is cheaper term by term.
    pub(super) fn set_cheaper(&mut self, id: NodeId, axes: &[usize], cheaper: bool) {
        self.cheaper.insert((id, axes.to_vec()), cheaper);
    }

    /// The value of a sum that was taken term by term.
    pub(super) fn of_terms(&self, id: NodeId, axes: &[usize]) -> Option<NodeId> {
        self.of_terms.get(&(id, axes.to_vec())).copied()
    }

    /// Remembers the value of a sum that was taken term by term.
    pub(super) fn set_of_terms(&mut self, id: NodeId, axes: &[usize], value: NodeId) {
        self.of_terms.insert((id, axes.to_vec()), value);
    }
}
