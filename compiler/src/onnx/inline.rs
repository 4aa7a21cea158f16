//! Model-local functions: every call becomes the function's nodes, so that nothing behind this knows of functions.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{AttributeProto, FunctionProto, Message as _, ModelProto, NodeProto};

use crate::onnx::scopes::{graphs, graphs_mut};

/// Deepest nesting of calls.
const DEPTH: usize = 64;
/// Most nodes a model may have in the end: nested calls multiply.
const NODES: usize = 1 << 19;
/// Most bytes that bodies may take in a file, and most messages, attributes handed down included: those multiply too.
const BYTES: u64 = 1 << 28;
const MESSAGES: u64 = 1 << 21;

/// A function is called by domain, name and overload.
type Key<'a> = (&'a str, &'a str, &'a str);

fn domain(d: &str) -> &str {
    if d == "ai.onnx" { "" } else { d }
}

/// Replaces every call of a model-local function in the graph by its body. Values of a body are named
/// `first output/name`, its nodes `call/node`.
pub(crate) fn inline(model: &mut ModelProto) -> Result<(), String> {
    let functions = std::mem::take(&mut model.functions);
    let by_key: BTreeMap<Key<'_>, &FunctionProto> =
        functions.iter().map(|f| ((domain(&f.domain), f.name.as_str(), f.overload.as_str()), f)).collect();
    if by_key.len() < functions.len() {
        return Err("two of its functions have the same name".into());
    }
    if !model.graph.iter().flat_map(|g| &g.node).any(|n| calls(&by_key, n)) {
        return Ok(());
    }
    let mut opsets: BTreeMap<String, i64> =
        model.opset_import.iter().map(|o| (domain(&o.domain).to_string(), o.version)).collect();
    let graph = model.graph.mut_or_insert_default();
    let nodes = std::mem::take(&mut graph.node);
    let mut work =
        Inliner { by_key: &by_key, opsets: &mut opsets, made: 0, spare: Spare::new("its functions", BYTES, MESSAGES) };
    graph.node = work.expand(nodes, 0)?;
    let known: BTreeSet<String> = model.opset_import.iter().map(|o| domain(&o.domain).to_string()).collect();
    for (d, version) in opsets.into_iter().filter(|(d, _)| !known.contains(d)) {
        model.opset_import.push(onnx_protobuf::OperatorSetIdProto { domain: d, version, ..Default::default() });
    }
    Ok(())
}

fn find<'a>(functions: &BTreeMap<Key<'_>, &'a FunctionProto>, n: &NodeProto) -> Option<&'a FunctionProto> {
    functions.get(&(domain(&n.domain), n.op_type.as_str(), n.overload.as_str())).copied()
}

/// Whether a node is a call, or a graph in it holds one.
fn calls(functions: &BTreeMap<Key<'_>, &FunctionProto>, n: &NodeProto) -> bool {
    find(functions, n).is_some() || graphs(n).flat_map(|g| &g.node).any(|n| calls(functions, n))
}

struct Inliner<'a> {
    by_key: &'a BTreeMap<Key<'a>, &'a FunctionProto>,
    /// Opsets in use, by domain.
    opsets: &'a mut BTreeMap<String, i64>,
    made: usize,
    spare: Spare,
}

/// What bodies may still take.
pub(crate) struct Spare {
    /// What takes it, for people.
    what: &'static str,
    bytes: u64,
    messages: u64,
    /// As it was in the beginning.
    most: (u64, u64),
}

impl Spare {
    pub(crate) fn new(what: &'static str, bytes: u64, messages: u64) -> Spare {
        Spare { what, bytes, messages, most: (bytes, messages) }
    }

    pub(crate) fn spend(&mut self, bytes: u64, messages: u64) -> Result<(), String> {
        let left = (self.bytes.checked_sub(bytes), self.messages.checked_sub(messages));
        let (Some(bytes), Some(messages)) = left else {
            let (bytes, messages) = self.most;
            return Err(format!("{} make more than {bytes} bytes or {messages} nodes and attributes", self.what));
        };
        (self.bytes, self.messages) = (bytes, messages);
        Ok(())
    }
}

/// A node and what it holds.
pub(crate) fn messages(n: &NodeProto) -> u64 {
    1 + n.attribute.iter().map(messages_of).sum::<u64>()
}

fn messages_of(a: &AttributeProto) -> u64 {
    let graphs = a.g.iter().chain(&a.graphs);
    let inside = graphs.map(|g| 1 + g.initializer.len() as u64 + g.node.iter().map(messages).sum::<u64>());
    1 + (a.tensors.len() + a.type_protos.len()) as u64 + inside.sum::<u64>()
}

