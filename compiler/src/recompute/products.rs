//! Which products are computed again: those whose results take most bytes for the work that computing them takes.
//!
//! A convolution of one pixel with four times as many channels behind it as before is an example: its result is most of
//! what a bottleneck block keeps, and a few per cent of its work.

use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::{Class, Op};
use crate::recompute::cut;
use crate::recompute::pressure::Pressure;

/// Work that may be done again is one part in so many of a step's products.
const SHARE: u64 = 20;

/// Multiply-adds of a product; of anything else none.
fn work(g: &Graph, id: NodeId) -> u64 {
    let n = g.node(id);
    let count = |id: NodeId| g.ty(id).count() as u64;
    let (outputs, terms) = match &n.op {
        Op::MatMul(_) => (count(id), g.shape(n.operands[0]).last().copied().unwrap_or(1) as u64),
        Op::Conv(_) | Op::ConvWeightGrad(_) => {
            let (y, w) = if matches!(n.op, Op::Conv(_)) { (id, n.operands[1]) } else { (n.operands[1], id) };
            (count(y), count(w) / g.shape(w)[0].max(1) as u64)
        }
        Op::ConvInputGrad(_) => {
            let (w, y) = (n.operands[0], n.operands[1]);
            (count(y), count(w) / g.shape(w)[0].max(1) as u64)
        }
        _ => return 0,
    };
    outputs * terms
}

/// Multiply-adds that may be done again.
pub(super) fn spare(g: &Graph) -> u64 {
    let needed = g.needed(g.roots.iter().map(|r| r.value));
    g.ids().filter(|id| needed[id.index()]).map(|id| work(g, id)).sum::<u64>() / SHARE
}

/// What is not kept beyond the fullest moment, with as many products among it as `spare` multiply-adds allow, and how
/// many it takes; `None` where everything is kept.
pub(super) fn dropped(g: &Graph, p: &Pressure, spare: u64) -> Option<(Vec<bool>, u64)> {
    let scored = scored(g, p);
    let may = |id: &NodeId| p.needed[id.index()] && !scored[id.index()] && !p.scores.yields(*id);
    let up_to = g.ids().take_while(|&id| id <= p.moment).filter(may);
    let mut products: Vec<(NodeId, u64)> = up_to.map(|id| (id, work(g, id))).filter(|x| x.1 > 0).collect();
    // By work a byte; of equals, those first that are held longest.
    let bytes = |id: NodeId| u128::from(g.ty(id).bytes() as u64);
    products.sort_by(|a, b| (u128::from(a.1) * bytes(b.0)).cmp(&(u128::from(b.1) * bytes(a.0))).then(a.0.cmp(&b.0)));
    let ids: Vec<NodeId> = products.iter().map(|x| x.0).collect();
    let of = |n: usize| {
        let dropped = cut::dropped(g, p, &ids[..n])?;
        // Scores are computed again in any case.
        let work = again(g, p, &dropped).filter(|&id| !p.scores.holds(id)).map(|id| work(g, id)).sum::<u64>();
        Some((dropped, work))
    };
    let mut best = of(0);
    if spare == 0 {
        return best;
    }
    // More products may take more work, never much less.
    let (mut low, mut high) = (0, ids.len());
    while low < high {
        let middle = (low + high).div_ceil(2);
        match of(middle) {
            Some((_, work)) if work > spare => high = middle - 1,
            found => {
                best = found.or(best);
                low = middle;
            }
        }
    }
    best
}

/// Scores and what they are computed from but for what products stand behind: computed twice, these would be two, and
/// scores that are stored.
fn scored(g: &Graph, p: &Pressure) -> Vec<bool> {
    let mut scored: Vec<bool> = g.ids().map(|id| p.scores.holds(id)).collect();
    for id in g.ids().rev().filter(|id| p.needed[id.index()]) {
        let n = g.node(id);
        let through = p.scores.holds(id) || matches!(n.op.rule().class(), Class::Pointwise | Class::View);
        if scored[id.index()] && through {
            n.operands.iter().for_each(|o| scored[o.index()] = true);
        }
    }
    scored
}

/// Dropped values that something after the moment asks for, itself or through others.
fn again(g: &Graph, p: &Pressure, dropped: &[bool]) -> impl Iterator<Item = NodeId> {
    let mut asked = vec![false; g.len()];
    for id in g.ids().rev().filter(|id| p.needed[id.index()]) {
        if id > p.moment || asked[id.index()] {
            for o in g.node(id).operands.iter().filter(|o| **o <= p.moment && dropped[o.index()]) {
                asked[o.index()] = true;
            }
        }
    }
    g.ids().filter(move |id| asked[id.index()])
}
