//! Trained weights back into the user's own graph.
//!
//! A plan folder holds the model without the values of its weights ([`skeleton`]) and, in its metadata, where each
//! weight is used. [`export`] puts values in: a weight that several uses shared in the file, but that was trained
//! apart, gets an initializer of its own, and every one the float type that the file reads there; batch normalisation,
//! dropout and draws of 0 or 1 are set to inference. What repairs put into the graph stays in it, or is folded away
//! where that is asked for; dropout put in is gone.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{
    AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
    attribute_proto::AttributeType, tensor_proto::DataLocation, tensor_proto::DataType,
};
use protobuf::Enum as _;

use crate::onnx::OnnxError;
use crate::onnx::chances::settle;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::{Source, VariableSource, reads};
use crate::onnx::repair::{fold, take_away, unmark};
use crate::onnx::tensor::{encode, read_f32, type_name};

/// Metadata key of a skeleton's weights: `slrc.weight.<n>` -> `name`, newline, uses as `node:slot` separated by spaces.
const WEIGHT_KEY: &str = "slrc.weight.";

/// The model without the values of its weights, serialized.
pub fn skeleton(file: &OnnxFile, sources: &BTreeMap<String, VariableSource>) -> Result<Vec<u8>, OnnxError> {
    let mut model = file.proto.clone();
    let initializer = |s: &'_ VariableSource| match &s.source {
        Source::Initializer(name) => Some(name.clone()),
        _ => None,
    };
    let trained: BTreeSet<String> = sources.values().filter_map(initializer).collect();
    // Values that something else than a weight's use reads must stay.
    let weight_uses: BTreeSet<(usize, usize)> = sources.values().flat_map(|s| s.uses.iter().copied()).collect();
    let mut read_otherwise: BTreeSet<String> = BTreeSet::new();
    for (i, n) in model.graph.node.iter().enumerate() {
        for (slot, name) in n.input.iter().enumerate() {
            let harmless = n.op_type == "Shape" || n.op_type == "Size" || n.op_type == "Identity";
            if !weight_uses.contains(&(i, slot)) && !harmless {
                read_otherwise.insert(name.clone());
            }
        }
        // Graphs of nodes that no output which is trained needs.
        read_otherwise.extend(reads(n)[n.input.len()..].iter().map(|name| name.to_string()));
    }
    let graph = model.graph.mut_or_insert_default();
    for t in &mut graph.initializer {
        if trained.contains(&t.name) && !read_otherwise.contains(&t.name) {
            clear_data(t);
        } else {
            hold(file, t)?;
        }
    }
    hold_in(file, &mut graph.node)?;
    for (i, (name, s)) in sources.iter().enumerate() {
        let uses: Vec<String> = s.uses.iter().map(|(n, slot)| format!("{n}:{slot}")).collect();
        model.metadata_props.push(StringStringEntryProto {
            key: format!("{WEIGHT_KEY}{i}"),
            value: format!("{name}\n{}", uses.join(" ")),
            ..Default::default()
        });
    }
    serialize(&model)
}

fn clear_data(t: &mut TensorProto) {
    t.raw_data.clear();
    t.float_data.clear();
    t.double_data.clear();
    t.int32_data.clear();
    t.external_data.clear();
    t.data_location = DataLocation::DEFAULT.into();
}

/// Puts data that was left in the file, or lies beside it, into the tensor.
fn hold(file: &OnnxFile, t: &mut TensorProto) -> Result<(), OnnxError> {
    if let Some(raw) = file.raw(t)?.map(|r| r.to_vec()) {
        clear_data(t);
        t.raw_data = raw;
    }
    Ok(())
}

/// The same for all tensors in attributes and in graphs of nodes, which are no deeper than the wire guard allows.
fn hold_in(file: &OnnxFile, nodes: &mut [NodeProto]) -> Result<(), OnnxError> {
    for a in nodes.iter_mut().flat_map(|n| &mut n.attribute) {
        let sparse = a.sparse_tensor.as_mut().into_iter().chain(&mut a.sparse_tensors);
        let parts = sparse.flat_map(|s| s.values.as_mut().into_iter().chain(s.indices.as_mut()));
        a.t.as_mut().into_iter().chain(&mut a.tensors).chain(parts).try_for_each(|t| hold(file, t))?;
        for g in a.g.as_mut().into_iter().chain(&mut a.graphs) {
            g.initializer.iter_mut().try_for_each(|t| hold(file, t))?;
            hold_in(file, &mut g.node)?;
        }
    }
    Ok(())
}

