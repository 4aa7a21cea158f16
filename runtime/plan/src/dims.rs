//! Extents written as one word, `64x3x32x32`, so that a plan stays readable and diffs stay short.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A list of extents (or of per-dimension settings such as strides and pads), outermost first.
///
/// The text form joins the numbers with `x`; the empty list is written `scalar`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Dims(pub Vec<usize>);

impl Dims {
    /// Product of all extents; 1 for the empty list. `None` if it does not fit in `usize`.
    pub fn count(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |acc, &d| acc.checked_mul(d))
    }
}

impl std::ops::Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<Vec<usize>> for Dims {
    fn from(v: Vec<usize>) -> Self {
        Dims(v)
    }
}

impl From<&[usize]> for Dims {
    fn from(v: &[usize]) -> Self {
        Dims(v.to_vec())
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("scalar");
        }
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("x")?;
            }
            write!(f, "{d}")?;
        }
        Ok(())
    }
}

impl FromStr for Dims {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s == "scalar" {
            return Ok(Dims(Vec::new()));
        }
        s.split('x')
            .map(|p| p.parse::<usize>().map_err(|_| format!("`{s}` is not a list of extents such as 64x3x32x32")))
            .collect::<Result<Vec<_>, _>>()
            .map(Dims)
    }
}

impl From<Dims> for String {
    fn from(d: Dims) -> String {
        d.to_string()
    }
}

impl TryFrom<String> for Dims {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for v in [vec![], vec![7], vec![64, 3, 32, 32]] {
            let d = Dims(v);
            assert_eq!(d.to_string().parse::<Dims>().as_ref(), Ok(&d));
        }
        assert!("3x".parse::<Dims>().is_err());
        assert!("".parse::<Dims>().is_err());
    }
}
