//! Sizes, versions, inputs and outputs.

use onnx_protobuf::{ValueInfoProto, tensor_proto::DataType};
use protobuf::Enum as _;
use serde::Serialize;

use crate::onnx::file::OnnxFile;
use crate::onnx::narrow::Narrow;
use crate::onnx::tensor::type_name;

/// What a file holds.
#[derive(Clone, Debug, Serialize)]
pub struct Contents {
    /// Bytes of the file itself.
    pub file_bytes: usize,
    /// Whether some tensors are kept in files beside it.
    pub external_data: bool,
    /// ONNX's IR version.
    pub ir_version: i64,
    /// Operator sets.
    pub opsets: Vec<Opset>,
    /// What wrote it.
    pub producer: String,
    /// Its version.
    pub producer_version: String,
    /// Which of PyTorch's exporters, by the names it gives to nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exporter: Option<&'static str>,
    /// Name of the graph.
    pub graph: String,
    /// Nodes.
    pub nodes: usize,
    /// Inputs that are no initializers.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// All initializers.
    pub initializers: Tensors,
}

/// An operator set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opset {
    /// Empty for ONNX's own.
    pub domain: String,
    /// Number.
    pub version: i64,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Element type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Extents: a number, a name, or `?`; absent if the file does not say.
    pub shape: Option<Vec<String>>,
}

/// A number of tensors and what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tensors {
    /// How many.
    pub tensors: usize,
    /// Elements.
    pub numbers: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Tensors {
    /// One more tensor.
    pub fn add(&mut self, numbers: usize, bytes: usize) {
        self.tensors += 1;
        self.numbers = self.numbers.saturating_add(numbers);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// Reads what the file says of itself.
pub fn contents(file: &OnnxFile) -> Contents {
    let (model, graph) = (&file.proto, &file.proto.graph);
    let mut initializers = Tensors::default();
    for t in &graph.initializer {
        let extents = t.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0));
        let numbers = extents.fold(1usize, usize::saturating_mul);
        initializers.add(numbers, numbers.saturating_mul(bits(t.data_type)).div_ceil(8));
    }
    let is_initializer = |name: &str| graph.initializer.iter().any(|t| t.name == name);
    let any = |prefix: &str| graph.node.iter().any(|n| n.name.starts_with(prefix));
    let exporter = match model.producer_name.as_str() {
        "pytorch" if any("node_") => Some("dynamo"),
        "pytorch" if any("/") => Some("TorchScript"),
        _ => None,
    };
    Contents {
        file_bytes: file.size(),
        external_data: graph.initializer.iter().any(|t| file.is_external(t)),
        ir_version: model.ir_version,
        opsets: model.opset_import.iter().map(|o| Opset { domain: o.domain.clone(), version: o.version }).collect(),
        producer: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        exporter,
        graph: graph.name.clone(),
        nodes: graph.node.len(),
        inputs: graph.input.iter().filter(|i| !is_initializer(&i.name)).map(port).collect(),
        outputs: graph.output.iter().map(port).collect(),
        initializers,
    }
}

fn port(v: &ValueInfoProto) -> Port {
    let tensor = v.type_.as_ref().filter(|t| t.has_tensor_type()).map(|t| t.tensor_type());
    let shape = tensor.and_then(|t| t.shape.as_ref()).map(|s| {
        let extent = |d: &onnx_protobuf::tensor_shape_proto::Dimension| match d.dim_param() {
            "" if d.has_dim_value() && d.dim_value() > 0 => d.dim_value().to_string(),
            "" => "?".into(),
            name => name.to_string(),
        };
        s.dim.iter().map(extent).collect()
    });
    let ty = tensor.map_or("no tensor".into(), |t| type_name(t.elem_type));
    Port { name: v.name.clone(), ty, shape }
}

/// Bits of an element.
fn bits(code: i32) -> usize {
    match DataType::from_i32(code) {
        Some(DataType::DOUBLE | DataType::INT64 | DataType::UINT64 | DataType::COMPLEX64) => 64,
        Some(DataType::COMPLEX128) => 128,
        Some(DataType::FLOAT | DataType::INT32 | DataType::UINT32) => 32,
        Some(DataType::FLOAT16 | DataType::BFLOAT16 | DataType::INT16 | DataType::UINT16) => 16,
        Some(DataType::INT8 | DataType::UINT8 | DataType::BOOL) => 8,
        // Strings have no size of their own, and codes of later versions none that is known.
        _ => Narrow::of(code).map_or(0, Narrow::bits),
    }
}