fn serialize(model: &ModelProto) -> Result<Vec<u8>, OnnxError> {
    model.write_to_bytes().map_err(|e| OnnxError::Graph(format!("the model cannot be written: {e}")))
}

/// A trained tensor.
pub struct Trained<'a> {
    /// Its name in the plan.
    pub name: &'a str,
    /// Extents.
    pub shape: &'a [usize],
    /// Row-major elements.
    pub data: &'a [f32],
}

/// What becomes of BatchNormalization that a repair put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Kept, for inference.
    Kept,
    /// Folded into the convolutions, so that the graph is the user's own. An error if there is none.
    Folded,
}

/// The model of a skeleton with trained values in it, for inference, serialized.
pub fn export(skeleton: &OnnxFile, trained: &[Trained<'_>], norms: Norms) -> Result<Vec<u8>, OnnxError> {
    let mut model = skeleton.proto.clone();
    let uses = read_uses(&model)?;
    model.metadata_props.retain(|p| !p.key.starts_with(WEIGHT_KEY));
    let graph = model.graph.mut_or_insert_default();
    let mut kept: Vec<TensorProto> = std::mem::take(&mut graph.initializer);
    kept.iter_mut().try_for_each(|t| hold(skeleton, t))?;
    hold_in(skeleton, &mut graph.node)?;
    let types = Types::of_weights(&skeleton.proto.graph);
    // What is in f32 until it is folded, too, and the type that it is written in.
    let mut written: BTreeMap<String, i32> = BTreeMap::new();
    for (name, places) in &uses {
        let values = trained.iter().find(|t| t.name == *name).ok_or_else(|| OnnxError::Tensor {
            name: name.clone(),
            reason: "the checkpoint does not hold it".into(),
        })?;
        let read = places.first().and_then(|&(node, slot)| graph.node.get(node)?.input.get(slot));
        written.insert(name.clone(), read.map_or(DataType::FLOAT.value(), |read| types.of(read)));
        let tensor = tensor(values);
        match kept.iter_mut().find(|t| t.name == *name) {
            Some(t) => *t = tensor,
            None => kept.push(tensor),
        }
        for &(node, slot) in places {
            let input = graph.node.get_mut(node).and_then(|n| n.input.get_mut(slot));
            *input.ok_or_else(|| {
                OnnxError::Graph(format!("weight \"{name}\" is used by a node that does not exist"))
            })? = name.clone();
        }
    }
    // A node that gave a weight its name, or its first values, has done its work.
    let as_weights: BTreeSet<(usize, usize)> = uses.values().flatten().copied().collect();
    for at in 0..graph.node.len() {
        let n = &graph.node[at];
        let Some(name) = n.output.first().filter(|o| uses.contains_key(*o)).cloned() else { continue };
        match n.op_type.as_str() {
            "Identity" => graph.node[at].op_type.clear(),
            "Constant" => set_apart(graph, at, &name, &as_weights),
            _ => {}
        }
    }
    graph.node.retain(|n| !n.op_type.is_empty());
    if norms == Norms::Folded && fold(skeleton, graph, &mut kept, &mut written)? == 0 {
        return Err(OnnxError::Graph("there is nothing to fold: the plan was not made with --rebn".into()));
    }
    take_away(graph);
    unmark(graph);
    settle(graph, &kept, skeleton.opset());
    let read: BTreeSet<String> = graph.node.iter().flat_map(reads).map(str::to_string).collect();
    let outputs: BTreeSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    kept.retain(|t| read.contains(&t.name) || outputs.contains(&t.name));
    kept.iter_mut().try_for_each(|t| written.get(&t.name).map_or(Ok(()), |&code| write_in(skeleton, t, code)))?;
    let present: BTreeSet<String> = kept.iter().map(|t| t.name.clone()).collect();
    // Old IR versions list initializers as inputs too; those that are gone must go there as well.
    let was_initializer: BTreeSet<String> = skeleton.proto.graph.initializer.iter().map(|t| t.name.clone()).collect();
    graph.input.retain(|i| !was_initializer.contains(&i.name) || present.contains(&i.name));
    graph.initializer = kept;
    graph.value_info.retain(|v| !present.contains(&v.name));
    graph.node.iter_mut().for_each(to_inference);
    serialize(&model)
}

/// Takes away the constant at `at`, whose name a weight has now; where something else reads it, it gets another name.
fn set_apart(graph: &mut GraphProto, at: usize, name: &str, as_weights: &BTreeSet<(usize, usize)>) {
    let mut new = format!("{name}@constant");
    while graph.node.iter().any(|n| n.input.contains(&new) || n.output.contains(&new)) {
        new.push('_');
    }
    let mut read = false;
    for (i, n) in graph.node.iter_mut().enumerate() {
        for (slot, input) in n.input.iter_mut().enumerate().filter(|(_, input)| *input == name) {
            if !as_weights.contains(&(i, slot)) {
                input.clone_from(&new);
                read = true;
            }
        }
    }
    if read {
        graph.node[at].output[0] = new;
    } else {
        graph.node[at].op_type.clear();
    }
}

fn read_uses(model: &ModelProto) -> Result<BTreeMap<String, Vec<(usize, usize)>>, OnnxError> {
    let bad = || OnnxError::Graph("the plan folder's model.onnx does not say where its weights are used".into());
    let mut out = BTreeMap::new();
    for p in model.metadata_props.iter().filter(|p| p.key.starts_with(WEIGHT_KEY)) {
        let (name, uses) = p.value.rsplit_once('\n').ok_or_else(bad)?;
        let uses = uses
            .split(' ')
            .filter(|u| !u.is_empty())
            .map(|u| u.split_once(':').and_then(|(n, s)| Some((n.parse().ok()?, s.parse().ok()?))).ok_or_else(bad))
            .collect::<Result<Vec<_>, _>>()?;
        out.insert(name.to_string(), uses);
    }
    if out.is_empty() { Err(bad()) } else { Ok(out) }
}

/// Element types of the values that weights are read as.
struct Types<'a> {
    initializers: BTreeMap<&'a str, i32>,
    makers: BTreeMap<&'a str, &'a NodeProto>,
}

