//! Attention and rotary embeddings.

use slrc_plan::ScalarFn;

use crate::ir::graph::NodeId;
use crate::ir::ops::shape::Slice;
use crate::ir::types::{DType, Type};
use crate::onnx::node::{Cx, Operand, Out};
use crate::onnx::ops::linear::multiply;
use crate::onnx::ops::{Entry, real};
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "Attention",
        note: "masks, windows, grouped heads, caches as inputs; lengths without padding known at import",
        convert: attention,
    },
    Entry { op: "RotaryEmbedding", note: "positions known at import", convert: rotary },
];

type R = Result<Vec<Out>, String>;

/// What a score is that takes no part: its exponential is zero beside any other's.
const APART: f64 = -1e30;

/// Most flags of a mask that is computed at import.
const MOST_FLAGS: usize = 1 << 27;

/// `[N, heads, rows, D]` of a 3-D or 4-D operand.
fn heads(cx: &mut Cx<'_, '_, '_>, i: usize, count: i64) -> Result<NodeId, String> {
    let x = cx.real(i)?;
    let s = cx.b.shape(x);
    let n = usize::try_from(count).unwrap_or(0);
    match s[..] {
        [_, _, _, _] => Ok(x),
        [batch, rows, width] if n > 0 && width.is_multiple_of(n) => {
            let split = cx.b.reshape(x, &[batch, rows, n, width / n]);
            Ok(cx.b.transpose(split, &[0, 2, 1, 3]))
        }
        _ => Err(format!("{n} heads do not split {s:?}")),
    }
}

/// Every key and value head for as many query heads that share it, one after the other.
fn repeat(cx: &mut Cx<'_, '_, '_>, x: NodeId, times: usize) -> NodeId {
    if times == 1 {
        return x;
    }
    let s = cx.b.shape(x);
    let apart = cx.b.reshape(x, &[s[0], s[1], 1, s[2], s[3]]);
    let wide = cx.b.broadcast(apart, &[s[0], s[1], times, s[2], s[3]]);
    cx.b.reshape(wide, &[s[0], s[1] * times, s[2], s[3]])
}

/// Which keys a query sees, where that is known: of each of `batch` samples, or the same of all.
struct Sight {
    causal: bool,
    left: i64,
    right: i64,
    /// Keys before the first query's own, by sample.
    offsets: Vec<i64>,
    /// Keys that are no padding, by sample.
    lengths: Option<Vec<i64>>,
}

impl Sight {
    fn sees(&self, sample: usize, query: usize, key: usize) -> bool {
        let (at, key) = (query as i64 + self.offsets[sample], key as i64);
        (!self.causal || key <= at)
            && (self.left < 0 || at - key <= self.left)
            && (self.right < 0 || key - at <= self.right)
            && self.lengths.as_ref().is_none_or(|l| key < l[sample])
    }

    /// Whether some query sees no key.
    fn blinds(&self, queries: usize, keys: usize) -> bool {
        let blind = |n: usize, q: usize| !(0..keys).any(|k| self.sees(n, q, k));
        (0..self.offsets.len()).any(|n| (0..queries).any(|q| blind(n, q)))
    }

    /// A flag for each score, over `[samples or 1, 1, queries, keys]`; none where all are set.
    fn flags(&self, cx: &mut Cx<'_, '_, '_>, queries: usize, keys: usize) -> Result<Option<NodeId>, String> {
        let samples = self.offsets.len();
        if !self.causal && self.left < 0 && self.right < 0 && self.lengths.is_none() {
            return Ok(None);
        }
        if samples.saturating_mul(queries).saturating_mul(keys) > MOST_FLAGS {
            return Err(format!("a mask of {samples} x {queries} x {keys} flags is not supported"));
        }
        cx.state.allowance.copy(samples * queries * keys / 8)?;
        let all = (0..samples * queries * keys).map(|i| {
            let (sample, rest) = (i / (queries * keys), i % (queries * keys));
            f64::from(u8::from(self.sees(sample, rest / keys, rest % keys)))
        });
        let data: Vec<f64> = all.collect();
        if data.iter().all(|&x| x == 1.0) {
            return Ok(None);
        }
        Ok(Some(cx.b.constant(Type::new(DType::U8, vec![samples, 1, queries, keys]), data)))
    }
}

