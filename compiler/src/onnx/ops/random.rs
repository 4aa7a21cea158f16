//! Random numbers: a plan draws its own, new ones every step and the same in all passes of one. What a file says of
//! seeds is not followed. In inference they are drawn, too, the same ones for every batch.
//!
//! A draw of 0 or 1 is its chance in inference: stochastic depth, as files exported in training mode spell it out, then
//! is nothing, as it should be.

use std::f64::consts::TAU;

use slrc_plan::ScalarFn;

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::Op;
use crate::ir::ops::map::Map;
use crate::onnx::node::{Cx, Operand, Out};
use crate::onnx::ops::Entry;
use crate::onnx::tensor::{Elem, elem, type_name};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Bernoulli", note: "a plan draws its own; its chance in inference", convert: bernoulli },
    Entry { op: "RandomNormal", note: "a plan draws its own", convert: |cx| normal(cx, false) },
    Entry { op: "RandomNormalLike", note: "as RandomNormal", convert: |cx| normal(cx, true) },
    Entry { op: "RandomUniform", note: "a plan draws its own", convert: |cx| uniform(cx, false) },
    Entry { op: "RandomUniformLike", note: "as RandomUniform", convert: |cx| uniform(cx, true) },
];

/// Operators whose result is not known, whatever is known of their operands.
pub(crate) const DRAW: &[&str] =
    &["Bernoulli", "Dropout", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

type R = Result<Vec<Out>, String>;

/// Uniform numbers in [0, 1) of a stream of their own.
fn draw(cx: &mut Cx<'_, '_, '_>, shape: &[usize]) -> NodeId {
    let stream = cx.state.streams;
    cx.state.streams += 1;
    cx.state.note("the network draws random numbers: a plan draws its own, every step anew");
    cx.b.random(stream, shape)
}

/// What is to be filled. A file says the batch that it was exported with.
fn shape(cx: &mut Cx<'_, '_, '_>, like: bool) -> Result<Vec<usize>, String> {
    let known = !like || matches!(cx.operand(0), Operand::Const(_));
    let mut shape = if like {
        cx.shape(0)?
    } else {
        let dims = cx.ints("shape").ok_or("it has no shape")?;
        dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().map_err(|_| "an extent below 0")?
    };
    if let (true, Some((old, new)), Some(first)) = (known, cx.state.rebatch, shape.first_mut())
        && *first == old
    {
        *first = new;
    }
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
    cx.state.allowance.compute(count)?;
    Ok(shape)
}

/// Whether the result is of a type of floats, as it must be.
fn floats(cx: &Cx<'_, '_, '_>) -> Result<(), String> {
    match cx.int("dtype", 1) {
        1 | 10 | 11 | 16 => Ok(()),
        other => Err(format!("a dtype of {other} is no type of floats")),
    }
}

fn uniform(cx: &mut Cx<'_, '_, '_>, like: bool) -> R {
    floats(cx)?;
    let (low, high) = (cx.float("low", 0.0), cx.float("high", 1.0));
    let shape = shape(cx, like)?;
    let mut r = draw(cx, &shape);
    if (low, high) != (0.0, 1.0) {
        let (wide, low) = (cx.b.scale(r, high - low), cx.b.splat(low, &shape));
        r = cx.b.add(wide, low);
    }
    Ok(vec![Out::Node(r, Elem::Float)])
}

/// `mean + scale sqrt(-2 log(1 - u)) cos(2 pi v)`, after Box and Muller.
fn normal(cx: &mut Cx<'_, '_, '_>, like: bool) -> R {
    floats(cx)?;
    let (mean, scale) = (cx.float("mean", 0.0), cx.float("scale", 1.0));
    let shape = shape(cx, like)?;
    let (u, v) = (draw(cx, &shape), draw(cx, &shape));
    let (one, mean) = (cx.b.splat(1.0, &shape), cx.b.splat(mean, &shape));
    let rest = cx.b.sub(one, u);
    let log = cx.b.map(ScalarFn::Log, &[rest]);
    let squared = cx.b.scale(log, -2.0);
    let radius = cx.b.map(ScalarFn::Sqrt, &[squared]);
    let angle = cx.b.scale(v, TAU);
    let side = cx.b.map(ScalarFn::Cos, &[angle]);
    let r = cx.b.mul(radius, side);
    let r = cx.b.scale(r, scale);
    Ok(vec![Out::Node(cx.b.add(r, mean), Elem::Float)])
}

fn bernoulli(cx: &mut Cx<'_, '_, '_>) -> R {
    let code = cx.int("dtype", 1) as i32;
    let to = elem(code).ok_or_else(|| format!("draws of {} are not supported", type_name(code)))?;
    let chance = cx.fixed(0)?;
    let shape = cx.b.shape(chance);
    let r = draw(cx, &shape);
    let drawn = cx.b.map(ScalarFn::Lt, &[r, chance]);
    Ok(vec![Out::Node(
        match to {
            Elem::Bool => drawn,
            Elem::Int => cx.b.number(drawn),
            Elem::Float => {
                let number = cx.b.number(drawn);
                cx.b.mode_select(number, chance)
            }
        },
        to,
    )])
}

/// Of a flag that compares a uniform number with a chance that is known: how likely it is.
pub(super) fn likelihood(b: &Builder<'_>, flag: NodeId) -> Option<f64> {
    let node = |id: NodeId| b.graph().node(id);
    let (Op::Map(Map(ScalarFn::Lt | ScalarFn::Le)), &[left, right]) = (&node(flag).op, &node(flag).operands[..]) else {
        return None;
    };
    match (&node(left).op, &node(right).op) {
        (Op::Random(_), known) => known.splat().map(|p| p.clamp(0.0, 1.0)),
        (known, Op::Random(_)) => known.splat().map(|p| 1.0 - p.clamp(0.0, 1.0)),
        _ => None,
    }
}
