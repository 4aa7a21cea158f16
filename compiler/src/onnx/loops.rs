//! `Loop`, `Scan` and `SequenceMap` nodes whose steps can be counted at import: their bodies, step after step, stand in
//! the place of the node.
//!
//! A node of the body becomes one node a step, named `name/step`; what does not depend on the step stands there once.
//! Weights that steps read stay one weight ([`crate::onnx::file::Placed::shared`]).

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto};

use crate::onnx::import::reads;
use crate::onnx::inline::{messages, renamed};
use crate::onnx::place::{Placing, Work};
use crate::onnx::protos::{axis_of, call, flag, identity, int_attribute, int_of, integer, integers, is_onnx_op, named};
use crate::onnx::scopes::graphs;

/// Most steps of a loop.
const STEPS: u64 = 1 << 12;

/// What a node of the model is steered by: values that must be known where it is to be put in place.
pub(crate) fn steers(n: &NodeProto) -> Vec<&str> {
    let input = |i: usize| n.input.get(i).map(String::as_str).filter(|s| !s.is_empty());
    let all = || n.input.iter().map(String::as_str).collect();
    if !is_onnx_op(n) {
        return Vec::new();
    }
    match n.op_type.as_str() {
        "If" => input(0).into_iter().collect(),
        "Loop" => {
            let after = body(n).and_then(|b| b.output.first()).map(|v| v.name.as_str());
            [input(0), input(1), after].into_iter().flatten().collect()
        }
        // The extents of what it walks along.
        "Scan" => {
            let states = n.input.len().saturating_sub(scanned(n));
            n.input.iter().skip(states).map(String::as_str).collect()
        }
        "SplitToSequence" => all(),
        "SequenceAt" | "SequenceErase" => input(1).into_iter().collect(),
        "SequenceInsert" => input(2).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Inputs of a body, and what the node gives them before its first step.
pub(crate) fn fed(n: &NodeProto) -> Vec<(&str, &str)> {
    let Some(b) = loop_body(n) else { return Vec::new() };
    b.input.iter().zip(&n.input[lengths(n, b)..]).map(|(formal, from)| (formal.name.as_str(), from.as_str())).collect()
}

/// Inputs of a body, and what a step before gives them.
pub(crate) fn carried_into(n: &NodeProto) -> Vec<(&str, &str)> {
    let Some(b) = loop_body(n) else { return Vec::new() };
    let (formals, results) = match n.op_type.as_str() {
        "Loop" => (&b.input[b.input.len().min(1)..], &b.output[..b.output.len().min(n.input.len().max(1) - 1)]),
        "Scan" => {
            let states = n.input.len().saturating_sub(scanned(n).saturating_add(lengths(n, b))).min(b.output.len());
            (&b.input[..], &b.output[..states])
        }
        _ => return Vec::new(),
    };
    formals.iter().zip(results).map(|(formal, from)| (formal.name.as_str(), from.name.as_str())).collect()
}

/// Whether a node is a loop with a body.
pub(crate) fn is_loop(n: &NodeProto) -> bool {
    loop_body(n).is_some()
}

fn loop_body(n: &NodeProto) -> Option<&GraphProto> {
    let is = is_onnx_op(n) && matches!(n.op_type.as_str(), "Loop" | "Scan" | "SequenceMap");
    if is { body(n) } else { None }
}

fn body(n: &NodeProto) -> Option<&GraphProto> {
    n.attribute.iter().find(|a| a.name == "body")?.g.as_ref()
}

/// Inputs of a node before those that its body gets: a `Scan` of opset 8 has lengths of sequences there.
fn lengths(n: &NodeProto, body: &GraphProto) -> usize {
    usize::from(n.op_type == "Scan" && n.input.len() == body.input.len() + 1)
}

fn scanned(n: &NodeProto) -> usize {
    usize::try_from(int_attribute(n, "num_scan_inputs").unwrap_or(0)).unwrap_or(usize::MAX)
}

/// A loop under way.
pub(crate) struct Steps {
    node: Box<NodeProto>,
    kind: Kind,
    /// Nodes of the body that differ from step to step.
    nodes: Vec<NodeProto>,
    /// Names that these make, graphs within included.
    makes: BTreeSet<String>,
    done: u64,
    /// What goes from step to step, by its names now.
    carried: Vec<String>,
    /// What every step adds to, one name a step.
    stacked: Vec<Vec<String>>,
    /// Nodes that were in place before.
    before: usize,
}

enum Kind {
    Loop {
        most: Option<u64>,
        /// Whether there is another step, by the value's name now.
        condition: Option<String>,
    },
    Scan {
        steps: u64,
        /// By input: its name, the axis along which it is walked, and whether from the end.
        along: Vec<(String, i64, bool)>,
        /// In the form of opset 8, whose body is of one sample.
        samples: Option<Samples>,
    },
    Map {
        /// By input: its elements, one a step, or what all steps get.
        each: Vec<Given>,
        steps: u64,
    },
}

/// Samples of a batch, one after the other.
struct Samples {
    count: u64,
    /// States of all samples before the first step.
    starts: Vec<String>,
    /// States of each sample behind its last step.
    ends: Vec<Vec<String>>,
}

impl Samples {
    /// Nodes that take sample `i` of each start, and the names that they give.
    fn start(&self, i: u64, p: &mut Placing<'_>) -> (Vec<NodeProto>, Vec<String>) {
        let mut nodes = Vec::new();
        let mut names = Vec::with_capacity(self.starts.len());
        for from in &self.starts {
            let (at, to) = (p.helper(from, "at", i), p.helper(from, "sample", i));
            nodes.push(integer(&at, i as i64));
            nodes.push(call("Gather", &[from, &at], &[&to], vec![int_of("axis", 0)]));
            names.push(to);
        }
        (nodes, names)
    }
}

enum Given {
    Elements(Vec<String>),
    Whole(String),
}

/// A loop, and nodes that all its steps share.
type Begun = (Box<Steps>, Vec<NodeProto>);

impl Steps {
    /// A loop before its first step, and the nodes that all its steps share. What stands in the way is an error.
    pub(crate) fn begin(node: Box<NodeProto>, p: &mut Placing<'_>) -> Result<Begun, (Box<NodeProto>, String)> {
        match Steps::try_begin(&node, p) {
            Ok((mut kind, mut carried, stacked)) => {
                let before = p.out.len();
                let (mut same, nodes) = divide(&node);
                for start in &mut carried {
                    same.extend(zeros(start, p));
                }
                if let Kind::Scan { samples: Some(samples), .. } = &mut kind {
                    samples.starts.clone_from(&carried);
                    p.shared.extend(carried.iter().cloned());
                }
                let makes = nodes.iter().flat_map(made).map(str::to_string).collect();
                p.shared.extend(nodes.iter().flat_map(reads).map(str::to_string));
                let stacked = vec![Vec::new(); stacked];
                Ok((Box::new(Steps { node, kind, nodes, makes, done: 0, carried, stacked, before }), same))
            }
            Err(e) => Err((node, e)),
        }
    }

    fn try_begin(n: &NodeProto, p: &mut Placing<'_>) -> Result<(Kind, Vec<String>, usize), String> {
        let b = loop_body(n).ok_or("it has no body")?;
        let fits = |inputs: usize, outputs: usize| {
            if b.input.len() == inputs && b.output.len() == outputs {
                Ok(())
            } else {
                let (i, o) = (b.input.len(), b.output.len());
                Err(format!("its body has {i} inputs and {o} outputs where the node asks for {inputs} and {outputs}"))
            }
        };
        match n.op_type.as_str() {
            "Loop" => {
                let states = n.input.len().saturating_sub(2);
                let stacked = n.output.len().checked_sub(states).ok_or("it has fewer outputs than states")?;
                fits(states + 2, n.output.len() + 1)?;
                let most = match named(n, 0) {
                    None => None,
                    Some(name) => Some(p.number(name).ok_or("the number of its steps depends on the data")?.max(0.0)),
                };
                if most.is_some_and(f64::is_nan) {
                    return Err("the number of its steps is none".into());
                }
                let condition = named(n, 1).map(str::to_string);
                let kind = Kind::Loop { most: most.map(|m| m as u64), condition };
                Ok((kind, n.input.get(2..).unwrap_or_default().to_vec(), stacked))
            }
            "Scan" => {
                // Opset 8: samples apart, each with a length, all along axis 1.
                let apart = p.opset() < 9;
                if apart && named(n, 0).is_some() {
                    return Err("sequences of lengths of their own are not supported".into());
                }
                let inputs = n.input.get(usize::from(apart)..).unwrap_or_default();
                let count = scanned(n);
                let states = inputs.len().checked_sub(count).ok_or("it has fewer inputs than it walks along")?;
                let stacked = n.output.len().checked_sub(states).ok_or("it has fewer outputs than states")?;
                fits(inputs.len(), n.output.len())?;
                let axes = axis_of(n, "scan_input_axes");
                let directions = axis_of(n, if apart { "directions" } else { "scan_input_directions" });
                let mut steps: Option<u64> = None;
                let mut batch: Option<u64> = None;
                let mut along = Vec::with_capacity(count);
                for (i, name) in inputs[states..].iter().enumerate() {
                    let shape = p.shape(name).ok_or("the length of what it walks along is not known")?;
                    let axis = if apart { 1 } else { axes(i) };
                    if apart && shape.first().is_none_or(|&n| *batch.get_or_insert(n as u64) != n as u64) {
                        return Err("what it walks along differs in its batch".into());
                    }
                    let at = if axis < 0 { axis + shape.len() as i64 } else { axis };
                    let extent = usize::try_from(at).ok().and_then(|a| shape.get(a)).copied();
                    let extent = extent.ok_or_else(|| format!("axis {axis} does not exist in {shape:?}"))? as u64;
                    if *steps.get_or_insert(extent) != extent {
                        return Err("what it walks along differs in length".into());
                    }
                    along.push((name.clone(), axis, directions(i) != 0));
                }
                let steps = steps.ok_or("it walks along nothing")?;
                if apart && steps == 0 {
                    return Err("without a step, what its steps put together has no shape".into());
                }
                let samples = |count| Samples { count, starts: Vec::new(), ends: vec![Vec::new(); states] };
                let kind = Kind::Scan { steps, along, samples: batch.map(samples) };
                Ok((kind, inputs[..states].to_vec(), stacked))
            }
            _ => {
                fits(n.input.len(), n.output.len())?;
                let mut steps: Option<u64> = None;
                let mut each = Vec::with_capacity(n.input.len());
                for (i, name) in n.input.iter().enumerate() {
                    match p.sequences.get(name) {
                        Some(elements) => {
                            let count = elements.len() as u64;
                            if *steps.get_or_insert(count) != count {
                                return Err("its sequences differ in length".into());
                            }
                            p.spare.spend(0, count)?;
                            each.push(Given::Elements(elements.to_vec()));
                        }
                        None if i == 0 => return Err("the elements of its sequence are not known".into()),
                        None => each.push(Given::Whole(name.clone())),
                    }
                }
                let steps = steps.ok_or("it has no sequence")?;
                Ok((Kind::Map { each, steps }, Vec::new(), n.output.len()))
            }
        }
    }

    /// Whether there is another step.
    fn goes_on(&self, p: &Placing<'_>) -> Result<bool, String> {
        let more = match &self.kind {
            Kind::Scan { steps, samples: Some(s), .. } => self.done < steps.saturating_mul(s.count),
            Kind::Scan { steps, .. } | Kind::Map { steps, .. } => self.done < *steps,
            Kind::Loop { most, condition } => {
                if most.is_some_and(|m| self.done >= m) {
                    return Ok(false);
                }
                let go = match condition {
                    None => true,
                    Some(name) => p.number(name).ok_or("whether it goes on depends on the data")? != 0.0,
                };
                if go && condition.is_none() && most.is_none() {
                    return Err("it does not end".into());
                }
                go
            }
        };
        if more && self.done == STEPS {
            return Err(format!("more than {STEPS} steps cannot be unrolled"));
        }
        Ok(more)
    }

    /// The next step, or the end, whose nodes come next.
    pub(crate) fn advance(mut self: Box<Self>, p: &mut Placing<'_>) {
        let next = self.goes_on(p).and_then(|more| if more { self.step(p) } else { self.end(p) }.map(|n| (more, n)));
        match next {
            Ok((true, nodes)) => {
                p.left.push(Work::Steps(self));
                p.next(nodes);
            }
            Ok((false, nodes)) => {
                p.unrolled.push((self.node, self.done));
                p.next(nodes);
            }
            Err(reason) => {
                p.out.truncate(self.before);
                p.refuse(self.node, reason);
            }
        }
    }

    /// Nodes of a step.
    fn step(&mut self, p: &mut Placing<'_>) -> Result<Vec<NodeProto>, String> {
        let Some(b) = loop_body(&self.node) else { return Ok(Vec::new()) };
        let i = self.done;
        let mut first = Vec::new();
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        let formal = |k: usize| b.input.get(k).map(|v| v.name.clone()).unwrap_or_default();
        match &self.kind {
            Kind::Loop { .. } => {
                let (count, on) = (p.fresh(&formal(0), i), p.fresh(&formal(1), i));
                first.extend([integer(&count, i as i64), flag(&on, true)]);
                names.extend([(formal(0), count), (formal(1), on)]);
                names.extend(self.carried.iter().enumerate().map(|(k, now)| (formal(k + 2), now.clone())));
            }
            Kind::Scan { steps, along, samples } => {
                let (sample, i) = (i / steps, i % steps);
                if let Some(samples) = samples.as_ref().filter(|_| i == 0) {
                    (first, self.carried) = samples.start(sample, p);
                }
                names.extend(self.carried.iter().enumerate().map(|(k, now)| (formal(k), now.clone())));
                for (k, (name, axis, reversed)) in along.iter().enumerate() {
                    let formal = formal(self.carried.len() + k);
                    let (at, element) = (p.helper(&formal, "at", self.done), p.fresh(&formal, self.done));
                    first.push(integer(&at, (if *reversed { steps - 1 - i } else { i }) as i64));
                    p.shared.insert(name.clone());
                    let (mut from, mut axis) = (name.clone(), *axis);
                    if samples.is_some() {
                        let (which, one) = (p.helper(name, "at", self.done), p.helper(name, "sample", self.done));
                        first.push(integer(&which, sample as i64));
                        first.push(call("Gather", &[name, &which], &[&one], vec![int_of("axis", 0)]));
                        (from, axis) = (one, 0);
                    }
                    first.push(call("Gather", &[&from, &at], &[&element], vec![int_of("axis", axis)]));
                    names.insert(formal, element);
                }
            }
            Kind::Map { each, .. } => {
                for (k, given) in each.iter().enumerate() {
                    let now = match given {
                        Given::Elements(e) => e.get(i as usize).cloned().unwrap_or_default(),
                        Given::Whole(name) => name.clone(),
                    };
                    names.insert(formal(k), now);
                }
            }
        }
        for name in &self.makes {
            let new = p.fresh(name, i);
            names.insert(name.clone(), new);
        }
        let rename = |name: &mut String| {
            if let Some(new) = names.get(name.as_str()) {
                name.clone_from(new);
            }
        };
        let mut nodes = first;
        for n in &self.nodes {
            p.spare.spend(onnx_protobuf::Message::compute_size(n), messages(n))?;
            let mut n = n.clone();
            if !n.name.is_empty() {
                n.name = format!("{}/{i}", n.name);
            }
            renamed(&mut n, &rename, &|_| None, &mut p.spare, 0)?;
            nodes.push(n);
        }
        p.affordable(1 + nodes.len() + names.len() + b.output.len())?;
        let mut results = b.output.iter().map(|v| {
            let mut name = v.name.clone();
            rename(&mut name);
            name
        });
        if let Kind::Loop { condition, .. } = &mut self.kind {
            *condition = results.next();
        }
        let results: Vec<String> = results.collect();
        let (carried, stacked) = results.split_at(self.carried.len().min(results.len()));
        self.carried = carried.to_vec();
        self.stacked.iter_mut().zip(stacked).for_each(|(all, one)| all.push(one.clone()));
        self.done += 1;
        if let Kind::Scan { steps, samples: Some(samples), .. } = &mut self.kind
            && self.done.is_multiple_of(*steps)
        {
            samples.ends.iter_mut().zip(&self.carried).for_each(|(all, one)| all.push(one.clone()));
        }
        Ok(nodes)
    }

    /// Nodes that give the node's outputs their names.
    fn end(&mut self, p: &mut Placing<'_>) -> Result<Vec<NodeProto>, String> {
        let n = &self.node;
        let mut nodes = Vec::new();
        if let Kind::Scan { steps, samples: Some(samples), .. } = &self.kind {
            for (parts, to) in samples.ends.iter().zip(&n.output).filter(|(_, to)| !to.is_empty()) {
                nodes.extend(p.stack(parts, 0, to)?);
            }
            // Steps of a sample, then samples.
            for (k, to) in n.output.iter().skip(samples.ends.len()).enumerate().filter(|(_, to)| !to.is_empty()) {
                let mut each = Vec::new();
                for (i, parts) in self.stacked[k].chunks(usize::try_from(*steps).unwrap_or(usize::MAX)).enumerate() {
                    each.push(p.helper(to, "sample", i as u64));
                    nodes.extend(p.stack(parts, 0, &each[i])?);
                }
                nodes.extend(p.stack(&each, 0, to)?);
            }
            return Ok(nodes);
        }
        for (from, to) in self.carried.iter().zip(&n.output).filter(|(_, to)| !to.is_empty()) {
            nodes.push(identity(from, to));
        }
        let (axes, directions) = (axis_of(n, "scan_output_axes"), axis_of(n, "scan_output_directions"));
        for (k, to) in n.output.iter().skip(self.carried.len()).enumerate().filter(|(_, to)| !to.is_empty()) {
            let mut parts = std::mem::take(&mut self.stacked[k]);
            if let Kind::Map { .. } = self.kind {
                p.sequences.insert(to, parts, &mut p.spare)?;
                continue;
            }
            if parts.is_empty() {
                return Err("without a step, what its steps put together has no shape".into());
            }
            if matches!(self.kind, Kind::Scan { .. }) && directions(k) != 0 {
                parts.reverse();
            }
            let axis = if matches!(self.kind, Kind::Scan { .. }) { axes(k) } else { 0 };
            nodes.extend(p.stack(&parts, axis, to)?);
        }
        Ok(nodes)
    }
}

/// Nodes of a body that all steps share, and those that depend on the step.
fn divide(n: &NodeProto) -> (Vec<NodeProto>, Vec<NodeProto>) {
    let Some(b) = loop_body(n) else { return (Vec::new(), Vec::new()) };
    let mut changing: BTreeSet<&str> = b.input.iter().map(|v| v.name.as_str()).collect();
    let (mut same, mut differ) = (Vec::new(), Vec::new());
    for n in &b.node {
        if reads(n).iter().any(|name| changing.contains(name)) {
            changing.extend(n.output.iter().map(String::as_str).filter(|o| !o.is_empty()));
            differ.push(n.clone());
        } else {
            same.push(n.clone());
        }
    }
    (same, differ)
}

/// A state that begins with zeros from the file is none of the network's weights: its new name, and nodes that make it.
fn zeros(name: &mut String, p: &mut Placing<'_>) -> Vec<NodeProto> {
    let Some(shape) = p.zero_weight(name) else { return Vec::new() };
    let (extents, new) = (p.helper(name, "extents", 0), p.helper(name, "zeros", 0));
    let shape = shape.into_iter().map(|n| n as i64).collect();
    *name = new;
    vec![integers(&extents, shape), call("ConstantOfShape", &[&extents], &[name], Vec::new())]
}

/// Names that a node makes, its graphs included.
fn made(n: &NodeProto) -> Vec<&str> {
    let mut out: Vec<&str> = n.output.iter().map(String::as_str).filter(|o| !o.is_empty()).collect();
    for g in graphs(n) {
        out.extend(g.input.iter().map(|v| v.name.as_str()));
        out.extend(g.initializer.iter().map(|t| t.name.as_str()));
        out.extend(g.node.iter().flat_map(made));
    }
    out
}
