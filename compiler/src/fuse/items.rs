//! Items: everything to run, with what must come before what.

use std::collections::{BTreeMap, BTreeSet};

use crate::fuse::attention::Attention;
use crate::fuse::layout::{Form, Layouts, Owner};
use crate::fuse::regions::{Region, new_region};
use crate::ir::graph::{Graph, NodeId, RootKind};
use crate::ir::op::Class;

/// Something to run.
#[derive(Clone, Debug)]
pub enum Item {
    /// Fused work.
    Region(Region),
    /// A kernel node, with work that its kernel does besides.
    Kernel(NodeId, Besides),
    /// A pass over scores.
    Attention(Attention),
    /// A copy, an index into [`Layouts::copies`].
    Copy(usize),
    /// A root whose value is elsewhere in memory and must be copied to its place; an index into the graph's roots.
    Export(usize),
}

/// What the kernel of a product does besides.
#[derive(Clone, Debug, Default)]
pub struct Besides {
    /// Work on its result.
    pub epilogue: Option<Region>,
    /// Sums of its second operand, and work on them.
    pub sums: Option<Region>,
}

impl Besides {
    fn regions(&self) -> impl Iterator<Item = &Region> {
        self.epilogue.iter().chain(&self.sums)
    }
}

/// Everything to run, with what must come before what.
#[derive(Clone, Debug)]
pub struct Items {
    /// Items; an absent one was merged into another.
    pub items: Vec<Option<Item>>,
    /// Items that must run before each.
    pub before: Vec<BTreeSet<usize>>,
}

/// Whether a root's value is produced straight into its place.
pub(crate) fn lands_in_place(g: &Graph, l: &Layouts, root: usize) -> bool {
    let r = &g.roots[root];
    let n = g.node(r.value);
    let owner = l.memory(r.value).map(|m| m.owner);
    let owns = owner == Some(Owner::Node(r.value));
    let first = l.roots[r.value.index()].first() == Some(&root);
    let order = l.required_order(g, r.value).unwrap_or_default();
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
        if !owned || l.scores.yields(id) {
            continue;
        }
        match g.node(id).op.rule().class() {
            Class::Pointwise | Class::Reduction => items.push(Item::Region(new_region(g, l, id))),
            Class::Kernel => items.push(Item::Kernel(id, Besides::default())),
            Class::Leaf if g.node(id).op.splat().is_some() => items.push(Item::Kernel(id, Besides::default())),
            Class::Leaf | Class::View | Class::Composite => {}
        }
    }
    items.extend(l.scores.passes.iter().map(|p| Item::Attention(Attention::new(g, l, p))));
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
            Some(Item::Kernel(id, besides)) => {
                let operands = l.owners_of_operands(g, *id).into_iter();
                let leaves = besides.regions().flat_map(|r| &r.leaves).map(|x| x.owner);
                operands.chain(leaves.filter(|&o| o != Owner::Node(*id))).collect()
            }
            Some(Item::Attention(a)) => a.operands(l).chain(a.region.leaves.iter().map(|x| x.owner)).collect(),
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
                Some(Item::Kernel(id, besides)) => {
                    let sinks = besides.regions().flat_map(|r| &r.sinks).map(|s| s.node);
                    out.extend(sinks.chain([*id]).map(|n| (Owner::Node(n), i)));
                }
                Some(Item::Attention(a)) => out.extend(a.results().map(|n| (Owner::Node(n), i))),
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
        let exports: BTreeMap<usize, usize> = self
            .items
            .iter()
            .enumerate()
            .filter_map(|(i, x)| if let Some(Item::Export(root)) = x { Some((*root, i)) } else { None })
            .collect();
        for (i, r) in g.roots.iter().enumerate() {
            let RootKind::Update(v) = r.kind else { continue };
            let Some(node) = g.variable_node(v) else { continue };
            let writer = if lands_in_place(g, l, i) {
                makers.get(&Owner::Node(r.value)).copied()
            } else {
                exports.get(&i).copied()
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
                Some(Item::Attention(a)) => 2 * a.results().map(|n| u64::from(n.0)).max().unwrap_or(0) + 1,
                Some(Item::Export(r)) => 2 * u64::from(g.roots[*r].value.0) + 1,
                Some(Item::Copy(_)) | None => u64::MAX,
            })
            .collect();
        let copies: BTreeMap<usize, usize> = self
            .items
            .iter()
            .enumerate()
            .filter_map(|(i, x)| if let Some(Item::Copy(c)) = x { Some((*c, i)) } else { None })
            .collect();
        for i in 0..self.items.len() {
            for owner in self.owners_read(g, l, i) {
                if let Owner::Copy(c) = owner
                    && let Some(&at) = copies.get(&c)
                {
                    keys[at] = keys[at].min(keys[i].saturating_sub(1));
                }
            }
        }
        keys
    }
}
