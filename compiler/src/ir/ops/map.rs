//! Elementwise functions: `result[i] = f(a[i], b[i], ..)`, operands of one shape.
//!
//! Derivatives are rows of one table, `partial`, used in both directions.

use slrc_plan::scalar::{ResultKind, ScalarFn};

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::arity;
use crate::ir::tensor::Tensor;
use crate::ir::types::{DType, Type};

/// A scalar function applied to every element.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Map(pub ScalarFn);

impl Map {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Map, String> {
        a.get("fn").map(Map)
    }
}

/// A derivative of a scalar function with respect to one argument.
enum Partial {
    /// Zero wherever it exists.
    Zero,
    /// A constant.
    Constant(f64),
    /// An expression.
    Value(NodeId),
    /// One where the flag has this value, zero elsewhere.
    Where(NodeId, bool),
}

impl Rule for Map {
    fn name(&self) -> &'static str {
        "map"
    }
    fn class(&self) -> Class {
        Class::Pointwise
    }
    fn attributes(&self) -> Attributes {
        vec![("fn", self.0.name().to_string())]
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, self.0.arity())?;
        if let Some(other) = operands.iter().find(|t| t.shape != operands[0].shape) {
            return Err(format!("`{}` needs operands of one shape, not {} and {other}", self.0, operands[0]));
        }
        let dtype = match self.0.result() {
            ResultKind::Number => DType::F32,
            ResultKind::Flag => DType::U8,
        };
        Ok(Type::new(dtype, operands[0].shape.clone()))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let n = ty.count();
        let data = (0..n)
            .map(|i| {
                let arg = |k: usize| operands.get(k).map_or(0.0, |t| t.data[i]);
                scalar_f64(self.0, arg(0), arg(1), arg(2))
            })
            .collect();
        Tensor::new(ty.shape.clone(), data)
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        (0..cx.operands.len())
            .map(|i| {
                let p = partial(self.0, i, cx.b, &cx.operands, cx.node);
                times(cx.b, p, cx.upstream)
            })
            .collect()
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let terms = (0..cx.operands.len())
            .map(|i| {
                let t = cx.tangents[i]?;
                let p = partial(self.0, i, cx.b, &cx.operands, cx.node);
                times(cx.b, p, t)
            })
            .collect();
        cx.sum(terms)
    }
}

fn times(b: &mut Builder<'_>, p: Partial, g: NodeId) -> Option<NodeId> {
    match p {
        Partial::Zero => None,
        Partial::Constant(c) => Some(b.scale(g, c)),
        Partial::Value(v) => Some(b.mul(g, v)),
        Partial::Where(flag, true) => {
            let zero = b.zeros_like(g);
            Some(b.select(flag, g, zero))
        }
        Partial::Where(flag, false) => {
            let zero = b.zeros_like(g);
            Some(b.select(flag, zero, g))
        }
    }
}

