//! Convolutions and matrix products.

use slrc_plan::Dims;
use slrc_plan::kernel::WindowGeometry;
use slrc_plan::validate::MAX_GEOMETRY;

use crate::ir::builder::common_shape;
use crate::ir::graph::{Init, NodeId, VarKind};
use crate::ir::ops::contract::ConvShape;
use crate::layers::fan_in;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Conv", note: "one or two spatial dimensions, groups, dilations", convert: conv },
    Entry {
        op: "ConvTranspose",
        note: "one or two spatial dimensions: a convolution's gradient",
        convert: conv_transpose,
    },
    Entry { op: "Gemm", note: "alpha A B + beta C", convert: gemm },
    Entry { op: "MatMul", note: "batched, broadcast", convert: matmul },
];

type R = Result<Vec<Out>, String>;

/// Largest extent, stride, padding or reach of a window: what follows from such numbers fits in a plan.
const LARGEST: usize = MAX_GEOMETRY / 4;

/// Geometry of a windowed op from its attributes. `spatial` are the input's two spatial extents; one-dimensional
/// attributes describe the second.
pub(super) fn geometry(cx: &Cx<'_, '_, '_>, spatial: [usize; 2], kernel: &[usize]) -> Result<WindowGeometry, String> {
    let rank = kernel.len();
    let list = |name: &str, default: usize| -> Result<Vec<usize>, String> {
        let v = cx.ints(name).unwrap_or_else(|| vec![default as i64; rank]);
        let v: Vec<usize> = v
            .iter()
            .map(|&x| usize::try_from(x).map_err(|_| format!("{name} {x} is negative")))
            .collect::<Result<_, _>>()?;
        if v.len() == rank {
            Ok(v)
        } else {
            Err(format!("{name} has {} numbers for {rank} spatial dimensions", v.len()))
        }
    };
    let lift = |v: &[usize], fill: usize| if rank == 1 { vec![fill, v[0]] } else { v.to_vec() };
    let (kernel, strides, dilations) =
        (lift(kernel, 1), lift(&list("strides", 1)?, 1), lift(&list("dilations", 1)?, 1));
    if kernel.contains(&0) || strides.contains(&0) || dilations.contains(&0) {
        return Err("kernel extents, strides and dilations are at least 1".into());
    }
    let pads: Vec<usize> = match cx.ints("pads") {
        None => vec![0; 4],
        Some(p) if p.len() == 2 * rank => {
            let p: Vec<usize> = p
                .iter()
                .map(|&x| usize::try_from(x).map_err(|_| format!("pad {x} is negative")))
                .collect::<Result<_, _>>()?;
            if rank == 1 { vec![0, p[0], 0, p[1]] } else { p }
        }
        Some(p) => return Err(format!("pads has {} numbers for {rank} spatial dimensions", p.len())),
    };
    let all = [&kernel[..], &strides, &dilations, &pads, &spatial].concat();
    if let Some(n) = all.iter().find(|&&n| n > LARGEST) {
        return Err(format!("{n} in the geometry of its windows is too large"));
    }
    let ceil = cx.int("ceil_mode", 0) != 0;
    let mut output = [0; 2];
    let mut begin = [pads[0], pads[1]];
    for d in 0..2 {
        let reach = dilations[d] * (kernel[d] - 1) + 1;
        if reach > LARGEST {
            return Err(format!("a window of {reach} is too large"));
        }
        let auto = cx.string("auto_pad", "NOTSET");
        let (lo, hi) = match auto.as_str() {
            "NOTSET" => (pads[d], pads[d + 2]),
            "VALID" => (0, 0),
            "SAME_UPPER" | "SAME_LOWER" => {
                let out = spatial[d].div_ceil(strides[d]);
                let total = (out.saturating_sub(1) * strides[d] + reach).saturating_sub(spatial[d]);
                let small = total / 2;
                if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) }
            }
            other => return Err(format!("auto_pad = \"{other}\" does not exist")),
        };
        let padded = spatial[d] + lo + hi;
        let room = padded
            .checked_sub(reach)
            .ok_or_else(|| format!("a window of {reach} does not fit {} elements padded to {padded}", spatial[d]))?;
        output[d] = room / strides[d] + 1;
        if ceil && room % strides[d] != 0 && output[d] * strides[d] < spatial[d] + lo {
            output[d] += 1;
        }
        begin[d] = lo;
    }
    Ok(WindowGeometry {
        input: Dims(spatial.to_vec()),
        output: Dims(output.to_vec()),
        kernel: Dims(kernel),
        strides: Dims(strides),
        pads: Dims(begin.to_vec()),
        dilations: Dims(dilations),
    })
}

