//! `slrc devices`: what plans can run on here. Never fails; what is missing is part of the answer.

use slrc_runtime::cpu::Vector;
use slrc_runtime::cuda::probe;

use crate::failure::Failure;
use crate::output;
use crate::table::{bytes, table};

pub(crate) fn run() -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = format!("{cores} {}, {}", if cores == 1 { "core" } else { "cores" }, Vector::detect());
    let mut rows = vec![vec!["cpu".into(), cpu, String::new(), String::new()]];
    let mut notes = Vec::new();
    match probe::devices() {
        Ok(devices) => {
            for d in devices {
                let name = format!("cuda:{}", d.ordinal);
                rows.push(vec![name, d.name, d.architecture.to_string(), bytes(d.memory)]);
            }
            notes.push(match probe::driver_version() {
                Ok((major, minor)) => format!("NVIDIA driver for CUDA {major}.{minor}"),
                Err(e) => e.to_string(),
            });
            notes.push(match probe::compiler_version() {
                Ok((major, minor)) => format!("CUDA compiler (NVRTC) {major}.{minor}"),
                Err(e) => e.to_string(),
            });
            notes.push(match probe::cublaslt_version() {
                Ok((major, minor)) => format!("cuBLASLt {major}.{minor}, for --libraries cublaslt"),
                Err(e) => e.to_string(),
            });
            notes.push(match probe::cudnn_version() {
                Ok((major, minor)) => format!("cuDNN {major}.{minor}, for --libraries cudnn"),
                Err(e) => e.to_string(),
            });
        }
        Err(e) => notes.push(format!("no CUDA device can be used: {e}")),
    }
    output::print(&table(&["device", "name", "architecture", "memory"], &[3], rows));
    output::line(format!("\n{}", notes.join("\n")));
    Ok(())
}
