//! Circular and hyperbolic functions.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Sin", note: "", convert: |cx| of(cx, |cx, x| cx.b.map(ScalarFn::Sin, &[x])) },
    Entry { op: "Cos", note: "", convert: |cx| of(cx, |cx, x| cx.b.map(ScalarFn::Cos, &[x])) },
    Entry { op: "Tan", note: "sin(x) / cos(x)", convert: |cx| of(cx, tan) },
    Entry { op: "Asin", note: "atan(x / sqrt(1 - x^2))", convert: |cx| of(cx, asin) },
    Entry { op: "Acos", note: "pi / 2 - asin(x)", convert: |cx| of(cx, acos) },
    Entry { op: "Atan", note: "", convert: |cx| of(cx, |cx, x| cx.b.map(ScalarFn::Atan, &[x])) },
    Entry { op: "Sinh", note: "(e^x - e^-x) / 2", convert: |cx| of(cx, |cx, x| exponentials(cx, x, -0.5)) },
    Entry { op: "Cosh", note: "(e^x + e^-x) / 2", convert: |cx| of(cx, |cx, x| exponentials(cx, x, 0.5)) },
    Entry { op: "Asinh", note: "sign(x) log(|x| + sqrt(x^2 + 1))", convert: |cx| of(cx, asinh) },
    Entry { op: "Acosh", note: "log(x + sqrt(x^2 - 1))", convert: |cx| of(cx, acosh) },
    Entry { op: "Atanh", note: "log((1 + x) / (1 - x)) / 2", convert: |cx| of(cx, atanh) },
];

type R = Result<Vec<Out>, String>;

fn of(cx: &mut Cx<'_, '_, '_>, f: fn(&mut Cx<'_, '_, '_>, NodeId) -> NodeId) -> R {
    let x = cx.real(0)?;
    real(f(cx, x))
}

fn tan(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let (sin, cos) = (cx.b.map(ScalarFn::Sin, &[x]), cx.b.map(ScalarFn::Cos, &[x]));
    cx.b.div(sin, cos)
}

/// `sqrt(factor x^2 + offset)`.
fn root(cx: &mut Cx<'_, '_, '_>, x: NodeId, factor: f64, offset: f64) -> NodeId {
    let square = cx.b.mul(x, x);
    let scaled = cx.b.scale(square, factor);
    let moved = cx.b.offset(scaled, offset);
    cx.b.map(ScalarFn::Sqrt, &[moved])
}

fn asin(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let root = root(cx, x, -1.0, 1.0);
    let q = cx.b.div(x, root);
    cx.b.map(ScalarFn::Atan, &[q])
}

fn acos(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let a = asin(cx, x);
    let minus = cx.b.neg(a);
    cx.b.offset(minus, std::f64::consts::FRAC_PI_2)
}

/// `e^x / 2 + factor e^-x`.
fn exponentials(cx: &mut Cx<'_, '_, '_>, x: NodeId, factor: f64) -> NodeId {
    let minus = cx.b.neg(x);
    let (up, down) = (cx.b.map(ScalarFn::Exp, &[x]), cx.b.map(ScalarFn::Exp, &[minus]));
    let (up, down) = (cx.b.scale(up, 0.5), cx.b.scale(down, factor));
    cx.b.add(up, down)
}

fn asinh(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    // Of |x|, so that no digits are lost where x is negative.
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    let root = root(cx, x, 1.0, 1.0);
    let sum = cx.b.add(abs, root);
    let log = cx.b.map(ScalarFn::Log, &[sum]);
    let sign = cx.b.map(ScalarFn::Sign, &[x]);
    cx.b.mul(sign, log)
}

fn acosh(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let root = root(cx, x, 1.0, -1.0);
    let sum = cx.b.add(x, root);
    cx.b.map(ScalarFn::Log, &[sum])
}

fn atanh(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let minus = cx.b.neg(x);
    let (up, down) = (cx.b.offset(x, 1.0), cx.b.offset(minus, 1.0));
    let q = cx.b.div(up, down);
    let log = cx.b.map(ScalarFn::Log, &[q]);
    cx.b.scale(log, 0.5)
}
