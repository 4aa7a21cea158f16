//! The CPU device: a plan's kernels on rayon's threads.
//!
//! Every kernel is prepared once, when the plan is loaded: operands become pointers, statements become instructions.
//! Work is divided into tasks whose number and bounds depend on the plan alone, so results do not depend on the thread
//! count. Fused work runs tile by tile in cache-sized vectors (`tile.rs`); products run on the `gemm` crate.
//!
//! Unsafe code is allowed in this folder and nowhere else in the runtime. Its contract: a plan passes
//! [`slrc_plan::validate`] before it is prepared, so every view lies in its buffer and is of the type and density that
//! [`slrc_plan::operand`] states, every buffer lies in its allocation, buffers that are live together do not overlap,
//! except an elementwise result over an operand of the same walk, and no view that is written names an element twice;
//! and tasks of one kernel write disjoint elements.
#![allow(unsafe_code, reason = "kernels work on views of one arena through raw pointers; see the contract above")]

mod attention;
mod bits;
mod conv;
mod copy;
mod depthwise;
mod epilogue;
mod gather;
mod instruction;
mod kernel;
mod map;
mod math;
mod matmul;
mod memory;
mod parallel;
mod product;
mod prologue;
mod random;
mod reduce;
pub mod roof;
mod row;
mod rows;
mod tile;
mod transpose;
mod window;
mod winograd;

pub use math::{Vector, evaluate};

use std::collections::VecDeque;

use slrc_plan::kernel::Kernel;
use slrc_plan::{Buffer, Plan, Space};

use crate::cpu::kernel::{Prepared, prepare};
use crate::cpu::memory::Memory;
use crate::device::{Device, DeviceError, LibraryUse, ProgramKind, StepContext};

/// A plan on the CPU.
pub struct CpuDevice {
    memory: Memory,
    pool: rayon::ThreadPool,
    programs: Vec<[Vec<(Kernel, Prepared)>; 2]>,
    /// Reports not asked for yet, oldest first.
    reports: VecDeque<Vec<u8>>,
}

impl CpuDevice {
    /// Allocates a validated plan's memory and prepares its kernels for `threads` threads (all cores where absent).
    pub fn load(plan: &Plan, threads: Option<usize>) -> Result<CpuDevice, DeviceError> {
        let mut builder = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("slrc-{i}"));
        if let Some(n) = threads {
            builder = builder.num_threads(n);
        }
        let pool = builder.build().map_err(|e| DeviceError::Unsupported(format!("threads cannot be started: {e}")))?;
        let memory = Memory::allocate(plan)?;
        let all = |kernels: &[Kernel]| -> Result<Vec<(Kernel, Prepared)>, DeviceError> {
            kernels.iter().map(|k| Ok((k.clone(), prepare(k, &memory)?))).collect()
        };
        let programs = plan
            .modules
            .iter()
            .map(|m| Ok([all(&m.step.kernels)?, all(&m.eval.kernels)?]))
            .collect::<Result<_, DeviceError>>()?;
        Ok(CpuDevice { memory, pool, programs, reports: VecDeque::new() })
    }
}

fn run(module: usize, k: &Kernel, p: &Prepared, context: StepContext) -> Result<(), DeviceError> {
    p.run(context).map_err(|reason| DeviceError::Kernel {
        module,
        kernel: k.id.clone(),
        nodes: k.nodes.join(", "),
        reason,
    })
}

impl Device for CpuDevice {
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        self.memory.bytes_mut(buffer).copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        Ok(self.memory.bytes(buffer).to_vec())
    }

    fn run(&mut self, module: usize, program: ProgramKind, context: StepContext) -> Result<(), DeviceError> {
        let kernels = &self.programs[module - 1][program as usize];
        self.pool.install(|| kernels.iter().try_for_each(|(k, p)| run(module, k, p, context)))
    }

    fn queue_report(&mut self) -> Result<(), DeviceError> {
        self.reports.push_back(self.memory.space(Space::Metric).to_vec());
        Ok(())
    }

    fn report(&mut self) -> Result<Vec<u8>, DeviceError> {
        Ok(self.reports.pop_front().expect("invariant: callers read no more reports than they queued"))
    }

    fn passes_ahead(&self) -> usize {
        0
    }

    fn library(&self) -> LibraryUse {
        LibraryUse::default()
    }

    fn allocated(&self) -> usize {
        Space::ALL.iter().map(|&s| self.memory.space(s).len()).sum()
    }

    fn profile(
        &mut self,
        module: usize,
        program: ProgramKind,
        context: StepContext,
        after: &mut (dyn FnMut(&Kernel, f64) + Send),
    ) -> Result<(), DeviceError> {
        let kernels = &self.programs[module - 1][program as usize];
        self.pool.install(|| {
            for (k, p) in kernels {
                let start = std::time::Instant::now();
                run(module, k, p, context)?;
                after(k, start.elapsed().as_secs_f64());
            }
            Ok(())
        })
    }
}
