//! Ops that a pass removes: the gradient barrier, the choice between training and inference, and what is known of a
//! number beforehand.

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::arity;
use crate::ir::tensor::Tensor;
use crate::ir::types::Type;

/// `result = x`, with no gradient: the boundary between two modules.
///
/// Reason for an IR op: isolation must be visible in the graph to be verified there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Detach;

impl Detach {
    pub(crate) fn parse(_: &AttributeReader<'_>) -> Result<Detach, String> {
        Ok(Detach)
    }
}

impl Rule for Detach {
    fn name(&self) -> &'static str {
        "detach"
    }
    fn class(&self) -> Class {
        Class::Composite
    }
    fn attributes(&self) -> Attributes {
        Vec::new()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        Ok(operands[0].clone())
    }
    fn eval(&self, operands: &[&Tensor], _: &Type) -> Tensor {
        operands[0].clone()
    }
    fn vjp(&self, _: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![None]
    }
    fn jvp(&self, _: &mut Jvp<'_, '_>) -> Option<NodeId> {
        None
    }
}

/// `result = train` in training, `eval` in inference: BatchNorm's statistics, dropout's mask.
///
/// Reason for an IR op: both programs come from one graph, so they cannot drift apart.
/// Outside a chosen mode it means `train`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModeSelect;

impl ModeSelect {
    pub(crate) fn parse(_: &AttributeReader<'_>) -> Result<ModeSelect, String> {
        Ok(ModeSelect)
    }
}

impl Rule for ModeSelect {
    fn name(&self) -> &'static str {
        "mode-select"
    }
    fn class(&self) -> Class {
        Class::Composite
    }
    fn attributes(&self) -> Attributes {
        Vec::new()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 2)?;
        if operands[0] != operands[1] {
            return Err(format!("both modes need one type, not {} and {}", operands[0], operands[1]));
        }
        Ok(operands[0].clone())
    }
    fn eval(&self, operands: &[&Tensor], _: &Type) -> Tensor {
        operands[0].clone()
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let zero = cx.b.zeros_like(cx.upstream);
        let train = cx.b.mode_select(cx.upstream, zero);
        let eval = cx.b.mode_select(zero, cx.upstream);
        vec![Some(train), Some(eval)]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let zero = cx.b.zeros_like(cx.node);
        let [train, eval] = [cx.tangents[0], cx.tangents[1]];
        (train.is_some() || eval.is_some()).then(|| cx.b.mode_select(train.unwrap_or(zero), eval.unwrap_or(zero)))
    }
}

/// `result = x`, which is expected to be near `about`: a batch's mean, and the running one.
///
/// Reason for an IR op: sums of squares about a number that is known beforehand need one pass, and which number that is
/// cannot be seen from the sums. Only rounding depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Near;

impl Near {
    pub(crate) fn parse(_: &AttributeReader<'_>) -> Result<Near, String> {
        Ok(Near)
    }
}

impl Rule for Near {
    fn name(&self) -> &'static str {
        "near"
    }
    fn class(&self) -> Class {
        Class::Composite
    }
    fn attributes(&self) -> Attributes {
        Vec::new()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 2)?;
        if operands[0] != operands[1] {
            return Err(format!("what is near {} is no {}", operands[1], operands[0]));
        }
        Ok(operands[0].clone())
    }
    fn eval(&self, operands: &[&Tensor], _: &Type) -> Tensor {
        operands[0].clone()
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![Some(cx.upstream), None]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        cx.tangents[0]
    }
}
