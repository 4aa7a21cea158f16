//! `If` nodes whose condition is known at import: the branch that is taken stands in the place of the node.
//!
//! Exporters write such nodes where a network asks for a shape. What a condition is computed from is imported into a
//! graph of its own, by the same conversions as the network; what a condition needs besides, such as another `If`, is
//! put in place on the way. The result is a model without these nodes: import, repairs, plans and exports know nothing
//! of branches.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto};

use crate::ir::graph::Graph;
use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::{ImportOptions, Slot, Start, Values, convert, mark_failed, read_constant};
use crate::onnx::node::{Operand, State, node_name};
use crate::onnx::scopes::{graphs, graphs_mut, is_if};

/// A model with branches in place of what chose between them.
pub struct Taken<'a> {
    /// The model; the given one where there was nothing to choose.
    pub file: Cow<'a, OnnxFile>,
    /// What was chosen, for people.
    pub note: Option<String>,
}

/// Puts branches in place, as far as their conditions are known from what the file and the options say.
pub fn take_branches<'a>(file: &'a OnnxFile, options: &ImportOptions) -> Result<Taken<'a>, OnnxError> {
    if !file.proto.graph.node.iter().any(is_if) {
        return Ok(Taken { file: Cow::Borrowed(file), note: None });
    }
    let Start { graph, values, .. } = Start::new(file, options)?;
    Ok(take(file, &graph, &values))
}

/// The same, with inputs and initializers as `values` says; computed inputs are nodes of `graph`.
pub(crate) fn take<'a>(file: &'a OnnxFile, graph: &Graph, values: &Values) -> Taken<'a> {
    let proto = &file.proto.graph;
    if !proto.node.iter().any(is_if) {
        return Taken { file: Cow::Borrowed(file), note: None };
    }
    let (mut graph, mut values) = (graph.clone(), values.clone());
    let none = BTreeSet::new();
    let mut state = State::new(file, &none, &[], None);
    let cone = Cone::of(proto);
    let (mut out, mut chosen) = (Vec::new(), Vec::new());
    // A stack: the nodes of a branch come next.
    let mut left: Vec<NodeProto> = proto.node.iter().rev().cloned().collect();
    while let Some(mut n) = left.pop() {
        if let Some(taken) = is_if(&n).then(|| known_condition(&n, file, &values)).flatten() {
            let branch = if taken { "then_branch" } else { "else_branch" };
            if let Some(nodes) = body(&mut n, branch) {
                chosen.push(format!("\"{}\" takes its {branch}", node_name(&n)));
                left.extend(nodes.into_iter().rev());
                continue;
            }
        }
        if cone.holds(&n) {
            match convert(&n, 0, file, &mut graph, &mut state, &values) {
                Ok(outs) => values.extend(n.output.iter().cloned().zip(outs).filter(|(name, _)| !name.is_empty())),
                Err(_) => mark_failed(&n, &mut values),
            }
        }
        out.push(n);
    }
    let Some(first) = chosen.first() else { return Taken { file: Cow::Borrowed(file), note: None } };
    let more = if chosen.len() > 1 { format!(", and so on for {} in all", chosen.len()) } else { String::new() };
    let note = format!(
        "If nodes with conditions known at import: {first}{more}. The branch stands in the node's place, in exports too; \
         another batch or shape may take another"
    );
    let mut file = file.clone();
    let graph = file.proto.graph.mut_or_insert_default();
    graph.node = out;
    drop_unread(graph);
    Taken { file: Cow::Owned(file), note: Some(note) }
}

/// Initializers of branches that were not taken go; those that nothing reads in the first place are the file's affair.
fn drop_unread(graph: &mut GraphProto) {
    let mut read: BTreeSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut nodes: Vec<&NodeProto> = graph.node.iter().collect();
    while let Some(n) = nodes.pop() {
        read.extend(n.input.iter().map(String::as_str));
        for g in graphs(n) {
            read.extend(g.output.iter().map(|o| o.name.as_str()));
            nodes.extend(&g.node);
        }
    }
    let inputs: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let kept: Vec<bool> =
        graph.initializer.iter().map(|t| [&read, &inputs].iter().any(|s| s.contains(&*t.name))).collect();
    let mut kept = kept.into_iter();
    graph.initializer.retain(|_| kept.next().unwrap_or(true));
}

fn known_condition(n: &NodeProto, file: &OnnxFile, values: &Values) -> Option<bool> {
    let Some(Slot::Ready(operand)) = values.get(n.input.first()?) else { return None };
    let value = match operand {
        Operand::Const(c) => c.single()?,
        Operand::Weight(w) => read_constant(file, w).ok()?.single()?,
        Operand::Node(..) | Operand::Absent => return None,
    };
    Some(value != 0.0)
}

/// The nodes of a branch, its results named as the node's are.
fn body(n: &mut NodeProto, branch: &str) -> Option<Vec<NodeProto>> {
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
            let (input, output) = (vec![from.to_string()], vec![to.clone()]);
            NodeProto { op_type: "Identity".into(), input, output, ..Default::default() }
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

/// What any condition of a model is computed from.
struct Cone {
    values: BTreeSet<String>,
}

impl Cone {
    fn of(graph: &GraphProto) -> Cone {
        let mut nodes: Vec<&NodeProto> = graph.node.iter().collect();
        let mut makers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut wanted: Vec<&str> = Vec::new();
        let mut at = 0;
        while let Some(&n) = nodes.get(at) {
            makers.extend(n.output.iter().map(|o| (o.as_str(), at)));
            if is_if(n) {
                wanted.extend(n.input.first().map(String::as_str));
                nodes.extend(graphs(n).flat_map(|g| &g.node));
            }
            at += 1;
        }
        let mut values = BTreeSet::new();
        let mut seen = vec![false; nodes.len()];
        while let Some(name) = wanted.pop() {
            values.insert(name.to_string());
            let Some(&maker) = makers.get(name).filter(|&&m| !std::mem::replace(&mut seen[m], true)) else { continue };
            wanted.extend(nodes[maker].input.iter().map(String::as_str));
            wanted.extend(graphs(nodes[maker]).flat_map(|g| &g.output).map(|v| v.name.as_str()));
        }
        Cone { values }
    }

    fn holds(&self, n: &NodeProto) -> bool {
        n.output.iter().any(|o| self.values.contains(o))
    }
}