impl<'a> Types<'a> {
    fn of_weights(graph: &'a GraphProto) -> Types<'a> {
        let initializers = graph.initializer.iter().map(|t| (t.name.as_str(), t.data_type)).collect();
        let passes = |n: &&NodeProto| matches!(n.op_type.as_str(), "Constant" | "Identity" | "Cast" | "CastLike");
        let made = |n: &'a NodeProto| Some((n.output.first()?.as_str(), n));
        Types { initializers, makers: graph.node.iter().filter(passes).filter_map(made).collect() }
    }

    /// That of `value`, an ONNX code; where the file does not say, f32.
    fn of(&self, value: &str) -> i32 {
        let mut at = value;
        // A damaged file may hold a circle.
        for _ in 0..=self.makers.len() {
            if let Some(&code) = self.initializers.get(at) {
                return code;
            }
            let Some(n) = self.makers.get(at) else { break };
            let attribute = |name: &str| n.attribute.iter().find(|a| a.name == name);
            let next = match n.op_type.as_str() {
                "Constant" => return attribute("value").map_or(DataType::FLOAT.value(), |a| a.t.data_type),
                "Cast" => return attribute("to").map_or(DataType::FLOAT.value(), |a| a.i as i32),
                "CastLike" => n.input.get(1),
                _ => n.input.first(),
            };
            let Some(next) = next else { break };
            at = next;
        }
        DataType::FLOAT.value()
    }
}

fn tensor(t: &Trained<'_>) -> TensorProto {
    TensorProto {
        name: t.name.to_string(),
        dims: t.shape.iter().map(|&d| d as i64).collect(),
        data_type: DataType::FLOAT.value(),
        raw_data: t.data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// Brings a tensor of f32 into another type.
fn write_in(file: &OnnxFile, t: &mut TensorProto, code: i32) -> Result<(), OnnxError> {
    if code == t.data_type {
        return Ok(());
    }
    t.raw_data = encode(code, &read_f32(file, t)?).ok_or_else(|| OnnxError::Tensor {
        name: t.name.clone(),
        reason: format!("what it was trained to does not fit the file's {}", type_name(code)),
    })?;
    t.data_type = code;
    Ok(())
}

/// Sets a node that behaves differently in training to inference.
fn to_inference(n: &mut NodeProto) {
    match n.op_type.as_str() {
        "BatchNormalization" => {
            n.output.truncate(1);
            if let Some(a) = n.attribute.iter_mut().find(|a| a.name == "training_mode") {
                *a = AttributeProto {
                    name: "training_mode".into(),
                    type_: AttributeType::INT.into(),
                    i: 0,
                    ..Default::default()
                };
            }
        }
        "Dropout" if n.input.len() > 2 => n.input.truncate(2),
        _ => {}
    }
}
