//! Types of IR values, and numbers that can be compared and hashed.

use std::fmt;
use std::str::FromStr;

pub use slrc_plan::DType;
use slrc_plan::Dims;

/// Element type and logical shape of a value. `U8` holds flags and positions in a pooling window.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// An f32 tensor type.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Type {
        Type::new(DType::F32, shape)
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of a dense tensor of this type.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.count())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Whether values can carry a gradient.
    pub fn is_real(&self) -> bool {
        self.dtype == DType::F32
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, Dims(self.shape.clone()))
    }
}

impl FromStr for Type {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is not a type such as f32[64x10]");
        let (name, rest) = s.split_once('[').ok_or_else(bad)?;
        let dims: Dims = rest.strip_suffix(']').ok_or_else(bad)?.parse()?;
        let dtype = [DType::F32, DType::I32, DType::U8].into_iter().find(|d| d.name() == name).ok_or_else(bad)?;
        Ok(Type { dtype, shape: dims.0 })
    }
}

/// An `f64` compared and hashed by its bits, so that constants can be part of a node's identity.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub f64);

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Number {}

impl std::hash::Hash for Number {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_text_round_trips() {
        for t in [Type::f32([]), Type::new(DType::I32, [4]), Type::new(DType::U8, [2, 3, 4, 5])] {
            assert_eq!(t.to_string().parse::<Type>().as_ref(), Ok(&t));
        }
        assert!("f16[2]".parse::<Type>().is_err());
        assert!("f32[2".parse::<Type>().is_err());
    }
}
