//! Scores: matrices of rows and columns that are products over a small inner extent, and what is computed from them.
//!
//! In attention every query meets every key: scores, their softmax and the gradients of both have an element for each
//! pair, while what goes in and what comes out has one for each query or key. [`find`] looks for groups of such values
//! that only elementwise work, reductions along rows and further products use. They are never stored: the kernels that
//! need them ([`crate::fuse::attention`]) compute them again, some rows at a time.
//!
//! A group's kernels are numbered by *level*: an exit (a product of a score-shaped value, or a reduction of one) is
//! of level n if what it needs from outside depends on exits of level n - 1. Softmax and its product with the values
//! are of level 0, their gradients of level 1.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::fuse::paths::Paths;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;

/// Largest inner extent of a score's product: beyond it, computing it again costs more than reading it.
const MAX_INNER: usize = 128;
/// Most elements along a row or a column, times the matrices a kernel holds at once: four rows of them fit a
/// multiprocessor's shared memory.
const MAX_HELD: usize = 2720;

/// A product that contracts a score-shaped value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exit {
    /// The product.
    pub node: NodeId,
    /// Which of its operands has the scores' shape.
    pub slot: usize,
    /// Whether that operand has columns before rows.
    pub flipped: bool,
}

/// What one kernel yields: the exits of one group and level.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Shape of the scores: batch extents, rows, columns.
    pub shape: Vec<usize>,
    /// Products.
    pub exits: Vec<Exit>,
    /// Reductions of rows, and work on reduced values that scores are computed from, in node order.
    pub rows: Vec<NodeId>,
}

/// Every group of a graph.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Kernels to run.
    pub passes: Vec<Pass>,
    /// Values with an element for each pair of row and column.
    inside: BTreeSet<NodeId>,
    exits: BTreeMap<NodeId, usize>,
    rows: BTreeSet<NodeId>,
}

impl Scores {
    /// Whether a value is computed strip by strip and never stored.
    pub fn holds(&self, id: NodeId) -> bool {
        self.inside.contains(&id)
    }

    /// Whether operand `slot` of a node is such a value, consumed by the kernel that computes it.
    pub fn consumes(&self, id: NodeId, slot: usize) -> bool {
        self.exits.get(&id) == Some(&slot)
    }

    /// Whether a pass computes a value into memory.
    pub fn yields(&self, id: NodeId) -> bool {
        self.exits.contains_key(&id) || self.rows.contains(&id)
    }

    fn add(&mut self, group: Group, passes: Vec<Pass>) {
        self.inside.extend(group.inside.into_keys());
        self.exits.extend(group.exits.iter().map(|e| (e.node, e.slot)));
        self.rows.extend(group.rows);
        self.passes.extend(passes);
    }
}

/// Values that hang together.
#[derive(Clone, Default)]
struct Group {
    /// Score-shaped values, and whether their columns come before their rows.
    inside: BTreeMap<NodeId, bool>,
    exits: BTreeSet<Exit>,
    rows: BTreeSet<NodeId>,
}

/// Finds the groups of a closed graph.
pub fn find(g: &Graph, needed: &[bool]) -> Scores {
    let mut out = Scores::default();
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    let mut is_root = vec![false; g.len()];
    g.roots.iter().for_each(|r| is_root[r.value.index()] = true);
    let mut finder = Finder::new(g, needed, is_root);
    let mut found: Vec<(Group, Vec<Pass>)> = Vec::new();
    for id in g.ids().filter(|id| needed[id.index()]) {
        if seen.contains(&id) || !is_score(g, id) {
            continue;
        }
        let mut group = Group::default();
        if finder.grow(id, &mut group).is_none() {
            finder.failed.extend(group.inside);
            continue;
        }
        seen.extend(group.inside.keys().copied());
        let Some(passes) = finder.passes(&group, id) else { continue };
        found.push((group, passes));
    }
    if found.is_empty() {
        return out;
    }
    // All of them as a rule; else those that fit together, in order.
    let mut all = Scores::default();
    found.iter().for_each(|(group, passes)| all.add(group.clone(), passes.clone()));
    if finder.runs_in_order(&all) {
        return all;
    }
    for (group, passes) in found {
        let mut with = out.clone();
        with.add(group, passes);
        if finder.runs_in_order(&with) {
            out = with;
        }
    }
    out
}

