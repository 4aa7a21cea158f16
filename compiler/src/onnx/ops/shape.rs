//! Ops that move elements.

use crate::ir::builder::common_shape;
use crate::ir::graph::NodeId;
use crate::ir::ops::shape::{Pad, Slice};
use crate::ir::types::DType;
use crate::onnx::node::{Cx, Operand, Out};
use crate::onnx::ops::Entry;
use crate::onnx::tensor::{Const, Elem};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Reshape", note: "shape known at import", convert: reshape },
    Entry { op: "Flatten", note: "", convert: flatten },
    Entry { op: "Transpose", note: "", convert: transpose },
    Entry { op: "Squeeze", note: "", convert: squeeze },
    Entry { op: "Unsqueeze", note: "", convert: unsqueeze },
    Entry { op: "Concat", note: "", convert: concat },
    Entry { op: "Split", note: "", convert: split },
    Entry { op: "Slice", note: "bounds known at import, positive steps", convert: slice },
    Entry { op: "Pad", note: "with zeros", convert: pad },
    Entry { op: "Expand", note: "shape known at import", convert: expand },
    Entry { op: "Tile", note: "repeats known at import", convert: tile },
    Entry { op: "Gather", note: "rows of a table by data, or any axis by indices known at import", convert: gather },
];

type R = Result<Vec<Out>, String>;

/// The operand as a node that may be a flag or an integer, and its kind.
fn any(cx: &mut Cx<'_, '_, '_>, i: usize) -> Result<(NodeId, Elem), String> {
    let elem = cx.elem(i)?;
    match cx.operand(i) {
        Operand::Node(id, _) => Ok((*id, elem)),
        Operand::Const(_) if elem == Elem::Bool => Ok((cx.flag(i)?, elem)),
        _ => Ok((cx.real(i)?, elem)),
    }
}

