//! Elementwise ops: arithmetic, comparisons, logic.

use slrc_plan::ScalarFn;

use crate::ir::graph::{Init, NodeId};
use crate::ir::ops::map::Map;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Add", note: "a + b", convert: add },
    Entry { op: "Sub", note: "a - b", convert: |cx| binary(cx, ScalarFn::Sub, Init::Constant(0.0)) },
    Entry { op: "Mul", note: "a * b", convert: |cx| binary(cx, ScalarFn::Mul, Init::Constant(1.0)) },
    Entry { op: "Div", note: "a / b; truncated for integers", convert: div },
    Entry { op: "Mod", note: "a - floor(a / b) * b, with fmod = 1 truncated", convert: modulo },
    Entry { op: "Sum", note: "", convert: |cx| sum_of(cx, false) },
    Entry { op: "Mean", note: "", convert: |cx| sum_of(cx, true) },
    Entry { op: "Pow", note: "small whole exponents as products", convert: pow },
    Entry { op: "Max", note: "select(a < b, b, a)", convert: |cx| extremum(cx, true) },
    Entry { op: "Min", note: "select(b < a, b, a)", convert: |cx| extremum(cx, false) },
    Entry { op: "Neg", note: "", convert: |cx| unary(cx, ScalarFn::Neg) },
    Entry { op: "Abs", note: "", convert: |cx| unary(cx, ScalarFn::Abs) },
    Entry { op: "Sign", note: "", convert: |cx| unary(cx, ScalarFn::Sign) },
    Entry { op: "Floor", note: "", convert: |cx| unary(cx, ScalarFn::Floor) },
    Entry { op: "Ceil", note: "-floor(-x)", convert: ceil },
    Entry {
        op: "Round",
        note: "halves to the even side",
        convert: |cx| {
            let x = cx.real(0)?;
            real(nearest_even(cx, x))
        },
    },
    Entry { op: "IsNaN", note: "", convert: is_nan },
    Entry { op: "IsInf", note: "", convert: is_inf },
    Entry { op: "Exp", note: "", convert: |cx| unary(cx, ScalarFn::Exp) },
    Entry { op: "Log", note: "", convert: |cx| unary(cx, ScalarFn::Log) },
    Entry { op: "Sqrt", note: "", convert: |cx| unary(cx, ScalarFn::Sqrt) },
    Entry { op: "Reciprocal", note: "", convert: |cx| unary(cx, ScalarFn::Recip) },
    Entry { op: "Tanh", note: "", convert: |cx| unary(cx, ScalarFn::Tanh) },
    Entry { op: "Sigmoid", note: "", convert: |cx| unary(cx, ScalarFn::Sigmoid) },
    Entry { op: "Erf", note: "", convert: |cx| unary(cx, ScalarFn::Erf) },
    Entry { op: "Equal", note: "", convert: |cx| compare(cx, ScalarFn::Eq, false) },
    Entry { op: "Less", note: "", convert: |cx| compare(cx, ScalarFn::Lt, false) },
    Entry { op: "LessOrEqual", note: "", convert: |cx| compare(cx, ScalarFn::Le, false) },
    Entry { op: "Greater", note: "b < a", convert: |cx| compare(cx, ScalarFn::Lt, true) },
    Entry { op: "GreaterOrEqual", note: "b <= a", convert: |cx| compare(cx, ScalarFn::Le, true) },
    Entry { op: "And", note: "", convert: |cx| logical(cx, ScalarFn::And) },
    Entry { op: "Or", note: "", convert: |cx| logical(cx, ScalarFn::Or) },
    Entry { op: "Xor", note: "", convert: xor },
    Entry { op: "Not", note: "", convert: not },
    Entry { op: "Where", note: "select(flag, a, b)", convert: select },
];

type R = Result<Vec<Out>, String>;

/// Before this opset the second operand's dimensions are some of the first's, those from the attribute `axis` on.
const BROADCASTS: i64 = 7;

/// The second of two operands, with dimensions of one element behind its own where an old file says so.
fn along_axis(cx: &mut Cx<'_, '_, '_>, a: NodeId, b: NodeId) -> Result<NodeId, String> {
    // Without an axis they are the last dimensions.
    if cx.opset >= BROADCASTS || cx.int("broadcast", 0) == 0 || !cx.has("axis") {
        return Ok(b);
    }
    let (of_a, of_b) = (cx.b.shape(a), cx.b.shape(b));
    let axis = cx.int("axis", 0);
    let end = usize::try_from(axis).ok().and_then(|axis| axis.checked_add(of_b.len()));
    let behind = end.and_then(|end| of_a.len().checked_sub(end));
    let behind = behind.ok_or_else(|| format!("shape {of_b:?} does not lie in {of_a:?} from dimension {axis} on"))?;
    Ok(cx.b.reshape(b, &[&of_b[..], &vec![1; behind]].concat()))
}

fn unary(cx: &mut Cx<'_, '_, '_>, f: ScalarFn) -> R {
    let elem = cx.elem(0)?;
    let x = cx.real(0)?;
    Ok(vec![Out::Node(cx.b.map(f, &[x]), elem)])
}

fn binary(cx: &mut Cx<'_, '_, '_>, f: ScalarFn, init: Init) -> R {
    let elem = cx.elem(0)?;
    let a = cx.real_or_weight(0, init)?;
    let b = cx.real_or_weight(1, init)?;
    let b = along_axis(cx, a, b)?;
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
    let b = along_axis(cx, a, b)?;
    let q = cx.b.binary(ScalarFn::Div, a, b);
    if elem != Elem::Int {
        return real(q);
    }
    Ok(vec![Out::Node(truncate(cx, q), Elem::Int)])
}