impl Inliner<'_> {
    fn expand(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Result<Vec<NodeProto>, String> {
        let mut out = Vec::with_capacity(nodes.len());
        for mut n in nodes {
            match find(self.by_key, &n) {
                None => {
                    self.made += 1;
                    for g in graphs_mut(&mut n) {
                        g.node = self.expand(std::mem::take(&mut g.node), depth)?;
                    }
                    out.push(n);
                }
                Some(f) if depth == DEPTH => {
                    return Err(format!(
                        "calls of function {} are nested more than {DEPTH} deep, or it calls itself",
                        f.name
                    ));
                }
                Some(f) => {
                    self.check_opsets(f)?;
                    let body = body(f, &n, &mut self.spare)?;
                    out.extend(self.expand(body, depth + 1)?);
                }
            }
            if self.made > NODES {
                return Err(format!("its functions make more than {NODES} nodes"));
            }
        }
        Ok(out)
    }

    /// A body means what its own opset says, which has to be the model's.
    fn check_opsets(&mut self, f: &FunctionProto) -> Result<(), String> {
        for o in &f.opset_import {
            let used = *self.opsets.entry(domain(&o.domain).to_string()).or_insert(o.version);
            if used != o.version {
                let d = if domain(&o.domain).is_empty() { "ONNX" } else { &o.domain };
                return Err(format!(
                    "function {} is written for opset {} of {d}, the model for {used}",
                    f.name, o.version
                ));
            }
        }
        Ok(())
    }
}

/// A function's nodes as a call makes them.
fn body(f: &FunctionProto, call: &NodeProto, spare: &mut Spare) -> Result<Vec<NodeProto>, String> {
    if call.input.len() > f.input.len() || call.output.len() > f.output.len() {
        return Err(format!("a call of function {} has more inputs or outputs than it", f.name));
    }
    let prefix = call.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for (i, name) in f.input.iter().enumerate() {
        names.insert(name, call.input.get(i).cloned().unwrap_or_default());
    }
    // A function may hand an input on as it is: then a node gives it its new name.
    let mut handed = Vec::new();
    for (i, name) in f.output.iter().enumerate() {
        let Some(to) = call.output.get(i).filter(|o| !o.is_empty()) else { continue };
        match names.get(name.as_str()) {
            Some(from) => handed.push((from.clone(), to.clone())),
            None => drop(names.insert(name, to.clone())),
        }
    }
    let given: BTreeMap<&str, &AttributeProto> = call.attribute.iter().map(|a| (a.name.as_str(), a)).collect();
    let defaults: BTreeMap<&str, &AttributeProto> = f.attribute_proto.iter().map(|a| (a.name.as_str(), a)).collect();
    let rename = |name: &mut String| {
        if !name.is_empty() {
            *name = names.get(name.as_str()).cloned().unwrap_or_else(|| format!("{prefix}/{name}"));
        }
    };
    let attribute = |name: &str| given.get(name).or_else(|| defaults.get(name)).copied();
    let title = if call.name.is_empty() { &prefix } else { &call.name };
    let mut out = Vec::with_capacity(f.node.len() + handed.len());
    for n in &f.node {
        spare.spend(n.compute_size(), messages(n))?;
        let mut n = n.clone();
        if !n.name.is_empty() {
            n.name = format!("{title}/{}", n.name);
        }
        renamed(&mut n, &rename, &attribute, spare, 0)?;
        out.push(n);
    }
    for (from, to) in handed {
        let (input, output) = (vec![from], vec![to]);
        out.push(NodeProto { op_type: "Identity".into(), input, output, ..Default::default() });
    }
    Ok(out)
}

/// Renames what a node reads and writes, its graphs' nodes included, and fills in the call's attributes.
pub(crate) fn renamed<'a>(
    n: &mut NodeProto,
    rename: &dyn Fn(&mut String),
    attribute: &dyn Fn(&str) -> Option<&'a AttributeProto>,
    spare: &mut Spare,
    depth: usize,
) -> Result<(), String> {
    if depth > DEPTH {
        return Err(format!("graphs are nested more than {DEPTH} deep"));
    }
    n.input.iter_mut().chain(&mut n.output).for_each(rename);
    let attributes = std::mem::take(&mut n.attribute);
    for mut a in attributes {
        if !a.ref_attr_name.is_empty() {
            // Without a value and a default, the attribute is left out.
            let Some(value) = attribute(&a.ref_attr_name) else { continue };
            spare.spend(value.compute_size(), messages_of(value))?;
            let mut value = value.clone();
            value.name = std::mem::take(&mut a.name);
            n.attribute.push(value);
            continue;
        }
        for g in a.g.as_mut().into_iter().chain(&mut a.graphs) {
            g.input.iter_mut().chain(&mut g.output).for_each(|v| rename(&mut v.name));
            g.initializer.iter_mut().for_each(|t| rename(&mut t.name));
            g.node.iter_mut().try_for_each(|n| renamed(n, rename, attribute, spare, depth + 1))?;
        }
        n.attribute.push(a);
    }
    Ok(())
}
