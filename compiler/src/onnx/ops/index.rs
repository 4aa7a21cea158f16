//! Ops that choose elements by index.
//!
//! Where indices are known, all of them are one thing: rows of a table in another order.

use crate::ir::graph::NodeId;
use crate::ir::types::{DType, Type};
use crate::onnx::folding::constant_of;
use crate::onnx::node::{Cx, Operand, Out};
use crate::onnx::ops::Entry;
use crate::onnx::ops::shape::{any, one, part};
use crate::onnx::tensor::{Const, Elem};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Gather", note: "rows of a table by data, or any axis by indices known at import", convert: gather },
    Entry { op: "Compress", note: "condition known at import", convert: compress },
    Entry { op: "GatherElements", note: "indices known at import", convert: gather_elements },
    Entry { op: "GatherND", note: "indices known at import", convert: gather_nd },
    Entry { op: "ScatterElements", note: "indices known at import", convert: scatter_elements },
    Entry { op: "Scatter", note: "as ScatterElements", convert: scatter_elements },
    Entry { op: "ScatterND", note: "indices known at import", convert: scatter_nd },
    Entry { op: "NonZero", note: "computed at import", convert: non_zero },
];

type R = Result<Vec<Out>, String>;

/// Elements of `axis` in another order, or some of them, or some several times.
pub(super) fn take(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, at: &[usize]) -> NodeId {
    let s = cx.b.shape(x);
    if axis >= s.len() {
        cx.b.fail(format!("axis {axis} does not exist in {} dimensions", s.len()));
        return x;
    }
    if let (Some(&first), true) = (at.first(), at.windows(2).all(|w| w[1] == w[0] + 1)) {
        return part(cx, x, axis, first, at.len());
    }
    let order: Vec<usize> = [axis].into_iter().chain((0..s.len()).filter(|&d| d != axis)).collect();
    let back = inverse(&order);
    let front = cx.b.transpose(x, &order);
    let width: usize = s.iter().enumerate().filter(|(d, _)| *d != axis).map(|(_, n)| n).product();
    let rows = rows(cx, front, s[axis], width, at);
    let shape: Vec<usize> = order.iter().map(|&d| if d == axis { at.len() } else { s[d] }).collect();
    let rows = cx.b.reshape(rows, &shape);
    cx.b.transpose(rows, &back)
}

/// The permutation that undoes another.
fn inverse(order: &[usize]) -> Vec<usize> {
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &d)| back[d] = i);
    back
}

/// Every vector along `axis` times a matrix `[extent, to]`, row by row.
pub(super) fn along(
    cx: &mut Cx<'_, '_, '_>,
    x: NodeId,
    axis: usize,
    to: usize,
    matrix: impl FnMut(usize) -> f64,
) -> Result<NodeId, String> {
    let s = cx.b.shape(x);
    if axis >= s.len() {
        return Err(format!("axis {axis} does not exist in {} dimensions", s.len()));
    }
    let order: Vec<usize> = (0..s.len()).filter(|&d| d != axis).chain([axis]).collect();
    let last = cx.b.transpose(x, &order);
    let mut shape = cx.b.shape(last);
    let flat = cx.b.reshape(last, &[shape.iter().product::<usize>() / s[axis].max(1), s[axis]]);
    let weights = cx.table(DType::F32, &[s[axis], to], matrix)?;
    let y = cx.b.matmul(flat, weights);
    shape[s.len() - 1] = to;
    let y = cx.b.reshape(y, &shape);
    Ok(cx.b.transpose(y, &inverse(&order)))
}

/// Rows of `x` seen as `[count, width]`.
fn rows(cx: &mut Cx<'_, '_, '_>, x: NodeId, count: usize, width: usize, at: &[usize]) -> NodeId {
    let table = cx.b.number(x);
    let table = cx.b.reshape(table, &[count, width]);
    let data = at.iter().map(|&i| i as f64).collect();
    let index = cx.b.constant(Type::new(DType::I32, vec![at.len()]), data);
    cx.b.gather(table, index)
}

/// Row-major distances between elements.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        out[d - 1] = out[d] * shape[d];
    }
    out
}

/// Calls `f` with every index of a shape, in row-major order.
fn each(shape: &[usize], mut f: impl FnMut(&[usize]) -> Result<(), String>) -> Result<(), String> {
    let count: usize = shape.iter().product();
    let mut at = vec![0; shape.len()];
    for _ in 0..count {
        f(&at)?;
        for d in (0..shape.len()).rev() {
            at[d] += 1;
            if at[d] < shape[d] {
                break;
            }
            at[d] = 0;
        }
    }
    Ok(())
}

