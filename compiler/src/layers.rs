//! Layers as IR, shared by the importer and the local heads: each is its definition, once.

use slrc_plan::ScalarFn;

use crate::ir::builder::Builder;
use crate::ir::graph::{Init, NodeId, VarKind, Variable};
use crate::ir::ops::mode::Near;
use crate::ir::types::Type;

/// PyTorch's default for linear and convolution layers: uniform within `1 / sqrt(fan_in)`.
pub fn fan_in(fan: usize) -> Init {
    Init::Uniform(1.0 / (fan.max(1) as f64).sqrt())
}

/// A new variable and the node that reads it.
pub fn variable(b: &mut Builder<'_>, name: String, kind: VarKind, shape: &[usize], init: Init) -> NodeId {
    let id = b.graph_mut().add_variable(Variable { name, kind, ty: Type::f32(shape), init });
    b.variable(id)
}

/// `select(0 < x, x, 0)`.
pub fn relu(b: &mut Builder<'_>, x: NodeId) -> NodeId {
    let zero = b.zeros_like(x);
    let flag = b.map(ScalarFn::Lt, &[zero, x]);
    b.select(flag, x, zero)
}

/// `x - m`, with `m` broadcast.
pub fn centre(b: &mut Builder<'_>, x: NodeId, m: NodeId) -> NodeId {
    let full = b.shape(x);
    let wide = b.broadcast(m, &full);
    b.sub(x, wide)
}

/// `1 / sqrt(mean(centred^2) + epsilon)` over axes, and the mean square itself.
pub fn inverse_deviation(b: &mut Builder<'_>, centred: NodeId, axes: &[usize], epsilon: f64) -> NodeId {
    let square = b.mul(centred, centred);
    let var = b.mean(square, axes);
    rsqrt_above(b, var, epsilon)
}

fn rsqrt_above(b: &mut Builder<'_>, var: NodeId, epsilon: f64) -> NodeId {
    let shifted = b.offset(var, epsilon);
    b.map(ScalarFn::Rsqrt, &[shifted])
}

/// `centred * (r * scale) + shift`, all but `centred` narrower than it.
pub fn scale_and_shift(b: &mut Builder<'_>, centred: NodeId, r: NodeId, scale: NodeId, shift: NodeId) -> NodeId {
    let full = b.shape(centred);
    let factor = b.mul(r, scale);
    let wide = b.broadcast(factor, &full);
    let y = b.mul(centred, wide);
    let shift = b.broadcast(shift, &full);
    b.add(y, shift)
}

/// A `[C]` tensor as `[1, C, 1, ..]`.
pub fn per_channel(b: &mut Builder<'_>, v: NodeId, rank: usize) -> NodeId {
    let mut shape = vec![1; rank];
    shape[1] = b.shape(v).iter().product();
    b.reshape(v, &shape)
}

/// BatchNorm's tensors, each `[C]`.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Factor.
    pub scale: NodeId,
    /// Offset.
    pub shift: NodeId,
    /// Running mean.
    pub running_mean: NodeId,
    /// Running variance.
    pub running_var: NodeId,
    /// Added to the variance.
    pub epsilon: f64,
    /// Weight of the old running statistics, in ONNX's convention (PyTorch's momentum is one minus this).
    pub momentum: f64,
}

/// Result of [`batch_norm`].
#[derive(Clone, Copy, Debug)]
pub struct BatchNormOutput {
    /// Normalised activations.
    pub y: NodeId,
    /// The running mean after this step.
    pub new_mean: NodeId,
    /// The running variance after this step; it takes the unbiased batch variance, as PyTorch's does.
    pub new_var: NodeId,
}

/// `y = (x - mean) / sqrt(var + epsilon) * scale + shift` per channel (dimension 1) of `x`, which has at least two
/// values per channel. In training mean and variance are the batch's (variance biased); in inference the running ones.
pub fn batch_norm(b: &mut Builder<'_>, x: NodeId, n: BatchNorm) -> BatchNormOutput {
    let shape = b.shape(x);
    let rank = shape.len();
    let axes: Vec<usize> = (0..rank).filter(|&d| d != 1).collect();
    let count: usize = axes.iter().map(|&d| shape[d]).product();
    let mean = b.mean(x, &axes);
    let eval_mean = per_channel(b, n.running_mean, rank);
    let near = b.emit(Near, &[mean, eval_mean]);
    let chosen_mean = b.mode_select(near, eval_mean);
    let centred = centre(b, x, chosen_mean);
    let square = b.mul(centred, centred);
    let var = b.mean(square, &axes);
    let eval_var = per_channel(b, n.running_var, rank);
    let chosen_var = b.mode_select(var, eval_var);
    let r = rsqrt_above(b, chosen_var, n.epsilon);
    let scale = per_channel(b, n.scale, rank);
    let shift = per_channel(b, n.shift, rank);
    let y = scale_and_shift(b, centred, r, scale, shift);
    let unbiased = b.scale(var, count as f64 / (count.max(2) - 1) as f64);
    let mut follow = |running: NodeId, batch: NodeId| {
        let batch = b.reshape(batch, &[shape[1]]);
        let kept = b.scale(running, n.momentum);
        let moved = b.scale(batch, 1.0 - n.momentum);
        b.add(kept, moved)
    };
    let new_mean = follow(n.running_mean, mean);
    let new_var = follow(n.running_var, unbiased);
    BatchNormOutput { y, new_mean, new_var }
}

/// `(x - mean) / sqrt(var + epsilon) * scale + shift` over axes; scale and shift broadcast as numpy does.
pub fn layer_norm(
    b: &mut Builder<'_>,
    x: NodeId,
    axes: &[usize],
    epsilon: f64,
    scale: NodeId,
    shift: Option<NodeId>,
) -> NodeId {
    let full = b.shape(x);
    let mean = b.mean(x, axes);
    let centred = centre(b, x, mean);
    let r = inverse_deviation(b, centred, axes, epsilon);
    let r = b.broadcast(r, &full);
    let normed = b.mul(centred, r);
    let scale = b.broadcast_to(scale, &full);
    let y = b.mul(normed, scale);
    match shift {
        Some(s) => {
            let s = b.broadcast_to(s, &full);
            b.add(y, s)
        }
        None => y,
    }
}

/// `x W^T + bias` over the last dimension, `W [out, in]`.
pub fn linear(b: &mut Builder<'_>, x: NodeId, weight: NodeId, bias: NodeId) -> NodeId {
    let mut shape = b.shape(x);
    let width = shape.pop().unwrap_or(1);
    let rows = shape.iter().product();
    let flat = b.reshape(x, &[rows, width]);
    let w = b.transpose(weight, &[1, 0]);
    let y = b.matmul(flat, w);
    let out = b.shape(y);
    let bias = b.broadcast_to(bias, &out);
    let y = b.add(y, bias);
    shape.push(out[1]);
    b.reshape(y, &shape)
}
