//! slrc's compiler: from an ONNX network and a spec to a training plan.

pub mod autodiff;
pub mod heads;
pub mod ir;
pub mod layers;
pub mod loss;
pub mod onnx;
pub mod optimizer;
pub mod partition;
pub mod reconcile;
pub mod simplify;
pub mod spec;
pub mod step;
