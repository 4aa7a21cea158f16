//! Expressions: what a region computes for each element, and which memory that reads.
//!
//! A region loops over *item dimensions*: the dimensions longer than 1 of the shape it works on. An index map says, for
//! each logical dimension of a value, which item dimension runs along it.

use std::collections::{BTreeMap, BTreeSet};

use crate::fuse::layout::{Form, Layout, Layouts, Owner};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;
use crate::ir::ops::shape::inverse;

/// Item dimension of each logical dimension; `None` for extents of 1 and for repeated dimensions.
pub type Map = Vec<Option<usize>>;

/// Memory read by an expression.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaf {
    /// Whose memory.
    pub owner: Owner,
    /// First element.
    pub offset: usize,
    /// Elements to step per unit of `index / repeats` along each item dimension.
    pub strides: Vec<usize>,
    /// How many neighbours along each item dimension share an element.
    pub repeats: Vec<usize>,
}

impl Leaf {
    /// The elements of a layout whose logical dimensions run along item dimensions.
    pub(crate) fn along(layout: &Layout, repeats: Option<&[usize]>, map: &Map, rank: usize) -> Leaf {
        let mut leaf =
            Leaf { owner: layout.owner, offset: layout.offset, strides: vec![0; rank], repeats: vec![1; rank] };
        for (d, at) in map.iter().enumerate() {
            if let Some(at) = at {
                leaf.strides[*at] = layout.strides[d];
                leaf.repeats[*at] = repeats.map_or(1, |r| r[d]);
            }
        }
        leaf
    }

    /// Whether it has an element for every element of the region.
    pub(super) fn is_full(&self) -> bool {
        !self.strides.is_empty() && self.strides.iter().all(|&s| s != 0) && self.repeats.iter().all(|&r| r == 1)
    }
}

/// Leaves, each once.
#[derive(Default)]
pub(super) struct Leaves {
    pub(super) list: Vec<Leaf>,
    /// By owner, where they are many.
    of: BTreeMap<Owner, Vec<usize>>,
}

impl Leaves {
    pub(super) fn add(&mut self, leaf: Leaf) {
        const MANY: usize = 32;
        if self.list.len() < MANY {
            if !self.list.contains(&leaf) {
                self.list.push(leaf);
            }
            return;
        }
        if self.of.is_empty() {
            for (i, x) in self.list.iter().enumerate() {
                self.of.entry(x.owner).or_default().push(i);
            }
        }
        let same = self.of.entry(leaf.owner).or_default();
        if !same.iter().any(|&i| self.list[i] == leaf) {
            same.push(self.list.len());
            self.list.push(leaf);
        }
    }
}

/// The dimensions of `shape` that are longer than 1.
pub fn long_dims(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).filter(|&d| shape[d] != 1).collect()
}

/// The shape a node works on: its own, or its operand's if it is a reduction.
pub fn work_shape(g: &Graph, id: NodeId) -> &[usize] {
    let n = g.node(id);
    if matches!(n.op, Op::Reduce(_)) { g.shape(n.operands[0]) } else { &n.ty.shape }
}

/// The extents of a node's item dimensions.
pub fn item_space(g: &Graph, id: NodeId) -> Vec<usize> {
    let shape = work_shape(g, id);
    long_dims(shape).into_iter().map(|d| shape[d]).collect()
}

