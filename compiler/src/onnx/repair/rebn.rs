//! BatchNormalization put back behind convolutions, the function in inference unchanged.
//!
//! The convolution keeps its weights and gives up its bias. The BatchNormalization has scale 1, the bias as its bias,
//! running mean 0 and running variance 1 - epsilon, so that with running statistics it adds the bias and nothing else.
//! In training it normalises by the batch from the first step on, as it would have had it never been folded; but the
//! scales that folding multiplied into the weights stay there, where the normalisation divides them out again.
//!
//! All of these are of the type of the convolution's weight. In f16 and bf16 1 - epsilon is 1, which is off by less
//! than either rounds.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::type_proto::{Tensor, Value};
use onnx_protobuf::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_shape_proto::Dimension,
};

use crate::nearest::nearest;
use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::folded::{Sign, folded, has_own_weight, is_convolution, is_normalised};
use crate::onnx::links::Links;
use crate::onnx::node::node_name;
use crate::onnx::repair::{Names, REBN, Rebn, mark};
use crate::onnx::tensor::encode;

/// PyTorch's, in the convention of ONNX: the weight of the old running statistics.
const MOMENTUM: f32 = 0.9;
const EPSILON: f32 = 1e-5;
/// Most channels of a convolution: a damaged file may say anything.
const MOST_CHANNELS: i64 = 1 << 20;
/// The opset from which on BatchNormalization has the form that is written here.
const OLDEST_OPSET: i64 = 7;
/// The IR version from which on initializers need not be graph inputs.
const FREE_INITIALIZERS: i64 = 4;

/// Puts BatchNormalization back; says what was done.
pub(super) fn rebn(file: &mut OnnxFile, which: &Rebn) -> Result<String, OnnxError> {
    if file.opset() < OLDEST_OPSET {
        return bad(format!(
            "the model uses opset {}, and BatchNormalization can be put in from opset {OLDEST_OPSET} on; convert the \
             model with onnx.version_converter",
            file.opset()
        ));
    }
    let (nodes, why) = chosen(&file.proto.graph, which)?;
    let listed = file.proto.ir_version < FREE_INITIALIZERS;
    let graph = file.proto.graph.mut_or_insert_default();
    let mut names = Names::of(graph);
    let weights = {
        let links = Links::new(graph);
        let of = |&i: &usize| Ok((i, weight_of(&graph.node[i], &links)?));
        nodes.iter().map(of).collect::<Result<BTreeMap<usize, Weight>, OnnxError>>()?
    };
    let old = std::mem::take(&mut graph.node);
    for (i, mut conv) in old.into_iter().enumerate() {
        let norm = weights.get(&i).map(|&weight| put_behind(&mut conv, weight, graph, &mut names, listed));
        graph.node.push(conv);
        graph.node.extend(norm);
    }
    let s = if nodes.len() == 1 { "" } else { "s" };
    Ok(format!("rebn: BatchNormalization behind {} convolution{s}, {why}", nodes.len()))
}

fn bad<T>(reason: String) -> Result<T, OnnxError> {
    Err(OnnxError::Graph(format!("rebn: {reason}")))
}

/// Indices of the convolutions, and in words why they.
fn chosen(graph: &GraphProto, which: &Rebn) -> Result<(BTreeSet<usize>, &'static str), OnnxError> {
    match which {
        Rebn::Found => match folded(graph) {
            Some(found) => {
                let why = match found.sign {
                    Sign::Names => "by names that exporters give where they fold",
                    Sign::Form => "by the form of the network",
                };
                Ok((found.nodes.into_iter().collect(), why))
            }
            None => {
                bad("no convolution seems to have had a BatchNormalization; name some, as in --rebn=conv1,conv2".into())
            }
        },
        Rebn::Named(list) => {
            let (links, mut convolutions) = (Links::new(graph), BTreeMap::new());
            for (i, n) in graph.node.iter().enumerate().filter(|(_, n)| is_convolution(n)) {
                convolutions.entry(node_name(n)).or_insert(i);
            }
            let nodes = list.iter().map(|name| named(graph, &links, &convolutions, name));
            Ok((nodes.collect::<Result<_, _>>()?, "as named"))
        }
    }
}

