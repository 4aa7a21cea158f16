//! The device a command runs a plan on.

use std::path::Path;

use slrc_plan::Plan;
use slrc_runtime::device::Device;
use slrc_runtime::devices::{self, DeviceName};
use slrc_runtime::folder::read_kernels;

use crate::failure::Failure;

/// Loads the plan of a folder (a plan's or a run's) on the device asked for, or on the one it was compiled for.
pub(crate) fn open(
    plan: &Plan,
    name: Option<DeviceName>,
    threads: Option<usize>,
    folder: &Path,
) -> Result<Box<dyn Device>, Failure> {
    let name = name.unwrap_or_else(|| DeviceName::of(plan));
    devices::check_target(plan, name)?;
    let kernels = read_kernels(folder, plan)?;
    Ok(devices::open(plan, name, threads, kernels.as_ref())?)
}
