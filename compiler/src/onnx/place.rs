//! Nodes that say which other nodes run: `If`, `Loop`, `Scan`, sequences. Where what steers them is known at import,
//! the nodes that run stand in their place.
//!
//! What steers them is imported into a graph of its own, by the same conversions as the network, on the way. The result
//! is a model without such nodes: import, repairs, plans and exports know nothing of them. What cannot be put in place
//! stays, and is an error where it is imported, with the reason (`refused` in `onnx/file.rs`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use onnx_protobuf::{GraphProto, NodeProto};

use crate::ir::graph::Graph;
use crate::onnx::OnnxError;
use crate::onnx::branches::{taken_branch, took};
use crate::onnx::cone::Cone;
use crate::onnx::file::{OnnxFile, Placed};
use crate::onnx::import::{ImportOptions, Slot, Start, Values, convert, mark_failed, read_constant, reads};
use crate::onnx::inline::Spare;
use crate::onnx::loops::{Steps, is_loop};
use crate::onnx::node::{Operand, State, node_name};
use crate::onnx::protos::{call, int_of, integers, ints_of, named};
use crate::onnx::scopes::{graphs, is_if};
use crate::onnx::sequences::{Sequences, fold, is_sequence_op, passes_sequence};
use crate::onnx::tensor::Const;

/// Most bytes that steps of loops may take, and most nodes and attributes, lists of elements included.
const BYTES: u64 = 1 << 28;
const MESSAGES: u64 = 1 << 18;

/// A model with nodes in place of what chose between them.
pub struct InPlace<'a> {
    /// The model; the given one where there was nothing to do.
    pub file: Cow<'a, OnnxFile>,
    /// What was done, for people.
    pub notes: Vec<String>,
}

/// Puts nodes in place, as far as it is known from what the file and the options say.
pub fn put_in_place<'a>(file: &'a OnnxFile, options: &ImportOptions) -> Result<InPlace<'a>, OnnxError> {
    if !file.proto.graph.node.iter().any(steered) {
        return Ok(InPlace { file: Cow::Borrowed(file), notes: Vec::new() });
    }
    let Start { graph, values, .. } = Start::new(file, options)?;
    Ok(put(file, &graph, &values))
}

fn steered(n: &NodeProto) -> bool {
    is_if(n) || is_loop(n) || is_sequence_op(n)
}

/// The same, with inputs and initializers as `values` says; computed inputs are nodes of `graph`.
pub(crate) fn put<'a>(file: &'a OnnxFile, graph: &Graph, values: &Values) -> InPlace<'a> {
    let proto = &file.proto.graph;
    if !proto.node.iter().any(steered) {
        return InPlace { file: Cow::Borrowed(file), notes: Vec::new() };
    }
    let none = BTreeSet::new();
    let mut p = Placing {
        file,
        graph: graph.clone(),
        values: values.clone(),
        state: State::new(file, &none, &[], None),
        cone: Cone::of(proto),
        names: names_of(proto),
        node_names: proto.node.iter().map(|n| n.name.clone()).collect(),
        sequences: Sequences::default(),
        spare: Spare::new("the steps of its loops", BYTES, MESSAGES),
        left: Vec::new(),
        out: Vec::new(),
        shared: BTreeSet::new(),
        chosen: Vec::new(),
        unrolled: Vec::new(),
        refused: BTreeMap::new(),
    };
    p.left.extend(proto.node.iter().rev().cloned().map(|n| Work::Node(Box::new(n))));
    while let Some(work) = p.left.pop() {
        match work {
            Work::Node(n) => p.node(n),
            Work::Steps(steps) => steps.advance(&mut p),
        }
    }
    let notes = p.notes();
    let (out, placed) = (p.out, Placed { shared: p.shared, refused: p.refused });
    let own = proto.node.iter().filter(|n| !steered(n)).flat_map(|n| &n.output).map(String::as_str).collect();
    let out = without_unread(out, proto, &own);
    let mut file = file.clone();
    let graph = file.proto.graph.mut_or_insert_default();
    graph.node = out;
    drop_unread(graph);
    file.placed = Arc::new(placed);
    InPlace { file: Cow::Owned(file), notes }
}

/// What comes next.
pub(crate) enum Work {
    Node(Box<NodeProto>),
    Steps(Box<Steps>),
}

