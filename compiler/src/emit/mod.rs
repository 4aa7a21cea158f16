//! Emission: modules as a plan document.

mod plan;

pub use plan::{CompiledModule, assemble};
