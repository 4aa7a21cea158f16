//! Windows over spatial dimensions: what pooling and convolutions have in common.

use slrc_plan::Dims;
use slrc_plan::kernel::WindowGeometry;
use slrc_plan::validate::MAX_GEOMETRY;

use crate::ir::graph::NodeId;
use crate::ir::ops::shape::{Pad, Slice};
use crate::onnx::node::Cx;

/// Windows along one dimension.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Elements before the first.
    pub(super) pad: usize,
    pub(super) dilation: usize,
}

/// Largest extent, stride, padding or reach of a window: what follows from such numbers fits in a plan.
pub(super) const LARGEST: usize = MAX_GEOMETRY / 4;

/// Windows of an op from its attributes, a spatial dimension each: one to three.
pub(super) fn windows(cx: &Cx<'_, '_, '_>, spatial: &[usize], kernel: &[usize]) -> Result<Vec<Window>, String> {
    let rank = kernel.len();
    if spatial.len() != rank {
        return Err(format!("kernel {kernel:?} does not fit {} spatial dimensions", spatial.len()));
    }
    if !(1..=3).contains(&rank) {
        return Err(format!("{rank} spatial dimensions are not supported"));
    }
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
    let (strides, dilations) = (list("strides", 1)?, list("dilations", 1)?);
    if kernel.contains(&0) || strides.contains(&0) || dilations.contains(&0) {
        return Err("kernel extents, strides and dilations are at least 1".into());
    }
    let pads: Vec<usize> = match cx.ints("pads") {
        None => vec![0; 2 * rank],
        Some(p) if p.len() == 2 * rank => p
            .iter()
            .map(|&x| usize::try_from(x).map_err(|_| format!("pad {x} is negative")))
            .collect::<Result<_, _>>()?,
        Some(p) => return Err(format!("pads has {} numbers for {rank} spatial dimensions", p.len())),
    };
    let all = [kernel, &strides, &dilations, &pads, spatial].concat();
    if let Some(n) = all.iter().find(|&&n| n > LARGEST) {
        return Err(format!("{n} in the geometry of its windows is too large"));
    }
    if spatial[1..].iter().try_fold(1usize, |a, &n| a.checked_mul(n)).is_none_or(|n| n > LARGEST) {
        return Err(format!("{spatial:?} is too large for windows"));
    }
    let ceil = cx.int("ceil_mode", 0) != 0;
    let auto = cx.string("auto_pad", "NOTSET");
    let mut out = Vec::with_capacity(rank);
    for d in 0..rank {
        let reach = dilations[d] * (kernel[d] - 1) + 1;
        if reach > LARGEST {
            return Err(format!("a window of {reach} is too large"));
        }
        let (lo, hi) = match auto.as_str() {
            "NOTSET" => (pads[d], pads[d + rank]),
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
        let mut output = room / strides[d] + 1;
        if ceil && room % strides[d] != 0 && output * strides[d] < spatial[d] + lo {
            output += 1;
        }
        let (input, kernel, stride, dilation) = (spatial[d], kernel[d], strides[d], dilations[d]);
        out.push(Window { input, output, kernel, stride, pad: lo, dilation });
    }
    Ok(out)
}

/// The geometry of windows over planes: of one or two dimensions, of which one is the second of an image of height 1.
pub(super) fn plane(windows: &[Window]) -> WindowGeometry {
    let lift = |f: fn(&Window) -> usize, fill: usize| match windows {
        [w] => Dims(vec![fill, f(w)]),
        _ => Dims(windows.iter().map(f).collect()),
    };
    WindowGeometry {
        input: lift(|w| w.input, 1),
        output: lift(|w| w.output, 1),
        kernel: lift(|w| w.kernel, 1),
        strides: lift(|w| w.stride, 1),
        pads: lift(|w| w.pad, 0),
        dilations: lift(|w| w.dilation, 1),
    }
}

/// An image tensor as `[N, C, H, W]`; a sequence `[N, C, L]` becomes height 1.
pub(super) fn as_image(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> Result<NodeId, String> {
    let s = cx.b.shape(x);
    match s[..] {
        [n, c, l] => Ok(cx.b.reshape(x, &[n, c, 1, l])),
        [_, _, _, _] => Ok(x),
        _ => Err(format!("{} spatial dimensions are not supported", s.len().saturating_sub(2))),
    }
}

/// Back from `[N, C, 1, L]` where the operand had three dimensions.
pub(super) fn from_image(cx: &mut Cx<'_, '_, '_>, y: NodeId, rank: usize) -> NodeId {
    let s = cx.b.shape(y);
    if rank == 3 && s.len() == 4 { cx.b.reshape(y, &[s[0], s[1], s[3]]) } else { y }
}

/// What can be computed along one dimension after the other, as sums and maxima can: the planes of an operand
/// `[N, C, ..]` in which it is, two dimensions at once at the end.
pub(super) struct Planes {
    passes: Vec<Pass>,
}

struct Pass {
    geometry: WindowGeometry,
    /// Spatial extents before and after.
    from: Vec<usize>,
    to: Vec<usize>,
    /// How many of them are seen as channels.
    ahead: usize,
}

impl Planes {
    pub(super) fn of(windows: &[Window]) -> Planes {
        let mut extents: Vec<usize> = windows.iter().map(|w| w.input).collect();
        let mut passes = Vec::new();
        let mut add = |geometry: WindowGeometry, ahead: usize, to: Vec<usize>| {
            let from = std::mem::replace(&mut extents, to.clone());
            passes.push(Pass { geometry, from, to, ahead });
        };
        let apart = windows.len().saturating_sub(2);
        for d in 0..apart {
            let rest: usize = windows[d + 1..].iter().map(|w| w.input).product();
            let still = Window { input: rest, output: rest, kernel: 1, stride: 1, pad: 0, dilation: 1 };
            let done = windows[..=d].iter().map(|w| w.output);
            let to = done.chain(windows[d + 1..].iter().map(|w| w.input)).collect();
            add(plane(&[windows[d].clone(), still]), d, to);
        }
        add(plane(&windows[apart..]), apart, windows.iter().map(|w| w.output).collect());
        Planes { passes }
    }

    /// Applies `f` to operands of one shape, plane by plane.
    pub(super) fn apply<const K: usize>(
        &self,
        cx: &mut Cx<'_, '_, '_>,
        x: [NodeId; K],
        f: impl Fn(&mut Cx<'_, '_, '_>, [NodeId; K], &WindowGeometry) -> [NodeId; K],
    ) -> [NodeId; K] {
        let mut x = x;
        for p in &self.passes {
            let s = cx.b.shape(x[0]);
            let channels = s[1] * p.from[..p.ahead].iter().product::<usize>();
            let image = [s[0], channels, p.geometry.input[0], p.geometry.input[1]];
            let images = x.map(|x| cx.b.reshape(x, &image));
            let back = [&s[..2], &p.to].concat();
            x = f(cx, images, &p.geometry).map(|y| cx.b.reshape(y, &back));
        }
        x
    }
}

/// Of every window along `axis` the element at `tap`, zero where that is padding.
pub(super) fn choose(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, w: &Window, tap: usize) -> NodeId {
    let mut shape = cx.b.shape(x);
    let rank = shape.len();
    let first = tap * w.dilation;
    let last = first + (w.output.max(1) - 1) * w.stride;
    let mut pad = Pad { low: vec![0; rank], high: vec![0; rank], interior: vec![0; rank] };
    pad.low[axis] = w.pad;
    pad.high[axis] = (last + 1).saturating_sub(w.input + w.pad);
    let x = cx.b.pad(x, pad);
    let (mut starts, mut steps) = (vec![0; rank], vec![1; rank]);
    (starts[axis], steps[axis], shape[axis]) = (first, w.stride, w.output);
    cx.b.slice(x, Slice { starts, steps, shape })
}

/// The transposed operation: an element a window, put where `tap` of it is, zeros elsewhere.
pub(super) fn place(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, w: &Window, tap: usize) -> NodeId {
    let mut shape = cx.b.shape(x);
    let rank = shape.len();
    let first = tap * w.dilation;
    let end = first + (w.output.max(1) - 1) * w.stride + 1;
    let mut pad = Pad { low: vec![0; rank], high: vec![0; rank], interior: vec![0; rank] };
    (pad.low[axis], pad.interior[axis]) = (first, w.stride - 1);
    pad.high[axis] = (w.input + w.pad).saturating_sub(end);
    let x = cx.b.pad(x, pad);
    let mut starts = vec![0; rank];
    (starts[axis], shape[axis]) = (w.pad, w.input);
    cx.b.slice(x, Slice { starts, steps: vec![1; rank], shape })
}