/// `softmax(cap(scale Q K^T) + mask) V`, per head; zero for a query that sees no key.
fn attention(cx: &mut Cx<'_, '_, '_>) -> R {
    let rank = cx.shape(0)?.len();
    let (query_heads, key_heads) = (cx.int("q_num_heads", 0), cx.int("kv_num_heads", 0));
    let q = heads(cx, 0, query_heads)?;
    let (mut k, mut v) = (heads(cx, 1, key_heads)?, heads(cx, 2, key_heads)?);
    let mut past = 0;
    if cx.present(4) && cx.present(5) {
        let (pk, pv) = (cx.real(4)?, cx.real(5)?);
        let (now, before) = (cx.b.shape(k), cx.b.shape(pk));
        let fits = |s: &[usize], of: &[usize]| s.len() == 4 && s[..2] == of[..2] && s[3] == of[3];
        if !fits(&before, &now) || !fits(&cx.b.shape(pv), &cx.b.shape(v)) {
            return Err(format!("past keys {before:?} do not fit keys {now:?}, or past values their values"));
        }
        past = before[2];
        (k, v) = (cx.b.concat(&[pk, k], 2), cx.b.concat(&[pv, v], 2));
    }
    let (present_key, present_value) = (k, v);
    let (sq, sk) = (cx.b.shape(q), cx.b.shape(k));
    if sk[1] == 0 || !sq[1].is_multiple_of(sk[1]) || cx.b.shape(v)[..3] != sk[..3] || sq[3] != sk[3] {
        return Err(format!("queries {sq:?}, keys {sk:?} and values {:?} do not fit", cx.b.shape(v)));
    }
    (k, v) = (repeat(cx, k, sq[1] / sk[1]), repeat(cx, v, sq[1] / sk[1]));
    let scale = if cx.has("scale") { cx.float("scale", 1.0) } else { 1.0 / (sq[3] as f64).sqrt() };
    let kt = cx.b.matrix_transpose(k);
    let scaled = cx.b.scale(q, scale);
    let raw = multiply(cx, scaled, kt)?;
    let cap = cx.float("softcap", 0.0);
    let capped = if cap > 0.0 {
        let inner = cx.b.scale(raw, 1.0 / cap);
        let bent = cx.b.map(ScalarFn::Tanh, &[inner]);
        cx.b.scale(bent, cap)
    } else {
        raw
    };
    let full = cx.b.shape(capped);
    let (queries, keys) = (full[2], full[3]);
    let lengths = if cx.present(6) { Some(cx.known_ints(6, "the number of keys without padding")?) } else { None };
    if lengths.as_ref().is_some_and(|l| l.len() != full[0] || past > 0) {
        return Err("lengths without padding are one a sample, and without a cache of past keys".into());
    }
    let offsets = match &lengths {
        Some(l) if l.iter().any(|&n| n < 0 || n > keys as i64) => {
            return Err(format!("lengths {l:?} are not those of {keys} keys"));
        }
        Some(l) => l.iter().map(|&n| n - queries as i64).collect(),
        None => vec![past as i64],
    };
    let causal = cx.int("is_causal", 0) != 0;
    let sight = Sight {
        causal,
        left: cx.int("left_window_size", -1),
        right: cx.int("right_window_size", -1),
        offsets,
        lengths,
    };
    let (scores, seen) = masked(cx, capped, &sight)?;
    let mut p = cx.b.softmax(scores, &[3]);
    if let Some(seen) = seen
        && (sight.blinds(queries, keys) || may_blind(cx))
    {
        p = alive(cx, p, seen);
    }
    let mut y = multiply(cx, p, v)?;
    if rank == 3 {
        y = cx.b.transpose(y, &[0, 2, 1, 3]);
        let s = cx.b.shape(y);
        y = cx.b.reshape(y, &[s[0], s[1], s[2] * s[3]]);
    }
    let shown = match cx.int("qk_matmul_output_mode", 0) {
        0 => Out::Node(raw, Elem::Float),
        1 => Out::Node(capped, Elem::Float),
        2 => match seen {
            Some(seen) if cx.wants(3) => {
                let low = cx.b.splat(f64::NEG_INFINITY, &full);
                Out::Node(cx.b.select(seen, scores, low), Elem::Float)
            }
            _ => Out::Node(scores, Elem::Float),
        },
        3 => Out::Node(p, Elem::Float),
        other => return Err(format!("qk_matmul_output_mode = {other} does not exist")),
    };
    let outs =
        [Out::Node(y, Elem::Float), Out::Node(present_key, Elem::Float), Out::Node(present_value, Elem::Float), shown];
    Ok(outs.into_iter().take(cx.proto.output.len().max(1)).collect())
}

