//! Quantized numbers as what they stand for: scaled integers. Rounding ends gradients.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::onnx::narrow::{Narrow, bounds};
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::elementwise::nearest_even;
use crate::onnx::ops::linear::{convolve, multiply};
use crate::onnx::ops::shape::part;
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::{Const, Elem, type_name};

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "QuantizeLinear",
        note: "round(x / scale) + zero point, not of what depends on weights; to small floats known at import",
        convert: quantize,
    },
    Entry { op: "DequantizeLinear", note: "(x - zero point) scale; not of weights", convert: dequantize },
    Entry { op: "DynamicQuantizeLinear", note: "to eight bits between least and greatest", convert: dynamic },
    Entry { op: "QLinearMatMul", note: "of what the integers stand for, rounded", convert: quantized_matmul },
    Entry { op: "QLinearConv", note: "of what the integers stand for, rounded", convert: quantized_conv },
    Entry { op: "MatMulInteger", note: "less the zero points", convert: integer_matmul },
    Entry { op: "ConvInteger", note: "less the zero points", convert: integer_conv },
];

type R = Result<Vec<Out>, String>;

/// UINT8 of onnx.proto.
const BYTE: i32 = 2;

/// Least and greatest number of an integer type.
fn range(code: i32) -> Result<(f64, f64), String> {
    match (code, Narrow::of(code)) {
        (_, Some(Narrow::Int { bits, signed })) => Ok(bounds(bits, signed)),
        (2..=5, _) => Ok(bounds(if code < 4 { 8 } else { 16 }, code % 2 == 1)),
        _ => Err(format!("numbers are not quantized to {}", type_name(code))),
    }
}

/// A scale or zero point in the shape of what it belongs to: one number, one an element of `axis`, one a block along
/// it, or whatever broadcasts.
fn aligned(cx: &mut Cx<'_, '_, '_>, v: NodeId, shape: &[usize], axis: usize, block: usize) -> Result<NodeId, String> {
    let s = cx.b.shape(v);
    if s.iter().product::<usize>() == 1 {
        let v = cx.b.reshape(v, &[]);
        return Ok(cx.b.broadcast_to(v, shape));
    }
    let extent = *shape.get(axis).ok_or_else(|| format!("axis {axis} does not exist in {shape:?}"))?;
    if block > 0 && s.len() == shape.len() && s[axis] == extent.div_ceil(block) {
        let (mut apart, mut wide) = (s.clone(), s.clone());
        apart.insert(axis + 1, 1);
        wide.insert(axis + 1, block);
        let v = cx.b.reshape(v, &apart);
        let v = cx.b.broadcast(v, &wide);
        let mut joined = s.clone();
        joined[axis] *= block;
        let v = cx.b.reshape(v, &joined);
        return Ok(part(cx, v, axis, 0, extent));
    }
    if block == 0 && s == [extent] {
        let mut along = vec![1; shape.len()];
        along[axis] = extent;
        let v = cx.b.reshape(v, &along);
        return Ok(cx.b.broadcast(v, shape));
    }
    Ok(cx.b.broadcast_to(v, shape))
}

/// `clip(round(x / scale) + zero, low, high)`.
fn rounded(
    cx: &mut Cx<'_, '_, '_>,
    x: NodeId,
    scale: NodeId,
    zero: Option<NodeId>,
    code: i32,
) -> Result<NodeId, String> {
    let (low, high) = range(code)?;
    let q = cx.b.div(x, scale);
    let q = nearest_even(cx, q);
    let q = zero.map_or(q, |z| cx.b.add(q, z));
    let (low, high) = (cx.b.splat_like(q, low), cx.b.splat_like(q, high));
    let under = cx.b.map(ScalarFn::Lt, &[q, low]);
    let q = cx.b.select(under, low, q);
    let over = cx.b.map(ScalarFn::Lt, &[high, q]);
    Ok(cx.b.select(over, high, q))
}

