//! The training plan: the contract between the slrc compiler and its runtimes.
//!
//! A plan says, for every module of a partitioned network, which kernels run in which order on which
//! bytes. It is self-contained: a runtime executes it without the compiler. This crate is the leaf that
//! both sides share. It holds data types, their text forms and their validation, and nothing else:
//! it knows no ONNX, no graph IR, no device and does no IO.
//!
//! Begin with [`plan::Plan`], then [`kernel::KernelOp`] (the kernel families) and [`view::View`] (how a
//! kernel names bytes).

pub mod attention;
pub mod bits;
pub mod buffer;
pub mod dims;
pub mod follow;
pub mod kernel;
pub mod launch;
pub mod operand;
pub mod plan;
pub mod precision;
pub mod prologue;
pub mod random;
pub mod region;
pub mod scalar;
pub mod schedule;
pub mod statement;
pub mod touches;
pub mod validate;
pub mod view;
pub mod yaml;

pub use buffer::{Buffer, DType, Space};
pub use dims::Dims;
pub use kernel::{Kernel, KernelOp};
pub use plan::{ModulePlan, Plan};
pub use precision::Precision;
pub use prologue::Prologue;
pub use region::Region;
pub use scalar::ScalarFn;
pub use statement::{Arg, Combine, Statement, StatementOp};
pub use view::View;
