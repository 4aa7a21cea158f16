//! Import: the ONNX graph node by node into IR.
//!
//! Whatever is known at import (shape arithmetic, masks, folded constants) is computed here, by the same conversions
//! in a scratch graph and the f64 interpreter, and never reaches the graph.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use onnx_protobuf::NodeProto;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputKind, NodeId, Root, RootKind};
use crate::ir::types::{DType, Type};
use crate::loss::class_dimension;
use crate::nearest::nearest;
use crate::onnx::file::OnnxFile;
use crate::onnx::node::{Cx, Operand, Out, State, WeightRef, WeightSource, node_name};
pub use crate::onnx::node::{VariableSource, WeightSource as Source};
use crate::onnx::ops;
pub use crate::onnx::resolve::{DEFAULT_BATCH, Extent};
use crate::onnx::resolve::{ResolvedInput, resolve};
use crate::onnx::scopes::graphs;
use crate::onnx::tensor::{self, Const, Elem};
use crate::onnx::{NodeError, OnnxError};

/// What the user can say about an import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Batch size; the model's own, or [`DEFAULT_BATCH`], where absent.
    pub batch: Option<usize>,
    /// Passes that the batch is divided into; the network is imported for the samples of one.
    pub micro_batches: usize,
    /// Input shapes by name.
    pub shapes: BTreeMap<String, Vec<Extent>>,
    /// Output to train; the first where absent.
    pub output: Option<String>,
    /// Initializers whose uses keep sharing one weight.
    pub tie: BTreeSet<String>,
    /// Weights that are not trained: names, or prefixes that end in `*`.
    pub freeze: Vec<String>,
}

impl Default for ImportOptions {
    fn default() -> ImportOptions {
        ImportOptions {
            batch: None,
            micro_batches: 1,
            shapes: BTreeMap::new(),
            output: None,
            tie: BTreeSet::new(),
            freeze: Vec::new(),
        }
    }
}

/// An ONNX node as it arrived in the IR.
#[derive(Clone, Debug)]
pub struct ImportedNode {
    /// Name, or first output where it has none.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Names of the inputs.
    pub inputs: Vec<String>,
    /// Name of the first output.
    pub output: String,
    /// Inputs that are weights.
    pub weights: usize,
    /// The first output's value, where it is computed at run time.
    pub value: Option<NodeId>,
}

/// An imported network.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The network in both modes; its root is the trained output, with updates of running statistics.
    pub graph: Graph,
    /// The trained output's value before a final softmax, if the network ends in one: what the loss is applied to.
    pub logits: NodeId,
    /// Name of the trained output.
    pub output: String,
    /// Samples a pass.
    pub batch: usize,
    /// ONNX nodes the output needs, in order.
    pub nodes: Vec<ImportedNode>,
    /// Origin of every variable, by variable name.
    pub sources: BTreeMap<String, VariableSource>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What an import begins with.
pub(crate) struct Start {
    /// The trained output.
    output: String,
    /// Nodes it depends on.
    needed: Vec<usize>,
    /// Samples a pass.
    batch: usize,
    /// See [`State`].
    rebatch: Option<(usize, usize)>,
    /// A graph of the inputs alone.
    pub(crate) graph: Graph,
    /// Inputs and initializers.
    pub(crate) values: Values,
}

