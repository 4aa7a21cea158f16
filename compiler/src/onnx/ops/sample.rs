//! Images read at places that data choose.

use slrc_plan::ScalarFn;

use crate::ir::graph::{NodeId, VarKind};
use crate::ir::types::Type;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::arrange::marks;
use crate::onnx::ops::elementwise::nearest_even;
use crate::onnx::ops::linear::add_bias;
use crate::onnx::ops::shape::part;
use crate::onnx::ops::window::windows;
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "DeformConv", note: "two spatial dimensions; as much work as GridSample", convert: deformable_conv },
    Entry { op: "AffineGrid", note: "size known at import", convert: affine_grid },
    Entry {
        op: "GridSample",
        note: "a product with the weights of each axis: as much work as places times elements",
        convert: grid_sample,
    },
];

type R = Result<Vec<Out>, String>;

/// Most elements of an axis' weights.
const MOST_WEIGHTS: usize = 1 << 30;

/// Places of an image in [-1, 1], moved: `theta [N, r, r + 1]` times every place with a 1 behind it.
fn affine_grid(cx: &mut Cx<'_, '_, '_>) -> R {
    let (ts, size) = (cx.shape(0)?, cx.known_ints(1, "the size")?);
    let corners = cx.int("align_corners", 0) != 0;
    let extents: Vec<usize> = size.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
    let rank = extents.len().saturating_sub(2);
    let places = extents.iter().skip(2).try_fold(1usize, |a, &n| a.checked_mul(n));
    let places = places.filter(|n| (1..=1 << 26).contains(n)).ok_or(format!("a size of {size:?} cannot be used"))?;
    if !(2..=3).contains(&rank) || ts != [extents[0], rank, rank + 1] {
        return Err(format!("theta of {ts:?} does not fit a size of {size:?}"));
    }
    let at = |i: usize, n: usize| match corners {
        true if n == 1 => 0.0,
        true => 2.0 * i as f64 / (n - 1) as f64 - 1.0,
        false => (2 * i + 1) as f64 / n as f64 - 1.0,
    };
    cx.state.allowance.copy(places * (rank + 1))?;
    let mut base = Vec::with_capacity(places * (rank + 1));
    crate::ir::tensor::for_each_index(&extents[2..], |i| {
        // The last dimension is the first coordinate.
        base.extend((0..rank).rev().map(|d| at(i[d], extents[2 + d])));
        base.push(1.0);
    });
    let base = cx.b.constant(Type::f32([1, places, rank + 1]), base);
    let base = cx.b.broadcast(base, &[extents[0], places, rank + 1]);
    let theta = cx.real(0)?;
    let theta = cx.b.matrix_transpose(theta);
    let grid = cx.b.matmul(base, theta);
    real(cx.b.reshape(grid, &[&extents[..1], &extents[2..], &[rank]].concat()))
}

/// How an element outside is found.
#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    /// About the first and last element, or about their outer edges.
    Reflection,
}

/// How elements around a place are weighed.
#[derive(Clone, Copy, PartialEq)]
enum Taps {
    Nearest,
    Linear,
    /// Keys, 1981.
    Cubic,
}

/// `y[n, c, p] = sum over i, j of x[n, c, i, j] v[n, p, i] w[n, p, j]`, and so on for volumes.
fn grid_sample(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, gs) = (cx.shape(0)?, cx.shape(1)?);
    let rank = xs.len().saturating_sub(2);
    if rank == 0 || gs.len() != xs.len() || gs[0] != xs[0] || gs[rank + 1] != rank {
        return Err(format!("a grid of {gs:?} does not fit {xs:?}"));
    }
    let corners = cx.int("align_corners", 0) != 0;
    let taps = match cx.string("mode", "linear").as_str() {
        "nearest" => Taps::Nearest,
        "linear" | "bilinear" => Taps::Linear,
        "cubic" | "bicubic" => Taps::Cubic,
        other => return Err(format!("mode \"{other}\" does not exist")),
    };
    let padding = match cx.string("padding_mode", "zeros").as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(format!("padding_mode \"{other}\" does not exist")),
    };
    let out = &gs[1..rank + 1];
    let places = out.iter().try_fold(gs[0], |a, &n| a.checked_mul(n)).ok_or("its grid is too large")?;
    if xs[2..].iter().any(|&n| n == 0 || places.checked_mul(n).is_none_or(|m| m > MOST_WEIGHTS)) {
        return Err(format!("a grid of {gs:?} over {xs:?} is too large"));
    }
    let places = places / gs[0].max(1);
    let (x, grid) = (cx.real(0)?, cx.real(1)?);
    let grid = cx.b.reshape(grid, &[gs[0], places, rank]);
    let weights: Vec<NodeId> = (0..rank)
        .map(|d| {
            let g = part(cx, grid, 2, rank - 1 - d, 1);
            let g = cx.b.reshape(g, &[gs[0], places]);
            // From [-1, 1], of centres or of edges, to elements.
            let n = xs[2 + d] as f64;
            let g = cx.b.scale(g, if corners { (n - 1.0) / 2.0 } else { n / 2.0 });
            let g = cx.b.offset(g, (n - 1.0) / 2.0);
            axis_weights(cx, g, xs[2 + d], corners, taps, padding)
        })
        .collect::<Result<_, _>>()?;
    let y = read(cx, x, &weights);
    real(cx.b.reshape(y, &[&xs[..2], out].concat()))
}

