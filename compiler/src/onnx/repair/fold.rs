//! BatchNormalization that a repair put in, folded into its convolution again: the file's own nodes are left.
//!
//! With `f = scale / sqrt(var + epsilon)`, channel by channel, the convolution's weight becomes `f w` and its bias
//! `bias - f mean`. Computed in f64 and rounded once.

use std::collections::BTreeMap;

use onnx_protobuf::{GraphProto, NodeProto, TensorProto};

use crate::onnx::OnnxError;
use crate::onnx::node::node_name;
use crate::onnx::repair::{Names, REBN, has_mark};

/// Folds every BatchNormalization that was put in; says how many there were. Weights are among `initializers`, in f32.
pub(crate) fn fold(graph: &mut GraphProto, initializers: &mut Vec<TensorProto>) -> Result<usize, OnnxError> {
    let mut count = 0;
    // Those not yet folded stay in the graph, so that what they read is seen to be read.
    while let Some(at) = graph.node.iter().position(|n| has_mark(n, REBN)) {
        let norm = graph.node.remove(at);
        fold_one(graph, initializers, &norm)?;
        count += 1;
    }
    Ok(count)
}

fn fold_one(graph: &mut GraphProto, initializers: &mut Vec<TensorProto>, norm: &NodeProto) -> Result<(), OnnxError> {
    let name = node_name(norm);
    let mut names = Names::of(graph);
    let damaged = || OnnxError::Graph(format!("the plan folder's model.onnx has no convolution before \"{name}\""));
    let [before, scale, bias, mean, variance] = &norm.input[..] else { return Err(damaged()) };
    let places = graph.node.iter().enumerate();
    let mut makers = places.filter(|(_, n)| n.op_type == "Conv" && n.output.first() == Some(before));
    let at = makers.next().map(|(i, _)| i).ok_or_else(damaged)?;
    let weight = graph.node[at].input.get(1).cloned().ok_or_else(damaged)?;
    let epsilon = norm.attribute.iter().find(|a| a.name == "epsilon").map_or(1e-5, |a| a.f);
    let known: BTreeMap<&str, &TensorProto> = initializers.iter().map(|t| (t.name.as_str(), t)).collect();
    let read = |name: &str| numbers(known.get(name).copied(), name);
    let (w, scale, b, mean, variance) = (read(&weight)?, read(scale)?, read(bias)?, read(mean)?, read(variance)?);
    let channels = scale.len();
    if channels == 0 || [b.len(), mean.len(), variance.len()] != [channels; 3] || w.len() % channels != 0 {
        return Err(OnnxError::Graph(format!("the tensors of \"{name}\" do not fit its convolution")));
    }
    let factor: Vec<f64> = (0..channels).map(|c| scale[c] / (variance[c] + f64::from(epsilon)).sqrt()).collect();
    let each = w.len() / channels;
    let folded_weight: Vec<f32> = w.iter().enumerate().map(|(i, x)| (x * factor[i / each]) as f32).collect();
    let folded_bias: Vec<f32> = (0..channels).map(|c| (b[c] - factor[c] * mean[c]) as f32).collect();
    let dims = known[weight.as_str()].dims.clone();
    // A tensor that something else reads too, as one that was tied, stays as it is.
    let mut put = |graph: &GraphProto, old: &str, slot: usize, dims: Vec<i64>, data: Vec<f32>| {
        let others = graph
            .node
            .iter()
            .enumerate()
            .any(|(i, n)| n.input.iter().enumerate().any(|(s, name)| name == old && (i, s) != (at, slot)));
        let name =
            if others { names.new_name(format!("{old}@{}", node_name(&graph.node[at]))) } else { old.to_string() };
        let tensor = TensorProto {
            name: name.clone(),
            dims,
            data_type: 1,
            raw_data: data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ..Default::default()
        };
        match initializers.iter_mut().find(|t| t.name == name) {
            Some(t) => *t = tensor,
            None => initializers.push(tensor),
        }
        name
    };
    let weight_name = put(graph, &weight, 1, dims, folded_weight);
    let bias_name = put(graph, bias, 2, vec![channels as i64], folded_bias);
    let conv = &mut graph.node[at];
    conv.input.truncate(2);
    conv.input[1] = weight_name;
    conv.input.push(bias_name);
    conv.output[0] = norm.output.first().cloned().unwrap_or_default();
    Ok(())
}

fn numbers(t: Option<&TensorProto>, name: &str) -> Result<Vec<f64>, OnnxError> {
    let bad = |reason: &str| OnnxError::Tensor { name: name.into(), reason: reason.into() };
    let t = t.ok_or_else(|| bad("the plan folder's model.onnx does not hold it"))?;
    if t.raw_data.is_empty() || t.data_type != 1 {
        return Err(bad("it is no trained float32 tensor"));
    }
    Ok(t.raw_data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
}
