//! What is computed of weights alone and used in two places keeps them in one module; what is put together from numbers
//! is no weight.

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::type_proto::{Tensor as TensorType, Value as TypeValue};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension::Value as Extent,
};
use slrc_compiler::onnx::export::{Norms, Trained, export, skeleton};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::import::{ImportOptions, import};
use slrc_compiler::partition::candidates;
use slrc_compiler::pipeline::compile;
use slrc_compiler::spec::{PartitionFile, SpecFile};

fn node(op: &str, input: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: output.into(),
        input: input.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn floats(name: &str, dims: &[i64]) -> TensorProto {
    let n: i64 = dims.iter().product();
    let float_data = (0..n).map(|i| (i % 7) as f32 / 8.0 - 0.3).collect();
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type: 1, float_data, ..Default::default() }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|&d| Dimension { value: Some(Extent::DimValue(d)), ..Default::default() }).collect();
    let shape = Some(TensorShapeProto { dim, ..Default::default() }).into();
    let tensor = TensorType { elem_type: 1, shape, ..Default::default() };
    let ty = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

fn open(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> OnnxFile {
    let (input, output) = (vec![value("x", &[8, 6])], vec![value("y", &[8, 3])]);
    let graph = GraphProto { node, initializer, input, output, ..Default::default() };
    let opset_import = vec![OperatorSetIdProto { version: 18, ..Default::default() }];
    let model = ModelProto { ir_version: 9, graph: Some(graph).into(), opset_import, ..Default::default() };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.write_to_bytes().expect("bytes")).expect("a file");
    OnnxFile::open(&path).expect("a model")
}

#[test]
fn transposed_once_and_used_twice() {
    let nodes = vec![
        node("Transpose", &["w"], "t"),
        node("MatMul", &["x", "t"], "a"),
        node("Relu", &["a"], "b"),
        node("MatMul", &["b", "t"], "c"),
        node("Relu", &["c"], "d"),
        node("MatMul", &["d", "v"], "e"),
        node("Relu", &["e"], "f"),
        node("MatMul", &["f", "u"], "y"),
    ];
    let file = open(nodes, vec![floats("w", &[6, 6]), floats("v", &[6, 5]), floats("u", &[5, 3])]);
    let net = import(&file, &ImportOptions::default()).expect("a network");
    let found = candidates(&net, 0);
    let cuts: Vec<&str> = found.cuts.iter().map(|c| c.node.as_str()).collect();
    assert_eq!(cuts, ["d"]);
    let between = found.rejected.iter().find(|r| r.node == "b").expect("a rejected place");
    assert_eq!(between.reason, "weight \"w\" is used before and after it");
    let spec = SpecFile { partition: PartitionFile { modules: Some(2), ..Default::default() }, ..Default::default() };
    compile(&file, &spec, &mut |_, _| {}).expect("two modules");
}

#[test]
fn masks_put_together_are_no_weights() {
    let index =
        TensorProto { name: "i".into(), dims: vec![1, 1], data_type: 7, int64_data: vec![2], ..Default::default() };
    let nodes = vec![
        node("ScatterND", &["zeros", "i", "some"], "mask"),
        node("MatMul", &["x", "w"], "a"),
        node("Add", &["a", "mask"], "y"),
    ];
    let file = open(nodes, vec![floats("zeros", &[8, 3]), index, floats("some", &[1, 3]), floats("w", &[6, 3])]);
    let net = import(&file, &ImportOptions::default()).expect("a network");
    let names: Vec<&String> = net.sources.keys().collect();
    assert_eq!(names, ["w"]);
}

/// Exporters compute a causal mask and write it down as an initializer, beside biases that look the same but for their
/// numbers.
#[test]
fn additive_masks_are_no_weights() {
    let masked = |name: &str, low: f32| {
        let float_data = (0..24).map(|i| if i % 3 > i / 3 { low } else { 0.0 }).collect();
        TensorProto { float_data, ..floats(name, &[8, 3]) }
    };
    let nodes = vec![
        node("MatMul", &["x", "w"], "a"),
        node("Add", &["a", "lowest"], "b"),
        node("Add", &["infinite", "b"], "c"),
        node("Add", &["c", "low"], "d"),
        node("Add", &["d", "zeros"], "y"),
    ];
    let all = vec![
        floats("w", &[6, 3]),
        masked("lowest", f32::MIN),
        masked("infinite", f32::NEG_INFINITY),
        masked("low", -2.0),
        masked("zeros", 0.0),
    ];
    let net = import(&open(nodes, all), &ImportOptions::default()).expect("a network");
    assert_eq!(net.sources.keys().collect::<Vec<_>>(), ["low", "w", "zeros"]);
}

/// Scales, class weights and the like are initializers of floats, too.
#[test]
fn settings_are_no_weights() {
    let whole = |name: &str, data: &[i64]| TensorProto {
        name: name.into(),
        dims: vec![data.len() as i64],
        data_type: 7,
        int64_data: data.to_vec(),
        ..Default::default()
    };
    let scales = TensorProto { float_data: vec![1.0, 1.0, 2.0, 2.0], ..floats("scales", &[4]) };
    let nodes = vec![
        node("Reshape", &["x", "image"], "a"),
        node("Resize", &["a", "", "scales"], "b"),
        node("Reshape", &["b", "flat"], "c"),
        node("MatMul", &["c", "w"], "y"),
    ];
    let all = vec![whole("image", &[8, 1, 2, 3]), whole("flat", &[8, 24]), scales, floats("w", &[24, 3])];
    let net = import(&open(nodes, all), &ImportOptions::default()).expect("a network");
    assert_eq!(net.sources.keys().collect::<Vec<_>>(), ["w"]);
}

