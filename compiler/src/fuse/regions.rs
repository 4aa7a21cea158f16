//! Regions: expressions and reductions over the same elements, run in one pass over memory.
//!
//! Every stored expression and every reduction starts as a region of its own. A region is merged with one it reads from
//! or shares a full-size operand with, when both walk the same elements in the same order and nothing in between
//! depends on the one and feeds the other. What a merged region may compute:
//! * a *map*: elements only;
//! * a *reduce*: elements, reductions of them, then work on the reduced values;
//! * a *row*: as a reduce, but elements may use reduced values too, because the reduced dimension is innermost and a
//!   row fits in cache.

use std::collections::{BTreeMap, BTreeSet};

use crate::fuse::expression::{Leaf, Map, identity_map, item_space, long_dims, reads, work_shape};
use crate::fuse::layout::{Form, Layouts, Owner};
use crate::ir::graph::{Graph, NodeId, RootKind};
use crate::ir::op::{Class, Op};

/// Longest row that is held in cache.
pub const ROW_LIMIT: usize = 8192;
/// Most operands and most results of one region.
const MAX_LEAVES: usize = 24;
const MAX_SINKS: usize = 16;

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
    reads: Vec<Leaf>,
}

/// Something to run.
#[derive(Clone, Debug)]
pub enum Item {
    /// Fused work.
    Region(Region),
    /// A kernel node, with elementwise work on its result.
    Kernel(NodeId, Option<Region>),
    /// A copy, an index into [`Layouts::copies`].
    Copy(usize),
    /// A root whose value is elsewhere in memory and must be copied to its place; an index into the graph's roots.
    Export(usize),
}

/// Everything to run, with what must come before what.
#[derive(Clone, Debug)]
pub struct Items {
    /// Items; an absent one was merged into another.
    pub items: Vec<Option<Item>>,
    /// Items that must run before each.
    pub before: Vec<BTreeSet<usize>>,
}

impl Region {
    /// Whether reduced values may be used by elements.
    pub fn is_row(&self) -> bool {
        matches!(self.axes[..], [axis] if Some(&axis) == self.order.last() && self.space[axis] <= ROW_LIMIT)
    }

    /// Item dimensions that are not reduced.
    pub fn kept(&self) -> Vec<usize> {
        (0..self.space.len()).filter(|d| !self.axes.contains(d)).collect()
    }

    fn contains(&self, id: NodeId) -> bool {
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
        let layout = l.memory(id)?;
        let mut strides = vec![0; self.space.len()];
        for (d, at) in map.iter().enumerate() {
            if let Some(at) = at {
                strides[*at] = layout.strides[d];
            }
        }
        Some(Leaf { owner: layout.owner, offset: layout.offset, strides })
    }

