//! Merging regions: a region joins one it reads from or shares a full-size operand with, when both walk the same
//! elements in the same order and nothing in between depends on the one and feeds the other.

use std::collections::{BTreeMap, BTreeSet};

use crate::fuse::expression::{Leaf, Map};
use crate::fuse::items::{Item, Items};
use crate::fuse::layout::{Layouts, Owner};
use crate::fuse::paths::Paths;
use crate::fuse::regions::{Region, Sink};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;

/// Most operands and most results of one region.
const MAX_LEAVES: usize = 24;
const MAX_SINKS: usize = 16;

/// Merges regions.
pub fn merge(g: &Graph, l: &Layouts, items: &mut Items) {
    let keys = items.keys(g, l);
    let order = items.topological(|i| keys[i]);
    let mut m = Merger::new(items, &order, g, l);
    for i in order {
        m.extend(items, i);
    }
    items.order(g, l);
}

/// What merges need to know of the items' order.
pub(super) struct Merger<'a> {
    g: &'a Graph,
    l: &'a Layouts,
    pub(super) paths: Paths,
    /// Regions that read a leaf along every dimension.
    readers: BTreeMap<Leaf, BTreeSet<usize>>,
    makers: BTreeMap<Owner, usize>,
    /// Each item's place in the graph's own order.
    keys: Vec<u64>,
    /// Of each node, the latest mark of what is computed again that it depends on; see [`Merger::may_run_at`].
    again: Vec<Option<NodeId>>,
}

impl<'a> Merger<'a> {
    pub(super) fn new(items: &Items, order: &[usize], g: &'a Graph, l: &'a Layouts) -> Merger<'a> {
        let mut again: Vec<Option<NodeId>> = vec![None; g.len()];
        for id in g.ids() {
            let node = g.node(id);
            let own = matches!(&node.op, Op::Keep(k) if k.later).then_some(id);
            again[id.index()] = node.operands.iter().map(|o| again[o.index()]).max().flatten().max(own);
        }
        let (keys, makers) = (items.keys(g, l), items.makers());
        let paths = Paths::new(order, items.before.iter().map(|b| b.iter().copied().collect()).collect());
        Merger { g, l, paths, readers: BTreeMap::new(), makers, keys, again }
    }

    /// Whether a region may join an item that runs earlier: what is computed again must not be computed before its
    /// time, or it would be kept after all.
    pub(super) fn may_run_at(&self, item: usize, r: &Region) -> bool {
        let latest = r.sinks.iter().filter_map(|s| self.again[s.node.index()]).max();
        latest.is_none_or(|mark| 2 * u64::from(mark.0) <= self.keys[item])
    }

    /// Merges item `i` into what came before, as often as possible, then remembers what it reads.
    fn extend(&mut self, items: &mut Items, i: usize) {
        let Some(Item::Region(first)) = &items.items[i] else { return };
        // What the regions of a merge make, they do not read; but that is not so much.
        let owners: BTreeSet<Owner> = first.leaves.iter().map(|x| x.owner).collect();
        if owners.len() > MAX_LEAVES + MAX_SINKS {
            return;
        }
        let leaves = first.leaves.clone();
        let producers: BTreeSet<usize> = leaves
            .iter()
            .filter_map(|x| self.makers.get(&x.owner).map(|&p| self.paths.find(p)))
            .filter(|&p| p != i)
            .collect();
        let mut candidates: Vec<usize> = producers.iter().rev().copied().collect();
        for leaf in leaves.iter().filter(|x| x.is_full()) {
            candidates.extend(self.readers.get(leaf).into_iter().flatten().rev());
        }
        let mut at = i;
        for c in candidates {
            let c = self.paths.find(c);
            if c == at {
                continue;
            }
            let (Some(Item::Region(a)), Some(Item::Region(b))) = (&items.items[c], &items.items[at]) else { continue };
            if !self.may_run_at(c, b) || self.paths.through_others(c, at) {
                continue;
            }
            let Some(merged) = self.fit(a, b) else { continue };
            items.items[c] = Some(Item::Region(merged));
            items.items[at] = None;
            self.paths.absorb(c, at);
            at = c;
        }
        let Some(Item::Region(r)) = &items.items[at] else { return };
        for leaf in r.leaves.iter().filter(|x| x.is_full()) {
            self.readers.entry(leaf.clone()).or_default().insert(at);
        }
    }

    /// The two regions as one, if they can be.
    fn fit(&self, a: &Region, b: &Region) -> Option<Region> {
        if a.sinks.len() + b.sinks.len() > MAX_SINKS {
            return None;
        }
        let same_axes = a.axes == b.axes || a.axes.is_empty() || b.axes.is_empty();
        if a.space == b.space && a.order == b.order && same_axes {
            let related =
                a.leaves.iter().any(|x| x.is_full() && b.leaves.contains(x)) || reads_from(b, a) || reads_from(a, b);
            if related { self.join(a, b) } else { None }
        } else if b.axes.is_empty() && !a.axes.is_empty() && reads_from(b, a) {
            self.join(a, &on_kept(a, b)?)
        } else {
            None
        }
    }

    /// Two regions over one space as one, if every read of the one by the other is of the element being worked on.
    fn join(&self, a: &Region, b: &Region) -> Option<Region> {
        let makes = |x: &Leaf| matches!(x.owner, Owner::Node(n) if a.contains(n) || b.contains(n));
        let fresh = |x: &&Leaf| !a.leaves.contains(x) && !makes(x);
        if a.leaves.iter().filter(|x| !makes(x)).count() + b.leaves.iter().filter(fresh).count() > MAX_LEAVES {
            return None;
        }
        let axes = if a.axes.is_empty() { b.axes.clone() } else { a.axes.clone() };
        let mut merged = Region { axes, ..a.clone() };
        merged.sinks.extend(b.sinks.iter().cloned());
        merged.sinks.sort();
        let fresh = b.leaves.iter().filter(|x| !a.leaves.contains(x)).cloned();
        merged.leaves.extend(fresh);
        if !self.reads_own_values_in_place(&merged, a, b) {
            return None;
        }
        if merged.repeats_a_value() {
            return None;
        }
        let own = |x: &Leaf| matches!(x.owner, Owner::Node(n) if merged.contains(n));
        merged.leaves = merged.leaves.iter().filter(|x| !own(x)).cloned().collect();
        Some(merged)
    }

    /// Whether every read of the one by the other is of the very element being worked on, and, unless this is a row, no
    /// element or reduction uses a reduced value.
    fn reads_own_values_in_place(&self, merged: &Region, a: &Region, b: &Region) -> bool {
        for (reader, maker) in [(a, b), (b, a)] {
            for leaf in &reader.leaves {
                let Owner::Node(n) = leaf.owner else { continue };
                if maker.contains(n) && merged.canonical(self.l, n).as_ref() != Some(leaf) {
                    return false;
                }
            }
        }
        merged.axes.is_empty() || merged.is_row() || !self.element_uses_reduced(merged)
    }

    fn element_uses_reduced(&self, r: &Region) -> bool {
        // Values that exist only after the reduction: reductions, and kept-level work that uses them.
        let mut late: BTreeSet<NodeId> = BTreeSet::new();
        for s in &r.sinks {
            let reduction = matches!(self.g.node(s.node).op, Op::Reduce(_));
            let uses_late = s.reads.iter().any(|x| matches!(&x.owner, Owner::Node(n) if late.contains(n)));
            let element = r.axes.iter().any(|a| s.map.contains(&Some(*a)));
            if uses_late && (reduction || element) {
                return true;
            }
            if reduction || uses_late {
                late.insert(s.node);
            }
        }
        false
    }
}

