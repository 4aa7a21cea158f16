//! Convolutions and matrix products.

use slrc_plan::ScalarFn;

use crate::ir::builder::common_shape;
use crate::ir::graph::{Init, NodeId, VarKind};
use crate::ir::ops::contract::ConvShape;
use crate::layers::fan_in;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::shape::part;
use crate::onnx::ops::window::{LARGEST, Window, as_image, choose, from_image, place, plane, windows};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "Conv",
        note: "up to three spatial dimensions, groups, dilations; a volume slice by slice of its kernel",
        convert: conv,
    },
    Entry {
        op: "ConvTranspose",
        note: "up to three spatial dimensions: a convolution's gradient",
        convert: conv_transpose,
    },
    Entry { op: "CausalConvWithState", note: "a convolution of each channel behind its past", convert: causal_conv },
    Entry { op: "Det", note: "by minors; at most 5 rows", convert: determinant },
    Entry { op: "Gemm", note: "alpha A B + beta C", convert: gemm },
    Entry { op: "MatMul", note: "batched, broadcast", convert: matmul },
];

type R = Result<Vec<Out>, String>;

fn conv(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    if ws.len() < 3 {
        return Err(format!("weight {ws:?} has no spatial dimensions"));
    }
    let init = fan_in(ws[1..].iter().product());
    let x = cx.real(0)?;
    let w = cx.weight(1, init, VarKind::Weight)?;
    let mut y = convolve(cx, x, w)?;
    if cx.present(2) {
        y = add_bias(cx, y, 2, ws[0], init)?;
    }
    let y = from_image(cx, y, xs.len());
    real(y)
}

/// A convolution as the attributes say it; its result is an image where it is of a sequence or of planes.
pub(super) fn convolve(cx: &mut Cx<'_, '_, '_>, x: NodeId, w: NodeId) -> Result<NodeId, String> {
    let (xs, ws) = (cx.b.shape(x), cx.b.shape(w));
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
    let windows = windows(cx, &xs[2..], &ws[2..])?;
    Ok(match windows[..] {
        [_, _, _] => by_slices(cx, x, w, groups, &windows),
        _ => {
            let (x, w) = (as_image(cx, x)?, as_image(cx, w)?);
            cx.b.conv(x, w, &ConvShape { groups, geometry: plane(&windows) })
        }
    })
}

/// Adds operand `i` to every channel.
pub(super) fn add_bias(
    cx: &mut Cx<'_, '_, '_>,
    y: NodeId,
    i: usize,
    channels: usize,
    init: Init,
) -> Result<NodeId, String> {
    if cx.shape(i)? != [channels] {
        return Err(format!("bias {:?} does not fit {channels} channels", cx.shape(i)?));
    }
    let bias = bias(cx, i, init)?;
    let full = cx.b.shape(y);
    let mut shape = vec![1; full.len()];
    shape[1] = channels;
    let bias = cx.b.reshape(bias, &shape);
    let bias = cx.b.broadcast(bias, &full);
    Ok(cx.b.add(y, bias))
}

/// A convolution of volumes: of every slice of the kernel one of planes, added up.
fn by_slices(cx: &mut Cx<'_, '_, '_>, x: NodeId, w: NodeId, groups: usize, windows: &[Window]) -> NodeId {
    let depth = &windows[0];
    let shape = ConvShape { groups, geometry: plane(&windows[1..]) };
    let mut sum: Option<NodeId> = None;
    for tap in 0..depth.kernel {
        let planes = choose(cx, x, 2, depth, tap);
        let planes = depth_to_batch(cx, planes);
        let slice = part(cx, w, 2, tap, 1);
        let slice = without_depth(cx, slice);
        let y = cx.b.conv(planes, slice, &shape);
        sum = Some(sum.map_or(y, |sum| cx.b.add(sum, y)));
    }
    let sum = sum.expect("invariant: a kernel has an extent");
    batch_to_depth(cx, sum, depth.output)
}

/// Its gradient with respect to the operand: of every slice of the kernel that of planes, each where it belongs.
fn by_slices_transposed(cx: &mut Cx<'_, '_, '_>, x: NodeId, w: NodeId, groups: usize, windows: &[Window]) -> NodeId {
    let depth = &windows[0];
    let shape = ConvShape { groups, geometry: plane(&windows[1..]) };
    let planes = depth_to_batch(cx, x);
    let mut sum: Option<NodeId> = None;
    for tap in 0..depth.kernel {
        let slice = part(cx, w, 2, tap, 1);
        let slice = without_depth(cx, slice);
        let y = cx.b.conv_input_grad(slice, planes, &shape);
        let y = batch_to_depth(cx, y, depth.output);
        let y = place(cx, y, 2, depth, tap);
        sum = Some(sum.map_or(y, |sum| cx.b.add(sum, y)));
    }
    sum.expect("invariant: a kernel has an extent")
}

/// `[N, C, D, H, W]` as `[N D, C, H, W]`.
fn depth_to_batch(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let x = cx.b.transpose(x, &[0, 2, 1, 3, 4]);
    let s = cx.b.shape(x);
    cx.b.reshape(x, &[s[0] * s[1], s[2], s[3], s[4]])
}

fn batch_to_depth(cx: &mut Cx<'_, '_, '_>, x: NodeId, depth: usize) -> NodeId {
    let s = cx.b.shape(x);
    let x = cx.b.reshape(x, &[s[0] / depth.max(1), depth, s[1], s[2], s[3]]);
    cx.b.transpose(x, &[0, 2, 1, 3, 4])
}

