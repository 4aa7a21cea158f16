//! What a device does for a runtime: holds a plan's memory and runs its programs.

use slrc_plan::{Buffer, Kernel};

/// A device could not run.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Memory could not be had.
    #[error("the plan needs {needed} bytes, which could not be allocated; use more modules or a smaller batch")]
    OutOfMemory {
        /// Bytes asked for.
        needed: usize,
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
    /// The device cannot execute a plan's kernel.
    #[error("{0}")]
    Unsupported(String),
}

/// Which of a module's programs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramKind {
    /// The training step.
    Step,
    /// Inference.
    Eval,
}

/// What of a run a kernel may depend on besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepContext {
    /// Seed of the run.
    pub seed: u64,
    /// Step number, from 0.
    pub step: u64,
}

/// A plan loaded on a device.
pub trait Device {
    /// Overwrites a buffer with bytes in its own memory order.
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]);
    /// A buffer's bytes, in its own memory order.
    fn read(&self, buffer: &Buffer) -> Vec<u8>;
    /// Runs one program of module `module` (from 1).
    fn run(&mut self, module: usize, program: ProgramKind, context: StepContext) -> Result<(), DeviceError>;
    /// Runs one program kernel by kernel and calls `after` with each and the seconds it took.
    fn profile(
        &mut self,
        module: usize,
        program: ProgramKind,
        context: StepContext,
        after: &mut (dyn FnMut(&Kernel, f64) + Send),
    ) -> Result<(), DeviceError>;
}
