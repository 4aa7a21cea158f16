//! Networks whose weights are of other float types than f32: trained in f32, and given back in the file's own.

#[path = "common/protos.rs"]
mod protos;

use onnx_protobuf::{Message as _, ModelProto, TensorProto};
use protos::{floats, int, model, node, open, open_bytes, run, value, with};
use slrc_compiler::onnx::export::{Norms, Trained, export, skeleton};
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;

const FLOAT16: i32 = 10;
const DOUBLE: i32 = 11;

fn of_type(code: i32, t: TensorProto, bytes: impl Fn(f32) -> Vec<u8>) -> TensorProto {
    let raw_data = t.float_data.iter().flat_map(|&x| bytes(x)).collect();
    TensorProto { data_type: code, raw_data, float_data: vec![], ..t }
}

/// Of multiples of a quarter below 1.
fn half(x: f32) -> Vec<u8> {
    let code: u16 = match x.abs() {
        0.25 => 0x3400,
        0.5 => 0x3800,
        0.75 => 0x3a00,
        _ => 0,
    };
    (code | if x < 0.0 { 0x8000 } else { 0 }).to_le_bytes().to_vec()
}

fn quarters(name: &str, dims: &[i64]) -> TensorProto {
    let n: i64 = dims.iter().product();
    floats(name, dims, &(0..n).map(|i| ((i * 5 % 7) - 3) as f32 / 4.0).collect::<Vec<_>>())
}

/// Halves as an initializer, in a node and cast from f32; an initializer of doubles behind a cast of what is computed.
fn mixed() -> ModelProto {
    let mut tensor = with(node("Constant", &[], &["b"]), vec![]);
    tensor.attribute.push(onnx_protobuf::AttributeProto {
        name: "value".into(),
        t: Some(of_type(FLOAT16, quarters("", &[6]), half)).into(),
        type_: onnx_protobuf::attribute_proto::AttributeType::TENSOR.into(),
        ..Default::default()
    });
    let cast = |from: &str, to: &str, code: i32| with(node("Cast", &[from], &[to]), vec![int("to", i64::from(code))]);
    let nodes = vec![
        tensor,
        cast("w2", "w2_half", FLOAT16),
        node("Gemm", &["x", "w1", "b"], &["h"]),
        node("Relu", &["h"], &["r"]),
        node("MatMul", &["r", "w2_half"], &["y2"]),
        cast("y2", "wide", DOUBLE),
        node("MatMul", &["wide", "w3"], &["y"]),
    ];
    let weights = vec![
        of_type(FLOAT16, quarters("w1", &[4, 6]), half),
        quarters("w2", &[6, 5]),
        of_type(DOUBLE, quarters("w3", &[5, 3]), |x| f64::from(x).to_le_bytes().to_vec()),
    ];
    let mut m = model(&[8, 4], nodes, weights, &["y"]);
    let graph = m.graph.mut_or_insert_default();
    graph.input = vec![value("x", FLOAT16, Some(&[8, 4]))];
    graph.output = vec![value("y", DOUBLE, Some(&[8, 3]))];
    m
}

#[test]
fn weights_go_back_in_the_type_they_came_in() {
    let file = open(&mixed());
    let planner = Planner::new(&file, &SpecFile::default()).unwrap_or_else(|e| panic!("{e}"));
    let sources = &planner.network().sources;
    assert_eq!(sources.len(), 4, "{:?}", sources.keys());
    let bare = skeleton(&file, sources).unwrap_or_else(|e| panic!("{e}"));
    let bare = open_bytes(&bare).unwrap_or_else(|e| panic!("{e}"));
    let shape = |name: &str| planner.network().graph.variables[index(&planner, name)].ty.shape.clone();
    let give = |by: f32| {
        let values: Vec<_> = sources.keys().map(|n| (n, shape(n))).collect();
        let data: Vec<Vec<f32>> = values
            .iter()
            .map(|(n, s)| {
                let file = slrc_compiler::onnx::import::read_weight(&file, &sources[*n].source).expect("values");
                assert_eq!(file.len(), s.iter().product::<usize>());
                file.iter().map(|x| x * by).collect()
            })
            .collect();
        let trained = values.iter().zip(&data).map(|((name, shape), data)| Trained { name, shape, data });
        export(&bare, &trained.collect::<Vec<_>>(), Norms::Kept)
    };
    let out = give(2.0).unwrap_or_else(|e| panic!("{e}"));
    let graph = ModelProto::parse_from_bytes(&out).expect("a model").graph;
    let mut types: Vec<(Vec<i64>, i32)> = graph.initializer.iter().map(|t| (t.dims.clone(), t.data_type)).collect();
    types.sort();
    let expected = [(vec![4, 6], FLOAT16), (vec![5, 3], DOUBLE), (vec![6], FLOAT16), (vec![6, 5], FLOAT16)];
    assert_eq!(types, expected);
    assert_eq!((&graph.input, &graph.output), (&mixed().graph.input, &mixed().graph.output));
    assert!(graph.node.iter().all(|n| n.op_type != "Constant"), "its values are a weight's");
    // Every layer twice as large.
    let x: Vec<f64> = (0..8 * 4).map(|i| f64::from(i % 7) / 4.0 - 0.5).collect();
    let was = run(&open(&mixed()), &[8, 4], &x).expect("a value");
    let is = run(&open_bytes(&out).expect("a model"), &[8, 4], &x).expect("a value");
    assert!(was.data.iter().any(|&y| y != 0.0));
    assert!(was.data.iter().zip(&is.data).all(|(a, b)| 8.0 * a == *b), "{:?} {:?}", was.data, is.data);
    let e = give(1e6).expect_err("refused").to_string();
    assert!(e.contains("does not fit the file's float16"), "{e}");
}

fn index(planner: &Planner<'_>, name: &str) -> usize {
    planner.network().graph.variable(name).expect("a variable").index()
}
