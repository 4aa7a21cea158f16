//! Passes that tidy: choosing a mode, expanding composites, dropping what no root needs. Local laws are applied by the
//! builder as graphs are rebuilt; see [`crate::ir::identities`].

mod variance;

use std::collections::BTreeMap;

use slrc_plan::ScalarFn;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, NodeId, Root, RootKind};
use crate::ir::op::Op;
use crate::ir::ops::map::Map;
use crate::ir::rewrite::{extract, rebuild};

/// Training or inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, dropout on.
    Train,
    /// Running statistics, dropout off.
    Eval,
}

/// Resolves every mode selection.
pub fn specialise(graph: &Graph, mode: Mode) -> Graph {
    rebuild(graph, |_, id, operands| match (&graph.node(id).op, mode) {
        (Op::ModeSelect(_), Mode::Train) => Some(operands[0]),
        (Op::ModeSelect(_), Mode::Eval) => Some(operands[1]),
        _ => None,
    })
}

/// Writes composites in terms of what kernels compute, removes gradient barriers (they have done their work), and drops
/// updates that leave a variable as it is, unused nodes and table entries.
pub fn close(graph: &Graph) -> Graph {
    close_about(graph, false)
}

/// The same, variances summed about what means are expected to be near where `expected` says so: their sums then need
/// no element of what they are of, and can be taken while that is computed.
pub fn close_about(graph: &Graph, expected: bool) -> Graph {
    // Log-sum-exp node (new) -> its shifted exponentials and their sum, for softmaxes of the same operand.
    let mut expanded: BTreeMap<NodeId, (NodeId, NodeId, NodeId)> = BTreeMap::new();
    let mut about = variance::About::default();
    let closed = rebuild(graph, |b, id, x| match &graph.node(id).op {
        Op::Detach(_) => Some(x[0]),
        Op::Near(_) => {
            if expected {
                about.learn(x[0], x[1]);
            }
            Some(x[0])
        }
        Op::LogSumExp(l) => {
            let m = b.max(x[0], &l.axes);
            let e = shifted_exp(b, x[0], m);
            let s = b.sum(e, &l.axes);
            let log = b.map(ScalarFn::Log, &[s]);
            let lse = b.add(m, log);
            expanded.insert(lse, (x[0], e, s));
            Some(lse)
        }
        // e^(x - lse) = e^(x - m) / sum
        Op::Map(Map(ScalarFn::Exp)) => {
            let (z, wide) = as_sub(b, x[0])?;
            let lse = as_broadcast(b, wide)?;
            let &(of, e, s) = expanded.get(&lse)?;
            (of == z).then(|| {
                let r = b.map(ScalarFn::Recip, &[s]);
                let shape = b.shape(e);
                let wide = b.broadcast(r, &shape);
                b.mul(e, wide)
            })
        }
        Op::Reduce(r) => variance::in_one_pass(b, r, x[0], &about),
        _ => None,
    });
    // A bias that a BatchNorm takes away again has no gradient; plain SGD then has nothing to write.
    let changes = |r: &Root| match r.kind {
        RootKind::Update(v) => !matches!(closed.node(r.value).op, Op::Variable(w) if w == v),
        RootKind::Output(_) | RootKind::Boundary(_) | RootKind::OutputGradient(_) | RootKind::Report(_) => true,
    };
    let roots: Vec<Root> = closed.roots.iter().filter(|r| changes(r)).cloned().collect();
    extract(&closed, &roots, &BTreeMap::new(), Graph::new(closed.name.clone()))
}

fn shifted_exp(b: &mut Builder<'_>, x: NodeId, m: NodeId) -> NodeId {
    let shifted = crate::layers::centre(b, x, m);
    b.map(ScalarFn::Exp, &[shifted])
}

/// `a`, `b` of `a - b`.
fn as_sub(b: &Builder<'_>, x: NodeId) -> Option<(NodeId, NodeId)> {
    let n = b.graph().node(x);
    matches!(n.op, Op::Map(Map(ScalarFn::Sub))).then(|| (n.operands[0], n.operands[1]))
}

/// What is repeated.
fn as_broadcast(b: &Builder<'_>, x: NodeId) -> Option<NodeId> {
    let n = b.graph().node(x);
    matches!(n.op, Op::Broadcast(_)).then(|| n.operands[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::{Init, VarKind, Variable};
    use crate::ir::types::Type;

    #[test]
    fn updates_that_write_nothing_are_dropped() {
        let mut g = Graph::new("updates");
        let mut add = |name: &str| {
            let ty = Type::f32([3]);
            g.add_variable(Variable { name: name.into(), kind: VarKind::Weight, ty, init: Init::Constant(0.0) })
        };
        let (still, moved) = (add("still"), add("moved"));
        let mut b = Builder::new(&mut g);
        let (s, m) = (b.variable(still), b.variable(moved));
        // Both are read, so that both stay.
        let sum = b.add(s, m);
        let twice = b.add(m, m);
        g.roots = vec![
            Root { kind: RootKind::Report("sum".into()), value: sum },
            Root { kind: RootKind::Update(still), value: s },
            Root { kind: RootKind::Update(moved), value: twice },
        ];
        let closed = close(&g);
        let updated = closed.roots.iter().filter_map(|r| match r.kind {
            RootKind::Update(v) => Some(closed.variables[v.index()].name.as_str()),
            _ => None,
        });
        assert_eq!(updated.collect::<Vec<_>>(), ["moved"]);
        assert_eq!(closed.variables.len(), 2);
    }
}
