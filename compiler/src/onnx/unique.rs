//! Every value of a model is made once. A file in which a name means two things is read by each tool as it likes, so
//! that what was looked at is not what is run.

use std::collections::BTreeMap;

use onnx_protobuf::{GraphProto, NodeProto};

use crate::onnx::node::node_name;
use crate::onnx::scopes::graphs;

/// Fails where a graph, or a graph in one of its nodes, makes a value twice, or a node says an attribute twice.
pub(crate) fn names_are_unique(graph: &GraphProto) -> Result<(), String> {
    let mut makers: BTreeMap<&str, Maker<'_>> = BTreeMap::new();
    let mut make = |name, maker| match makers.insert(name, maker) {
        // The IR's first versions list every initializer among the inputs.
        Some(Maker::Input) if matches!(maker, Maker::Initializer) => Ok(()),
        Some(before) => Err(format!("\"{name}\" is made twice: by {before} and by {maker}")),
        None => Ok(()),
    };
    graph.input.iter().try_for_each(|v| make(&v.name, Maker::Input))?;
    graph.initializer.iter().try_for_each(|t| make(&t.name, Maker::Initializer))?;
    for n in &graph.node {
        n.output.iter().filter(|o| !o.is_empty()).try_for_each(|o| make(o, Maker::Node(n)))?;
    }
    for n in &graph.node {
        let mut names: Vec<&str> = n.attribute.iter().map(|a| a.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("node \"{}\" has two attributes \"{}\"", node_name(n), twice[0]));
        }
        graphs(n).try_for_each(names_are_unique)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Maker<'a> {
    Input,
    Initializer,
    Node(&'a NodeProto),
}

impl std::fmt::Display for Maker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Maker::Input => f.write_str("an input of the graph"),
            Maker::Initializer => f.write_str("an initializer"),
            Maker::Node(n) => write!(f, "node \"{}\" ({})", node_name(n), n.op_type),
        }
    }
}
