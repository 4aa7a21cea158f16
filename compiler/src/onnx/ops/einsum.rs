//! Einstein summation, as products of matrices.

use crate::ir::graph::NodeId;
use crate::ir::types::DType;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] =
    &[Entry { op: "Einsum", note: "two operands at a time, from the left", convert: einsum }];

type R = Result<Vec<Out>, String>;

/// A value whose dimensions have labels.
struct Term {
    x: NodeId,
    labels: Vec<char>,
}

/// Labels of the dimensions an ellipsis stands for, counted from the last: no letter of an equation.
fn hidden(from_last: usize) -> char {
    char::from_u32(1 + from_last as u32).unwrap_or('\u{1}')
}

/// Labels of an operand or the result; an ellipsis stands for `dims` dimensions.
fn labels(text: &str, dims: impl Fn(usize) -> Option<usize>) -> Result<Vec<char>, String> {
    let bad = || format!("`{text}` is no term of an equation");
    let (before, after) = text.split_once("...").map_or((text, None), |(a, b)| (a, Some(b)));
    let named = before.chars().chain(after.unwrap_or("").chars());
    if named.clone().any(|c| !c.is_ascii_alphabetic()) {
        return Err(bad());
    }
    let count = named.count();
    let mut out: Vec<char> = before.chars().collect();
    if let Some(after) = after {
        let n = dims(count).filter(|&n| n < 16).ok_or_else(bad)?;
        out.extend((0..n).rev().map(hidden));
        out.extend(after.chars());
    }
    Ok(out)
}

fn einsum(cx: &mut Cx<'_, '_, '_>) -> R {
    let equation: String = cx.string("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = equation.split_once("->").map_or((equation.as_str(), None), |(l, r)| (l, Some(r)));
    let texts: Vec<&str> = left.split(',').collect();
    if texts.len() != cx.proto.input.len() {
        return Err(format!("equation `{equation}` has {} terms for {} inputs", texts.len(), cx.proto.input.len()));
    }
    let mut terms = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let x = cx.weight_or_real(i)?;
        let rank = cx.b.graph().ty(x).rank();
        let labels = labels(text, |named| rank.checked_sub(named))?;
        if labels.len() != rank {
            return Err(format!("`{text}` does not fit {rank} dimensions"));
        }
        terms.push(diagonal(cx, Term { x, labels })?);
    }
    let hidden_dims = terms.iter().map(|t| t.labels.iter().filter(|c| c.is_control()).count()).max().unwrap_or(0);
    let result = match right {
        Some(text) => labels(text, |_| Some(hidden_dims))?,
        None => {
            // Hidden dimensions, then labels that occur once, in alphabetical order.
            let mut once: Vec<char> = ('A'..='z').filter(|c| left.matches(*c).count() == 1).collect();
            once.retain(|c| c.is_ascii_alphabetic());
            (0..hidden_dims).rev().map(hidden).chain(once).collect()
        }
    };
    let mut rest = terms.into_iter();
    let mut all = rest.next().ok_or("an equation without terms")?;
    let mut waiting: Vec<Term> = rest.collect();
    while !waiting.is_empty() {
        let next = waiting.remove(0);
        let kept = |c: char| result.contains(&c) || waiting.iter().any(|t| t.labels.contains(&c));
        all = contract(cx, all, next, kept)?;
    }
    let all = summed(cx, all, |c| result.contains(&c));
    let order: Vec<usize> = result
        .iter()
        .map(|c| all.labels.iter().position(|l| l == c))
        .collect::<Option<_>>()
        .ok_or("a label is not defined")?;
    if order.len() != all.labels.len() {
        return Err("a label of the result repeats".into());
    }
    real(cx.b.transpose(all.x, &order))
}

/// A label that repeats within a term: its diagonal.
fn diagonal(cx: &mut Cx<'_, '_, '_>, t: Term) -> Result<Term, String> {
    let Term { mut x, mut labels } = t;
    while let Some((a, b)) = repeated(&labels) {
        let s = cx.b.shape(x);
        if s[a] != s[b] {
            return Err(format!("a diagonal of {} x {} elements", s[a], s[b]));
        }
        let mut order: Vec<usize> = vec![a, b];
        order.extend((0..s.len()).filter(|d| *d != a && *d != b));
        let front = cx.b.transpose(x, &order);
        let others: Vec<usize> = order[2..].iter().map(|&d| s[d]).collect();
        let flat = cx.b.reshape(front, &[s[a] * s[a], others.iter().product()]);
        let index = cx.table(DType::I32, &[s[a]], |i| (i * (s[a] + 1)) as f64)?;
        let rows = cx.b.gather(flat, index);
        x = cx.b.reshape(rows, &[&[s[a]], &others[..]].concat());
        labels = order[1..].iter().map(|&d| labels[d]).collect();
    }
    Ok(Term { x, labels })
}