    /// Finds out again what memory the region reads.
    pub(crate) fn refresh(&mut self, g: &Graph, l: &Layouts) {
        let rank = self.space.len();
        let mut all: Vec<Leaf> = Vec::new();
        let operands: Vec<(NodeId, Map)> = self.sinks.iter().map(|s| (s.node, operand_map(g, s, self))).collect();
        for (sink, operand) in self.sinks.iter_mut().zip(operands) {
            let leaves = reads(g, l, &[operand], rank, &|_| false).0;
            for leaf in &leaves {
                if !all.contains(leaf) {
                    all.push(leaf.clone());
                }
            }
            sink.reads = leaves;
        }
        self.leaves = all.into_iter().filter(|x| !matches!(x.owner, Owner::Node(n) if self.contains(n))).collect();
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

fn new_region(g: &Graph, l: &Layouts, id: NodeId) -> Region {
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

/// Whether a root's value is produced straight into its place.
pub(crate) fn lands_in_place(g: &Graph, l: &Layouts, root: usize) -> bool {
    let r = &g.roots[root];
    let n = g.node(r.value);
    let owner = l.memory(r.value).map(|m| m.owner);
    let owns = owner == Some(Owner::Node(r.value));
    let first = g.roots.iter().position(|x| x.value == r.value) == Some(root);
    let order = crate::fuse::layout::required_order(g, r.value).unwrap_or_default();
    let whole =
        |m: &crate::fuse::Layout| m.offset == 0 && crate::fuse::layout::is_dense(g.shape(r.value), &m.strides, &order);
    let dense = l.memory(r.value).is_some_and(whole);
    // A copy made for this very value may be made in its place.
    if let Some(Owner::Copy(c)) = owner {
        let only = (0..root).all(|x| l.memory(g.roots[x].value).map(|m| m.owner) != owner);
        let same_size = l.copies[c].shape.iter().product::<usize>() == g.ty(r.value).count();
        return dense && only && same_size && !matches!(r.kind, RootKind::Update(_));
    }
    match n.op.rule().class() {
        Class::Pointwise | Class::Reduction => owns,
        Class::Kernel => owns && first && dense && !matches!(r.kind, RootKind::Update(_)),
        Class::Leaf | Class::View | Class::Composite => false,
    }
}

/// Collects everything to run, unmerged.
pub fn collect(g: &Graph, l: &Layouts) -> Items {
    let mut items: Vec<Item> = Vec::new();
    for id in g.ids() {
        let owned = match &l.forms[id.index()] {
            Form::Memory(m) => m.owner == Owner::Node(id),
            _ => false,
        };
        if !owned {
            continue;
        }
        match g.node(id).op.rule().class() {
            Class::Pointwise | Class::Reduction => items.push(Item::Region(new_region(g, l, id))),
            Class::Kernel => items.push(Item::Kernel(id, None)),
            Class::Leaf if g.node(id).op.splat().is_some() => items.push(Item::Kernel(id, None)),
            Class::Leaf | Class::View | Class::Composite => {}
        }
    }
    items.extend((0..l.copies.len()).map(Item::Copy));
    items.extend((0..g.roots.len()).filter(|&r| !lands_in_place(g, l, r)).map(Item::Export));
    let mut out = Items { items: items.into_iter().map(Some).collect(), before: Vec::new() };
    out.order(g, l);
    out
}

impl Items {
    /// Owners an item reads.
    pub fn owners_read(&self, g: &Graph, l: &Layouts, item: usize) -> BTreeSet<Owner> {
        match &self.items[item] {
            None => BTreeSet::new(),
            Some(Item::Region(r)) => r.leaves.iter().map(|x| x.owner).collect(),
            Some(Item::Kernel(id, epilogue)) => {
                let operands = (0..g.node(*id).operands.len()).map(|slot| l.operands[&(*id, slot)].owner);
                let leaves = epilogue.iter().flat_map(|r| &r.leaves).map(|x| x.owner);
                operands.chain(leaves.filter(|&o| o != Owner::Node(*id))).collect()
            }
            Some(Item::Copy(c)) => BTreeSet::from([l.copies[*c].from.owner]),
            Some(Item::Export(r)) => {
                BTreeSet::from([l.memory(g.roots[*r].value).expect("invariant: roots are stored").owner])
            }
        }
    }

    /// The item that makes each owner's memory.
    pub fn makers(&self) -> BTreeMap<Owner, usize> {
        let mut out = BTreeMap::new();
        for (i, item) in self.items.iter().enumerate() {
            match item {
                Some(Item::Region(r)) => out.extend(r.sinks.iter().map(|s| (Owner::Node(s.node), i))),
                Some(Item::Kernel(id, epilogue)) => {
                    let sinks = epilogue.iter().flat_map(|r| &r.sinks).map(|s| s.node);
                    out.extend(sinks.chain([*id]).map(|n| (Owner::Node(n), i)));
                }
                Some(Item::Copy(c)) => {
                    out.insert(Owner::Copy(*c), i);
                }
                Some(Item::Export(_)) | None => {}
            }
        }
        out
    }

    /// The item that writes each updated variable.
    fn writers(&self, g: &Graph, l: &Layouts, makers: &BTreeMap<Owner, usize>) -> BTreeMap<NodeId, usize> {
        let mut out = BTreeMap::new();
        for (i, r) in g.roots.iter().enumerate() {
            let RootKind::Update(v) = r.kind else { continue };
            let Some(node) = g.variable_node(v) else { continue };
            let writer = if lands_in_place(g, l, i) {
                makers.get(&Owner::Node(r.value)).copied()
            } else {
                self.items.iter().position(|x| matches!(x, Some(Item::Export(e)) if *e == i))
            };
            out.insert(node, writer.expect("invariant: every update is written by an item"));
        }
        out
    }

    /// Computes what must come before what: makers before readers, and every reader of a variable before its update.
    pub fn order(&mut self, g: &Graph, l: &Layouts) {
        let makers = self.makers();
        let writers = self.writers(g, l, &makers);
        let mut before = vec![BTreeSet::new(); self.items.len()];
        for i in 0..self.items.len() {
            for owner in self.owners_read(g, l, i) {
                if let Some(&m) = makers.get(&owner).filter(|&&m| m != i) {
                    before[i].insert(m);
                }
                if let Owner::Node(n) = owner
                    && let Some(&w) = writers.get(&n).filter(|&&w| w != i)
                {
                    before[w].insert(i);
                }
            }
        }
        self.before = before;
    }

    /// Present items in an order that respects `before`; among ready ones the one of the smallest key comes first.
    pub fn topological(&self, key: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut waiting: Vec<usize> = self.before.iter().map(BTreeSet::len).collect();
        let mut after = vec![Vec::new(); self.items.len()];
        for (i, b) in self.before.iter().enumerate() {
            b.iter().for_each(|&x| after[x].push(i));
        }
        let mut ready: BTreeSet<(u64, usize)> = (0..self.items.len())
            .filter(|&i| self.items[i].is_some() && waiting[i] == 0)
            .map(|i| (key(i), i))
            .collect();
        let mut out = Vec::new();
        while let Some((_, i)) = ready.pop_first() {
            out.push(i);
            for &a in &after[i] {
                waiting[a] -= 1;
                if waiting[a] == 0 {
                    ready.insert((key(a), a));
                }
            }
        }
        debug_assert_eq!(out.len(), self.items.iter().flatten().count(), "items depend on each other in a circle");
        out
    }

    /// Each item's place in the graph's own order: that of its first node; a copy stands just before its first reader.
    pub fn keys(&self, g: &Graph, l: &Layouts) -> Vec<u64> {
        let mut keys: Vec<u64> = self
            .items
            .iter()
            .map(|item| match item {
                Some(Item::Region(r)) => 2 * u64::from(r.sinks[0].node.0) + 1,
                Some(Item::Kernel(id, _)) => 2 * u64::from(id.0) + 1,
                Some(Item::Export(r)) => 2 * u64::from(g.roots[*r].value.0) + 1,
                Some(Item::Copy(_)) | None => u64::MAX,
            })
            .collect();
        for i in 0..self.items.len() {
            for owner in self.owners_read(g, l, i) {
                if let Owner::Copy(c) = owner
                    && let Some(at) = self.items.iter().position(|x| matches!(x, Some(Item::Copy(d)) if *d == c))
                {
                    keys[at] = keys[at].min(keys[i].saturating_sub(1));
                }
            }
        }
        keys
    }
}

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
    /// Items directly after each.
    pub(super) after: Vec<BTreeSet<usize>>,
    /// Items that come after each, directly or not.
    reach: Vec<Bits>,
    /// Where each item went when it was merged.
    into: Vec<usize>,
    /// Regions that read a leaf along every dimension.
    readers: BTreeMap<Leaf, BTreeSet<usize>>,
    makers: BTreeMap<Owner, usize>,
}

/// A set of small integers.
#[derive(Clone)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Bits {
        Bits(vec![0; n.div_ceil(64)])
    }

    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn add(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}

impl<'a> Merger<'a> {
    pub(super) fn new(items: &Items, order: &[usize], g: &'a Graph, l: &'a Layouts) -> Merger<'a> {
        let n = items.items.len();
        let mut after = vec![BTreeSet::new(); n];
        for (i, b) in items.before.iter().enumerate() {
            b.iter().for_each(|&x| {
                after[x].insert(i);
            });
        }
        let mut reach = vec![Bits::new(n); n];
        for &i in order.iter().rev() {
            let mut bits = Bits::new(n);
            for &x in &after[i] {
                bits.insert(x);
                bits.add(&reach[x]);
            }
            reach[i] = bits;
        }
        Merger { g, l, after, reach, into: (0..n).collect(), readers: BTreeMap::new(), makers: items.makers() }
    }

