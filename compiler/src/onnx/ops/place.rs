//! Operators that look at, or write to, places that data choose: by what every place weighs, so that no index is data.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::types::{DType, Type};
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::activation::clamp;
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "RoiAlign",
        note: "products with what rows and columns weigh; sampling_ratio has to be given",
        convert: roi_align,
    },
    Entry { op: "TensorScatter", note: "a product with flags; float caches", convert: tensor_scatter },
];

type R = Result<Vec<Out>, String>;

/// 0, 1, .. along the last of some dimensions, the others 1.
fn count(cx: &mut Cx<'_, '_, '_>, n: usize, rank: usize) -> NodeId {
    let mut shape = vec![1; rank];
    shape[rank - 1] = n;
    cx.b.constant(Type::f32(shape), (0..n).map(|i| i as f64).collect())
}

/// `y[r, c, i, j]` is the mean over the places of a grid in cell `i, j` of box `r`, each between four elements of `x`.
/// A place weighs rows and columns apart from each other, so the mean is `A x B` with what rows weigh and what columns
/// do. In mode `max` it is the largest of all places' four weighed elements, as ONNX has it: `A x B` with a row and a
/// column for each of them, and then their maximum.
fn roi_align(cx: &mut Cx<'_, '_, '_>) -> R {
    let half = match cx.string("coordinate_transformation_mode", "half_pixel").as_str() {
        "half_pixel" if cx.opset >= 16 || cx.has("coordinate_transformation_mode") => 0.5,
        "half_pixel" | "output_half_pixel" => 0.0,
        other => return Err(format!("coordinate_transformation_mode \"{other}\" does not exist")),
    };
    let largest_of = match cx.string("mode", "avg").as_str() {
        "avg" => false,
        "max" => true,
        other => return Err(format!("mode \"{other}\" does not exist")),
    };
    let scale = cx.float("spatial_scale", 1.0);
    let size = |name: &str, default: i64| usize::try_from(cx.int(name, default)).unwrap_or(0);
    let (rows, columns, grid) = (size("output_height", 1), size("output_width", 1), size("sampling_ratio", 0));
    let (xs, boxes) = (cx.shape(0)?, cx.shape(1)?);
    let ([n, c, height, width], [r, 4]) = (&xs[..], &boxes[..]) else {
        return Err(format!("shapes {xs:?} and {boxes:?} are not those of images and boxes"));
    };
    let (n, c, height, width, r) = (*n, *c, *height, *width, *r);
    if cx.shape(2)? != [r] {
        return Err(format!("there are {r} boxes, but indices of shape {:?}", cx.shape(2)?));
    }
    if grid == 0 {
        return Err("without a sampling_ratio, how many places a mean is of depends on the data".into());
    }
    let mut largest = rows.max(columns).saturating_mul(grid).saturating_mul(height.max(width)).saturating_mul(r);
    // What each place reads, and how many values a cell is of along a side.
    let taps = if largest_of { 2usize.saturating_mul(grid) } else { 1 };
    if largest_of {
        let cells = rows.saturating_mul(columns).saturating_mul(taps.saturating_mul(taps));
        largest = largest.saturating_mul(2).max(cells.saturating_mul(r).saturating_mul(c));
    }
    if largest == 0 || largest > LARGEST {
        return Err(format!("{r} boxes of {rows} x {columns} cells with {grid} x {grid} places are not supported"));
    }
    let (x, corners, index) = (cx.real(0)?, cx.fixed(1)?, cx.index_values(2)?);
    let table = cx.b.reshape(x, &[n, c * height * width]);
    let image = cx.b.gather(table, index);
    let image = cx.b.reshape(image, &[r, c, height, width]);
    let corners = cx.b.scale(corners, scale);
    let corners = cx.b.offset(corners, -half);
    let weigh = |cx: &mut Cx<'_, '_, '_>, d: usize, cells: usize, extent: usize| {
        let corner = |cx: &mut Cx<'_, '_, '_>, k: usize| crate::onnx::ops::shape::part(cx, corners, 1, k, 1);
        let (start, end) = (corner(cx, d), corner(cx, d + 2));
        let mut length = cx.b.sub(end, start);
        if half == 0.0 {
            length = clamp(cx, length, Some(1.0), None);
        }
        // Places, [boxes, cells grid, 1].
        let steps = count(cx, cells * grid, 2);
        let steps = cx.b.offset(steps, 0.5);
        let steps = cx.b.scale(steps, 1.0 / (cells * grid) as f64);
        let along = cx.b.binary(ScalarFn::Mul, length, steps);
        let at = cx.b.binary(ScalarFn::Add, start, along);
        let at = cx.b.reshape(at, &[r, cells * grid, 1]);
        let (low, high) = (cx.b.splat_like(at, -1.0), cx.b.splat_like(at, extent as f64));
        let (above, below) = (cx.b.map(ScalarFn::Le, &[low, at]), cx.b.map(ScalarFn::Le, &[at, high]));
        let inside = cx.b.map(ScalarFn::And, &[above, below]);
        let inside = cx.b.number(inside);
        let at = clamp(cx, at, Some(0.0), Some((extent - 1) as f64));
        let elements = count(cx, extent, 3);
        if largest_of {
            let weights = two_taps(cx, at, inside, elements);
            let weights = cx.b.reshape(weights, &[r, 1, cells * taps, extent]);
            return cx.b.broadcast_to(weights, &[r, c, cells * taps, extent]);
        }
        // What element e weighs: max(0, 1 - |place - e|).
        let apart = cx.b.binary(ScalarFn::Sub, at, elements);
        let apart = cx.b.map(ScalarFn::Abs, &[apart]);
        let near = cx.b.neg(apart);
        let near = cx.b.offset(near, 1.0);
        let near = clamp(cx, near, Some(0.0), None);
        let near = cx.b.binary(ScalarFn::Mul, near, inside);
        let near = cx.b.reshape(near, &[r, cells, grid, extent]);
        let weights = cx.b.mean(near, &[2]);
        let weights = cx.b.reshape(weights, &[r, 1, cells, extent]);
        cx.b.broadcast_to(weights, &[r, c, cells, extent])
    };
    let of_rows = weigh(cx, 1, rows, height);
    let of_columns = weigh(cx, 0, columns, width);
    let of_columns = cx.b.matrix_transpose(of_columns);
    let y = cx.b.matmul(of_rows, image);
    let y = cx.b.matmul(y, of_columns);
    if !largest_of {
        return real(y);
    }
    let y = cx.b.reshape(y, &[r, c, rows, taps, columns, taps]);
    let y = cx.b.max(y, &[3, 5]);
    real(cx.b.reshape(y, &[r, c, rows, columns]))
}

