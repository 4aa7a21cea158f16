//! Elementwise ops: direct scalar functions and the decompositions of activations.

use slrc_plan::ScalarFn;

use crate::ir::graph::{Init, NodeId};
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Add", note: "a + b", convert: add },
    Entry { op: "Sub", note: "a - b", convert: |cx| binary(cx, ScalarFn::Sub, Init::Constant(0.0)) },
    Entry { op: "Mul", note: "a * b", convert: |cx| binary(cx, ScalarFn::Mul, Init::Constant(1.0)) },
    Entry { op: "Div", note: "a / b; truncated for integers", convert: div },
    Entry { op: "Mod", note: "a - floor(a / b) * b; fmod is not supported", convert: modulo },
    Entry { op: "Pow", note: "small whole exponents as products", convert: pow },
    Entry { op: "Max", note: "select(a < b, b, a)", convert: |cx| extremum(cx, true) },
    Entry { op: "Min", note: "select(b < a, b, a)", convert: |cx| extremum(cx, false) },
    Entry { op: "Neg", note: "", convert: |cx| unary(cx, ScalarFn::Neg) },
    Entry { op: "Abs", note: "", convert: |cx| unary(cx, ScalarFn::Abs) },
    Entry { op: "Sign", note: "", convert: |cx| unary(cx, ScalarFn::Sign) },
    Entry { op: "Floor", note: "", convert: |cx| unary(cx, ScalarFn::Floor) },
    Entry { op: "Exp", note: "", convert: |cx| unary(cx, ScalarFn::Exp) },
    Entry { op: "Log", note: "", convert: |cx| unary(cx, ScalarFn::Log) },
    Entry { op: "Sqrt", note: "", convert: |cx| unary(cx, ScalarFn::Sqrt) },
    Entry { op: "Reciprocal", note: "", convert: |cx| unary(cx, ScalarFn::Recip) },
    Entry { op: "Tanh", note: "", convert: |cx| unary(cx, ScalarFn::Tanh) },
    Entry { op: "Sigmoid", note: "", convert: |cx| unary(cx, ScalarFn::Sigmoid) },
    Entry { op: "Erf", note: "", convert: |cx| unary(cx, ScalarFn::Erf) },
    Entry { op: "Sin", note: "", convert: |cx| unary(cx, ScalarFn::Sin) },
    Entry { op: "Cos", note: "", convert: |cx| unary(cx, ScalarFn::Cos) },
    Entry { op: "Relu", note: "select(0 < x, x, 0)", convert: relu },
    Entry { op: "LeakyRelu", note: "select(0 < x, x, alpha x)", convert: leaky_relu },
    Entry { op: "Elu", note: "select(0 < x, x, alpha (e^x - 1))", convert: elu },
    Entry { op: "Clip", note: "bounds known at import", convert: clip },
    Entry { op: "HardSigmoid", note: "clip(alpha x + beta, 0, 1)", convert: hard_sigmoid },
    Entry { op: "HardSwish", note: "x clip(x / 6 + 1/2, 0, 1)", convert: hard_swish },
    Entry { op: "Softplus", note: "max(x, 0) + log(1 + e^-|x|)", convert: softplus },
    Entry { op: "Gelu", note: "exact (erf) and tanh forms", convert: gelu },
    Entry { op: "Equal", note: "", convert: |cx| compare(cx, ScalarFn::Eq, false) },
    Entry { op: "Less", note: "", convert: |cx| compare(cx, ScalarFn::Lt, false) },
    Entry { op: "LessOrEqual", note: "", convert: |cx| compare(cx, ScalarFn::Le, false) },
    Entry { op: "Greater", note: "b < a", convert: |cx| compare(cx, ScalarFn::Lt, true) },
    Entry { op: "GreaterOrEqual", note: "b <= a", convert: |cx| compare(cx, ScalarFn::Le, true) },
    Entry { op: "And", note: "", convert: |cx| logical(cx, ScalarFn::And) },
    Entry { op: "Or", note: "", convert: |cx| logical(cx, ScalarFn::Or) },
    Entry { op: "Not", note: "", convert: not },
    Entry { op: "Where", note: "select(flag, a, b)", convert: select },
];

type R = Result<Vec<Out>, String>;

fn unary(cx: &mut Cx<'_, '_, '_>, f: ScalarFn) -> R {
    let elem = cx.elem(0)?;
    let x = cx.real(0)?;
    Ok(vec![Out::Node(cx.b.map(f, &[x]), elem)])
}

fn binary(cx: &mut Cx<'_, '_, '_>, f: ScalarFn, init: Init) -> R {
    let elem = cx.elem(0)?;
    let a = cx.real_or_weight(0, init)?;
    let b = cx.real_or_weight(1, init)?;
    Ok(vec![Out::Node(cx.b.binary(f, a, b), elem)])
}

