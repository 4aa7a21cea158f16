//! What a device does for a runtime: holds a plan's memory and runs its programs.

use std::collections::BTreeMap;

use slrc_plan::{Buffer, Kernel};

use crate::cuda::Library;

/// A device could not run.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Memory could not be had.
    #[error("the plan needs {needed} bytes, which could not be allocated; use more modules or a smaller batch")]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
    },
    /// A GPU has too little memory free.
    #[error(
        "the plan needs {needed} bytes of {device}, where {free} are free; use {}more modules or a smaller batch",
        streamed(*.in_turn)
    )]
    OutOfDeviceMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes free.
        free: usize,
        /// Which device.
        device: String,
        /// Bytes that would do, and are free, if modules took turns on the device.
        in_turn: Option<usize>,
    },
    /// A kernel met data it cannot work with.
    #[error("module {module}, kernel {kernel} ({nodes}): {reason}")]
    Kernel {
        /// Module number.
        module: usize,
        /// Kernel id.
        kernel: String,
        /// ONNX nodes whose work it is.
        nodes: String,
        /// What is wrong.
        reason: String,
    },
    /// The device cannot execute the plan.
    #[error("{0}")]
    Unsupported(String),
    /// There is no such device, or a library it needs is missing. Says what to do.
    #[error("{0}")]
    Unavailable(String),
    /// A `kernels.cu` is not the one that was written with the plan.
    #[error(
        "kernels.cu is not this plan's: its SHA-256 is {found}, plan.yaml asks for {expected}; restore the file that was \
         written with the plan, or compile the plan again with slrc partition"
    )]
    OtherKernels {
        /// SHA-256 in the plan, or that it has none.
        expected: String,
        /// SHA-256 of the file.
        found: String,
    },
    /// Machine code beside a plan is not what the plan and this program would make.
    #[error("{file} is out of date: {reason}; make it again with slrc compile PLAN --cubin, or delete it")]
    StaleCubin {
        /// Name of the file.
        file: String,
        /// In what it differs.
        reason: String,
    },
    /// The source of a plan's kernels does not compile: a damaged file, or a bug in the compiler that wrote it.
    #[error("the kernels do not compile for {architecture}:\n{log}")]
    Compile {
        /// Compiled for this architecture.
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// A call of the device's driver failed; nothing else did.
    #[error("{call} failed: {reason}")]
    Call {
        /// Name of the driver's function.
        call: &'static str,
        /// The driver's name and description of the error.
        reason: String,
    },
    /// The device failed and can be used no more in this process.
    #[error(
        "the device failed in the work before {call}: {reason}; its memory is lost, the run's last checkpoint is intact: \
         go on from it with --resume"
    )]
    Lost {
        /// The driver's function that told.
        call: &'static str,
        /// The driver's name and description of the error.
        reason: String,
    },
}

/// The advice to let modules take turns.
fn streamed(in_turn: Option<usize>) -> String {
    in_turn.map_or(String::new(), |n| format!("--stream-modules, which needs {n} bytes, or "))
}

/// Which of a module's programs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// The training step.
    Step,
    /// Inference.
    Eval,
}

/// Who computes a plan's matrix products.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryUse {
    /// Libraries with their versions; empty where the plan's own kernels compute all.
    pub names: BTreeMap<Library, String>,
    /// Why one is not there that would have been used.
    pub missing: Vec<String>,
    /// Bytes of device memory that they work in, beside the plan's.
    pub workspace: usize,
    /// Of each module, training and evaluation: the kernels that libraries compute, by id.
    pub kernels: Vec<[BTreeMap<String, Library>; 2]>,
}

impl LibraryUse {
    /// All of them in a line, if there are any.
    pub fn name(&self) -> Option<String> {
        let names: Vec<&str> = self.names.values().map(String::as_str).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// What of a run a kernel may depend on besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepContext {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the pass, from 0: that of the step where it takes one.
    pub pass: u64,
}

/// A plan loaded on a device.
///
/// Calls take effect in order, but work may be under way when a call returns; what goes wrong in it is told by the call
/// that finds out, at the latest by the next [`Device::read`] or by [`Device::report`] of the step.
pub trait Device {
    /// Overwrites a buffer with bytes in its own memory order.
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<(), DeviceError>;
    /// A buffer's bytes, in its own memory order, when all work so far is done.
    fn read(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError>;
    /// Runs one program of module `module` (from 1).
    fn run(&mut self, module: usize, program: ProgramKind, context: StepContext) -> Result<(), DeviceError>;
    /// Queues fetching what programs have reported so far: [`slrc_plan::Space::Metric`], byte by byte. Together with
    /// those that [`Device::report`] has not returned yet, at most [`Device::passes_ahead`] + 1.
    fn queue_report(&mut self) -> Result<(), DeviceError>;
    /// The oldest report that was queued and not returned yet; bytes beyond the space's mean nothing. Waits for the
    /// work queued before it, not for later work. What went wrong in that work is told here; after an error, no report
    /// is outstanding.
    fn report(&mut self) -> Result<Vec<u8>, DeviceError>;
    /// How many passes are worth queueing behind one whose report is not read yet: none where a pass is done when
    /// [`Device::run`] returns.
    fn passes_ahead(&self) -> usize;
    /// Bytes of the device's own memory that are allocated.
    fn allocated(&self) -> usize;
    /// Which libraries compute products in place of the plan's own kernels, and which ones.
    fn library(&self) -> LibraryUse;
    /// Runs one program kernel by kernel and calls `after` with each and the seconds it took.
    fn profile(
        &mut self,
        module: usize,
        program: ProgramKind,
        context: StepContext,
        after: &mut (dyn FnMut(&Kernel, f64) + Send),
    ) -> Result<(), DeviceError>;
}
