//! BatchNormalization that a repair put in, folded into its convolution again: the file's own nodes are left.
//!
//! With `f = scale / sqrt(var + epsilon)`, channel by channel, the convolution's weight becomes `f w` and its bias
//! `bias - f mean`. Computed in f64 and rounded to f32; who writes the file rounds to its types.

use std::collections::BTreeMap;

use onnx_protobuf::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};
use protobuf::Enum as _;

use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::node::node_name;
use crate::onnx::repair::{Names, REBN, has_mark};
use crate::onnx::tensor::{is_weight_type, read_numbers};

/// Folds every BatchNormalization that was put in; says how many there were. Weights are among `initializers`. What is
/// folded is in f32, and `types` gets the types that it is to have.
pub(crate) fn fold(
    file: &OnnxFile,
    graph: &mut GraphProto,
    initializers: &mut Vec<TensorProto>,
    types: &mut BTreeMap<String, i32>,
) -> Result<usize, OnnxError> {
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
    let mut tensors = Tensors::new(file, initializers, types);
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
    file: &'a OnnxFile,
    types: &'a mut BTreeMap<String, i32>,
    list: &'a mut Vec<TensorProto>,
    places: BTreeMap<String, usize>,
}

impl Tensors<'_> {
    fn new<'a>(
        file: &'a OnnxFile,
        list: &'a mut Vec<TensorProto>,
        types: &'a mut BTreeMap<String, i32>,
    ) -> Tensors<'a> {
        let mut places = BTreeMap::new();
        for (i, t) in list.iter().enumerate() {
            places.entry(t.name.clone()).or_insert(i);
        }
        Tensors { file, types, list, places }
    }

    fn get(&self, name: &str) -> Option<&TensorProto> {
        self.places.get(name).map(|&i| &self.list[i])
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>, OnnxError> {
        let bad = |reason: &str| OnnxError::Tensor { name: name.into(), reason: reason.into() };
        let t = self.get(name).ok_or_else(|| bad("the plan folder's model.onnx does not hold it"))?;
        if !is_weight_type(t.data_type) {
            return Err(bad("it is no tensor of floats"));
        }
        Ok(read_numbers(self.file, t)?.data)
    }

    /// The type that a tensor is to have.
    fn type_of(&self, name: &str) -> i32 {
        let has = || self.get(name).map_or(DataType::FLOAT.value(), |t| t.data_type);
        self.types.get(name).copied().unwrap_or_else(has)
    }

    /// Puts a tensor of f32, which is to have the type `code`.
    fn put(&mut self, tensor: TensorProto, code: i32) {
        self.types.insert(tensor.name.clone(), code);
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
    let read = |name: &str| tensors.numbers(name);
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
        let tensor = TensorProto {
            name: name.clone(),
            dims,
            data_type: DataType::FLOAT.value(),
            raw_data: data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ..Default::default()
        };
        let code = tensors.type_of(old);
        tensors.put(tensor, code);
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