fn add(cx: &mut Cx<'_, '_, '_>) -> R {
    // A weight of more than one row is a table of positions; a single row is a bias.
    let rows = |shape: Vec<usize>| shape.iter().filter(|&&d| d > 1).count();
    let table =
        (0..2).any(|i| matches!(cx.operand(i), crate::onnx::node::Operand::Weight(w) if rows(w.shape.clone()) > 1));
    binary(cx, ScalarFn::Add, if table { Init::Normal(0.02) } else { Init::Constant(0.0) })
}

fn div(cx: &mut Cx<'_, '_, '_>) -> R {
    let elem = cx.elem(0)?;
    let (a, b) = (cx.real(0)?, cx.real_or_weight(1, Init::Constant(1.0))?);
    let q = cx.b.binary(ScalarFn::Div, a, b);
    if elem != Elem::Int {
        return real(q);
    }
    // Truncation: sign(q) floor(|q|).
    let abs = cx.b.map(ScalarFn::Abs, &[q]);
    let floor = cx.b.map(ScalarFn::Floor, &[abs]);
    let sign = cx.b.map(ScalarFn::Sign, &[q]);
    Ok(vec![Out::Node(cx.b.mul(sign, floor), Elem::Int)])
}

fn modulo(cx: &mut Cx<'_, '_, '_>) -> R {
    if cx.int("fmod", 0) != 0 {
        return Err("fmod = 1 is not supported".into());
    }
    let elem = cx.elem(0)?;
    let (a, b) = (cx.real(0)?, cx.real(1)?);
    let (a, b) = cx.b.align(a, b);
    let q = cx.b.div(a, b);
    let floor = cx.b.map(ScalarFn::Floor, &[q]);
    let whole = cx.b.mul(floor, b);
    Ok(vec![Out::Node(cx.b.sub(a, whole), elem)])
}

fn pow(cx: &mut Cx<'_, '_, '_>) -> R {
    let exponent = cx.known(1)?.and_then(|c| c.single());
    let elem = cx.elem(0)?;
    let x = cx.real(0)?;
    let y = match exponent {
        Some(2.0) => cx.b.mul(x, x),
        Some(3.0) => {
            let square = cx.b.mul(x, x);
            cx.b.mul(square, x)
        }
        Some(0.5) => cx.b.map(ScalarFn::Sqrt, &[x]),
        Some(-0.5) => cx.b.map(ScalarFn::Rsqrt, &[x]),
        Some(-1.0) => cx.b.map(ScalarFn::Recip, &[x]),
        Some(1.0) => x,
        _ => {
            let p = cx.real(1)?;
            cx.b.binary(ScalarFn::Pow, x, p)
        }
    };
    Ok(vec![Out::Node(y, elem)])
}

fn extremum(cx: &mut Cx<'_, '_, '_>, max: bool) -> R {
    let elem = cx.elem(0)?;
    let mut best = cx.real(0)?;
    for i in 1..cx.proto.input.len() {
        let x = cx.real(i)?;
        let (a, b) = cx.b.align(best, x);
        let flag = if max { cx.b.map(ScalarFn::Lt, &[a, b]) } else { cx.b.map(ScalarFn::Lt, &[b, a]) };
        best = cx.b.select(flag, b, a);
    }
    Ok(vec![Out::Node(best, elem)])
}

/// `0 < x`.
fn positive(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let zero = cx.b.zeros_like(x);
    cx.b.map(ScalarFn::Lt, &[zero, x])
}

fn relu(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    real(crate::layers::relu(cx.b, x))
}

fn leaky_relu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 0.01);
    let x = cx.real(0)?;
    let flag = positive(cx, x);
    let small = cx.b.scale(x, alpha);
    real(cx.b.select(flag, x, small))
}

fn elu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 1.0);
    let x = cx.real(0)?;
    let flag = positive(cx, x);
    // The exponential is taken of min(x, 0), so the branch not chosen stays finite.
    let zero = cx.b.zeros_like(x);
    let low = cx.b.select(flag, zero, x);
    let e = cx.b.map(ScalarFn::Exp, &[low]);
    let shifted = cx.b.offset(e, -1.0);
    let curved = cx.b.scale(shifted, alpha);
    real(cx.b.select(flag, x, curved))
}

/// `min(max(x, low), high)`.
fn clamp(cx: &mut Cx<'_, '_, '_>, x: NodeId, low: Option<f64>, high: Option<f64>) -> NodeId {
    let mut y = x;
    if let Some(low) = low {
        let bound = cx.b.splat_like(y, low);
        let flag = cx.b.map(ScalarFn::Lt, &[bound, y]);
        y = cx.b.select(flag, y, bound);
    }
    if let Some(high) = high {
        let bound = cx.b.splat_like(y, high);
        let flag = cx.b.map(ScalarFn::Lt, &[y, bound]);
        y = cx.b.select(flag, y, bound);
    }
    y
}

