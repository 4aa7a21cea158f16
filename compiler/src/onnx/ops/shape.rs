//! Ops that move elements.

use crate::ir::builder::common_shape;
use crate::ir::graph::NodeId;
use crate::ir::ops::shape::{Pad, Slice};
use crate::ir::types::DType;
use crate::onnx::node::{Cx, Operand, Out};
use crate::onnx::ops::Entry;
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Reshape", note: "shape known at import", convert: reshape },
    Entry { op: "Flatten", note: "", convert: flatten },
    Entry { op: "Transpose", note: "", convert: transpose },
    Entry { op: "Squeeze", note: "", convert: squeeze },
    Entry { op: "Unsqueeze", note: "", convert: unsqueeze },
    Entry { op: "Concat", note: "", convert: concat },
    Entry { op: "Split", note: "", convert: split },
    Entry { op: "Slice", note: "bounds known at import", convert: slice },
    Entry { op: "Pad", note: "constant, reflect, edge and wrap", convert: pad },
    Entry { op: "Expand", note: "shape known at import", convert: expand },
    Entry { op: "Tile", note: "repeats known at import", convert: tile },
];

type R = Result<Vec<Out>, String>;

/// The operand as a node that may be a flag or an integer, and its kind.
pub(super) fn any(cx: &mut Cx<'_, '_, '_>, i: usize) -> Result<(NodeId, Elem), String> {
    let elem = cx.elem(i)?;
    match cx.operand(i) {
        Operand::Node(id, _) => Ok((*id, elem)),
        Operand::Const(_) if elem == Elem::Bool => Ok((cx.flag(i)?, elem)),
        _ => Ok((cx.real(i)?, elem)),
    }
}

pub(super) fn one(id: NodeId, elem: Elem) -> R {
    Ok(vec![Out::Node(id, elem)])
}

fn reshape(cx: &mut Cx<'_, '_, '_>) -> R {
    let target = match cx.ints("shape") {
        Some(s) => s,
        None => cx.known_ints(1, "the shape")?,
    };
    let from = cx.shape(0)?;
    let allow_zero = cx.int("allowzero", 0) != 0;
    let mut dims: Vec<i64> = Vec::new();
    for (d, &t) in target.iter().enumerate() {
        dims.push(match t {
            0 if !allow_zero => {
                *from.get(d).ok_or_else(|| format!("shape {target:?} copies a dimension {from:?} lacks"))? as i64
            }
            t => t,
        });
    }
    let shape = infer_extent(&from, &dims).or_else(|e| match cx.state.rebatch {
        // A shape written for the exported batch.
        Some((old, new)) if dims.first() == Some(&(old as i64)) => {
            let mut wider = dims.clone();
            wider[0] = new as i64;
            infer_extent(&from, &wider).map_err(|_| e)
        }
        Some((old, new)) if !dims.is_empty() && dims[0] > 0 && (dims[0] as usize).is_multiple_of(old) => {
            let mut wider = dims.clone();
            wider[0] = dims[0] / old as i64 * new as i64;
            infer_extent(&from, &wider).map_err(|_| e)
        }
        _ => Err(e),
    })?;
    let (x, elem) = any(cx, 0)?;
    one(cx.b.reshape(x, &shape), elem)
}

/// Resolves one -1.
fn infer_extent(from: &[usize], dims: &[i64]) -> Result<Vec<usize>, String> {
    let count: usize = from.iter().product();
    let bad = || format!("{from:?} cannot be reshaped to {dims:?}");
    let known: usize = dims
        .iter()
        .filter(|&&d| d != -1)
        .try_fold(1usize, |a, &d| a.checked_mul(usize::try_from(d).ok()?))
        .ok_or_else(bad)?;
    let free = dims.iter().filter(|&&d| d == -1).count();
    let fill = match free {
        0 if known == count => 0,
        1 if known != 0 && count.is_multiple_of(known) => count / known,
        _ => return Err(bad()),
    };
    Ok(dims.iter().map(|&d| if d == -1 { fill } else { d as usize }).collect())
}

