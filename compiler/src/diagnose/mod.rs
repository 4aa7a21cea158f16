//! What slrc makes of a model, and what its file hides: the content of `slrc check`.
//!
//! A [`Report`] is complete whether or not the model can be imported. What the file alone tells comes from
//! `onnx/diagnose`; an import and the search for cuts, where they succeed, add the rest.

mod findings;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::ir::graph::VarKind;
use crate::onnx::OnnxError;
use crate::onnx::diagnose::{Contents, Missing, Tensors, contents, grouped, missing};
use crate::onnx::file::OnnxFile;
use crate::pipeline::{CompileError, Planner};
use crate::spec::SpecFile;
pub use findings::Finding;

/// Everything that is known of a model.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether it can be trained as it is.
    pub trainable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the file holds.
    #[serde(flatten)]
    pub contents: Contents,
    /// What an import makes of it; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Operators that slrc does not know.
    pub missing: Vec<Missing>,
    /// Nodes of known operators that are of a kind slrc does not import. What depends on a node that cannot be imported
    /// has not been looked at.
    pub refused: Vec<Missing>,
    /// What the user should know, and can do.
    pub findings: Vec<Finding>,
}

/// Places to cut below which it is worth saying what skips would add.
const FEW_CUTS: usize = 8;
/// Skips that are tried.
const MOST_SKIPS: usize = 4;

/// How many places there are with so many skips, as long as one more adds any.
fn with_skips(planner: &Planner<'_>) -> Vec<usize> {
    let found = planner.candidates();
    if found.cuts.len() >= FEW_CUTS || found.rejected.iter().all(|r| r.beside.is_none_or(|n| n > MOST_SKIPS)) {
        return Vec::new();
    }
    let mut counts = planner.cuts_with_skips(MOST_SKIPS);
    while counts.last().is_some_and(|&last| counts.iter().rev().nth(1).map_or(found.cuts.len(), |&n| n) >= last) {
        counts.pop();
    }
    counts
}

/// An imported network.
#[derive(Debug, Serialize)]
pub struct Network {
    /// Output that is trained.
    pub output: String,
    /// Samples a step.
    pub batch: usize,
    /// Weights that are trained.
    pub trained: Tensors,
    /// Running statistics.
    pub statistics: Tensors,
    /// Weights that are kept as they are.
    pub frozen: Tensors,
    /// What a spec has put back into it, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<String>,
    /// Places where it can be cut.
    pub cuts: usize,
    /// Where these are few: how many there are if 1, 2, .. tensors may cross beside the one that a head reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cuts_with_skips: Vec<usize>,
    /// The first and the last of `cuts`, by ONNX node.
    pub first_cut: Option<String>,
    /// See `first_cut`.
    pub last_cut: Option<String>,
    /// What the importer remarks.
    pub notes: Vec<String>,
}

/// A report, and why the model cannot be trained, if it cannot.
pub struct Diagnosis {
    /// The report.
    pub report: Report,
    /// What a compilation ends with.
    pub error: Option<CompileError>,
}

/// Looks at a model.
pub fn diagnose(file: &OnnxFile, spec: &SpecFile) -> Diagnosis {
    let planner = Planner::new(file, spec);
    // What a spec repairs is no finding any more.
    let looked_at = planner.as_ref().map_or(file, Planner::file);
    let output = spec.output.as_deref().or_else(|| file.first_output());
    let missing = missing(file, output);
    let (network, error) = match &planner {
        Ok(planner) => (Some(Network::of(planner)), None),
        Err(e) => (None, Some(e)),
    };
    let refused = match error {
        Some(CompileError::Onnx(OnnxError::Nodes(all))) => grouped(all),
        _ => Vec::new(),
    };
    let unknown: BTreeSet<&str> = missing.iter().map(|m| m.op.as_str()).collect();
    let refused = refused.into_iter().filter(|r| !unknown.contains(r.op.as_str())).collect();
    let findings = findings::findings(looked_at, output, network.as_ref());
    let report = Report {
        trainable: error.is_none(),
        error: error.map(ToString::to_string),
        contents: contents(file),
        network,
        missing,
        refused,
        findings,
    };
    Diagnosis { report, error: planner.err() }
}

impl Network {
    fn of(planner: &Planner<'_>) -> Network {
        let (network, cuts) = (planner.network(), &planner.candidates().cuts);
        let tensors = |kind: VarKind| {
            let mut out = Tensors::default();
            for v in network.graph.variables.iter().filter(|v| v.kind == kind) {
                out.add(v.ty.count(), 4 * v.ty.count());
            }
            out
        };
        Network {
            output: network.output.clone(),
            batch: network.batch,
            trained: tensors(VarKind::Weight),
            statistics: tensors(VarKind::RunningStatistic),
            frozen: tensors(VarKind::Frozen),
            repairs: planner.repairs().to_vec(),
            cuts: cuts.len(),
            cuts_with_skips: with_skips(planner),
            first_cut: cuts.first().map(|c| c.node.clone()),
            last_cut: cuts.last().map(|c| c.node.clone()),
            notes: network.notes.iter().filter(|n| *n != crate::onnx::import::FOLDED).cloned().collect(),
        }
    }
}
