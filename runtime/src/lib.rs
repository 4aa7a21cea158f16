//! slrc's runtime: executes training plans on a device, and trains. It knows no compiler crate.

pub mod data;