impl Start {
    pub(crate) fn new(file: &OnnxFile, options: &ImportOptions) -> Result<Start, OnnxError> {
        let proto = &file.proto.graph;
        let output = match &options.output {
            None => proto
                .output
                .first()
                .map(|o| o.name.clone())
                .ok_or_else(|| OnnxError::Graph("the model has no outputs".into()))?,
            Some(name) if proto.output.iter().any(|o| o.name == *name) => name.clone(),
            Some(name) => {
                let names: Vec<&str> = proto.output.iter().map(|o| o.name.as_str()).collect();
                return Err(OnnxError::Graph(format!(
                    "the model has no output \"{name}\"; it has {}",
                    names.join(", ")
                )));
            }
        };
        let needed = needed_nodes(&proto.node, &output);
        let initializers: BTreeSet<&str> = proto.initializer.iter().map(|t| t.name.as_str()).collect();
        let used: BTreeSet<&str> = needed.iter().flat_map(|&i| reads(&proto.node[i])).collect();
        let declared: Vec<_> = proto
            .input
            .iter()
            .filter(|i| !initializers.contains(i.name.as_str()) && used.contains(i.name.as_str()))
            .collect();
        if declared.is_empty() {
            return Err(OnnxError::Graph(format!("output \"{output}\" does not depend on any input of the model")));
        }
        let resolved = resolve(&declared, options.batch, options.micro_batches, &options.shapes)?;
        let mut graph = Graph::new(if proto.name.is_empty() { "network" } else { &proto.name });
        let mut values = Values::new();
        read_initializers(file, &used, &mut values)?;
        for i in &resolved.inputs {
            let value = add_input(&mut graph, i);
            values.insert(i.name.clone(), Slot::Ready(value));
        }
        Ok(Start { output, needed, batch: resolved.batch, rebatch: resolved.rebatch, graph, values })
    }
}

/// Imports the part of the model that the trained output needs.
pub fn import(file: &OnnxFile, options: &ImportOptions) -> Result<Imported, OnnxError> {
    let Start { output, needed, batch, rebatch, mut graph, mut values } = Start::new(file, options)?;
    let mut state = State::new(file, &options.tie, &options.freeze, rebatch);
    if let Some((old, new)) = rebatch {
        state.note(format!("the file was exported with a fixed batch of {old}; it is compiled for {new}"));
    }
    let nodes = convert_all(file, &needed, &mut graph, &mut state, &mut values)?;
    check_names(options, &state.sources)?;
    let value = match values.get(&output) {
        Some(Slot::Ready(Operand::Node(id, Elem::Float))) => *id,
        Some(Slot::Ready(Operand::Node(..))) => {
            return Err(OnnxError::Graph(format!("output \"{output}\" is not a float tensor")));
        }
        _ => return Err(OnnxError::Graph(format!("output \"{output}\" does not depend on the model's inputs"))),
    };
    graph.roots.push(Root { kind: RootKind::Output(output.clone()), value });
    for (variable, value) in std::mem::take(&mut state.updates) {
        graph.roots.push(Root { kind: RootKind::Update(variable), value });
    }
    let logits = before_softmax(file, &graph, &output, &values).unwrap_or(value);
    if logits != value {
        state.note("the network ends in a softmax: the loss is computed from what goes into it");
    }
    advise(&nodes, &mut state);
    let State { sources, notes, .. } = state;
    Ok(Imported { graph, logits, output, batch, nodes, sources, notes })
}

/// Converts nodes in order; all that cannot be converted are reported at once.
pub(crate) fn convert_all<'s>(
    file: &'s OnnxFile,
    needed: &[usize],
    graph: &mut Graph,
    state: &mut State<'s>,
    values: &mut Values,
) -> Result<Vec<ImportedNode>, OnnxError> {
    let proto = &file.proto.graph;
    let mut nodes = Vec::new();
    let mut errors = Vec::new();
    for &i in needed {
        let n = &proto.node[i];
        let before = graph.len();
        match convert(n, i, file, graph, state, values) {
            Ok(outs) => {
                let value = match outs.first() {
                    Some(Slot::Ready(Operand::Node(id, _))) => Some(*id),
                    _ => None,
                };
                let first = n.output.first().cloned().unwrap_or_default();
                let (name, op, inputs) = (node_name(n), n.op_type.clone(), n.input.clone());
                nodes.push((i, ImportedNode { name, op, inputs, output: first, weights: 0, value }));
                for (name, out) in n.output.iter().zip(outs) {
                    if !name.is_empty() {
                        values.insert(name.clone(), out);
                    }
                }
            }
            Err(None) => mark_failed(n, values),
            Err(Some(reason)) => {
                errors.push(NodeError {
                    node: node_name(n),
                    op: qualified(n),
                    opset: file.opset_of(&n.domain),
                    reason,
                });
                mark_failed(n, values);
            }
        }
        debug_assert!(graph.len() >= before);
    }
    if !errors.is_empty() {
        return Err(OnnxError::Nodes(errors));
    }
    let mut weights: BTreeMap<usize, usize> = BTreeMap::new();
    for (i, _) in state.sources.values().flat_map(|s| &s.uses) {
        *weights.entry(*i).or_default() += 1;
    }
    let weights_of = |i| weights.get(&i).copied().unwrap_or(0);
    Ok(nodes.into_iter().map(|(i, n)| ImportedNode { weights: weights_of(i), ..n }).collect())
}