/// d f / d argument `i`, at the operands `x` with result `y`.
fn partial(f: ScalarFn, i: usize, b: &mut Builder<'_>, x: &[NodeId], y: NodeId) -> Partial {
    use Partial::{Constant, Value, Where, Zero};
    if b.graph().is_discrete(x[i]) {
        return Zero;
    }
    match f {
        ScalarFn::Copy => Constant(1.0),
        ScalarFn::Neg => Constant(-1.0),
        // |a|' = sign(a)
        ScalarFn::Abs => Value(b.map(ScalarFn::Sign, &[x[0]])),
        ScalarFn::Sign | ScalarFn::Floor => Zero,
        ScalarFn::Exp => Value(y),
        ScalarFn::Log => Value(b.map(ScalarFn::Recip, &[x[0]])),
        // sqrt(a)' = 1 / (2 sqrt(a))
        ScalarFn::Sqrt => {
            let r = b.map(ScalarFn::Recip, &[y]);
            Value(b.scale(r, 0.5))
        }
        // (a^-1/2)' = -1/2 a^-3/2 = -y^3 / 2
        ScalarFn::Rsqrt => {
            let square = b.mul(y, y);
            let cube = b.mul(square, y);
            Value(b.scale(cube, -0.5))
        }
        // (1/a)' = -y^2
        ScalarFn::Recip => {
            let square = b.mul(y, y);
            Value(b.neg(square))
        }
        // tanh' = 1 - y^2
        ScalarFn::Tanh => {
            let square = b.mul(y, y);
            let one = b.splat_like(y, 1.0);
            Value(b.sub(one, square))
        }
        // sigmoid' = y (1 - y)
        ScalarFn::Sigmoid => {
            let one = b.splat_like(y, 1.0);
            let rest = b.sub(one, y);
            Value(b.mul(y, rest))
        }
        // erf'(a) = 2/sqrt(pi) e^(-a^2)
        ScalarFn::Erf => {
            let square = b.mul(x[0], x[0]);
            let minus = b.neg(square);
            let bell = b.map(ScalarFn::Exp, &[minus]);
            Value(b.scale(bell, std::f64::consts::FRAC_2_SQRT_PI))
        }
        ScalarFn::Sin => Value(b.map(ScalarFn::Cos, &[x[0]])),
        ScalarFn::Atan => {
            let square = b.mul(x[0], x[0]);
            let more = b.offset(square, 1.0);
            Value(b.map(ScalarFn::Recip, &[more]))
        }
        ScalarFn::Cos => {
            let s = b.map(ScalarFn::Sin, &[x[0]]);
            Value(b.neg(s))
        }
        ScalarFn::Add => Constant(1.0),
        ScalarFn::Sub => Constant(if i == 0 { 1.0 } else { -1.0 }),
        ScalarFn::Mul => {
            let other = b.number(x[1 - i]);
            Value(other)
        }
        // (a/c)' = 1/c, -y/c
        ScalarFn::Div => {
            let divisor = b.number(x[1]);
            if i == 0 {
                Value(b.map(ScalarFn::Recip, &[divisor]))
            } else {
                let q = b.div(y, divisor);
                Value(b.neg(q))
            }
        }
        // (a^p)' = p a^(p-1), y ln a
        ScalarFn::Pow => {
            if i == 0 {
                let p = b.number(x[1]);
                let one = b.splat_like(p, 1.0);
                let less = b.sub(p, one);
                let power = b.map(ScalarFn::Pow, &[x[0], less]);
                Value(b.mul(p, power))
            } else {
                let base = b.number(x[0]);
                let log = b.map(ScalarFn::Log, &[base]);
                Value(b.mul(y, log))
            }
        }
        ScalarFn::Select if i == 1 => Where(x[0], true),
        ScalarFn::Select if i == 2 => Where(x[0], false),
        ScalarFn::Select
        | ScalarFn::Not
        | ScalarFn::Lt
        | ScalarFn::Le
        | ScalarFn::Eq
        | ScalarFn::And
        | ScalarFn::Or => Zero,
    }
}

/// The function in f64; unused arguments are ignored.
pub fn scalar_f64(f: ScalarFn, a: f64, b: f64, c: f64) -> f64 {
    let flag = |x: bool| f64::from(u8::from(x));
    match f {
        ScalarFn::Copy => a,
        ScalarFn::Neg => -a,
        ScalarFn::Abs => a.abs(),
        ScalarFn::Sign => {
            if a > 0.0 {
                1.0
            } else if a < 0.0 {
                -1.0
            } else {
                a
            }
        }
        ScalarFn::Floor => a.floor(),
        ScalarFn::Exp => a.exp(),
        ScalarFn::Log => a.ln(),
        ScalarFn::Sqrt => a.sqrt(),
        ScalarFn::Rsqrt => 1.0 / a.sqrt(),
        ScalarFn::Recip => 1.0 / a,
        ScalarFn::Tanh => a.tanh(),
        ScalarFn::Sigmoid => 1.0 / (1.0 + (-a).exp()),
        ScalarFn::Erf => erf(a),
        ScalarFn::Sin => a.sin(),
        ScalarFn::Atan => a.atan(),
        ScalarFn::Cos => a.cos(),
        ScalarFn::Not => 1.0 - a,
        ScalarFn::Add => a + b,
        ScalarFn::Sub => a - b,
        ScalarFn::Mul => a * b,
        ScalarFn::Div => a / b,
        ScalarFn::Pow => a.powf(b),
        ScalarFn::Lt => flag(a < b),
        ScalarFn::Le => flag(a <= b),
        ScalarFn::Eq => flag(a == b),
        ScalarFn::And => flag(a != 0.0 && b != 0.0),
        ScalarFn::Or => flag(a != 0.0 || b != 0.0),
        ScalarFn::Select => {
            if a != 0.0 {
                b
            } else {
                c
            }
        }
    }
}

/// The error function to full f64 precision: its Taylor series near zero, Lentz's continued fraction for erfc beyond
/// (Abramowitz and Stegun, 7.1.5 and 7.1.14).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return (std::f64::consts::FRAC_2_SQRT_PI * sum).copysign(x);
    }
    if a > 6.0 {
        return 1f64.copysign(x);
    }
    let mut fraction = 0.0;
    for k in (1..=60).rev() {
        fraction = 0.5 * f64::from(k) / (a + fraction);
    }
    let erfc = (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt());
    (1.0 - erfc).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from tables of the error function (Abramowitz and Stegun, table 7.1).
    #[test]
    fn erf_matches_tables() {
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0), (3.0, 0.999_977_909_5)]
        {
            assert!((erf(x) - y).abs() < 1e-10, "{x}");
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((erf(2.4999999) - erf(2.5000001)).abs() < 1e-9);
    }
}
