//! Convolution and its two gradients as implicit matrix products: patches are computed as they are staged.
//!
//! Activations lie `N, H, W, C`, weights `O, kh, kw, C / groups`.

use slrc_plan::kernel::{Conv, ConvAlgorithm, ConvDirection, WindowGeometry};
use slrc_plan::{Precision, View};

use crate::emit::cuda::code::{Call, Code, Table, index_type};
use crate::emit::cuda::depthwise;
use crate::emit::cuda::epilogue::Epilogue;
use crate::emit::cuda::product::{Product, Side, Store, Sum, sum_groups};
use crate::emit::cuda::prologue;

pub(super) fn emit(table: &Table<'_>, c: &Conv, precision: Precision) -> Vec<Call> {
    match c.algorithm {
        ConvAlgorithm::Direct if c.is_depthwise() => return depthwise::emit(table, c),
        ConvAlgorithm::Direct => {}
        ConvAlgorithm::Winograd => unreachable!("invariant: plans for a GPU compute convolutions directly"),
    }
    match c.direction {
        ConvDirection::Forward => vec![forward(table, c, precision)],
        ConvDirection::InputGrad => vec![input_grad(table, c, precision)],
        ConvDirection::WeightGrad => vec![weight_grad(table, c, precision)],
    }
}

/// One past the largest position in any tensor of a convolution.
pub(super) fn largest(c: &Conv) -> usize {
    let g = &c.geometry;
    let x = c.batch * g.input[0] * g.input[1] * c.in_channels;
    let y = c.batch * g.output[0] * g.output[1] * c.out_channels;
    x.max(y).max(c.out_channels * g.kernel[0] * g.kernel[1] * c.in_channels / c.groups)
}

/// `<name> = window * stride + tap * dilation - pad` along both dimensions.
pub(super) fn sources(g: &WindowGeometry, ty: &str, ky: &str, kx: &str) -> Vec<String> {
    let along = |d: usize, name: &str, out: &str, tap: &str| {
        format!("const {ty} {name} = {out} * {} + {tap} * {} - {};", g.strides[d], g.dilations[d], g.pads[d])
    };
    vec![along(0, "iy", "oy", ky), along(1, "ix", "ox", kx)]
}

/// Whether `iy`, `ix` lie in the image.
pub(super) fn inside(g: &WindowGeometry) -> String {
    format!("iy >= 0 && iy < {} && ix >= 0 && ix < {}", g.input[0], g.input[1])
}

fn describe(code: &mut Code<'_>, c: &Conv, what: &str, epilogue: Option<&Epilogue<'_>>) {
    let g = &c.geometry;
    code.formula(format!(
        "{what}: {} samples, {} channels {} -> {} channels {}, kernel {}, stride {}, pad {}, dilation {}, groups {}",
        c.batch, c.in_channels, g.input, c.out_channels, g.output, g.kernel, g.strides, g.pads, g.dilations, c.groups
    ));
    c.made().for_each(|m| prologue::describe(code, &m));
    if let Some(e) = epilogue {
        e.describe(code);
    }
}

