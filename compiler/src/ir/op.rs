//! The closed op set. One variant an op; one file a family of ops in [`crate::ir::ops`].
//!
//! Adding an op: write its rule in `ops/`, add the variant here, and follow the compile errors: the rule
//! trait has no default methods and every stage matches exhaustively. Most ONNX ops need no new IR op:
//! they are decompositions at import. A new one needs a reason, written at its definition.

use std::collections::BTreeMap;
use std::fmt;

use crate::ir::builder::Builder;
use crate::ir::graph::{ConstId, InputId, NodeId, ScalarId, VarId};
use crate::ir::ops::contract::{Conv, ConvInputGrad, ConvWeightGrad, MatMul};
use crate::ir::ops::index::{Gather, ScatterAdd};
use crate::ir::ops::keep::Keep;
use crate::ir::ops::map::Map;
use crate::ir::ops::mode::{Detach, ModeSelect, Near};
use crate::ir::ops::random::Random;
use crate::ir::ops::reduce::{LogSumExp, Reduce};
use crate::ir::ops::shape::{Broadcast, Concat, Pad, Reshape, Slice, Transpose};
use crate::ir::ops::window::{WindowMaxIndex, WindowSelect, WindowSpread, WindowSum, WindowUnselect};
use crate::ir::tensor::Tensor;
use crate::ir::types::{Number, Type};

/// How an op reaches a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Memory that exists before the step, or a number known at compile time.
    Leaf,
    /// Another way to look at its operand's memory; a copy only where the layout does not allow it.
    View,
    /// Element by element: fused into regions.
    Pointwise,
    /// Reduction: fused into regions.
    Reduction,
    /// A kernel of its own.
    Kernel,
    /// Rewritten by a pass before lowering.
    Composite,
}

/// The rules of an op. No defaults: forgetting one does not compile.
pub trait Rule {
    /// Name in IR text.
    fn name(&self) -> &'static str;
    /// How it reaches a kernel.
    fn class(&self) -> Class;
    /// Settings in IR text, in order.
    fn attributes(&self) -> Attributes;
    /// Type of the result, or what is wrong with the operands.
    fn infer(&self, operands: &[&Type]) -> Result<Type, String>;
    /// The result in f64, naively: the oracle. Operand types satisfy [`Rule::infer`].
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor;
    /// Contributions to the operands' gradients, as IR: entry `i` is `upstream * d result / d operand[i]` summed
    /// over the result, or `None` where the derivative is zero everywhere it exists.
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>>;
    /// Directional derivative of the result for the operands' directions, as IR; `None` if it is zero.
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId>;
}

/// What a gradient rule sees.
pub struct Vjp<'a, 'g> {
    /// Where to build.
    pub b: &'a mut Builder<'g>,
    /// The node being differentiated.
    pub node: NodeId,
    /// Its operands.
    pub operands: Vec<NodeId>,
    /// Gradient of the objective with respect to the node.
    pub upstream: NodeId,
}

/// What a directional-derivative rule sees.
pub struct Jvp<'a, 'g> {
    /// Where to build.
    pub b: &'a mut Builder<'g>,
    /// The node being differentiated.
    pub node: NodeId,
    /// Its operands.
    pub operands: Vec<NodeId>,
    /// Direction of each operand; `None` is zero.
    pub tangents: Vec<Option<NodeId>>,
}

impl Jvp<'_, '_> {
    /// The sum of the given terms, `None` if there are none.
    pub fn sum(&mut self, terms: Vec<Option<NodeId>>) -> Option<NodeId> {
        terms.into_iter().flatten().reduce(|a, b| self.b.add(a, b))
    }
}

/// Settings of an op in text form.
pub type Attributes = Vec<(&'static str, String)>;

/// Attribute values while an op is read from text.
pub struct AttributeReader<'a> {
    /// Values by name.
    pub values: BTreeMap<&'a str, &'a str>,
}

