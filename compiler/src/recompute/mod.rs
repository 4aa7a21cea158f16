//! Recomputation: what is kept from before the fullest moment of a step until after it, and what is computed again.
//!
//! Most of a step's memory are values of the forward pass that the backward pass uses. Many of them are cheap functions
//! of others: a normalised activation of the convolution's result, GELU of what went in. At the moment when most bytes
//! are held (`pressure.rs`), a minimum cut (`cut.rs`) chooses what to keep: everything used later must follow, by
//! elementwise work alone, from something kept. What is not kept is computed again where it is used. Then the next
//! fullest moment is looked at, since a step has several passes; and where the fullest does not give way, one before it
//! that is nearly as full: a graph does not tell what fusion will spare, so that this one may turn out to be the
//! fullest.
//!
//! Products may be let in among that work (`products.rs`): those whose results take most bytes for their work, as many
//! as a share of the step's work allows.
//!
//! Results are the same up to rounding: the same functions of the same numbers, but the builder's laws may order the
//! factors of a product otherwise.

mod cut;
mod flow;
mod pressure;
mod products;

use std::collections::BTreeMap;

use crate::fuse::scores::Scores;
use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, NodeId, Root};
use crate::ir::op::{Class, Op};
use crate::ir::ops::keep::Keep;
use crate::ir::rewrite::extract;
use crate::recompute::pressure::Pressure;

/// Most moments looked at.
const MOMENTS: usize = 8;
/// Most of them in a row that do not give way.
const IN_VAIN: usize = 3;

/// The graph with values computed again where that lets a step hold fewer bytes at its fullest moment; products, too,
/// where `products` says so and that is better than without.
pub fn recompute(graph: &Graph, products: bool) -> Graph {
    let pressure = Pressure::of(graph);
    let spares = if products { vec![products::spare(graph), 0] } else { vec![0] };
    let ways = spares.into_iter().map(|spare| eased(graph, &pressure, spare));
    let best = ways.min_by_key(|(_, bytes)| *bytes).expect("invariant: there is a way").0;
    extract(&best, &best.roots, &BTreeMap::new(), Graph::new(best.name.clone()))
}

/// The same, with products of `spare` multiply-adds at most; and the bytes that are held.
fn eased(graph: &Graph, pressure: &Pressure, mut spare: u64) -> (Graph, usize) {
    let mut best = graph.clone();
    let (mut last, mut in_vain) = (pressure.clone(), 0);
    for _ in 0..if spare > 0 { 2 * MOMENTS } else { MOMENTS } {
        let found = products::dropped(&best, &last, spare).and_then(|(dropped, work)| {
            let (candidate, moment) = without(&best, &last, &dropped);
            let eased = Pressure::of(&candidate);
            let gives_way = eased.bytes <= last.bytes && eased.held(moment) < last.held(last.moment);
            gives_way.then_some((candidate, eased, work))
        });
        let mut lower = false;
        if let Some((candidate, eased, work)) = found {
            (lower, in_vain) = (eased.bytes < last.bytes, 0);
            (best, last) = (candidate, eased);
            spare -= work;
        } else {
            in_vain += 1;
        }
        if !lower && (in_vain == IN_VAIN || !last.move_earlier()) {
            break;
        }
    }
    (best, last.bytes)
}

