//! A device's memory: one allocation of the size the plan says, written through pinned host memory, read after waiting.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUresult};
use cudarc::driver::{CudaContext, CudaStream, result};
use slrc_plan::{Plan, Space};

use crate::cuda::Residency;
use crate::cuda::error::Called;
use crate::cuda::layout::Layout;
use crate::cuda::staging::{Pinned, Staging};
use crate::device::DeviceError;

/// What memory holds before anything is written: a NaN as f32, so that a read of what was never written shows.
pub(super) const POISON: u8 = 0xff;

/// Memory of a plan on a device.
pub(super) struct Memory {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    layout: Layout,
    start: CUdeviceptr,
    staging: Staging,
    /// Where a step's report arrives.
    report: Pinned,
}

impl Memory {
    /// Allocates a plan's memory; `device` names the device in messages.
    pub(super) fn allocate(
        plan: &Plan,
        stream: &Arc<CudaStream>,
        residency: Residency,
        device: &str,
    ) -> Result<Memory, DeviceError> {
        let layout = Layout::of(plan, residency);
        let context = stream.context().clone();
        // A step's numbers, and its seed and step; the batch goes another way (`uploads.rs`).
        let staging = Staging::allocate(&context, plan.memory.scalar + Staging::ALIGNMENT)?;
        let report = Pinned::allocate(layout.status().len())?;
        let in_turn = match residency {
            Residency::All => Some(Layout::of(plan, Residency::InTurn).total()),
            Residency::InTurn => None,
        };
        let start = allocate(layout.total(), in_turn, device)?;
        let memory = Memory { context, stream: stream.clone(), layout, start, staging, report };
        memory.fill(0..memory.layout.total(), POISON)?;
        // Where modules take turns, their state is in host memory.
        let zeroed: &[Space] = match residency {
            Residency::All => &[Space::Optimizer, Space::Scalar],
            Residency::InTurn => &[Space::Scalar],
        };
        for &space in zeroed {
            let start = memory.layout.space(space);
            memory.fill(start..start + plan.memory.of(space), 0)?;
        }
        memory.fill(memory.layout.status(), 0)?;
        memory.fill(memory.layout.turns(), 0)?;
        // Other streams may write from here on.
        memory.wait()?;
        Ok(memory)
    }

    /// Where everything lies.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Device address of a byte.
    pub(super) fn address(&self, at: usize) -> CUdeviceptr {
        debug_assert!(at < self.layout.total());
        self.start + at as CUdeviceptr
    }

    /// Queues setting bytes.
    pub(super) fn fill(&self, range: Range<usize>, value: u8) -> Result<(), DeviceError> {
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies in the allocation, which lives as long as the stream has work on it (see `drop`).
        unsafe { result::memset_d8_async(self.address(range.start), value, range.len(), self.stream.cu_stream()) }
            .called("cuMemsetD8Async")
    }

    /// Queues a copy to the device; `bytes` may be changed as soon as this returns.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let to = self.address(at);
        if self.staging.copy(&self.stream, to, bytes)? {
            return Ok(());
        }
        // SAFETY: the target lies in the allocation; the source outlives the copy, which is waited for.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }.called("cuMemcpyHtoDAsync")?;
        self.wait()
    }

    /// Copies from the device when all queued work is done.
    pub(super) fn read(&self, range: Range<usize>) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0u8; range.len()];
        if !range.is_empty() {
            // SAFETY: the source lies in the allocation; the target outlives the copy, which is waited for.
            unsafe { result::memcpy_dtoh_async(&mut bytes, self.address(range.start), self.stream.cu_stream()) }
                .called("cuMemcpyDtoHAsync")?;
        }
        self.wait()?;
        Ok(bytes)
    }

    /// What programs report: metrics and faults, when all queued work is done.
    pub(super) fn read_report(&self) -> Result<Vec<u8>, DeviceError> {
        let range = self.layout.status();
        if range.is_empty() {
            self.wait()?;
            return Ok(Vec::new());
        }
        // SAFETY: the source lies in the allocation, the target is pinned memory of its length that nobody else uses.
        unsafe {
            let target = self.report.bytes_mut(0..range.len());
            result::memcpy_dtoh_async(target, self.address(range.start), self.stream.cu_stream())
        }
        .called("cuMemcpyDtoHAsync")?;
        self.wait()?;
        // SAFETY: the copy into it is done.
        Ok(unsafe { self.report.bytes_mut(0..range.len()) }.to_vec())
    }

    fn wait(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().called("cuStreamSynchronize")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Errors cannot be told here; those that matter were told by the calls before.
        let _ = self.context.bind_to_thread();
        let _ = self.stream.synchronize();
        // SAFETY: allocated by `allocate`, and no work that uses it is left.
        let _ = unsafe { result::free_sync(self.start) };
    }
}

/// One block of device memory. `in_turn` is what would be needed if modules took turns.
fn allocate(needed: usize, in_turn: Option<usize>, device: &str) -> Result<CUdeviceptr, DeviceError> {
    let (free, _) = result::mem_get_info().called("cuMemGetInfo")?;
    let in_turn = in_turn.filter(|&n| n <= free && n < needed);
    let too_little = || DeviceError::OutOfDeviceMemory { needed, free, device: device.to_string(), in_turn };
    if needed > free {
        return Err(too_little());
    }
    // SAFETY: the context is current on this thread; the size is not zero, as fault numbers are part of every layout.
    match unsafe { result::malloc_sync(needed) } {
        Err(e) if e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(too_little()),
        other => other.called("cuMemAlloc"),
    }
}
