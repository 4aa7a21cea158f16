//! Regions: expressions and reductions over the same elements, run in one pass over memory.
//!
//! Every stored expression and every reduction starts as a region of its own ([`crate::fuse::items`]), and regions are
//! merged ([`crate::fuse::merge`]). What one may compute:
//! * a *map*: elements only;
//! * a *reduce*: elements, reductions of them, then work on the reduced values;
//! * a *row*: as a reduce, but elements may use reduced values too, because the reduced dimension is innermost and a
//!   row fits in cache.

use std::collections::BTreeSet;

use crate::fuse::expression::{Leaf, Leaves, Map, identity_map, item_space, leaves_of, long_dims, work_shape};
use crate::fuse::layout::{Layouts, Owner};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;

/// Longest row that is held in cache.
pub const ROW_LIMIT: usize = 8192;

/// Work over one set of elements.
#[derive(Clone, Debug)]
pub struct Region {
    /// Extents of the item dimensions.
    pub space: Vec<usize>,
    /// Item dimensions, outermost first in memory.
    pub order: Vec<usize>,
    /// Item dimensions that reductions run over; empty in a map.
    pub axes: Vec<usize>,
    /// Values computed, in node order.
    pub sinks: Vec<Sink>,
    /// Memory read.
    pub leaves: Vec<Leaf>,
}

/// A value a region computes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sink {
    /// The value.
    pub node: NodeId,
    /// Where its elements lie among the region's.
    pub map: Map,
    /// Memory its expression reads, values of the region included.
    pub(super) reads: Vec<Leaf>,
}

impl Sink {
    pub(super) fn new(node: NodeId, map: Map) -> Sink {
        Sink { node, map, reads: Vec::new() }
    }
}

impl Region {
    /// Whether reduced values may be used by elements.
    pub fn is_row(&self) -> bool {
        let [axis] = self.axes[..] else { return false };
        // A dimension along which something is repeated will be two.
        let whole = self.leaves.iter().all(|x| x.repeats[axis] == 1);
        Some(&axis) == self.order.last() && self.space[axis] <= ROW_LIMIT && whole
    }

    /// Item dimensions that are not reduced.
    pub fn kept(&self) -> Vec<usize> {
        (0..self.space.len()).filter(|d| !self.axes.contains(d)).collect()
    }

    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.sinks.iter().any(|s| s.node == id)
    }

    /// Whether a value would be stored for every element although it is the same along the reduced dimensions (what was
    /// broadcast along them): a kernel that reduces holds such a value once.
    pub(crate) fn repeats_a_value(&self) -> bool {
        let mut varying: BTreeSet<NodeId> = BTreeSet::new();
        for s in self.sinks.iter().filter(|s| self.axes.iter().any(|a| s.map.contains(&Some(*a)))) {
            let varies = s.reads.iter().any(|x| match x.owner {
                Owner::Node(n) if self.contains(n) => varying.contains(&n),
                _ => self.axes.iter().any(|&a| x.strides[a] != 0),
            });
            if !varies {
                return true;
            }
            varying.insert(s.node);
        }
        false
    }

    /// How the region itself would read a sink of its own.
    pub(super) fn canonical(&self, l: &Layouts, id: NodeId) -> Option<Leaf> {
        let map = &self.sinks.iter().find(|s| s.node == id)?.map;
        Some(Leaf::along(l.memory(id)?, None, map, self.space.len()))
    }

    /// Finds out again what memory the region's sinks read.
    pub(crate) fn refresh(&mut self, g: &Graph, l: &Layouts) {
        let rank = self.space.len();
        let mut all = Leaves::default();
        let operands: Vec<(NodeId, Map)> = self.sinks.iter().map(|s| (s.node, operand_map(g, s, self))).collect();
        for (sink, operand) in self.sinks.iter_mut().zip(operands) {
            let leaves = leaves_of(g, l, &[operand], rank);
            for leaf in &leaves {
                all.add(leaf.clone());
            }
            sink.reads = leaves;
        }
        self.leaves = all.list.into_iter().filter(|x| !matches!(x.owner, Owner::Node(n) if self.contains(n))).collect();
    }

    /// Adds a value to compute.
    pub(crate) fn add_sink(&mut self, g: &Graph, l: &Layouts, node: NodeId, map: Map) {
        self.sinks.push(Sink { node, map, reads: Vec::new() });
        self.sinks.sort();
        self.refresh(g, l);
    }
}

/// The map under which a sink's operands are read: a reduction's operand runs along the reduced dimensions too.
pub(crate) fn operand_map(g: &Graph, sink: &Sink, region: &Region) -> Map {
    if matches!(g.node(sink.node).op, Op::Reduce(_)) {
        debug_assert_eq!(item_space(g, sink.node), region.space);
        identity_map(work_shape(g, sink.node))
    } else {
        sink.map.clone()
    }
}

/// The map of a reduction's result in the dimensions of its operand.
fn reduced_map(g: &Graph, id: NodeId) -> (Map, Vec<usize>) {
    let Op::Reduce(r) = &g.node(id).op else { unreachable!("invariant: called on reductions") };
    let mut map = identity_map(work_shape(g, id));
    let mut axes: Vec<usize> = r.axes.iter().filter_map(|&a| map[a]).collect();
    axes.sort_unstable();
    for &a in &r.axes {
        map[a] = None;
    }
    (map, axes)
}

/// The region of a single expression or reduction.
pub(super) fn new_region(g: &Graph, l: &Layouts, id: NodeId) -> Region {
    let shape = work_shape(g, id);
    let long = long_dims(shape);
    let order_over = match g.node(id).op {
        Op::Reduce(_) => &l.orders[g.node(id).operands[0].index()],
        _ => &l.orders[id.index()],
    };
    let order = order_over.iter().filter_map(|d| long.iter().position(|x| x == d)).collect();
    let (map, axes) = match g.node(id).op {
        Op::Reduce(_) => reduced_map(g, id),
        _ => (identity_map(shape), Vec::new()),
    };
    let sinks = vec![Sink { node: id, map, reads: Vec::new() }];
    let mut r = Region { space: item_space(g, id), order, axes, sinks, leaves: Vec::new() };
    r.refresh(g, l);
    r
}
