//! Modules as parts of one graph, the proof that nothing crosses between them, and each module as a graph of its own.

use std::collections::BTreeMap;

use slrc_plan::kernel::Phase;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputKind, NodeId, Root, RootKind};
use crate::ir::numbered::numbered;
use crate::ir::op::Op;
use crate::ir::ops::mode::Detach;
use crate::ir::rewrite::{extract, rebuild_by_user};
use crate::onnx::import::Imported;
use crate::partition::Candidate;
use crate::partition::candidates::differentiable;

/// A network cut into modules.
#[derive(Clone, Debug)]
pub struct Partitioned {
    /// The network with a `detach` at every boundary. Roots: the logits, and updates of running statistics.
    pub graph: Graph,
    /// The `detach` nodes of every boundary, in data order: the one of the module's output, then those of what is
    /// carried along. What is carried on from one boundary to the next is detached at each.
    pub boundaries: Vec<Vec<NodeId>>,
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

/// Cuts the network at the given candidates, in data order, of which each needs the one before it.
pub fn apply(net: &Imported, cuts: &[Candidate]) -> Partitioned {
    let mut old = net.graph.clone();
    // The loss is computed from the logits, which may not be the network's own output (a softmax).
    for r in &mut old.roots {
        if matches!(r.kind, RootKind::Output(_)) {
            r.value = net.logits;
        }
    }
    let module = modules(&old, net.logits, &cuts.iter().map(|c| c.values().collect()).collect::<Vec<_>>());
    let mut crossing: BTreeMap<NodeId, Vec<(usize, usize)>> = BTreeMap::new();
    for (k, cut) in cuts.iter().enumerate() {
        for (i, value) in cut.values().enumerate() {
            crossing.entry(value).or_default().push((k, i));
        }
    }
    let mut boundaries: Vec<Vec<NodeId>> = cuts.iter().map(|c| vec![NodeId(0); c.values().count()]).collect();
    // What a value is behind each boundary that it crosses.
    let mut detached: BTreeMap<(NodeId, usize), NodeId> = BTreeMap::new();
    let graph = rebuild_by_user(&old, |b, id, operands| {
        let node = old.node(id);
        let own = |&(old, new): &(NodeId, NodeId)| match (module[old.index()], module[id.index()]) {
            (Some(from), Some(to)) if from < to => detached.get(&(old, to - 2)).copied().unwrap_or(new),
            _ => new,
        };
        let operands: Vec<NodeId> = operands.iter().map(own).collect();
        let value = b.replay(&node.op, &operands);
        let mut last = value;
        for &(k, i) in crossing.get(&id).into_iter().flatten() {
            last = b.emit(Detach, &[last]);
            boundaries[k][i] = last;
            detached.insert((id, k), last);
        }
        value
    });
    let logits = graph.root(|k| matches!(k, RootKind::Output(_))).expect("invariant: the output is a root");
    let module = modules(&graph, logits, &boundaries);
    Partitioned { graph, boundaries, module, logits }
}

/// The module of every node: the first whose boundary, or whose logits, needs it. Of nodes that carry no gradients to
/// the logits only those have one that depend on such as do.
fn modules(graph: &Graph, logits: NodeId, boundaries: &[Vec<NodeId>]) -> Vec<Option<usize>> {
    let live = differentiable(graph, logits);
    let mut module: Vec<Option<usize>> = vec![None; graph.len()];
    let mut met = vec![false; graph.len()];
    for (k, targets) in boundaries.iter().chain([&vec![logits]]).enumerate() {
        // What an earlier boundary needs was met then.
        let mut open = targets.clone();
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
    module
}

/// Proves that every path between two modules passes the boundary between them.
pub fn verify_isolation(p: &Partitioned) -> Result<(), IsolationError> {
    for to in p.graph.ids() {
        let Some(to_module) = p.module[to.index()] else { continue };
        for &from in &p.graph.node(to).operands {
            let Some(from_module) = p.module[from.index()] else { continue };
            let detached = matches!(p.graph.node(from).op, Op::Detach(_))
                && p.boundaries.get(from_module - 1).is_some_and(|b| b.contains(&from));
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
    let mut roots: Vec<Root> = match p.boundaries.get(k - 1) {
        None => vec![Root { kind: RootKind::Output("logits".into()), value: p.logits }],
        Some(boundary) => {
            let handed_on = |(i, d): (usize, &NodeId)| {
                let value = p.graph.node(*d).operands[0];
                Root { kind: RootKind::Boundary(i), value }
            };
            boundary.iter().enumerate().map(handed_on).collect()
        }
    };
    for r in &p.graph.roots {
        if matches!(r.kind, RootKind::Update(_)) && p.module[r.value.index()] == Some(k) {
            roots.push(r.clone());
        }
    }
    let mut graph = Graph::new(format!("module {k}"));
    let mut received = BTreeMap::new();
    for (i, &from) in p.boundaries.get(k.wrapping_sub(2)).into_iter().flatten().enumerate() {
        let (name, ty) = (numbered("@x", i), p.graph.ty(from).clone());
        let id = graph.add_input(Input { name, kind: InputKind::Boundary(i), ty });
        let mut b = Builder::new(&mut graph);
        b.phase = Phase::Forward;
        received.insert(from, b.input(id));
    }
    extract(&p.graph, &roots, &received, graph)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::{InputId, VarId};
    use crate::ir::interp::{Env, evaluate};
    use crate::ir::tensor::Tensor;
    use crate::ir::verify::{Spec, verify};
    use crate::partition::candidates;
    use crate::partition::random::network;
    use slrc_plan::random::Sequence;

    /// A value for every weight, by its name.
    fn weights(g: &Graph, env: &mut Env) {
        for (i, v) in g.variables.iter().enumerate() {
            let seed = v.name.bytes().fold(0u32, |s, b| s * 31 + u32::from(b));
            let mut rng = Sequence::new(seed.into(), 0, 0);
            let data = (0..v.ty.count()).map(|_| f64::from(rng.normal())).collect();
            env.variables.insert(VarId(i as u32), Tensor::new(v.ty.shape.clone(), data));
        }
    }

    fn value_of(g: &Graph, inputs: &dyn Fn(&Input) -> Tensor, targets: &[NodeId]) -> Vec<Tensor> {
        let mut env = Env::default();
        weights(g, &mut env);
        for (i, input) in g.inputs.iter().enumerate() {
            env.inputs.insert(InputId(i as u32), inputs(input));
        }
        evaluate(g, &env, targets)
    }

    /// Modules one after the other compute what the network does, each from what the one before handed on.
    #[test]
    fn modules_in_turn_are_the_network() {
        let mut rng = Sequence::new(11, 0, 0);
        let (mut carried, mut passed_on) = (0, 0);
        for _ in 0..300 {
            let net = network(&mut rng);
            let x = Tensor::new(vec![2, 3], (0..6).map(|_| f64::from(rng.normal())).collect());
            let all = candidates(&net, 3).cuts;
            let cuts: Vec<Candidate> = all.into_iter().filter(|_| rng.word().is_multiple_of(2)).collect();
            let p = apply(&net, &cuts);
            assert_eq!(verify_isolation(&p), Ok(()));
            let mut handed: Vec<Tensor> = Vec::new();
            for k in 1..=cuts.len() + 1 {
                let m = module_graph(&p, k);
                verify(&m, Spec::open("split")).expect("a sound module");
                let from_boundary = |id: NodeId| match m.node(id).op {
                    Op::Input(i) => matches!(m.inputs[i.index()].kind, InputKind::Boundary(_)),
                    _ => false,
                };
                let roots: Vec<NodeId> = m.roots.iter().map(|r| r.value).collect();
                passed_on += roots.iter().filter(|&&id| from_boundary(id)).count();
                carried += roots.len() - 1;
                let given = |i: &Input| match i.kind {
                    InputKind::Boundary(tensor) => handed[tensor].clone(),
                    _ => x.clone(),
                };
                handed = value_of(&m, &given, &roots);
            }
            let whole = value_of(&net.graph, &|_| x.clone(), &[net.logits]);
            assert_eq!(handed, whole, "cut at {:?} of {:?}", cuts, net.graph);
        }
        assert!(carried > 100 && passed_on > 30, "{carried} carried, {passed_on} passed on");
    }
}