fn quantize(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let (axis, block) = (cx.int("axis", 1), cx.int("block_size", 0).max(0) as usize);
    let axis = cx.axis(axis, s.len().max(2))?;
    let (wanted, saturate) = (cx.int("output_dtype", 0) as i32, cx.int("saturate", 1) != 0);
    // Numbers in between are exact here.
    let _ = cx.int("precision", 0);
    let code = match (wanted, cx.present(2)) {
        (0, false) => BYTE,
        (0, true) => cx.declared(2).ok_or("the type of its zero point is not declared")?,
        (code, _) => code,
    };
    if let Some(narrow @ Narrow::Float(_)) = Narrow::of(code) {
        let (x, scale) = (cx.fixed_values(0)?, cx.fixed_values(1)?.and_then(|c| c.single()));
        let (Some(x), Some(scale)) = (x, scale) else {
            return Err(format!("{} numbers and their one scale have to be known at import", type_name(code)));
        };
        let data = x.data.iter().map(|&x| narrow.cast(x / scale, saturate, None)).collect();
        return Ok(vec![Out::Const(Const { elem: Elem::Float, shape: s, data })]);
    }
    let (x, scale) = (cx.real(0)?, cx.fixed(1)?);
    let scale = aligned(cx, scale, &s, axis, block)?;
    let zero = zero_point(cx, 2, &s, axis, block)?;
    Ok(vec![Out::Node(rounded(cx, x, scale, zero, code)?, Elem::Int)])
}

fn zero_point(
    cx: &mut Cx<'_, '_, '_>,
    i: usize,
    shape: &[usize],
    axis: usize,
    block: usize,
) -> Result<Option<NodeId>, String> {
    if !cx.present(i) {
        return Ok(None);
    }
    let zero = cx.fixed(i)?;
    aligned(cx, zero, shape, axis, block).map(Some)
}

/// `(x - zero) scale` of operands `i`, `i + 1` and `i + 2`.
fn meant(cx: &mut Cx<'_, '_, '_>, i: usize, axis: usize, block: usize) -> Result<NodeId, String> {
    let s = cx.shape(i)?;
    let (x, scale) = (cx.fixed(i)?, cx.fixed(i + 1)?);
    let x = less_zero(cx, x, i + 2, &s, axis, block)?;
    let scale = aligned(cx, scale, &s, axis, block)?;
    Ok(cx.b.mul(x, scale))
}

fn less_zero(
    cx: &mut Cx<'_, '_, '_>,
    x: NodeId,
    zero: usize,
    shape: &[usize],
    axis: usize,
    block: usize,
) -> Result<NodeId, String> {
    let zero = zero_point(cx, zero, shape, axis, block)?;
    Ok(zero.map_or(x, |z| cx.b.sub(x, z)))
}

fn dequantize(cx: &mut Cx<'_, '_, '_>) -> R {
    let rank = cx.shape(0)?.len();
    let (axis, block) = (cx.int("axis", 1), cx.int("block_size", 0).max(0) as usize);
    let axis = cx.axis(axis, rank.max(2))?;
    // All floats are one type.
    let _ = cx.int("output_dtype", 0);
    real(meant(cx, 0, axis, block)?)
}

/// The greater of a number and zero.
fn at_least_zero(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let zero = cx.b.zeros_like(x);
    let under = cx.b.map(ScalarFn::Lt, &[x, zero]);
    cx.b.select(under, zero, x)
}