/// What elements weigh of the place `at`, `[r, places, 1]`: apart for the one before it and the one behind it,
/// `[r, places, 2, extent]`.
fn two_taps(cx: &mut Cx<'_, '_, '_>, at: NodeId, inside: NodeId, elements: NodeId) -> NodeId {
    let (r, places) = (cx.b.shape(at)[0], cx.b.shape(at)[1]);
    let extent = cx.b.shape(elements)[2];
    let first = cx.b.map(ScalarFn::Floor, &[at]);
    let rest = cx.b.sub(at, first);
    let left = cx.b.neg(rest);
    let left = cx.b.offset(left, 1.0);
    let next = cx.b.offset(first, 1.0);
    let taps = [(first, left), (next, rest)].map(|(element, weight)| {
        let weight = cx.b.mul(weight, inside);
        let is = cx.b.binary(ScalarFn::Eq, element, elements);
        let is = cx.b.number(is);
        let weighed = cx.b.binary(ScalarFn::Mul, is, weight);
        cx.b.reshape(weighed, &[r, places, 1, extent])
    });
    cx.b.concat(&taps, 2)
}

/// Most elements of what places weigh.
const LARGEST: usize = 1 << 26;

/// Rows of `update` take the place of rows of a cache, from one on that each sample has its own of. Which row goes
/// where is a matrix of flags; where a row of it is empty, the cache stays.
fn tensor_scatter(cx: &mut Cx<'_, '_, '_>) -> R {
    let circular = match cx.string("mode", "linear").as_str() {
        "linear" => false,
        "circular" => true,
        other => return Err(format!("mode \"{other}\" does not exist")),
    };
    let (s, us) = (cx.shape(0)?, cx.shape(1)?);
    let axis = cx.axis(cx.int("axis", -2), s.len())?;
    let fits =
        axis > 0 && us.len() == s.len() && (0..s.len()).all(|d| d == axis || us[d] == s[d]) && us[axis] <= s[axis];
    if !fits {
        return Err(format!("an update of shape {us:?} does not fit a cache of shape {s:?} along {axis}"));
    }
    let (batch, places, new) = (s[0], s[axis], us[axis]);
    let (outer, inner): (usize, usize) = (s[1..axis].iter().product(), s[axis + 1..].iter().product());
    if batch.saturating_mul(places).saturating_mul(new).saturating_mul(outer.max(1)) > LARGEST {
        return Err(format!("an update of {new} places of {places} is not supported"));
    }
    let (cache, update) = (cx.real(0)?, cx.real(1)?);
    let first = if cx.present(2) {
        if cx.shape(2)? != [batch] {
            return Err(format!("a batch of {batch} has indices of shape {:?}", cx.shape(2)?));
        }
        let at = cx.index_values(2)?;
        cx.b.number(at)
    } else {
        cx.b.splat(0.0, &[batch])
    };
    let first = cx.b.reshape(first, &[batch, 1]);
    cx.state.allowance.copy(new)?;
    let steps = count(cx, new, 2);
    let mut at = cx.b.binary(ScalarFn::Add, first, steps);
    if circular {
        let turns = cx.b.scale(at, 1.0 / places as f64);
        // Half a place more keeps a whole turn from being rounded below one.
        let turns = cx.b.offset(turns, 0.5 / places as f64);
        let turns = cx.b.map(ScalarFn::Floor, &[turns]);
        let turned = cx.b.scale(turns, places as f64);
        at = cx.b.sub(at, turned);
    }
    // [batch, places, new]
    let at = cx.b.reshape(at, &[batch, 1, new]);
    let place = cx.table(DType::F32, &[1, places, 1], |i| i as f64)?;
    let flags = cx.b.binary(ScalarFn::Eq, at, place);
    let flags = cx.b.number(flags);
    let written = cx.b.sum(flags, &[2]);
    let flags = cx.b.reshape(flags, &[batch, 1, places, new]);
    let flags = cx.b.broadcast_to(flags, &[batch, outer, places, new]);
    let rows = cx.b.reshape(update, &[batch, outer, new, inner]);
    let rows = cx.b.matmul(flags, rows);
    let old = cx.b.reshape(cache, &[batch, outer, places, inner]);
    let written = cx.b.reshape(written, &[batch, 1, places, 1]);
    let written = cx.b.broadcast_to(written, &[batch, outer, places, inner]);
    let none = cx.b.zeros_like(written);
    let stays = cx.b.map(ScalarFn::Eq, &[written, none]);
    let y = cx.b.select(stays, old, rows);
    real(cx.b.reshape(y, &s))
}
