//! Pooling.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::types::Type;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::linear::{as_image, from_image, geometry};
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "MaxPool", note: "no index output", convert: max_pool },
    Entry { op: "AveragePool", note: "", convert: average_pool },
    Entry { op: "GlobalAveragePool", note: "mean over the spatial dimensions", convert: global_average_pool },
    Entry { op: "LpPool", note: "", convert: lp_pool },
    Entry { op: "GlobalLpPool", note: "", convert: global_lp_pool },
    Entry { op: "GlobalMaxPool", note: "maximum over the spatial dimensions", convert: global_max_pool },
];

type R = Result<Vec<Out>, String>;

fn kernel(cx: &Cx<'_, '_, '_>) -> Result<Vec<usize>, String> {
    let k = cx.ints("kernel_shape").ok_or("kernel_shape is missing")?;
    k.iter().map(|&x| usize::try_from(x).map_err(|_| format!("kernel extent {x} is negative"))).collect()
}

fn max_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    if cx.wants(1) {
        return Err("its index output is not supported".into());
    }
    let x = cx.real(0)?;
    let rank = cx.b.graph().ty(x).rank();
    let k = kernel(cx)?;
    let (x, spatial) = as_image(cx, x)?;
    check_rank(&k, rank)?;
    let g = geometry(cx, spatial, &k)?;
    let elem = cx.elem(0)?;
    let y = cx.b.max_pool(x, &g);
    let y = from_image(cx, y, rank);
    Ok(vec![Out::Node(y, elem)])
}

fn check_rank(kernel: &[usize], rank: usize) -> Result<(), String> {
    if kernel.len() + 2 == rank { Ok(()) } else { Err(format!("kernel {kernel:?} does not fit {rank} dimensions")) }
}

/// Sum of each window over its number of elements, with or without padding.
fn average_pool(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let rank = cx.b.graph().ty(x).rank();
    let k = kernel(cx)?;
    let (x, spatial) = as_image(cx, x)?;
    check_rank(&k, rank)?;
    let g = geometry(cx, spatial, &k)?;
    let include_pad = cx.int("count_include_pad", 0) != 0;
    let sum = cx.b.window_sum(x, &g);
    // Padding counts up to the declared pads, but not what ceil_mode adds beyond them.
    let declared: Vec<usize> = match cx.ints("pads") {
        Some(p) if p.len() == 4 => vec![p[2] as usize, p[3] as usize],
        Some(p) if p.len() == 2 => vec![0, p[1] as usize],
        _ => vec![0, 0],
    };
    let along = |d: usize, out: usize| -> f64 {
        let inside = (0..g.kernel[d]).filter(|&t| g.source(d, out, t).is_some()).count();
        if !include_pad {
            return inside.max(1) as f64;
        }
        let end = g.input[d] + g.pads[d] + declared[d];
        (0..g.kernel[d]).filter(|&t| out * g.strides[d] + t * g.dilations[d] < end).count().max(1) as f64
    };
    let mut data = Vec::with_capacity(g.output[0] * g.output[1]);
    for oy in 0..g.output[0] {
        for ox in 0..g.output[1] {
            data.push(1.0 / (along(0, oy) * along(1, ox)));
        }
    }
    let weights = cx.b.constant(Type::f32([1, 1, g.output[0], g.output[1]]), data);
    let full = cx.b.shape(sum);
    let weights = cx.b.broadcast(weights, &full);
    let y = cx.b.mul(sum, weights);
    let y = from_image(cx, y, rank);
    real(y)
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
    let x = cx.real(0)?;
    let rank = cx.b.graph().ty(x).rank();
    let k = kernel(cx)?;
    let (x, spatial) = as_image(cx, x)?;
    check_rank(&k, rank)?;
    let g = geometry(cx, spatial, &k)?;
    let powers = power(cx, x, p);
    let sum = cx.b.window_sum(powers, &g);
    let y = root(cx, sum, p);
    let y = from_image(cx, y, rank);
    real(y)
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