fn one(id: NodeId, elem: Elem) -> R {
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

fn part(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, start: usize, extent: usize) -> NodeId {
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
    let sizes: Vec<usize> = if cx.present(1) || cx.has("split") {
        let v = if cx.present(1) { cx.known_ints(1, "the sizes")? } else { cx.ints("split").unwrap_or_default() };
        v.iter().map(|&x| usize::try_from(x).map_err(|_| format!("size {x} is negative"))).collect::<Result<_, _>>()?
    } else {
        let each = s[axis].div_ceil(outputs);
        (0..outputs).map(|i| each.min(s[axis].saturating_sub(i * each))).collect()
    };
    if sizes.iter().sum::<usize>() != s[axis] || sizes.len() < outputs {
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
    let mut out = Slice { starts: vec![0; s.len()], steps: vec![1; s.len()], shape: s.clone() };
    for i in 0..starts.len() {
        let d = cx.axis(axes[i], s.len())?;
        let n = s[d] as i64;
        let step = usize::try_from(steps[i]).ok().filter(|&x| x > 0).ok_or("negative steps are not supported")?;
        let clamp = |x: i64| (if x < 0 { x.saturating_add(n) } else { x }).clamp(0, n) as usize;
        let (from, to) = (clamp(starts[i]), clamp(ends[i]));
        (out.starts[d], out.steps[d], out.shape[d]) = (from, step, to.saturating_sub(from).div_ceil(step));
    }
    let (x, elem) = any(cx, 0)?;
    one(cx.b.slice(x, out), elem)
}

fn pad(cx: &mut Cx<'_, '_, '_>) -> R {
    if cx.string("mode", "constant") != "constant" {
        return Err(format!("mode \"{}\" is not supported", cx.string("mode", "")));
    }
    let value = if cx.present(2) { cx.known_number(2, "the value")? } else { cx.float("value", 0.0) };
    if value != 0.0 {
        return Err(format!("padding with {value} is not supported, only with zero"));
    }
    let s = cx.shape(0)?;
    let pads = if cx.present(1) { cx.known_ints(1, "the pads")? } else { cx.ints("pads").ok_or("pads are missing")? };
    let axes = if cx.present(3) { cx.known_ints(3, "the axes")? } else { (0..s.len() as i64).collect() };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let mut p = Pad { low: vec![0; s.len()], high: vec![0; s.len()], interior: vec![0; s.len()] };
    let mut crop = Slice { starts: vec![0; s.len()], steps: vec![1; s.len()], shape: s.clone() };
    for (i, &a) in axes.iter().enumerate() {
        let d = cx.axis(a, s.len())?;
        let (low, high) = (pads[i], pads[i + axes.len()]);
        p.low[d] = low.max(0) as usize;
        p.high[d] = high.max(0) as usize;
        let (cut_low, cut_high) = ((-low).max(0) as usize, (-high).max(0) as usize);
        crop.starts[d] = cut_low;
        crop.shape[d] = s[d].checked_sub(cut_low + cut_high).ok_or("negative pads remove more than there is")?;
    }
    let (x, elem) = any(cx, 0)?;
    let x = cx.b.slice(x, crop);
    one(cx.b.pad(x, p), elem)
}

fn extents(v: &[i64]) -> Result<Vec<usize>, String> {
    v.iter().map(|&x| usize::try_from(x).map_err(|_| format!("extent {x} is negative"))).collect()
}

fn expand(cx: &mut Cx<'_, '_, '_>) -> R {
    let from = cx.shape(0)?;
    let target = extents(&cx.known_ints(1, "the shape")?)?;
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
    if repeats.len() != s.len() || repeats.contains(&0) || repeats.iter().product::<usize>() > 1 << 16 {
        return Err(format!("repeats {repeats:?} do not fit {s:?}"));
    }
    let (mut x, elem) = any(cx, 0)?;
    for (d, &n) in repeats.iter().enumerate() {
        x = cx.b.concat(&vec![x; n], d);
    }
    one(x, elem)
}

fn gather(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", 0), s.len())?;
    match (cx.known(0)?, cx.known(1)?) {
        (Some(data), Some(index)) => gather_known(&data, &index, axis),
        (None, Some(index)) if !cx.is_weight(0) || axis != 0 || index.data.len() == 1 => gather_parts(cx, &index, axis),
        _ => gather_rows(cx, axis),
    }
}

fn wrap(i: f64, extent: usize) -> Result<usize, String> {
    let at = if i < 0.0 { i + extent as f64 } else { i };
    if at >= 0.0 && at < extent as f64 { Ok(at as usize) } else { Err(format!("index {i} is outside 0..{extent}")) }
}

fn gather_known(data: &Const, index: &Const, axis: usize) -> R {
    let s = &data.shape;
    let (outer, inner): (usize, usize) = (s[..axis].iter().product(), s[axis + 1..].iter().product());
    let mut out = Vec::new();
    for o in 0..outer {
        for &i in &index.data {
            let at = (o * s[axis] + wrap(i, s[axis])?) * inner;
            out.extend_from_slice(&data.data[at..at + inner]);
        }
    }
    let shape = [&s[..axis], &index.shape, &s[axis + 1..]].concat();
    Ok(vec![Out::Const(Const { elem: data.elem, shape, data: out })])
}

/// Slices for indices known now: neighbours are taken together.
fn gather_parts(cx: &mut Cx<'_, '_, '_>, index: &Const, axis: usize) -> R {
    let s = cx.shape(0)?;
    let at: Vec<usize> = index.data.iter().map(|&i| wrap(i, s[axis])).collect::<Result<_, _>>()?;
    let (x, elem) = any(cx, 0)?;
    let mut parts = Vec::new();
    let mut i = 0;
    while i < at.len() {
        let mut n = 1;
        while i + n < at.len() && at[i + n] == at[i] + n {
            n += 1;
        }
        parts.push(part(cx, x, axis, at[i], n));
        i += n;
    }
    if parts.is_empty() || parts.len() > 256 {
        return Err(format!("gathering {} separate slices is not supported", parts.len()));
    }
    let joined = cx.b.concat(&parts, axis);
    let shape = [&s[..axis], &index.shape, &s[axis + 1..]].concat();
    one(cx.b.reshape(joined, &shape), elem)
}

/// Rows of a table by indices.
fn gather_rows(cx: &mut Cx<'_, '_, '_>, axis: usize) -> R {
    if axis != 0 {
        return Err("gathering by data along an axis other than 0 is not supported".into());
    }
    let (s, is) = (cx.shape(0)?, cx.shape(1)?);
    let index = match cx.operand(1).clone() {
        // Indices known now may count from the end.
        Operand::Const(c) => {
            let at: Vec<f64> = c.data.iter().map(|&i| wrap(i, s[0]).map(|x| x as f64)).collect::<Result<_, _>>()?;
            cx.b.constant(crate::ir::types::Type::new(DType::I32, c.shape), at)
        }
        _ => cx.index_values(1)?,
    };
    let table = if cx.is_weight(0) {
        cx.weight(0, crate::ir::graph::Init::Normal(0.02), crate::ir::graph::VarKind::Weight)?
    } else {
        cx.real(0)?
    };
    let width: usize = s[1..].iter().product();
    let flat_table = cx.b.reshape(table, &[s[0], width]);
    let count = is.iter().product();
    let flat_index = cx.b.reshape(index, &[count]);
    let rows = cx.b.gather(flat_table, flat_index);
    let shape = [&is[..], &s[1..]].concat();
    one(cx.b.reshape(rows, &shape), Elem::Float)
}
