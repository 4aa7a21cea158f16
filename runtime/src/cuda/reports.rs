//! What steps report, fetched behind each step into pinned memory and read when the host has queued the next.

use std::collections::VecDeque;
use std::ops::Range;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaEvent, CudaStream, result};

use crate::cuda::error::Called;
use crate::cuda::staging::Pinned;
use crate::device::DeviceError;

/// Reports that may be under way: that of the step to be read and that of the step queued behind it.
pub(super) const SLOTS: usize = 2;

/// Reports under way, oldest first.
pub(super) struct Reports {
    host: Pinned,
    bytes: usize,
    arrived: Vec<CudaEvent>,
    outstanding: VecDeque<usize>,
}

impl Reports {
    /// Pinned memory for reports of `bytes` bytes.
    pub(super) fn allocate(compute: &CudaStream, bytes: usize) -> Result<Reports, DeviceError> {
        let event = |_| compute.context().new_event(None).called("cuEventCreate");
        let arrived = (0..SLOTS).map(event).collect::<Result<_, _>>()?;
        Ok(Reports { host: Pinned::allocate(SLOTS * bytes)?, bytes, arrived, outstanding: VecDeque::new() })
    }

    fn range(&self, slot: usize) -> Range<usize> {
        slot * self.bytes..(slot + 1) * self.bytes
    }

    /// Queues fetching a report from the device behind what is queued on `compute`.
    pub(super) fn queue(&mut self, compute: &CudaStream, from: CUdeviceptr) -> Result<(), DeviceError> {
        assert!(self.outstanding.len() < SLOTS, "invariant: callers read a report before they queue one too many");
        let slot = (0..SLOTS).find(|s| !self.outstanding.contains(s)).expect("invariant: one is free");
        // SAFETY: the source is the device's report. The target is pinned memory of its length; a copy into it that was
        // given up is on the same stream before this one, and it is read only when `arrived` says that this is done.
        unsafe {
            let target = self.host.bytes_mut(self.range(slot));
            result::memcpy_dtoh_async(target, from, compute.cu_stream()).called("cuMemcpyDtoHAsync")?;
        }
        self.arrived[slot].record(compute).called("cuEventRecord")?;
        self.outstanding.push_back(slot);
        Ok(())
    }

    /// The oldest report, when it has arrived.
    pub(super) fn take(&mut self) -> Result<Vec<u8>, DeviceError> {
        let slot = self.outstanding.pop_front().expect("invariant: callers read no more reports than they queued");
        self.arrived[slot].synchronize().called("cuEventSynchronize")?;
        // SAFETY: the copy into it is done, and the next begins with `queue`.
        Ok(unsafe { self.host.bytes_mut(self.range(slot)) }.to_vec())
    }

    /// Gives up what is outstanding.
    pub(super) fn forget(&mut self) {
        self.outstanding.clear();
    }
}
