//! Successive gradient reconciliation as slrc implements it (docs/method.md): the gradient of
//! `L + lambda D(g, e)` with respect to a module's weights, where g is the gradient of its loss with respect to its
//! input and e the previous module's output gradient, a constant.
//!
//! The only pass that calls autodiff. Every mode is more IR; nothing is differentiated at run time.

mod distance;

use std::collections::BTreeMap;

use slrc_plan::ScalarFn;
use slrc_plan::kernel::Phase;
use slrc_plan::schedule::{Decay, Pass, Schedule};

use crate::autodiff::{gradients, pushforward};
use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, NodeId, StepScalar, VarKind};
use crate::ir::op::Op;
use crate::ir::rewrite::substitute;
use crate::reconcile::distance::{difference, distance, inner};
use crate::spec::{Kinks, ReconcileMode, ReconcileSpec};

/// A module's training graph up to its loss.
#[derive(Clone, Debug)]
pub struct Objective {
    /// Number of the module, from 1.
    pub index: usize,
    /// Where gradients are compared: what the module before hands on and the loss depends on, x; none in the first
    /// module, nor where nothing compares.
    pub inputs: Vec<NodeId>,
    /// The gradient e that came with each.
    pub upstream: Vec<NodeId>,
    /// The module's output and what is carried along with it, if later modules need their gradients.
    pub outputs: Vec<NodeId>,
    /// Mean loss, shape `[]`.
    pub loss: NodeId,
    /// Nodes that read the trained variables.
    pub weights: Vec<NodeId>,
}

/// What a step computes from an [`Objective`].
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of the objective with respect to each weight.
    pub weights: Vec<NodeId>,
    /// Of the loss with respect to each output: of the module's own, through the head only.
    pub outputs: Vec<NodeId>,
    /// Numbers reported of the boundary before the module.
    pub boundary: Option<BoundaryNumbers>,
}

/// Scalars that describe how far g and e agree.
#[derive(Clone, Copy, Debug)]
pub struct BoundaryNumbers {
    /// `R = B sum((g - e)^2)`.
    pub discord: NodeId,
    /// Cosine of the angle between them.
    pub cosine: NodeId,
    /// `|g| / |e|`.
    pub ratio: NodeId,
}

/// A module that the asked-for mode cannot train.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "reconcile mode bp-free needs modules of a single layer with weights, but module {module} has {layers}; use --per-layer, or mode tangent"
)]
pub struct ReconcileError {
    /// Module number.
    pub module: usize,
    /// Layers it has.
    pub layers: usize,
}

/// Builds the gradients of a step.
pub fn reconcile(graph: &mut Graph, o: &Objective, spec: &ReconcileSpec) -> Result<Gradients, ReconcileError> {
    if spec.mode == ReconcileMode::BpFree {
        // The last module's head is the network's own classifier, a layer of the network.
        let head = usize::from(o.outputs.is_empty());
        let layers = weighted_layers(graph);
        if layers > 1 + head {
            return Err(ReconcileError { module: o.index, layers: layers - head });
        }
    }
    let mut b = Builder::new(graph);
    b.phase = Phase::Backward;
    let active = spec.mode != ReconcileMode::Off && spec.lambda_of(o.index) > 0.0;
    let compares = !o.inputs.is_empty() && (active || spec.monitor);
    let mut wrt = o.weights.clone();
    wrt.extend(&o.outputs);
    if compares {
        wrt.extend(&o.inputs);
    }
    let mut weights = gradients(&mut b, o.loss, &wrt);
    let g = weights.split_off(o.weights.len() + o.outputs.len());
    let outputs = weights.split_off(o.weights.len());
    let mut result = Gradients { weights, outputs, boundary: None };
    if !compares {
        return Ok(result);
    }
    let at = Boundary { x: &o.inputs, g: &g, e: &o.upstream };
    b.phase = Phase::Reconcile;
    if spec.monitor {
        result.boundary = Some(boundary_numbers(&mut b, at));
    }
    if active {
        let lambda = lambda_scalar(&mut b, o.index, spec);
        result.weights = match spec.mode {
            ReconcileMode::Off => unreachable!("not active"),
            ReconcileMode::Exact => exact(&mut b, o, at, lambda, spec),
            ReconcileMode::FiniteDifference => finite_difference(&mut b, o, at, lambda, &result.weights, spec),
            ReconcileMode::Tangent | ReconcileMode::BpFree => tangent(&mut b, at, lambda, &result.weights, spec),
        };
    }
    Ok(result)
}

/// What is compared before a module; an entry for every tensor that crosses and is used.
#[derive(Clone, Copy)]
struct Boundary<'a> {
    /// The module's inputs.
    x: &'a [NodeId],
    /// Gradients of its loss with respect to them.
    g: &'a [NodeId],
    /// The gradients that came with them.
    e: &'a [NodeId],
}

/// Forward layers with a weight matrix.
fn weighted_layers(g: &Graph) -> usize {
    let is_weight = |id: NodeId| {
        let from = g.needed([id]);
        g.ids().any(|i| {
            from[i.index()] && matches!(g.node(i).op, Op::Variable(v) if g.variables[v.index()].kind == VarKind::Weight)
        })
    };
    g.ids()
        .filter(|&id| {
            let n = g.node(id);
            n.phase == Phase::Forward
                && matches!(n.op, Op::Conv(_) | Op::MatMul(_) | Op::Gather(_))
                && n.operands.iter().any(|&o| is_view_of_variable(g, o) && is_weight(o))
        })
        .count()
}

fn is_view_of_variable(g: &Graph, mut id: NodeId) -> bool {
    loop {
        let n = g.node(id);
        match n.op {
            Op::Variable(_) => return true,
            Op::Reshape(_) | Op::Transpose(_) => id = n.operands[0],
            _ => return false,
        }
    }
}