/// A batched product with a small inner extent.
fn is_score(g: &Graph, id: NodeId) -> bool {
    let n = g.node(id);
    let shape = &n.ty.shape;
    let rank = shape.len();
    matches!(n.op, Op::MatMul(_))
        && rank >= 3
        && shape[rank - 2] > 1
        && shape[rank - 1] > 1
        && g.shape(n.operands[0])[rank - 1] <= MAX_INNER
}

/// Whether a transpose exchanges the last two dimensions and nothing else.
fn exchanges(permutation: &[usize]) -> bool {
    let n = permutation.len();
    n >= 2 && permutation[n - 2..] == [n - 1, n - 2] && permutation[..n - 2].iter().enumerate().all(|(d, &p)| d == p)
}

struct Finder<'a> {
    g: &'a Graph,
    needed: &'a [bool],
    is_root: Vec<bool>,
    users: Vec<Vec<NodeId>>,
    /// By node: whether it is a score, or elementwise work on one.
    stems: Vec<bool>,
    /// Values met by groups that could not be, and whether their columns came before their rows. Whatever meets one so
    /// would become the same group: each value of a group leads to every other.
    failed: BTreeSet<(NodeId, bool)>,
    /// What depends on what, once that is asked.
    paths: OnceCell<Paths>,
}

