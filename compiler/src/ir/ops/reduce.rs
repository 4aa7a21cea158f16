//! Reductions. Reduced dimensions stay, with extent 1.

use slrc_plan::scalar::ScalarFn;
use slrc_plan::statement::Combine;

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::{List, arity, dtype};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::{DType, Type};

/// `result[kept] = combine over reduced of x[kept, reduced]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reduce {
    /// Sum or maximum.
    pub combine: Combine,
    /// Reduced dimensions, ascending.
    pub axes: Vec<usize>,
}

impl Reduce {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Reduce, String> {
        let name: String = a.get("combine")?;
        let combine = Combine::ALL.iter().find(|c| c.name() == name).ok_or(format!("`{name}` combines nothing"))?;
        Ok(Reduce { combine: *combine, axes: a.get::<List>("axes")?.0 })
    }
}

fn reduced_type(axes: &[usize], operands: &[&Type]) -> Result<Type, String> {
    arity(operands, 1)?;
    dtype(operands[0], DType::F32)?;
    let mut shape = operands[0].shape.clone();
    for (i, &a) in axes.iter().enumerate() {
        if a >= shape.len() || (i > 0 && axes[i - 1] >= a) {
            return Err(format!("axes {axes:?} are not ascending dimensions of {}", operands[0]));
        }
        shape[a] = 1;
    }
    Ok(Type::f32(shape))
}

fn fold(x: &Tensor, axes: &[usize], ty: &Type, start: f64, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let mut out = Tensor::full(ty.shape.clone(), start);
    let mut kept = Vec::new();
    for_each_index(&x.shape, |i| {
        kept.clear();
        kept.extend(i.iter().enumerate().map(|(d, &v)| if axes.contains(&d) { 0 } else { v }));
        let at = out.position(&kept);
        out.data[at] = f(out.data[at], x.at(i));
    });
    out
}

impl Rule for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }
    fn class(&self) -> Class {
        Class::Reduction
    }
    fn attributes(&self) -> Attributes {
        vec![("combine", self.combine.name().to_string()), ("axes", List(self.axes.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        reduced_type(&self.axes, operands)
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        match self.combine {
            Combine::Sum => fold(operands[0], &self.axes, ty, 0.0, |a, b| a + b),
            Combine::Max => fold(operands[0], &self.axes, ty, f64::NEG_INFINITY, f64::max),
        }
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let shape = cx.b.shape(cx.operands[0]);
        match self.combine {
            Combine::Sum => vec![Some(cx.b.broadcast(cx.upstream, &shape))],
            // The gradient is shared equally by the elements that attain the maximum.
            Combine::Max => {
                let (share, _) = max_share(cx.b, cx.operands[0], cx.node, &self.axes);
                let up = cx.b.broadcast(cx.upstream, &shape);
                vec![Some(cx.b.mul(share, up))]
            }
        }
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        match self.combine {
            Combine::Sum => Some(cx.b.sum(t, &self.axes)),
            Combine::Max => {
                let (share, _) = max_share(cx.b, cx.operands[0], cx.node, &self.axes);
                let weighted = cx.b.mul(share, t);
                Some(cx.b.sum(weighted, &self.axes))
            }
        }
    }
}

/// Per element: 1/n where it is one of the n elements that attain the maximum, else 0; and the flags.
fn max_share(b: &mut crate::ir::Builder<'_>, x: NodeId, max: NodeId, axes: &[usize]) -> (NodeId, NodeId) {
    let shape = b.shape(x);
    let wide = b.broadcast(max, &shape);
    let flag = b.map(ScalarFn::Eq, &[x, wide]);
    let one = b.map(ScalarFn::Copy, &[flag]);
    let count = b.sum(one, axes);
    let wide_count = b.broadcast(count, &shape);
    (b.div(one, wide_count), flag)
}

/// `result[kept] = log(sum over reduced of e^x[kept, reduced])`, computed as `m + log(sum e^(x - m))` with `m` the
/// maximum.
///
/// Reason for an IR op: softmax and cross-entropy written with it keep one tensor for the backward pass, since
/// `softmax = e^(x - lse)` is its own derivative's factor; built from exp and sum they would keep two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogSumExp {
    /// Reduced dimensions, ascending.
    pub axes: Vec<usize>,
}

impl LogSumExp {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<LogSumExp, String> {
        Ok(LogSumExp { axes: a.get::<List>("axes")?.0 })
    }
}

/// `e^(x - lse)`.
fn softmax_of(b: &mut crate::ir::Builder<'_>, x: NodeId, lse: NodeId) -> NodeId {
    let shape = b.shape(x);
    let wide = b.broadcast(lse, &shape);
    let shifted = b.sub(x, wide);
    b.map(ScalarFn::Exp, &[shifted])
}

impl Rule for LogSumExp {
    fn name(&self) -> &'static str {
        "log-sum-exp"
    }
    fn class(&self) -> Class {
        Class::Composite
    }
    fn attributes(&self) -> Attributes {
        vec![("axes", List(self.axes.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        reduced_type(&self.axes, operands)
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let x = operands[0];
        let max = fold(x, &self.axes, ty, f64::NEG_INFINITY, f64::max);
        let mut sum = Tensor::full(ty.shape.clone(), 0.0);
        let mut kept = Vec::new();
        for_each_index(&x.shape, |i| {
            kept.clear();
            kept.extend(i.iter().enumerate().map(|(d, &v)| if self.axes.contains(&d) { 0 } else { v }));
            let at = sum.position(&kept);
            sum.data[at] += (x.at(i) - max.data[at]).exp();
        });
        Tensor::new(ty.shape.clone(), max.data.iter().zip(&sum.data).map(|(m, s)| m + s.ln()).collect())
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let p = softmax_of(cx.b, cx.operands[0], cx.node);
        let shape = cx.b.shape(cx.operands[0]);
        let up = cx.b.broadcast(cx.upstream, &shape);
        vec![Some(cx.b.mul(p, up))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        let p = softmax_of(cx.b, cx.operands[0], cx.node);
        let weighted = cx.b.mul(p, t);
        Some(cx.b.sum(weighted, &self.axes))
    }
}
