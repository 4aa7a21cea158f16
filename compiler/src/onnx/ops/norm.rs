//! Normalisations and softmax, as their definitions.

use slrc_plan::ScalarFn;

use crate::ir::graph::{Init, NodeId, VarKind};
use crate::ir::op::Op;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "BatchNormalization", note: "batch statistics in training, running ones in inference", convert: batch_norm },
    Entry { op: "InstanceNormalization", note: "", convert: instance_norm },
    Entry { op: "LayerNormalization", note: "no statistics outputs", convert: layer_norm },
    Entry { op: "Softmax", note: "exp(x - log-sum-exp(x))", convert: softmax },
    Entry { op: "LogSoftmax", note: "x - log-sum-exp(x)", convert: log_softmax },
];

type R = Result<Vec<Out>, String>;

/// `x - mean` and `mean((x - mean)^2)` over axes; `mean` is given, or computed.
fn moments(cx: &mut Cx<'_, '_, '_>, x: NodeId, axes: &[usize]) -> (NodeId, NodeId) {
    let mean = cx.b.mean(x, axes);
    let centred = centre(cx, x, mean);
    let square = cx.b.mul(centred, centred);
    let var = cx.b.mean(square, axes);
    (centred, var)
}

fn centre(cx: &mut Cx<'_, '_, '_>, x: NodeId, mean: NodeId) -> NodeId {
    let full = cx.b.shape(x);
    let wide = cx.b.broadcast(mean, &full);
    cx.b.sub(x, wide)
}

fn inverse_deviation(cx: &mut Cx<'_, '_, '_>, var: NodeId, epsilon: f64) -> NodeId {
    let shifted = cx.b.offset(var, epsilon);
    cx.b.map(ScalarFn::Rsqrt, &[shifted])
}

/// Per-channel factors and offsets: `centred * (r * scale) + shift`.
fn scale_and_shift(cx: &mut Cx<'_, '_, '_>, centred: NodeId, r: NodeId, scale: NodeId, shift: NodeId) -> NodeId {
    let full = cx.b.shape(centred);
    let factor = cx.b.mul(r, scale);
    let wide = cx.b.broadcast(factor, &full);
    let y = cx.b.mul(centred, wide);
    let shift = cx.b.broadcast(shift, &full);
    cx.b.add(y, shift)
}

/// A `[C]` tensor as `[1, C, 1, ..]`.
fn per_channel(cx: &mut Cx<'_, '_, '_>, v: NodeId, rank: usize) -> Result<NodeId, String> {
    let s = cx.b.shape(v);
    let mut shape = vec![1; rank];
    shape[1] = s.iter().product();
    Ok(cx.b.reshape(v, &shape))
}

/// `y = (x - mean) / sqrt(var + epsilon) * scale + bias` per channel. In training mean and var are the batch's (var biased),
/// and the running ones move towards them once a step, by PyTorch's rule: the running variance takes the unbiased one.
fn batch_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    if xs.len() < 2 {
        return Err(format!("input {xs:?} has no channels"));
    }
    for i in 1..5 {
        if cx.shape(i)? != [xs[1]] {
            return Err(format!("input {i} has shape {:?}, not [{}]", cx.shape(i)?, xs[1]));
        }
    }
    let rank = xs.len();
    let epsilon = cx.float("epsilon", 1e-5);
    let momentum = cx.float("momentum", 0.9);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let shift = cx.weight(2, Init::Constant(0.0), VarKind::Weight)?;
    let running_mean = cx.weight(3, Init::Constant(0.0), VarKind::RunningStatistic)?;
    let running_var = cx.weight(4, Init::Constant(1.0), VarKind::RunningStatistic)?;
    let axes: Vec<usize> = (0..rank).filter(|&d| d != 1).collect();
    let count: usize = axes.iter().map(|&d| xs[d]).product();
    if count < 2 {
        return Err("batch statistics need more than one value per channel; use a larger batch".into());
    }
    let mean = cx.b.mean(x, &axes);
    let eval_mean = per_channel(cx, running_mean, rank)?;
    let chosen_mean = cx.b.mode_select(mean, eval_mean);
    let centred = centre(cx, x, chosen_mean);
    let square = cx.b.mul(centred, centred);
    let var = cx.b.mean(square, &axes);
    let eval_var = per_channel(cx, running_var, rank)?;
    let chosen_var = cx.b.mode_select(var, eval_var);
    let r = inverse_deviation(cx, chosen_var, epsilon);
    let scale = per_channel(cx, scale, rank)?;
    let shift = per_channel(cx, shift, rank)?;
    let y = scale_and_shift(cx, centred, r, scale, shift);

    let unbiased = cx.b.scale(var, count as f64 / (count - 1) as f64);
    for (running, batch) in [(running_mean, mean), (running_var, unbiased)] {
        let Op::Variable(variable) = cx.b.graph().node(running).op else { continue };
        if cx.b.graph().variables[variable.index()].kind == VarKind::Frozen {
            continue;
        }
        let batch = cx.b.reshape(batch, &[xs[1]]);
        let kept = cx.b.scale(running, momentum);
        let moved = cx.b.scale(batch, 1.0 - momentum);
        let new = cx.b.add(kept, moved);
        cx.state.updates.push((variable, new));
    }
    let mut outs = vec![Out::Node(y, Elem::Float)];
    for i in 1..cx.proto.output.len() {
        outs.push(if cx.wants(i) { Out::Unavailable("batch statistics") } else { Out::Alias(crate::onnx::node::Operand::Absent) });
    }
    Ok(outs)
}

