//! Depthwise convolution (one filter per channel): direct, a thread per result; the weight gradient a block per tap and
//! strip of channels.

use slrc_plan::kernel::{Conv, ConvDirection};

use crate::emit::cuda::code::{BLOCK, Call, Code, Table, blocks_for, index_type};
use crate::emit::cuda::conv::{inside, largest, sources, sum_partials};

/// Channels side by side in a weight gradient's block.
const STRIP: usize = 32;

pub(super) fn emit(table: &Table<'_>, c: &Conv) -> Vec<Call> {
    match c.direction {
        ConvDirection::Forward => vec![forward(table, c)],
        ConvDirection::InputGrad => vec![input_grad(table, c)],
        ConvDirection::WeightGrad => weight_grad(table, c),
    }
}

fn forward(table: &Table<'_>, c: &Conv) -> Call {
    let mut code = Code::new(table);
    let g = &c.geometry;
    let (channels, taps) = (c.in_channels, g.kernel[0] * g.kernel[1]);
    code.formula(format!(
        "depthwise convolution, {} samples, {channels} channels {} -> {}",
        c.batch, g.input, g.output
    ));
    let ty = index_type(largest(c));
    let n = c.batch * g.output[0] * g.output[1] * channels;
    let (x, w, y) =
        (code.pointer(&c.x.buffer, false), code.pointer(&c.w.buffer, false), code.pointer(&c.y.buffer, true));
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {n}; i += ({ty})gridDim.x * {BLOCK})"));
    code.line(format!("const {ty} channel = i % {channels};"));
    code.line(format!("const {ty} ox = i / {channels} % {};", g.output[1]));
    code.line(format!("const {ty} oy = i / {} % {};", channels * g.output[1], g.output[0]));
    code.line(format!("const {ty} sample = i / {};", channels * g.output[0] * g.output[1]));
    code.line("float value = 0.0f;");
    taps_loop(&mut code, c);
    sources(g, ty, "ky", "kx").iter().for_each(|l| code.line(l));
    code.open(format!("if ({})", inside(g)));
    code.line(format!(
        "value = fmaf({x}[((sample * {} + iy) * {} + ix) * {channels} + channel], {w}[channel * {taps} + ky * {} + kx], value);",
        g.input[0], g.input[1], g.kernel[1]
    ));
    code.close();
    code.close();
    code.close();
    code.line(format!("{y}[i] = value;"));
    code.close();
    code.finish("conv_forward", BLOCK, blocks_for(n, BLOCK))
}

fn taps_loop(code: &mut Code<'_>, c: &Conv) {
    code.open(format!("for (int ky = 0; ky < {}; ++ky)", c.geometry.kernel[0]));
    code.open(format!("for (int kx = 0; kx < {}; ++kx)", c.geometry.kernel[1]));
}

fn input_grad(table: &Table<'_>, c: &Conv) -> Call {
    let mut code = Code::new(table);
    let g = &c.geometry;
    let (channels, taps) = (c.in_channels, g.kernel[0] * g.kernel[1]);
    code.formula(format!("gradient of a depthwise convolution's input, {} samples, {channels} channels", c.batch));
    let ty = index_type(largest(c));
    let n = c.batch * g.input[0] * g.input[1] * channels;
    let (w, y, x) =
        (code.pointer(&c.w.buffer, false), code.pointer(&c.y.buffer, false), code.pointer(&c.x.buffer, true));
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {n}; i += ({ty})gridDim.x * {BLOCK})"));
    code.line(format!("const {ty} channel = i % {channels};"));
    code.line(format!("const {ty} ix = i / {channels} % {};", g.input[1]));
    code.line(format!("const {ty} iy = i / {} % {};", channels * g.input[1], g.input[0]));
    code.line(format!("const {ty} sample = i / {};", channels * g.input[0] * g.input[1]));
    code.line("float value = 0.0f;");
    taps_loop(&mut code, c);
    code.line(format!("const {ty} sy = iy + {} - ky * {};", g.pads[0], g.dilations[0]));
    code.line(format!("const {ty} sx = ix + {} - kx * {};", g.pads[1], g.dilations[1]));
    code.line(format!(
        "const bool hits = sy >= 0 && sx >= 0 && sy % {} == 0 && sx % {} == 0;",
        g.strides[0], g.strides[1]
    ));
    code.line(format!("const {ty} oy = sy / {};", g.strides[0]));
    code.line(format!("const {ty} ox = sx / {};", g.strides[1]));
    code.open(format!("if (hits && oy < {} && ox < {})", g.output[0], g.output[1]));
    code.line(format!(
        "value = fmaf({y}[((sample * {} + oy) * {} + ox) * {channels} + channel], {w}[channel * {taps} + ky * {} + kx], value);",
        g.output[0], g.output[1], g.kernel[1]
    ));
    code.close();
    code.close();
    code.close();
    code.line(format!("{x}[i] = value;"));
    code.close();
    code.finish("conv_input_grad", BLOCK, blocks_for(n, BLOCK))
}