fn modulo(cx: &mut Cx<'_, '_, '_>) -> R {
    let truncated = cx.int("fmod", 0) != 0;
    let elem = cx.elem(0)?;
    let (a, b) = (cx.real(0)?, cx.real(1)?);
    let (a, b) = cx.b.align(a, b);
    let q = cx.b.div(a, b);
    let whole = if truncated { truncate(cx, q) } else { cx.b.map(ScalarFn::Floor, &[q]) };
    let times = cx.b.mul(whole, b);
    if elem == Elem::Int {
        return Ok(vec![Out::Node(cx.b.sub(a, times), elem)]);
    }
    // Of an infinite divisor no time is taken away, and one where it lies on the other side of zero.
    let none = cx.b.zeros_like(a);
    let no_times = cx.b.map(ScalarFn::Eq, &[whole, none]);
    let times = cx.b.select(no_times, none, times);
    let mut rest = cx.b.sub(a, times);
    if !truncated {
        let far = cx.b.map(ScalarFn::Abs, &[b]);
        let infinite = cx.b.splat_like(b, f64::INFINITY);
        let infinite = cx.b.map(ScalarFn::Eq, &[far, infinite]);
        // Their quotient is zero, whatever its sign.
        let (of_a, of_b) = (cx.b.map(ScalarFn::Sign, &[a]), cx.b.map(ScalarFn::Sign, &[b]));
        let signs = cx.b.mul(of_a, of_b);
        let opposite = cx.b.map(ScalarFn::Lt, &[signs, none]);
        let across = cx.b.map(ScalarFn::And, &[infinite, opposite]);
        rest = cx.b.select(across, b, rest);
    }
    real(rest)
}

/// Towards zero.
pub(super) fn truncate(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    let floor = cx.b.map(ScalarFn::Floor, &[abs]);
    let sign = cx.b.map(ScalarFn::Sign, &[x]);
    cx.b.mul(sign, floor)
}

fn ceil(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let minus = cx.b.neg(x);
    let floor = cx.b.map(ScalarFn::Floor, &[minus]);
    real(cx.b.neg(floor))
}

/// `floor(x + 1/2)`, less one where that is an odd number half away.
pub(super) fn nearest_even(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let up = cx.b.offset(x, 0.5);
    let up = cx.b.map(ScalarFn::Floor, &[up]);
    let distance = cx.b.sub(up, x);
    let half = cx.b.splat_like(x, 0.5);
    let tie = cx.b.map(ScalarFn::Eq, &[distance, half]);
    let halved = cx.b.scale(up, 0.5);
    let floor = cx.b.map(ScalarFn::Floor, &[halved]);
    let even = cx.b.map(ScalarFn::Eq, &[floor, halved]);
    let odd = cx.b.map(ScalarFn::Not, &[even]);
    let less = cx.b.map(ScalarFn::And, &[tie, odd]);
    let down = cx.b.offset(up, -1.0);
    cx.b.select(less, down, up)
}

fn is_nan(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let same = cx.b.emit(Map(ScalarFn::Eq), &[x, x]);
    Ok(vec![Out::Node(cx.b.map(ScalarFn::Not, &[same]), Elem::Bool)])
}

fn is_inf(cx: &mut Cx<'_, '_, '_>) -> R {
    let (up, down) = (cx.int("detect_positive", 1) != 0, cx.int("detect_negative", 1) != 0);
    let x = cx.real(0)?;
    let y = match (up, down) {
        (true, true) => cx.b.map(ScalarFn::Abs, &[x]),
        (true, false) => x,
        (false, true) => cx.b.neg(x),
        (false, false) => cx.b.zeros_like(x),
    };
    let largest = cx.b.splat_like(x, f64::from(f32::MAX));
    Ok(vec![Out::Node(cx.b.map(ScalarFn::Lt, &[largest, y]), Elem::Bool)])
}

fn sum_of(cx: &mut Cx<'_, '_, '_>, mean: bool) -> R {
    let n = cx.proto.input.len();
    let mut sum = cx.real(0)?;
    for i in 1..n {
        let x = cx.real(i)?;
        sum = cx.b.binary(ScalarFn::Add, sum, x);
    }
    real(if mean { cx.b.scale(sum, 1.0 / n as f64) } else { sum })
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

fn compare(cx: &mut Cx<'_, '_, '_>, f: ScalarFn, swap: bool) -> R {
    let (a, b) = (cx.real(0)?, cx.real(1)?);
    let b = along_axis(cx, a, b)?;
    let (a, b) = if swap { (b, a) } else { (a, b) };
    Ok(vec![Out::Node(cx.b.binary(f, a, b), Elem::Bool)])
}

fn logical(cx: &mut Cx<'_, '_, '_>, f: ScalarFn) -> R {
    let (a, b) = (cx.flag(0)?, cx.flag(1)?);
    let b = along_axis(cx, a, b)?;
    Ok(vec![Out::Node(cx.b.binary(f, a, b), Elem::Bool)])
}

fn xor(cx: &mut Cx<'_, '_, '_>) -> R {
    let (a, b) = (cx.flag(0)?, cx.flag(1)?);
    let b = along_axis(cx, a, b)?;
    let (a, b) = (cx.b.number(a), cx.b.number(b));
    let same = cx.b.binary(ScalarFn::Eq, a, b);
    Ok(vec![Out::Node(cx.b.map(ScalarFn::Not, &[same]), Elem::Bool)])
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
