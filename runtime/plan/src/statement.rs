//! One line of a fused region's body: `v3 = mul v1 0.5`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::scalar::ScalarFn;

/// How a reduction combines elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Combine {
    /// Sum, from 0.
    Sum,
    /// Largest, from negative infinity.
    Max,
}

impl Combine {
    /// Every way, in order.
    pub const ALL: &'static [Combine] = &[Combine::Sum, Combine::Max];

    /// The name in plans and IR text.
    pub fn name(self) -> &'static str {
        match self {
            Combine::Sum => "sum",
            Combine::Max => "max",
        }
    }
}

/// What a statement computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementOp {
    /// A scalar function of the arguments, element by element.
    Scalar(ScalarFn),
    /// A reduction of one argument over the region's reduced dimensions.
    Reduce(Combine),
}

/// An argument of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// The value of a load or an earlier statement.
    Value(String),
    /// A constant.
    Number(f32),
}

/// `name = op arg arg ..`; names begin with a letter, numbers do not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Statement {
    /// The value defined; unique within the region.
    pub name: String,
    /// What is computed.
    pub op: StatementOp,
    /// As many as the op takes.
    pub args: Vec<Arg>,
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arg::Value(v) => f.write_str(v),
            Arg::Number(x) if x.is_nan() => f.write_str("#nan"),
            Arg::Number(x) if *x == f32::INFINITY => f.write_str("#inf"),
            Arg::Number(x) if *x == f32::NEG_INFINITY => f.write_str("-#inf"),
            Arg::Number(x) => write!(f, "{x:?}"),
        }
    }
}

impl FromStr for Arg {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "#nan" => return Ok(Arg::Number(f32::NAN)),
            "#inf" => return Ok(Arg::Number(f32::INFINITY)),
            "-#inf" => return Ok(Arg::Number(f32::NEG_INFINITY)),
            _ => {}
        }
        if is_value_name(s) {
            return Ok(Arg::Value(s.to_string()));
        }
        s.parse::<f32>().map(Arg::Number).map_err(|_| format!("`{s}` is neither a value nor a number"))
    }
}

/// Whether `s` can name a value: a letter, then letters, digits or `_`.
pub fn is_value_name(s: &str) -> bool {
    s.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && s != "inf"
        && s != "nan"
        && s != "NaN"
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            StatementOp::Scalar(s) => s.name(),
            StatementOp::Reduce(c) => match c {
                Combine::Sum => "reduce-sum",
                Combine::Max => "reduce-max",
            },
        };
        write!(f, "{} = {op}", self.name)?;
        for a in &self.args {
            write!(f, " {a}")?;
        }
        Ok(())
    }
}

impl FromStr for Statement {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, rest) = s.split_once(" = ").ok_or_else(|| format!("`{s}` is not `name = op args`"))?;
        if !is_value_name(name) {
            return Err(format!("`{name}` cannot name a value"));
        }
        let mut words = rest.split_ascii_whitespace();
        let word = words.next().ok_or_else(|| format!("`{s}` has no op"))?;
        let op = match word {
            "reduce-sum" => StatementOp::Reduce(Combine::Sum),
            "reduce-max" => StatementOp::Reduce(Combine::Max),
            other => StatementOp::Scalar(other.parse()?),
        };
        let args = words.map(str::parse).collect::<Result<Vec<Arg>, _>>()?;
        let want = match op {
            StatementOp::Scalar(f) => f.arity(),
            StatementOp::Reduce(_) => 1,
        };
        if args.len() != want {
            return Err(format!("`{s}`: {word} takes {want} arguments, not {}", args.len()));
        }
        Ok(Statement { name: name.to_string(), op, args })
    }
}

impl From<Statement> for String {
    fn from(s: Statement) -> String {
        s.to_string()
    }
}

impl TryFrom<String> for Statement {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_round_trips() {
        for s in ["v0 = add a 1.5", "v1 = reduce-sum v0", "m = select f a -#inf", "n = mul a -1e-7"] {
            let parsed: Statement = s.parse().expect(s);
            assert_eq!(parsed.to_string(), s);
        }
        for bad in ["", "v0", "v0 = ", "v0 = add a", "0v = neg a", "v = frob a", "v = neg é"] {
            assert!(bad.parse::<Statement>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_number_survives(bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            let Ok(Arg::Number(y)) = Arg::Number(x).to_string().parse() else { panic!("{x} did not parse as a number") };
            prop_assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
        }
    }
}
