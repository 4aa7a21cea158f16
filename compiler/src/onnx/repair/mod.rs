//! Repairs: a model with what its export took away put back, before it is imported.
//!
//! A repaired model is an ONNX model like another: import, plans and exports know nothing of repairs but the mark that
//! nodes put in carry, by which an export finds them.

mod dropout;
mod fold;
mod rebn;
mod statistics;

use std::borrow::Cow;
use std::collections::BTreeSet;

use onnx_protobuf::{GraphProto, NodeProto, StringStringEntryProto};

use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
pub(crate) use dropout::take_away;
pub(crate) use fold::fold;
pub use statistics::{Measured, Statistics};

/// What to repair.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Repairs {
    /// BatchNormalization behind convolutions.
    pub rebn: Option<Rebn>,
    /// Dropout.
    pub dropout: Option<Dropout>,
}

/// Behind which convolutions BatchNormalization is put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebn {
    /// Those it seems to have been folded into.
    Found,
    /// These.
    Named(Vec<String>),
}

/// Dropout that is put in.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is dropped, in [0, 1).
    pub rate: f64,
    /// Where.
    pub places: Places,
}

/// Where dropout is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// Where networks of this kind usually have it.
    Usual,
    /// Behind these nodes, or values.
    Behind(Vec<String>),
}

/// A model after repairs, and what they were.
pub struct Repaired<'a> {
    /// The model; the given one if nothing was to be done.
    pub file: Cow<'a, OnnxFile>,
    /// One line a repair, for people.
    pub done: Vec<String>,
}

/// Repairs a model of which `output`, or the first, is trained.
pub fn repair<'a>(file: Cow<'a, OnnxFile>, repairs: &Repairs, output: Option<&str>) -> Result<Repaired<'a>, OnnxError> {
    let first = file.first_output().unwrap_or_default().to_string();
    let mut out = Repaired { file, done: Vec::new() };
    if let Some(which) = &repairs.rebn {
        let done = rebn::rebn(out.file.to_mut(), which)?;
        out.done.push(done);
    }
    if let Some(wanted) = &repairs.dropout {
        let done = dropout::dropout(out.file.to_mut(), wanted, output.unwrap_or(&first))?;
        out.done.push(done);
    }
    Ok(out)
}

/// Metadata key of a node that a repair put in; the value says which repair.
const MARK: &str = "slrc.repair";
const REBN: &str = "rebn";
const DROPOUT: &str = "dropout";

fn mark(n: &mut NodeProto, repair: &str) {
    n.metadata_props.push(StringStringEntryProto { key: MARK.into(), value: repair.into(), ..Default::default() });
}

fn has_mark(n: &NodeProto, repair: &str) -> bool {
    n.metadata_props.iter().any(|p| p.key == MARK && p.value == repair)
}

/// Takes the marks away.
pub(crate) fn unmark(graph: &mut GraphProto) {
    graph.node.iter_mut().for_each(|n| n.metadata_props.retain(|p| p.key != MARK));
}

/// Names that are taken, so that new ones are new.
struct Names(BTreeSet<String>);

impl Names {
    fn of(graph: &GraphProto) -> Names {
        let values = graph.node.iter().flat_map(|n| n.input.iter().chain(&n.output).chain([&n.name]));
        let ports = graph.input.iter().chain(&graph.output).map(|v| &v.name);
        Names(values.chain(ports).chain(graph.initializer.iter().map(|t| &t.name)).cloned().collect())
    }

    fn new_name(&mut self, wanted: String) -> String {
        let mut name = wanted;
        while !self.0.insert(name.clone()) {
            name.push('_');
        }
        name
    }
}