/// An image tensor as `[N, C, H, W]`; a sequence `[N, C, L]` becomes height 1. Returns it with its spatial extents.
pub(super) fn as_image(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> Result<(NodeId, [usize; 2]), String> {
    let s = cx.b.shape(x);
    match s[..] {
        [n, c, l] => Ok((cx.b.reshape(x, &[n, c, 1, l]), [1, l])),
        [_, _, h, w] => Ok((x, [h, w])),
        _ => Err(format!("{} spatial dimensions are not supported", s.len().saturating_sub(2))),
    }
}

/// Back from `[N, C, 1, L]` where the operand had three dimensions.
pub(super) fn from_image(cx: &mut Cx<'_, '_, '_>, y: NodeId, rank: usize) -> NodeId {
    let s = cx.b.shape(y);
    if rank == 3 && s.len() == 4 { cx.b.reshape(y, &[s[0], s[1], s[3]]) } else { y }
}

fn conv(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    if xs.len() != ws.len() || xs.len() < 3 {
        return Err(format!("input {xs:?} and weight {ws:?} do not belong together"));
    }
    let groups = usize::try_from(cx.int("group", 1)).ok().filter(|&g| g > 0).ok_or("group must be positive")?;
    if ws[1].checked_mul(groups) != Some(xs[1]) {
        return Err(format!("weight {ws:?} in {groups} groups does not fit {} channels", xs[1]));
    }
    if !ws[0].is_multiple_of(groups) {
        return Err(format!("group {groups} does not divide {} channels", ws[0]));
    }
    if let Some(k) = cx.ints("kernel_shape")
        && !k.iter().map(|&k| k as usize).eq(ws[2..].iter().copied())
    {
        return Err(format!("kernel_shape {k:?} is not that of weight {ws:?}"));
    }
    let init = fan_in(ws[1..].iter().product());
    let x = cx.real(0)?;
    let w = cx.weight(1, init, VarKind::Weight)?;
    let (x, spatial) = as_image(cx, x)?;
    let (w, _) = as_image(cx, w)?;
    let shape = ConvShape { groups, geometry: geometry(cx, spatial, &ws[2..])? };
    let mut y = cx.b.conv(x, w, &shape);
    if cx.present(2) {
        if cx.shape(2)? != [ws[0]] {
            return Err(format!("bias {:?} does not fit {} channels", cx.shape(2)?, ws[0]));
        }
        let bias = bias(cx, 2, init)?;
        let bias = cx.b.reshape(bias, &[1, ws[0], 1, 1]);
        let full = cx.b.shape(y);
        let bias = cx.b.broadcast(bias, &full);
        y = cx.b.add(y, bias);
    }
    let y = from_image(cx, y, xs.len());
    real(y)
}

/// The gradient of a convolution with respect to its input, as an op of its own: `x` is where the convolution has its
/// result, and the result is where it has its input.
fn conv_transpose(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    if xs.len() != ws.len() || !(3..=4).contains(&xs.len()) || xs[1] != ws[0] {
        return Err(format!("input {xs:?} and weight {ws:?} do not belong together"));
    }
    let groups = usize::try_from(cx.int("group", 1)).ok().filter(|&g| g > 0).ok_or("group must be positive")?;
    if !ws[0].is_multiple_of(groups) {
        return Err(format!("group {groups} does not divide {} channels", ws[0]));
    }
    let rank = xs.len() - 2;
    let list = |cx: &Cx<'_, '_, '_>, name: &str, fill: i64, n: usize| -> Result<Vec<i64>, String> {
        let v = cx.ints(name).unwrap_or_else(|| vec![fill; n]);
        let fits = v.len() == n && v.iter().all(|&x| (0..=LARGEST as i64).contains(&x));
        if fits { Ok(v) } else { Err(format!("{name} {v:?} does not fit {rank} spatial dimensions")) }
    };
    let (strides, dilations) = (list(cx, "strides", 1, rank)?, list(cx, "dilations", 1, rank)?);
    let (pads, more) = (list(cx, "pads", 0, 2 * rank)?, list(cx, "output_padding", 0, rank)?);
    let kernel = list(cx, "kernel_shape", 1, rank)?;
    if cx.has("kernel_shape") && !kernel.iter().map(|&k| k as usize).eq(ws[2..].iter().copied()) {
        return Err(format!("kernel_shape {kernel:?} is not that of weight {ws:?}"));
    }
    let (auto, wanted) = (cx.string("auto_pad", "NOTSET"), cx.ints("output_shape"));
    let extent = |x: &i64| (1..=LARGEST as i64).contains(x);
    if wanted.as_ref().is_some_and(|w| w.len() < rank || !w[w.len() - rank..].iter().all(extent))
        || strides.contains(&0)
        || dilations.contains(&0)
    {
        return Err("output_shape, strides and dilations are one number a spatial dimension, at least 1".into());
    }
    let (mut begin, mut out) = (vec![0; rank], vec![0; rank]);
    for d in 0..rank {
        let reach = (ws[2 + d] as i64 - 1) * dilations[d] + 1;
        let whole = strides[d] * (xs[2 + d] as i64 - 1) + more[d] + reach;
        let same = auto.starts_with("SAME").then(|| xs[2 + d] as i64 * strides[d]);
        let wanted = wanted.as_ref().map(|w| w[w.len() - rank + d]).or(same);
        let (low, high) = match wanted {
            None => (pads[d], pads[d + rank]),
            Some(w) => {
                let total = (whole - w).max(0);
                let low = if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 };
                (low, whole - w - low)
            }
        };
        let extent = usize::try_from(whole - low - high).ok().filter(|&n| n > 0 && n <= LARGEST);
        (begin[d], out[d]) = (low as usize, extent.ok_or("nothing is left of its output")?);
    }
    let lift = |v: &[usize], fill: usize| Dims(if rank == 1 { vec![fill, v[0]] } else { v.to_vec() });
    let sizes = |v: &[i64]| v.iter().map(|&x| x as usize).collect::<Vec<usize>>();
    let geometry = WindowGeometry {
        input: lift(&out, 1),
        output: lift(&xs[2..], 1),
        kernel: lift(&ws[2..], 1),
        strides: lift(&sizes(&strides), 1),
        pads: lift(&begin, 0),
        dilations: lift(&sizes(&dilations), 1),
    };
    let init = fan_in(ws[1..].iter().product());
    let x = cx.real(0)?;
    let w = cx.weight(1, init, VarKind::Weight)?;
    let (x, _) = as_image(cx, x)?;
    let (w, _) = as_image(cx, w)?;
    let mut y = cx.b.conv_input_grad(w, x, &ConvShape { groups, geometry });
    if cx.present(2) {
        let bias = bias(cx, 2, init)?;
        let full = cx.b.shape(y);
        let bias = cx.b.reshape(bias, &[1, ws[1] * groups, 1, 1]);
        let bias = cx.b.broadcast(bias, &full);
        y = cx.b.add(y, bias);
    }
    let y = from_image(cx, y, xs.len());
    real(y)
}