fn weight_grad(table: &Table<'_>, c: &Conv) -> Vec<Call> {
    let mut code = Code::new(table);
    let g = &c.geometry;
    let (channels, taps) = (c.in_channels, g.kernel[0] * g.kernel[1]);
    code.formula(format!("gradient of a depthwise convolution's weights, {} samples, {channels} channels", c.batch));
    let ty = index_type(largest(c));
    let pixels = c.batch * g.output[0] * g.output[1];
    let (count, to, offset) = match &c.split {
        Some(s) => (s.count, &s.partials, s.partials.offset),
        None => (1, &c.w, 0),
    };
    let (x, y) = (code.pointer(&c.x.buffer, false), code.pointer(&c.y.buffer, false));
    let to = code.pointer(&to.buffer, true);
    let each = pixels.div_ceil(count);
    let turns = BLOCK / STRIP;
    let strips = channels.div_ceil(STRIP);
    code.shared("float", "part", &[BLOCK]);
    code.line(format!("const {ty} channel = blockIdx.x * {STRIP} + threadIdx.x % {STRIP};"));
    code.line(format!("const int turn = threadIdx.x / {STRIP};"));
    code.line(format!("const {ty} ky = blockIdx.y / {};", g.kernel[1]));
    code.line(format!("const {ty} kx = blockIdx.y % {};", g.kernel[1]));
    code.line(format!("const {ty} begin = blockIdx.z * {each};"));
    code.line(format!("const {ty} end = min(({ty})(begin + {each}), ({ty}){pixels});"));
    code.line("float value = 0.0f;");
    code.open(format!("if (channel < {channels})"));
    code.open(format!("for ({ty} p = begin + turn; p < end; p += {turns})"));
    code.line(format!("const {ty} sample = p / {};", g.output[0] * g.output[1]));
    code.line(format!("const {ty} oy = p / {} % {};", g.output[1], g.output[0]));
    code.line(format!("const {ty} ox = p % {};", g.output[1]));
    sources(g, ty, "ky", "kx").iter().for_each(|l| code.line(l));
    code.open(format!("if ({})", inside(g)));
    code.line(format!(
        "value = fmaf({x}[((sample * {} + iy) * {} + ix) * {channels} + channel], {y}[p * {channels} + channel], value);",
        g.input[0], g.input[1]
    ));
    code.close();
    code.close();
    code.close();
    code.line("part[threadIdx.x] = value;");
    code.line("__syncthreads();");
    code.open(format!("for (int half = {}; half > 0; half /= 2)", turns / 2));
    code.open("if (turn < half)");
    code.line(format!("part[threadIdx.x] += part[threadIdx.x + half * {STRIP}];"));
    code.close();
    code.line("__syncthreads();");
    code.close();
    code.open(format!("if (turn == 0 && channel < {channels})"));
    let size = channels * taps;
    code.line(format!("{to}[{offset} + blockIdx.z * {size} + channel * {taps} + blockIdx.y] = part[threadIdx.x];"));
    code.close();
    let mut calls = vec![code.finish("conv_weight_grad", BLOCK, [strips, taps, count])];
    if let Some(s) = &c.split {
        calls.push(sum_partials(table, c, &s.partials.buffer, offset, count, size, "conv_weight_grad"));
    }
    calls
}
