//! Expressions: what a region computes for each element, and which memory that reads.
//!
//! A region loops over *item dimensions*: the dimensions longer than 1 of the shape it works on. An index map says, for
//! each logical dimension of a value, which item dimension runs along it.

use std::collections::BTreeSet;

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
    let operands = |(sink, map): &(NodeId, Map)| {
        let map = map.clone();
        g.node(*sink).operands.iter().map(move |&o| (o, map.clone())).collect::<Vec<_>>()
    };
    reads_of(g, l, &sinks.iter().flat_map(operands).collect::<Vec<_>>(), rank, inside)
}

/// The same for values, each under its own map. Scores count as expressions.
pub fn reads_of(
    g: &Graph,
    l: &Layouts,
    values: &[(NodeId, Map)],
    rank: usize,
    inside: &dyn Fn(NodeId) -> bool,
) -> (Vec<Leaf>, BTreeSet<(NodeId, Map)>) {
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut visited = BTreeSet::new();
    for (id, map) in values {
        visit(g, l, *id, map, rank, inside, &mut leaves, &mut seen, &mut visited);
    }
    (leaves, seen)
}

#[allow(clippy::too_many_arguments, reason = "a recursive walk and its accumulators")]
fn visit(
    g: &Graph,
    l: &Layouts,
    id: NodeId,
    map: &Map,
    rank: usize,
    inside: &dyn Fn(NodeId) -> bool,
    leaves: &mut Vec<Leaf>,
    expressions: &mut BTreeSet<(NodeId, Map)>,
    visited: &mut BTreeSet<(NodeId, Map)>,
) {
    if !visited.insert((id, map.clone())) {
        return;
    }
    match step(g, l, id, map, rank) {
        Step::Number(_) => {}
        Step::Leaf(leaf) => {
            let own = matches!(leaf.owner, Owner::Node(n) if inside(n));
            if !own && !leaves.contains(&leaf) {
                leaves.push(leaf);
            }
        }
        Step::Score => {
            expressions.insert((id, map.clone()));
        }
        Step::Apply => {
            expressions.insert((id, map.clone()));
            for &o in &g.node(id).operands {
                visit(g, l, o, map, rank, inside, leaves, expressions, visited);
            }
        }
        Step::Through(inner, map) => visit(g, l, inner, &map, rank, inside, leaves, expressions, visited),
    }
}
