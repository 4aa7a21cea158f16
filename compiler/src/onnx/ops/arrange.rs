//! Ops that arrange elements anew, or mark places by their index.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::types::DType;
use crate::onnx::folding::constant_of;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;
use crate::onnx::ops::index::{along, take};
use crate::onnx::ops::shape::{any, one, pad_with, part};
use crate::onnx::tensor::{Const, elem};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "DepthToSpace", note: "", convert: depth_to_space },
    Entry { op: "SpaceToDepth", note: "", convert: space_to_depth },
    Entry { op: "Trilu", note: "diagonal known at import", convert: trilu },
    Entry { op: "CenterCropPad", note: "shape known at import", convert: center_crop_pad },
    Entry { op: "ReverseSequence", note: "lengths known at import", convert: reverse_sequence },
    Entry { op: "OneHot", note: "depth known at import", convert: one_hot },
    Entry { op: "EyeLike", note: "computed at import", convert: eye_like },
    Entry { op: "CumSum", note: "product with a triangle of ones; at most 4096 elements", convert: cumulative_sum },
    Entry { op: "CumProd", note: "at most 64 elements", convert: cumulative_product },
    Entry { op: "HannWindow", note: "computed at import", convert: |cx| window(cx, &[0.5, -0.5, 0.0]) },
    Entry {
        op: "HammingWindow",
        note: "computed at import",
        convert: |cx| window(cx, &[25.0 / 46.0, -21.0 / 46.0, 0.0]),
    },
    Entry { op: "BlackmanWindow", note: "computed at import", convert: |cx| window(cx, &[0.42, -0.5, 0.08]) },
];

type R = Result<Vec<Out>, String>;

/// `[N, C, H, W]` and a block that divides what it must.
fn blocks(cx: &Cx<'_, '_, '_>) -> Result<([usize; 4], usize), String> {
    let s = cx.shape(0)?;
    let block = usize::try_from(cx.int("blocksize", 0))
        .ok()
        .filter(|b| (1..1 << 16).contains(b))
        .ok_or("blocksize is missing or too large")?;
    let [n, c, h, w] = s[..] else { return Err(format!("{s:?} is no image")) };
    Ok(([n, c, h, w], block))
}

fn depth_to_space(cx: &mut Cx<'_, '_, '_>) -> R {
    let ([n, c, h, w], b) = blocks(cx)?;
    if !c.is_multiple_of(b * b) {
        return Err(format!("{c} channels are no multiple of {b} x {b}"));
    }
    let deep = c / (b * b);
    let (apart, order) = match cx.string("mode", "DCR").as_str() {
        "DCR" => ([n, b, b, deep, h, w], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, deep, b, b, h, w], [0, 1, 4, 2, 5, 3]),
        other => return Err(format!("mode \"{other}\" does not exist")),
    };
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.reshape(x, &apart);
    let x = cx.b.transpose(x, &order);
    one(cx.b.reshape(x, &[n, deep, h * b, w * b]), elem)
}

fn space_to_depth(cx: &mut Cx<'_, '_, '_>) -> R {
    let ([n, c, h, w], b) = blocks(cx)?;
    if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
        return Err(format!("{h} x {w} is no multiple of {b}"));
    }
    let order = match cx.string("mode", "DCR").as_str() {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(format!("mode \"{other}\" does not exist")),
    };
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.reshape(x, &[n, c, h / b, b, w / b, b]);
    let x = cx.b.transpose(x, &order);
    one(cx.b.reshape(x, &[n, c * b * b, h / b, w / b]), elem)
}

/// Zero below (or above) the k-th diagonal of the last two dimensions.
fn trilu(cx: &mut Cx<'_, '_, '_>) -> R {
    let upper = cx.int("upper", 1) != 0;
    let k = if cx.present(1) { cx.known_number(1, "the diagonal")? as i64 } else { 0 };
    let s = cx.shape(0)?;
    let rank = s.len();
    if rank < 2 {
        return Err(format!("{s:?} is no matrix"));
    }
    let (rows, cols) = (s[rank - 2], s[rank - 1]);
    let keeps = |i: usize| {
        let above = (i % cols) as i64 - (i / cols) as i64;
        if upper { above >= k } else { above <= k }
    };
    let flags = cx.table(DType::U8, &[rows, cols], |i| f64::from(u8::from(keeps(i))))?;
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.number(x);
    let flags = cx.b.broadcast_to(flags, &s);
    let zero = cx.b.zeros_like(x);
    one(cx.b.select(flags, x, zero), elem)
}

/// The middle of what is too long, zeros around what is too short.
fn center_crop_pad(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let target = cx.known_ints(1, "the shape")?;
    let axes = cx.ints("axes").unwrap_or_else(|| (0..s.len() as i64).collect());
    if axes.len() != target.len() {
        return Err(format!("{} extents for {} axes", target.len(), axes.len()));
    }
    let mut pads = vec![[0i64; 2]; s.len()];
    for (&a, &want) in axes.iter().zip(&target) {
        let d = cx.axis(a, s.len())?;
        if !(0..=1 << 32).contains(&want) {
            return Err(format!("an extent of {want} is not supported"));
        }
        let more = want - s[d] as i64;
        // The odd element of a crop is left out at the end, that of a padding added there.
        let low = if more < 0 { -((-more) / 2) } else { more / 2 };
        pads[d] = [low, more - low];
    }
    let (x, elem) = any(cx, 0)?;
    one(pad_with(cx, x, &pads, 0.0)?, elem)
}

