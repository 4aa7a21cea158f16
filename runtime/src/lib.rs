//! slrc's runtime: executes training plans on a device, and trains.
//!
//! It knows no compiler crate: a plan folder is all it needs. Begin with [`device::Device`] (what a device does),
//! [`cpu::CpuDevice`] (the embedded default) or [`cuda::CudaDevice`], and [`session::Session`] (a plan with its state
//! on a device); [`trainer`] is the loop around them, [`devices`] finds a device by its name.

pub mod cpu;
pub mod cuda;
pub mod data;
pub mod device;
pub mod devices;
pub mod files;
pub mod folder;
pub mod reorder;
pub mod session;
pub mod trainer;
