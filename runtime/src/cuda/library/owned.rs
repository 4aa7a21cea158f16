//! What NVIDIA's libraries create for us, given back when dropped, and their answers as errors that name the call.

use std::fmt::Debug;
use std::mem::MaybeUninit;

use crate::device::DeviceError;

/// A library's answer to a call.
pub(super) trait Status: Copy + Debug + PartialEq {
    /// All is well.
    const SUCCESS: Self;
}

impl Status for cudarc::cublaslt::sys::cublasStatus_t {
    const SUCCESS: Self = Self::CUBLAS_STATUS_SUCCESS;
}

impl Status for cudarc::cudnn::sys::cudnnStatus_t {
    const SUCCESS: Self = Self::CUDNN_STATUS_SUCCESS;
}

/// An error that names the call, unless it succeeded.
pub(super) fn called<S: Status>(status: S, call: &'static str) -> Result<(), DeviceError> {
    if status == S::SUCCESS { Ok(()) } else { Err(DeviceError::Call { call, reason: format!("{status:?}") }) }
}

/// What a library created, and how it is given back.
pub(super) struct Owned<T: Copy, S: Status> {
    pub(super) raw: T,
    pub(super) destroy: unsafe fn(T) -> S,
}

impl<T: Copy, S: Status> Drop for Owned<T, S> {
    fn drop(&mut self) {
        // SAFETY: created by the function that goes with `destroy`, and given back here only. A failure loses memory.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// Creates something by a call that writes it where it is told to.
pub(super) fn create<T: Copy, S: Status>(
    call: &'static str,
    destroy: unsafe fn(T) -> S,
    create: impl FnOnce(*mut T) -> S,
) -> Result<Owned<T, S>, DeviceError> {
    let mut raw = MaybeUninit::uninit();
    called(create(raw.as_mut_ptr()), call)?;
    // SAFETY: the call succeeded, so it has written the handle.
    Ok(Owned { raw: unsafe { raw.assume_init() }, destroy })
}
