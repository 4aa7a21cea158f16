//! Networks whose weights are of other float types than f32: trained in f32, and given back in the file's own.

#[path = "common/protos.rs"]
mod protos;

use onnx_protobuf::{Message as _, ModelProto, TensorProto};
use protos::{floats, int, model, node, open, open_bytes, run, value, with};
use slrc_compiler::onnx::export::{Norms, Trained, export, skeleton};
use slrc_compiler::onnx::import::read_weight;
use slrc_compiler::onnx::tensor::read_f32;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;

const FLOAT16: i32 = 10;
const DOUBLE: i32 = 11;
const BFLOAT16: i32 = 16;

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

/// Three convolutions, the second without a bias, a pool and a classifier, all in one type.
fn convolutions(code: i32) -> ModelProto {
    let bytes = |x: f32| match code {
        FLOAT16 => half(x),
        BFLOAT16 => x.to_le_bytes()[2..].to_vec(),
        _ => f64::from(x).to_le_bytes().to_vec(),
    };
    let same = |x: &str, rest: &[&str], y: &str| {
        with(node("Conv", &[&[x], rest].concat(), &[y]), vec![protos::ints_attribute("pads", &[1, 1, 1, 1])])
    };
    let nodes = vec![
        same("x", &["w1", "b1"], "c1"),
        node("Relu", &["c1"], &["r1"]),
        same("r1", &["w2"], "c2"),
        node("Relu", &["c2"], &["r2"]),
        same("r2", &["w3", "b3"], "c3"),
        node("Relu", &["c3"], &["r3"]),
        node("GlobalAveragePool", &["r3"], &["p"]),
        node("Flatten", &["p"], &["f"]),
        node("MatMul", &["f", "w"], &["y"]),
    ];
    let shapes: [(&str, &[i64]); 6] = [
        ("w1", &[4, 2, 3, 3]),
        ("b1", &[4]),
        ("w2", &[5, 4, 3, 3]),
        ("w3", &[4, 5, 3, 3]),
        ("b3", &[4]),
        ("w", &[4, 3]),
    ];
    let weights = shapes.iter().map(|(name, dims)| of_type(code, quarters(name, dims), bytes)).collect();
    let mut m = model(&[2, 2, 5, 5], nodes, weights, &["y"]);
    let graph = m.graph.mut_or_insert_default();
    graph.input = vec![value("x", code, Some(&[2, 2, 5, 5]))];
    graph.output = vec![value("y", code, Some(&[2, 3]))];
    m
}

fn repairing() -> SpecFile {
    slrc_plan::yaml::from_str("{batch: 2, repair: {rebn: true}}").expect("a spec")
}

/// Half the distance between neighbours of a type around a number.
fn rounding(code: i32, x: f64) -> f64 {
    let fraction = match code {
        FLOAT16 => 10,
        BFLOAT16 => 7,
        // Trained in f32.
        _ => 23,
    };
    2f64.powi(x.abs().log2().floor() as i32 - fraction - 1)
}

/// What is trained: no weight is a number of 16 bits.
fn moved(name: &str, at: usize, x: f32) -> f32 {
    match name.rsplit_once(".bn.") {
        Some((_, "weight")) => 1.3 + 0.01 * at as f32,
        Some((_, "running_mean")) => 0.37 - 0.1 * at as f32,
        Some((_, "running_var")) => 0.71 + 0.1 * at as f32,
        _ => x * 0.9 + 0.0123,
    }
}

