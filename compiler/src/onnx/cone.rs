//! What has to be known where a model says by data which of its nodes run, and how often.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto};

use crate::onnx::loops::{carried_into, fed, steers};
use crate::onnx::scopes::graphs;

/// Names that any condition, number of steps or place in a sequence is computed from.
pub(crate) struct Cone {
    values: BTreeSet<String>,
}

impl Cone {
    pub(crate) fn of(graph: &GraphProto) -> Cone {
        let mut nodes: Vec<&NodeProto> = graph.node.iter().collect();
        let mut makers: BTreeMap<&str, usize> = BTreeMap::new();
        // What comes to be an input of a loop's body.
        let mut sources: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut wanted: Vec<&str> = Vec::new();
        let mut at = 0;
        while let Some(&n) = nodes.get(at) {
            makers.extend(n.output.iter().map(|o| (o.as_str(), at)));
            wanted.extend(steers(n));
            for (formal, from) in fed(n).into_iter().chain(carried_into(n)) {
                sources.entry(formal).or_default().push(from);
            }
            nodes.extend(graphs(n).flat_map(|g| &g.node));
            at += 1;
        }
        let mut values = BTreeSet::new();
        while let Some(name) = wanted.pop() {
            if !values.insert(name.to_string()) {
                continue;
            }
            wanted.extend(sources.get(name).into_iter().flatten());
            if let Some(&maker) = makers.get(name) {
                wanted.extend(nodes[maker].input.iter().map(String::as_str));
                wanted.extend(graphs(nodes[maker]).flat_map(|g| &g.output).map(|v| v.name.as_str()));
            }
        }
        Cone { values }
    }

    pub(crate) fn holds(&self, n: &NodeProto) -> bool {
        n.output.iter().any(|o| self.values.contains(o))
    }

    /// Another name of a value.
    pub(crate) fn also(&mut self, name: &str, new: &str) {
        if self.values.contains(name) {
            self.values.insert(new.to_string());
        }
    }
}
