//! Rebuilding a graph: every pass that changes one makes a new one through here.

use std::collections::BTreeMap;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, NodeId, OriginId, Root, RootKind};
use crate::ir::op::Op;

/// Rebuilds what the roots need. `rule` may give the new value of an old node from its new operands;
/// where it gives none, the node is replayed.
pub fn rebuild(old: &Graph, mut rule: impl FnMut(&mut Builder<'_>, NodeId, &[NodeId]) -> Option<NodeId>) -> Graph {
    rebuild_by_user(old, |b, id, operands| {
        let operands: Vec<NodeId> = operands.iter().map(|o| o.1).collect();
        rule(b, id, &operands).unwrap_or_else(|| b.replay(&old.node(id).op, &operands))
    })
}

/// Rebuilds what the roots need, each node by `rule`, from its operands as they were and as they are now.
pub fn rebuild_by_user(
    old: &Graph,
    mut rule: impl FnMut(&mut Builder<'_>, NodeId, &[(NodeId, NodeId)]) -> NodeId,
) -> Graph {
    let mut graph = Graph::like(old);
    let needed = old.needed(old.roots.iter().map(|r| r.value));
    graph.reserve(needed.iter().filter(|n| **n).count());
    let mut new = vec![None; old.len()];
    let mut b = Builder::new(&mut graph);
    for id in old.ids().filter(|id| needed[id.index()]) {
        let node = old.node(id);
        let operands: Vec<(NodeId, NodeId)> = node.operands.iter().copied().zip(mapped(&node.operands, &new)).collect();
        (b.origin, b.phase) = (node.origin, node.phase);
        new[id.index()] = Some(rule(&mut b, id, &operands));
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

/// Copies what `roots` need from `old` into `graph`, with only the table entries that are used. `replaced` gives nodes
/// of `old` their values in `graph`.
pub fn extract(old: &Graph, roots: &[Root], replaced: &BTreeMap<NodeId, NodeId>, mut graph: Graph) -> Graph {
    let needed = {
        // What lies behind a replaced node is not needed.
        let mut needed = vec![false; old.len()];
        for r in roots {
            needed[r.value.index()] = true;
        }
        for id in old.ids().rev() {
            if needed[id.index()] && !replaced.contains_key(&id) {
                for o in &old.node(id).operands {
                    needed[o.index()] = true;
                }
            }
        }
        needed
    };
    graph.reserve(needed.iter().filter(|n| **n).count());
    let mut new: Vec<Option<NodeId>> = vec![None; old.len()];
    let mut origins: Vec<Option<OriginId>> = vec![None; old.origins.len()];
    for id in old.ids().filter(|id| needed[id.index()]) {
        if let Some(&to) = replaced.get(&id) {
            new[id.index()] = Some(to);
            continue;
        }
        let node = old.node(id);
        let op = import_leaf(old, &mut graph, &node.op);
        let origin = node.origin.index();
        let origin = *origins[origin].get_or_insert_with(|| graph.add_origin(&old.origins[origin]));
        let operands = mapped(&node.operands, &new);
        let mut b = Builder::new(&mut graph);
        (b.origin, b.phase) = (origin, node.phase);
        new[id.index()] = Some(b.replay(&op, &operands));
    }
    for r in roots {
        let kind = match &r.kind {
            RootKind::Update(v) => {
                let variable = &old.variables[v.index()];
                RootKind::Update(graph.variable(&variable.name).unwrap_or_else(|| graph.add_variable(variable.clone())))
            }
            other => other.clone(),
        };
        let value = new[r.value.index()].expect("invariant: roots are needed");
        graph.roots.push(Root { kind, value });
    }
    graph
}

/// The op with its table entry registered in `graph`.
fn import_leaf(old: &Graph, graph: &mut Graph, op: &Op) -> Op {
    match op {
        Op::Input(i) => {
            let input = &old.inputs[i.index()];
            let at = graph.inputs.iter().position(|x| x.name == input.name && x.kind == input.kind);
            Op::Input(at.map_or_else(|| graph.add_input(input.clone()), |i| crate::ir::graph::InputId(i as u32)))
        }
        Op::Variable(v) => {
            let variable = &old.variables[v.index()];
            Op::Variable(graph.variable(&variable.name).unwrap_or_else(|| graph.add_variable(variable.clone())))
        }
        Op::Constant(c) => Op::Constant(graph.add_constant(old.constants[c.index()].clone())),
        Op::StepScalar(s) => Op::StepScalar(graph.add_scalar(old.scalars[s.index()].clone())),
        other => other.clone(),
    }
}
