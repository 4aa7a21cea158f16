//! Source to machine code, by NVIDIA's runtime compiler (NVRTC). Needs no GPU and no driver.

use std::ffi::{CString, c_char};

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;

use crate::cuda::architecture::Architecture;
use crate::cuda::probe;
use crate::device::DeviceError;

/// How kernels are compiled, whoever compiles them. Products and sums are contracted only where the source says `fmaf`,
/// denormals are kept, division and square root are exact: results differ from the CPU's by summation order and the
/// last place of transcendental functions alone.
pub fn options(architecture: Architecture) -> Vec<String> {
    vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        "--fmad=false".into(),
        "--ftz=false".into(),
        "--prec-div=true".into(),
        "--prec-sqrt=true".into(),
    ]
}

/// A program of the compiler, freed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `create_program` and freed here only.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn failed(call: &'static str) -> impl Fn(NvrtcError) -> DeviceError {
    move |e| DeviceError::Call { call, reason: e.to_string() }
}

/// Compiles a source file for an architecture.
pub fn compile_cubin(source: &str, architecture: Architecture) -> Result<Vec<u8>, DeviceError> {
    probe::compiler_version()?;
    let bad = |log: String| DeviceError::Compile { architecture: architecture.to_string(), log };
    let text = CString::new(source).map_err(|e| bad(format!("byte {} is zero", e.nul_position())))?;
    let program = Program(result::create_program(&text, Some(c"kernels.cu")).map_err(failed("nvrtcCreateProgram"))?);
    // SAFETY: the program is alive until the end of this function.
    let compiled = unsafe { result::compile_program(program.0, &options(architecture)) };
    if let Err(e) = compiled {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log = String::from_utf8_lossy(bytes_of(&log)).trim_end_matches(['\0', '\n']).to_string();
        return Err(bad(if log.is_empty() { e.to_string() } else { log }));
    }
    let mut size = 0;
    // SAFETY: the program is alive and the pointer valid for the call.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }.result().map_err(failed("nvrtcGetCUBINSize"))?;
    let mut cubin = vec![0u8; size];
    // SAFETY: the compiler writes the `size` bytes it just told.
    unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }.result().map_err(failed("nvrtcGetCUBIN"))?;
    Ok(cubin)
}

fn bytes_of(text: &[c_char]) -> &[u8] {
    bytemuck::cast_slice(text)
}

/// Architectures the compiler knows, oldest first.
pub fn known_architectures() -> Result<Vec<Architecture>, DeviceError> {
    probe::compiler_version()?;
    let mut count = 0;
    // SAFETY: the pointer is valid for the call.
    let status = unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) };
    status.result().map_err(failed("nvrtcGetNumSupportedArchs"))?;
    let mut numbers = vec![0i32; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the compiler writes the `count` numbers it just told.
    let status = unsafe { sys::nvrtcGetSupportedArchs(numbers.as_mut_ptr()) };
    status.result().map_err(failed("nvrtcGetSupportedArchs"))?;
    Ok(numbers.into_iter().map(|n| Architecture(n.unsigned_abs())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `.ci/check_cuda.py` proves that kernels compile and do not spill: with these options, or it proves nothing.
    #[test]
    fn continuous_integration_compiles_with_the_same_options() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/check_cuda.py");
        let script = std::fs::read_to_string(path).expect("the script");
        let line = script.lines().find_map(|l| l.strip_prefix("OPTIONS = ")).expect("its options");
        let theirs: Vec<String> = serde_json::from_str(line).expect("a list of strings");
        let ours = options(Architecture(80));
        assert_eq!(ours[0], "--gpu-architecture=sm_80");
        assert_eq!(ours[1..], theirs);
    }
}
