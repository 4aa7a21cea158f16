//! Optimizer updates as roots of the graph: a weight's new value from its old one, its gradient and the optimizer's
//! state.
//!
//! A step of several micro-batches runs the same program once for each. Gradients add up to their mean in the state,
//! and the weights change in the last pass: step scalars make the difference, so every pass runs the same kernels. SGD
//! with momentum adds them up in its momentum buffer (decayed in the first pass only); the other rules need a state of
//! their own for it, named as PyTorch names it, `.grad`.

use slrc_plan::ScalarFn;
use slrc_plan::kernel::Phase;
use slrc_plan::schedule::{Decay, Pass, Schedule, Which};

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Init, NodeId, Root, RootKind, StepScalar, VarId, VarKind, Variable};
use crate::ir::op::Op;
use crate::spec::{OptimizerRule, OptimizerSpec};

/// Adds the update of every weight, and the state it needs, for steps of as many passes.
pub fn apply(graph: &mut Graph, weights: &[NodeId], gradients: &[NodeId], spec: &OptimizerSpec, micro_batches: usize) {
    let mut roots = Vec::new();
    for (&p, &grad) in weights.iter().zip(gradients) {
        let Op::Variable(var) = graph.node(p).op else { unreachable!("invariant: weights are read by variable nodes") };
        let origin = first_user_origin(graph, p);
        let mut u = Update { b: Builder::new(graph), var, roots: &mut roots, micro_batches };
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
    micro_batches: usize,
}

impl Update<'_, '_> {
    fn scalar(&mut self, name: &str, schedule: Schedule, pass: Pass, shape: &[usize]) -> NodeId {
        let id = self.b.graph_mut().add_scalar(StepScalar { name: name.into(), schedule, pass });
        let s = self.b.step_scalar(id);
        self.b.broadcast_to(s, shape)
    }

    /// The learning rate, which is zero until the last pass.
    fn learning_rate(&mut self, spec: &OptimizerSpec, shape: &[usize]) -> NodeId {
        let pass = self.only(Which::Last, 0.0);
        self.scalar("lr", spec.lr.clone(), pass, shape)
    }

    fn only(&self, which: Which, otherwise: f64) -> Pass {
        if self.micro_batches > 1 { Pass::Only { which, otherwise } } else { Pass::Every }
    }

    /// The share of a pass in a mean over all.
    fn share(&mut self, gradient: NodeId) -> NodeId {
        if self.micro_batches == 1 {
            return gradient;
        }
        self.b.scale(gradient, 1.0 / self.micro_batches as f64)
    }

    /// The mean of the gradients so far, a state of its own where there are several: the step's in its last pass.
    fn accumulated(&mut self, gradient: NodeId) -> NodeId {
        if self.micro_batches == 1 {
            return gradient;
        }
        let shape = self.b.shape(gradient);
        let (var, sum) = self.state("grad");
        let pass = self.only(Which::First, 1.0);
        let keep = self.scalar("keep-gradient", Schedule::constant(0.0), pass, &shape);
        let kept = self.b.mul(sum, keep);
        let gradient = self.share(gradient);
        let new = self.b.add(kept, gradient);
        self.set(var, new);
        new
    }

    /// `new` in the last pass, `old` before it.
    fn at_last(&mut self, new: NodeId, old: NodeId) -> NodeId {
        if self.micro_batches == 1 {
            return new;
        }
        let shape = self.b.shape(new);
        let pass = self.only(Which::Last, 0.0);
        let last = self.scalar("last-pass", Schedule::constant(1.0), pass, &shape);
        let zero = self.b.zeros_like(last);
        let flag = self.b.map(ScalarFn::Lt, &[zero, last]);
        self.b.select(flag, new, old)
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
        let lr = self.learning_rate(spec, &shape);
        let decay = self.b.scale(p, spec.weight_decay);
        let grad = self.b.add(grad, decay);
        let step = if momentum == 0.0 {
            self.accumulated(grad)
        } else if nesterov {
            let grad = self.accumulated(grad);
            let (var, buf) = self.state("momentum_buffer");
            let kept = self.b.scale(buf, momentum);
            let new = self.b.add(kept, grad);
            let held = self.at_last(new, buf);
            self.set(var, held);
            let ahead = self.b.scale(new, momentum);
            self.b.add(grad, ahead)
        } else {
            let (var, buf) = self.state("momentum_buffer");
            let kept = if self.micro_batches == 1 {
                self.b.scale(buf, momentum)
            } else {
                let pass = self.only(Which::First, 1.0);
                let keep = self.scalar("momentum", Schedule::constant(momentum), pass, &shape);
                self.b.mul(buf, keep)
            };
            let grad = self.share(grad);
            let new = self.b.add(kept, grad);
            self.set(var, new);
            new
        };
        let change = self.b.mul(step, lr);
        let new = self.b.sub(p, change);
        self.set(self.var, new);
    }

    /// `p -= lr decay p; m = b1 m + (1 - b1) grad; v = b2 v + (1 - b2) grad^2; p -= lr (m c1) / (sqrt(v c2) + eps)`
    /// with the bias corrections `c = 1 / (1 - b^step)`.
    fn adamw(&mut self, p: NodeId, grad: NodeId, betas: [f64; 2], eps: f64, spec: &OptimizerSpec) {
        let shape = self.b.shape(p);
        let lr = self.learning_rate(spec, &shape);
        let grad = self.accumulated(grad);
        let mut corrections = [p; 2];
        for (i, c) in corrections.iter_mut().enumerate() {
            let decay = Decay::AdamCorrection { beta: betas[i] };
            *c = self.scalar(
                &format!("adam-correction.{}", i + 1),
                Schedule { base: 1.0, warmup: 0, decay },
                Pass::Every,
                &shape,
            );
        }
        let (m_var, m_old) = self.state("exp_avg");
        let (v_var, v_old) = self.state("exp_avg_sq");
        let m = self.average(m_old, grad, betas[0]);
        let square = self.b.mul(grad, grad);
        let v = self.average(v_old, square, betas[1]);
        let (m_held, v_held) = (self.at_last(m, m_old), self.at_last(v, v_old));
        self.set(m_var, m_held);
        self.set(v_var, v_held);
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