fn without_depth(cx: &mut Cx<'_, '_, '_>, w: NodeId) -> NodeId {
    let s = cx.b.shape(w);
    cx.b.reshape(w, &[s[0], s[1], s[3], s[4]])
}

/// The gradient of a convolution with respect to its input, as an op of its own: `x` is where the convolution has its
/// result, and the result is where it has its input.
fn conv_transpose(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    if xs.len() != ws.len() || !(3..=5).contains(&xs.len()) || xs[1] != ws[0] || ws[2..].contains(&0) {
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
    let windows: Vec<Window> = (0..rank)
        .map(|d| Window {
            input: out[d],
            output: xs[2 + d],
            kernel: ws[2 + d],
            stride: strides[d] as usize,
            pad: begin[d],
            dilation: dilations[d] as usize,
        })
        .collect();
    let init = fan_in(ws[1..].iter().product());
    let x = cx.real(0)?;
    let w = cx.weight(1, init, VarKind::Weight)?;
    let mut y = match rank {
        3 => by_slices_transposed(cx, x, w, groups, &windows),
        _ => {
            let (x, w) = (as_image(cx, x)?, as_image(cx, w)?);
            cx.b.conv_input_grad(w, x, &ConvShape { groups, geometry: plane(&windows) })
        }
    };
    if cx.present(2) {
        y = add_bias(cx, y, 2, ws[1] * groups, init)?;
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

/// Every channel of a sequence convolved behind its past, and the end of both, which is the past of what comes next.
fn causal_conv(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    let ([n, channels, length], [wide, 1, kernel]) = (&xs[..], &ws[..]) else {
        return Err(format!("input {xs:?} and weight {ws:?} do not belong together"));
    };
    let (n, channels, length, kernel) = (*n, *channels, *length, *kernel);
    if *wide != channels || kernel == 0 || length == 0 {
        return Err(format!("input {xs:?} and weight {ws:?} do not belong together"));
    }
    let past = [n, channels, kernel - 1];
    let x = cx.real(0)?;
    let init = fan_in(kernel);
    let w = cx.weight(1, init, VarKind::Weight)?;
    let before = if cx.present(3) { cx.real(3)? } else { cx.b.splat(0.0, &past) };
    if cx.b.shape(before) != past {
        return Err(format!("a past of {:?} is not {past:?}", cx.b.shape(before)));
    }
    let whole = if kernel > 1 { cx.b.concat(&[before, x], 2) } else { x };
    let window = Window { input: length + kernel - 1, output: length, kernel, stride: 1, pad: 0, dilation: 1 };
    let (image, w) = (as_image(cx, whole)?, as_image(cx, w)?);
    let y = cx.b.conv(image, w, &ConvShape { groups: channels, geometry: plane(&[window]) });
    let y = if cx.present(2) { add_bias(cx, y, 2, channels, init)? } else { y };
    let y = match cx.string("activation", "none").as_str() {
        "none" => y,
        "silu" | "swish" => {
            let gate = cx.b.map(ScalarFn::Sigmoid, &[y]);
            cx.b.mul(y, gate)
        }
        other => return Err(format!("activation = \"{other}\" is not supported")),
    };
    let y = from_image(cx, y, 3);
    let present = part(cx, whole, 2, length, kernel - 1);
    Ok(vec![Out::Node(y, Elem::Float), Out::Node(present, Elem::Float)])
}

/// Most rows of a determinant: there are as many products as orders of its rows.
const MOST_ROWS: usize = 5;

fn determinant(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let (rank, rows) = (s.len(), s.last().copied().unwrap_or(0));
    if rank < 2 || s[rank - 2] != rows || !(1..=MOST_ROWS).contains(&rows) {
        return Err(format!("{s:?} is not of square matrices with at most {MOST_ROWS} rows"));
    }
    let x = cx.real(0)?;
    let batch: usize = s[..rank - 2].iter().product();
    let x = cx.b.reshape(x, &[batch, rows, rows]);
    let columns: Vec<usize> = (0..rows).collect();
    let det = minor(cx, x, 0, &columns);
    real(cx.b.reshape(det, &s[..rank - 2]))
}

/// The determinant of the rows from `row` on in some columns, `[batch, 1, 1]`, along its first row.
fn minor(cx: &mut Cx<'_, '_, '_>, x: NodeId, row: usize, columns: &[usize]) -> NodeId {
    let line = part(cx, x, 1, row, 1);
    let mut sum: Option<NodeId> = None;
    for (i, &column) in columns.iter().enumerate() {
        let element = part(cx, line, 2, column, 1);
        let rest: Vec<usize> = columns.iter().copied().filter(|&c| c != column).collect();
        let term = if rest.is_empty() {
            element
        } else {
            let minor = minor(cx, x, row + 1, &rest);
            cx.b.mul(element, minor)
        };
        let term = if i % 2 == 1 { cx.b.neg(term) } else { term };
        sum = Some(sum.map_or(term, |sum| cx.b.add(sum, term)));
    }
    sum.expect("invariant: there is a column")
}

fn gemm(cx: &mut Cx<'_, '_, '_>) -> R {
    let (alpha, beta) = (cx.float("alpha", 1.0), cx.float("beta", 1.0));
    let (ta, tb) = (cx.int("transA", 0) != 0, cx.int("transB", 0) != 0);
    if cx.opset < 7 {
        // The last operand broadcasts whether this is said or not.
        cx.has("broadcast");
    }
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
