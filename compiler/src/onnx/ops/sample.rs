//! Images read at places that data choose.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::types::Type;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::arrange::marks;
use crate::onnx::ops::elementwise::nearest_even;
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
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
    let weights_of = |cx: &mut Cx<'_, '_, '_>, d: usize| {
        let g = crate::onnx::ops::shape::part(cx, grid, 2, rank - 1 - d, 1);
        let g = cx.b.reshape(g, &[gs[0], places]);
        axis_weights(cx, g, xs[2 + d], corners, taps, padding)
    };
    // The last axis by a product, the others by sums.
    let ahead: usize = xs[1..rank + 1].iter().product();
    let y = cx.b.reshape(x, &[xs[0], ahead, xs[rank + 1]]);
    let w = weights_of(cx, rank - 1);
    let w = cx.b.matrix_transpose(w);
    let mut y = cx.b.matmul(y, w);
    for d in (0..rank - 1).rev() {
        let ahead: usize = xs[1..2 + d].iter().product();
        let parted = [xs[0], ahead, xs[2 + d], places];
        let w = weights_of(cx, d);
        let w = cx.b.matrix_transpose(w);
        let w = cx.b.reshape(w, &[xs[0], 1, xs[2 + d], places]);
        let w = cx.b.broadcast(w, &parted);
        let parts = cx.b.reshape(y, &parted);
        let products = cx.b.mul(parts, w);
        let sum = cx.b.sum(products, &[2]);
        y = cx.b.reshape(sum, &[xs[0], ahead, places]);
    }
    real(cx.b.reshape(y, &[&xs[..2], out].concat()))
}

/// Weights of the elements of an axis at places in [-1, 1]: `[N, P]` to `[N, P, extent]`.
fn axis_weights(
    cx: &mut Cx<'_, '_, '_>,
    place: NodeId,
    extent: usize,
    corners: bool,
    taps: Taps,
    padding: Padding,
) -> NodeId {
    let n = extent as f64;
    let (scale, offset) = if corners { ((n - 1.0) / 2.0, (n - 1.0) / 2.0) } else { (n / 2.0, (n - 1.0) / 2.0) };
    let x = cx.b.scale(place, scale);
    let x = cx.b.offset(x, offset);
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
        let flags = marks(cx, element, 2, extent);
        let flags = cx.b.number(flags);
        let weight = tap_weight(cx, rest, tap, taps);
        let (s, full) = (cx.b.shape(weight), cx.b.shape(flags));
        let weight = cx.b.reshape(weight, &[s[0], s[1], 1]);
        let weight = cx.b.broadcast(weight, &full);
        let term = cx.b.mul(flags, weight);
        sum = Some(sum.map_or(term, |sum| cx.b.add(sum, term)));
    }
    sum.expect("invariant: there is a tap")
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