/// What is known of an ONNX value.
#[derive(Clone)]
pub(crate) enum Slot {
    Ready(Operand),
    /// The node that makes it could not be imported, which is reported once, there.
    Failed,
    /// An optional output slrc does not compute.
    Unavailable(&'static str),
}

pub(crate) type Values = HashMap<String, Slot>;

/// Indices of the nodes `output` depends on, in file order.
pub(crate) fn needed_nodes(nodes: &[NodeProto], output: &str) -> Vec<usize> {
    let makers: HashMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().filter(|o| !o.is_empty()).map(move |o| (o.as_str(), i)))
        .collect();
    let mut needed = BTreeSet::new();
    let mut wanted = vec![output];
    while let Some(name) = wanted.pop() {
        if let Some(&i) = makers.get(name)
            && needed.insert(i)
        {
            wanted.extend(reads(&nodes[i]));
        }
    }
    needed.into_iter().collect()
}

/// What a node reads: its inputs, then whatever its graphs name.
pub(crate) fn reads(n: &NodeProto) -> Vec<&str> {
    let mut out: Vec<&str> = n.input.iter().map(String::as_str).collect();
    for g in graphs(n) {
        out.extend(g.output.iter().map(|v| v.name.as_str()));
        out.extend(g.node.iter().flat_map(reads));
    }
    out
}

/// Names in the spec must mean something: a misspelt one would be passed over in silence.
fn check_names(options: &ImportOptions, sources: &BTreeMap<String, VariableSource>) -> Result<(), OnnxError> {
    let none = |field: &str, name: &str, nearest: Option<&str>| {
        let meant = nearest.map_or(String::new(), |n| format!("; did you mean \"{n}\"?"));
        let what = "is no weight of the network; weights have the names of the model's initializers";
        Err(OnnxError::Graph(format!("{field}: \"{name}\" {what}{meant}")))
    };
    let names = || sources.keys().map(String::as_str);
    for pattern in &options.freeze {
        let (found, meant) = match pattern.strip_suffix('*') {
            Some(prefix) => {
                let beginnings = names().filter_map(|n| n.get(..prefix.len()));
                (names().any(|n| n.starts_with(prefix)), nearest(prefix, beginnings).map(|n| format!("{n}*")))
            }
            None => (sources.contains_key(pattern), nearest(pattern, names()).map(str::to_string)),
        };
        if !found {
            return none("freeze", pattern, meant.as_deref());
        }
    }
    for name in &options.tie {
        if !sources.iter().any(|(n, s)| n == name || s.source == Source::Initializer(name.clone())) {
            return none("tie", name, nearest(name, names()));
        }
    }
    Ok(())
}

/// Floats with dimensions stay in the file until they are used; everything else is small and read now.
pub(crate) fn read_initializers(file: &OnnxFile, used: &BTreeSet<&str>, values: &mut Values) -> Result<(), OnnxError> {
    for t in &file.proto.graph.initializer {
        if !used.contains(t.name.as_str()) {
            continue;
        }
        let shape = tensor::shape(t)?;
        let operand = if tensor::tensor_elem(t)? == Elem::Float && !shape.is_empty() {
            let source = WeightSource::Initializer(t.name.clone());
            Operand::Weight(WeightRef { source, name: t.name.clone(), shape })
        } else {
            Operand::Const(tensor::read_numbers(file, t)?)
        };
        values.insert(t.name.clone(), Slot::Ready(operand));
    }
    Ok(())
}

fn add_input(graph: &mut Graph, i: &ResolvedInput) -> Operand {
    let dtype = if i.elem == Elem::Float { DType::F32 } else { DType::I32 };
    let ty = Type::new(dtype, i.shape.clone());
    let id = graph.add_input(Input { name: i.name.clone(), kind: InputKind::Data, ty });
    let node = Builder::new(graph).input(id);
    Operand::Node(node, i.elem)
}