#[test]
fn batch_norm_is_put_back_and_folded_in_every_type() {
    let x: Vec<f64> = (0..100).map(|i| f64::from(i * i % 11) / 4.0 - 1.0).collect();
    let shape = [2, 2, 5, 5];
    for code in [FLOAT16, BFLOAT16, DOUBLE] {
        let (m, spec) = (convolutions(code), repairing());
        let file = open(&m);
        let planner = Planner::new(&file, &spec).unwrap_or_else(|e| panic!("{e}"));
        let repaired = planner.file();
        let norms =
            |graph: &onnx_protobuf::GraphProto| graph.node.iter().filter(|n| n.op_type == "BatchNormalization").count();
        let sources = &planner.network().sources;
        let bare = skeleton(repaired, sources).unwrap_or_else(|e| panic!("{e}"));
        let graph = ModelProto::parse_from_bytes(&bare).expect("a model").graph;
        assert_eq!(norms(&graph), 3);
        assert!(graph.initializer.iter().all(|t| t.data_type == code), "one type, as ONNX wants it");
        let (was, is) = (run(&file, &shape, &x).expect("a value"), run(repaired, &shape, &x).expect("a value"));
        let largest = was.data.iter().fold(0.0f64, |m, y| m.max(y.abs()));
        let error = was.data.iter().zip(&is.data).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
        // 1 - epsilon is 1 in 16 bits: half an epsilon of 1e-5 a convolution. In f64 it is rounded to f32.
        assert!(error > 0.0 && error < if code == DOUBLE { 1e-6 } else { 3e-5 }, "{code}: {error:e}");

        let bare = open_bytes(&bare).expect("a model");
        let shape_of = |name: &str| planner.network().graph.variables[index(&planner, name)].ty.shape.clone();
        let values = |far: f32| -> Vec<(String, Vec<usize>, Vec<f32>)> {
            let of = |name: &String| {
                let file = read_weight(repaired, &sources[name].source).expect("values");
                let far = if name.ends_with("running_var") { far } else { 1.0 };
                (name.clone(), shape_of(name), (0..).zip(file).map(|(i, x)| far * moved(name, i, x)).collect())
            };
            sources.keys().map(of).collect()
        };
        let give = |values: &[(String, Vec<usize>, Vec<f32>)], norms: Norms| {
            let trained = values.iter().map(|(name, shape, data)| Trained { name, shape, data });
            export(&bare, &trained.collect::<Vec<_>>(), norms).map_err(|e| e.to_string())
        };
        let trained = values(1.0);
        let exported = |norms| {
            let bytes = give(&trained, norms).unwrap_or_else(|e| panic!("{e}"));
            run(&open_bytes(&bytes).expect("a model"), &shape, &x).expect("a value");
            let graph = ModelProto::parse_from_bytes(&bytes).expect("a model").graph.unwrap_or_default();
            assert!(graph.initializer.iter().all(|t| t.data_type == code));
            graph
        };
        let (kept, folded) = (exported(Norms::Kept), exported(Norms::Folded));
        assert_eq!(norms(&kept), 3);
        let ops = |nodes: &[onnx_protobuf::NodeProto]| nodes.iter().map(|n| n.op_type.clone()).collect::<Vec<_>>();
        assert_eq!(ops(&folded.node), ops(&m.graph.node));
        // Rounded once, from what was trained.
        let of = |name: &str| {
            let (_, _, data) = trained.iter().find(|(n, _, _)| n == name).unwrap_or_else(|| panic!("{name}"));
            data.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()
        };
        for (conv, weight, bias) in [("c1", "w1", "b1"), ("c2", "w2", "c2.bn.bias"), ("c3", "w3", "b3")] {
            let of_norm = |what: &str| of(&format!("{conv}.bn.{what}"));
            let (scale, mean, variance) = (of_norm("weight"), of_norm("running_mean"), of_norm("running_var"));
            let (w, b) = (of(weight), of(bias));
            let factor: Vec<f64> =
                scale.iter().zip(&variance).map(|(s, v)| s / (v + f64::from(1e-5f32)).sqrt()).collect();
            let each = w.len() / factor.len();
            let expected_weight: Vec<f64> = w.iter().enumerate().map(|(i, w)| w * factor[i / each]).collect();
            let expected_bias: Vec<f64> = (0..b.len()).map(|c| b[c] - factor[c] * mean[c]).collect();
            for (name, expected) in [(weight, expected_weight), (bias, expected_bias)] {
                let tensor = folded.initializer.iter().find(|t| t.name == name).expect(name);
                let is = read_f32(&file, tensor).expect("values");
                let near = |(&is, &e): (&f32, &f64)| (f64::from(is) - e).abs() <= 1.001 * rounding(code, e);
                assert!(is.iter().zip(&expected).all(near), "{code} {name}: {is:?} {expected:?}");
            }
        }
        if code == FLOAT16 {
            let far = values(1e6);
            let e = give(&far, Norms::Kept).expect_err("refused");
            assert!(e.contains("c1.bn.running_var") && e.contains("does not fit the file's float16"), "{e}");
            give(&far, Norms::Folded).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

#[test]
fn a_convolution_whose_weight_is_computed_is_refused() {
    let mut m = convolutions(DOUBLE);
    m.graph.mut_or_insert_default().node[0].input[1] = "computed".into();
    m.graph.mut_or_insert_default().node.insert(0, node("Neg", &["w1"], &["computed"]));
    let spec = slrc_plan::yaml::from_str("{batch: 2, repair: {rebn: [c1]}}").expect("a spec");
    let file = open(&m);
    let e = Planner::new(&file, &spec).err().expect("refused").to_string();
    assert!(e.contains("is no tensor of the file in float16, bfloat16, float32 or float64"), "{e}");
}
