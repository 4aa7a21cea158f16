//! Pooling: a thread for each result. Gradients are gathered from the windows that hold an element, so nothing is added
//! from two threads.

use slrc_plan::DType;
use slrc_plan::kernel::{Window, WindowOp};

use crate::emit::cuda::body::converted;
use crate::emit::cuda::code::{BLOCK, Call, Code, Table, blocks_for, index_type, number};
use crate::emit::cuda::conv::{inside, sources};

pub(super) fn emit(table: &Table<'_>, w: &Window) -> Vec<Call> {
    let mut code = Code::new(table);
    let g = &w.geometry;
    let to_small = matches!(w.op, WindowOp::MaxIndex | WindowOp::Select | WindowOp::Sum);
    let side = if to_small { &g.output } else { &g.input };
    let n = w.batch * side[0] * side[1] * w.channels;
    let ty = index_type(w.batch * (g.input[0] * g.input[1]).max(g.output[0] * g.output[1]) * w.channels);
    code.formula(format!(
        "{}: {} samples, {} channels, {} windows {} of {}, stride {}, pad {}",
        what(w.op),
        w.batch,
        w.channels,
        g.output,
        g.kernel,
        g.input,
        g.strides,
        g.pads
    ));
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {n}; i += ({ty})gridDim.x * {BLOCK})"));
    let (y, x) = if to_small { ("oy", "ox") } else { ("iy", "ix") };
    code.line(format!("const {ty} channel = i % {};", w.channels));
    code.line(format!("const {ty} {x} = i / {} % {};", w.channels, side[1]));
    code.line(format!("const {ty} {y} = i / {} % {};", w.channels * side[1], side[0]));
    code.line(format!("const {ty} sample = i / {};", w.channels * side[0] * side[1]));
    if to_small {
        small(&mut code, w, ty)
    } else {
        large(&mut code, w, ty)
    }
    code.close();
    vec![code.finish("window", BLOCK, blocks_for(n, BLOCK))]
}

fn what(op: WindowOp) -> &'static str {
    match op {
        WindowOp::MaxIndex => "position of the first largest element of each window",
        WindowOp::Select => "element of each window at its position",
        WindowOp::Unselect => "sum over the windows that chose an element",
        WindowOp::Sum => "sum of each window",
        WindowOp::Spread => "sum over the windows that hold an element",
    }
}

fn taps(code: &mut Code<'_>, w: &Window) {
    code.open(format!("for (int ky = 0; ky < {}; ++ky)", w.geometry.kernel[0]));
    code.open(format!("for (int kx = 0; kx < {}; ++kx)", w.geometry.kernel[1]));
}

fn position(w: &Window, small: bool) -> String {
    let (side, y, x) = if small { (&w.geometry.output, "oy", "ox") } else { (&w.geometry.input, "iy", "ix") };
    format!("((sample * {} + {y}) * {} + {x}) * {} + channel", side[0], side[1], w.channels)
}

/// Results with the output extents, from the window's elements.
fn small(code: &mut Code<'_>, w: &Window, ty: &str) {
    let g = &w.geometry;
    let from = code.pointer(&w.large.buffer, false);
    let index = w.index.as_ref().map(|v| code.pointer(&v.buffer, false));
    let to = code.pointer(&w.small.buffer, true);
    if w.op == WindowOp::Select {
        let index = index.expect("invariant: plans are validated");
        code.line(format!("const int tap = {index}[i];"));
        code.line(format!("const int ky = tap / {};", g.kernel[1]));
        code.line(format!("const int kx = tap % {};", g.kernel[1]));
        sources(g, ty, "ky", "kx").iter().for_each(|l| code.line(l));
        code.line(format!("{to}[i] = {from}[{}];", position(w, false)));
        return;
    }
    let max = w.op == WindowOp::MaxIndex;
    if max {
        code.line(format!("float best = {};", number(f32::NEG_INFINITY)));
        code.line("int winner = -1;");
    } else {
        code.line("float value = 0.0f;");
    }
    taps(code, w);
    sources(g, ty, "ky", "kx").iter().for_each(|l| code.line(l));
    code.open(format!("if ({})", inside(g)));
    code.line(format!("const float x = {from}[{}];", position(w, false)));
    if max {
        // The first element inside wins until a larger one comes.
        code.open("if (winner < 0 || x > best)");
        code.line("best = x;");
        code.line(format!("winner = ky * {} + kx;", g.kernel[1]));
        code.close();
    } else {
        code.line("value += x;");
    }
    code.close();
    code.close();
    code.close();
    if max {
        let dtype = code.dtype(&w.small.buffer);
        code.line("winner = max(winner, 0);");
        code.line(format!(
            "{to}[i] = {};",
            if dtype == DType::I32 { "winner".into() } else { converted(dtype, "winner") }
        ));
    } else {
        code.line(format!("{to}[i] = value;"));
    }
}

/// Results with the input extents, from the windows that hold the element.
fn large(code: &mut Code<'_>, w: &Window, ty: &str) {
    let g = &w.geometry;
    let index = w.index.as_ref().map(|v| code.pointer(&v.buffer, false));
    let from = code.pointer(&w.small.buffer, false);
    let to = code.pointer(&w.large.buffer, true);
    code.line("float value = 0.0f;");
    taps(code, w);
    code.line(format!("const {ty} sy = iy + {} - ky * {};", g.pads[0], g.dilations[0]));
    code.line(format!("const {ty} sx = ix + {} - kx * {};", g.pads[1], g.dilations[1]));
    let (ty_s, tx_s) = (g.strides[0], g.strides[1]);
    code.line(format!("const bool hits = sy >= 0 && sx >= 0 && sy % {ty_s} == 0 && sx % {tx_s} == 0;"));
    code.line(format!("const {ty} oy = sy / {ty_s};"));
    code.line(format!("const {ty} ox = sx / {tx_s};"));
    code.open(format!("if (hits && oy < {} && ox < {})", g.output[0], g.output[1]));
    code.line(format!("const {ty} at = {};", position(w, true)));
    if let Some(index) = index {
        code.open(format!("if ({index}[at] == ky * {} + kx)", g.kernel[1]));
        code.line(format!("value += {from}[at];"));
        code.close();
    } else {
        code.line(format!("value += {from}[at];"));
    }
    code.close();
    code.close();
    code.close();
    code.line(format!("{to}[i] = value;"));
}