impl AttributeReader<'_> {
    /// Reads an attribute that must be there.
    pub fn get<T: std::str::FromStr>(&self, name: &str) -> Result<T, String> {
        let text = self.values.get(name).ok_or_else(|| format!("attribute `{name}` is missing"))?;
        text.parse().map_err(|_| format!("attribute `{name}` cannot be `{text}`"))
    }
}

macro_rules! ops {
    ($( $variant:ident($rule:ty) = $text:literal, $parse:expr; )*) => {
        /// An operation.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            $( #[doc = concat!("`", $text, "`, see [`", stringify!($rule), "`].")] $variant($rule), )*
        }

        impl Op {
            /// Names of all ops.
            pub const NAMES: &'static [&'static str] = &[ $( $text, )* ];

            /// The op's rules.
            pub fn rule(&self) -> &dyn Rule {
                match self { $( Op::$variant(r) => r, )* }
            }

            /// Reads an op from its text name and attributes.
            pub fn parse(name: &str, attributes: &AttributeReader<'_>) -> Result<Op, String> {
                $( if name == $text {
                    let parse: fn(&AttributeReader<'_>) -> Result<$rule, String> = $parse;
                    return parse(attributes).map(Op::$variant);
                } )*
                Err(format!("`{name}` is not an op"))
            }
        }

        $( impl From<$rule> for Op {
            fn from(r: $rule) -> Op { Op::$variant(r) }
        } )*
    };
}

ops! {
    Input(InputId) = "input", |a| a.get("index").map(InputId);
    Variable(VarId) = "variable", |a| a.get("index").map(VarId);
    Constant(ConstId) = "constant", |a| a.get("index").map(ConstId);
    StepScalar(ScalarId) = "step-scalar", |a| a.get("index").map(ScalarId);
    Splat(Splat) = "splat", Splat::parse;
    Random(Random) = "random", Random::parse;
    Map(Map) = "map", Map::parse;
    Reduce(Reduce) = "reduce", Reduce::parse;
    LogSumExp(LogSumExp) = "log-sum-exp", LogSumExp::parse;
    Broadcast(Broadcast) = "broadcast", Broadcast::parse;
    Reshape(Reshape) = "reshape", Reshape::parse;
    Transpose(Transpose) = "transpose", Transpose::parse;
    Slice(Slice) = "slice", Slice::parse;
    Pad(Pad) = "pad", Pad::parse;
    Concat(Concat) = "concat", Concat::parse;
    MatMul(MatMul) = "matmul", MatMul::parse;
    Conv(Conv) = "conv", Conv::parse;
    ConvInputGrad(ConvInputGrad) = "conv-input-grad", ConvInputGrad::parse;
    ConvWeightGrad(ConvWeightGrad) = "conv-weight-grad", ConvWeightGrad::parse;
    WindowMaxIndex(WindowMaxIndex) = "window-max-index", WindowMaxIndex::parse;
    WindowSelect(WindowSelect) = "window-select", WindowSelect::parse;
    WindowUnselect(WindowUnselect) = "window-unselect", WindowUnselect::parse;
    WindowSum(WindowSum) = "window-sum", WindowSum::parse;
    WindowSpread(WindowSpread) = "window-spread", WindowSpread::parse;
    Gather(Gather) = "gather", Gather::parse;
    ScatterAdd(ScatterAdd) = "scatter-add", ScatterAdd::parse;
    Keep(Keep) = "keep", Keep::parse;
    Detach(Detach) = "detach", Detach::parse;
    ModeSelect(ModeSelect) = "mode-select", ModeSelect::parse;
    Near(Near) = "near", Near::parse;
}

pub use crate::ir::ops::leaf::Splat;

impl Op {
    /// A constant of one value: the value, if this is one.
    pub fn splat(&self) -> Option<f64> {
        match self {
            Op::Splat(Splat { value: Number(v), .. }) => Some(*v),
            _ => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule().name())?;
        let attributes = self.rule().attributes();
        if !attributes.is_empty() {
            let list: Vec<String> = attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
            write!(f, "{{{}}}", list.join(" "))?;
        }
        Ok(())
    }
}
