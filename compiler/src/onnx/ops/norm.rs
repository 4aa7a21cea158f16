//! Normalisations and softmax, as their definitions.

use crate::ir::graph::{Init, VarKind};
use crate::ir::op::Op;
use crate::layers::{self, BatchNorm};
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "BatchNormalization",
        note: "batch statistics in training, running ones in inference",
        convert: batch_norm,
    },
    Entry { op: "InstanceNormalization", note: "", convert: instance_norm },
    Entry { op: "LayerNormalization", note: "no statistics outputs", convert: layer_norm },
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
    for i in 1..cx.proto.output.len() {
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
    if cx.wants(1) || cx.wants(2) {
        return Err("its statistics outputs are not supported".into());
    }
    let xs = cx.shape(0)?;
    let axis = cx.axis(cx.int("axis", -1), xs.len())?;
    let epsilon = cx.float("epsilon", 1e-5);
    let x = cx.real(0)?;
    let scale = cx.weight(1, Init::Constant(1.0), VarKind::Weight)?;
    let axes: Vec<usize> = (axis..xs.len()).collect();
    let shift = if cx.present(2) { Some(cx.weight(2, Init::Constant(0.0), VarKind::Weight)?) } else { None };
    real(layers::layer_norm(cx.b, x, &axes, epsilon, scale, shift))
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
    real(layers::centre(cx.b, x, lse))
}