/// The first elements of every sequence, as many as it is long, in reverse.
fn reverse_sequence(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let (batch, time) = (cx.axis(cx.int("batch_axis", 1), s.len())?, cx.axis(cx.int("time_axis", 0), s.len())?);
    let lengths = cx.known_ints(1, "the lengths")?;
    if lengths.len() != s[batch] || lengths.iter().any(|&n| n < 0 || n as usize > s[time]) {
        return Err(format!("lengths {lengths:?} do not fit {s:?}"));
    }
    let (x, elem) = any(cx, 0)?;
    cx.state.allowance.copy(s[batch].saturating_mul(s[time]))?;
    let mut parts = Vec::new();
    for (i, &n) in lengths.iter().enumerate() {
        let n = n as usize;
        let own = part(cx, x, batch, i, 1);
        let at: Vec<usize> = (0..n).rev().chain(n..s[time]).collect();
        parts.push(take(cx, own, time, &at));
    }
    one(cx.b.concat(&parts, batch), elem)
}

/// `index == 0..depth` along `axis` of the result, for numbers or indices `x`.
pub(super) fn marks(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, depth: usize) -> Result<NodeId, String> {
    let mut shape = cx.b.shape(x);
    shape.insert(axis, 1);
    let x = cx.b.number(x);
    let x = cx.b.reshape(x, &shape);
    let mut along = vec![1; shape.len()];
    along[axis] = depth;
    let range = cx.table(DType::F32, &along, |i| i as f64)?;
    Ok(cx.b.binary(ScalarFn::Eq, x, range))
}

fn one_hot(cx: &mut Cx<'_, '_, '_>) -> R {
    let depth = cx.known_number(1, "the depth")? as usize;
    if depth == 0 || depth > 1 << 20 {
        return Err(format!("a depth of {depth} is not supported"));
    }
    let rank = cx.shape(0)?.len() + 1;
    let axis = cx.axis(cx.int("axis", -1), rank)?;
    let elem = cx.elem(2)?;
    let index = any(cx, 0)?.0;
    let index = cx.b.number(index);
    // Negative indices count from the end.
    let zero = cx.b.zeros_like(index);
    let negative = cx.b.map(ScalarFn::Lt, &[index, zero]);
    let wrapped = cx.b.offset(index, depth as f64);
    let index = cx.b.select(negative, wrapped, index);
    let flags = marks(cx, index, axis, depth)?;
    let values = cx.fixed(2)?;
    let full = cx.b.shape(flags);
    let value = |cx: &mut Cx<'_, '_, '_>, i: usize| {
        let v = part(cx, values, 0, i, 1);
        let v = cx.b.reshape(v, &[]);
        cx.b.broadcast_to(v, &full)
    };
    let (off, on) = (value(cx, 0), value(cx, 1));
    one(cx.b.select(flags, on, off), elem)
}

fn eye_like(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let k = cx.int("k", 0);
    let [_, cols] = s[..] else { return Err(format!("{s:?} is no matrix")) };
    let kind =
        if cx.has("dtype") { elem(cx.int("dtype", 1) as i32).ok_or("its type is not supported")? } else { cx.elem(0)? };
    let on = |i: usize| f64::from(u8::from((i % cols) as i64 - (i / cols) as i64 == k));
    let data = (0..constant_of(&s)?).map(on).collect();
    Ok(vec![Out::Const(Const { elem: kind, shape: s, data })])
}

/// Sums up to each element: a product with a triangle of ones.
fn cumulative_sum(cx: &mut Cx<'_, '_, '_>) -> R {
    let (exclusive, reverse) = (cx.int("exclusive", 0) != 0, cx.int("reverse", 0) != 0);
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.known_number(1, "the axis")? as i64, s.len())?;
    let n = s[axis];
    if n > 4096 {
        return Err(format!("sums along {n} elements are not supported"));
    }
    let adds = |from: usize, to: usize| {
        let (first, last) = if reverse { (to, from) } else { (from, to) };
        if exclusive { first < last } else { first <= last }
    };
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.number(x);
    one(along(cx, x, axis, n, |i| f64::from(u8::from(adds(i / n, i % n))))?, elem)
}

fn cumulative_product(cx: &mut Cx<'_, '_, '_>) -> R {
    let (exclusive, reverse) = (cx.int("exclusive", 0) != 0, cx.int("reverse", 0) != 0);
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.known_number(1, "the axis")? as i64, s.len())?;
    let n = s[axis];
    if n == 0 || n > 64 {
        return Err(format!("products along {n} elements are not supported"));
    }
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.number(x);
    let first = part(cx, x, axis, 0, 1);
    let mut product = cx.b.splat_like(first, 1.0);
    let mut parts = Vec::new();
    for i in 0..n {
        let own = part(cx, x, axis, if reverse { n - 1 - i } else { i }, 1);
        let new = cx.b.mul(product, own);
        parts.push(if exclusive { product } else { new });
        product = new;
    }
    if reverse {
        parts.reverse();
    }
    one(cx.b.concat(&parts, axis), elem)
}

/// `sum of c[k] cos(2 pi k i / n)`.
fn window(cx: &mut Cx<'_, '_, '_>, c: &[f64; 3]) -> R {
    let n = cx.known_number(0, "the size")?;
    let kind = elem(cx.int("output_datatype", 1) as i32).ok_or("its type is not supported")?;
    if !(0.0..=f64::from(1 << 24)).contains(&n) {
        return Err(format!("a window of {n} elements is not supported"));
    }
    let period = if cx.int("periodic", 1) != 0 { n } else { n - 1.0 };
    let at = |i: usize| {
        let turn = 2.0 * std::f64::consts::PI * i as f64 / period;
        c.iter().enumerate().map(|(k, c)| c * (turn * k as f64).cos()).sum()
    };
    Ok(vec![Out::Const(Const { elem: kind, shape: vec![n as usize], data: (0..n as usize).map(at).collect() })])
}