fn known_index(cx: &Cx<'_, '_, '_>, i: usize) -> Result<Const, String> {
    cx.known(i)?.ok_or_else(|| "indices depend on the data; slrc needs them known at import".into())
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
    let shape = [&s[..axis], &index.shape, &s[axis + 1..]].concat();
    let mut out = Vec::with_capacity(constant_of(&shape)?);
    for o in 0..outer {
        for &i in &index.data {
            let at = (o * s[axis] + wrap(i, s[axis])?) * inner;
            out.extend_from_slice(&data.data[at..at + inner]);
        }
    }
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
            cx.b.constant(Type::new(DType::I32, c.shape), at)
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

/// Where a known tensor is not zero: a row for each dimension, a column for each such element.
fn non_zero(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.fixed_values(0)?.ok_or("its result's shape depends on the data; slrc needs it known at import")?;
    let at: Vec<usize> = (0..x.data.len()).filter(|&i| x.data[i] != 0.0).collect();
    let shape = vec![x.shape.len(), at.len()];
    let mut data = Vec::with_capacity(constant_of(&shape)?);
    for (step, extent) in strides(&x.shape).into_iter().zip(&x.shape) {
        data.extend(at.iter().map(|i| (i / step % extent) as f64));
    }
    Ok(vec![Out::Const(Const { elem: Elem::Int, shape, data })])
}

/// The elements, or slices of an axis, whose flag is set.
fn compress(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let flags = known_index(cx, 1)?;
    let at: Vec<usize> = (0..flags.data.len()).filter(|&i| flags.data[i] != 0.0).collect();
    let (x, elem) = any(cx, 0)?;
    let (x, axis, n) = if cx.has("axis") {
        let axis = cx.axis(cx.int("axis", 0), s.len())?;
        (x, axis, s[axis])
    } else {
        let n = s.iter().product();
        (cx.b.reshape(x, &[n]), 0, n)
    };
    if at.last().is_some_and(|&i| i >= n) || at.is_empty() {
        return Err(format!("{} flags do not choose among {n} elements", flags.data.len()));
    }
    let y = take(cx, x, axis, &at);
    one(y, elem)
}

/// Where the elements lie whose index along `axis` is replaced by that of `index` at the same place.
fn elements(s: &[usize], axis: usize, index: &Const) -> Result<Vec<usize>, String> {
    if index.shape.len() != s.len() {
        return Err(format!("indices {:?} do not fit {s:?}", index.shape));
    }
    let step = strides(s);
    let mut at = Vec::with_capacity(index.data.len());
    let mut values = index.data.iter();
    each(&index.shape, |i| {
        let chosen = wrap(values.next().copied().unwrap_or(0.0), s[axis])?;
        let of = |d: usize| if d == axis { chosen } else { i[d] };
        if (0..s.len()).any(|d| of(d) >= s[d]) {
            return Err(format!("indices {:?} do not fit {s:?}", index.shape));
        }
        at.push((0..s.len()).map(|d| of(d) * step[d]).sum());
        Ok(())
    })?;
    Ok(at)
}

/// `y[i] = x[i with the axis' index replaced by index[i]]`.
fn gather_elements(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", 0), s.len())?;
    let index = known_index(cx, 1)?;
    let at = elements(&s, axis, &index)?;
    let (x, elem) = any(cx, 0)?;
    let y = rows(cx, x, s.iter().product(), 1, &at);
    one(cx.b.reshape(y, &index.shape), elem)
}

/// The places that indices of the last dimension name: as rows of `[count, width]`.
struct Places {
    at: Vec<usize>,
    count: usize,
    width: usize,
}

/// Indices over dimensions `batch..` of `s`, for each of the first `batch`.
fn places(s: &[usize], index: &Const, batch: usize) -> Result<Places, String> {
    let bad = || format!("indices {:?} do not fit {s:?}", index.shape);
    let (&k, outer) = index.shape.split_last().ok_or_else(bad)?;
    if batch + k > s.len() || outer.len() < batch || outer[..batch] != s[..batch] {
        return Err(bad());
    }
    let table = &s[..batch + k];
    let step = strides(table);
    let per: usize = outer[batch..].iter().product();
    let mut at = Vec::new();
    for (row, tuple) in index.data.chunks(k.max(1)).enumerate() {
        let mut flat = if batch == 0 { 0 } else { row / per.max(1) * step[batch - 1] };
        for (d, &i) in tuple.iter().enumerate().take(k) {
            flat += wrap(i, s[batch + d])? * step[batch + d];
        }
        at.push(flat);
    }
    Ok(Places { at, count: table.iter().product(), width: s[batch + k..].iter().product() })
}

fn gather_nd(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let batch = usize::try_from(cx.int("batch_dims", 0)).map_err(|_| "batch_dims is negative")?;
    let index = known_index(cx, 1)?;
    let p = places(&s, &index, batch)?;
    let (outer, k) = (&index.shape[..index.shape.len() - 1], index.shape[index.shape.len() - 1]);
    let shape = [outer, &s[batch + k..]].concat();
    let (x, elem) = any(cx, 0)?;
    let y = rows(cx, x, p.count, p.width, &p.at);
    one(cx.b.reshape(y, &shape), elem)
}

/// `x` with rows of `updates` put where `at` says, the last of several in one place.
fn put(cx: &mut Cx<'_, '_, '_>, x: NodeId, updates: NodeId, p: &Places) -> Result<NodeId, String> {
    cx.state.allowance.copy(p.count)?;
    let mut from: Vec<usize> = (0..p.count).collect();
    p.at.iter().enumerate().for_each(|(i, &to)| from[to] = p.count + i);
    let (x, updates) = (cx.b.number(x), cx.b.number(updates));
    let table = cx.b.reshape(x, &[p.count, p.width]);
    let new = cx.b.reshape(updates, &[p.at.len(), p.width]);
    let both = cx.b.concat(&[table, new], 0);
    Ok(rows(cx, both, p.count + p.at.len(), p.width, &from))
}

/// Puts, adds, multiplies, or takes the larger or smaller.
fn reduced(cx: &mut Cx<'_, '_, '_>, x: NodeId, updates: NodeId, p: &Places) -> Result<NodeId, String> {
    let reduction = cx.string("reduction", "none");
    if reduction == "none" || p.at.is_empty() {
        return put(cx, x, updates, p);
    }
    cx.state.allowance.copy(p.count)?;
    // Updates of one place one after the other: passes in which every place has at most one.
    let mut passes: Vec<Vec<usize>> = Vec::new();
    let mut seen = vec![0usize; p.count];
    for (i, &to) in p.at.iter().enumerate() {
        if seen[to] == passes.len() {
            passes.push(Vec::new());
        }
        passes[seen[to]].push(i);
        seen[to] += 1;
    }
    if passes.len() > 64 {
        return Err("more than 64 updates of one place are not supported".into());
    }
    let updates = cx.b.number(updates);
    let updates = cx.b.reshape(updates, &[p.at.len(), p.width]);
    let x = cx.b.number(x);
    let mut y = cx.b.reshape(x, &[p.count, p.width]);
    for pass in passes {
        let at: Vec<usize> = pass.iter().map(|&i| p.at[i]).collect();
        let old = rows(cx, y, p.count, p.width, &at);
        let new = rows(cx, updates, p.at.len(), p.width, &pass);
        let both = match reduction.as_str() {
            "add" => cx.b.add(old, new),
            "mul" => cx.b.mul(old, new),
            "max" | "min" => {
                let less = cx.b.map(slrc_plan::ScalarFn::Lt, &[old, new]);
                if reduction == "max" { cx.b.select(less, new, old) } else { cx.b.select(less, old, new) }
            }
            other => return Err(format!("reduction \"{other}\" does not exist")),
        };
        y = put(cx, y, both, &Places { at, count: p.count, width: p.width })?;
    }
    Ok(y)
}

fn scatter_elements(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", 0), s.len())?;
    let index = known_index(cx, 1)?;
    if cx.shape(2)? != index.shape {
        return Err(format!("updates {:?} do not fit indices {:?}", cx.shape(2)?, index.shape));
    }
    let at = elements(&s, axis, &index)?;
    let (x, elem) = any(cx, 0)?;
    let updates = any(cx, 2)?.0;
    let y = reduced(cx, x, updates, &Places { at, count: s.iter().product(), width: 1 })?;
    one(cx.b.reshape(y, &s), elem)
}

fn scatter_nd(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let index = known_index(cx, 1)?;
    let p = places(&s, &index, 0)?;
    let (x, elem) = any(cx, 0)?;
    let updates = any(cx, 2)?.0;
    if cx.b.graph().ty(updates).count() != p.at.len() * p.width {
        return Err(format!("updates {:?} do not fit indices {:?}", cx.b.shape(updates), index.shape));
    }
    let y = reduced(cx, x, updates, &p)?;
    one(cx.b.reshape(y, &s), elem)
}
