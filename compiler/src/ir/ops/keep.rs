//! What is kept in memory where it would otherwise be computed whenever it is used.

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::arity;
use crate::ir::tensor::Tensor;
use crate::ir::types::Type;

/// `result = x`, in memory.
///
/// Reason for an IR op: fusion keeps what moves the fewest bytes, but knows nothing of how long a tensor then lives.
/// And equal nodes are one: a value that is to be computed a second time, rather than kept, must be made of something
/// else than the first time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keep {
    /// Whether what is computed from it must not be computed earlier than this node: it is kept for that.
    pub later: bool,
}

impl Keep {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Keep, String> {
        Ok(Keep { later: a.get("later")? })
    }
}

impl Rule for Keep {
    fn name(&self) -> &'static str {
        "keep"
    }
    fn class(&self) -> Class {
        Class::View
    }
    fn attributes(&self) -> Attributes {
        vec![("later", self.later.to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        Ok(operands[0].clone())
    }
    fn eval(&self, operands: &[&Tensor], _: &Type) -> Tensor {
        operands[0].clone()
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![Some(cx.upstream)]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        cx.tangents[0]
    }
}