fn repeated(labels: &[char]) -> Option<(usize, usize)> {
    (0..labels.len()).find_map(|b| labels[..b].iter().position(|l| *l == labels[b]).map(|a| (a, b)))
}

/// Sums the labels that are not kept.
fn summed(cx: &mut Cx<'_, '_, '_>, t: Term, kept: impl Fn(char) -> bool) -> Term {
    let axes: Vec<usize> = (0..t.labels.len()).filter(|&d| !kept(t.labels[d])).collect();
    if axes.is_empty() {
        return t;
    }
    let s = cx.b.shape(t.x);
    let sum = cx.b.sum(t.x, &axes);
    let left: Vec<usize> = (0..s.len()).filter(|d| !axes.contains(d)).collect();
    let x = cx.b.reshape(sum, &left.iter().map(|&d| s[d]).collect::<Vec<_>>());
    Term { x, labels: left.iter().map(|&d| t.labels[d]).collect() }
}

/// One product of matrices: labels of both terms are batches where they are kept, else contracted.
fn contract(cx: &mut Cx<'_, '_, '_>, a: Term, b: Term, kept: impl Fn(char) -> bool) -> Result<Term, String> {
    let a = summed(cx, a, |c| kept(c) || b.labels.contains(&c));
    let b = summed(cx, b, |c| kept(c) || a.labels.contains(&c));
    let both: Vec<char> = a.labels.iter().copied().filter(|c| b.labels.contains(c)).collect();
    let extent = |cx: &Cx<'_, '_, '_>, t: &Term, c: char| {
        t.labels.iter().position(|l| *l == c).map_or(1, |d| cx.b.shape(t.x)[d])
    };
    for &c in &both {
        let (x, y) = (extent(cx, &a, c), extent(cx, &b, c));
        if x != y && x != 1 && y != 1 {
            return Err(format!("label {c} has {x} elements here and {y} there"));
        }
    }
    let wide = |cx: &mut Cx<'_, '_, '_>, t: &Term, other: &Term| {
        let whole = |&c: &char| match extent(cx, t, c) {
            1 if both.contains(&c) => extent(cx, other, c),
            n => n,
        };
        let shape: Vec<usize> = t.labels.iter().map(whole).collect();
        let x = cx.b.broadcast(t.x, &shape);
        Term { x, labels: t.labels.clone() }
    };
    let (a, b) = (wide(cx, &a, &b), wide(cx, &b, &a));
    let batch: Vec<char> = both.iter().copied().filter(|&c| kept(c)).collect();
    let inner: Vec<char> = both.iter().copied().filter(|&c| !kept(c)).collect();
    let own = |t: &Term| t.labels.iter().copied().filter(|c| !both.contains(c)).collect::<Vec<char>>();
    let (rows, cols) = (own(&a), own(&b));
    let size = |cx: &Cx<'_, '_, '_>, t: &Term, of: &[char]| of.iter().map(|&c| extent(cx, t, c)).product::<usize>();
    let matrix = |cx: &mut Cx<'_, '_, '_>, t: &Term, first: &[char], second: &[char]| {
        let order: Vec<usize> =
            [&batch[..], first, second].concat().iter().filter_map(|c| t.labels.iter().position(|l| l == c)).collect();
        let x = cx.b.transpose(t.x, &order);
        let shape = [size(cx, t, &batch), size(cx, t, first), size(cx, t, second)];
        cx.b.reshape(x, &shape)
    };
    let (x, y) = (matrix(cx, &a, &rows, &inner), matrix(cx, &b, &inner, &cols));
    let product = cx.b.matmul(x, y);
    let shape: Vec<usize> =
        batch.iter().chain(&rows).map(|&c| extent(cx, &a, c)).chain(cols.iter().map(|&c| extent(cx, &b, c))).collect();
    let x = cx.b.reshape(product, &shape);
    Ok(Term { x, labels: [batch, rows, cols].concat() })
}
