//! The device a command runs a plan on.

use std::path::Path;

use serde::Serialize;
use slrc_plan::Plan;
use slrc_plan::plan::{ModulePlan, Program};
use slrc_runtime::cuda::{Libraries, Residency, device_bytes};
use slrc_runtime::device::{Device, LibraryUse, ProgramKind};
use slrc_runtime::devices::{self, DeviceName};
use slrc_runtime::folder::read_kernels;

use crate::failure::Failure;
use crate::table::bytes;

/// Loads the plan of a folder (a plan's or a run's) on the device asked for, or on the one it was compiled for.
pub(crate) fn open(
    plan: &Plan,
    name: Option<DeviceName>,
    threads: Option<usize>,
    residency: Residency,
    libraries: Libraries,
    folder: &Path,
) -> Result<Box<dyn Device>, Failure> {
    let name = name.unwrap_or_else(|| DeviceName::of(plan));
    devices::check_target(plan, name)?;
    let kernels = read_kernels(folder, plan)?;
    Ok(devices::open(plan, name, threads, kernels.as_ref(), residency, libraries)?)
}

/// Who computes the products of a step, or of an evaluation, as a line for people; nothing where no library was asked
/// for.
pub(crate) fn products(plan: &Plan, library: &LibraryUse, kind: ProgramKind) -> Option<String> {
    let mut missing: String = library.missing.iter().map(|reason| format!("; {reason}")).collect();
    if library.names.is_empty() {
        return (!missing.is_empty()).then(|| format!("products: the plan's own kernels compute all{missing}"));
    }
    let (programs, what): (fn(&ModulePlan) -> &Program, &str) = match kind {
        ProgramKind::Step => (|m| &m.step, "a step"),
        ProgramKind::Eval => (|m| &m.eval, "an evaluation"),
    };
    let all = plan.modules.iter().flat_map(|m| &programs(m).kernels).filter(|k| k.run.is_product()).count();
    let kernels = || library.kernels.iter().flat_map(|m| m[kind as usize].values());
    let theirs =
        library.names.iter().map(|(l, name)| format!("{name} computes {}", kernels().filter(|k| *k == l).count()));
    let theirs = theirs.collect::<Vec<_>>().join(" and ");
    if library.workspace > 0 {
        missing.insert_str(0, &format!("; {} of device memory beside the plan's to work in", bytes(library.workspace)));
    }
    Some(format!("products: {theirs} of {all} of {what}, the plan's own kernels the others{missing}"))
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
