//! Emission: modules as a plan document.

pub mod cuda;
mod plan;

pub use plan::{CompiledModule, assemble};
