//! Which kernels of a plan are convolutions that cuDNN computes, and how it is told of them.
//!
//! The plan's tensors lie as the library's `NHWC` ones do. What remains to be seen is whether its padding, which is the
//! same on both sides, makes as many windows as the plan's, and whether it has the epilogue (`finish.rs`).

use std::collections::BTreeMap;

use slrc_plan::kernel::{Conv, ConvDirection};
use slrc_plan::{Buffer, Dims, KernelOp};

use crate::cuda::library::finish::{Work, finish};
use crate::cuda::library::gemm::Place;

/// Largest number of elements of a tensor that the library takes.
const MOST: usize = i32::MAX as usize;

/// What is done with a convolution before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Finish<'a> {
    /// It is multiplied by a number and stored.
    Scaled(f32),
    /// It is added to what lies there.
    Added,
    /// A number for each channel is added.
    Biased(Place<'a>),
    /// The same, and then what is below zero is replaced by zero.
    BiasedRelu(Place<'a>),
}

/// A convolution, as the library is told of it. Of `x`, `w` and `y`, the one that `direction` computes is where its
/// result is to be, after `finish`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Convolution<'a> {
    pub(crate) direction: ConvDirection,
    pub(crate) batch: i32,
    pub(crate) in_channels: i32,
    pub(crate) out_channels: i32,
    pub(crate) groups: i32,
    /// Height and width, as of all pairs.
    pub(crate) input: [i32; 2],
    pub(crate) output: [i32; 2],
    pub(crate) kernel: [i32; 2],
    pub(crate) pads: [i32; 2],
    pub(crate) strides: [i32; 2],
    pub(crate) dilations: [i32; 2],
    pub(crate) x: Place<'a>,
    pub(crate) w: Place<'a>,
    pub(crate) y: Place<'a>,
    pub(crate) finish: Finish<'a>,
}

/// How the library computes a kernel of a validated plan; `None` where it does not. `buffers` are the plan's, by id.
pub(crate) fn convolution<'a>(run: &'a KernelOp, buffers: &BTreeMap<&str, &Buffer>) -> Option<Convolution<'a>> {
    let KernelOp::Conv(c) = run else { return None };
    // A filter a channel is no product: nothing to gain. Operands that are made as they are read are nowhere.
    if c.is_depthwise() || !has_even_padding(c) || c.made().next().is_some() {
        return None;
    }
    let finished = finish(&c.product(), buffers)?;
    let place = |v: &'a slrc_plan::View| Place { buffer: &v.buffer, offset: v.offset };
    let (mut x, mut w, mut y) = (place(&c.x), place(&c.w), place(&c.y));
    let result = match c.direction {
        ConvDirection::Forward => &mut y,
        ConvDirection::InputGrad => &mut x,
        ConvDirection::WeightGrad => &mut w,
    };
    *result = finished.at.unwrap_or(*result);
    let finish = match (finished.finish, c.direction) {
        (Work::Nothing, _) => Finish::Scaled(1.0),
        (Work::Scaled(factor), _) => Finish::Scaled(factor),
        (Work::Added(at), _) if at == *result => Finish::Added,
        (Work::Biased(at), ConvDirection::Forward) => Finish::Biased(at),
        (Work::BiasedRelu(at), ConvDirection::Forward) => Finish::BiasedRelu(at),
        (Work::Added(_) | Work::Biased(_) | Work::BiasedRelu(_), _) => return None,
    };
    let g = &c.geometry;
    let small = |n: usize| i32::try_from(n).ok();
    let pair = |d: &Dims| Some([small(*d.first()?)?, small(*d.get(1)?)?]);
    Some(Convolution {
        direction: c.direction,
        batch: small(c.batch)?,
        in_channels: small(c.in_channels)?,
        out_channels: small(c.out_channels)?,
        groups: small(c.groups)?,
        input: pair(&g.input)?,
        output: pair(&g.output)?,
        kernel: pair(&g.kernel)?,
        pads: pair(&g.pads)?,
        strides: pair(&g.strides)?,
        dilations: pair(&g.dilations)?,
        x,
        w,
        y,
        finish,
    })
}

/// Whether as much padding below and right as above and left makes the plan's windows, of tensors that are not too
/// large.
fn has_even_padding(c: &Conv) -> bool {
    let g = &c.geometry;
    let windows = |d: usize| {
        let span = (g.kernel[d] - 1) * g.dilations[d];
        (g.input[d] + 2 * g.pads[d]).checked_sub(span + 1).map(|room| room / g.strides[d] + 1)
    };
    let count = |channels: usize, extents: &Dims| c.batch * channels * extents.iter().product::<usize>();
    let sizes = [count(c.in_channels, &g.input), count(c.out_channels, &g.output)];
    (0..2).all(|d| windows(d) == Some(g.output[d])) && sizes.iter().all(|&n| 0 < n && n <= MOST)
}

#[cfg(test)]
#[path = "conv_tests.rs"]
mod tests;
