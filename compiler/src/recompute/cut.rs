//! The minimum cut between what must be computed before the fullest moment of a step and what is used after it.
//!
//! Every value is an edge whose capacity is its size, from a node that stands for computing it to one that stands for
//! having it. What is expensive hangs on the source, what is used after the moment on the sink. The edges of a minimum
//! cut are the fewest bytes from which everything used later follows. That activations can be computed again is the
//! idea of Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016.

use slrc_plan::{DType, ScalarFn};

use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::{Class, Op};
use crate::ir::ops::map::Map;
use crate::recompute::flow::Network;
use crate::recompute::pressure::{Pressure, is_boundary};

/// Large tensors that a value computed again may depend on: a sum over all layers so far is not computed again from all
/// of them.
const SOURCES: usize = 4;
/// A tensor is small, and kept, where so many would take less than everything that is held,
const SMALL: usize = 1024;
/// and so many less than the largest: of a deep network everything is small beside what is held.
const SMALLER: usize = 64;
/// Most steps of work on a product that are told apart.
const STEPS: usize = 8;
/// A capacity that no cut takes.
const UNCUT: u64 = 1 << 50;

/// Which values up to the moment are not kept, though something later depends on them; `None` if all are. The products
/// in `products` may be computed again.
pub(super) fn dropped(g: &Graph, p: &Pressure, products: &[NodeId]) -> Option<Vec<bool>> {
    let values = p.moment.index() + 1;
    let cheap = cheap(g, p, values, products);
    let finished = finished_products(g, p, values);
    let (source, sink) = (2 * values, 2 * values + 1);
    let (compute, have) = (|id: NodeId| 2 * id.index(), |id: NodeId| 2 * id.index() + 1);
    let mut net = Network::new(2 * values + 2);
    let mut kept_anyway = vec![false; g.len()];
    g.roots.iter().for_each(|r| kept_anyway[r.value.index()] = true);
    for id in g.ids().take(values).filter(|id| p.needed[id.index()]) {
        // Scores cannot be kept.
        let kept =
            if p.scores.holds(id) && cheap[id.index()] { UNCUT } else { capacity(g, p, &kept_anyway, &finished, id) };
        net.add(compute(id), have(id), kept);
        if !cheap[id.index()] {
            net.add(source, compute(id), UNCUT);
        }
        let users = &p.users[id.index()];
        for &u in users.iter().filter(|&&u| u <= p.moment) {
            net.add(have(id), compute(u), UNCUT);
        }
        if users.iter().any(|&u| u > p.moment) {
            net.add(have(id), sink, UNCUT);
        }
    }
    // What the source still reaches is computed before the moment only.
    let reached = net.source_side(source, sink);
    let dropped: Vec<bool> = g
        .ids()
        .map(|id| id.index() < values && p.needed[id.index()] && cheap[id.index()] && !reached[compute(id)])
        .collect();
    // Views of what is kept are no work, and scores are computed again in any case.
    let is_work = |id: NodeId| matches!(g.node(id).op, Op::Map(_)) || products.contains(&id);
    let saves = |id: NodeId| dropped[id.index()] && is_work(id) && !p.scores.holds(id);
    g.ids().any(saves).then_some(dropped)
}

/// Bytes that keeping a value takes.
fn capacity(g: &Graph, p: &Pressure, kept_anyway: &[bool], finished: &[usize], id: NodeId) -> u64 {
    if kept_anyway[id.index()] || p.scores.holds(id) {
        return 0;
    }
    let n = g.node(id);
    match n.op.rule().class() {
        Class::Leaf if is_boundary(g, id) => n.ty.bytes() as u64,
        Class::Leaf => 0,
        // It shares its operand's memory.
        Class::View => capacity(g, p, kept_anyway, finished, n.operands[0]),
        // A mask, a bit each.
        Class::Pointwise if n.ty.dtype == DType::U8 => DType::Bit.bytes(n.ty.count()) as u64,
        Class::Pointwise if finished[id.index()] > 0 => {
            (n.ty.bytes() - finished[id.index()].min(STEPS) * (n.ty.bytes() / 64)) as u64
        }
        // Of two equal tensors, a kernel's result is kept rather than what follows from it and some small ones.
        Class::Pointwise => (n.ty.bytes() + n.ty.bytes() / 16) as u64,
        Class::Reduction | Class::Kernel | Class::Composite => n.ty.bytes() as u64,
    }
}

/// Of values that can be stored by the product they are made from, in its place, how many steps of work on it they are:
/// a product that has no other use, times or plus something that repeats, plus a tensor. To keep one of these takes no
/// more than to keep the product, and spares work.
fn finished_products(g: &Graph, p: &Pressure, values: usize) -> Vec<usize> {
    let mut finished = vec![0; values];
    let mut product = vec![false; values];
    for id in g.ids().take(values).filter(|id| p.needed[id.index()]) {
        let n = g.node(id);
        let only = |x: NodeId| (product[x.index()] || finished[x.index()] > 0) && p.users[x.index()] == [id];
        match &n.op {
            Op::MatMul(_) | Op::Conv(_) => product[id.index()] = !p.scores.holds(id),
            Op::Reshape(_) => product[id.index()] = only(n.operands[0]),
            Op::Map(Map(f)) => {
                let repeats = |x: NodeId| matches!(g.node(x).op, Op::Broadcast(_) | Op::Splat(_));
                let done = match (f, &n.operands[..]) {
                    (ScalarFn::Add, &[a, b]) => only(a) || only(b),
                    (ScalarFn::Mul, &[a, b]) => (only(a) && repeats(b)) || (only(b) && repeats(a)),
                    _ => false,
                };
                let before = n.operands.iter().filter(|&&o| only(o)).map(|o| finished[o.index()]).max();
                finished[id.index()] = if done { 1 + before.unwrap_or(0) } else { 0 };
            }
            _ => {}
        }
    }
    finished
}

/// Which values may be computed again: elementwise work and views, of few large tensors, scores, and some products.
fn cheap(g: &Graph, p: &Pressure, values: usize, products: &[NodeId]) -> Vec<bool> {
    let mut cheap = vec![false; g.len()];
    let mut product = vec![false; g.len()];
    products.iter().for_each(|x| product[x.index()] = true);
    let mut sources: Vec<Vec<NodeId>> = vec![Vec::new(); values];
    let made = |id: &NodeId| p.needed[id.index()] && g.node(*id).op.rule().class() != Class::Leaf;
    let computed = g.ids().take(values).filter(|id| made(id) && !p.scores.holds(*id));
    let largest = computed.map(|id| g.ty(id).bytes()).max().unwrap_or(0);
    for id in g.ids().take(values).filter(|id| p.needed[id.index()]) {
        let n = g.node(id);
        let small = SMALL * n.ty.bytes() < p.bytes && SMALLER * n.ty.bytes() < largest;
        let work = matches!(n.op.rule().class(), Class::Pointwise | Class::View) || product[id.index()];
        let easy = work && !small || p.scores.holds(id);
        let mut from: Vec<NodeId> = Vec::new();
        for &o in &n.operands {
            if cheap[o.index()] {
                from.extend(&sources[o.index()]);
            } else if 2 * g.ty(o).bytes() >= n.ty.bytes()
                && !matches!(g.node(o).op, Op::Variable(_) | Op::Splat(_) | Op::Constant(_))
            {
                from.push(o);
            }
        }
        from.sort_unstable();
        from.dedup();
        cheap[id.index()] = easy && from.len() <= SOURCES;
        sources[id.index()] = from;
    }
    cheap
}
