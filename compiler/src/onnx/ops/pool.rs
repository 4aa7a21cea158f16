//! Pooling.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::ops::window::WindowMaxIndex;
use crate::ir::tensor::for_each_index;
use crate::ir::types::Type;
use crate::onnx::folding::constant_of;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::shape::{pad_with, part};
use crate::onnx::ops::window::{LARGEST, Planes, Window, place, windows};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "MaxPool", note: "up to three spatial dimensions", convert: max_pool },
    Entry { op: "MaxUnpool", note: "places are an integer input or known at import", convert: max_unpool },
    Entry { op: "AveragePool", note: "up to three spatial dimensions", convert: average_pool },
    Entry { op: "Col2Im", note: "up to three spatial dimensions", convert: columns_to_image },
    Entry { op: "GlobalAveragePool", note: "mean over the spatial dimensions", convert: global_average_pool },
    Entry { op: "LpPool", note: "up to three spatial dimensions", convert: lp_pool },
    Entry { op: "GlobalLpPool", note: "", convert: global_lp_pool },
    Entry { op: "GlobalMaxPool", note: "maximum over the spatial dimensions", convert: global_max_pool },
];

type R = Result<Vec<Out>, String>;

/// Most elements of a block: each is put into its place by itself.
const MOST_TAPS: usize = 1 << 10;

fn kernel(cx: &Cx<'_, '_, '_>) -> Result<Vec<usize>, String> {
    let k = cx.ints("kernel_shape").ok_or("kernel_shape is missing")?;
    k.iter().map(|&x| usize::try_from(x).map_err(|_| format!("kernel extent {x} is negative"))).collect()
}

/// An operand with its windows.
fn windowed(cx: &mut Cx<'_, '_, '_>) -> Result<(NodeId, Vec<Window>), String> {
    let x = cx.real(0)?;
    let (s, k) = (cx.b.shape(x), kernel(cx)?);
    if k.len() + 2 != s.len() {
        return Err(format!("kernel {k:?} does not fit {} dimensions", s.len()));
    }
    Ok((x, windows(cx, &s[2..], &k)?))
}

fn max_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let elem = cx.elem(0)?;
    let (x, windows) = windowed(cx)?;
    let planes = Planes::of(&windows);
    let column_major = cx.int("storage_order", 0) != 0;
    if !cx.wants(1) {
        let [y] = planes.apply(cx, [x], |cx, [x], g| [cx.b.max_pool(x, g)]);
        return Ok(vec![Out::Node(y, elem)]);
    }
    let positions = positions(cx, x, column_major)?;
    let [y, at] = planes.apply(cx, [x, positions], |cx, [x, positions], g| {
        let index = cx.b.emit(WindowMaxIndex(g.clone()), &[x]);
        [x, positions].map(|of| cx.b.window_select(of, index, g))
    });
    Ok(vec![Out::Node(y, elem), Out::Node(at, Elem::Int)])
}

/// The place of every element of `x` among all of them. Within a channel the first spatial dimension may be fastest.
fn positions(cx: &mut Cx<'_, '_, '_>, x: NodeId, column_major: bool) -> Result<NodeId, String> {
    let s = cx.b.shape(x);
    let spatial = &s[2..];
    let size: usize = spatial.iter().product();
    cx.state.allowance.copy(size)?;
    cx.state.allowance.copy(s[0] * s[1])?;
    let mut order: Vec<usize> = (0..spatial.len()).rev().collect();
    if column_major {
        order.reverse();
    }
    let mut data = Vec::with_capacity(size);
    for_each_index(spatial, |i| {
        let (mut at, mut step) = (0, 1);
        for &d in &order {
            at += i[d] * step;
            step *= spatial[d];
        }
        data.push(at as f64);
    });
    let inside = cx.b.constant(Type::f32([&[1, 1], spatial].concat()), data);
    let mut channels = vec![1; s.len()];
    channels[..2].copy_from_slice(&s[..2]);
    let first = (0..s[0] * s[1]).map(|c| (c * size) as f64).collect();
    let first = cx.b.constant(Type::f32(channels), first);
    Ok(cx.b.binary(ScalarFn::Add, first, inside))
}

