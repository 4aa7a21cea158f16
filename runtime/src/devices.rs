//! Devices by name: `cpu`, or `cuda:0` for the first GPU.

use std::fmt;
use std::str::FromStr;

use slrc_plan::Plan;

use crate::cpu::CpuDevice;
use crate::cuda::code::Kernels;
use crate::cuda::{CudaDevice, Launching, Libraries, Residency};
use crate::device::{Device, DeviceError};

/// Names a device of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl DeviceName {
    /// The device a plan is for: the first of its kind.
    pub fn of(plan: &Plan) -> DeviceName {
        if is_cuda(plan) { DeviceName::Cuda(0) } else { DeviceName::Cpu }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;
    fn from_str(s: &str) -> Result<DeviceName, String> {
        let number = |n: &str| n.parse().ok().map(DeviceName::Cuda);
        let name = match s {
            "cpu" => Some(DeviceName::Cpu),
            "cuda" => Some(DeviceName::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(number),
        };
        name.ok_or_else(|| format!("`{s}` is not cpu, cuda or a GPU's number such as cuda:1"))
    }
}

fn is_cuda(plan: &Plan) -> bool {
    plan.settings.target.starts_with("cuda")
}

/// Fails where a plan was compiled for another kind of device.
pub fn check_target(plan: &Plan, name: DeviceName) -> Result<(), DeviceError> {
    let target = &plan.settings.target;
    match (is_cuda(plan), name) {
        (false, DeviceName::Cpu) | (true, DeviceName::Cuda(_)) => Ok(()),
        (true, DeviceName::Cpu) => Err(DeviceError::Unsupported(format!(
            "the plan is for {target}; compile it with --target cpu, or run it with --device cuda:0"
        ))),
        (false, DeviceName::Cuda(_)) => Err(DeviceError::Unsupported(format!(
            "the plan is for {target}; compile it with --target cuda, or run it with --device cpu"
        ))),
    }
}

/// Loads a validated plan on a device. `kernels` are those beside a plan for CUDA; `threads` counts for the CPU only
/// (all cores where absent). Modules take turns on a GPU only: a CPU has no other memory for them to be in. Libraries
/// are for GPUs.
pub fn open(
    plan: &Plan,
    name: DeviceName,
    threads: Option<usize>,
    kernels: Option<&Kernels>,
    residency: Residency,
    libraries: Libraries,
) -> Result<Box<dyn Device>, DeviceError> {
    check_target(plan, name)?;
    match name {
        DeviceName::Cpu if residency == Residency::InTurn => Err(DeviceError::Unsupported(
            "--stream-modules keeps weights in host memory, which is where --device cpu has them: leave it out, or compile \
             the plan with --target cuda to train on a GPU"
                .into(),
        )),
        DeviceName::Cpu if libraries != Libraries::None => Err(DeviceError::Unsupported(format!(
            "--libraries {} is for GPUs, and --device cpu uses none: leave it out, or compile the plan with --target cuda",
            libraries
        ))),
        DeviceName::Cpu => Ok(Box::new(CpuDevice::load(plan, threads)?)),
        DeviceName::Cuda(ordinal) => {
            let kernels = kernels.ok_or_else(|| {
                DeviceError::Unsupported(format!("the plan is for {} but has no kernels.cu", plan.settings.target))
            })?;
            let launching = Launching::from_environment()?;
            Ok(Box::new(CudaDevice::load(plan, ordinal, kernels, launching, residency, libraries)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in [DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(7)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }
}