/// The map under which the long dimensions of `shape` are the item dimensions in order.
pub fn identity_map(shape: &[usize]) -> Map {
    let mut next = 0;
    shape
        .iter()
        .map(|&e| {
            (e != 1).then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}

/// What an expression is made of, at one node.
pub enum Step {
    /// A constant.
    Number(f64),
    /// A read of memory.
    Leaf(Leaf),
    /// A function of the operands under the same map.
    Apply,
    /// A product that the kernel itself computes, strip by strip.
    Score,
    /// The operand of a view, under another map.
    Through(NodeId, Map),
}

/// One step into the expression of `id` under `map`, with `rank` item dimensions.
pub fn step(g: &Graph, l: &Layouts, id: NodeId, map: &Map, rank: usize) -> Step {
    let n = g.node(id);
    if let Some(v) = n.op.splat() {
        return Step::Number(v);
    }
    match &l.forms[id.index()] {
        Form::Number(v) => Step::Number(*v),
        Form::Memory(layout) => Step::Leaf(Leaf::along(layout, None, map, rank)),
        Form::Repeated(r) => Step::Leaf(Leaf::along(&r.layout, Some(&r.repeats), map, rank)),
        Form::Score => Step::Score,
        Form::Expression => match &n.op {
            Op::Map(_) => Step::Apply,
            Op::Transpose(t) => {
                let place = inverse(&t.permutation);
                Step::Through(n.operands[0], place.iter().map(|&d| map[d]).collect())
            }
            Op::Reshape(_) => {
                let from = g.shape(n.operands[0]);
                let mut long = long_dims(&n.ty.shape).into_iter().map(|d| map[d]);
                let inner = from.iter().map(|&e| if e == 1 { None } else { long.next().flatten() }).collect();
                Step::Through(n.operands[0], inner)
            }
            Op::Broadcast(_) => {
                let from = g.shape(n.operands[0]);
                Step::Through(
                    n.operands[0],
                    map.iter().zip(from).map(|(m, &e)| if e == 1 { None } else { *m }).collect(),
                )
            }
            op => unreachable!("invariant: {op} is not part of an expression"),
        },
        Form::Unused => unreachable!("invariant: {id} is not needed"),
    }
}

/// Memory read by the expressions of `sinks` (each under its own map), reads of `inside` values left out, each once, in
/// order of first use; and every expression node met.
pub fn reads(
    g: &Graph,
    l: &Layouts,
    sinks: &[(NodeId, Map)],
    rank: usize,
    inside: &dyn Fn(NodeId) -> bool,
) -> (Vec<Leaf>, BTreeSet<(NodeId, Map)>) {
    reads_of(g, l, &operands_of(g, sinks), rank, inside)
}

/// The memory alone.
pub(super) fn leaves_of(g: &Graph, l: &Layouts, sinks: &[(NodeId, Map)], rank: usize) -> Vec<Leaf> {
    let mut walk = Walk::new(g, l, rank, &|_| false);
    walk.visit_all(&operands_of(g, sinks));
    walk.leaves.list
}

fn operands_of(g: &Graph, sinks: &[(NodeId, Map)]) -> Vec<(NodeId, Map)> {
    let operands = |(sink, map): &(NodeId, Map)| {
        let map = map.clone();
        g.node(*sink).operands.iter().map(move |&o| (o, map.clone())).collect::<Vec<_>>()
    };
    sinks.iter().flat_map(operands).collect()
}

/// The same for values, each under its own map. Scores count as expressions.
pub fn reads_of(
    g: &Graph,
    l: &Layouts,
    values: &[(NodeId, Map)],
    rank: usize,
    inside: &dyn Fn(NodeId) -> bool,
) -> (Vec<Leaf>, BTreeSet<(NodeId, Map)>) {
    let mut walk = Walk::new(g, l, rank, inside);
    walk.visit_all(values);
    let Walk { leaves, maps, expressions, .. } = walk;
    (leaves.list, expressions.into_iter().map(|(id, map)| (id, maps[map].clone())).collect())
}

/// A walk through expressions. Maps are few, and known by their number.
struct Walk<'a> {
    g: &'a Graph,
    l: &'a Layouts,
    rank: usize,
    inside: &'a dyn Fn(NodeId) -> bool,
    maps: Vec<Map>,
    visited: BTreeSet<(NodeId, usize)>,
    leaves: Leaves,
    expressions: Vec<(NodeId, usize)>,
}

impl<'a> Walk<'a> {
    fn new(g: &'a Graph, l: &'a Layouts, rank: usize, inside: &'a dyn Fn(NodeId) -> bool) -> Walk<'a> {
        let (maps, visited, expressions) = (Vec::new(), BTreeSet::new(), Vec::new());
        Walk { g, l, rank, inside, maps, visited, leaves: Leaves::default(), expressions }
    }

    fn visit_all(&mut self, values: &[(NodeId, Map)]) {
        for (id, map) in values {
            let map = self.number(map.clone());
            self.visit(*id, map);
        }
    }

    fn number(&mut self, map: Map) -> usize {
        if let Some(known) = self.maps.iter().position(|m| *m == map) {
            return known;
        }
        self.maps.push(map);
        self.maps.len() - 1
    }

    fn visit(&mut self, id: NodeId, map: usize) {
        if !self.visited.insert((id, map)) {
            return;
        }
        match step(self.g, self.l, id, &self.maps[map], self.rank) {
            Step::Number(_) => {}
            Step::Leaf(leaf) => {
                if !matches!(leaf.owner, Owner::Node(n) if (self.inside)(n)) {
                    self.leaves.add(leaf);
                }
            }
            Step::Score => self.expressions.push((id, map)),
            Step::Apply => {
                self.expressions.push((id, map));
                let g = self.g;
                g.node(id).operands.iter().for_each(|&o| self.visit(o, map));
            }
            Step::Through(inner, through) => {
                let through = self.number(through);
                self.visit(inner, through);
            }
        }
    }
}
