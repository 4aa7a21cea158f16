//! Pinned host memory, and the double buffer through which a step's inputs go to the device: while the device copies
//! from one half, the host fills the other.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use crate::cuda::error::Called;
use crate::device::DeviceError;

/// Page-locked host memory: the device copies from and to it without the driver's help, while the host goes on.
pub(super) struct Pinned {
    start: *mut u8,
    bytes: usize,
}

impl Pinned {
    /// Allocates in the current context.
    pub(super) fn allocate(bytes: usize) -> Result<Pinned, DeviceError> {
        let bytes = bytes.max(1);
        // SAFETY: the context is current on this thread; the size is not zero.
        let start = unsafe { result::malloc_host(bytes, 0) }.called("cuMemHostAlloc")?.cast();
        Ok(Pinned { start, bytes })
    }

    /// Some of its bytes.
    ///
    /// # Safety
    /// No other reference to them is alive. No copy from or to these bytes is queued, but where they are only handed to
    /// a further copy on the same stream.
    #[allow(clippy::mut_from_ref, reason = "memory the device writes, too; the caller's promise replaces the borrow")]
    pub(super) unsafe fn bytes_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.bytes, "invariant: the range lies in the block");
        // SAFETY: in the block, and nobody else's by the caller's promise. The driver hands out initialised pages.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate` and freed here only; owners wait for copies first.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

/// Two halves of pinned memory, filled in turn.
pub(super) struct Staging {
    host: Pinned,
    half: usize,
    /// The half being filled, and bytes of it that are taken.
    current: usize,
    used: usize,
    /// Of each half: when the device has read it for the last time; unset before it was ever left.
    read: [Option<CudaEvent>; 2],
    context: Arc<CudaContext>,
}

impl Staging {
    /// Of every copy's source.
    pub(super) const ALIGNMENT: usize = 64;

    /// Allocates two halves of `half` bytes.
    pub(super) fn allocate(context: &Arc<CudaContext>, half: usize) -> Result<Staging, DeviceError> {
        let half = half.next_multiple_of(Staging::ALIGNMENT);
        let host = Pinned::allocate(2 * half)?;
        Ok(Staging { host, half, current: 0, used: 0, read: [None, None], context: context.clone() })
    }

    /// Takes `bytes` and queues their copy; false, and nothing done, where they do not fit into a half.
    pub(super) fn copy(&mut self, stream: &CudaStream, to: CUdeviceptr, bytes: &[u8]) -> Result<bool, DeviceError> {
        if bytes.len() > self.half {
            return Ok(false);
        }
        if self.used + bytes.len() > self.half {
            self.turn(stream)?;
        }
        let start = self.current * self.half + self.used;
        self.used += bytes.len().next_multiple_of(Staging::ALIGNMENT);
        // SAFETY: this part of the current half is taken for the first time since `turn` waited for its last copy; the
        // target is the caller's device memory.
        unsafe {
            let source = self.host.bytes_mut(start..start + bytes.len());
            source.copy_from_slice(bytes);
            result::memcpy_htod_async(to, source, stream.cu_stream()).called("cuMemcpyHtoDAsync")?;
        }
        Ok(true)
    }

    /// Goes over to the other half as soon as the device has read it.
    fn turn(&mut self, stream: &CudaStream) -> Result<(), DeviceError> {
        let left = &mut self.read[self.current];
        if left.is_none() {
            *left = Some(self.context.new_event(None).called("cuEventCreate")?);
        }
        if let Some(event) = left {
            event.record(stream).called("cuEventRecord")?;
        }
        self.current = 1 - self.current;
        self.used = 0;
        match &self.read[self.current] {
            Some(event) => event.synchronize().called("cuEventSynchronize"),
            None => Ok(()),
        }
    }
}