/// A bias is a weight unless it is a constant zero, which exporters add where the layer has none.
pub(super) fn bias(cx: &mut Cx<'_, '_, '_>, i: usize, init: Init) -> Result<NodeId, String> {
    match cx.known(i)? {
        Some(c)
            if c.data.iter().all(|&x| x == 0.0) && !matches!(cx.operand(i), crate::onnx::node::Operand::Weight(_)) =>
        {
            cx.real(i)
        }
        _ => cx.weight(i, init, VarKind::Weight),
    }
}

fn gemm(cx: &mut Cx<'_, '_, '_>) -> R {
    let (alpha, beta) = (cx.float("alpha", 1.0), cx.float("beta", 1.0));
    let (ta, tb) = (cx.int("transA", 0) != 0, cx.int("transB", 0) != 0);
    let (sa, sb) = (cx.shape(0)?, cx.shape(1)?);
    if sa.len() != 2 || sb.len() != 2 {
        return Err(format!("operands {sa:?} and {sb:?} are not matrices"));
    }
    let fan = if tb { sb[1] } else { sb[0] };
    let a = cx.weight_or_real(0)?;
    let b = cx.weight(1, fan_in(fan), VarKind::Weight)?;
    let a = if ta { cx.b.transpose(a, &[1, 0]) } else { a };
    let b = if tb { cx.b.transpose(b, &[1, 0]) } else { b };
    if cx.b.shape(a)[1] != cx.b.shape(b)[0] {
        return Err(format!("operands {sa:?} and {sb:?} cannot be multiplied"));
    }
    let mut y = cx.b.matmul(a, b);
    y = cx.b.scale(y, alpha);
    if cx.present(2) && beta != 0.0 {
        let c = bias(cx, 2, fan_in(fan))?;
        let full = cx.b.shape(y);
        let c = cx.b.broadcast_to(c, &full);
        let c = cx.b.scale(c, beta);
        y = cx.b.add(y, c);
    }
    real(y)
}

