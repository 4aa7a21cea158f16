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
    let mut names = Names::of(graph);
    // Those not yet folded count as readers of what they read.
    let mut readers: BTreeMap<String, usize> = BTreeMap::new();
    for name in graph.node.iter().flat_map(|n| &n.input) {
        *readers.entry(name.clone()).or_default() += 1;
    }
    let (norms, nodes) = std::mem::take(&mut graph.node).into_iter().partition(|n| has_mark(n, REBN));
    let (norms, nodes): (Vec<NodeProto>, Vec<NodeProto>) = (norms, nodes);
    let mut convolutions: BTreeMap<String, usize> = BTreeMap::new();
    for (i, n) in nodes.iter().enumerate().filter(|(_, n)| n.op_type == "Conv") {
        if let Some(output) = n.output.first() {
            convolutions.entry(output.clone()).or_insert(i);
        }
    }
    graph.node = nodes;
    let mut tensors = Tensors::new(initializers);
    for norm in &norms {
        norm.input.iter().for_each(|name| unread(&mut readers, name));
        let before = norm.input.first().map_or("", String::as_str);
        let conv = convolutions.remove(before).map(|at| &mut graph.node[at]);
        fold_one(conv, &mut tensors, &mut names, &mut readers, norm)?;
    }
    Ok(norms.len())
}

fn unread(readers: &mut BTreeMap<String, usize>, name: &str) {
    if let Some(n) = readers.get_mut(name) {
        *n -= 1;
    }
}

/// Tensors, found by name.
struct Tensors<'a> {
    list: &'a mut Vec<TensorProto>,
    places: BTreeMap<String, usize>,
}

impl Tensors<'_> {
    fn new(list: &mut Vec<TensorProto>) -> Tensors<'_> {
        let mut places = BTreeMap::new();
        for (i, t) in list.iter().enumerate() {
            places.entry(t.name.clone()).or_insert(i);
        }
        Tensors { list, places }
    }

    fn get(&self, name: &str) -> Option<&TensorProto> {
        self.places.get(name).map(|&i| &self.list[i])
    }

    fn put(&mut self, tensor: TensorProto) {
        match self.places.get(&tensor.name) {
            Some(&i) => self.list[i] = tensor,
            None => {
                self.places.insert(tensor.name.clone(), self.list.len());
                self.list.push(tensor);
            }
        }
    }
}

/// `readers` counts the nodes that read a value, `norm` not among them.
fn fold_one(
    conv: Option<&mut NodeProto>,
    tensors: &mut Tensors<'_>,
    names: &mut Names,
    readers: &mut BTreeMap<String, usize>,
    norm: &NodeProto,
) -> Result<(), OnnxError> {
    let name = node_name(norm);
    let damaged = || OnnxError::Graph(format!("the plan folder's model.onnx has no convolution before \"{name}\""));
    let [_, scale, bias, mean, variance] = &norm.input[..] else { return Err(damaged()) };
    let conv = conv.ok_or_else(damaged)?;
    let weight = conv.input.get(1).cloned().ok_or_else(damaged)?;
    let epsilon = norm.attribute.iter().find(|a| a.name == "epsilon").map_or(1e-5, |a| a.f);
    let read = |name: &str| numbers(tensors.get(name), name);
    let (w, scale, b, mean, variance) = (read(&weight)?, read(scale)?, read(bias)?, read(mean)?, read(variance)?);
    let channels = scale.len();
    if channels == 0 || [b.len(), mean.len(), variance.len()] != [channels; 3] || w.len() % channels != 0 {
        return Err(OnnxError::Graph(format!("the tensors of \"{name}\" do not fit its convolution")));
    }
    let factor: Vec<f64> = (0..channels).map(|c| scale[c] / (variance[c] + f64::from(epsilon)).sqrt()).collect();
    let each = w.len() / channels;
    let folded_weight: Vec<f32> = w.iter().enumerate().map(|(i, x)| (x * factor[i / each]) as f32).collect();
    let folded_bias: Vec<f32> = (0..channels).map(|c| (b[c] - factor[c] * mean[c]) as f32).collect();
    let dims = tensors.get(&weight).map_or(Vec::new(), |t| t.dims.clone());
    conv.input.iter().for_each(|name| unread(readers, name));
    let by = node_name(conv);
    // A tensor that something else reads too, as one that was tied, stays as it is.
    let mut put = |old: &str, dims: Vec<i64>, data: Vec<f32>| {
        let others = readers.get(old).is_some_and(|&n| n > 0);
        let name = if others { names.new_name(format!("{old}@{by}")) } else { old.to_string() };
        tensors.put(TensorProto {
            name: name.clone(),
            dims,
            data_type: 1,
            raw_data: data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ..Default::default()
        });
        name
    };
    let weight_name = put(&weight, dims, folded_weight);
    let bias_name = put(bias, vec![channels as i64], folded_bias);
    conv.input.truncate(1);
    conv.input.extend([weight_name, bias_name]);
    for name in &conv.input {
        *readers.entry(name.clone()).or_default() += 1;
    }
    conv.output[0] = norm.output.first().cloned().unwrap_or_default();
    Ok(())
}

fn numbers(t: Option<&TensorProto>, name: &str) -> Result<Vec<f64>, OnnxError> {
    let bad = |reason: &str| OnnxError::Tensor { name: name.into(), reason: reason.into() };
    let t = t.ok_or_else(|| bad("the plan folder's model.onnx does not hold it"))?;
    if t.data_type != 1 || t.raw_data.is_empty() && t.float_data.is_empty() {
        return Err(bad("it is no float32 tensor with values"));
    }
    // What is not trained, since the output does not need it, is as the file or the repair wrote it.
    if t.raw_data.is_empty() {
        return Ok(t.float_data.iter().map(|&x| f64::from(x)).collect());
    }
    Ok(t.raw_data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect())
}
