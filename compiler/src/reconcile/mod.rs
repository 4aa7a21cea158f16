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
use crate::reconcile::distance::{distance, inner};
use crate::spec::{Kinks, ReconcileMode, ReconcileSpec};

/// A module's training graph up to its loss.
#[derive(Clone, Debug)]
pub struct Objective {
    /// Number of the module, from 1.
    pub index: usize,
    /// The module's input x, where gradients are compared; absent in the first module.
    pub input: Option<NodeId>,
    /// The previous module's output gradient e.
    pub upstream: Option<NodeId>,
    /// The module's output, if the next module needs its gradient.
    pub output: Option<NodeId>,
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
    /// Of the loss with respect to the module's output, through the head only.
    pub output: Option<NodeId>,
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
        let head = usize::from(o.output.is_none());
        let layers = weighted_layers(graph);
        if layers > 1 + head {
            return Err(ReconcileError { module: o.index, layers: layers - head });
        }
    }
    let mut b = Builder::new(graph);
    b.phase = Phase::Backward;
    let active = spec.mode != ReconcileMode::Off && spec.lambda_of(o.index) > 0.0;
    let pair = o.input.zip(o.upstream).filter(|_| active || spec.monitor);
    let mut wrt = o.weights.clone();
    wrt.extend(o.output);
    wrt.extend(pair.map(|(x, _)| x));
    let mut grads = gradients(&mut b, o.loss, &wrt);
    let g = pair.and_then(|_| grads.pop());
    let output = o.output.and_then(|_| grads.pop());
    let mut result = Gradients { weights: grads, output, boundary: None };
    let (Some((x, e)), Some(g)) = (pair, g) else { return Ok(result) };
    b.phase = Phase::Reconcile;
    if spec.monitor {
        result.boundary = Some(boundary_numbers(&mut b, g, e));
    }
    if active {
        let lambda = lambda_scalar(&mut b, o.index, spec);
        result.weights = match spec.mode {
            ReconcileMode::Off => unreachable!("not active"),
            ReconcileMode::Exact => exact(&mut b, o, g, e, lambda, spec),
            ReconcileMode::FiniteDifference => finite_difference(&mut b, o, x, g, e, lambda, &result.weights, spec),
            ReconcileMode::Tangent | ReconcileMode::BpFree => tangent(&mut b, x, g, e, lambda, &result.weights, spec),
        };
    }
    Ok(result)
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

fn boundary_numbers(b: &mut Builder<'_>, g: NodeId, e: NodeId) -> BoundaryNumbers {
    let batch = b.shape(g)[0] as f64;
    let d = b.sub(g, e);
    let square = inner(b, d, d);
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
    g: NodeId,
    e: NodeId,
    lambda: NodeId,
    spec: &ReconcileSpec,
) -> Vec<NodeId> {
    let d = distance(b, spec.distance, g, e);
    let penalty = b.mul(lambda, d);
    let objective = b.add(o.loss, penalty);
    gradients(b, objective, &o.weights)
}

/// `v = dD/dg`, the direction along which the gradient of L is to be compared.
fn direction(b: &mut Builder<'_>, g: NodeId, e: NodeId, spec: &ReconcileSpec) -> NodeId {
    let d = distance(b, spec.distance, g, e);
    gradients(b, d, &[g])[0]
}

/// One more pass at `x + t v`: `G(x) + (lambda / t) (G(x + t v) - G(x))` with `t = s |x| / |v|`; `G(x)` alone where v
/// or x is zero. Frozen kinks: flags and pooling winners of the first pass are used again.
#[allow(clippy::too_many_arguments, reason = "the symbols of the formula")]
fn finite_difference(
    b: &mut Builder<'_>,
    o: &Objective,
    x: NodeId,
    g: NodeId,
    e: NodeId,
    lambda: NodeId,
    first: &[NodeId],
    spec: &ReconcileSpec,
) -> Vec<NodeId> {
    let v = direction(b, g, e, spec);
    let (xx, vv) = (inner(b, x, x), inner(b, v, v));
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

    let shape = b.shape(x);
    let wide = b.broadcast_to(t, &shape);
    let step = b.mul(wide, v);
    let moved = b.add(x, step);
    // t and v are held constant.
    let moved = b.detach(moved);
    let frozen = spec.kinks == Kinks::Frozen;
    let loss = substitute(b, &[o.loss], &BTreeMap::from([(x, moved)]), |g, id| frozen && g.is_discrete(id))[0];
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
    x: NodeId,
    g: NodeId,
    e: NodeId,
    lambda: NodeId,
    first: &[NodeId],
    spec: &ReconcileSpec,
) -> Vec<NodeId> {
    let v = direction(b, g, e, spec);
    let derivatives = pushforward(b, &[(x, v)], first);
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
