//! Ops that only move elements. All are linear: the directional derivative applies the op to the direction.

use slrc_plan::Dims;

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::{List, arity};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Type;

/// Repeats dimensions of extent 1: `result[i] = x[i with those dimensions 0]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broadcast {
    /// Shape of the result; same rank as the operand.
    pub shape: Vec<usize>,
}

impl Broadcast {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Broadcast, String> {
        Ok(Broadcast { shape: a.get::<Dims>("shape")?.0 })
    }
}

/// Dimensions along which `from` repeats to become `to`.
pub(crate) fn repeated(from: &[usize], to: &[usize]) -> Vec<usize> {
    (0..to.len()).filter(|&d| from[d] == 1 && to[d] != 1).collect()
}

impl Rule for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }
    fn class(&self) -> Class {
        Class::View
    }
    fn attributes(&self) -> Attributes {
        vec![("shape", Dims(self.shape.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        let from = &operands[0].shape;
        if from.len() != self.shape.len() || from.iter().zip(&self.shape).any(|(&f, &t)| f != t && f != 1) {
            return Err(format!("{} does not broadcast to {}", operands[0], Dims(self.shape.clone())));
        }
        Ok(Type::new(operands[0].dtype, self.shape.clone()))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let x = operands[0];
        Tensor::from_fn(ty.shape.clone(), |i| {
            let from: Vec<usize> = i.iter().zip(&x.shape).map(|(&i, &e)| if e == 1 { 0 } else { i }).collect();
            x.at(&from)
        })
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let axes = repeated(&cx.b.shape(cx.operands[0]), &self.shape);
        vec![Some(cx.b.sum(cx.upstream, &axes))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.broadcast(t, &self.shape))
    }
}

/// Same elements in row-major order, another shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reshape {
    /// Shape of the result.
    pub shape: Vec<usize>,
}

impl Reshape {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Reshape, String> {
        Ok(Reshape { shape: a.get::<Dims>("shape")?.0 })
    }
}

impl Rule for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn class(&self) -> Class {
        Class::View
    }
    fn attributes(&self) -> Attributes {
        vec![("shape", Dims(self.shape.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        let ty = Type::new(operands[0].dtype, self.shape.clone());
        if ty.count() != operands[0].count() {
            return Err(format!("{} cannot be reshaped to {}", operands[0], Dims(self.shape.clone())));
        }
        Ok(ty)
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        Tensor::new(ty.shape.clone(), operands[0].data.clone())
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let shape = cx.b.shape(cx.operands[0]);
        vec![Some(cx.b.reshape(cx.upstream, &shape))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.reshape(t, &self.shape))
    }
}

/// `result` dimension `d` is operand dimension `permutation[d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transpose {
    /// Operand dimension of each result dimension.
    pub permutation: Vec<usize>,
}

impl Transpose {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Transpose, String> {
        Ok(Transpose { permutation: a.get::<List>("permutation")?.0 })
    }
}

/// The permutation that undoes `p`.
pub(crate) fn inverse(p: &[usize]) -> Vec<usize> {
    let mut q = vec![0; p.len()];
    for (i, &x) in p.iter().enumerate() {
        q[x] = i;
    }
    q
}

impl Rule for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }
    fn class(&self) -> Class {
        Class::View
    }
    fn attributes(&self) -> Attributes {
        vec![("permutation", List(self.permutation.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        let mut sorted = self.permutation.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..operands[0].rank()) {
            return Err(format!("{:?} does not permute the dimensions of {}", self.permutation, operands[0]));
        }
        let shape: Vec<usize> = self.permutation.iter().map(|&p| operands[0].shape[p]).collect();
        Ok(Type::new(operands[0].dtype, shape))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let mut from = vec![0; ty.rank()];
        Tensor::from_fn(ty.shape.clone(), |i| {
            for (d, &p) in self.permutation.iter().enumerate() {
                from[p] = i[d];
            }
            operands[0].at(&from)
        })
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![Some(cx.b.transpose(cx.upstream, &inverse(&self.permutation)))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.transpose(t, &self.permutation))
    }
}

/// `result[i] = x[starts + i * steps]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// First element of each dimension.
    pub starts: Vec<usize>,
    /// Distance between elements of each dimension, at least 1.
    pub steps: Vec<usize>,
    /// Extents of the result.
    pub shape: Vec<usize>,
}

impl Slice {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Slice, String> {
        Ok(Slice {
            starts: a.get::<List>("starts")?.0,
            steps: a.get::<List>("steps")?.0,
            shape: a.get::<Dims>("shape")?.0,
        })
    }
}

impl Rule for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn class(&self) -> Class {
        Class::View
    }
    fn attributes(&self) -> Attributes {
        vec![
            ("starts", List(self.starts.clone()).to_string()),
            ("steps", List(self.steps.clone()).to_string()),
            ("shape", Dims(self.shape.clone()).to_string()),
        ]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        let x = operands[0];
        if [&self.starts, &self.steps, &self.shape].iter().any(|v| v.len() != x.rank()) || self.steps.contains(&0) {
            return Err(format!("a slice of {x} needs a start, a step and an extent for each dimension"));
        }
        for d in 0..x.rank() {
            let last = self.shape[d].saturating_sub(1).saturating_mul(self.steps[d]).saturating_add(self.starts[d]);
            if self.shape[d] > 0 && last >= x.shape[d] {
                return Err(format!("slice ends at {last} in dimension {d} of {x}"));
            }
        }
        Ok(Type::new(x.dtype, self.shape.clone()))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let mut from = vec![0; ty.rank()];
        Tensor::from_fn(ty.shape.clone(), |i| {
            for d in 0..i.len() {
                from[d] = self.starts[d] + i[d] * self.steps[d];
            }
            operands[0].at(&from)
        })
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let full = cx.b.shape(cx.operands[0]);
        let interior: Vec<usize> = self.steps.iter().map(|s| s - 1).collect();
        let high = (0..full.len())
            .map(|d| match self.shape[d] {
                0 => full[d] - self.starts[d],
                n => full[d] - self.starts[d] - ((n - 1) * self.steps[d] + 1),
            })
            .collect();
        vec![Some(cx.b.pad(cx.upstream, Pad { low: self.starts.clone(), high, interior }))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.slice(t, self.clone()))
    }
}

