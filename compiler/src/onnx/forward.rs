//! A model as a function of its inputs: what conformance tests compare with other runtimes.
//!
//! The same conversions as in [`crate::onnx::import`], of every output at once; nothing is said of batches, losses or
//! what is trained.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputId, InputKind, NodeId};
use crate::ir::types::{DType, Type};
use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::{Slot, Values, VariableSource, convert_all, needed_nodes, read_initializers, reads};
use crate::onnx::node::{Operand, State};
use crate::onnx::place::put;
use crate::onnx::tensor::{self, Const, Elem};

/// What is said of a graph input.
#[derive(Clone, Debug)]
pub enum Given {
    /// Data of these extents.
    Data(Elem, Vec<usize>),
    /// A value that is known now, as shapes and axes have to be.
    Known(Const),
}

/// An output.
#[derive(Clone, Debug)]
pub enum Value {
    /// Computed.
    Node(NodeId, Elem),
    /// Known at import.
    Known(Const),
}

/// A model as a graph.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The graph, without roots.
    pub graph: Graph,
    /// Inputs that are data, by name.
    pub inputs: BTreeMap<String, InputId>,
    /// The model's outputs, in order.
    pub outputs: Vec<Value>,
    /// Where initial values of variables are, by name.
    pub sources: BTreeMap<String, VariableSource>,
}

/// Imports every output. Inputs that `given` does not name are left out, as optional inputs are.
pub fn forward(file: &OnnxFile, given: &BTreeMap<String, Given>) -> Result<Forward, OnnxError> {
    let needed = needed(file);
    let proto = &file.proto.graph;
    let outputs = proto.output.iter().map(|o| o.name.as_str());
    let used = needed.iter().flat_map(|&i| reads(&proto.node[i])).chain(outputs);
    let mut values = Values::new();
    read_initializers(file, &used.collect(), &mut values)?;
    let mut graph = Graph::new("forward");
    let mut inputs = BTreeMap::new();
    for (name, given) in given {
        let operand = match given {
            Given::Known(c) => Operand::Const(c.clone()),
            Given::Data(elem, shape) => {
                let dtype = match elem {
                    Elem::Float => DType::F32,
                    Elem::Int => DType::I32,
                    Elem::Bool => DType::U8,
                };
                let ty = Type::new(dtype, shape.clone());
                let id = graph.add_input(Input { name: name.clone(), kind: InputKind::Data, ty });
                inputs.insert(name.clone(), id);
                Operand::Node(Builder::new(&mut graph).input(id), *elem)
            }
        };
        values.insert(name.clone(), Slot::Ready(operand));
    }
    let taken = put(file, &graph, &values);
    let proto = &taken.file.proto.graph;
    let none = BTreeSet::new();
    let mut state = State::new(&taken.file, &none, &[], None);
    convert_all(&taken.file, &self::needed(&taken.file), &mut graph, &mut state, &mut values)?;
    let output = |name: &str| match values.get(name) {
        Some(Slot::Ready(Operand::Node(id, elem))) => Ok(Value::Node(*id, *elem)),
        Some(Slot::Ready(Operand::Const(c))) => Ok(Value::Known(c.clone())),
        Some(Slot::Ready(Operand::Weight(w))) => {
            let t = taken.file.initializer(&w.name);
            let t = t.ok_or_else(|| OnnxError::Graph(format!("output \"{name}\" is another name for a weight")))?;
            tensor::read_numbers(file, t).map(Value::Known)
        }
        Some(Slot::Unavailable(what)) => Err(OnnxError::Graph(format!("slrc does not compute {what}"))),
        Some(Slot::Ready(Operand::Absent) | Slot::Failed) | None => {
            Err(OnnxError::Graph(format!("output \"{name}\" is not computed")))
        }
    };
    let outputs = proto.output.iter().map(|o| o.name.as_str()).filter(|n| !n.is_empty());
    let outputs = outputs.map(output).collect::<Result<_, _>>()?;
    Ok(Forward { graph, inputs, outputs, sources: state.sources })
}

/// Nodes that any output depends on.
fn needed(file: &OnnxFile) -> Vec<usize> {
    let graph = &file.proto.graph;
    let each = graph.output.iter().flat_map(|o| needed_nodes(&graph.node, &o.name));
    each.collect::<BTreeSet<usize>>().into_iter().collect()
}
