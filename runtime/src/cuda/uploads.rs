//! How a batch gets to the device: on a stream of its own, so that the next one travels while a step computes.
//!
//! There is one place for a batch on the device, as the plan says. What may be overwritten when is told by events: a
//! buffer, when the last program that reads it has run; and programs begin when the batch has arrived. A buffer that
//! only the first modules read is thus filled again while the modules behind them compute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaEvent, CudaStream};
use slrc_plan::launch::LaunchArg;
use slrc_plan::{Buffer, Plan, Space};

use crate::cuda::error::Called;
use crate::cuda::staging::Staging;
use crate::device::{DeviceError, ProgramKind};

/// The stream of uploads and what orders it against the stream on which programs run.
pub(super) struct Uploads {
    stream: Arc<CudaStream>,
    staging: Staging,
    /// When all that was uploaded is there.
    arrived: CudaEvent,
    /// Whether programs have yet to be made to wait for `arrived`.
    pending: bool,
    /// Of each module: when its last program had run.
    ran: Vec<CudaEvent>,
    /// Of each module, training and evaluation: inputs its program reads.
    reads: Vec<[Vec<String>; 2]>,
    /// By input: the module, from 0, whose program was the last to read it.
    last_reader: BTreeMap<String, usize>,
}

impl Uploads {
    /// Pinned memory for two batches of a plan, and a stream beside `compute`.
    pub(super) fn new(plan: &Plan, compute: &Arc<CudaStream>) -> Result<Uploads, DeviceError> {
        let context = compute.context();
        let event = || context.new_event(None).called("cuEventCreate");
        let inputs: BTreeSet<&str> =
            plan.buffers.iter().filter(|b| b.space == Space::Input).map(|b| b.id.as_str()).collect();
        let reads = |p: &slrc_plan::plan::Program| -> Vec<String> {
            let arguments = p.launches.iter().flat_map(|l| &l.args).filter_map(|a| match a {
                LaunchArg::Buffer(id) => inputs.get(id.as_str()).copied(),
                LaunchArg::Run | LaunchArg::Fault | LaunchArg::Turns | LaunchArg::First | LaunchArg::Alone => None,
            });
            arguments.collect::<BTreeSet<&str>>().into_iter().map(str::to_string).collect()
        };
        Ok(Uploads {
            stream: context.new_stream().called("cuStreamCreate")?,
            staging: Staging::allocate(context, plan.memory.input)?,
            arrived: event()?,
            pending: false,
            ran: plan.modules.iter().map(|_| event()).collect::<Result<_, _>>()?,
            reads: plan.modules.iter().map(|m| [reads(&m.step), reads(&m.eval)]).collect(),
            last_reader: BTreeMap::new(),
        })
    }

    /// Queues the upload of an input, behind the programs queued so far that read it. `bytes` may be changed as soon as
    /// this returns.
    pub(super) fn write(&mut self, buffer: &Buffer, to: CUdeviceptr, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(&module) = self.last_reader.get(&buffer.id) {
            self.stream.wait(&self.ran[module]).called("cuStreamWaitEvent")?;
        }
        let taken = self.staging.copy(&self.stream, to, bytes)?;
        assert!(taken, "invariant: an input is no larger than the space of all inputs");
        self.pending = true;
        Ok(())
    }

    /// Makes what is queued on `compute` from now on wait for what was uploaded.
    pub(super) fn join(&mut self, compute: &CudaStream) -> Result<(), DeviceError> {
        if !self.pending {
            return Ok(());
        }
        self.arrived.record(&self.stream).called("cuEventRecord")?;
        compute.wait(&self.arrived).called("cuStreamWaitEvent")?;
        self.pending = false;
        Ok(())
    }

    /// To be called behind each program of a module (from 1), with the stream it was queued on.
    pub(super) fn ran(&mut self, compute: &CudaStream, module: usize, kind: ProgramKind) -> Result<(), DeviceError> {
        let reads = &self.reads[module - 1][kind as usize];
        if reads.is_empty() {
            return Ok(());
        }
        self.ran[module - 1].record(compute).called("cuEventRecord")?;
        for id in reads {
            match self.last_reader.get_mut(id) {
                Some(last) => *last = module - 1,
                None => drop(self.last_reader.insert(id.clone(), module - 1)),
            }
        }
        Ok(())
    }

    /// Waits until no copy is under way.
    pub(super) fn finish(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().called("cuStreamSynchronize")
    }
}
