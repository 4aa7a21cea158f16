//! Ops whose result is known at import, and ops that only pass values on.

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use protobuf::Enum as _;
use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::types::{DType, Type};
use crate::onnx::folding::constant_of;
use crate::onnx::import::int_const;
use crate::onnx::narrow::Narrow;
use crate::onnx::node::{Cx, Operand, Out};
use crate::onnx::ops::Entry;
use crate::onnx::ops::random::likelihood;
use crate::onnx::tensor::{Const, Elem, elem, read_numbers, type_name};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Constant", note: "dense values", convert: constant },
    Entry { op: "ConstantOfShape", note: "shape known at import", convert: constant_of_shape },
    Entry { op: "Shape", note: "computed at import", convert: shape },
    Entry { op: "Size", note: "computed at import", convert: size },
    Entry { op: "Range", note: "computed at import", convert: range },
    Entry { op: "Identity", note: "passed through", convert: identity },
    Entry {
        op: "Cast",
        note: "between floats: none (all are f32); to integers: truncated, and of no use as indices; to types of less than 16 bits: known at import",
        convert: cast,
    },
    Entry { op: "CastLike", note: "as Cast", convert: cast_like },
    Entry { op: "Dropout", note: "random in training, nothing in inference", convert: dropout },
];

type R = Result<Vec<Out>, String>;

fn constant(cx: &mut Cx<'_, '_, '_>) -> R {
    let numbers = |elem: Elem, data: Vec<f64>, scalar: bool| {
        let shape = if scalar { vec![] } else { vec![data.len()] };
        Ok(vec![Out::Const(Const { elem, shape, data })])
    };
    if let Some(t) = cx.tensor("value") {
        return Ok(vec![Out::Const(read_numbers(cx.state.file, t).map_err(|e| e.to_string())?)]);
    }
    for (name, ty) in [("value_int", AttributeType::INT), ("value_float", AttributeType::FLOAT)] {
        if cx.attribute_type(name) == Some(ty) {
            return match ty {
                AttributeType::INT => numbers(Elem::Int, vec![cx.int(name, 0) as f64], true),
                _ => numbers(Elem::Float, vec![cx.float(name, 0.0)], true),
            };
        }
    }
    if let Some(v) = cx.ints("value_ints") {
        return numbers(Elem::Int, v.iter().map(|&x| x as f64).collect(), false);
    }
    if let Some(v) = cx.floats("value_floats") {
        return numbers(Elem::Float, v, false);
    }
    Err("only numeric dense constants are supported".into())
}

fn known_extents(cx: &Cx<'_, '_, '_>, i: usize) -> Result<Vec<usize>, String> {
    let dims = cx.known_ints(i, "the shape")?;
    let shape: Vec<usize> = dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("extent {d} is negative")))
        .collect::<Result<_, _>>()?;
    constant_of(&shape)?;
    Ok(shape)
}

fn constant_of_shape(cx: &mut Cx<'_, '_, '_>) -> R {
    let shape = known_extents(cx, 0)?;
    let value = match cx.tensor("value") {
        Some(t) => read_numbers(cx.state.file, t).map_err(|e| e.to_string())?,
        None => Const { elem: Elem::Float, shape: vec![1], data: vec![0.0] },
    };
    let x = value.single().ok_or("its value must have one element")?;
    let n = shape.iter().product();
    Ok(vec![Out::Const(Const { elem: value.elem, shape, data: vec![x; n] })])
}

fn shape(cx: &mut Cx<'_, '_, '_>) -> R {
    let full = cx.shape(0)?;
    let rank = full.len() as i64;
    let clamp = |x: i64| (if x < 0 { x + rank } else { x }).clamp(0, rank) as usize;
    let (start, end) = (clamp(cx.int("start", 0)), clamp(cx.int("end", rank)));
    let part: Vec<f64> = full.get(start..end).unwrap_or(&[]).iter().map(|&d| d as f64).collect();
    Ok(vec![int_const(vec![part.len()], part)])
}

fn size(cx: &mut Cx<'_, '_, '_>) -> R {
    let n: usize = cx.shape(0)?.iter().product();
    Ok(vec![int_const(vec![], vec![n as f64])])
}

fn range(cx: &mut Cx<'_, '_, '_>) -> R {
    let [start, limit, delta] = [0, 1, 2].map(|i| cx.known_number(i, "a bound of the range"));
    let (start, limit, delta) = (start?, limit?, delta?);
    let count = ((limit - start) / delta).ceil().max(0.0);
    // A bound that is not a number fails too.
    if count.is_nan() || count > (1u64 << 26) as f64 {
        return Err(format!("a range from {start} to {limit} by {delta} has no usable length"));
    }
    let elem = cx.elem(0)?;
    let data: Vec<f64> = (0..count as usize).map(|i| start + i as f64 * delta).collect();
    Ok(vec![Out::Const(Const { elem, shape: vec![data.len()], data })])
}

