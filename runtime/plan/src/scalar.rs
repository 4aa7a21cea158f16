//! The table of scalar functions: everything a fused region can compute element by element.
//!
//! One row a function. The compiler's IR, the plan's statements and every device use these names; a
//! device that misses one does not compile, because each matches exhaustively.

use std::fmt;
use std::str::FromStr;

/// Which values a scalar function yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultKind {
    /// A real number, f32 on devices.
    Number,
    /// 0 or 1, stored as one byte.
    Flag,
}

macro_rules! scalar_functions {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal, $arity:literal, $kind:ident; )*) => {
        /// A scalar function of one, two or three arguments.
        ///
        /// Flags enter arithmetic as 0.0 and 1.0.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ScalarFn { $( $(#[$doc])* $variant, )* }

        impl ScalarFn {
            /// Every function, in table order.
            pub const ALL: &'static [ScalarFn] = &[ $( ScalarFn::$variant, )* ];

            /// The name used in plans and in IR text.
            pub fn name(self) -> &'static str {
                match self { $( ScalarFn::$variant => $name, )* }
            }

            /// Number of arguments.
            pub fn arity(self) -> usize {
                match self { $( ScalarFn::$variant => $arity, )* }
            }

            /// Number or flag.
            pub fn result(self) -> ResultKind {
                match self { $( ScalarFn::$variant => ResultKind::$kind, )* }
            }
        }
    };
}

scalar_functions! {
    /// `a`, as a number: a flag or an integer becomes 0.0, 1.0, 2.0 ...
    Copy = "copy", 1, Number;
    /// `-a`
    Neg = "neg", 1, Number;
    /// `|a|`
    Abs = "abs", 1, Number;
    /// -1, 0 or 1
    Sign = "sign", 1, Number;
    /// largest integer not above `a`
    Floor = "floor", 1, Number;
    /// `e^a`
    Exp = "exp", 1, Number;
    /// natural logarithm
    Log = "log", 1, Number;
    /// square root
    Sqrt = "sqrt", 1, Number;
    /// `1 / sqrt(a)`
    Rsqrt = "rsqrt", 1, Number;
    /// `1 / a`
    Recip = "recip", 1, Number;
    /// hyperbolic tangent
    Tanh = "tanh", 1, Number;
    /// `1 / (1 + e^-a)`
    Sigmoid = "sigmoid", 1, Number;
    /// error function, `2/sqrt(pi) * integral of e^(-t^2) from 0 to a`
    Erf = "erf", 1, Number;
    /// sine, radians
    Sin = "sin", 1, Number;
    /// arc tangent, in radians
    Atan = "atan", 1, Number;
    /// cosine, radians
    Cos = "cos", 1, Number;
    /// `1 - a` on flags
    Not = "not", 1, Flag;
    /// `a + b`
    Add = "add", 2, Number;
    /// `a - b`
    Sub = "sub", 2, Number;
    /// `a * b`
    Mul = "mul", 2, Number;
    /// `a / b`
    Div = "div", 2, Number;
    /// `a` raised to `b`, as C's powf
    Pow = "pow", 2, Number;
    /// `a < b`
    Lt = "lt", 2, Flag;
    /// `a <= b`
    Le = "le", 2, Flag;
    /// `a == b`
    Eq = "eq", 2, Flag;
    /// both flags set
    And = "and", 2, Flag;
    /// either flag set
    Or = "or", 2, Flag;
    /// `b` where flag `a` is set, else `c`
    Select = "select", 3, Number;
}

impl fmt::Display for ScalarFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ScalarFn {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        ScalarFn::ALL
            .iter()
            .copied()
            .find(|f| f.name() == s)
            .ok_or_else(|| format!("`{s}` is not a scalar function; known: {}", known()))
    }
}

fn known() -> String {
    ScalarFn::ALL.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse() {
        for &f in ScalarFn::ALL {
            assert_eq!(f.name().parse::<ScalarFn>(), Ok(f));
            assert!((1..=3).contains(&f.arity()));
        }
        assert!("relu".parse::<ScalarFn>().is_err());
    }
}
