//! Rebuilding a graph: every pass that changes one makes a new one through here.

use std::collections::BTreeMap;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, NodeId, Root};

/// Rebuilds what the roots need. `rule` may give the new value of an old node from its new operands;
/// where it gives none, the node is replayed.
pub fn rebuild(
    old: &Graph,
    mut rule: impl FnMut(&mut Builder<'_>, NodeId, &[NodeId]) -> Option<NodeId>,
) -> Graph {
    let mut graph = Graph::like(old);
    let needed = old.needed(old.roots.iter().map(|r| r.value));
    let mut new = vec![None; old.len()];
    let mut b = Builder::new(&mut graph);
    for id in old.ids().filter(|id| needed[id.index()]) {
        let node = old.node(id);
        let operands = mapped(&node.operands, &new);
        (b.origin, b.phase) = (node.origin, node.phase);
        let value = rule(&mut b, id, &operands).unwrap_or_else(|| b.replay(&node.op, &operands));
        new[id.index()] = Some(value);
    }
    graph.roots = old
        .roots
        .iter()
        .map(|r| Root { kind: r.kind.clone(), value: new[r.value.index()].expect("invariant: roots are needed") })
        .collect();
    graph
}

fn mapped(operands: &[NodeId], new: &[Option<NodeId>]) -> Vec<NodeId> {
    operands.iter().map(|o| new[o.index()].expect("invariant: operands come before users")).collect()
}

/// Builds again, in the same graph, everything `targets` need with some nodes replaced; nodes that do not depend on a
/// replaced one are shared. `keep` names nodes to share all the same. Returns the new targets.
pub fn substitute(
    b: &mut Builder<'_>,
    targets: &[NodeId],
    replaced: &BTreeMap<NodeId, NodeId>,
    keep: impl Fn(&Graph, NodeId) -> bool,
) -> Vec<NodeId> {
    let (needed, dependent) = {
        let g = b.graph();
        (g.needed(targets.iter().copied()), g.dependent(replaced.keys().copied()))
    };
    let mut new: Vec<NodeId> = (0..needed.len() as u32).map(NodeId).collect();
    for i in 0..needed.len() {
        let id = NodeId(i as u32);
        if let Some(&r) = replaced.get(&id) {
            new[i] = r;
        } else if needed[i] && dependent[i] && !keep(b.graph(), id) {
            let node = b.graph().node(id).clone();
            let operands: Vec<NodeId> = node.operands.iter().map(|o| new[o.index()]).collect();
            if operands != node.operands {
                b.origin = node.origin;
                new[i] = b.replay(&node.op, &operands);
            }
        }
    }
    targets.iter().map(|t| new[t.index()]).collect()
}