/// `b`, which works on values that `a` reduces to, in the dimensions of `a`.
fn on_kept(a: &Region, b: &Region) -> Option<Region> {
    let kept = a.kept();
    let order: Vec<usize> = a.order.iter().filter_map(|d| kept.iter().position(|k| k == d)).collect();
    if !b.space.iter().copied().eq(kept.iter().map(|&d| a.space[d])) || b.order != order {
        return None;
    }
    let lift = |map: &Map| map.iter().map(|d| d.map(|d| kept[d])).collect::<Map>();
    let spread = |leaf: &Leaf| {
        let (mut strides, mut repeats) = (vec![0; a.space.len()], vec![1; a.space.len()]);
        kept.iter().zip(&leaf.strides).for_each(|(&d, &s)| strides[d] = s);
        kept.iter().zip(&leaf.repeats).for_each(|(&d, &r)| repeats[d] = r);
        Leaf { strides, repeats, ..leaf.clone() }
    };
    let lifted = |s: &Sink| Sink { node: s.node, map: lift(&s.map), reads: s.reads.iter().map(spread).collect() };
    Some(Region {
        space: a.space.clone(),
        order: a.order.clone(),
        axes: Vec::new(),
        sinks: b.sinks.iter().map(lifted).collect(),
        leaves: b.leaves.iter().map(spread).collect(),
    })
}

/// Whether `reader` reads something `maker` computes.
fn reads_from(reader: &Region, maker: &Region) -> bool {
    reader.leaves.iter().any(|x| matches!(x.owner, Owner::Node(n) if maker.contains(n)))
}
