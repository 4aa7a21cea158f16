//! The device a command runs a plan on.

use std::path::Path;

use serde::Serialize;
use slrc_plan::Plan;
use slrc_runtime::cuda::{Residency, device_bytes};
use slrc_runtime::device::Device;
use slrc_runtime::devices::{self, DeviceName};
use slrc_runtime::folder::read_kernels;

use crate::failure::Failure;

/// Loads the plan of a folder (a plan's or a run's) on the device asked for, or on the one it was compiled for.
pub(crate) fn open(
    plan: &Plan,
    name: Option<DeviceName>,
    threads: Option<usize>,
    residency: Residency,
    folder: &Path,
) -> Result<Box<dyn Device>, Failure> {
    let name = name.unwrap_or_else(|| DeviceName::of(plan));
    devices::check_target(plan, name)?;
    let kernels = read_kernels(folder, plan)?;
    Ok(devices::open(plan, name, threads, kernels.as_ref(), residency)?)
}

/// Bytes of device memory that a plan takes, with all modules there and with modules taking turns; nothing of a plan
/// for a CPU, which has no memory of its own.
pub(crate) fn footprint(plan: &Plan) -> Option<Footprint> {
    match DeviceName::of(plan) {
        DeviceName::Cpu => None,
        DeviceName::Cuda(_) => Some(Footprint {
            device_bytes: device_bytes(plan, Residency::All),
            streamed_device_bytes: device_bytes(plan, Residency::InTurn),
        }),
    }
}

/// Bytes of device memory; field names are part of what `--json` prints.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Footprint {
    /// With all modules there.
    pub(crate) device_bytes: usize,
    /// With `--stream-modules`.
    pub(crate) streamed_device_bytes: usize,
}