fn clip(cx: &mut Cx<'_, '_, '_>) -> R {
    let elem = cx.elem(0)?;
    let bound = |cx: &Cx<'_, '_, '_>, i: usize, name: &str| -> Result<Option<f64>, String> {
        if cx.present(i) {
            return cx.known_number(i, "a bound").map(Some);
        }
        Ok(cx.has(name).then(|| cx.float(name, 0.0)))
    };
    let (low, high) = (bound(cx, 1, "min")?, bound(cx, 2, "max")?);
    let finite = |b: Option<f64>| b.filter(|x| x.abs() < f64::from(f32::MAX));
    let x = cx.real(0)?;
    Ok(vec![Out::Node(clamp(cx, x, finite(low), finite(high)), elem)])
}

fn hard_sigmoid(cx: &mut Cx<'_, '_, '_>) -> R {
    let (alpha, beta) = (cx.float("alpha", 0.2), cx.float("beta", 0.5));
    let x = cx.real(0)?;
    let scaled = cx.b.scale(x, alpha);
    let line = cx.b.offset(scaled, beta);
    real(clamp(cx, line, Some(0.0), Some(1.0)))
}

fn hard_swish(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let scaled = cx.b.scale(x, 1.0 / 6.0);
    let line = cx.b.offset(scaled, 0.5);
    let gate = clamp(cx, line, Some(0.0), Some(1.0));
    real(cx.b.mul(x, gate))
}

fn softplus(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let flag = positive(cx, x);
    let zero = cx.b.zeros_like(x);
    let top = cx.b.select(flag, x, zero);
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    let minus = cx.b.neg(abs);
    let e = cx.b.map(ScalarFn::Exp, &[minus]);
    let one_more = cx.b.offset(e, 1.0);
    let log = cx.b.map(ScalarFn::Log, &[one_more]);
    real(cx.b.add(top, log))
}

/// `x Phi(x)`, with Phi by erf or by `tanh(sqrt(2/pi) (x + 0.044715 x^3))` (Hendrycks and Gimpel, 2016).
fn gelu(cx: &mut Cx<'_, '_, '_>) -> R {
    let form = cx.string("approximate", "none");
    let x = cx.real(0)?;
    let inner = match form.as_str() {
        "none" => {
            let scaled = cx.b.scale(x, std::f64::consts::FRAC_1_SQRT_2);
            cx.b.map(ScalarFn::Erf, &[scaled])
        }
        "tanh" => {
            let square = cx.b.mul(x, x);
            let cube = cx.b.mul(square, x);
            let bend = cx.b.scale(cube, 0.044_715);
            let sum = cx.b.add(x, bend);
            let scaled = cx.b.scale(sum, (2.0 / std::f64::consts::PI).sqrt());
            cx.b.map(ScalarFn::Tanh, &[scaled])
        }
        other => return Err(format!("approximate = \"{other}\" does not exist")),
    };
    let one_more = cx.b.offset(inner, 1.0);
    let half = cx.b.scale(x, 0.5);
    real(cx.b.mul(half, one_more))
}

fn compare(cx: &mut Cx<'_, '_, '_>, f: ScalarFn, swap: bool) -> R {
    let (a, b) = (cx.real(0)?, cx.real(1)?);
    let (a, b) = if swap { (b, a) } else { (a, b) };
    Ok(vec![Out::Node(cx.b.binary(f, a, b), Elem::Bool)])
}

fn logical(cx: &mut Cx<'_, '_, '_>, f: ScalarFn) -> R {
    let (a, b) = (cx.flag(0)?, cx.flag(1)?);
    Ok(vec![Out::Node(cx.b.binary(f, a, b), Elem::Bool)])
}

fn not(cx: &mut Cx<'_, '_, '_>) -> R {
    let a = cx.flag(0)?;
    Ok(vec![Out::Node(cx.b.map(ScalarFn::Not, &[a]), Elem::Bool)])
}

fn select(cx: &mut Cx<'_, '_, '_>) -> R {
    let elem = cx.elem(1)?;
    // A condition known at import and the same everywhere chooses an operand.
    if let Some(c) = cx.known(0)?
        && !c.data.is_empty()
        && c.data.iter().all(|&x| (x != 0.0) == (c.data[0] != 0.0))
    {
        let (chosen, other) = if c.data[0] != 0.0 { (1, 2) } else { (2, 1) };
        let shape = crate::ir::builder::common_shape(&cx.shape(chosen)?, &cx.shape(other)?)
            .and_then(|s| crate::ir::builder::common_shape(&s, &c.shape))
            .ok_or("operands do not broadcast")?;
        let x = cx.real(chosen)?;
        return Ok(vec![Out::Node(cx.b.broadcast_to(x, &shape), elem)]);
    }
    let flag = cx.flag(0)?;
    let (a, b) = (cx.real(1)?, cx.real(2)?);
    let (a, b) = cx.b.align(a, b);
    let (flag, a) = cx.b.align(flag, a);
    let (flag, b) = cx.b.align(flag, b);
    Ok(vec![Out::Node(cx.b.select(flag, a, b), elem)])
}