pub(crate) fn qualified(n: &NodeProto) -> String {
    if n.domain.is_empty() || n.domain == "ai.onnx" { n.op_type.clone() } else { format!("{}.{}", n.domain, n.op_type) }
}

/// A failed node's outputs are known to have failed, so that nodes that use them are passed over in silence.
pub(crate) fn mark_failed(n: &NodeProto, values: &mut Values) {
    for o in n.output.iter().filter(|o| !o.is_empty()) {
        values.insert(o.clone(), Slot::Failed);
    }
}

pub(crate) type Outputs = Vec<Slot>;

/// Converts one node. `Err(None)` means an operand failed before.
pub(crate) fn convert<'s>(
    n: &NodeProto,
    index: usize,
    file: &OnnxFile,
    graph: &mut Graph,
    state: &mut State<'s>,
    values: &Values,
) -> Result<Outputs, Option<String>> {
    let entry = ops::find(n).ok_or_else(|| Some(ops::unsupported(n)))?;
    let mut operands = Vec::with_capacity(n.input.len());
    let mut failed = None;
    for name in &n.input {
        match values.get(name) {
            _ if name.is_empty() => operands.push(Operand::Absent),
            Some(Slot::Ready(o)) => operands.push(o.clone()),
            Some(Slot::Failed) => return Err(None),
            Some(Slot::Unavailable(what)) => failed = Some(format!("uses {what}, which slrc does not compute")),
            None if state.makes(name) => {
                failed = Some(format!("uses \"{name}\" before the node that makes it"));
            }
            None => failed = Some(format!("uses \"{name}\", which nothing defines")),
        }
    }
    // What it reads may have been a sequence, which nothing makes any more.
    if let Some(reason) = file.placed.refused(n).or(failed) {
        return Err(Some(reason));
    }
    if MASK_MAKERS.contains(&entry.op) && operands.iter().all(|o| !matches!(o, Operand::Node(..))) {
        for o in &mut operands {
            if let Operand::Weight(w) = o {
                *o = Operand::Const(read_constant(file, w).map_err(|e| Some(e.to_string()))?);
            }
        }
    }
    if entry.op == "Add" {
        for o in &mut operands {
            // What cannot be read is reported where initial weights are.
            if let Operand::Weight(w) = o
                && let Ok(c) = read_constant(file, w)
                && is_additive_mask(&c.data)
            {
                *o = Operand::Const(c);
            }
        }
    }
    let constant =
        !ops::DRAW.contains(&entry.op) && operands.iter().all(|o| matches!(o, Operand::Const(_) | Operand::Absent));
    let mut scratch = Graph::new("constants");
    // Building on the network's graph and on a scratch graph differ only in which graph it is.
    let target: &mut Graph = if constant { &mut scratch } else { graph };
    let outs = run(entry, n, index, file, target, state, &operands, constant).map_err(Some)?;
    outs.into_iter()
        .map(|out| match out {
            Out::Node(id, elem) if constant => {
                let folded = state.allowance.fold(&scratch, id, elem).map_err(Some)?;
                Ok(Slot::Ready(Operand::Const(folded)))
            }
            Out::Node(id, elem) => Ok(Slot::Ready(Operand::Node(id, elem))),
            Out::Const(c) => {
                state.allowance.compute(c.data.len()).map_err(Some)?;
                Ok(Slot::Ready(Operand::Const(c)))
            }
            Out::Alias(o) => Ok(Slot::Ready(o)),
            Out::Unavailable(what) => Ok(Slot::Unavailable(what)),
        })
        .collect()
}

/// Operators that put numbers together from numbers: where all of them are known, they make a mask, not a weight.
const MASK_MAKERS: &[&str] = &["DequantizeLinear", "Scatter", "ScatterElements", "ScatterND", "Where"];

/// Whether what an Add adds is an attention mask, computed when the model was exported: some numbers so low that
/// softmax makes nothing of them, and else 0. No weight is trained to such numbers.
pub(crate) fn is_additive_mask(values: &[f64]) -> bool {
    const LOWEST_SCORE: f64 = -9e3;
    values.iter().all(|&v| v == 0.0 || v <= LOWEST_SCORE) && values.iter().any(|&v| v != 0.0)
}