/// A model while nodes are put in place.
pub(crate) struct Placing<'a> {
    file: &'a OnnxFile,
    /// What steers nodes, as far as it was imported.
    graph: Graph,
    values: Values,
    state: State<'a>,
    cone: Cone,
    /// Names of values of the whole model.
    names: BTreeSet<String>,
    /// Names of nodes of the graph itself.
    node_names: BTreeSet<String>,
    pub(crate) sequences: Sequences,
    pub(crate) spare: Spare,
    /// A stack.
    pub(crate) left: Vec<Work>,
    /// Nodes of the result.
    pub(crate) out: Vec<NodeProto>,
    /// See [`Placed`].
    pub(crate) shared: BTreeSet<String>,
    refused: BTreeMap<String, String>,
    /// What was done: branches in words, loops with the number of their steps.
    chosen: Vec<String>,
    pub(crate) unrolled: Vec<(Box<NodeProto>, u64)>,
}

impl Placing<'_> {
    /// Nodes that come next, in order. Those that the graph has by the same name keep theirs.
    pub(crate) fn next(&mut self, mut nodes: Vec<NodeProto>) {
        for n in nodes.iter_mut().filter(|n| !n.name.is_empty()) {
            while !self.node_names.insert(n.name.clone()) {
                n.name.push('_');
            }
        }
        self.left.extend(nodes.into_iter().rev().map(|n| Work::Node(Box::new(n))));
    }

    fn node(&mut self, mut n: Box<NodeProto>) {
        if is_if(&n)
            && let Some(condition) = named(&n, 0).and_then(|c| self.number(c))
        {
            let taken = condition != 0.0;
            if let Some(nodes) = taken_branch(&mut n, taken) {
                self.chosen.push(took(&n, taken));
                return self.next(nodes);
            }
        }
        if is_loop(&n) {
            return match Steps::begin(n, self) {
                Ok((steps, same)) => {
                    self.left.push(Work::Steps(steps));
                    self.next(same);
                }
                Err((n, reason)) => self.refuse(n, reason),
            };
        }
        if is_sequence_op(&n) || passes_sequence(&n, self) {
            return match fold(&n, self) {
                Ok(nodes) => self.next(nodes),
                Err(reason) => self.refuse(n, reason),
            };
        }
        self.keep(n);
    }

    /// A node as it is, imported where it steers others.
    fn keep(&mut self, n: Box<NodeProto>) {
        if self.cone.holds(&n) {
            match convert(&n, 0, self.file, &mut self.graph, &mut self.state, &self.values) {
                Ok(outs) => self.values.extend(n.output.iter().cloned().zip(outs).filter(|(name, _)| !name.is_empty())),
                Err(_) => mark_failed(&n, &mut self.values),
            }
        }
        self.out.push(*n);
    }

    /// A node that stays, and why.
    pub(crate) fn refuse(&mut self, n: Box<NodeProto>, reason: String) {
        let output = n.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        self.refused.insert(output, reason);
        mark_failed(&n, &mut self.values);
        self.out.push(*n);
    }

    pub(crate) fn opset(&self) -> i64 {
        self.file.opset()
    }

    /// A value that is known.
    pub(crate) fn known(&self, name: &str) -> Option<Const> {
        let Some(Slot::Ready(operand)) = self.values.get(name) else { return None };
        match operand {
            Operand::Const(c) => Some(c.clone()),
            Operand::Weight(w) => read_constant(self.file, w).ok(),
            Operand::Node(..) | Operand::Absent => None,
        }
    }

    /// A single number that is known.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        match self.values.get(name) {
            Some(Slot::Ready(Operand::Weight(w))) if w.shape.iter().product::<usize>() != 1 => None,
            _ => self.known(name)?.single(),
        }
    }

    /// The extents of a value, if it was imported.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let Some(Slot::Ready(operand)) = self.values.get(name) else { return None };
        match operand {
            Operand::Const(c) => Some(c.shape.clone()),
            Operand::Weight(w) => Some(w.shape.clone()),
            Operand::Node(id, _) => Some(self.graph.shape(*id).to_vec()),
            Operand::Absent => None,
        }
    }

    /// The extents of a float initializer that holds nothing but zeros.
    pub(crate) fn zero_weight(&mut self, name: &str) -> Option<Vec<usize>> {
        let Some(Slot::Ready(Operand::Weight(w))) = self.values.get(name) else { return None };
        self.state.allowance.copy(w.shape.iter().product()).ok()?;
        let all = read_constant(self.file, w).ok()?;
        all.data.iter().all(|&x| x == 0.0).then_some(all.shape)
    }

    /// A new name for what step `i` makes of a value.
    pub(crate) fn fresh(&mut self, name: &str, i: u64) -> String {
        let mut new = format!("{name}/{i}");
        while !self.names.insert(new.clone()) {
            new.push('_');
        }
        self.cone.also(name, &new);
        new
    }

    /// A new name for what helps to make a value.
    pub(crate) fn helper(&mut self, of: &str, what: &str, i: u64) -> String {
        let new = self.fresh(&format!("{of}/{what}"), i);
        self.cone.also(of, &new);
        new
    }

    /// Says what a sequence holds.
    pub(crate) fn define(&mut self, name: &str, elements: Vec<String>) -> Result<Vec<NodeProto>, String> {
        self.sequences.insert(name, elements, &mut self.spare)?;
        Ok(Vec::new())
    }

    /// Input `i` as one of the places in a list of `elements`, counted from the list's end if it is negative; the last
    /// place where it is left out.
    pub(crate) fn place(&self, n: &NodeProto, i: usize, places: usize, elements: usize) -> Result<usize, String> {
        let Some(name) = named(n, i) else { return Ok(places.saturating_sub(1)) };
        let at = self.number(name).ok_or("its place in the sequence depends on the data")?;
        let from = if at < 0.0 { at + elements as f64 } else { at };
        let fits = from >= 0.0 && from < places as f64;
        if fits { Ok(from as usize) } else { Err(format!("there is no place {at} in its sequence")) }
    }

    /// A number of nodes that may be made.
    pub(crate) fn affordable(&mut self, count: usize) -> Result<usize, String> {
        self.spare.spend(0, count as u64)?;
        Ok(count)
    }

    /// Nodes that put values side by side along a new axis.
    pub(crate) fn stack(&mut self, parts: &[String], axis: i64, to: &str) -> Result<Vec<NodeProto>, String> {
        if parts.is_empty() {
            return Err("a sequence without elements has no shape".into());
        }
        self.affordable(2 * parts.len())?;
        let mut nodes = Vec::with_capacity(parts.len() + 2);
        let axes = self.helper(to, "axis", 0);
        let input = self.opset() >= 13;
        if input {
            nodes.push(integers(&axes, vec![axis]));
        }
        let mut wide = Vec::with_capacity(parts.len());
        for (i, part) in parts.iter().enumerate() {
            let new = self.helper(to, "part", i as u64);
            nodes.push(match input {
                true => call("Unsqueeze", &[part, &axes], &[&new], Vec::new()),
                false => call("Unsqueeze", &[part], &[&new], vec![ints_of("axes", vec![axis])]),
            });
            wide.push(new);
        }
        let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
        nodes.push(call("Concat", &wide, &[to], vec![int_of("axis", axis)]));
        Ok(nodes)
    }

    fn notes(&self) -> Vec<String> {
        let more = |n: usize| if n > 1 { format!(", and so on for {n} in all") } else { String::new() };
        let mut notes = Vec::new();
        if let Some(first) = self.chosen.first() {
            notes.push(format!(
                "If nodes with conditions known at import: {first}{}. The branch stands in the node's place, in exports \
                 too; another batch or shape may take another",
                more(self.chosen.len())
            ));
        }
        if let Some((n, steps)) = self.unrolled.first() {
            notes.push(format!(
                "loops with steps that can be counted at import: {} \"{}\" has {steps}{}. The steps stand in the node's \
                 place, in exports too, and share their weights; another batch or shape may make more of them",
                n.op_type,
                node_name(n),
                more(self.unrolled.len())
            ));
        }
        notes
    }
}

/// Every name of a graph and of those within.
fn names_of(graph: &GraphProto) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut graphs_left = vec![graph];
    while let Some(g) = graphs_left.pop() {
        names.extend(g.input.iter().map(|v| v.name.clone()));
        names.extend(g.initializer.iter().map(|t| t.name.clone()));
        for n in &g.node {
            names.extend(n.input.iter().chain(&n.output).cloned());
            graphs_left.extend(graphs(n));
        }
    }
    names
}

/// Nodes without those that nothing reads; the model's `own` stay.
fn without_unread(nodes: Vec<NodeProto>, graph: &GraphProto, own: &BTreeSet<&str>) -> Vec<NodeProto> {
    let mut read: BTreeSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut kept = Vec::with_capacity(nodes.len());
    for n in nodes.into_iter().rev() {
        if n.output.iter().any(|o| read.contains(o) || own.contains(o.as_str())) {
            read.extend(reads(&n).into_iter().map(str::to_string));
            kept.push(n);
        }
    }
    kept.reverse();
    kept
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
