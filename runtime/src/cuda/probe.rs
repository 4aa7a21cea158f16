//! What CUDA there is on this machine, asked without ever failing hard: cudarc panics at the first call of a library
//! that is not there, so libraries are looked for before anything of them is called.

use cudarc::cublaslt::sys as cublaslt;
use cudarc::cudnn::sys as cudnn;
use cudarc::driver::result::{self, device};
use cudarc::driver::sys::{self as driver, CUdevice_attribute, CUresult};
use cudarc::nvrtc::sys as nvrtc;

use crate::cuda::architecture::Architecture;
use crate::cuda::error::{Called, describe};
use crate::device::DeviceError;

/// A version, major and minor number.
pub type Version = (i32, i32);

/// Oldest driver interface that loads what CUDA 12's compiler makes.
const OLDEST_DRIVER: Version = (12, 0);

/// A CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number: 0 for `cuda:0`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub architecture: Architecture,
    /// Bytes of its memory.
    pub memory: usize,
}

fn unavailable<T>(reason: impl Into<String>) -> Result<T, DeviceError> {
    Err(DeviceError::Unavailable(reason.into()))
}

/// Starts the driver; the newest CUDA version it supports.
pub fn driver_version() -> Result<Version, DeviceError> {
    // SAFETY: opens a system library by name; NVIDIA's has no initialisers that could do harm.
    if !unsafe { driver::is_culib_present() } {
        return unavailable("no NVIDIA driver: libcuda.so.1 is not on the loader path; use --device cpu");
    }
    if let Err(e) = result::init() {
        return unavailable(match e.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no device; use --device cpu".to_string(),
            CUresult::CUDA_ERROR_STUB_LIBRARY => "libcuda.so on the loader path is the toolkit's stub for linking, no \
                 driver: take its folder out of LD_LIBRARY_PATH, or use --device cpu"
                .to_string(),
            _ => format!("the NVIDIA driver does not start: {}; use --device cpu", describe(e)),
        });
    }
    let mut number = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { driver::cuDriverGetVersion(&raw mut number) }.result().called("cuDriverGetVersion")?;
    let version = (number / 1000, number % 1000 / 10);
    if version < OLDEST_DRIVER {
        return unavailable(format!(
            "the NVIDIA driver supports CUDA {}.{}; {}.{} is needed: update the driver, or use --device cpu",
            version.0, version.1, OLDEST_DRIVER.0, OLDEST_DRIVER.1
        ));
    }
    Ok(version)
}

/// The machine's devices, at least one. Starts the driver.
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    driver_version()?;
    let count = device::get_count().called("cuDeviceGetCount")?;
    if count == 0 {
        return unavailable("the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES may hide them); use --device cpu");
    }
    (0..count).map(info).collect()
}

fn info(ordinal: i32) -> Result<DeviceInfo, DeviceError> {
    let handle = device::get(ordinal).called("cuDeviceGet")?;
    let attribute = |a: CUdevice_attribute| {
        // SAFETY: the handle is of `device::get`.
        let value = unsafe { device::get_attribute(handle, a) };
        value.called("cuDeviceGetAttribute").map(i32::unsigned_abs)
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(DeviceInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name: device::get_name(handle).called("cuDeviceGetName")?,
        architecture: Architecture(10 * major + minor),
        // SAFETY: the handle is of `device::get`.
        memory: unsafe { device::total_mem(handle) }.called("cuDeviceTotalMem")?,
    })
}

/// One device by its number.
pub fn device_info(ordinal: usize) -> Result<DeviceInfo, DeviceError> {
    let all = devices()?;
    let names: Vec<String> = all.iter().map(|d| format!("cuda:{}", d.ordinal)).collect();
    let missing = || format!("there is no cuda:{ordinal} on this machine, only {}", names.join(", "));
    all.into_iter().nth(ordinal).ok_or_else(|| DeviceError::Unavailable(missing()))
}

/// Version of the runtime compiler.
pub fn compiler_version() -> Result<Version, DeviceError> {
    // SAFETY: opens a system library by name; NVIDIA's has no initialisers that could do harm.
    if !unsafe { nvrtc::is_culib_present() } {
        return unavailable(
            "no CUDA compiler: libnvrtc.so.12 is not on the loader path; install NVRTC of CUDA 12 (the Python package \
             nvidia-cuda-nvrtc-cu12 holds it) and name its folder in LD_LIBRARY_PATH, or use --device cpu",
        );
    }
    let mut version = (0, 0);
    // SAFETY: both pointers are valid for the call.
    let status = unsafe { nvrtc::nvrtcVersion(&raw mut version.0, &raw mut version.1) };
    match status.result() {
        Ok(()) => Ok(version),
        Err(e) => Err(DeviceError::Call { call: "nvrtcVersion", reason: e.to_string() }),
    }
}

/// Oldest cuBLASLt whose interface is the one that is called.
const OLDEST_CUBLASLT: Version = (12, 0);

/// Version of cuBLASLt.
pub fn cublaslt_version() -> Result<Version, DeviceError> {
    // SAFETY: opens a system library by name; NVIDIA's has no initialisers that could do harm.
    if !unsafe { cublaslt::is_culib_present() } {
        return unavailable(
            "no cuBLASLt: libcublasLt.so.12 is not on the loader path; install cuBLAS of CUDA 12 (the Python package \
             nvidia-cublas-cu12 holds it) and name its folder in LD_LIBRARY_PATH, or use --libraries none",
        );
    }
    // SAFETY: the library is there.
    let number = unsafe { cublaslt::cublasLtGetVersion() };
    let version = cublas_version(number);
    if version < OLDEST_CUBLASLT {
        return unavailable(format!(
            "cuBLASLt on the loader path is {}.{}; {}.{} is needed: name the folder of libcublasLt.so.12 in \
             LD_LIBRARY_PATH, or use --libraries none",
            version.0, version.1, OLDEST_CUBLASLT.0, OLDEST_CUBLASLT.1
        ));
    }
    Ok(version)
}