fn matmul(cx: &mut Cx<'_, '_, '_>) -> R {
    let (sa, sb) = (cx.shape(0)?, cx.shape(1)?);
    if sa.is_empty() || sb.is_empty() {
        return Err("scalars cannot be multiplied as matrices".into());
    }
    let init = fan_in(sb[sb.len().saturating_sub(2)]);
    let mut a = cx.weight_or_real(0)?;
    let mut b = if cx.is_weight(1) { cx.weight(1, init, VarKind::Weight)? } else { cx.real(1)? };
    if sa.len() == 1 {
        a = cx.b.reshape(a, &[1, sa[0]]);
    }
    if sb.len() == 1 {
        b = cx.b.reshape(b, &[sb[0], 1]);
    }
    let y = multiply(cx, a, b)?;
    let mut shape = cx.b.shape(y);
    if sb.len() == 1 {
        shape.pop();
    }
    if sa.len() == 1 {
        let at = shape.len() - usize::from(sb.len() != 1) - 1;
        shape.remove(at);
    }
    real(cx.b.reshape(y, &shape))
}

/// numpy's matmul for operands of at least two dimensions.
pub(super) fn multiply(cx: &mut Cx<'_, '_, '_>, a: NodeId, b: NodeId) -> Result<NodeId, String> {
    let (sa, sb) = (cx.b.shape(a), cx.b.shape(b));
    let (ra, rb) = (sa.len(), sb.len());
    if ra < 2 || rb < 2 || sa[ra - 1] != sb[rb - 2] {
        return Err(format!("operands {sa:?} and {sb:?} cannot be multiplied"));
    }
    if rb == 2 && ra > 2 {
        // One matrix for every row: a single product over all rows.
        let rows = sa[..ra - 1].iter().product();
        let flat = cx.b.reshape(a, &[rows, sa[ra - 1]]);
        let y = cx.b.matmul(flat, b);
        let mut shape = sa[..ra - 1].to_vec();
        shape.push(sb[1]);
        return Ok(cx.b.reshape(y, &shape));
    }
    let batch = common_shape(&sa[..ra - 2], &sb[..rb - 2])
        .ok_or_else(|| format!("the batches of {sa:?} and {sb:?} do not broadcast"))?;
    let a = cx.b.broadcast_to(a, &[&batch[..], &sa[ra - 2..]].concat());
    let b = cx.b.broadcast_to(b, &[&batch[..], &sb[rb - 2..]].concat());
    Ok(cx.b.matmul(a, b))
}