fn dynamic(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let s = cx.b.shape(x);
    let axes: Vec<usize> = (0..s.len()).collect();
    let minus = cx.b.neg(x);
    let [greatest, least] = [x, minus].map(|x| {
        let most = cx.b.max(x, &axes);
        let most = cx.b.reshape(most, &[]);
        at_least_zero(cx, most)
    });
    let span = cx.b.add(greatest, least);
    let scale = cx.b.scale(span, 1.0 / 255.0);
    let zero = cx.b.zeros_like(scale);
    let first = rounded(cx, least, scale, Some(zero), BYTE)?;
    let (wide, zeros) = (cx.b.broadcast_to(scale, &s), cx.b.broadcast_to(first, &s));
    let y = rounded(cx, x, wide, Some(zeros), BYTE)?;
    Ok(vec![Out::Node(y, Elem::Int), Out::Node(scale, Elem::Float), Out::Node(first, Elem::Int)])
}

/// Rounds to the scale and zero point of operands `i` and `i + 1`.
fn to_output(cx: &mut Cx<'_, '_, '_>, y: NodeId, i: usize, axis: usize) -> R {
    let s = cx.b.shape(y);
    let code = cx.declared(i + 1).or(cx.declared_output(0)).ok_or("the type of its zero point is not declared")?;
    let scale = cx.fixed(i)?;
    let scale = aligned(cx, scale, &s, axis, 0)?;
    let zero = zero_point(cx, i + 1, &s, axis, 0)?;
    Ok(vec![Out::Node(rounded(cx, y, scale, zero, code)?, Elem::Int)])
}

/// Axes of the rows of operand `a` and of the columns of operand `b`.
fn row_and_column(cx: &Cx<'_, '_, '_>, a: usize, b: usize) -> Result<[usize; 2], String> {
    let [ra, rb] = [cx.shape(a)?.len(), cx.shape(b)?.len()];
    if ra < 2 || rb < 2 { Err("operands are not matrices".into()) } else { Ok([ra - 2, rb - 1]) }
}

fn quantized_matmul(cx: &mut Cx<'_, '_, '_>) -> R {
    let [row, column] = row_and_column(cx, 0, 3)?;
    let (a, b) = (meant(cx, 0, row, 0)?, meant(cx, 3, column, 0)?);
    let y = multiply(cx, a, b)?;
    let axis = cx.b.shape(y).len() - 2;
    to_output(cx, y, 6, axis)
}

fn integer_matmul(cx: &mut Cx<'_, '_, '_>) -> R {
    let [row, column] = row_and_column(cx, 0, 1)?;
    let (sa, sb) = (cx.shape(0)?, cx.shape(1)?);
    let (a, b) = (cx.fixed(0)?, cx.fixed(1)?);
    let (a, b) = (less_zero(cx, a, 2, &sa, row, 0)?, less_zero(cx, b, 3, &sb, column, 0)?);
    Ok(vec![Out::Node(multiply(cx, a, b)?, Elem::Int)])
}

fn quantized_conv(cx: &mut Cx<'_, '_, '_>) -> R {
    let (x, w) = (meant(cx, 0, 1, 0)?, meant(cx, 3, 0, 0)?);
    let mut y = convolve(cx, x, w)?;
    if cx.present(8) {
        // In units of both scales.
        let channels = cx.shape(3)?[0];
        let (bias, of_x, of_w) = (cx.fixed(8)?, cx.fixed(1)?, cx.fixed(4)?);
        let of_x = aligned(cx, of_x, &[channels], 0, 0)?;
        let of_w = aligned(cx, of_w, &[channels], 0, 0)?;
        let unit = cx.b.mul(of_x, of_w);
        let bias = cx.b.binary(ScalarFn::Mul, bias, unit);
        let s = cx.b.shape(y);
        let bias = aligned(cx, bias, &s, 1, 0)?;
        y = cx.b.add(y, bias);
    }
    to_output(cx, y, 6, 1)
}

fn integer_conv(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    let (x, w) = (cx.fixed(0)?, cx.fixed(1)?);
    let (x, w) = (less_zero(cx, x, 2, &xs, 1, 0)?, less_zero(cx, w, 3, &ws, 0, 0)?);
    Ok(vec![Out::Node(convolve(cx, x, w)?, Elem::Int)])
}
