//! The stand-in CUDA device, tested through cudarc as the runtime uses it. tests/cuda-host/README.md describes it.

#[path = "cuda_host/cublaslt.rs"]
mod cublaslt;
#[path = "cuda_host/cudnn.rs"]
mod cudnn;
#[path = "cuda_host/detectors.rs"]
mod detectors;
#[path = "cuda_host/driver.rs"]
mod driver;
#[path = "cuda_host/graphs.rs"]
mod graphs;
#[path = "cuda_host/kernels.rs"]
mod kernels;
mod support;

use cudarc::driver::DriverError;
use support::cuda_host::Options;

/// The stand-in itself is tested, except by its kernels, which are also a real device's.
fn stand_in() -> Options {
    Options { always: true, ..Options::default() }
}

/// The driver's name of an error.
fn name(error: DriverError) -> String {
    error.error_name().map_or_else(|_| format!("{error:?}"), |n| n.to_string_lossy().into_owned())
}

/// `ok`, or the name of the error.
fn outcome<T>(result: Result<T, DriverError>) -> String {
    result.map_or_else(name, |_| "ok".to_string())
}
