//! Attention: one item for each pass over scores ([`crate::fuse::scores`]), with the products it begins with, the work
//! on rows, and the products it ends in.

use std::collections::BTreeSet;

use crate::fuse::expression::{Map, identity_map, reads_of};
use crate::fuse::layout::{Form, Layouts, Owner};
use crate::fuse::regions::{Region, Sink, operand_map};
use crate::fuse::scores::{Exit, Pass};
use crate::ir::graph::{Graph, NodeId};

/// A pass over scores.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Work on rows: its dimensions are those of the scores, its sinks what it reduces them to.
    pub region: Region,
    /// Products the work begins with, each with the item dimensions that run along its own.
    pub products: Vec<(NodeId, Map)>,
    /// Products it ends in.
    pub exits: Vec<Ending>,
}

/// A product of a score-shaped value and something in memory.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The product.
    pub exit: Exit,
    /// The score-shaped value, and the item dimensions that run along its own.
    pub value: (NodeId, Map),
}

impl Attention {
    /// The item of a pass.
    pub(super) fn new(g: &Graph, l: &Layouts, pass: &Pass) -> Attention {
        let straight = identity_map(&pass.shape);
        let space: Vec<usize> = pass.shape.iter().copied().filter(|&e| e != 1).collect();
        let mut reduced = straight.clone();
        *reduced.last_mut().expect("invariant: scores have columns") = None;
        let stored = |id: &&NodeId| l.memory(**id).is_some_and(|m| m.owner == Owner::Node(**id));
        let sinks: Vec<Sink> = pass.rows.iter().filter(stored).map(|&r| Sink::new(r, reduced.clone())).collect();
        let mut region =
            Region { order: (0..space.len()).collect(), axes: vec![space.len() - 1], space, sinks, leaves: Vec::new() };
        let exits: Vec<Ending> = pass
            .exits
            .iter()
            .map(|&exit| {
                let mut map = straight.clone();
                if exit.flipped {
                    let rank = map.len();
                    map.swap(rank - 2, rank - 1);
                }
                Ending { exit, value: (g.node(exit.node).operands[exit.slot], map) }
            })
            .collect();
        let values: Vec<(NodeId, Map)> = region
            .sinks
            .iter()
            .flat_map(|s| {
                let map = operand_map(g, s, &region);
                g.node(s.node).operands.iter().map(move |&o| (o, map.clone()))
            })
            .chain(exits.iter().map(|e| e.value.clone()))
            .collect();
        let own: BTreeSet<NodeId> = region.sinks.iter().map(|s| s.node).collect();
        let (leaves, met) = reads_of(g, l, &values, region.space.len(), &|n| own.contains(&n));
        region.leaves = leaves;
        let products = met.into_iter().filter(|(n, _)| l.forms[n.index()] == Form::Score).collect();
        Attention { region, products, exits }
    }

    /// Owners of what the products on both sides read.
    pub(super) fn operands<'a>(&'a self, l: &'a Layouts) -> impl Iterator<Item = Owner> + 'a {
        let begin = self.products.iter().flat_map(|(n, _)| [(*n, 0), (*n, 1)]);
        let end = self.exits.iter().map(|e| (e.exit.node, 1 - e.exit.slot));
        begin.chain(end).map(|at| l.operands[&at].owner)
    }

    /// Everything it computes into memory.
    pub(super) fn results(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.region.sinks.iter().map(|s| s.node).chain(self.exits.iter().map(|e| e.exit.node))
    }
}