/// Whether a mask of flags may keep a query from all keys, alone or with what is known besides.
fn may_blind(cx: &Cx<'_, '_, '_>) -> bool {
    match cx.operand(3) {
        Operand::Const(c) if c.elem == Elem::Bool => {
            let alone = cx.int("is_causal", 0) == 0 && !cx.has("left_window_size") && !cx.has("right_window_size");
            let width = c.shape.last().copied().unwrap_or(1).max(1);
            !alone || cx.present(6) || c.data.chunks(width).any(|row| !row.contains(&1.0))
        }
        Operand::Node(id, _) => cx.b.graph().ty(*id).dtype == DType::U8,
        Operand::Absent | Operand::Const(_) | Operand::Weight(_) => false,
    }
}

/// Scores with everything applied that keeps queries from keys, and the flags of those that a query sees.
fn masked(cx: &mut Cx<'_, '_, '_>, scores: NodeId, sight: &Sight) -> Result<(NodeId, Option<NodeId>), String> {
    let full = cx.b.shape(scores);
    let mut scores = scores;
    let mut seen = sight.flags(cx, full[2], full[3])?.map(|f| cx.b.broadcast(f, &full));
    if cx.present(3) {
        // A mask may be shorter than the keys: what it does not reach is not seen.
        let mask = match cx.operand(3).clone() {
            Operand::Node(id, _) => id,
            _ if cx.elem(3)? == Elem::Bool => cx.flag(3)?,
            _ => cx.fixed(3)?,
        };
        let width = cx.b.shape(mask).last().copied().unwrap_or(1);
        let short = width < full[3] && width != 1;
        let mut wide = full.clone();
        wide[3] = if short { width } else { full[3] };
        if crate::ir::builder::common_shape(&cx.b.shape(mask), &wide).as_deref() != Some(&wide[..]) {
            return Err(format!("mask {:?} does not fit scores {full:?}", cx.b.shape(mask)));
        }
        let mask = cx.b.broadcast_to(mask, &wide);
        let flags = cx.elem(3)? == Elem::Bool;
        let mask = if short { lengthen(cx, mask, full[3], flags) } else { mask };
        if flags {
            seen = Some(match seen {
                Some(s) => cx.b.map(ScalarFn::And, &[s, mask]),
                None => mask,
            });
        } else {
            scores = cx.b.add(scores, mask);
        }
    }
    if let Some(seen) = seen {
        let low = cx.b.splat(APART, &full);
        scores = cx.b.select(seen, scores, low);
    }
    Ok((scores, seen))
}

/// A mask over more keys, none of which is seen.
fn lengthen(cx: &mut Cx<'_, '_, '_>, mask: NodeId, keys: usize, flags: bool) -> NodeId {
    let mut rest = cx.b.shape(mask);
    rest[3] = keys - rest[3];
    let mask = cx.b.number(mask);
    let tail = cx.b.splat(if flags { 0.0 } else { APART }, &rest);
    let long = cx.b.concat(&[mask, tail], 3);
    if !flags {
        return long;
    }
    let zero = cx.b.zeros_like(long);
    cx.b.map(ScalarFn::Lt, &[zero, long])
}

