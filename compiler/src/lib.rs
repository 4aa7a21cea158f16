//! slrc's compiler: from an ONNX network and a spec to a training plan.

pub mod autodiff;
pub mod ir;
pub mod onnx;