    /// The item that item `i` is now part of.
    pub(super) fn find(&self, mut i: usize) -> usize {
        while self.into[i] != i {
            i = self.into[i];
        }
        i
    }

    /// Merges item `i` into what came before, as often as possible, then remembers what it reads.
    fn extend(&mut self, items: &mut Items, i: usize) {
        let Some(Item::Region(first)) = &items.items[i] else { return };
        let leaves = first.leaves.clone();
        let producers: BTreeSet<usize> = leaves
            .iter()
            .filter_map(|x| self.makers.get(&x.owner).map(|&p| self.find(p)))
            .filter(|&p| p != i)
            .collect();
        let mut candidates: Vec<usize> = producers.iter().rev().copied().collect();
        for leaf in leaves.iter().filter(|x| is_full(x)) {
            candidates.extend(self.readers.get(leaf).into_iter().flatten().rev());
        }
        let mut at = i;
        for c in candidates {
            let c = self.find(c);
            if c == at {
                continue;
            }
            let (Some(Item::Region(a)), Some(Item::Region(b))) = (&items.items[c], &items.items[at]) else { continue };
            if self.connected_otherwise(c, at) {
                continue;
            }
            let Some(merged) = self.fit(a, b) else { continue };
            items.items[c] = Some(Item::Region(merged));
            items.items[at] = None;
            self.absorb(c, at);
            at = c;
        }
        let Some(Item::Region(r)) = &items.items[at] else { return };
        for leaf in r.leaves.iter().filter(|x| is_full(x)) {
            self.readers.entry(leaf.clone()).or_default().insert(at);
        }
    }

