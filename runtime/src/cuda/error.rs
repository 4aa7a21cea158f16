//! Errors of driver calls: every call is checked and named.

use cudarc::driver::sys::CUresult;
use cudarc::driver::{DriverError, result};

use crate::device::DeviceError;

/// Names the call a driver error comes from.
pub(super) trait Called<T> {
    /// The value, or an error that says which of the driver's functions failed and whether the device is lost with it.
    fn called(self, call: &'static str) -> Result<T, DeviceError>;
}

impl<T> Called<T> for Result<T, DriverError> {
    fn called(self, call: &'static str) -> Result<T, DeviceError> {
        self.map_err(|e| {
            let reason = describe(e);
            if is_sticky(e.0) { DeviceError::Lost { call, reason } } else { DeviceError::Call { call, reason } }
        })
    }
}

/// The driver's name of an error with its description.
pub(super) fn describe(e: result::DriverError) -> String {
    match e.error_string() {
        Ok(text) => format!("{:?} ({})", e.0, text.to_string_lossy()),
        Err(_) => format!("{:?}", e.0),
    }
}

/// Whether every later call on the device fails too: the process must end.
fn is_sticky(e: CUresult) -> bool {
    matches!(
        e,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_DEINITIALIZED
            | CUresult::CUDA_ERROR_UNKNOWN
    )
}
