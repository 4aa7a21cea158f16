//! `LinearAttention`: attention by a state, a matrix a head, that every step of a sequence changes.
//!
//! With key `k`, value `v` and query `q` of a step, decay `g` and rate `b`, the state becomes
//! `S = e^g S + b k (v - S^T k)^T`, where rules without a decay leave out `e^g`, and rules without a rate the rate and
//! what is subtracted. The step's result is `scale q^T S`.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;
use crate::onnx::ops::recurrent::MOST_STEPS;
use crate::onnx::ops::shape::part;
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] =
    &[Entry { op: "LinearAttention", note: "unrolled, 4096 steps at most", convert: linear_attention }];

/// `[batch, steps, heads width]` as `[steps, batch, heads, width]`.
fn heads(cx: &mut Cx<'_, '_, '_>, i: usize, heads: usize) -> Result<NodeId, String> {
    let x = cx.real(i)?;
    let s = cx.b.shape(x);
    let [batch, steps, width] = s[..] else { return Err(format!("input {i} has shape {s:?}, not three dimensions")) };
    if heads == 0 || width % heads != 0 || width == 0 {
        return Err(format!("input {i} has width {width}, which {heads} heads do not divide"));
    }
    let x = cx.b.reshape(x, &[batch, steps, heads, width / heads]);
    Ok(cx.b.transpose(x, &[1, 0, 2, 3]))
}

fn linear_attention(cx: &mut Cx<'_, '_, '_>) -> Result<Vec<Out>, String> {
    let count = |name: &str| usize::try_from(cx.int(name, 0)).unwrap_or(0);
    let (of_queries, of_states) = (count("q_num_heads"), count("kv_num_heads"));
    let (decays, corrects) = match cx.string("update_rule", "gated_delta").as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(format!("update_rule \"{other}\" does not exist")),
    };
    // How steps would be put together where they are not taken one by one.
    cx.has("chunk_size");
    let (q, k, v) = (heads(cx, 0, of_queries)?, heads(cx, 1, of_states)?, heads(cx, 2, of_states)?);
    let [steps, batch, _, key] = cx.b.shape(k)[..] else { return Err("its key has no heads".into()) };
    let value = cx.b.shape(v)[3];
    let group = of_queries / of_states;
    if cx.b.shape(q) != [steps, batch, of_states * group, key] || cx.b.shape(v)[..2] != [steps, batch] {
        return Err(format!("shapes {:?}, {:?} and {:?} do not fit", cx.b.shape(q), cx.b.shape(k), cx.b.shape(v)));
    }
    if steps == 0 || steps > MOST_STEPS {
        return Err(format!("a sequence of {steps} steps cannot be unrolled: there may be 1 to {MOST_STEPS}"));
    }
    let decay = if decays { Some(one_each(cx, 4, of_states, &[steps, batch, of_states, key])?) } else { None };
    let rate = if corrects { Some(one_each(cx, 5, of_states, &[steps, batch, of_states, 1])?) } else { None };
    let matrix = [batch, of_states, key, value];
    let mut state = None;
    if cx.present(3) {
        let s = cx.fixed(3)?;
        if cx.b.shape(s) != matrix {
            return Err(format!("its state has shape {:?}, not {matrix:?}", cx.b.shape(s)));
        }
        state = Some(s);
    }
    let scale = match cx.float("scale", 0.0) {
        0.0 => 1.0 / (key as f64).sqrt(),
        s => s,
    };
    let q = cx.b.reshape(q, &[steps, batch, of_states, group, key]);
    let mut results = Vec::with_capacity(steps);
    for t in 0..steps {
        let at = |cx: &mut Cx<'_, '_, '_>, x: NodeId, shape: &[usize]| {
            let row = part(cx, x, 0, t, 1);
            cx.b.reshape(row, shape)
        };
        let column = at(cx, k, &[batch, of_states, key, 1]);
        let row = at(cx, k, &[batch, of_states, 1, key]);
        let mut new = at(cx, v, &[batch, of_states, 1, value]);
        if let (Some(g), Some(s)) = (decay, state) {
            let width = cx.b.shape(g)[3];
            let g = at(cx, g, &[batch, of_states, width, 1]);
            let factor = cx.b.map(ScalarFn::Exp, &[g]);
            state = Some(cx.b.binary(ScalarFn::Mul, factor, s));
        }
        if let Some(rate) = rate {
            if let Some(s) = state {
                let there = cx.b.matmul(row, s);
                new = cx.b.sub(new, there);
            }
            let rate = at(cx, rate, &[batch, of_states, 1, 1]);
            new = cx.b.binary(ScalarFn::Mul, rate, new);
        }
        let more = cx.b.matmul(column, new);
        let now = state.map_or(more, |s| cx.b.add(s, more));
        state = Some(now);
        let q = at(cx, q, &[batch, of_states, group, key]);
        let result = cx.b.matmul(q, now);
        let result = cx.b.scale(result, scale);
        results.push(cx.b.reshape(result, &[batch, 1, of_queries * value]));
    }
    let all = cx.b.concat(&results, 1);
    let outs = [Some(all), state].into_iter().flatten().map(|id| Out::Node(id, Elem::Float));
    Ok(outs.take(cx.proto.output.len().max(1)).collect())
}

/// A decay or a rate by step and head: as many numbers a head as the last extent says, or one, or one for all heads.
fn one_each(cx: &mut Cx<'_, '_, '_>, i: usize, count: usize, full: &[usize; 4]) -> Result<NodeId, String> {
    let shape = cx.shape(i)?;
    let of_all = shape.last() == Some(&1);
    let x = heads(cx, i, if of_all { 1 } else { count })?;
    let s = cx.b.shape(x);
    if s[..2] != full[..2] || (s[3] != 1 && s[3] != full[3]) {
        return Err(format!("input {i} has shape {shape:?}, which does not fit"));
    }
    Ok(cx.b.broadcast_to(x, &[full[0], full[1], full[2], s[3]]))
}
