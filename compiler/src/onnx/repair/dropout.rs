//! Dropout put where networks of a file's kind usually have it, or in front of what named nodes hand on.
//!
//! It is random in training and nothing in inference, and an export takes it away again.

use std::collections::BTreeSet;

use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, attribute_proto::AttributeType};

use crate::nearest::nearest;
use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::habits::dropout_habits;
use crate::onnx::links::{Links, Use};
use crate::onnx::node::node_name;
use crate::onnx::repair::{DROPOUT, Dropout, Names, Places, has_mark, mark};

/// Puts dropout in; says what was done.
pub(super) fn dropout(file: &mut OnnxFile, wanted: &Dropout, output: &str) -> Result<String, OnnxError> {
    let graph = file.proto.graph.mut_or_insert_default();
    let (groups, why) = match &wanted.places {
        Places::Usual => usual(graph, output)?,
        Places::Behind(names) => (behind(graph, names)?, "behind the nodes named"),
    };
    put_before(graph, &groups, wanted.rate);
    let s = if groups.len() == 1 { "" } else { "s" };
    Ok(format!("dropout {}: at {} place{s}, {why}", wanted.rate, groups.len()))
}

fn bad<T>(reason: String) -> Result<T, OnnxError> {
    Err(OnnxError::Graph(format!("dropout: {reason}")))
}

/// Uses of one value that are to read it through one Dropout.
type Group = Vec<Use>;

fn usual(graph: &GraphProto, output: &str) -> Result<(Vec<Group>, &'static str), OnnxError> {
    if graph.node.iter().any(|n| n.op_type == "Dropout") {
        return bad(
            "the network has dropout already; name nodes behind which there is to be more, as in 0.1@NODE".into()
        );
    }
    let habits = dropout_habits(graph, output);
    if habits.places.is_empty() {
        return bad(
            "it is neither a transformer nor a convolutional classifier, so the usual places are not known; name nodes, as \
             in 0.1@NODE"
                .into(),
        );
    }
    let why = if habits.attention > 0 { "at the ends of attention and MLP branches" } else { "before the classifier" };
    Ok((habits.places.into_iter().map(|u| vec![u]).collect(), why))
}

/// Every use of the first results of named nodes.
fn behind(graph: &GraphProto, names: &[String]) -> Result<Vec<Group>, OnnxError> {
    let links = Links::new(graph);
    let outputs: BTreeSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let group = |name: &String| {
        let matches = |n: &&NodeProto| node_name(n) == *name || n.output.first() == Some(name);
        let Some(value) = graph.node.iter().find(matches).and_then(|n| n.output.first()) else {
            let all: Vec<String> = graph.node.iter().map(node_name).collect();
            let meant = nearest(name, all.iter().map(String::as_str));
            let meant = meant.map_or(String::new(), |n| format!("; did you mean \"{n}\"?"));
            return bad(format!("the model has no node or value \"{name}\"{meant}"));
        };
        match links.uses(value) {
            _ if outputs.contains(value.as_str()) => bad(format!("the result of \"{name}\" is an output of the model")),
            [] => bad(format!("nothing in the model uses the result of \"{name}\"")),
            uses => Ok(uses.to_vec()),
        }
    };
    // A node that is named twice gets one.
    let once: BTreeSet<&String> = names.iter().collect();
    once.into_iter().map(group).collect()
}

/// Puts a Dropout in front of the first use of each group, through which the group reads its value.
fn put_before(graph: &mut GraphProto, groups: &[Group], rate: f64) {
    let mut names = Names::of(graph);
    let mut put: Vec<(usize, NodeProto)> = Vec::new();
    for group in groups {
        let Some(&(first, slot)) = group.iter().min() else { continue };
        let value = graph.node[first].input[slot].clone();
        let result = names.new_name(format!("{value}.dropout"));
        for &(node, slot) in group {
            graph.node[node].input[slot].clone_from(&result);
        }
        let ratio = AttributeProto {
            name: "ratio".into(),
            type_: AttributeType::FLOAT.into(),
            f: rate as f32,
            ..Default::default()
        };
        // An attribute in every opset: the importer takes it, and no export holds the node.
        let mut node = NodeProto {
            name: result.clone(),
            op_type: "Dropout".into(),
            input: vec![value],
            output: vec![result],
            attribute: vec![ratio],
            ..Default::default()
        };
        mark(&mut node, DROPOUT);
        put.push((first, node));
    }
    let old = std::mem::take(&mut graph.node);
    for (i, n) in old.into_iter().enumerate() {
        graph.node.extend(put.iter().filter(|p| p.0 == i).map(|p| p.1.clone()));
        graph.node.push(n);
    }
}

/// Takes away what was put in.
pub(crate) fn take_away(graph: &mut GraphProto) {
    while let Some(at) = graph.node.iter().position(|n| has_mark(n, DROPOUT)) {
        let n = graph.node.remove(at);
        if let (Some(value), Some(result)) = (n.input.first(), n.output.first()) {
            let readers = graph.node.iter_mut().flat_map(|n| n.input.iter_mut()).filter(|i| *i == result);
            readers.for_each(|i| i.clone_from(value));
        }
    }
}
