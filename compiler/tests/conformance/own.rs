//! Operators of which the official cases say too little: those of Trilu are of integers, GlobalLpPool has none, and of
//! NonZero they give the operand as data. Besides, what holds without the official cases at hand: operands of old files
//! and infinite divisors.

use std::collections::BTreeMap;

use onnx_protobuf::{NodeProto, TensorProto};
use slrc_compiler::ir::Tensor;
use slrc_compiler::ir::interp::Env;
use slrc_compiler::onnx::forward::{Given, forward};
use slrc_compiler::onnx::tensor::Elem;

use crate::case::Run;
use crate::gradient;
use crate::protos::{floats, int, ints, model, node, open, run, with};

/// Numbers of both signs, none near zero.
fn numbers(n: usize) -> Vec<f64> {
    (0..n).map(|i| (0.4 + (i as f64 * 0.7).sin().abs()) * if i % 3 == 1 { -1.0 } else { 1.0 }).collect()
}

/// The node's result `y` for `x` is as it should be, and its first and second derivative agree with differences.
fn agrees(n: NodeProto, more: Vec<TensorProto>, shape: &[usize], expected: impl Fn(&[f64]) -> Vec<f64>) {
    let extents: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let file = open(&model(&extents, vec![n], more, &["y"]));
    let x = numbers(shape.iter().product());
    let y = run(&file, shape, &x).unwrap_or_else(|e| panic!("{e}")).data;
    let expected = expected(&x);
    assert!(y.len() == expected.len() && y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{y:?}");
    let given = BTreeMap::from([("x".to_string(), Given::Data(Elem::Float, shape.to_vec()))]);
    let forward = forward(&file, &given).unwrap_or_else(|e| panic!("{e}"));
    let mut env = Env::default();
    env.inputs.insert(forward.inputs["x"], Tensor::new(shape.to_vec(), x));
    assert_eq!(gradient::check(&Run { forward, env }), "grad");
}

#[test]
fn triangles_of_floats() {
    const SHAPE: [usize; 3] = [2, 3, 4];
    for upper in [0, 1] {
        for k in [-3, -1, 0, 1, 4] {
            let triangle = with(node("Trilu", &["x", "k"], &["y"]), vec![int("upper", upper)]);
            let keeps = |i: usize| {
                let above = (i % 4) as i64 - (i / 4 % 3) as i64;
                if upper == 1 { above >= k } else { above <= k }
            };
            let expected = |x: &[f64]| x.iter().enumerate().map(|(i, &x)| if keeps(i) { x } else { 0.0 }).collect();
            agrees(triangle, vec![ints("k", &[], &[k])], &SHAPE, expected);
        }
    }
}

#[test]
fn global_pools_of_powers() {
    for p in [1, 2, 3] {
        let pool = with(node("GlobalLpPool", &["x"], &["y"]), vec![int("p", p)]);
        let norm = |c: &[f64]| c.iter().map(|x| x.abs().powi(p as i32)).sum::<f64>().powf(1.0 / p as f64);
        agrees(pool, vec![], &[2, 3, 4, 2], |x| x.chunks(8).map(norm).collect());
    }
}

/// As exporters write `arange` for opsets that have no Range.
#[test]
fn places_of_what_is_known() {
    let flags = ints("flags", &[2, 3], &[0, 1, -1, 0, 0, 5]);
    let nodes = vec![
        node("NonZero", &["flags"], &["at"]),
        with(node("Cast", &["at"], &["real"]), vec![int("to", 1)]),
        node("Add", &["x", "real"], &["y"]),
    ];
    let file = open(&model(&[2, 3], nodes, vec![flags], &["y"]));
    let y = run(&file, &[2, 3], &[0.0; 6]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(y.data, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
    let file = open(&model(&[2, 3], vec![node("NonZero", &["x"], &["y"])], vec![], &["y"]));
    let said = run(&file, &[2, 3], &[0.0; 6]).expect_err("refused");
    assert!(said.contains("its result's shape depends on the data"), "{said}");
}

/// What the node makes of `x`, of extents 2, 3 and 4, in a file of opset 6.
fn old(n: NodeProto, more: Vec<TensorProto>) -> Result<Vec<f64>, String> {
    let mut m = model(&[2, 3, 4], vec![n], more, &["y"]);
    m.opset_import[0].version = 6;
    run(&open(&m), &[2, 3, 4], &numbers(24)).map(|y| y.data)
}

/// Before opset 7 the second operand's dimensions are the first's from `axis` on, or its last.
#[test]
fn operands_of_old_files_lie_along_an_axis() {
    let (x, by) = (numbers(24), [2.0f32, 3.0, 5.0]);
    let channel = |i: usize| f64::from(by[i / 4 % 3]);
    let operand = || vec![floats("b", &[3], &by)];
    let of = |op: &str, axis: i64| with(node(op, &["x", "b"], &["y"]), vec![int("broadcast", 1), int("axis", axis)]);
    type Of = fn(f64, f64) -> f64;
    let ops: [(&str, Of); 4] =
        [("Add", |a, b| a + b), ("Sub", |a, b| a - b), ("Mul", |a, b| a * b), ("Div", |a, b| a / b)];
    for (op, f) in ops {
        let y = old(of(op, 1), operand()).unwrap_or_else(|e| panic!("{e}"));
        assert!((0..24).all(|i| (y[i] - f(x[i], channel(i))).abs() < 1e-12), "{op}: {y:?}");
    }
    for axis in [-1, 3, i64::MAX] {
        let e = old(of("Add", axis), operand()).expect_err("refused");
        assert!(e.contains(&format!("does not lie in [2, 3, 4] from dimension {axis} on")), "{e}");
    }
    let last = with(node("Add", &["x", "b"], &["y"]), vec![int("broadcast", 1)]);
    let y = old(last, vec![floats("b", &[4], &[1.0, 2.0, 3.0, 4.0])]).unwrap_or_else(|e| panic!("{e}"));
    assert!((0..24).all(|i| y[i] == x[i] + (i % 4 + 1) as f64), "{y:?}");
    let y = old(node("PRelu", &["x", "b"], &["y"]), operand()).unwrap_or_else(|e| panic!("{e}"));
    assert!((0..24).all(|i| y[i] == if x[i] > 0.0 { x[i] } else { channel(i) * x[i] }), "{y:?}");
}

#[test]
fn rests_of_infinite_divisors() {
    let x = numbers(24);
    for (fmod, negative) in [(1, false), (0, false), (0, true)] {
        let sign = if negative { -1.0 } else { 1.0 };
        let rest = with(node("Mod", &["x", "b"], &["y"]), vec![int("fmod", fmod)]);
        let file = open(&model(&[24], vec![rest], vec![floats("b", &[1], &[sign * f32::INFINITY])], &["y"]));
        let y = run(&file, &[24], &x).unwrap_or_else(|e| panic!("{e}")).data;
        let across = |x: f64| fmod == 0 && x * f64::from(sign) < 0.0;
        let expected = |x: f64| if across(x) { f64::from(sign) * f64::INFINITY } else { x };
        assert!((0..24).all(|i| y[i] == expected(x[i])), "{fmod} {sign}: {y:?}");
    }
}
