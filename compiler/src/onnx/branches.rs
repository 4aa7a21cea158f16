//! `If` nodes whose condition is known at import: the branch that is taken stands in the place of the node.
//!
//! Exporters write such nodes where a network asks for a shape.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::NodeProto;

use crate::onnx::node::node_name;
use crate::onnx::protos::identity;
use crate::onnx::scopes::graphs_mut;

fn name_of(taken: bool) -> &'static str {
    if taken { "then_branch" } else { "else_branch" }
}

/// What was chosen, for people.
pub(crate) fn took(n: &NodeProto, taken: bool) -> String {
    format!("\"{}\" takes its {}", node_name(n), name_of(taken))
}

/// The nodes of a branch, its results named as the node's are.
pub(crate) fn taken_branch(n: &mut NodeProto, taken: bool) -> Option<Vec<NodeProto>> {
    let branch = name_of(taken);
    let outputs = n.output.clone();
    let graph =
        n.attribute.iter_mut().find(|a| a.name == branch)?.g.as_mut().filter(|g| g.output.len() >= outputs.len())?;
    let made: BTreeSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    // What is read from around the branch, is an initializer, or stands for two results keeps its name.
    let mut handed = Vec::new();
    for (from, to) in graph.output.iter().map(|v| v.name.as_str()).zip(&outputs).filter(|(_, to)| !to.is_empty()) {
        if made.contains(from) && !names.contains_key(from) {
            names.insert(from, to);
        } else {
            handed.push((from, to));
        }
    }
    let handed: Vec<NodeProto> = handed
        .into_iter()
        .map(|(from, to)| {
            let from = names.get(from).map_or(from, |&new| new);
            identity(from, to)
        })
        .collect();
    let mut nodes = graph.node.clone();
    nodes.iter_mut().for_each(|n| rename(n, &names));
    nodes.extend(handed);
    Some(nodes)
}

fn rename(n: &mut NodeProto, names: &BTreeMap<&str, &str>) {
    let new = |name: &mut String| {
        if let Some(&to) = names.get(name.as_str()) {
            *name = to.to_string();
        }
    };
    n.input.iter_mut().chain(&mut n.output).for_each(new);
    for g in graphs_mut(n) {
        g.output.iter_mut().for_each(|v| new(&mut v.name));
        g.node.iter_mut().for_each(|n| rename(n, names));
    }
}
