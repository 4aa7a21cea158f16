//! slrc's compiler: from an ONNX network and a spec to a training plan.
//!
//! [`pipeline::compile`] is the whole way; its source lists the stages in order. Folders follow the data:
//! `onnx` (import), `ir` (the graph), `partition`, `heads`, `loss`, `reconcile`, `autodiff`, `optimizer`, `step` (a
//! module's programs put together), `simplify`, `fuse`, `schedule`, `lower`, `memory`, `emit` (the plan).
//! The compiler knows no device and does no IO outside `onnx`.

pub mod autodiff;
pub mod budget;
pub mod costs;
pub mod diagnose;
pub mod emit;
pub mod fuse;
pub mod heads;
pub mod ir;
pub mod layers;
pub mod loss;
pub mod lower;
pub mod memory;
mod nearest;
pub mod onnx;
pub mod optimizer;
mod parallel;
pub mod partition;
pub mod pipeline;
pub mod recompute;
pub mod reconcile;
pub mod schedule;
pub mod simplify;
pub mod size;
pub mod spec;
pub mod step;
pub mod weights;