/// The graph with the `dropped` values of nodes up to the moment computed again for those after it, and the last node
/// before the moment in it.
fn without(old: &Graph, pressure: &Pressure, dropped: &[bool]) -> (Graph, NodeId) {
    let (moment, scores) = (pressure.moment, &pressure.scores);
    let mut graph = Graph::like(old);
    let needed = old.needed(old.roots.iter().map(|r| r.value));
    graph.reserve(old.len());
    let mut copy = Copy { old, dropped, scores, new: vec![None; old.len()], again: BTreeMap::new() };
    let mut b = Builder::new(&mut graph);
    for id in old.ids().filter(|id| needed[id.index()]) {
        let node = old.node(id);
        let operands: Vec<NodeId> = node
            .operands
            .iter()
            .map(|&o| {
                b.phase = node.phase;
                if id > moment && o <= moment { copy.later(&mut b, o) } else { copy.first(o) }
            })
            .collect();
        (b.origin, b.phase) = (node.origin, node.phase);
        copy.new[id.index()] = Some(b.replay(&node.op, &operands));
    }
    graph.roots = old.roots.iter().map(|r| Root { kind: r.kind.clone(), value: copy.first(r.value) }).collect();
    let moment = old.ids().take(moment.index() + 1).filter_map(|id| copy.new[id.index()]).max().unwrap_or(moment);
    (graph, moment)
}

struct Copy<'a> {
    old: &'a Graph,
    dropped: &'a [bool],
    scores: &'a Scores,
    /// What each node became.
    new: Vec<Option<NodeId>>,
    /// What dropped values became after the moment.
    again: BTreeMap<NodeId, NodeId>,
}

impl Copy<'_> {
    fn first(&self, id: NodeId) -> NodeId {
        self.new[id.index()].expect("invariant: operands come before users")
    }

    /// A value as it is used after the moment.
    fn later(&mut self, b: &mut Builder<'_>, id: NodeId) -> NodeId {
        if !self.dropped[id.index()] {
            // What was chosen to be kept must not become an expression of something larger.
            let pointwise = self.old.node(id).op.rule().class() == Class::Pointwise;
            return if pointwise && !self.scores.holds(id) {
                b.emit(Keep { later: true }, &[self.first(id)])
            } else {
                self.first(id)
            };
        }
        if let Some(&known) = self.again.get(&id) {
            return known;
        }
        let node = self.old.node(id);
        let operands: Vec<NodeId> = node
            .operands
            .iter()
            .map(|&o| {
                let leaf = self.old.node(o).op.rule().class() == Class::Leaf;
                if leaf || self.dropped[o.index()] {
                    self.later(b, o)
                } else {
                    b.emit(Keep { later: true }, &[self.first(o)])
                }
            })
            .collect();
        b.origin = node.origin;
        let value = match &node.op {
            // What has no operands is told apart by nothing.
            Op::Random(_) | Op::Splat(_) => self.first(id),
            op => b.replay(op, &operands),
        };
        self.again.insert(id, value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::{Input, InputKind, RootKind};
    use crate::ir::types::Type;
    use slrc_plan::ScalarFn;

    /// So many layers `tanh(x w)`, and work that goes back through what they were.
    fn layers(n: usize) -> Graph {
        let mut g = Graph::new("layers");
        let mut b = Builder::new(&mut g);
        let mut input = |name: &str, kind, shape: [usize; 2]| {
            let id = b.graph_mut().add_input(Input { name: name.into(), kind, ty: Type::f32(shape) });
            b.input(id)
        };
        let (mut x, w) = (input("x", InputKind::Data, [16, 8]), input("w", InputKind::Labels, [8, 8]));
        let mut products = Vec::new();
        for _ in 0..n {
            let product = b.matmul(x, w);
            x = b.map(ScalarFn::Tanh, &[product]);
            products.push((product, x));
        }
        for (product, y) in products.into_iter().rev() {
            let both = b.mul(product, y);
            let back = b.mul(x, both);
            x = b.matmul(back, w);
        }
        g.roots = vec![Root { kind: RootKind::Report("x".into()), value: x }];
        g
    }

    /// In a deep network every tensor is small beside all that is held.
    #[test]
    fn depth_changes_nothing_of_what_is_kept() {
        for n in [10, 2000] {
            let graph = layers(n);
            let (kept, eased) = (Pressure::of(&graph).bytes, Pressure::of(&recompute(&graph, false)).bytes);
            assert!(10 * eased < 7 * kept, "{n} layers: {kept} bytes, {eased} where tanh is computed again");
        }
    }
}