/// Every element at its place among all elements of the result, zeros elsewhere. A larger result is asked for by its
/// shape; places are those in one that just holds the windows.
fn max_unpool(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let (s, k) = (cx.b.shape(x), kernel(cx)?);
    let rank = k.len();
    if rank + 2 != s.len() || cx.shape(1)? != s {
        return Err(format!("kernel {k:?} and places {:?} do not fit {s:?}", cx.shape(1)?));
    }
    let strides = cx.ints("strides").unwrap_or_else(|| vec![1; rank]);
    let pads = cx.ints("pads").unwrap_or_else(|| vec![0; 2 * rank]);
    if strides.len() != rank || pads.len() != 2 * rank {
        return Err(format!("strides and pads do not fit {rank} spatial dimensions"));
    }
    let mut shape = s[..2].to_vec();
    for d in 0..rank {
        let reach = s[2 + d].saturating_sub(1) as i64;
        let padding = pads[d].saturating_add(pads[d + rank]);
        let extent = reach.saturating_mul(strides[d]).saturating_add(k[d] as i64).saturating_sub(padding);
        let extent = usize::try_from(extent).ok().filter(|n| (1..=LARGEST).contains(n));
        shape.push(extent.ok_or("its windows have no place")?);
    }
    let index = cx.index_values(1)?;
    let count: usize = s.iter().product();
    let all = shape.iter().try_fold(1usize, |a, &n| a.checked_mul(n)).ok_or("its result is too large")?;
    let (rows, index) = (cx.b.reshape(x, &[count, 1]), cx.b.reshape(index, &[count]));
    let y = cx.b.scatter_add(rows, index, all);
    let y = cx.b.reshape(y, &shape);
    if !cx.present(2) {
        return real(y);
    }
    let wanted = cx.known_ints(2, "the shape")?;
    let more = |d: usize| usize::try_from(wanted[d]).ok().and_then(|n| n.checked_sub(shape[d]));
    if wanted.len() != shape.len() || (0..shape.len()).any(|d| more(d).is_none_or(|n| n > LARGEST)) {
        return Err(format!("a result of {wanted:?} does not hold {shape:?}"));
    }
    let pads: Vec<[i64; 2]> = (0..shape.len()).map(|d| [0, more(d).unwrap_or(0) as i64]).collect();
    real(pad_with(cx, y, &pads, 0.0)?)
}

/// Blocks added up where they overlap: a column holds a block of every channel.
fn columns_to_image(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let s = cx.b.shape(x);
    let extents = |i: usize, what: &str| -> Result<Vec<usize>, String> {
        let v = cx.known_ints(i, what)?;
        v.iter().map(|&n| usize::try_from(n).map_err(|_| format!("{what} has the extent {n}"))).collect()
    };
    let (image, block) = (extents(1, "the shape of the image")?, extents(2, "the shape of the blocks")?);
    let windows = windows(cx, &image, &block)?;
    let (taps, places) = (block.iter().product::<usize>(), windows.iter().map(|w| w.output).product::<usize>());
    let &[n, wide, columns] = &s[..] else { return Err(format!("{s:?} is not of columns")) };
    if taps > MOST_TAPS || !wide.is_multiple_of(taps) || columns != places {
        return Err(format!("{s:?} is not of {places} columns with blocks of {block:?}"));
    }
    let channels = wide / taps;
    let outputs: Vec<usize> = windows.iter().map(|w| w.output).collect();
    let x = cx.b.reshape(x, &[n, channels, taps, columns]);
    let mut sum: Option<NodeId> = None;
    let mut tap = 0;
    let mut parts = Vec::new();
    for_each_index(&block, |at| {
        parts.push((tap, at.to_vec()));
        tap += 1;
    });
    for (tap, at) in parts {
        let y = part(cx, x, 2, tap, 1);
        let mut y = cx.b.reshape(y, &[&[n, channels], &outputs[..]].concat());
        for (d, w) in windows.iter().enumerate() {
            y = place(cx, y, 2 + d, w, at[d]);
        }
        sum = Some(sum.map_or(y, |sum| cx.b.add(sum, y)));
    }
    real(sum.ok_or("its blocks are empty")?)
}