/// Surrounds `x` with zeros: `low` before, `high` after and `interior` between neighbours, per dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pad {
    /// Zeros before the first element of each dimension.
    pub low: Vec<usize>,
    /// Zeros after the last.
    pub high: Vec<usize>,
    /// Zeros between neighbours.
    pub interior: Vec<usize>,
}

impl Pad {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Pad, String> {
        Ok(Pad { low: a.get::<List>("low")?.0, high: a.get::<List>("high")?.0, interior: a.get::<List>("interior")?.0 })
    }

    /// The slice of the padded tensor that is the original.
    pub(crate) fn hole(&self, shape: &[usize]) -> Slice {
        Slice { starts: self.low.clone(), steps: self.interior.iter().map(|i| i + 1).collect(), shape: shape.to_vec() }
    }
}

impl Rule for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        vec![
            ("low", List(self.low.clone()).to_string()),
            ("high", List(self.high.clone()).to_string()),
            ("interior", List(self.interior.clone()).to_string()),
        ]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        let x = operands[0];
        if [&self.low, &self.high, &self.interior].iter().any(|v| v.len() != x.rank()) {
            return Err(format!("padding {x} needs three numbers for each dimension"));
        }
        let shape = (0..x.rank())
            .map(|d| {
                let inner = x.shape[d] + x.shape[d].saturating_sub(1) * self.interior[d];
                self.low[d] + inner + self.high[d]
            })
            .collect::<Vec<_>>();
        Ok(Type::new(x.dtype, shape))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let mut out = Tensor::full(ty.shape.clone(), 0.0);
        let mut to = vec![0; ty.rank()];
        for_each_index(&operands[0].shape, |i| {
            for d in 0..i.len() {
                to[d] = self.low[d] + i[d] * (self.interior[d] + 1);
            }
            let at = out.position(&to);
            out.data[at] = operands[0].at(i);
        });
        out
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let shape = cx.b.shape(cx.operands[0]);
        vec![Some(cx.b.slice(cx.upstream, self.hole(&shape)))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.pad(t, self.clone()))
    }
}

/// Operands one after the other along `axis`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Concat {
    /// The dimension that grows.
    pub axis: usize,
}

impl Concat {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Concat, String> {
        Ok(Concat { axis: a.get("axis")? })
    }
}

impl Rule for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        vec![("axis", self.axis.to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        let first = operands.first().ok_or("needs at least one operand")?;
        if self.axis >= first.rank() {
            return Err(format!("{first} has no dimension {}", self.axis));
        }
        let mut shape = first.shape.clone();
        for t in &operands[1..] {
            let fits = t.dtype == first.dtype
                && t.rank() == first.rank()
                && (0..t.rank()).all(|d| d == self.axis || t.shape[d] == first.shape[d]);
            if !fits {
                return Err(format!("{first} and {t} do not join along dimension {}", self.axis));
            }
            shape[self.axis] += t.shape[self.axis];
        }
        Ok(Type::new(first.dtype, shape))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let mut out = Tensor::full(ty.shape.clone(), 0.0);
        let mut start = 0;
        for x in operands {
            for_each_index(&x.shape, |i| {
                let mut to = i.to_vec();
                to[self.axis] += start;
                let at = out.position(&to);
                out.data[at] = x.at(i);
            });
            start += x.shape[self.axis];
        }
        out
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let mut start = 0;
        let mut out = Vec::new();
        for &o in &cx.operands {
            let shape = cx.b.shape(o);
            let mut starts = vec![0; shape.len()];
            starts[self.axis] = start;
            start += shape[self.axis];
            let real = cx.b.graph().ty(o).is_real();
            let steps = vec![1; shape.len()];
            out.push(real.then(|| cx.b.slice(cx.upstream, Slice { starts, steps, shape })));
        }
        out
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        if cx.tangents.iter().all(Option::is_none) {
            return None;
        }
        let parts: Vec<NodeId> =
            (0..cx.operands.len()).map(|i| cx.tangents[i].unwrap_or_else(|| cx.b.zeros_like(cx.operands[i]))).collect();
        Some(cx.b.concat(&parts, self.axis))
    }
}