    /// Whether a path leads from one to the other through a third item.
    pub(super) fn connected_otherwise(&self, a: usize, b: usize) -> bool {
        let through = |from: usize, to: usize| {
            self.after[from].iter().map(|&x| self.find(x)).any(|x| x != to && x != from && self.reach[x].contains(to))
        };
        through(a, b) || through(b, a)
    }

    /// Item `gone` is now part of `into`.
    pub(super) fn absorb(&mut self, into: usize, gone: usize) {
        self.into[gone] = into;
        let after = std::mem::take(&mut self.after[gone]);
        self.after[into].extend(after);
        self.after[into].remove(&gone);
        self.after[into].remove(&into);
        let mut all = self.reach[into].clone();
        all.add(&self.reach[gone]);
        self.reach[into] = all.clone();
        // Everything that comes before either comes before what follows both; `gone` stands for `into` from now on.
        for i in 0..self.reach.len() {
            if self.reach[i].contains(into) || self.reach[i].contains(gone) {
                self.reach[i].insert(into);
                self.reach[i].add(&all);
            }
        }
    }

    /// The two regions as one, if they can be.
    fn fit(&self, a: &Region, b: &Region) -> Option<Region> {
        if a.sinks.len() + b.sinks.len() > MAX_SINKS {
            return None;
        }
        let same_axes = a.axes == b.axes || a.axes.is_empty() || b.axes.is_empty();
        let merged = if a.space == b.space && a.order == b.order && same_axes {
            let related =
                a.leaves.iter().any(|x| is_full(x) && b.leaves.contains(x)) || reads_from(b, a) || reads_from(a, b);
            if related { self.join(a, b)? } else { return None }
        } else if b.axes.is_empty() && !a.axes.is_empty() && reads_from(b, a) {
            self.join(a, &on_kept(a, b)?)?
        } else {
            return None;
        };
        (merged.leaves.len() <= MAX_LEAVES).then_some(merged)
    }

    /// Two regions over one space as one, if every read of the one by the other is of the element being worked on.
    fn join(&self, a: &Region, b: &Region) -> Option<Region> {
        let axes = if a.axes.is_empty() { b.axes.clone() } else { a.axes.clone() };
        let mut merged = Region { axes, ..a.clone() };
        merged.sinks.extend(b.sinks.iter().cloned());
        merged.sinks.sort();
        if !self.reads_own_values_in_place(&merged, a, b) {
            return None;
        }
        let fresh = b.leaves.iter().filter(|x| !a.leaves.contains(x)).cloned();
        merged.leaves.extend(fresh);
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
        let mut strides = vec![0; a.space.len()];
        kept.iter().zip(&leaf.strides).for_each(|(&d, &s)| strides[d] = s);
        Leaf { strides, ..leaf.clone() }
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

/// Whether a leaf has an element for every element of the region.
fn is_full(leaf: &Leaf) -> bool {
    !leaf.strides.is_empty() && leaf.strides.iter().all(|&s| s != 0)
}
