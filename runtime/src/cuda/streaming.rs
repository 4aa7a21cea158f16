//! Modules that take turns on the device: the images of all are in pinned host memory, and those of the module that
//! runs and of the next are in two slots on the device.
//!
//! While module k runs, one stream of copies brings module k - 1 back, if it changed, and fetches module k + 1 into its
//! place. Events say when a slot's module has run and when its successor is there. That is sound because a module's
//! kernels touch no other module's weights and state, which every plan is checked for.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result};
use slrc_plan::operand::Access;
use slrc_plan::{Buffer, Plan, Space};

use crate::cuda::error::Called;
use crate::cuda::images::{Images, SLOTS, slot_of};
use crate::cuda::memory::{Memory, POISON};
use crate::cuda::staging::Pinned;
use crate::device::{DeviceError, ProgramKind};

/// What lies in a slot.
struct Slot {
    /// Module (from 1), fetched or being fetched.
    holds: Option<usize>,
    /// Whether a program has changed it since.
    changed: bool,
    /// When it is there, and whether programs have yet to be made to wait for that.
    arrived: CudaEvent,
    pending: bool,
    /// When the last program in this slot had run, and whether copies have yet to be made to wait for that.
    ran: CudaEvent,
    busy: bool,
}

/// The images in host memory and the slots they pass through.
pub(super) struct Streaming {
    stream: Arc<CudaStream>,
    host: Pinned,
    images: Images,
    slots: [Slot; SLOTS],
    /// Of each module, training and evaluation: whether the program changes the image.
    changes: Vec<[bool; 2]>,
}

impl Streaming {
    /// Host memory for all images, with optimizer state at zero, and a stream beside `compute`.
    pub(super) fn new(plan: &Plan, images: &Images, compute: &Arc<CudaStream>) -> Result<Streaming, DeviceError> {
        let context = compute.context();
        let event = || context.new_event(None).called("cuEventCreate");
        let slot =
            || Ok(Slot { holds: None, changed: false, arrived: event()?, pending: false, ran: event()?, busy: false });
        let host = Pinned::allocate(images.total())?;
        // SAFETY: nobody else knows of this memory yet.
        let bytes = unsafe { host.bytes_mut(0..images.total()) };
        bytes.fill(POISON);
        for b in plan.buffers.iter().filter(|b| b.space == Space::Optimizer) {
            let (module, place) = images.place(b);
            bytes[images.host(module)][place].fill(0);
        }
        let kept = |id: &str| plan.buffers.iter().any(|b| b.id == id && is_image(b));
        let changes = |p: &slrc_plan::plan::Program| {
            let mut operands = p.kernels.iter().flat_map(|k| k.run.operands());
            operands.any(|o| o.access == Access::Write && kept(&o.view.buffer))
        };
        Ok(Streaming {
            stream: context.new_stream().called("cuStreamCreate")?,
            host,
            images: images.clone(),
            slots: [slot()?, slot()?],
            changes: plan.modules.iter().map(|m| [changes(&m.step), changes(&m.eval)]).collect(),
        })
    }

    /// Brings a module to its slot, if it is not there, and makes what is queued on `compute` from now on wait for it.
    pub(super) fn before(&mut self, memory: &Memory, compute: &CudaStream, module: usize) -> Result<(), DeviceError> {
        if self.slots[slot_of(module)].holds != Some(module) {
            self.fetch(memory, module)?;
        }
        let slot = &mut self.slots[slot_of(module)];
        if slot.pending {
            compute.wait(&slot.arrived).called("cuStreamWaitEvent")?;
            slot.pending = false;
        }
        Ok(())
    }

    /// To be called behind each program of a module, with the stream it was queued on: fetches the module that comes
    /// next, unless it needs the slot of this one.
    pub(super) fn after(
        &mut self,
        memory: &Memory,
        compute: &CudaStream,
        module: usize,
        kind: ProgramKind,
    ) -> Result<(), DeviceError> {
        let slot = &mut self.slots[slot_of(module)];
        slot.ran.record(compute).called("cuEventRecord")?;
        slot.busy = true;
        slot.changed |= self.changes[module - 1][kind as usize];
        let next = module % self.changes.len() + 1;
        if slot_of(next) != slot_of(module) && self.slots[slot_of(next)].holds != Some(next) {
            self.fetch(memory, next)?;
        }
        Ok(())
    }

    /// Queues exchanging what a module's slot holds for the module.
    fn fetch(&mut self, memory: &Memory, module: usize) -> Result<(), DeviceError> {
        self.bring_back(memory, slot_of(module))?;
        let slot = &mut self.slots[slot_of(module)];
        let image = self.images.host(module);
        if !image.is_empty() {
            let to = memory.address(memory.layout().slot(slot_of(module)).start);
            // SAFETY: the slot is as large as the image, and free: its programs were waited for. The host changes an
            // image only when this stream has done its work, and copies from the device into it are on this stream.
            unsafe { result::memcpy_htod_async(to, self.host.bytes_mut(image), self.stream.cu_stream()) }
                .called("cuMemcpyHtoDAsync")?;
        }
        slot.arrived.record(&self.stream).called("cuEventRecord")?;
        (slot.holds, slot.changed, slot.pending) = (Some(module), false, true);
        Ok(())
    }

    /// Queues waiting for a slot's programs, and copying what it holds back to its image if one has changed it.
    fn bring_back(&mut self, memory: &Memory, index: usize) -> Result<(), DeviceError> {
        let slot = &mut self.slots[index];
        if slot.busy {
            self.stream.wait(&slot.ran).called("cuStreamWaitEvent")?;
            slot.busy = false;
        }
        let (Some(module), true) = (slot.holds, slot.changed) else { return Ok(()) };
        let image = self.images.host(module);
        let from = memory.address(memory.layout().slot(index).start);
        // SAFETY: the slot holds the image, whole and at rest: its programs were waited for. The host reads an image
        // only when this stream has done its work, and copies to the device from it are on this stream.
        unsafe { result::memcpy_dtoh_async(self.host.bytes_mut(image), from, self.stream.cu_stream()) }
            .called("cuMemcpyDtoHAsync")?;
        slot.changed = false;
        Ok(())
    }

    /// A buffer's bytes, when its module's programs have run.
    pub(super) fn read(&mut self, memory: &Memory, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        Ok(self.at_rest(memory, buffer)?.to_vec())
    }

    /// Overwrites a buffer when its module's programs have run.
    pub(super) fn write(&mut self, memory: &Memory, buffer: &Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        self.at_rest(memory, buffer)?.copy_from_slice(bytes);
        let (module, _) = self.images.place(buffer);
        let slot = &mut self.slots[slot_of(module)];
        if slot.holds == Some(module) {
            slot.holds = None;
        }
        Ok(())
    }

    /// A buffer in host memory, as the last program left it, when nothing is being copied.
    fn at_rest(&mut self, memory: &Memory, buffer: &Buffer) -> Result<&mut [u8], DeviceError> {
        let (module, place) = self.images.place(buffer);
        if self.slots[slot_of(module)].holds == Some(module) {
            self.bring_back(memory, slot_of(module))?;
        }
        self.finish()?;
        let start = self.images.host(module).start;
        // SAFETY: no copy is queued, and the borrow of `self` keeps further ones away.
        Ok(unsafe { self.host.bytes_mut(start + place.start..start + place.end) })
    }

    /// Waits until no copy is under way.
    pub(super) fn finish(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().called("cuStreamSynchronize")
    }
}

/// Whether a buffer is part of an image.
pub(super) fn is_image(b: &Buffer) -> bool {
    matches!(b.space, Space::Parameter | Space::Optimizer)
}
