//! Operators that cannot be imported.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::onnx::NodeError;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::{needed_nodes, qualified};
use crate::onnx::node::node_name;
use crate::onnx::ops;

/// Nodes of one operator that cannot be imported for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Operator, with its domain unless it is ONNX's own.
    pub op: String,
    /// Opset the model uses for it.
    pub opset: i64,
    /// How many nodes.
    pub count: usize,
    /// The first of them.
    pub nodes: Vec<String>,
    /// Why.
    pub reason: String,
}

/// Nodes that are named; the count says how many there are.
const NAMED: usize = 3;

/// Every operator `output` needs, or any node where it is absent, that slrc does not know.
pub fn missing(file: &OnnxFile, output: Option<&str>) -> Vec<Missing> {
    let graph = &file.proto.graph;
    let needed = match output {
        Some(name) => needed_nodes(&graph.node, name),
        None => (0..graph.node.len()).collect(),
    };
    let unknown = needed.into_iter().map(|i| &graph.node[i]).filter(|n| ops::find(n).is_none());
    let errors: Vec<NodeError> = unknown
        .map(|n| NodeError {
            node: node_name(n),
            op: qualified(n),
            opset: file.opset_of(&n.domain),
            reason: ops::unsupported(n),
        })
        .collect();
    grouped(&errors)
}

/// Errors of nodes by operator and reason, in the order of their first nodes.
pub fn grouped(errors: &[NodeError]) -> Vec<Missing> {
    let mut out: Vec<Missing> = Vec::new();
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for e in errors {
        let place = *places.entry((&e.op, &e.reason)).or_insert(out.len());
        match out.get_mut(place) {
            Some(m) => {
                m.count += 1;
                if m.nodes.len() < NAMED {
                    m.nodes.push(e.node.clone());
                }
            }
            None => out.push(Missing {
                op: e.op.clone(),
                opset: e.opset,
                count: 1,
                nodes: vec![e.node.clone()],
                reason: e.reason.clone(),
            }),
        }
    }
    out
}