/// The values of a float initializer that is no weight.
pub(crate) fn read_constant(file: &OnnxFile, w: &WeightRef) -> Result<Const, OnnxError> {
    let data = match &w.source {
        WeightSource::Values(v) => v.iter().map(|&x| f64::from(x)).collect(),
        source @ WeightSource::Initializer(_) => read_weight(file, source)?.into_iter().map(f64::from).collect(),
    };
    Ok(Const { elem: Elem::Float, shape: w.shape.clone(), data })
}

#[allow(clippy::too_many_arguments, reason = "what a conversion sees, piece by piece")]
fn run<'s>(
    entry: &ops::Entry,
    n: &NodeProto,
    index: usize,
    file: &OnnxFile,
    graph: &mut Graph,
    state: &mut State<'s>,
    operands: &[Operand],
    folding: bool,
) -> Result<Vec<Out>, String> {
    let origin = graph.add_origin(&node_name(n));
    let mut b = Builder::new(graph);
    b.origin = origin;
    let opset = file.opset_of(&n.domain);
    let mut cx = Cx { proto: n, index, opset, operands, b: &mut b, state, folding, looked: Default::default() };
    let outs = (entry.convert)(&mut cx)?;
    cx.check_all_looked_at()?;
    match b.take_error() {
        Some(e) => Err(e),
        None => Ok(outs),
    }
}

/// The operand of a final softmax over the classes.
fn before_softmax(file: &OnnxFile, graph: &Graph, output: &str, values: &Values) -> Option<NodeId> {
    let nodes = file.proto.graph.node.iter();
    let makers: BTreeMap<&str, &NodeProto> = nodes.filter_map(|n| Some((n.output.first()?.as_str(), n))).collect();
    let mut name = output;
    loop {
        let n = makers.get(name)?;
        match (n.op_type.as_str(), n.input.first()) {
            ("Identity", Some(input)) => name = input,
            ("Softmax" | "LogSoftmax", Some(input)) => match values.get(input) {
                Some(Slot::Ready(Operand::Node(id, Elem::Float))) => {
                    let (ty, old) = (graph.ty(*id), file.opset_of(&n.domain) < 13);
                    let axis = n.attribute.iter().find(|a| a.name == "axis").map_or(if old { 1 } else { -1 }, |a| a.i);
                    let axis = if axis < 0 { axis + ty.rank() as i64 } else { axis } as usize;
                    // Before opset 13 an axis stands for all that follow it, too.
                    let one = !old || axis + 1 == ty.rank();
                    return (ty.rank() > 1 && axis == class_dimension(ty) && one).then_some(*id);
                }
                _ => return None,
            },
            _ => return None,
        }
    }
}

/// What a file's ops tell about how it was exported.
fn advise(nodes: &[ImportedNode], state: &mut State<'_>) {
    let count = |op: &str| nodes.iter().filter(|n| n.op == op).count();
    let norms = count("BatchNormalization")
        + count("LayerNormalization")
        + count("InstanceNormalization")
        + count("GroupNormalization");
    if norms == 0 && count("Conv") >= 3 {
        state.note(FOLDED);
    }
}

/// The note on a file without normalisation.
pub(crate) const FOLDED: &str = "no BatchNormalization in this file: exporters fold it into Conv by default. If the \
    network had it, put it back with --rebn, or export with torch.onnx.export(..., dynamo=False, do_constant_folding=False, \
    training=torch.onnx.TrainingMode.PRESERVE), or with dynamo=True, optimize=False";

/// Reads a variable's initial values from the model.
pub fn read_weight(file: &OnnxFile, source: &Source) -> Result<Vec<f32>, OnnxError> {
    match source {
        Source::Values(v) => Ok(v.to_vec()),
        Source::Initializer(name) => {
            let t = file.initializer(name);
            tensor::read_f32(file, t.ok_or_else(|| OnnxError::Graph(format!("initializer \"{name}\" does not exist")))?)
        }
    }
}

/// A constant of integers, for conversions.
pub(crate) fn int_const(shape: Vec<usize>, data: Vec<f64>) -> Out {
    Out::Const(Const::ints(shape, data))
}