/// Version of the cuBLASLt that is there, where the driver can run it.
pub(super) fn usable_cublaslt() -> Result<Version, DeviceError> {
    let (library, driver) = (cublaslt_version()?, driver_version()?);
    if library.0 <= driver.0 {
        return Ok(library);
    }
    unavailable(format!(
        "the NVIDIA driver supports CUDA {}.{}, cuBLASLt on the loader path is {}.{}: update the driver, name the folder of \
         libcublasLt.so.{} in LD_LIBRARY_PATH, or use --libraries none",
        driver.0, driver.1, library.0, library.1, driver.0
    ))
}

/// The version that cuBLAS gives as one number: 120903 is 12.9. Before 12 the major number was counted in thousands.
fn cublas_version(number: usize) -> Version {
    let (major, rest) =
        if number < 100_000 { (number / 1000, number % 1000) } else { (number / 10_000, number % 10_000) };
    (major as i32, (rest / 100) as i32)
}

/// Oldest cuDNN whose interface is the one that is called: its numbers of errors are others before.
const OLDEST_CUDNN: Version = (9, 0);

/// Version of cuDNN.
pub fn cudnn_version() -> Result<Version, DeviceError> {
    // SAFETY: opens a system library by name; NVIDIA's has no initialisers that could do harm.
    if !unsafe { cudnn::is_culib_present() } {
        return unavailable(
            "no cuDNN: libcudnn.so.9 is not on the loader path; install cuDNN 9 (the Python package nvidia-cudnn-cu12 \
             holds it) and name its folder in LD_LIBRARY_PATH, or use --libraries without cudnn",
        );
    }
    // SAFETY: the library is there.
    let number = unsafe { cudnn::cudnnGetVersion() };
    let version = version_of_cudnn(number);
    if version < OLDEST_CUDNN {
        return unavailable(format!(
            "cuDNN on the loader path is {}.{}; {}.{} is needed: name the folder of libcudnn.so.9 in LD_LIBRARY_PATH, or use \
             --libraries without cudnn",
            version.0, version.1, OLDEST_CUDNN.0, OLDEST_CUDNN.1
        ));
    }
    Ok(version)
}

/// Version of the cuDNN that is there, where the driver can run it.
pub(super) fn usable_cudnn() -> Result<Version, DeviceError> {
    let (library, driver) = (cudnn_version()?, driver_version()?);
    // SAFETY: the library is there.
    let number = unsafe { cudnn::cudnnGetCudartVersion() } as i32;
    let built_for = (number / 1000, number % 1000 / 10);
    if built_for.0 <= driver.0 {
        return Ok(library);
    }
    unavailable(format!(
        "the NVIDIA driver supports CUDA {}.{}, cuDNN on the loader path is for {}.{}: update the driver, install cuDNN for \
         CUDA {} (the Python package nvidia-cudnn-cu{}), or use --libraries without cudnn",
        driver.0, driver.1, built_for.0, built_for.1, driver.0, driver.0
    ))
}

/// The version that cuDNN gives as one number: 92600 is 9.26. Before 9 the major number was counted in thousands.
fn version_of_cudnn(number: usize) -> Version {
    let (major, rest) =
        if number < 10_000 { (number / 1000, number % 1000) } else { (number / 10_000, number % 10_000) };
    (major as i32, (rest / 100) as i32)
}

/// Fails where the driver cannot load what a compiler makes: code of a later major version. `name` is the compiler's in
/// the message.
pub(super) fn check_pair(driver: Version, compiler: Version, name: &str) -> Result<(), DeviceError> {
    if driver.0 >= compiler.0 {
        return Ok(());
    }
    unavailable(format!(
        "the NVIDIA driver supports CUDA {}.{}, {name} is {}.{}: update the driver, or compile with NVRTC of CUDA {}",
        driver.0, driver.1, compiler.0, compiler.1, driver.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_an_error_with_a_way_out() {
        // A machine may have a driver and a compiler; without them nothing panics.
        for missing in [devices().err(), compiler_version().err()].into_iter().flatten() {
            let text = missing.to_string();
            assert!(matches!(missing, DeviceError::Unavailable(_)) && text.contains("use --device cpu"), "{text}");
        }
    }

    #[test]
    fn versions_of_cublas() {
        assert_eq!([11_401, 110_900, 120_903, 130_100].map(cublas_version), [(11, 4), (11, 9), (12, 9), (13, 1)]);
    }

    #[test]
    fn versions_of_cudnn() {
        assert_eq!([8_907, 90_100, 92_600].map(version_of_cudnn), [(8, 9), (9, 1), (9, 26)]);
    }

    #[test]
    fn a_compiler_may_be_newer_by_a_minor_version_only() {
        assert!(check_pair((12, 4), (12, 9), "it").is_ok());
        assert!(check_pair((13, 0), (12, 9), "it").is_ok());
        let e = check_pair((12, 9), (13, 0), "it").expect_err("too new").to_string();
        assert!(e.contains("12.9") && e.contains("13.0"), "{e}");
    }
}
