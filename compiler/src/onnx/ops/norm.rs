//! Normalisations and softmax, as their definitions.

use slrc_plan::ScalarFn;

use crate::ir::graph::{Init, NodeId, VarKind};
use crate::ir::op::Op;
use crate::layers::{self, BatchNorm};
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::shape::{pad_with, part};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "BatchNormalization",
        note: "batch statistics in training, running ones in inference",
        convert: batch_norm,
    },
    Entry { op: "InstanceNormalization", note: "", convert: instance_norm },
    Entry { op: "LayerNormalization", note: "", convert: layer_norm },
    Entry { op: "GroupNormalization", note: "", convert: group_norm },
    Entry { op: "RMSNormalization", note: "x / sqrt(mean(x^2) + epsilon) scale", convert: rms_norm },
    Entry { op: "LpNormalization", note: "p = 1 and 2", convert: lp_norm },
    Entry { op: "MeanVarianceNormalization", note: "", convert: mean_variance_norm },
    Entry { op: "LRN", note: "", convert: local_response_norm },
    Entry { op: "Softmax", note: "exp(x - log-sum-exp(x))", convert: softmax },
    Entry { op: "LogSoftmax", note: "x - log-sum-exp(x)", convert: log_softmax },
];

type R = Result<Vec<Out>, String>;

/// `y = (x - mean) / sqrt(var + epsilon) * scale + bias` per channel. In training mean and var are the batch's (var
/// biased), and the running ones move towards them once a step, by PyTorch's rule: the running variance takes the
/// unbiased one.
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
    // Until opset 8.
    if cx.int("spatial", 1) == 0 {
        return Err("statistics of each pixel (spatial = 0) are not supported".into());
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
    let n = BatchNorm { scale, shift, running_mean, running_var, epsilon, momentum };
    let out = layers::batch_norm(cx.b, x, n);
    for (running, new) in [(running_mean, out.new_mean), (running_var, out.new_var)] {
        let Op::Variable(variable) = cx.b.graph().node(running).op else { continue };
        if cx.b.graph().variables[variable.index()].kind == VarKind::Frozen {
            continue;
        }
        cx.state.updates.push((variable, new));
    }
    let mut outs = vec![Out::Node(out.y, Elem::Float)];
    // ONNX's running variance takes the biased one.
    let statistics = cx.opset >= 14 && cx.int("training_mode", 0) != 0;
    let batch = (statistics && (cx.wants(1) || cx.wants(2))).then(|| {
        let mean = cx.b.mean(x, &axes);
        let centred = layers::centre(cx.b, x, mean);
        let square = cx.b.mul(centred, centred);
        [mean, cx.b.mean(square, &axes)]
    });
    for i in 1..cx.proto.output.len() {
        if let Some(batch) = batch.filter(|_| i <= 2 && cx.wants(i)) {
            let new = cx.b.reshape(batch[i - 1], &[xs[1]]);
            let new = cx.b.scale(new, 1.0 - momentum);
            let old = cx.b.scale([running_mean, running_var][i - 1], momentum);
            outs.push(Out::Node(cx.b.add(old, new), Elem::Float));
            continue;
        }
        outs.push(if cx.wants(i) {
            Out::Unavailable("batch statistics")
        } else {
            Out::Alias(crate::onnx::node::Operand::Absent)
        });
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
    let mean = cx.b.mean(x, &axes);
    let centred = layers::centre(cx.b, x, mean);
    let r = layers::inverse_deviation(cx.b, centred, &axes, epsilon);
    let scale = layers::per_channel(cx.b, scale, xs.len());
    let shift = layers::per_channel(cx.b, shift, xs.len());
    let narrow = cx.b.shape(r);
    let scale = cx.b.broadcast(scale, &narrow);
    real(layers::scale_and_shift(cx.b, centred, r, scale, shift))
}

/// `y = (x - mean) / sqrt(var + epsilon) * scale + bias` over the dimensions from `axis` on.
fn layer_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", -1), xs.len())?;
    let epsilon = cx.float("epsilon", 1e-5);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let axes: Vec<usize> = (axis..xs.len()).collect();
    let shift = if cx.present(2) { Some(cx.weight(2, Init::Constant(0.0), VarKind::Weight)?) } else { None };
    let mut outs = vec![Out::Node(layers::layer_norm(cx.b, x, &axes, epsilon, scale, shift), Elem::Float)];
    if cx.wants(1) || cx.wants(2) {
        let mean = cx.b.mean(x, &axes);
        let centred = layers::centre(cx.b, x, mean);
        let r = layers::inverse_deviation(cx.b, centred, &axes, epsilon);
        outs.extend([Out::Node(mean, Elem::Float), Out::Node(r, Elem::Float)]);
    }
    outs.truncate(cx.proto.output.len().max(1));
    Ok(outs)
}

