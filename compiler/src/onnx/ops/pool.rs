//! Pooling.

use crate::ir::types::Type;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::linear::{as_image, from_image, geometry};
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "MaxPool", note: "no index output", convert: max_pool },
    Entry { op: "AveragePool", note: "", convert: average_pool },
    Entry { op: "GlobalAveragePool", note: "mean over the spatial dimensions", convert: global_average_pool },
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
    let y = cx.b.max_pool(x, &g);
    let y = from_image(cx, y, rank);
    real(y)
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