fn boundary_numbers(b: &mut Builder<'_>, Boundary { g, e, .. }: Boundary<'_>) -> BoundaryNumbers {
    let batch = b.shape(g[0])[0] as f64;
    let d = difference(b, g, e);
    let square = inner(b, &d, &d);
    let discord = b.scale(square, batch);
    let (ge, gg, ee) = (inner(b, g, e), inner(b, g, g), inner(b, e, e));
    let gn = b.map(ScalarFn::Sqrt, &[gg]);
    let en = b.map(ScalarFn::Sqrt, &[ee]);
    let norms = b.mul(gn, en);
    BoundaryNumbers { discord, cosine: safe_div(b, ge, norms), ratio: safe_div(b, gn, en) }
}

/// `a / c`, or zero where `c` is zero; scalars.
fn safe_div(b: &mut Builder<'_>, a: NodeId, c: NodeId) -> NodeId {
    let zero = b.zeros_like(c);
    let one = b.splat_like(c, 1.0);
    let flag = b.map(ScalarFn::Lt, &[zero, c]);
    let divisor = b.select(flag, c, one);
    let q = b.div(a, divisor);
    b.select(flag, q, zero)
}

/// The module's lambda; rises over the warm-up.
fn lambda_scalar(b: &mut Builder<'_>, k: usize, spec: &ReconcileSpec) -> NodeId {
    let schedule = Schedule { base: spec.lambda_of(k), warmup: spec.warmup, decay: Decay::Constant };
    let name = if spec.lambdas.contains_key(&k) { format!("lambda.{k}") } else { "lambda".into() };
    let id = b.graph_mut().add_scalar(StepScalar { name, schedule, pass: Pass::Every });
    b.step_scalar(id)
}

/// Double backward: the gradient of `L + lambda D`.
fn exact(
    b: &mut Builder<'_>,
    o: &Objective,
    Boundary { g, e, .. }: Boundary<'_>,
    lambda: NodeId,
    spec: &ReconcileSpec,
) -> Vec<NodeId> {
    let d = distance(b, spec.distance, g, e);
    let penalty = b.mul(lambda, d);
    let objective = b.add(o.loss, penalty);
    gradients(b, objective, &o.weights)
}

/// `v = dD/dg`, the direction along which the gradient of L is to be compared.
fn direction(b: &mut Builder<'_>, Boundary { g, e, .. }: Boundary<'_>, spec: &ReconcileSpec) -> Vec<NodeId> {
    let d = distance(b, spec.distance, g, e);
    gradients(b, d, g)
}

/// One more pass at `x + t v`: `G(x) + (lambda / t) (G(x + t v) - G(x))` with `t = s |x| / |v|`; `G(x)` alone where v
/// or x is zero. Norms are of all tensors that cross, together. Frozen kinks: flags and pooling winners of the first
/// pass are used again.
fn finite_difference(
    b: &mut Builder<'_>,
    o: &Objective,
    at: Boundary<'_>,
    lambda: NodeId,
    first: &[NodeId],
    spec: &ReconcileSpec,
) -> Vec<NodeId> {
    let v = direction(b, at, spec);
    let (xx, vv) = (inner(b, at.x, at.x), inner(b, &v, &v));
    let zero = b.zeros_like(xx);
    let x_some = b.map(ScalarFn::Lt, &[zero, xx]);
    let v_some = b.map(ScalarFn::Lt, &[zero, vv]);
    let usable = b.map(ScalarFn::And, &[x_some, v_some]);
    let (xn, vn) = (b.map(ScalarFn::Sqrt, &[xx]), b.map(ScalarFn::Sqrt, &[vv]));
    let length = safe_div(b, xn, vn);
    let t = b.scale(length, spec.step);
    let inverse = safe_div(b, vn, xn);
    let weight = b.scale(inverse, 1.0 / spec.step);
    let weight = b.mul(weight, lambda);
    let weight = b.select(usable, weight, zero);

    let mut moved = BTreeMap::new();
    for (&x, v) in at.x.iter().zip(v) {
        let shape = b.shape(x);
        let wide = b.broadcast_to(t, &shape);
        let step = b.mul(wide, v);
        let there = b.add(x, step);
        // t and v are held constant.
        moved.insert(x, b.detach(there));
    }
    let frozen = spec.kinks == Kinks::Frozen;
    let loss = substitute(b, &[o.loss], &moved, |g, id| frozen && g.is_discrete(id))[0];
    let second = gradients(b, loss, &o.weights);
    first
        .iter()
        .zip(second)
        .map(|(&g0, g1)| {
            let change = b.sub(g1, g0);
            let shape = b.shape(g0);
            let weight = b.broadcast_to(weight, &shape);
            let scaled = b.mul(change, weight);
            b.add(g0, scaled)
        })
        .collect()
}

/// `G + lambda d/dt G(x + t v)` at t = 0, by the directional derivative of the gradient's own graph.
fn tangent(
    b: &mut Builder<'_>,
    at: Boundary<'_>,
    lambda: NodeId,
    first: &[NodeId],
    spec: &ReconcileSpec,
) -> Vec<NodeId> {
    let v = direction(b, at, spec);
    let moves: Vec<(NodeId, NodeId)> = at.x.iter().copied().zip(v).collect();
    let derivatives = pushforward(b, &moves, first);
    first
        .iter()
        .zip(derivatives)
        .map(|(&g0, d)| {
            let shape = b.shape(g0);
            let weight = b.broadcast_to(lambda, &shape);
            let scaled = b.mul(d, weight);
            b.add(g0, scaled)
        })
        .collect()
}