fn flatten(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let axis = cx.int("axis", 1);
    let axis = if axis == s.len() as i64 { s.len() } else { cx.axis(axis, s.len())? };
    let (x, elem) = any(cx, 0)?;
    one(cx.b.reshape(x, &[s[..axis].iter().product(), s[axis..].iter().product()]), elem)
}

fn transpose(cx: &mut Cx<'_, '_, '_>) -> R {
    let rank = cx.shape(0)?.len();
    let p: Vec<usize> = match cx.ints("perm") {
        Some(p) => p.iter().map(|&a| cx.axis(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = p.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(format!("perm {p:?} does not permute {rank} dimensions"));
    }
    let (x, elem) = any(cx, 0)?;
    one(cx.b.transpose(x, &p), elem)
}

fn axes_of(cx: &Cx<'_, '_, '_>) -> Result<Option<Vec<i64>>, String> {
    if cx.present(1) { cx.known_ints(1, "the axes").map(Some) } else { Ok(cx.ints("axes")) }
}

fn squeeze(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let drop = match axes_of(cx)? {
        Some(a) => cx.axes(&a, s.len())?,
        None => (0..s.len()).filter(|&d| s[d] == 1).collect(),
    };
    if let Some(d) = drop.iter().find(|&&d| s[d] != 1) {
        return Err(format!("dimension {d} of {s:?} is not 1"));
    }
    let kept: Vec<usize> = (0..s.len()).filter(|d| !drop.contains(d)).map(|d| s[d]).collect();
    let (x, elem) = any(cx, 0)?;
    one(cx.b.reshape(x, &kept), elem)
}

fn unsqueeze(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let axes = axes_of(cx)?.ok_or("the axes are missing")?;
    let rank = s.len() + axes.len();
    let new = cx.axes(&axes, rank)?;
    let mut rest = s.iter();
    let shape: Vec<usize> =
        (0..rank).map(|d| if new.contains(&d) { 1 } else { rest.next().copied().unwrap_or(1) }).collect();
    let (x, elem) = any(cx, 0)?;
    one(cx.b.reshape(x, &shape), elem)
}

fn concat(cx: &mut Cx<'_, '_, '_>) -> R {
    let n = cx.proto.input.len();
    let first = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", 0), first.len())?;
    let (mut parts, mut elem) = (Vec::new(), cx.elem(0)?);
    for i in 0..n {
        let (x, e) = any(cx, i)?;
        parts.push(x);
        if e == Elem::Float {
            elem = e;
        }
    }
    // A class token expanded for the exported batch.
    if let (Some((old, new)), true) = (cx.state.rebatch, axis != 0) {
        for p in &mut parts {
            let mut s = cx.b.shape(*p);
            if old == 1 && s.first() == Some(&1) {
                s[0] = new;
                *p = cx.b.broadcast(*p, &s);
            }
        }
    }
    one(cx.b.concat(&parts, axis), elem)
}

pub(super) fn part(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, start: usize, extent: usize) -> NodeId {
    let mut shape = cx.b.shape(x);
    let rank = shape.len();
    let mut starts = vec![0; rank];
    starts[axis] = start;
    shape[axis] = extent;
    cx.b.slice(x, Slice { starts, steps: vec![1; rank], shape })
}

fn split(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", 0), s.len())?;
    let outputs = cx.proto.output.len().max(1);
    let said = cx.int("num_outputs", outputs as i64);
    if said != outputs as i64 {
        return Err(format!("num_outputs is {said}, of {outputs} outputs"));
    }
    let sizes: Vec<usize> = if cx.present(1) || cx.has("split") {
        let v = if cx.present(1) { cx.known_ints(1, "the sizes")? } else { cx.ints("split").unwrap_or_default() };
        v.iter().map(|&x| usize::try_from(x).map_err(|_| format!("size {x} is negative"))).collect::<Result<_, _>>()?
    } else {
        let each = s[axis].div_ceil(outputs);
        (0..outputs).map(|i| each.min(s[axis].saturating_sub(i * each))).collect()
    };
    let sum = sizes.iter().try_fold(0usize, |a, &n| a.checked_add(n));
    if sum != Some(s[axis]) || sizes.len() < outputs {
        return Err(format!("sizes {sizes:?} do not make up dimension {axis} of {s:?}"));
    }
    let (x, elem) = any(cx, 0)?;
    let mut start = 0;
    let mut outs = Vec::new();
    for n in sizes {
        outs.push(Out::Node(part(cx, x, axis, start, n), elem));
        start += n;
    }
    Ok(outs)
}

fn slice(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let get = |cx: &Cx<'_, '_, '_>, i: usize, name: &str| -> Result<Option<Vec<i64>>, String> {
        if cx.present(i) { cx.known_ints(i, name).map(Some) } else { Ok(cx.ints(name)) }
    };
    let starts = get(cx, 1, "starts")?.ok_or("starts are missing")?;
    let ends = get(cx, 2, "ends")?.ok_or("ends are missing")?;
    let axes = get(cx, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = get(cx, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    cx.axes(&axes, s.len())?;
    let mut out = Slice { starts: vec![0; s.len()], steps: vec![1; s.len()], shape: s.clone() };
    let mut backwards = Vec::new();
    for i in 0..starts.len() {
        let d = cx.axis(axes[i], s.len())?;
        let n = s[d] as i64;
        if steps[i] < 0 {
            backwards.push((d, starts[i], ends[i], steps[i]));
            continue;
        }
        let step = usize::try_from(steps[i]).ok().filter(|&x| x > 0).ok_or("a step of 0")?;
        let clamp = |x: i64| (if x < 0 { x.saturating_add(n) } else { x }).clamp(0, n) as usize;
        let (from, to) = (clamp(starts[i]), clamp(ends[i]));
        (out.starts[d], out.steps[d], out.shape[d]) = (from, step, to.saturating_sub(from).div_ceil(step));
    }
    let (x, elem) = any(cx, 0)?;
    let mut x = cx.b.slice(x, out);
    for (d, start, end, step) in backwards {
        let n = s[d] as i64;
        let from = (if start < 0 { start.saturating_add(n) } else { start }).clamp(-1, n - 1);
        let to = (if end < 0 { end.saturating_add(n) } else { end }).clamp(-1, n - 1);
        let back = usize::try_from(step.unsigned_abs()).map_err(|_| "a step is too large")?;
        cx.state.allowance.copy((from - to).max(0) as usize / back)?;
        let at: Vec<usize> = (to + 1..=from).rev().step_by(back).map(|i| i as usize).collect();
        x = super::index::take(cx, x, d, &at);
    }
    one(x, elem)
}

fn pad(cx: &mut Cx<'_, '_, '_>) -> R {
    let mode = cx.string("mode", "constant");
    let s = cx.shape(0)?;
    let pads = if cx.present(1) { cx.known_ints(1, "the pads")? } else { cx.ints("pads").ok_or("pads are missing")? };
    let axes = if cx.present(3) { cx.known_ints(3, "the axes")? } else { (0..s.len() as i64).collect() };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let mut both = vec![[0i64; 2]; s.len()];
    for (i, &a) in axes.iter().enumerate() {
        both[cx.axis(a, s.len())?] = [pads[i], pads[i + axes.len()]];
    }
    if both.iter().flatten().any(|p| p.unsigned_abs() > 1 << 24) {
        return Err(format!("pads {pads:?} are too large"));
    }
    let value = if cx.present(2) { cx.known_number(2, "the value")? } else { cx.float("value", 0.0) };
    let (x, elem) = any(cx, 0)?;
    let y = match mode.as_str() {
        "constant" => pad_with(cx, x, &both, value)?,
        "edge" | "reflect" | "wrap" => {
            let mut x = x;
            for (d, &[low, high]) in both.iter().enumerate().filter(|(_, p)| **p != [0, 0]) {
                let n = s[d] as i64;
                if n == 0 {
                    return Err(format!("dimension {d} is empty and cannot be continued"));
                }
                let period = (2 * n - 2).max(1);
                let source = |i: i64| match mode.as_str() {
                    "edge" => i.clamp(0, n - 1),
                    "wrap" => i.rem_euclid(n),
                    _ => (n - 1) - ((n - 1) - i.rem_euclid(period)).abs(),
                };
                cx.state.allowance.copy((low + n + high).max(0) as usize)?;
                let at: Vec<usize> = (-low..n + high).map(|i| source(i) as usize).collect();
                x = super::index::take(cx, x, d, &at);
            }
            x
        }
        other => return Err(format!("mode \"{other}\" does not exist")),
    };
    one(y, elem)
}

/// Pads with a number; negative pads remove elements.
pub(super) fn pad_with(cx: &mut Cx<'_, '_, '_>, x: NodeId, pads: &[[i64; 2]], value: f64) -> Result<NodeId, String> {
    let s = cx.b.shape(x);
    let mut p = Pad { low: vec![0; s.len()], high: vec![0; s.len()], interior: vec![0; s.len()] };
    let mut crop = Slice { starts: vec![0; s.len()], steps: vec![1; s.len()], shape: s.clone() };
    for (d, &[low, high]) in pads.iter().enumerate() {
        p.low[d] = low.max(0) as usize;
        p.high[d] = high.max(0) as usize;
        let (cut_low, cut_high) = ((-low).max(0) as usize, (-high).max(0) as usize);
        crop.starts[d] = cut_low;
        crop.shape[d] = s[d].checked_sub(cut_low + cut_high).ok_or("negative pads remove more than there is")?;
    }
    let inside = crop.shape.clone();
    let x = cx.b.slice(x, crop);
    let y = cx.b.pad(x, p.clone());
    if value == 0.0 {
        return Ok(y);
    }
    // The number where the padding is: a flag for each place of the dimensions that have some.
    let full = cx.b.shape(y);
    let y = cx.b.number(y);
    let padded = |d: usize| p.low[d] + p.high[d] > 0;
    let own: Vec<usize> = (0..full.len()).map(|d| if padded(d) { full[d] } else { 1 }).collect();
    let within = |mut i: usize| {
        (0..own.len()).rev().all(|d| {
            let at = i % own[d];
            i /= own[d];
            !padded(d) || (p.low[d]..p.low[d] + inside[d]).contains(&at)
        })
    };
    let flags = cx.table(DType::U8, &own, |i| f64::from(u8::from(within(i))))?;
    let flags = cx.b.broadcast_to(flags, &full);
    let around = cx.b.splat(value, &full);
    Ok(cx.b.select(flags, y, around))
}

fn extents(v: &[i64]) -> Result<Vec<usize>, String> {
    v.iter().map(|&x| usize::try_from(x).map_err(|_| format!("extent {x} is negative"))).collect()
}

fn expand(cx: &mut Cx<'_, '_, '_>) -> R {
    let from = cx.shape(0)?;
    let mut target = extents(&cx.known_ints(1, "the shape")?)?;
    // One number for each sample of the exported batch, as exports write for what was drawn in training.
    if let (Operand::Const(c), Some((old, new)), Some(first)) = (cx.operand(0), cx.state.rebatch, target.first_mut())
        && c.data.len() == 1
        && *first == old
    {
        *first = new;
    }
    let shape = common_shape(&from, &target).ok_or_else(|| format!("{from:?} does not broadcast to {target:?}"))?;
    if shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).is_none_or(|n| n > 1 << 34) {
        return Err(format!("shape {shape:?} is too large"));
    }
    let (x, elem) = any(cx, 0)?;
    one(cx.b.broadcast_to(x, &shape), elem)
}

fn tile(cx: &mut Cx<'_, '_, '_>) -> R {
    let repeats = extents(&cx.known_ints(1, "the repeats")?)?;
    let s = cx.shape(0)?;
    if repeats.len() != s.len()
        || repeats.contains(&0)
        || repeats.iter().try_fold(1usize, |a, &n| a.checked_mul(n)).is_none_or(|n| n > 1 << 16)
    {
        return Err(format!("repeats {repeats:?} do not fit {s:?}"));
    }
    let (mut x, elem) = any(cx, 0)?;
    for (d, &n) in repeats.iter().enumerate() {
        x = cx.b.concat(&vec![x; n], d);
    }
    one(x, elem)
}
