//! Which shared expressions are worth storing.
//!
//! An expression used by several regions is computed in each, from memory each must then read. Storing it costs a write
//! and a read in each later region. This pass weighs the two in bytes, smaller values first (a ReLU's flags before what
//! they are flags of). What a training step keeps for its backward pass is decided here.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::ScalarFn;

use crate::fuse::expression::{Leaf, Map, identity_map, item_space, long_dims, reads};
use crate::fuse::items::{Item, Items};
use crate::fuse::layout::{Form, Layouts, Owner};
use crate::fuse::regions::{Region, operand_map};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;
use crate::ir::ops::map::Map as Elementwise;

/// Bytes of traffic that take as long as one transcendental function.
const TRANSCENDENTAL_BYTES: f64 = 4.0;
/// The same for a simple operation.
const SIMPLE_BYTES: f64 = 0.2;

/// Stores shared expressions where that moves fewer bytes.
pub fn store(g: &Graph, l: &mut Layouts, items: &mut Items) {
    let keys = items.keys(g, l);
    let order = items.topological(|i| keys[i]);
    let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(at, &i)| (i, at)).collect();
    let mut uses: BTreeMap<NodeId, BTreeSet<usize>> = BTreeMap::new();
    // By item, the expressions it computes: they change when one of them is stored only.
    let mut computes: Vec<Vec<NodeId>> = vec![Vec::new(); items.items.len()];
    for &i in &order {
        let Some(Item::Region(r)) = &items.items[i] else { continue };
        computes[i] = values(g, l, r);
        for &id in &computes[i] {
            uses.entry(id).or_default().insert(i);
        }
    }
    let mut changed = false;
    let shared: Vec<NodeId> = uses.iter().filter(|(_, u)| u.len() > 1).map(|(id, _)| *id).rev().collect();
    // What products make as they read it is not there when an early one runs.
    let made = l.made_values(g);
    for id in shared.into_iter().filter(|id| !made.contains(id)) {
        // Earlier decisions may have hidden this value from some regions.
        let mut regions: Vec<usize> =
            uses[&id].iter().copied().filter(|&i| computes[i].binary_search(&id).is_ok()).collect();
        regions.sort_by_key(|i| place[i]);
        if regions.len() < 2 {
            continue;
        }
        // The first region that computes the value is the one to store it, if it does so element for element.
        let Some(Item::Region(first)) = &items.items[regions[0]] else { continue };
        let whole = (id, identity_map(g.shape(id)));
        if item_space(g, id) != first.space || !expressions(g, l, first).contains(&whole) {
            continue;
        }
        l.orders[id.index()] = logical_order(g, id, &first.order);
        if !worth_storing(g, l, items, id, &regions) || would_repeat(g, l, first, id) {
            continue;
        }
        l.store(g, id);
        changed = true;
        for (n, &i) in regions.iter().enumerate() {
            let Some(Item::Region(r)) = &mut items.items[i] else { continue };
            if n == 0 {
                r.add_sink(g, l, id, identity_map(g.shape(id)));
            } else {
                r.refresh(g, l);
            }
            computes[i] = values(g, l, r);
        }
    }
    if changed {
        items.order(g, l);
    }
}

/// Whether a region that stored `id` too would store it over and over.
fn would_repeat(g: &Graph, l: &Layouts, r: &Region, id: NodeId) -> bool {
    let mut with = r.clone();
    with.add_sink(g, l, id, identity_map(g.shape(id)));
    with.repeats_a_value()
}

fn operand_maps(g: &Graph, r: &Region) -> Vec<(NodeId, Map)> {
    r.sinks.iter().map(|s| (s.node, operand_map(g, s, r))).collect()
}

fn is_sink(r: &Region, n: NodeId) -> bool {
    r.sinks.iter().any(|s| s.node == n)
}

fn expressions(g: &Graph, l: &Layouts, r: &Region) -> BTreeSet<(NodeId, Map)> {
    reads(g, l, &operand_maps(g, r), r.space.len(), &|n| is_sink(r, n)).1
}

/// The values of the expressions that a region computes, ascending.
fn values(g: &Graph, l: &Layouts, r: &Region) -> Vec<NodeId> {
    let mut out: Vec<NodeId> = expressions(g, l, r).into_iter().map(|(id, _)| id).collect();
    out.dedup();
    out
}

/// The order of item dimensions as an order of a value's own dimensions.
fn logical_order(g: &Graph, id: NodeId, order: &[usize]) -> Vec<usize> {
    let shape = g.shape(id);
    let long = long_dims(shape);
    let mut out: Vec<usize> = order.iter().map(|&d| long[d]).collect();
    out.extend((0..shape.len()).filter(|&d| shape[d] == 1));
    out
}

/// Memory a region reads.
fn leaves_of(g: &Graph, l: &Layouts, r: &Region) -> Vec<Leaf> {
    reads(g, l, &operand_maps(g, r), r.space.len(), &|n| is_sink(r, n)).0
}

/// Bytes a leaf brings in.
fn bytes(g: &Graph, l: &Layouts, leaf: &Leaf, space: &[usize]) -> f64 {
    let along = leaf.strides.iter().zip(&leaf.repeats).zip(space);
    let count: usize = along.filter(|((s, _), _)| **s != 0).map(|((_, r), e)| e / r).product();
    let dtype = match leaf.owner {
        Owner::Node(n) => g.ty(n).dtype,
        Owner::Copy(c) => g.ty(l.copies[c].of).dtype,
    };
    dtype.bytes(count) as f64
}

fn worth_storing(g: &Graph, l: &mut Layouts, items: &Items, id: NodeId, regions: &[usize]) -> bool {
    let own = g.ty(id).bytes() as f64;
    let later = (regions.len() - 1) as f64;
    let cost = own * (1.0 + later);
    let mut saved = later * work(g, l, id) * g.ty(id).count() as f64;
    // As if it were stored.
    l.store(g, id);
    for &i in &regions[1..] {
        let Some(Item::Region(r)) = &items.items[i] else { continue };
        let total = |leaves: &[Leaf]| leaves.iter().map(|x| bytes(g, l, x, &r.space)).sum::<f64>();
        let mut without = leaves_of(g, l, r);
        without.retain(|x| x.owner != Owner::Node(id));
        saved += total(&r.leaves) - total(&without);
    }
    l.forms[id.index()] = Form::Expression;
    saved > cost
}

/// Work of computing an expression once per element, in bytes of traffic.
fn work(g: &Graph, l: &Layouts, id: NodeId) -> f64 {
    let map = identity_map(g.shape(id));
    let rank = item_space(g, id).len();
    let (_, inner) = reads(g, l, &[(id, map)], rank, &|_| false);
    inner.iter().map(|(n, _)| *n).chain([id]).map(|n| operation_bytes(g, n)).sum()
}

pub(super) fn operation_bytes(g: &Graph, id: NodeId) -> f64 {
    match g.node(id).op {
        Op::Map(Elementwise(f)) => match f {
            ScalarFn::Exp
            | ScalarFn::Log
            | ScalarFn::Tanh
            | ScalarFn::Sigmoid
            | ScalarFn::Erf
            | ScalarFn::Sin
            | ScalarFn::Atan
            | ScalarFn::Cos
            | ScalarFn::Pow => TRANSCENDENTAL_BYTES,
            _ => SIMPLE_BYTES,
        },
        _ => 0.0,
    }
}
