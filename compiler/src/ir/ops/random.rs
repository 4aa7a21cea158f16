//! Random numbers.
//!
//! Reason for an IR op: dropout needs numbers that differ from step to step, are the same in every pass of one step
//! and the same on every device; that cannot be built from other ops.

use slrc_plan::Dims;

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::arity;
use crate::ir::tensor::Tensor;
use crate::ir::types::Type;

/// `result[i] = uniform(seed, step, stream, i)` in [0, 1); see [`slrc_plan::random`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Random {
    /// Which sequence.
    pub stream: u32,
    /// Shape of the result.
    pub shape: Vec<usize>,
}

impl Random {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Random, String> {
        Ok(Random { stream: a.get("stream")?, shape: a.get::<Dims>("shape")?.0 })
    }
}

impl Rule for Random {
    fn name(&self) -> &'static str {
        "random"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        vec![("stream", self.stream.to_string()), ("shape", Dims(self.shape.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 0)?;
        Ok(Type::f32(self.shape.clone()))
    }
    /// The numbers of seed 0 and step 0.
    fn eval(&self, _: &[&Tensor], ty: &Type) -> Tensor {
        let data = (0..ty.count()).map(|i| f64::from(slrc_plan::random::uniform(0, 0, self.stream, i))).collect();
        Tensor::new(self.shape.clone(), data)
    }
    fn vjp(&self, _: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        Vec::new()
    }
    fn jvp(&self, _: &mut Jvp<'_, '_>) -> Option<NodeId> {
        None
    }
}
