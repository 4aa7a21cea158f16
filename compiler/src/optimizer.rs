//! Optimizer updates as roots of the graph: a weight's new value from its old one, its gradient and the optimizer's
//! state.

use slrc_plan::ScalarFn;
use slrc_plan::kernel::Phase;
use slrc_plan::schedule::{Decay, Schedule};

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Init, NodeId, Root, RootKind, StepScalar, VarId, VarKind, Variable};
use crate::ir::op::Op;
use crate::spec::{OptimizerRule, OptimizerSpec};

/// Adds the update of every weight, and the state it needs.
pub fn apply(graph: &mut Graph, weights: &[NodeId], gradients: &[NodeId], spec: &OptimizerSpec) {
    let mut roots = Vec::new();
    for (&p, &grad) in weights.iter().zip(gradients) {
        let Op::Variable(var) = graph.node(p).op else { unreachable!("invariant: weights are read by variable nodes") };
        let origin = first_user_origin(graph, p);
        let mut u = Update { b: Builder::new(graph), var, roots: &mut roots };
        u.b.phase = Phase::Update;
        u.b.origin = origin;
        match spec.rule {
            OptimizerRule::Sgd { momentum, nesterov } => u.sgd(p, grad, momentum, nesterov, spec),
            OptimizerRule::AdamW { betas, eps } => u.adamw(p, grad, betas, eps, spec),
        }
    }
    graph.roots.extend(roots);
}

/// The ONNX node that uses the weight: where people look for it.
fn first_user_origin(graph: &Graph, p: NodeId) -> crate::ir::graph::OriginId {
    graph.users(p).first().map_or(graph.node(p).origin, |&u| graph.node(u).origin)
}

struct Update<'a, 'g> {
    b: Builder<'g>,
    var: VarId,
    roots: &'a mut Vec<Root>,
}

impl Update<'_, '_> {
    fn scalar(&mut self, name: &str, schedule: Schedule, shape: &[usize]) -> NodeId {
        let id = self.b.graph_mut().add_scalar(StepScalar { name: name.into(), schedule });
        let s = self.b.step_scalar(id);
        self.b.broadcast_to(s, shape)
    }

    fn state(&mut self, suffix: &str) -> (VarId, NodeId) {
        let of = self.b.graph().variables[self.var.index()].clone();
        let name = format!("{}.{suffix}", of.name);
        let id = self.b.graph_mut().add_variable(Variable {
            name,
            kind: VarKind::Optimizer,
            ty: of.ty,
            init: Init::Constant(0.0),
        });
        (id, self.b.variable(id))
    }

    fn set(&mut self, var: VarId, value: NodeId) {
        self.roots.push(Root { kind: RootKind::Update(var), value });
    }

    /// PyTorch's SGD: `grad += decay p; buf = momentum buf + grad; p -= lr buf`, or `p -= lr (grad + momentum buf)`
    /// with Nesterov.
    fn sgd(&mut self, p: NodeId, grad: NodeId, momentum: f64, nesterov: bool, spec: &OptimizerSpec) {
        let shape = self.b.shape(p);
        let lr = self.scalar("lr", spec.lr.clone(), &shape);
        let decay = self.b.scale(p, spec.weight_decay);
        let grad = self.b.add(grad, decay);
        let mut step = grad;
        if momentum > 0.0 {
            let (var, buf) = self.state("momentum_buffer");
            let kept = self.b.scale(buf, momentum);
            let new = self.b.add(kept, grad);
            self.set(var, new);
            step = new;
            if nesterov {
                let ahead = self.b.scale(new, momentum);
                step = self.b.add(grad, ahead);
            }
        }
        let change = self.b.mul(step, lr);
        let new = self.b.sub(p, change);
        self.set(self.var, new);
    }

    /// `p -= lr decay p; m = b1 m + (1 - b1) grad; v = b2 v + (1 - b2) grad^2; p -= lr (m c1) / (sqrt(v c2) + eps)`
    /// with the bias corrections `c = 1 / (1 - b^step)`.
    fn adamw(&mut self, p: NodeId, grad: NodeId, betas: [f64; 2], eps: f64, spec: &OptimizerSpec) {
        let shape = self.b.shape(p);
        let lr = self.scalar("lr", spec.lr.clone(), &shape);
        let mut corrections = [p; 2];
        for (i, c) in corrections.iter_mut().enumerate() {
            let decay = Decay::AdamCorrection { beta: betas[i] };
            *c = self.scalar(&format!("adam-correction.{}", i + 1), Schedule { base: 1.0, warmup: 0, decay }, &shape);
        }
        let (m_var, m) = self.state("exp_avg");
        let (v_var, v) = self.state("exp_avg_sq");
        let m = self.average(m, grad, betas[0]);
        let square = self.b.mul(grad, grad);
        let v = self.average(v, square, betas[1]);
        self.set(m_var, m);
        self.set(v_var, v);
        let m_hat = self.b.mul(m, corrections[0]);
        let v_hat = self.b.mul(v, corrections[1]);
        let root = self.b.map(ScalarFn::Sqrt, &[v_hat]);
        let root = self.b.offset(root, eps);
        let step = self.b.div(m_hat, root);
        let decay = self.b.scale(p, spec.weight_decay);
        let step = self.b.add(step, decay);
        let change = self.b.mul(step, lr);
        let new = self.b.sub(p, change);
        self.set(self.var, new);
    }

    fn average(&mut self, old: NodeId, x: NodeId, beta: f64) -> NodeId {
        let kept = self.b.scale(old, beta);
        let moved = self.b.scale(x, 1.0 - beta);
        self.b.add(kept, moved)
    }
}