/// `[N, C, ..]` at places whose weights along each axis are given, `[N, P, extent]`: `[N, C, P]`. The last axis is
/// summed by a product, the others one by one.
fn read(cx: &mut Cx<'_, '_, '_>, x: NodeId, weights: &[NodeId]) -> NodeId {
    let s = cx.b.shape(x);
    let places = cx.b.shape(weights[0])[1];
    let mut y = x;
    for (d, &w) in weights.iter().enumerate().rev() {
        let w = cx.b.matrix_transpose(w);
        let ahead: usize = s[1..2 + d].iter().product();
        y = if d + 1 == weights.len() {
            let rows = cx.b.reshape(y, &[s[0], ahead, s[2 + d]]);
            cx.b.matmul(rows, w)
        } else {
            let parted = [s[0], ahead, s[2 + d], places];
            let w = cx.b.reshape(w, &[s[0], 1, s[2 + d], places]);
            let w = cx.b.broadcast(w, &parted);
            let parts = cx.b.reshape(y, &parted);
            let products = cx.b.mul(parts, w);
            let sum = cx.b.sum(products, &[2]);
            cx.b.reshape(sum, &[s[0], ahead, places])
        };
    }
    y
}

/// A convolution whose windows read at places that are moved: `offset [N, groups taps 2, ..]`, vertical before
/// horizontal, and each element times one of `mask [N, groups taps, ..]`.
fn deformable_conv(cx: &mut Cx<'_, '_, '_>) -> R {
    let (xs, ws) = (cx.shape(0)?, cx.shape(1)?);
    let (&[n, channels, _, _], &[out, each, kh, kw]) = (&xs[..], &ws[..]) else {
        return Err(format!("input {xs:?} and weight {ws:?} are not of planes"));
    };
    let positive = |v: i64| usize::try_from(v).ok().filter(|&g| g > 0).ok_or("groups must be positive");
    let (groups, moved) = (positive(cx.int("group", 1))?, positive(cx.int("offset_group", 1))?);
    if each.checked_mul(groups) != Some(channels) || out % groups != 0 || channels % moved != 0 {
        return Err(format!("weight {ws:?} in {groups} groups, offsets in {moved}, does not fit {xs:?}"));
    }
    if cx.ints("kernel_shape").is_some_and(|k| k != [kh as i64, kw as i64]) {
        return Err(format!("kernel_shape is not that of weight {ws:?}"));
    }
    let windows = windows(cx, &xs[2..], &ws[2..])?;
    let (taps, places) = (kh * kw, windows[0].output * windows[1].output);
    let spatial = [windows[0].output, windows[1].output];
    let of = |per: usize| [n, moved * taps * per, spatial[0], spatial[1]];
    if cx.shape(2)? != of(2) || (cx.present(4) && cx.shape(4)? != of(1)) {
        return Err(format!("its offsets are not {:?}, or its mask not {:?}", of(2), of(1)));
    }
    let all = n.checked_mul(taps * places).and_then(|p| p.checked_mul(xs[2].max(xs[3])));
    if all.is_none_or(|m| m > MOST_WEIGHTS) {
        return Err(format!("{places} places over {xs:?} are too many"));
    }
    cx.state.allowance.copy(2 * moved * taps * places)?;
    let x = cx.real(0)?;
    let init = crate::layers::fan_in(each * taps);
    let w = cx.weight(1, init, VarKind::Weight)?;
    let offset = cx.real(2)?;
    let offset = cx.b.reshape(offset, &[n, moved, taps, 2, places]);
    let mut parts = Vec::new();
    for g in 0..moved {
        let weights: Vec<NodeId> = (0..2)
            .map(|d| {
                let w = &windows[d];
                let mut still = Vec::with_capacity(taps * places);
                for tap in 0..taps {
                    let at = if d == 0 { tap / kw } else { tap % kw };
                    let first = |p: usize| if d == 0 { p / spatial[1] } else { p % spatial[1] };
                    still.extend((0..places).map(|p| (first(p) * w.stride + at * w.dilation) as f64 - w.pad as f64));
                }
                let still = cx.b.constant(Type::f32([1, taps * places]), still);
                let by = part(cx, offset, 1, g, 1);
                let by = part(cx, by, 3, d, 1);
                let by = cx.b.reshape(by, &[n, taps * places]);
                let at = cx.b.binary(ScalarFn::Add, by, still);
                axis_weights(cx, at, xs[2 + d], false, Taps::Linear, Padding::Zeros)
            })
            .collect::<Result<_, _>>()?;
        let some = part(cx, x, 1, g * (channels / moved), channels / moved);
        let read = read(cx, some, &weights);
        parts.push(cx.b.reshape(read, &[n, channels / moved, taps, places]));
    }
    let mut read = cx.b.concat(&parts, 1);
    if cx.present(4) {
        let mask = cx.real(4)?;
        let mask = cx.b.reshape(mask, &[n, moved, 1, taps, places]);
        let mask = cx.b.broadcast(mask, &[n, moved, channels / moved, taps, places]);
        let mask = cx.b.reshape(mask, &[n, channels, taps, places]);
        read = cx.b.mul(read, mask);
    }
    let read = cx.b.reshape(read, &[n, groups, each * taps, places]);
    let w = cx.b.reshape(w, &[1, groups, out / groups, each * taps]);
    let w = cx.b.broadcast(w, &[n, groups, out / groups, each * taps]);
    let y = cx.b.matmul(w, read);
    let mut y = cx.b.reshape(y, &[n, out, spatial[0], spatial[1]]);
    if cx.present(3) {
        y = add_bias(cx, y, 3, out, init)?;
    }
    real(y)
}