/// Groups of channels are normalised together. Until opset 20 scale and bias are one a group, from 21 on one a channel.
fn group_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    let groups = usize::try_from(cx.int("num_groups", 0)).unwrap_or(0);
    if xs.len() < 2 || groups == 0 || !xs[1].is_multiple_of(groups) {
        return Err(format!("{groups} groups do not divide {xs:?}"));
    }
    let epsilon = cx.float("epsilon", 1e-5);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let shift = cx.weight(2, Init::Constant(0.0), VarKind::Weight)?;
    let rest: usize = xs[2..].iter().product();
    let each = xs[1] / groups;
    let grouped = [xs[0], groups, each, rest];
    let wide = |cx: &mut Cx<'_, '_, '_>, v: NodeId| -> Result<NodeId, String> {
        let n: usize = cx.b.shape(v).iter().product();
        let shape = match n {
            n if n == xs[1] => [1, groups, each, 1],
            n if n == groups => [1, groups, 1, 1],
            n => return Err(format!("{n} scales for {} channels in {groups} groups", xs[1])),
        };
        let v = cx.b.reshape(v, &shape);
        Ok(cx.b.broadcast(v, &grouped))
    };
    let (scale, shift) = (wide(cx, scale)?, wide(cx, shift)?);
    let x = cx.b.reshape(x, &grouped);
    let mean = cx.b.mean(x, &[2, 3]);
    let centred = layers::centre(cx.b, x, mean);
    let r = layers::inverse_deviation(cx.b, centred, &[2, 3], epsilon);
    let r = cx.b.broadcast(r, &grouped);
    let normal = cx.b.mul(centred, r);
    let scaled = cx.b.mul(normal, scale);
    let y = cx.b.add(scaled, shift);
    real(cx.b.reshape(y, &xs))
}

fn rms_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", -1), xs.len())?;
    let epsilon = cx.float("epsilon", 1e-5);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let axes: Vec<usize> = (axis..xs.len()).collect();
    let r = layers::inverse_deviation(cx.b, x, &axes, epsilon);
    let r = cx.b.broadcast(r, &xs);
    let normal = cx.b.mul(x, r);
    real(cx.b.binary(ScalarFn::Mul, normal, scale))
}

/// `x / |x|_p`; zero where the norm is.
fn lp_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", -1), xs.len())?;
    let p = cx.int("p", 2);
    let x = cx.real(0)?;
    let norm = match p {
        1 => {
            let abs = cx.b.map(ScalarFn::Abs, &[x]);
            cx.b.sum(abs, &[axis])
        }
        2 => {
            let square = cx.b.mul(x, x);
            let sum = cx.b.sum(square, &[axis]);
            cx.b.map(ScalarFn::Sqrt, &[sum])
        }
        other => return Err(format!("p = {other} is not supported")),
    };
    let zero = cx.b.zeros_like(norm);
    let one = cx.b.splat_like(norm, 1.0);
    let some = cx.b.map(ScalarFn::Lt, &[zero, norm]);
    let divisor = cx.b.select(some, norm, one);
    let divisor = cx.b.broadcast(divisor, &xs);
    real(cx.b.div(x, divisor))
}

/// `(x - mean) / (sqrt(var) + 1e-9)`.
fn mean_variance_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    let axes = cx.axes(&cx.ints("axes").unwrap_or_else(|| vec![0, 2, 3]), xs.len())?;
    let x = cx.real(0)?;
    let mean = cx.b.mean(x, &axes);
    let centred = layers::centre(cx.b, x, mean);
    let square = cx.b.mul(centred, centred);
    let var = cx.b.mean(square, &axes);
    let deviation = cx.b.map(ScalarFn::Sqrt, &[var]);
    let deviation = cx.b.offset(deviation, 1e-9);
    let deviation = cx.b.broadcast(deviation, &xs);
    real(cx.b.div(centred, deviation))
}

/// `x / (bias + alpha / size * sum of neighbours' squares)^beta`, neighbours being channels (Krizhevsky et al., 2012).
fn local_response_norm(cx: &mut Cx<'_, '_, '_>) -> R {
    let xs = cx.shape(0)?;
    let size = usize::try_from(cx.int("size", 0)).ok().filter(|&n| n > 0).ok_or("size is missing")?;
    let (alpha, beta, bias) = (cx.float("alpha", 1e-4), cx.float("beta", 0.75), cx.float("bias", 1.0));
    if xs.len() < 2 || size > 256 {
        return Err(format!("{size} neighbours of {xs:?} are not supported"));
    }
    let x = cx.real(0)?;
    let square = cx.b.mul(x, x);
    let mut pads = vec![[0, 0]; xs.len()];
    let low = (size - 1) / 2;
    pads[1] = [low as i64, (size - 1 - low) as i64];
    let padded = pad_with(cx, square, &pads, 0.0)?;
    let mut sum = cx.b.zeros_like(x);
    for i in 0..size {
        let shifted = part(cx, padded, 1, i, xs[1]);
        sum = cx.b.add(sum, shifted);
    }
    let scaled = cx.b.scale(sum, alpha / size as f64);
    let base = cx.b.offset(scaled, bias);
    let power = cx.b.splat_like(base, beta);
    let divisor = cx.b.map(ScalarFn::Pow, &[base, power]);
    real(cx.b.div(x, divisor))
}

/// Before opset 13 softmax is over all dimensions from `axis` on.
pub(super) fn softmax_axes(cx: &Cx<'_, '_, '_>, rank: usize) -> Result<Vec<usize>, String> {
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
    real(layers::centre(cx.b, x, lse))
}