/// An exporter that merges equal initializers routes each use through an Identity whose output has the weight's own
/// name.
fn identity(cx: &mut Cx<'_, '_, '_>) -> R {
    let name = cx.proto.output.first().cloned().unwrap_or_default();
    Ok(vec![Out::Alias(match cx.operand(0).clone() {
        Operand::Absent => return Err("input 0 is missing".into()),
        Operand::Weight(mut w) => {
            w.name = name;
            Operand::Weight(w)
        }
        other => other,
    })])
}

fn cast(cx: &mut Cx<'_, '_, '_>) -> R {
    let to = cx.int("to", 0) as i32;
    cast_to(cx, to)
}

fn cast_like(cx: &mut Cx<'_, '_, '_>) -> R {
    let kind = cx.elem(1)?;
    let plain = match kind {
        Elem::Float => DataType::FLOAT,
        Elem::Int => DataType::INT64,
        Elem::Bool => DataType::BOOL,
    };
    let to = cx.declared(1).filter(|&code| elem(code) == Some(kind));
    cast_to(cx, to.unwrap_or(plain.value()))
}

fn cast_to(cx: &mut Cx<'_, '_, '_>, code: i32) -> R {
    let to = elem(code).ok_or_else(|| format!("casts to {} are not supported", type_name(code)))?;
    let from = cx.elem(0)?;
    if let Some(narrow) = Narrow::of(code) {
        let saturate = cx.int("saturate", 1) != 0;
        let up = match cx.string("round_mode", "up").as_str() {
            "up" => Some(true),
            "down" => Some(false),
            _ => None,
        };
        let c = cx.fixed_values(0)?.ok_or_else(|| {
            format!("a cast to {} rounds to its few numbers, and has to be known at import", type_name(code))
        })?;
        let data = c.data.iter().map(|&x| narrow.cast(x, saturate, up)).collect();
        return Ok(vec![Out::Const(Const { elem: to, shape: c.shape, data })]);
    }
    match (cx.operand(0).clone(), to) {
        (Operand::Const(c), _) => {
            let data = c
                .data
                .iter()
                .map(|&x| match to {
                    Elem::Float => x,
                    Elem::Int => x.trunc(),
                    Elem::Bool => f64::from(u8::from(x != 0.0)),
                })
                .collect();
            Ok(vec![Out::Const(Const { elem: to, shape: c.shape, data })])
        }
        (o, _) if from == to => Ok(vec![Out::Alias(o)]),
        (o, Elem::Float) => {
            let mut x = cx.real(0)?;
            if let Operand::Node(flag, Elem::Bool) = o
                && let Some(p) = likelihood(cx.b, flag)
            {
                let mean = cx.b.splat_like(x, p);
                x = cx.b.mode_select(x, mean);
            }
            Ok(vec![Out::Node(x, Elem::Float)])
        }
        (_, Elem::Bool) => Ok(vec![Out::Node(cx.flag(0)?, Elem::Bool)]),
        (_, Elem::Int) if from == Elem::Bool => Ok(vec![Out::Node(cx.real(0)?, Elem::Int)]),
        (_, Elem::Int) => {
            let x = cx.real(0)?;
            Ok(vec![Out::Node(crate::onnx::ops::elementwise::truncate(cx, x), Elem::Int)])
        }
    }
}

/// Keeps each element with probability 1 - ratio and scales it by 1 / (1 - ratio).
fn dropout(cx: &mut Cx<'_, '_, '_>) -> R {
    let ratio = if cx.present(1) { cx.known_number(1, "the ratio")? } else { cx.float("ratio", 0.5) };
    if !(0.0..1.0).contains(&ratio) {
        return Err(format!("ratio {ratio} is not in [0, 1)"));
    }
    // Whether a file was exported for training does not matter: a plan trains and infers.
    let _ = cx.present(2);
    let x = cx.real(0)?;
    let (out, dropped) = if ratio == 0.0 { (x, None) } else { random_mask(cx, x, ratio) };
    let mut outs = vec![Out::Node(out, Elem::Float)];
    if cx.wants(1) {
        let s = cx.b.shape(x);
        let all = cx.b.constant(Type::new(DType::U8, []), vec![1.0]);
        let all = cx.b.broadcast_to(all, &s);
        let kept = dropped.map_or(all, |d| cx.b.map(ScalarFn::Not, &[d]));
        outs.push(Out::Node(cx.b.mode_select(kept, all), Elem::Bool));
    }
    Ok(outs)
}

/// The result, and which elements are dropped in training.
fn random_mask(cx: &mut Cx<'_, '_, '_>, x: NodeId, ratio: f64) -> (NodeId, Option<NodeId>) {
    let stream = cx.state.streams;
    cx.state.streams += 1;
    cx.state.note("the network has dropout: it is random in training and off in inference");
    let shape = cx.b.shape(x);
    let r = cx.b.random(stream, &shape);
    let drop = cx.b.splat_like(x, ratio);
    let dropped = cx.b.map(ScalarFn::Lt, &[r, drop]);
    let scaled = cx.b.scale(x, 1.0 / (1.0 - ratio));
    let zero = cx.b.zeros_like(x);
    let train = cx.b.select(dropped, zero, scaled);
    (cx.b.mode_select(train, x), Some(dropped))
}