impl<'a> Finder<'a> {
    fn new(g: &'a Graph, needed: &'a [bool], is_root: Vec<bool>) -> Finder<'a> {
        let mut stems = vec![false; g.len()];
        for id in g.ids() {
            let n = g.node(id);
            stems[id.index()] = match &n.op {
                Op::Map(_) => n.operands.iter().any(|o| stems[o.index()]),
                Op::Transpose(t) => exchanges(&t.permutation) && stems[n.operands[0].index()],
                _ => is_score(g, id),
            };
        }
        let (users, failed, paths) = (g.all_users(needed), BTreeSet::new(), OnceCell::new());
        Finder { g, needed, is_root, users, stems, failed, paths }
    }

    fn users(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.users[id.index()].iter().copied()
    }

    /// Collects the group that a score belongs to; none if one of its values is needed in memory, as far as it was met.
    fn grow(&self, seed: NodeId, group: &mut Group) -> Option<()> {
        let mut open = vec![(seed, false)];
        while let Some((id, flipped)) = open.pop() {
            match group.inside.get(&id) {
                Some(&known) if known == flipped => continue,
                Some(_) => return None,
                None => {}
            }
            if self.is_root[id.index()] || self.failed.contains(&(id, flipped)) {
                return None;
            }
            group.inside.insert(id, flipped);
            self.look_back(id, flipped, &mut open);
            for u in self.users(id) {
                self.look_ahead(id, u, flipped, group, &mut open)?;
            }
        }
        let consumed_twice = |e: &Exit| {
            let operands = &self.g.node(e.node).operands;
            operands.iter().all(|o| group.inside.contains_key(o)) || group.inside.contains_key(&e.node)
        };
        if group.exits.iter().any(consumed_twice) {
            return None;
        }
        self.add_row_work(group);
        (!group.rows.is_empty() && !group.exits.is_empty()).then_some(())
    }

    /// Score-shaped operands of a value that stem from products.
    fn look_back(&self, id: NodeId, flipped: bool, open: &mut Vec<(NodeId, bool)>) {
        let n = self.g.node(id);
        match &n.op {
            Op::Map(_) => {
                let made = n.operands.iter().filter(|o| self.stems[o.index()]);
                open.extend(made.map(|&o| (o, flipped)));
            }
            Op::Transpose(_) => open.push((n.operands[0], !flipped)),
            _ => {}
        }
    }

    fn look_ahead(
        &self,
        id: NodeId,
        user: NodeId,
        flipped: bool,
        group: &mut Group,
        open: &mut Vec<(NodeId, bool)>,
    ) -> Option<()> {
        let n = self.g.node(user);
        let rank = n.ty.rank();
        match &n.op {
            Op::Map(_) => open.push((user, flipped)),
            Op::Transpose(t) if exchanges(&t.permutation) => open.push((user, !flipped)),
            Op::Reduce(r) if r.axes[..] == [rank - 1] && !flipped => {
                group.rows.insert(user);
            }
            Op::MatMul(_) => {
                let slot = n.operands.iter().position(|&o| o == id)?;
                group.exits.insert(Exit { node: user, slot, flipped });
            }
            _ => return None,
        }
        Some(())
    }

    /// Adds work on reduced values that scores are computed from.
    fn add_row_work(&self, group: &mut Group) {
        let mut reduced = group.rows.clone();
        let mut open: Vec<NodeId> = reduced.iter().copied().collect();
        while let Some(id) = open.pop() {
            let maps = self.users(id).filter(|&u| matches!(self.g.node(u).op, Op::Map(_)));
            open.extend(maps.filter(|&u| reduced.insert(u)));
        }
        let feeds = |id: NodeId| {
            let mut repeated = self.users(id).filter(|&u| matches!(self.g.node(u).op, Op::Broadcast(_)));
            repeated.any(|b| self.users(b).any(|u| group.inside.contains_key(&u)))
        };
        let mut open: Vec<NodeId> = reduced.iter().copied().filter(|&id| feeds(id)).collect();
        let mut used: BTreeSet<NodeId> = BTreeSet::new();
        while let Some(id) = open.pop() {
            if used.insert(id) {
                open.extend(self.g.node(id).operands.iter().filter(|o| reduced.contains(o)));
            }
        }
        group.rows.extend(used);
    }

    /// What stands behind views.
    fn behind_views(&self, mut id: NodeId) -> NodeId {
        while let Op::Broadcast(_) | Op::Transpose(_) | Op::Reshape(_) = self.g.node(id).op {
            id = self.g.node(id).operands[0];
        }
        id
    }

    /// The kernels of a group, unless one would have to hold too much.
    fn passes(&self, group: &Group, seed: NodeId) -> Option<Vec<Pass>> {
        let exits: BTreeMap<NodeId, Exit> = group.exits.iter().map(|e| (e.node, *e)).collect();
        let level = self.levels(group, &exits);
        let shape = self.g.shape(seed).to_vec();
        let mut passes: BTreeMap<usize, Pass> = BTreeMap::new();
        let mut pass = |l: usize, put: &mut dyn FnMut(&mut Pass)| {
            put(passes.entry(l).or_insert_with(|| Pass { shape: shape.clone(), ..Pass::default() }));
        };
        exits.values().for_each(|e| pass(level[&e.node], &mut |p| p.exits.push(*e)));
        group.rows.iter().for_each(|&r| pass(level[&r], &mut |p| p.rows.push(r)));
        passes.into_values().map(|p| self.cut(group, p)).collect::<Option<Vec<_>>>().map(|p| p.concat())
    }

    /// Levels of a group's values: what is used of an exit, or outside the group of anything, is of the next level.
    fn levels(&self, group: &Group, exits: &BTreeMap<NodeId, Exit>) -> BTreeMap<NodeId, usize> {
        let member = |id: NodeId| group.inside.contains_key(&id) || group.rows.contains(&id);
        let paths = self.paths.get_or_init(|| self.paths());
        let all: BTreeSet<NodeId> = group.inside.keys().chain(&group.rows).chain(exits.keys()).copied().collect();
        let mut level: BTreeMap<NodeId, usize> = BTreeMap::new();
        // By level, what is of it so far.
        let mut of_level: Vec<Vec<NodeId>> = Vec::new();
        for id in all {
            let of = |&o: &NodeId| {
                let base = self.behind_views(o);
                match level.get(&base) {
                    Some(l) if member(base) => *l,
                    Some(l) => l + 1,
                    // What is met on the way is of no lower level than what it comes from.
                    None => {
                        let leads = |ids: &Vec<NodeId>| ids.iter().any(|m| paths.leads(m.index(), o.index()));
                        of_level.iter().rposition(leads).map_or(0, |l| l + 1)
                    }
                }
            };
            let l = self.g.node(id).operands.iter().map(of).max().unwrap_or(0);
            level.insert(id, l);
            if of_level.len() <= l {
                of_level.resize(l + 1, Vec::new());
            }
            of_level[l].push(id);
        }
        level
    }

    /// Paths between the nodes that are needed.
    fn paths(&self) -> Paths {
        let order: Vec<usize> = (0..self.g.len()).filter(|&i| self.needed[i]).collect();
        let before = |id: NodeId| if self.needed[id.index()] { &self.g.node(id).operands[..] } else { &[] };
        Paths::new(&order, self.g.ids().map(|id| before(id).iter().map(|o| o.index()).collect()).collect())
    }

    /// A pass in parts that hold no more than fits: what rows are reduced to first, then products. None if even one of
    /// these is too much.
    fn cut(&self, group: &Group, pass: Pass) -> Option<Vec<Pass>> {
        let rank = pass.shape.len();
        let longest = pass.shape[rank - 1].max(pass.shape[rank - 2]);
        let fits = |p: &Pass| {
            let products = self.needs(group, p).iter().filter(|&&id| is_score(self.g, id)).count();
            products > 0 && products.max(p.exits.len()) * longest <= MAX_HELD
        };
        if fits(&pass) {
            return Some(vec![pass]);
        }
        let mut parts: Vec<Pass> = Vec::new();
        if !pass.rows.is_empty() {
            parts.push(Pass { exits: Vec::new(), ..pass.clone() });
        }
        let mut open = Pass { exits: Vec::new(), rows: Vec::new(), shape: pass.shape };
        for exit in pass.exits {
            let mut with = open.clone();
            with.exits.push(exit);
            if fits(&with) || open.exits.is_empty() {
                open = with;
            } else {
                parts.push(open.clone());
                open.exits = vec![exit];
            }
        }
        if !open.exits.is_empty() {
            parts.push(open);
        }
        parts.iter().all(fits).then_some(parts)
    }

    /// Score-shaped values that a pass computes.
    fn needs(&self, group: &Group, p: &Pass) -> BTreeSet<NodeId> {
        let consumed = p.exits.iter().map(|e| self.g.node(e.node).operands[e.slot]);
        let reduced = p.rows.iter().flat_map(|&r| self.g.node(r).operands.clone());
        let mut open: Vec<NodeId> = consumed.chain(reduced).collect();
        let mut found = BTreeSet::new();
        while let Some(id) = open.pop() {
            if group.inside.contains_key(&id) && found.insert(id) && !is_score(self.g, id) {
                open.extend(self.g.node(id).operands.iter().copied());
            }
        }
        found
    }

    /// Whether the passes can be run one after the other: exits of one group share a pass, which must not make two
    /// groups wait for each other.
    fn runs_in_order(&self, s: &Scores) -> bool {
        let mut pass_of: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (i, p) in s.passes.iter().enumerate() {
            pass_of.extend(p.exits.iter().map(|e| e.node).chain(p.rows.iter().copied()).map(|n| (n, i)));
        }
        // Units: a pass, or a node of its own. Score-shaped values belong to whoever needs them.
        let count = self.g.len();
        let unit = |id: NodeId| pass_of.get(&id).map_or(id.index(), |p| count + p);
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); count + s.passes.len()];
        for id in self.g.ids().filter(|id| self.needed[id.index()] && !s.holds(*id)) {
            let mut open: Vec<NodeId> = self.g.node(id).operands.clone();
            let mut found = BTreeSet::new();
            while let Some(o) = open.pop().map(|o| self.behind_views(o)) {
                if s.holds(o) {
                    if found.insert(o) {
                        open.extend(self.g.node(o).operands.iter().copied());
                    }
                } else if unit(o) != unit(id) {
                    before[unit(id)].push(unit(o));
                }
            }
        }
        before.iter_mut().for_each(|b| {
            b.sort_unstable();
            b.dedup();
        });
        let mut after = vec![Vec::new(); before.len()];
        let mut waiting: Vec<usize> = before.iter().map(Vec::len).collect();
        before.iter().enumerate().for_each(|(i, b)| b.iter().for_each(|&x| after[x].push(i)));
        let mut ready: Vec<usize> = (0..before.len()).filter(|&i| waiting[i] == 0).collect();
        let mut done = 0;
        while let Some(i) = ready.pop() {
            done += 1;
            for &a in &after[i] {
                waiting[a] -= 1;
                if waiting[a] == 0 {
                    ready.push(a);
                }
            }
        }
        done == before.len()
    }
}
