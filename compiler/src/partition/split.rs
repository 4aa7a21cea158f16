//! Modules as parts of one graph, the proof that nothing crosses between them, and each module as a graph of its own.

use std::collections::BTreeMap;

use slrc_plan::kernel::Phase;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputKind, NodeId, Root, RootKind};
use crate::ir::op::Op;
use crate::ir::rewrite::{extract, rebuild};
use crate::onnx::import::Imported;
use crate::partition::Candidate;
use crate::partition::candidates::differentiable;

/// A network cut into modules.
#[derive(Clone, Debug)]
pub struct Partitioned {
    /// The network with a `detach` at every boundary. Roots: the logits, and updates of running statistics.
    pub graph: Graph,
    /// The `detach` node of every boundary, in data order.
    pub boundaries: Vec<NodeId>,
    /// Module of every node that carries gradients, from 1; other nodes (data, weights, masks) belong to whoever uses
    /// them.
    pub module: Vec<Option<usize>>,
    /// The network's logits.
    pub logits: NodeId,
}

/// Something differentiable passes between modules without a `detach`: a bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("internal error: {from} of module {from_module} reaches {to} of module {to_module} without a detach")]
pub struct IsolationError {
    /// Producer.
    pub from: NodeId,
    /// Its module.
    pub from_module: usize,
    /// Consumer.
    pub to: NodeId,
    /// Its module.
    pub to_module: usize,
}

/// Cuts the network at the given candidates, in data order.
pub fn apply(net: &Imported, cuts: &[Candidate]) -> Partitioned {
    let mut old = net.graph.clone();
    // The loss is computed from the logits, which may not be the network's own output (a softmax).
    for r in &mut old.roots {
        if matches!(r.kind, RootKind::Output(_)) {
            r.value = net.logits;
        }
    }
    let at: BTreeMap<NodeId, usize> = cuts.iter().enumerate().map(|(i, c)| (c.value, i)).collect();
    let mut boundaries = vec![NodeId(0); cuts.len()];
    let graph = rebuild(&old, |b, id, operands| {
        let i = *at.get(&id)?;
        let value = b.replay(&old.node(id).op, operands);
        boundaries[i] = b.detach(value);
        Some(boundaries[i])
    });
    let logits = graph.root(|k| matches!(k, RootKind::Output(_))).expect("invariant: the output is a root");
    let live = differentiable(&graph, logits);
    let mut module: Vec<Option<usize>> = vec![None; graph.len()];
    let mut met = vec![false; graph.len()];
    for (k, &target) in boundaries.iter().chain([&logits]).enumerate() {
        // What an earlier boundary needs was met then.
        let mut open = vec![target];
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut met[id.index()], true) {
                module[id.index()] = live[id.index()].then_some(k + 1);
                open.extend(&graph.node(id).operands);
            }
        }
    }
    // What is computed beside the path to the logits (running statistics) goes with its operands.
    for id in graph.ids() {
        if module[id.index()].is_none() && !live[id.index()] {
            let of_operands = graph.node(id).operands.iter().filter_map(|o| module[o.index()]).max();
            module[id.index()] = of_operands;
        }
    }
    Partitioned { graph, boundaries, module, logits }
}

/// Proves that every path between two modules passes the boundary between them.
pub fn verify_isolation(p: &Partitioned) -> Result<(), IsolationError> {
    for to in p.graph.ids() {
        let Some(to_module) = p.module[to.index()] else { continue };
        for &from in &p.graph.node(to).operands {
            let Some(from_module) = p.module[from.index()] else { continue };
            let detached =
                matches!(p.graph.node(from).op, Op::Detach(_)) && p.boundaries.get(from_module - 1) == Some(&from);
            if from_module != to_module && !(detached && to_module == from_module + 1) {
                return Err(IsolationError { from, from_module, to, to_module });
            }
        }
    }
    Ok(())
}

/// Module `k` (from 1) as a graph: the boundary before it is an input, its output and its updates are roots.
/// Both modes are kept.
pub fn module_graph(p: &Partitioned, k: usize) -> Graph {
    let last = k == p.boundaries.len() + 1;
    let output = if last { p.logits } else { p.graph.node(p.boundaries[k - 1]).operands[0] };
    let mut roots =
        vec![Root { kind: RootKind::Output(if last { "logits".into() } else { "x".into() }), value: output }];
    for r in &p.graph.roots {
        if matches!(r.kind, RootKind::Update(_)) && p.module[r.value.index()] == Some(k) {
            roots.push(r.clone());
        }
    }
    let mut graph = Graph::new(format!("module {k}"));
    let replaced = (k > 1).then(|| {
        let from = p.boundaries[k - 2];
        let ty = p.graph.ty(from).clone();
        let id = graph.add_input(Input { name: "@x".into(), kind: InputKind::Boundary, ty });
        let mut b = Builder::new(&mut graph);
        b.phase = Phase::Forward;
        (from, b.input(id))
    });
    extract(&p.graph, &roots, replaced, graph)
}