/// The type of positions.
fn position_type(c: &Conv, epilogue: Option<&Epilogue<'_>>) -> &'static str {
    let made = c.made().map(|m| prologue::last(&m)).max().unwrap_or(0);
    index_type(epilogue.map_or(0, Epilogue::last).max(largest(c)).max(made))
}

/// Stores `value` at element `at` of the tensor `to`, or works on it.
fn store<'s>(code: &mut Code<'_>, to: &View, epilogue: Option<&'s Epilogue<'_>>, ty: &'s str, at: String) -> Store<'s> {
    match epilogue {
        // One group: rows and columns of the product are those of the result.
        Some(e) => Box::new(move |code, sharing| e.run(code, ty, "m", "n", sharing)),
        None => {
            let p = code.pointer(&to.buffer, true);
            Box::new(move |code, _| code.line(format!("{p}[{at}] = value;")))
        }
    }
}

/// `const group = z`, where there are several.
fn group(c: &Conv, ty: &str, of: &str) -> String {
    if c.groups > 1 { format!("const {ty} group = {of};") } else { format!("const {ty} group = 0;") }
}

/// `n`, `oy`, `ox` of an output pixel.
fn pixel(g: &WindowGeometry, ty: &str, p: &str) -> Vec<String> {
    vec![
        format!("const {ty} sample = {p} / {};", g.output[0] * g.output[1]),
        format!("const {ty} oy = {p} / {} % {};", g.output[1], g.output[0]),
        format!("const {ty} ox = {p} % {};", g.output[1]),
    ]
}

/// An element of `x` or `y`, `operand`, in `v`: channel `channel` of group `group` of a pixel.
fn element(code: &mut Code<'_>, c: &Conv, ty: &str, operand: &str, pixel: &str, channel: &str) -> Vec<String> {
    let (view, channels, groups) = match operand {
        "x" => (&c.x, c.in_channels, c.in_channels / c.groups),
        _ => (&c.y, c.out_channels, c.out_channels / c.groups),
    };
    let made = c.made().find(|m| m.name == operand);
    let at = format!("{pixel} * {channels} + group * {groups} + {channel}");
    // What is made is of one group.
    prologue::element(code, ty, view, made.as_ref(), [pixel, channel], &at)
}

/// `v = x` at the patch column `column` of pixel `pixel`.
fn patch(code: &mut Code<'_>, c: &Conv, ty: &str, pixel_name: &str, column: &str) -> Vec<String> {
    let g = &c.geometry;
    let ci = c.in_channels / c.groups;
    let mut lines = pixel(g, ty, pixel_name);
    lines.push(format!("const {ty} tap = {column} / {ci};"));
    lines.push(format!("const {ty} channel = {column} % {ci};"));
    lines.extend(sources(g, ty, &format!("(tap / {})", g.kernel[1]), &format!("(tap % {})", g.kernel[1])));
    lines.push(format!("if ({}) {{", inside(g)));
    let pixel = format!("((sample * {} + iy) * {} + ix)", g.input[0], g.input[1]);
    lines.extend(element(code, c, ty, "x", &pixel, "channel").into_iter().map(|l| format!("  {l}")));
    lines.push("}".into());
    lines
}

fn forward(table: &Table<'_>, c: &Conv, precision: Precision) -> Call {
    let mut code = Code::new(table);
    let epilogue = Epilogue::new(table, &c.product());
    describe(&mut code, c, "convolution", epilogue.as_ref());
    let ty = position_type(c, epilogue.as_ref());
    let g = &c.geometry;
    let (ci, co) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let terms = g.kernel[0] * g.kernel[1] * ci;
    let patch = patch(&mut code, c, ty, "m", "k");
    let w = code.pointer(&c.w.buffer, false);
    let at = format!("m * {} + group * {co} + n", c.out_channels);
    let store = store(&mut code, &c.y, epilogue.as_ref(), ty, at);
    Product {
        family: "conv_forward",
        precision,
        ty,
        rows: c.batch * g.output[0] * g.output[1],
        cols: co,
        terms,
        count: c.groups,
        setup: vec![group(c, ty, "z")],
        ranged: false,
        a: Side { lines: patch, along_terms: true, made: c.x_prologue.is_some() },
        b: Side { lines: vec![format!("v = {w}[(group * {co} + n) * {terms} + k];")], along_terms: true, made: false },
        store,
        epilogue: epilogue.as_ref(),
        sum: None,
        sums: None,
    }
    .emit(code)
}

fn input_grad(table: &Table<'_>, c: &Conv, precision: Precision) -> Call {
    let mut code = Code::new(table);
    let epilogue = Epilogue::new(table, &c.product());
    describe(&mut code, c, "gradient of a convolution's input", epilogue.as_ref());
    let ty = position_type(c, epilogue.as_ref());
    let g = &c.geometry;
    let (ci, co) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let taps = g.kernel[0] * g.kernel[1];
    let w = code.pointer(&c.w.buffer, false);
    let (iw, ow) = (g.input[1], g.output[1]);
    let pixel = format!("((sample * {} + oy) * {ow} + ox)", g.output[0]);
    let output = element(&mut code, c, ty, "y", &pixel, "channel");
    let at = format!("m * {} + group * {ci} + n", c.in_channels);
    let store = store(&mut code, &c.x, epilogue.as_ref(), ty, at);
    // Term k is tap * co + channel; the window that reaches input pixel m with this tap, if there is one.
    let mut a = vec![
        format!("const {ty} tap = k / {co};"),
        format!("const {ty} channel = k % {co};"),
        format!("const {ty} sample = m / {};", g.input[0] * iw),
        format!(
            "const {ty} sy = m / {iw} % {} + {} - tap / {} * {};",
            g.input[0], g.pads[0], g.kernel[1], g.dilations[0]
        ),
        format!("const {ty} sx = m % {iw} + {} - tap % {} * {};", g.pads[1], g.kernel[1], g.dilations[1]),
    ];
    let (sy, sx) = (g.strides[0], g.strides[1]);
    a.push(format!("const bool hits = sy >= 0 && sx >= 0 && sy % {sy} == 0 && sx % {sx} == 0;"));
    a.push(format!("const {ty} oy = sy / {sy};"));
    a.push(format!("const {ty} ox = sx / {sx};"));
    a.push(format!("if (hits && oy < {} && ox < {ow}) {{", g.output[0]));
    a.extend(output.into_iter().map(|l| format!("  {l}")));
    a.push("}".into());
    let b = format!("v = {w}[((group * {co} + k % {co}) * {taps} + k / {co}) * {ci} + n];");
    Product {
        family: "conv_input_grad",
        precision,
        ty,
        rows: c.batch * g.input[0] * iw,
        cols: ci,
        terms: taps * co,
        count: c.groups,
        setup: vec![group(c, ty, "z")],
        ranged: false,
        a: Side { lines: a, along_terms: true, made: c.y_prologue.is_some() },
        b: Side { lines: vec![b], along_terms: false, made: false },
        store,
        epilogue: epilogue.as_ref(),
        sum: None,
        sums: None,
    }
    .emit(code)
}

fn weight_grad(table: &Table<'_>, c: &Conv, precision: Precision) -> Call {
    let mut code = Code::new(table);
    let epilogue = Epilogue::new(table, &c.product());
    describe(&mut code, c, "gradient of a convolution's weights", epilogue.as_ref());
    let ty = position_type(c, epilogue.as_ref());
    let g = &c.geometry;
    let (ci, co) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let cols = g.kernel[0] * g.kernel[1] * ci;
    let pixels = c.batch * g.output[0] * g.output[1];
    let x = patch(&mut code, c, ty, "k", "n");
    let y = element(&mut code, c, ty, "y", "k", "m");
    let count = c.split.as_ref().map_or(1, |s| s.count);
    let size = c.out_channels * cols;
    let at = format!("(group * {co} + m) * {cols} + n");
    let result = store(&mut code, &c.w, epilogue.as_ref(), ty, at.clone());
    let (store, sum): (Store<'_>, Option<Sum<'_>>) = match &c.split {
        None => (result, None),
        Some(s) => {
            let p = code.pointer(&s.partials.buffer, true);
            let partial = |of: &str| format!("{p}[{} + {of} * {size} + {at}]", s.partials.offset);
            let own = format!("{} = value;", partial("part"));
            let sum = Sum { ranges: count, partial: partial("range"), store: result };
            (Box::new(move |code, _| code.line(&own)), Some(sum))
        }
    };
    let each = pixels.div_ceil(count);
    let (part, of_group) = match (count > 1, c.groups > 1) {
        (true, true) => (format!("z / {}", c.groups), format!("z % {}", c.groups)),
        (true, false) => ("z".into(), String::new()),
        (false, _) => ("0".into(), "z".into()),
    };
    Product {
        family: "conv_weight_grad",
        precision,
        ty,
        rows: co,
        cols,
        terms: pixels,
        count: count * c.groups,
        setup: vec![
            group(c, ty, &of_group),
            format!("const {ty} part = {part};"),
            format!("const {ty} begin = part * {each};"),
            format!("const {ty} end = min(({ty})(begin + {each}), ({ty}){pixels});"),
        ],
        ranged: true,
        a: Side { lines: y, along_terms: false, made: c.y_prologue.is_some() },
        b: Side { lines: x, along_terms: false, made: c.x_prologue.is_some() },
        store,
        // Rows are filters: nothing reduces them.
        epilogue: None,
        sum,
        sums: None,
    }
    .emit(code)
}

/// Adds the groups of a split weight gradient of filters that see one channel each.
pub(super) fn sum_partials(
    table: &Table<'_>,
    c: &Conv,
    partials: &str,
    offset: usize,
    count: usize,
    size: usize,
    family: &'static str,
) -> Call {
    let mut code = Code::new(table);
    let ty = index_type(count * size);
    let p = code.pointer(partials, false);
    let to = code.pointer(&c.w.buffer, true);
    let store = |code: &mut Code<'_>| code.line(format!("{to}[i] = value;"));
    let p = if offset == 0 { p } else { format!("({p} + {offset})") };
    sum_groups(code, family, ty, &p, count, size, store)
}
