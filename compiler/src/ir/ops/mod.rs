//! The ops, a file a family: formula first, then shape rule, f64 meaning, gradient and directional derivative.

pub mod contract;
pub mod index;
pub mod keep;
pub mod leaf;
pub mod map;
pub mod mode;
pub mod random;
pub mod reduce;
pub mod shape;
pub mod window;

use crate::ir::types::{DType, Type};

/// Fails unless there are `n` operands.
pub(crate) fn arity(operands: &[&Type], n: usize) -> Result<(), String> {
    if operands.len() == n { Ok(()) } else { Err(format!("takes {n} operands, not {}", operands.len())) }
}

/// Fails unless a type has this dtype.
pub(crate) fn dtype(ty: &Type, want: DType) -> Result<(), String> {
    if ty.dtype == want { Ok(()) } else { Err(format!("needs {want} operands, not {ty}")) }
}

/// A comma-separated list of integers in attribute text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct List(pub(crate) Vec<usize>);

impl std::fmt::Display for List {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    }
}

impl std::str::FromStr for List {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s.is_empty() {
            return Ok(List(Vec::new()));
        }
        s.split(',')
            .map(|p| p.parse().map_err(|_| format!("`{p}` is not an integer")))
            .collect::<Result<_, _>>()
            .map(List)
    }
}
