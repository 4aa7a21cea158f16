//! A module's two programs as graphs: its training step, and inference. This is where head, loss, reconciliation and
//! optimizer meet; each is a pass of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::heads;
use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputKind, NodeId, Root, RootKind, VarKind};
use crate::ir::numbered::numbered;
use crate::ir::op::Op;
use crate::ir::ops::keep::Keep;
use crate::ir::types::Type;
use crate::ir::verify::{Spec as VerifySpec, VerifyError, verify};
use crate::loss::{add_labels, cross_entropy};
use crate::optimizer;
use crate::recompute::recompute;
use crate::reconcile::{Objective, ReconcileError, reconcile};
use crate::simplify::{Mode, close, close_about, specialise};
use crate::spec::{Recompute, ReconcileMode, Spec};

/// Names of [`RootKind::Report`] roots.
pub mod report {
    /// Mean loss.
    pub const LOSS: &str = "loss";
    /// Fraction correct.
    pub const ACCURACY: &str = "accuracy";
    /// `R` at the module's input.
    pub const DISCORD: &str = "discord";
    /// Cosine of g and e at the module's input.
    pub const COSINE: &str = "cosine";
    /// `|g| / |e|` at the module's input.
    pub const RATIO: &str = "ratio";
    /// Inference: logits.
    pub const LOGITS: &str = "logits";
    /// Inference: loss of each sample.
    pub const SAMPLE_LOSS: &str = "sample_loss";
    /// Inference: fraction correct of each sample.
    pub const SAMPLE_CORRECT: &str = "sample_correct";
}

/// Name of the root that carries a head's logits while a module is being put together.
pub const LOGITS: &str = "logits";

/// What a module is in its network.
#[derive(Clone, Debug)]
pub struct Place {
    /// From 1.
    pub index: usize,
    /// Whether another module follows.
    pub last: bool,
    /// Type of the network's own logits.
    pub logits: Type,
}