/// Probabilities, zero in rows where nothing is seen.
fn alive(cx: &mut Cx<'_, '_, '_>, p: NodeId, seen: NodeId) -> NodeId {
    let number = cx.b.number(seen);
    let any = cx.b.max(number, &[3]);
    let full = cx.b.shape(p);
    let any = cx.b.broadcast(any, &full);
    cx.b.mul(p, any)
}

/// Pairs `(a, b)` of a head's elements turned by an angle: `(a cos - b sin, b cos + a sin)`. Pairs are the two halves,
/// or neighbours where interleaved (Su et al., 2021).
fn rotary(cx: &mut Cx<'_, '_, '_>) -> R {
    let rank = cx.shape(0)?.len();
    let interleaved = cx.int("interleaved", 0) != 0;
    let (count, dim) = (cx.int("num_heads", 0), cx.int("rotary_embedding_dim", 0));
    let x = heads(cx, 0, count)?;
    let s = cx.b.shape(x);
    let dim = if dim > 0 { dim as usize } else { s[3] };
    if dim > s[3] || !dim.is_multiple_of(2) {
        return Err(format!("{dim} of {} elements cannot be turned in pairs", s[3]));
    }
    let angles = |cx: &mut Cx<'_, '_, '_>, i: usize| -> Result<NodeId, String> {
        let mut t = cx.fixed(i)?;
        if cx.present(3) {
            let at: Vec<usize> =
                cx.known_ints(3, "the positions")?.iter().map(|&p| usize::try_from(p).unwrap_or(usize::MAX)).collect();
            let rows = cx.b.shape(t)[0];
            if at.iter().any(|&p| p >= rows) {
                return Err(format!("a position is not below {rows}"));
            }
            t = super::index::take(cx, t, 0, &at);
        }
        // Of a head: [N or 1, 1, rows, pairs].
        let shape = cx.b.shape(t);
        let samples = shape.iter().product::<usize>() / (s[2] * dim / 2).max(1);
        if shape.iter().product::<usize>() != samples * s[2] * dim / 2 || !(samples == 1 || samples == s[0]) {
            return Err(format!("angles {shape:?} do not fit {s:?}"));
        }
        let t = cx.b.reshape(t, &[samples, 1, s[2], dim / 2]);
        Ok(cx.b.broadcast(t, &[s[0], s[1], s[2], dim / 2]))
    };
    let (cos, sin) = (angles(cx, 1)?, angles(cx, 2)?);
    let part = |cx: &mut Cx<'_, '_, '_>, start: usize, step: usize, n: usize| {
        let shape = vec![s[0], s[1], s[2], n];
        cx.b.slice(x, Slice { starts: vec![0, 0, 0, start], steps: vec![1, 1, 1, step], shape })
    };
    let half = dim / 2;
    let (a, b) = if interleaved {
        (part(cx, 0, 2, half), part(cx, 1, 2, half))
    } else {
        (part(cx, 0, 1, half), part(cx, half, 1, half))
    };
    let product = |cx: &mut Cx<'_, '_, '_>, x, y| cx.b.mul(x, y);
    let (ac, bs, bc, as_) = (product(cx, a, cos), product(cx, b, sin), product(cx, b, cos), product(cx, a, sin));
    let (low, high) = (cx.b.sub(ac, bs), cx.b.add(bc, as_));
    let turned = if interleaved {
        let apart = [s[0], s[1], s[2], half, 1];
        let (low, high) = (cx.b.reshape(low, &apart), cx.b.reshape(high, &apart));
        let pairs = cx.b.concat(&[low, high], 4);
        cx.b.reshape(pairs, &[s[0], s[1], s[2], dim])
    } else {
        cx.b.concat(&[low, high], 3)
    };
    let mut y = turned;
    if dim < s[3] {
        let rest = part(cx, dim, 1, s[3] - dim);
        y = cx.b.concat(&[turned, rest], 3);
    }
    if rank == 3 {
        y = cx.b.transpose(y, &[0, 2, 1, 3]);
        y = cx.b.reshape(y, &[s[0], s[2], s[1] * s[3]]);
    }
    real(y)
}