/// Weights of the elements of an axis at places counted in elements: `[N, P]` to `[N, P, extent]`.
fn axis_weights(
    cx: &mut Cx<'_, '_, '_>,
    x: NodeId,
    extent: usize,
    corners: bool,
    taps: Taps,
    padding: Padding,
) -> Result<NodeId, String> {
    let first = if taps == Taps::Nearest { nearest_even(cx, x) } else { cx.b.map(ScalarFn::Floor, &[x]) };
    let rest = cx.b.sub(x, first);
    let range = match taps {
        Taps::Nearest => 0..=0,
        Taps::Linear => 0..=1,
        Taps::Cubic => -1..=2,
    };
    let mut sum: Option<NodeId> = None;
    for tap in range {
        let element = cx.b.offset(first, f64::from(tap));
        let element = inside(cx, element, extent, corners, padding);
        let flags = marks(cx, element, 2, extent)?;
        let flags = cx.b.number(flags);
        let weight = tap_weight(cx, rest, tap, taps);
        let (s, full) = (cx.b.shape(weight), cx.b.shape(flags));
        let weight = cx.b.reshape(weight, &[s[0], s[1], 1]);
        let weight = cx.b.broadcast(weight, &full);
        let term = cx.b.mul(flags, weight);
        sum = Some(sum.map_or(term, |sum| cx.b.add(sum, term)));
    }
    Ok(sum.expect("invariant: there is a tap"))
}

/// The weight of the element `tap` behind a place's own, which is `rest` before it.
fn tap_weight(cx: &mut Cx<'_, '_, '_>, rest: NodeId, tap: i32, taps: Taps) -> NodeId {
    const A: f64 = -0.75;
    // A polynomial in the distance, highest power first.
    let polynomial: &[f64] = match (taps, tap) {
        (Taps::Nearest, _) => &[1.0],
        (Taps::Linear, _) => &[-1.0, 1.0],
        (Taps::Cubic, 0 | 1) => &[A + 2.0, -(A + 3.0), 0.0, 1.0],
        (Taps::Cubic, _) => &[A, -5.0 * A, 8.0 * A, -4.0 * A],
    };
    let distance = if tap <= 0 { rest } else { cx.b.neg(rest) };
    let distance = cx.b.offset(distance, f64::from(tap.abs()));
    let mut y = cx.b.splat_like(rest, polynomial[0]);
    for &c in &polynomial[1..] {
        y = cx.b.mul(y, distance);
        y = cx.b.offset(y, c);
    }
    y
}

/// The element that stands for one outside; zeros have none.
fn inside(cx: &mut Cx<'_, '_, '_>, element: NodeId, extent: usize, corners: bool, padding: Padding) -> NodeId {
    let last = extent as f64 - 1.0;
    match padding {
        Padding::Zeros => element,
        Padding::Border => {
            let bound = cx.b.splat_like(element, last);
            let zero = cx.b.zeros_like(element);
            let under = cx.b.map(ScalarFn::Lt, &[element, zero]);
            let low = cx.b.select(under, zero, element);
            let over = cx.b.map(ScalarFn::Lt, &[bound, low]);
            cx.b.select(over, bound, low)
        }
        Padding::Reflection if extent == 1 => cx.b.zeros_like(element),
        Padding::Reflection => {
            // There and back is two spans; the second is read from its end.
            let (low, span) = if corners { (0.0, last) } else { (-0.5, last + 1.0) };
            let at = cx.b.offset(element, -low);
            let at = cx.b.map(ScalarFn::Abs, &[at]);
            let spans = cx.b.scale(at, 0.5 / span);
            let spans = cx.b.map(ScalarFn::Floor, &[spans]);
            let passed = cx.b.scale(spans, 2.0 * span);
            let at = cx.b.sub(at, passed);
            let back = cx.b.neg(at);
            let back = cx.b.offset(back, 2.0 * span);
            let turned = cx.b.map(ScalarFn::Lt, &[back, at]);
            let at = cx.b.select(turned, back, at);
            cx.b.offset(at, low)
        }
    }
}