/// An exporter that folds nothing transposes the matrix of every linear layer in the file.
#[test]
fn matrices_transposed_in_the_file_are_layers() {
    let of = |transposed: bool| {
        let (mut nodes, mut weights, mut x) = (Vec::new(), Vec::new(), "x".to_string());
        for i in 0..4 {
            let (w, t, product, result) = (format!("w{i}"), format!("t{i}"), format!("a{i}"), format!("b{i}"));
            let result = if i == 3 { "y".to_string() } else { result };
            let outputs = if i == 3 { 3 } else { 6 };
            weights.push(floats(&w, &if transposed { [outputs, 6] } else { [6, outputs] }));
            if transposed {
                nodes.push(node("Transpose", &[&w], &t));
            }
            nodes.push(node("MatMul", &[&x, if transposed { &t } else { &w }], &product));
            nodes.push(node(if i == 3 { "Identity" } else { "Relu" }, &[&product], &result));
            x = result;
        }
        let file = open(nodes, weights);
        let found = candidates(&import(&file, &ImportOptions::default()).expect("a network"), 0);
        found.cuts.iter().map(|c| (c.node.clone(), c.layers_before)).collect::<Vec<_>>()
    };
    assert_eq!(of(false), [("b0".to_string(), 1), ("b1".to_string(), 2)]);
    assert_eq!(of(true), of(false));
}

/// Two layers read one Constant, each trains its own copy of it, and what else reads it keeps the file's numbers.
#[test]
fn a_constant_of_two_layers_becomes_two_weights() {
    let constant = || {
        let t = floats("", &[6, 6]);
        let value = AttributeProto { name: "value".into(), type_: AttributeType::TENSOR.into(), ..Default::default() };
        let attribute = vec![AttributeProto { t: Some(t).into(), ..value }];
        NodeProto { attribute, ..node("Constant", &[], "c") }
    };
    let layers = || {
        vec![
            constant(),
            node("Gemm", &["x", "c"], "h"),
            node("Relu", &["h"], "r"),
            node("Gemm", &["r", "c"], "k"),
            node("MatMul", &["k", "w"], "y"),
        ]
    };
    // Nothing else reads it, something does, and the name that it would get is taken.
    let aside = |value: &str| vec![node("Neg", &["c"], value), node("Relu", &[value], "beside")];
    for (more, kept_as) in
        [(vec![], None), (aside("n"), Some("c@constant")), (aside("c@constant"), Some("c@constant_"))]
    {
        let file = open([layers(), more].concat(), vec![floats("w", &[6, 3])]);
        let network = import(&file, &ImportOptions::default()).expect("a network");
        let names: Vec<&str> = network.sources.keys().map(String::as_str).collect();
        assert_eq!(names, ["c", "c@k", "w"]);
        let bare = skeleton(&file, &network.sources).expect("a skeleton");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bare.onnx");
        std::fs::write(&path, bare).expect("a file");
        let bare = OnnxFile::open(&path).expect("a model");
        let (one, other, last) = (vec![1.5; 36], vec![-2.5; 36], vec![0.5; 18]);
        let trained = |name, data| Trained { name, shape: if name == "w" { &[6, 3] } else { &[6, 6] }, data };
        let all = [trained("c", &one[..]), trained("c@k", &other[..]), trained("w", &last[..])];
        let out = export(&bare, &all, Norms::Kept).expect("an export");
        let graph = ModelProto::parse_from_bytes(&out).expect("a model").graph.unwrap_or_default();
        let read = |output: &str, slot: usize| {
            let n = graph.node.iter().find(|n| n.output.iter().any(|o| o == output)).expect("a node");
            n.input[slot].clone()
        };
        let first = |name: &str| {
            let t = graph.initializer.iter().find(|t| t.name == name).expect("an initializer");
            f32::from_le_bytes([t.raw_data[0], t.raw_data[1], t.raw_data[2], t.raw_data[3]])
        };
        assert_eq!((first(&read("h", 1)), first(&read("k", 1)), first(&read("y", 1))), (1.5, -2.5, 0.5));
        assert_eq!(graph.initializer.len(), 3);
        let constants: Vec<_> = graph.node.iter().filter(|n| n.op_type == "Constant").collect();
        assert_eq!(constants.iter().map(|n| n.output[0].as_str()).collect::<Vec<_>>(), Vec::from_iter(kept_as));
        if let Some(kept_as) = kept_as {
            let negated = graph.node.iter().find(|n| n.op_type == "Neg").expect("what reads it");
            assert_eq!(negated.input, [kept_as]);
            assert_eq!(constants[0].attribute[0].t.float_data, floats("", &[6, 6]).float_data);
        }
        let mut made: Vec<&String> = graph.node.iter().flat_map(|n| &n.output).collect();
        made.extend(graph.initializer.iter().map(|t| &t.name));
        let count = made.len();
        made.sort();
        made.dedup();
        assert_eq!(made.len(), count, "every name is made once");
    }
}
