//! Bits of integers that are known at import, as shapes and indices are.

use crate::ir::builder::common_shape;
use crate::ir::tensor::for_each_index;
use crate::onnx::folding::constant_of;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;
use crate::onnx::tensor::{Const, type_name};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "BitShift", note: "operands known at import", convert: shift },
    Entry { op: "BitwiseAnd", note: "operands known at import", convert: |cx| both(cx, |a, b| (a & b) as f64) },
    Entry { op: "BitwiseOr", note: "operands known at import", convert: |cx| both(cx, |a, b| (a | b) as f64) },
    Entry { op: "BitwiseXor", note: "operands known at import", convert: |cx| both(cx, |a, b| (a ^ b) as f64) },
    Entry { op: "BitwiseNot", note: "operand known at import", convert: not },
];

type R = Result<Vec<Out>, String>;

fn integers(cx: &Cx<'_, '_, '_>, i: usize) -> Result<Const, String> {
    cx.known(i)?.ok_or_else(|| "its operands depend on the data; slrc needs them known at import".into())
}

/// Bits of the operand's type, and whether it has negative numbers.
fn width(cx: &Cx<'_, '_, '_>) -> Result<(u32, bool), String> {
    let code = cx.declared(0).ok_or("the type of its operand is not declared")?;
    match code {
        2..=5 => Ok((if code < 4 { 8 } else { 16 }, code % 2 == 1)),
        6 | 12 => Ok((32, code == 6)),
        7 | 13 => Ok((64, code == 7)),
        _ => Err(format!("bits of {} are not known", type_name(code))),
    }
}

/// The number that the lowest bits stand for.
fn wrapped(x: i64, bits: u32, signed: bool) -> f64 {
    let above = 64 - bits;
    if signed { (x << above >> above) as f64 } else { ((x as u64) << above >> above) as f64 }
}

fn both(cx: &mut Cx<'_, '_, '_>, f: impl Fn(i64, i64) -> f64) -> R {
    let (a, b) = (integers(cx, 0)?, integers(cx, 1)?);
    let shape = common_shape(&a.shape, &b.shape).ok_or("its operands do not broadcast")?;
    // Every constant that is read is in memory; what they broadcast to need not fit there.
    let mut data = Vec::with_capacity(constant_of(&shape)?);
    let at = |c: &Const, index: &[usize]| -> i64 {
        let own = &index[index.len() - c.shape.len()..];
        c.data[own.iter().zip(&c.shape).fold(0, |at, (&i, &n)| at * n + if n == 1 { 0 } else { i })] as i64
    };
    for_each_index(&shape, |i| data.push(f(at(&a, i), at(&b, i))));
    Ok(vec![Out::Const(Const { elem: a.elem, shape, data })])
}

/// Shifts by what is no number of bits leave zeros, or the sign.
fn shift(cx: &mut Cx<'_, '_, '_>) -> R {
    let (bits, signed) = width(cx)?;
    let within = move |n: i64| (0..i64::from(bits)).contains(&n);
    match cx.string("direction", "").as_str() {
        "LEFT" => both(cx, |a, n| if within(n) { wrapped(a << n, bits, signed) } else { 0.0 }),
        "RIGHT" if signed => both(cx, |a, n| (a >> if within(n) { n } else { 63 }) as f64),
        "RIGHT" => both(cx, |a, n| if within(n) { (a as u64 >> n) as f64 } else { 0.0 }),
        other => Err(format!("direction \"{other}\" does not exist")),
    }
}

fn not(cx: &mut Cx<'_, '_, '_>) -> R {
    let (bits, signed) = width(cx)?;
    let c = integers(cx, 0)?;
    let data = c.data.iter().map(|&x| wrapped(!(x as i64), bits, signed)).collect();
    Ok(vec![Out::Const(Const { elem: c.elem, shape: c.shape, data })])
}