fn instance_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    if xs.len() < 3 || cx.shape(1)? != [xs[1]] || cx.shape(2)? != [xs[1]] {
        return Err(format!("input {xs:?} and its scale and bias do not belong together"));
    }
    let epsilon = cx.float("epsilon", 1e-5);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let shift = cx.weight(2, Init::Constant(0.0), VarKind::Weight)?;
    let axes: Vec<usize> = (2..xs.len()).collect();
    let (centred, var) = moments(cx, x, &axes);
    let r = inverse_deviation(cx, var, epsilon);
    let scale = per_channel(cx, scale, xs.len())?;
    let shift = per_channel(cx, shift, xs.len())?;
    let narrow = cx.b.shape(r);
    let scale = cx.b.broadcast(scale, &narrow);
    let y = scale_and_shift(cx, centred, r, scale, shift);
    real(y)
}

/// `y = (x - mean) / sqrt(var + epsilon) * scale + bias` over the dimensions from `axis` on.
fn layer_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    if cx.wants(1) || cx.wants(2) {
        return Err("its statistics outputs are not supported".into());
    }
    let xs = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", -1), xs.len())?;
    let epsilon = cx.float("epsilon", 1e-5);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let axes: Vec<usize> = (axis..xs.len()).collect();
    let (centred, var) = moments(cx, x, &axes);
    let r = inverse_deviation(cx, var, epsilon);
    let r = cx.b.broadcast(r, &xs);
    let normed = cx.b.mul(centred, r);
    let scale = cx.b.broadcast_to(scale, &xs);
    let mut y = cx.b.mul(normed, scale);
    if cx.present(2) {
        let shift = cx.weight(2, Init::Constant(0.0), VarKind::Weight)?;
        let shift = cx.b.broadcast_to(shift, &xs);
        y = cx.b.add(y, shift);
    }
    real(y)
}

/// Before opset 13 softmax is over all dimensions from `axis` on.
fn softmax_axes(cx: &Cx<'_, '_, '_>, rank: usize) -> Result<Vec<usize>, String> {
    if rank == 0 {
        return Err("a scalar has no axis".into());
    }
    if cx.opset >= 13 {
        return Ok(vec![cx.axis(cx.int("axis", -1), rank)?]);
    }
    let axis = cx.int("axis", 1);
    let axis = if axis == rank as i64 { rank } else { cx.axis(axis, rank)? };
    Ok((axis..rank).collect())
}

fn softmax(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let axes = softmax_axes(cx, cx.b.graph().ty(x).rank())?;
    real(cx.b.softmax(x, &axes))
}

fn log_softmax(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let axes = softmax_axes(cx, cx.b.graph().ty(x).rank())?;
    let lse = cx.b.log_sum_exp(x, &axes);
    real(centre(cx, x, lse))
}