/// A module's head could not be attached or its gradients not built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// See [`heads::HeadError`].
    #[error(transparent)]
    Head(#[from] heads::HeadError),
    /// See [`ReconcileError`].
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// slrc's fault.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// A module's graphs.
#[derive(Clone, Debug)]
pub struct ModuleGraphs {
    /// The training step, closed: ready for fusion.
    pub train: Graph,
    /// Inference, closed.
    pub eval: Graph,
    /// Kind of the head; `network` for the network's own.
    pub head: &'static str,
    /// Names of the variables the head brought; none for the network's own.
    pub head_variables: BTreeSet<String>,
}

/// Puts a module's programs together from its part of the network (see [`crate::partition::module_graph`]).
pub fn build(module: Graph, place: &Place, spec: &Spec) -> Result<ModuleGraphs, StepError> {
    let Headed { module, train, head, variables } = with_head(module, place, spec)?;
    let eval = eval_graph(&module, spec)?;
    Ok(ModuleGraphs { train: train_graph(train, place, spec)?, eval, head, head_variables: variables })
}

/// The same of its training step only: its graph, and the names of the variables of its head.
pub fn build_train(module: Graph, place: &Place, spec: &Spec) -> Result<(Graph, BTreeSet<String>), StepError> {
    let Headed { train, variables, .. } = with_head(module, place, spec)?;
    Ok((train_graph(train, place, spec)?, variables))
}

/// A module with its logits.
struct Headed {
    /// In both modes.
    module: Graph,
    /// In training.
    train: Graph,
    /// Kind of the head.
    head: &'static str,
    /// Names of the variables that it brought.
    variables: BTreeSet<String>,
}

/// Gives a module its logits, and sees to it that they depend on its input by way of its output alone: a law may let a
/// head that sums over what was reshaped read it as it was before, and the output's gradient would then lack that part.
fn with_head(module: Graph, place: &Place, spec: &Spec) -> Result<Headed, StepError> {
    let attach = |mut module: Graph, keep: bool| -> Result<Headed, StepError> {
        if keep {
            let output = output_of(&module);
            let kept = Builder::new(&mut module).emit(Keep { later: false }, &[output]);
            module.roots.iter_mut().filter(|r| r.kind == RootKind::Boundary(0)).for_each(|r| r.value = kept);
        }
        let (head, variables) = attach_head(&mut module, place, spec)?;
        let train = specialise(&module, Mode::Train);
        Ok(Headed { module, train, head, variables })
    };
    if place.last {
        return attach(module, false);
    }
    let headed = attach(module.clone(), false)?;
    if bypasses_output(&headed.train) { attach(module, true) } else { Ok(headed) }
}

/// Whether logits depend on an input other than through the output that is handed on.
fn bypasses_output(g: &Graph) -> bool {
    let Some(output) = boundary_of(g) else { return false };
    let mut met = vec![false; g.len()];
    let mut open = vec![logits_of(g)];
    while let Some(id) = open.pop() {
        if id == output || std::mem::replace(&mut met[id.index()], true) {
            continue;
        }
        if matches!(g.node(id).op, Op::Input(_)) {
            return true;
        }
        open.extend(&g.node(id).operands);
    }
    false
}

/// Attaches a module's head: returns its kind, and the names of the variables that it brought.
fn attach_head(module: &mut Graph, place: &Place, spec: &Spec) -> Result<(&'static str, BTreeSet<String>), StepError> {
    let output = output_of(module);
    let mut head = "network";
    let own = module.variables.len();
    if !place.last {
        let kind = heads::resolve(spec.head, module.ty(output).rank(), place.logits.rank());
        let logits = heads::attach(module, output, spec.head, place.index, &place.logits)?;
        module.roots.push(Root { kind: RootKind::Output(LOGITS.into()), value: logits });
        head = kind.name();
    }
    Ok((head, module.variables[own..].iter().map(|v| v.name.clone()).collect()))
}

/// What the module hands on, the value that its head reads; or the logits of the last module.
fn output_of(g: &Graph) -> NodeId {
    boundary_of(g).unwrap_or_else(|| logits_of(g))
}

fn logits_of(g: &Graph) -> NodeId {
    g.root(|k| *k == RootKind::Output(LOGITS.into())).expect("invariant: every module has logits")
}

fn boundary_of(g: &Graph) -> Option<NodeId> {
    g.root(|k| *k == RootKind::Boundary(0))
}

/// Everything that the module hands on, its own output first.
fn handed_on(g: &Graph) -> Vec<NodeId> {
    let tensors = g.roots.iter().filter(|r| matches!(r.kind, RootKind::Boundary(_)));
    tensors.map(|r| r.value).collect()
}

/// The training step of a module in training mode.
fn train_graph(mut g: Graph, place: &Place, spec: &Spec) -> Result<Graph, StepError> {
    let (logits, outputs) = (logits_of(&g), handed_on(&g));
    let logits_ty = g.ty(logits).clone();
    let labels = add_labels(&mut g, &logits_ty);
    let loss = cross_entropy(&mut g, logits, labels, spec.ignore_label);
    let weights: Vec<NodeId> = g
        .ids()
        .filter(|&id| matches!(g.node(id).op, Op::Variable(v) if g.variables[v.index()].kind == VarKind::Weight))
        .collect();
    let compared = spec.reconcile.monitor || spec.reconcile.mode != ReconcileMode::Off;
    let windows = |shape: &[usize], i: usize| {
        // What is carried along may be read by others than the head.
        (i == 0).then(|| heads::windows(heads::resolve(spec.head, shape.len(), logits_ty.rank()), shape)).flatten()
    };
    let upstream = if compared { add_upstream(&mut g, windows) } else { BTreeMap::new() };
    let of_loss = g.needed([loss.mean]);
    let (inputs, came) = upstream.iter().filter(|(x, _)| of_loss[x.index()]).unzip();
    // Of what only passes through, the gradient does too.
    let base: Vec<NodeId> = outputs.iter().map(|&x| behind_views(&g, x)).collect();
    let own: Vec<usize> = (0..outputs.len()).filter(|&i| compared && !upstream.contains_key(&base[i])).collect();
    let objective = Objective {
        index: place.index,
        inputs,
        upstream: came,
        outputs: own.iter().map(|&i| if i == 0 { outputs[i] } else { base[i] }).collect(),
        loss: loss.mean,
        weights: weights.clone(),
    };
    let grads = reconcile(&mut g, &objective, &spec.reconcile)?;
    let of_own: BTreeMap<usize, NodeId> = own.into_iter().zip(grads.outputs).collect();
    let mut roots: Vec<Root> = Vec::new();
    roots.extend(outputs.iter().enumerate().map(|(i, &value)| Root { kind: RootKind::Boundary(i), value }));
    if compared {
        for (i, &x) in outputs.iter().enumerate() {
            let e = of_own.get(&i).copied().unwrap_or_else(|| upstream[&base[i]]);
            let mut b = Builder::new(&mut g);
            let value = match windows(&b.shape(x), i) {
                Some(w) => heads::gather(&mut b, e, w),
                None if i == 0 => e,
                None => viewed_as(&mut b, x, e),
            };
            roots.push(Root { kind: RootKind::OutputGradient(i), value });
        }
    }
    let mut reports = vec![(report::LOSS, loss.mean), (report::ACCURACY, loss.accuracy)];
    if let Some(n) = grads.boundary {
        reports.extend([(report::DISCORD, n.discord), (report::COSINE, n.cosine), (report::RATIO, n.ratio)]);
    }
    roots.extend(reports.into_iter().map(|(name, value)| Root { kind: RootKind::Report(name.into()), value }));
    roots.extend(g.roots.iter().filter(|r| matches!(r.kind, RootKind::Update(_))).cloned());
    g.roots = roots;
    optimizer::apply(&mut g, &weights, &grads.weights, &spec.optimizer, spec.micro_batches);
    verify(&g, VerifySpec::one_mode("optimizer"))?;
    let closed = close_about(&g, spec.products().columns);
    Ok(match spec.recompute {
        Recompute::Elementwise => recompute(&closed, false),
        Recompute::Products => recompute(&closed, true),
        Recompute::None => closed,
    })
}

/// Adds an input for the gradient that comes with every tensor from the module before, as large as that tensor:
/// `windows` says where it crosses as one number a window. Returns it for each tensor.
fn add_upstream(g: &mut Graph, windows: impl Fn(&[usize], usize) -> Option<[usize; 2]>) -> BTreeMap<NodeId, NodeId> {
    let received: Vec<(usize, NodeId)> = g
        .ids()
        .filter_map(|id| match g.node(id).op {
            Op::Input(i) => match g.inputs[i.index()].kind {
                InputKind::Boundary(tensor) => Some((tensor, id)),
                _ => None,
            },
            _ => None,
        })
        .collect();
    let mut out = BTreeMap::new();
    for (i, x) in received {
        let shape = g.shape(x).to_vec();
        let windows = windows(&shape, i);
        let handed = windows.map_or(shape.clone(), |[rows, cols]| vec![shape[0], shape[1], rows, cols]);
        let (name, ty) = (numbered("@e", i), Type::f32(handed));
        let id = g.add_input(Input { name, kind: InputKind::BoundaryGradient(i), ty });
        let mut b = Builder::new(g);
        let e = b.input(id);
        out.insert(x, if windows.is_some() { heads::spread(&mut b, e, &shape) } else { e });
    }
    out
}

/// What a value is a reshaped or transposed form of. Laws may let others read that instead of the value.
fn behind_views(g: &Graph, mut id: NodeId) -> NodeId {
    while let Op::Reshape(_) | Op::Transpose(_) = g.node(id).op {
        id = g.node(id).operands[0];
    }
    id
}

/// A gradient of what lies behind `x`, reshaped and transposed as `x` is.
fn viewed_as(b: &mut Builder<'_>, x: NodeId, gradient: NodeId) -> NodeId {
    let node = b.graph().node(x).clone();
    match node.op {
        Op::Reshape(_) | Op::Transpose(_) => {
            let behind = viewed_as(b, node.operands[0], gradient);
            b.replay(&node.op, &[behind])
        }
        _ => gradient,
    }
}

fn eval_graph(module: &Graph, spec: &Spec) -> Result<Graph, StepError> {
    let mut g = specialise(module, Mode::Eval);
    let (logits, outputs) = (logits_of(&g), handed_on(&g));
    let ty = g.ty(logits).clone();
    let labels = add_labels(&mut g, &ty);
    let loss = cross_entropy(&mut g, logits, labels, spec.ignore_label);
    let mut roots: Vec<Root> = Vec::new();
    roots.extend(outputs.into_iter().enumerate().map(|(i, value)| Root { kind: RootKind::Boundary(i), value }));
    let reports =
        [(report::LOGITS, logits), (report::SAMPLE_LOSS, loss.per_sample), (report::SAMPLE_CORRECT, loss.correct)];
    roots.extend(reports.map(|(name, value)| Root { kind: RootKind::Report(name.into()), value }));
    g.roots = roots;
    verify(&g, VerifySpec::one_mode("inference"))?;
    Ok(close(&g))
}

/// Trained numbers of a training graph, and how many of them are the head's.
pub fn parameter_counts(train: &Graph, head_variables: &BTreeSet<String>) -> (usize, usize) {
    let weights = || train.variables.iter().filter(|v| v.kind == VarKind::Weight);
    let all = weights().map(|v| v.ty.count()).sum();
    let head = weights().filter(|v| head_variables.contains(&v.name)).map(|v| v.ty.count()).sum();
    (all, head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::{Init, Variable};
    use crate::spec::{HeadKind, SpecFile};

    /// Channels shuffled as ShuffleNet does, behind a layer: a head that pools reads them as well before the last
    /// reshape as after it.
    fn shuffled() -> Graph {
        let mut g = Graph::new("shuffled");
        let x = g.add_input(Input { name: "x".into(), kind: InputKind::Data, ty: Type::f32([2, 4, 4, 4]) });
        let scale = Variable {
            name: "scale".into(),
            kind: VarKind::Weight,
            ty: Type::f32([1, 4, 1, 1]),
            init: Init::Constant(1.0),
        };
        let scale = g.add_variable(scale);
        let mut b = Builder::new(&mut g);
        let (x, scale) = (b.input(x), b.variable(scale));
        let wide = b.broadcast(scale, &[2, 4, 4, 4]);
        let y = b.mul(x, wide);
        let y = b.reshape(y, &[2, 2, 2, 4, 4]);
        let y = b.transpose(y, &[0, 2, 1, 3, 4]);
        let y = b.reshape(y, &[2, 4, 4, 4]);
        g.roots = vec![Root { kind: RootKind::Boundary(0), value: y }];
        g
    }

    #[test]
    fn what_is_handed_back_is_the_gradient_of_what_is_handed_on() {
        let spec = SpecFile::default().resolve().expect("the default");
        let place = Place { index: 1, last: false, logits: Type::f32([2, 10]) };
        for kind in [HeadKind::GapLinear, HeadKind::PoolLinear, HeadKind::Linear, HeadKind::Conv] {
            let spec = Spec { head: kind, ..spec.clone() };
            let headed = with_head(shuffled(), &place, &spec).expect("a head");
            assert!(!bypasses_output(&headed.train), "{kind:?}");
            let (train, variables) = build_train(shuffled(), &place, &spec).expect("a step");
            let e = train.root(|k| *k == RootKind::OutputGradient(0)).expect("e");
            let needed = train.needed([e]);
            // A linear head's gradient is made of its weights.
            let of_head = |id: NodeId| matches!(train.node(id).op, Op::Variable(v) if variables.contains(&train.variables[v.index()].name));
            assert!(train.ids().any(|id| needed[id.index()] && of_head(id)), "{kind:?}: e does not depend on the head");
        }
    }

    #[test]
    fn a_head_that_bypasses_the_output_is_noticed() {
        let place = Place { index: 1, last: false, logits: Type::f32([2, 10]) };
        let spec = SpecFile::default().resolve().expect("the default");
        let spec = Spec { head: HeadKind::PoolLinear, ..spec };
        let mut module = shuffled();
        attach_head(&mut module, &place, &spec).expect("a head");
        // If no law does that any more, the test above tests nothing.
        assert!(bypasses_output(&specialise(&module, Mode::Train)));
    }
}