/// `convolutions` are the graph's by name, the first of each.
fn named(
    graph: &GraphProto,
    links: &Links<'_>,
    convolutions: &BTreeMap<String, usize>,
    name: &str,
) -> Result<usize, OnnxError> {
    let Some(&at) = convolutions.get(name) else {
        let meant = nearest(name, convolutions.keys().map(String::as_str));
        let meant = meant.map_or(String::new(), |n| format!("; did you mean \"{n}\"?"));
        return bad(format!("the model has no convolution \"{name}\"{meant}"));
    };
    if is_normalised(links, at) {
        return bad(format!("a normalisation follows convolution \"{name}\" already"));
    }
    if !has_own_weight(links, &graph.node[at]) {
        return bad(format!(
            "the weight of convolution \"{name}\" is no tensor of the file in float16, bfloat16, float32 or float64"
        ));
    }
    Ok(at)
}

/// Takes the convolution's bias, and makes the BatchNormalization whose result has the name that the convolution's had.
fn put_behind(
    conv: &mut NodeProto,
    weight: Weight,
    graph: &mut GraphProto,
    names: &mut Names,
    listed: bool,
) -> NodeProto {
    let name = node_name(conv);
    let mut new = |what: &str, value: f32| {
        let tensor_name = names.new_name(format!("{name}.bn.{what}"));
        let values = vec![value; usize::try_from(weight.channels).unwrap_or(0)];
        graph.initializer.push(TensorProto {
            name: tensor_name.clone(),
            dims: vec![weight.channels],
            data_type: weight.code,
            raw_data: encode(weight.code, &values).unwrap_or_default(),
            ..Default::default()
        });
        if listed {
            graph.input.push(listing(&tensor_name, weight));
        }
        tensor_name
    };
    let scale = new("weight", 1.0);
    let bias = match conv.input.get(2).filter(|b| !b.is_empty()) {
        Some(bias) => bias.clone(),
        None => new("bias", 0.0),
    };
    let mean = new("running_mean", 0.0);
    let variance = new("running_var", 1.0 - EPSILON);
    conv.input.truncate(2);
    let result = std::mem::take(&mut conv.output[0]);
    conv.output[0] = names.new_name(format!("{result}.conv"));
    let mut norm = NodeProto {
        name: names.new_name(format!("{name}.bn")),
        op_type: "BatchNormalization".into(),
        input: vec![conv.output[0].clone(), scale, bias, mean, variance],
        output: vec![result],
        attribute: vec![float("epsilon", EPSILON), float("momentum", MOMENTUM)],
        ..Default::default()
    };
    mark(&mut norm, REBN);
    norm
}

/// What of a convolution's weight matters: its first extent, and its type.
#[derive(Clone, Copy)]
struct Weight {
    channels: i64,
    code: i32,
}

fn weight_of(conv: &NodeProto, links: &Links<'_>) -> Result<Weight, OnnxError> {
    let tensor = conv.input.get(1).and_then(|w| links.initializer(w));
    let weight = tensor.and_then(|t| Some(Weight { channels: *t.dims.first()?, code: t.data_type }));
    weight.filter(|w| (1..=MOST_CHANNELS).contains(&w.channels)).ok_or_else(|| {
        let name = node_name(conv);
        OnnxError::Graph(format!(
            "rebn: the weight of convolution \"{name}\" has no number of channels that makes sense"
        ))
    })
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), type_: AttributeType::FLOAT.into(), f, ..Default::default() }
}

/// An initializer as a graph input.
fn listing(name: &str, weight: Weight) -> ValueInfoProto {
    let mut dim = Dimension::new();
    dim.set_dim_value(weight.channels);
    let shape = TensorShapeProto { dim: vec![dim], ..Default::default() };
    let tensor = Tensor { elem_type: weight.code, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}