/// Sum of each window over its number of elements, with or without padding.
fn average_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let (x, windows) = windowed(cx)?;
    let include_pad = cx.int("count_include_pad", 0) != 0;
    let [sum] = Planes::of(&windows).apply(cx, [x], |cx, [x], g| [cx.b.window_sum(x, g)]);
    // Padding counts up to the declared pads, but not what ceil_mode adds beyond them.
    let rank = windows.len();
    let declared: Vec<usize> = match cx.ints("pads") {
        Some(p) if p.len() == 2 * rank => p[rank..].iter().map(|&x| x as usize).collect(),
        _ => vec![0; rank],
    };
    let along = |d: usize, out: usize| -> f64 {
        let w = &windows[d];
        let at = |tap: usize| out * w.stride + tap * w.dilation;
        let inside = |tap: &usize| at(*tap).checked_sub(w.pad).is_some_and(|i| i < w.input);
        let counted = |tap: &usize| at(*tap) < w.input + w.pad + declared[d];
        let n = if include_pad { (0..w.kernel).filter(counted).count() } else { (0..w.kernel).filter(inside).count() };
        n.max(1) as f64
    };
    let outputs: Vec<usize> = windows.iter().map(|w| w.output).collect();
    let counts: Vec<Vec<f64>> = (0..rank).map(|d| (0..outputs[d]).map(|o| along(d, o)).collect()).collect();
    cx.state.allowance.copy(constant_of(&outputs)?)?;
    let mut data = Vec::with_capacity(outputs.iter().product());
    for_each_index(&outputs, |i| data.push(1.0 / i.iter().enumerate().map(|(d, &o)| counts[d][o]).product::<f64>()));
    let weights = cx.b.constant(Type::f32([&[1, 1], &outputs[..]].concat()), data);
    let full = cx.b.shape(sum);
    let weights = cx.b.broadcast(weights, &full);
    real(cx.b.mul(sum, weights))
}

/// `|x|^p`.
fn power(cx: &mut Cx<'_, '_, '_>, x: NodeId, p: f64) -> NodeId {
    if p == 2.0 {
        return cx.b.mul(x, x);
    }
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    let exponent = cx.b.splat_like(x, p);
    cx.b.map(ScalarFn::Pow, &[abs, exponent])
}

/// `x^(1 / p)`.
fn root(cx: &mut Cx<'_, '_, '_>, x: NodeId, p: f64) -> NodeId {
    if p == 2.0 {
        return cx.b.map(ScalarFn::Sqrt, &[x]);
    }
    let exponent = cx.b.splat_like(x, 1.0 / p);
    cx.b.map(ScalarFn::Pow, &[x, exponent])
}

/// An exponent, which the first opset had as a float.
fn exponent(cx: &Cx<'_, '_, '_>) -> Result<f64, String> {
    let p = cx.int("p", 2) as f64;
    if p >= 1.0 { Ok(p) } else { Err(format!("p = {p} is not supported")) }
}

/// `(sum of |x|^p)^(1 / p)` of each window.
fn lp_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let p = exponent(cx)?;
    let (x, windows) = windowed(cx)?;
    let powers = power(cx, x, p);
    let [sum] = Planes::of(&windows).apply(cx, [powers], |cx, [x], g| [cx.b.window_sum(x, g)]);
    real(root(cx, sum, p))
}

fn global_lp_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let p = exponent(cx)?;
    let x = cx.real(0)?;
    let axes = spatial_axes(cx.b.graph().ty(x).rank())?;
    let powers = power(cx, x, p);
    let sum = cx.b.sum(powers, &axes);
    real(root(cx, sum, p))
}

fn spatial_axes(rank: usize) -> Result<Vec<usize>, String> {
    if rank < 3 { Err("the input has no spatial dimensions".into()) } else { Ok((2..rank).collect()) }
}

fn global_average_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let axes = spatial_axes(cx.b.graph().ty(x).rank())?;
    real(cx.b.mean(x, &axes))
}

fn global_max_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let axes = spatial_axes(cx.b.graph().ty(x).rank())?;
    real(cx.b.max(x, &axes))
}
