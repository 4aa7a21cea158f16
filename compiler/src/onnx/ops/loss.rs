//! Losses as operators: exported with a network, or what remains of a training graph.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;
use crate::onnx::ops::arrange::marks;
use crate::onnx::ops::shape::any;
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "NegativeLogLikelihoodLoss", note: "", convert: negative_log_likelihood },
    Entry { op: "SoftmaxCrossEntropyLoss", note: "", convert: softmax_cross_entropy },
];

type R = Result<Vec<Out>, String>;

fn negative_log_likelihood(cx: &mut Cx<'_, '_, '_>) -> R {
    let p = cx.real(0)?;
    Ok(vec![Out::Node(likelihood(cx, p)?, Elem::Float)])
}

fn softmax_cross_entropy(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    if cx.b.graph().ty(x).rank() < 2 {
        return Err("scores are [N, classes, ..]".into());
    }
    let lse = cx.b.log_sum_exp(x, &[1]);
    let p = crate::layers::centre(cx.b, x, lse);
    let loss = likelihood(cx, p)?;
    Ok([loss, p].into_iter().take(cx.proto.output.len().max(1)).map(|id| Out::Node(id, Elem::Float)).collect())
}

/// `-w[t] p[t]` of every target `t`, summed or averaged with the weights; `p` are log-probabilities `[N, C, ..]`.
fn likelihood(cx: &mut Cx<'_, '_, '_>, p: NodeId) -> Result<NodeId, String> {
    let s = cx.b.shape(p);
    let target_shape = cx.shape(1)?;
    if s.len() < 2 || target_shape[..] != [&s[..1], &s[2..]].concat()[..] {
        return Err(format!("targets {target_shape:?} do not fit {s:?}"));
    }
    let reduction = cx.string("reduction", "mean");
    let target = any(cx, 1)?.0;
    let target = cx.b.number(target);
    let flags = marks(cx, target, 1, s[1])?;
    let zero = cx.b.zeros_like(p);
    let chosen = cx.b.select(flags, p, zero);
    let chosen = cx.b.sum(chosen, &[1]);
    let mut weights = if cx.present(2) {
        let w = cx.fixed(2)?;
        let w = crate::layers::per_channel(cx.b, w, s.len());
        let w = cx.b.broadcast_to(w, &s);
        let own = cx.b.select(flags, w, zero);
        cx.b.sum(own, &[1])
    } else {
        cx.b.splat_like(chosen, 1.0)
    };
    if cx.has("ignore_index") {
        let ignored = cx.int("ignore_index", 0) as f64;
        let narrow = cx.b.shape(weights);
        let target = cx.b.reshape(target, &narrow);
        let index = cx.b.splat_like(target, ignored);
        let flag = cx.b.map(ScalarFn::Eq, &[target, index]);
        let none = cx.b.zeros_like(weights);
        weights = cx.b.select(flag, none, weights);
    }
    let product = cx.b.mul(weights, chosen);
    let loss = cx.b.neg(product);
    match reduction.as_str() {
        "none" => Ok(cx.b.reshape(loss, &target_shape)),
        "sum" => Ok(cx.b.sum_all(loss)),
        "mean" => {
            let (sum, all) = (cx.b.sum_all(loss), cx.b.sum_all(weights));
            Ok(cx.b.div(sum, all))
        }
        other => Err(format!("reduction \"{other}\" does not exist")),
    }
}
