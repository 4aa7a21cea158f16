//! The verifier, run after every stage against that stage's own spec.
//!
//! Always: edges agree with operand lists; operands come before users; every type is what the shape rule
//! gives; leaves refer to entries of the graph's tables; roots refer to nodes; an update has its variable's
//! type, and a variable is updated at most once; names of variables and inputs are unique.
//!
//! By stage, see [`Spec`].

use std::collections::BTreeSet;

use crate::ir::graph::{Graph, NodeId, RootKind, VarKind};
use crate::ir::op::Op;
use crate::ir::types::Type;

/// A graph breaks an invariant: always a bug in slrc.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("internal error: after {stage}, {place}: {reason}; please report this with the model")]
pub struct VerifyError {
    /// The stage that made the graph.
    pub stage: &'static str,
    /// Node or table entry.
    pub place: String,
    /// What does not hold.
    pub reason: String,
}

/// What a stage promises beyond the invariants that always hold.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Name of the stage.
    pub stage: &'static str,
    /// Mode selections may remain.
    pub modes: bool,
    /// Detach nodes may remain.
    pub detach: bool,
    /// Composite ops (log-sum-exp) may remain.
    pub composites: bool,
}

impl Spec {
    /// An imported or partitioned graph: both modes, detach, composites.
    pub const fn open(stage: &'static str) -> Spec {
        Spec { stage, modes: true, detach: true, composites: true }
    }

    /// A graph of one mode.
    pub const fn one_mode(stage: &'static str) -> Spec {
        Spec { stage, modes: false, detach: true, composites: true }
    }

    /// A graph ready for fusion.
    pub const fn closed(stage: &'static str) -> Spec {
        Spec { stage, modes: false, detach: false, composites: false }
    }
}

/// Checks a graph.
pub fn verify(g: &Graph, spec: Spec) -> Result<(), VerifyError> {
    let fail = |place: String, reason: String| Err(VerifyError { stage: spec.stage, place, reason });
    for id in g.ids() {
        if let Err(reason) = check_node(g, id, spec) {
            let n = g.node(id);
            let origin = g.origins.get(n.origin.index()).map_or("?", String::as_str);
            return fail(format!("{id} = {} (from `{origin}`)", n.op), reason);
        }
    }
    if !g.edges_agree() {
        return fail("graph".into(), "edges and operand lists differ".into());
    }
    let mut updated = BTreeSet::new();
    for r in &g.roots {
        let place = || format!("root {:?}", r.kind);
        if r.value.index() >= g.len() {
            return fail(place(), format!("{} does not exist", r.value));
        }
        if let RootKind::Update(v) = r.kind {
            let Some(var) = g.variables.get(v.index()) else {
                return fail(place(), "variable does not exist".into());
            };
            if *g.ty(r.value) != var.ty {
                return fail(place(), format!("{} has type {}, not {}", var.name, var.ty, g.ty(r.value)));
            }
            if var.kind == VarKind::Frozen {
                return fail(place(), format!("{} is frozen", var.name));
            }
            if !updated.insert(v) {
                return fail(place(), format!("{} is updated twice", var.name));
            }
        }
    }
    let unique = |names: Vec<&str>| {
        let mut seen = BTreeSet::new();
        names.into_iter().find(|n| !seen.insert(*n)).map(str::to_string)
    };
    if let Some(n) = unique(g.variables.iter().map(|v| v.name.as_str()).collect()) {
        return fail("variables".into(), format!("`{n}` occurs twice"));
    }
    if let Some(n) = unique(g.inputs.iter().map(|i| i.name.as_str()).collect()) {
        return fail("inputs".into(), format!("`{n}` occurs twice"));
    }
    Ok(())
}

fn check_node(g: &Graph, id: NodeId, spec: Spec) -> Result<(), String> {
    let n = g.node(id);
    if n.operands.iter().any(|o| *o >= id) {
        return Err("uses a later node".into());
    }
    if n.origin.index() >= g.origins.len() {
        return Err("its origin does not exist".into());
    }
    let missing = || Err("refers to nothing".to_string());
    let want = match &n.op {
        Op::Input(i) => g.inputs.get(i.index()).map(|x| x.ty.clone()).map_or_else(missing, Ok)?,
        Op::Variable(v) => g.variables.get(v.index()).map(|x| x.ty.clone()).map_or_else(missing, Ok)?,
        Op::Constant(c) => {
            let c = g.constants.get(c.index()).map_or_else(|| Err("refers to nothing".to_string()), Ok)?;
            if c.data.len() != c.ty.count() {
                return Err(format!("constant of {} elements has type {}", c.data.len(), c.ty));
            }
            c.ty.clone()
        }
        Op::StepScalar(s) => g.scalars.get(s.index()).map(|_| Type::f32([])).map_or_else(missing, Ok)?,
        Op::ModeSelect(_) if !spec.modes => return Err("modes are resolved by now".into()),
        Op::Detach(_) if !spec.detach => return Err("detach is removed by now".into()),
        Op::LogSumExp(_) if !spec.composites => return Err("composites are expanded by now".into()),
        op => op.rule().infer(&n.operands.iter().map(|&o| g.ty(o)).collect::<Vec<_>>())?,
    };
    if want != n.ty {
        return Err(format!("has type {}, its rule gives {want}", n.ty));
    }
    Ok(())
}
