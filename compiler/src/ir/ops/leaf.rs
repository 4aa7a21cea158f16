//! Leaves: values that exist before the step, and splats (one number in every element).
//!
//! The types of inputs, variables and constants are held by the graph, so their shape rule is applied
//! there; see [`crate::ir::Builder`].

use slrc_plan::Dims;

use crate::ir::graph::{ConstId, InputId, NodeId, ScalarId, VarId};
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::arity;
use crate::ir::tensor::Tensor;
use crate::ir::types::{Number, Type};

macro_rules! table_leaf {
    ($t:ty, $name:literal) => {
        impl Rule for $t {
            fn name(&self) -> &'static str {
                $name
            }
            fn class(&self) -> Class {
                Class::Leaf
            }
            fn attributes(&self) -> Attributes {
                vec![("index", self.0.to_string())]
            }
            fn infer(&self, _: &[&Type]) -> Result<Type, String> {
                Err(concat!("the type of a ", $name, " is held by the graph").into())
            }
            fn eval(&self, _: &[&Tensor], _: &Type) -> Tensor {
                unreachable!(concat!("the interpreter is given the values of ", $name, " nodes"))
            }
            fn vjp(&self, _: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
                Vec::new()
            }
            fn jvp(&self, _: &mut Jvp<'_, '_>) -> Option<NodeId> {
                None
            }
        }
    };
}

table_leaf!(InputId, "input");
table_leaf!(VarId, "variable");
table_leaf!(ConstId, "constant");
table_leaf!(ScalarId, "step-scalar");

/// `result[i] = value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Splat {
    /// Every element.
    pub value: Number,
    /// Shape of the result.
    pub shape: Vec<usize>,
}

impl Splat {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Splat, String> {
        Ok(Splat { value: Number(a.get("value")?), shape: a.get::<Dims>("shape")?.0 })
    }
}

impl Rule for Splat {
    fn name(&self) -> &'static str {
        "splat"
    }
    fn class(&self) -> Class {
        Class::Leaf
    }
    fn attributes(&self) -> Attributes {
        vec![("value", self.value.to_string()), ("shape", Dims(self.shape.clone()).to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 0)?;
        Ok(Type::f32(self.shape.clone()))
    }
    fn eval(&self, _: &[&Tensor], _: &Type) -> Tensor {
        Tensor::full(self.shape.clone(), self.value.0)
    }
    fn vjp(&self, _: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        Vec::new()
    }
    fn jvp(&self, _: &mut Jvp<'_, '_>) -> Option<NodeId> {
        None
    }
}
