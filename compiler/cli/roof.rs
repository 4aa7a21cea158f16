//! The roof over a device's kernels: the CPU's is measured, a GPU's looked up.

use slrc_plan::Precision;
use slrc_runtime::cpu::roof::measure;
use slrc_runtime::cuda::probe::device_info;
use slrc_runtime::devices::DeviceName;

use crate::roofline::{Peaks, gpu_of_driver, titles};

/// A device's peaks, and where they are from, as a line for people.
pub(crate) struct Roof {
    pub(crate) peaks: Peaks,
    pub(crate) line: String,
}

/// The roof of a device for products of a precision; `threads` counts for the CPU only. The error says, in a line, why
/// it is unknown.
pub(crate) fn of(name: DeviceName, threads: Option<usize>, precision: Precision) -> Result<Roof, String> {
    let unknown = |reason: String| format!("roof of {name}: unknown, {reason}");
    let (peaks, from) = match name {
        DeviceName::Cpu => {
            let roof = measure(threads).map_err(|e| unknown(e.to_string()))?;
            let peaks = Peaks {
                flops_per_second: roof.flops,
                product_flops_per_second: roof.flops,
                bytes_per_second: roof.bandwidth,
            };
            let threads = if roof.threads == 1 { "1 thread".into() } else { format!("{} threads", roof.threads) };
            (peaks, format!("measured with {threads}"))
        }
        DeviceName::Cuda(ordinal) => {
            let device = device_info(ordinal).map_err(|e| unknown(e.to_string()))?.name;
            let gpu = gpu_of_driver(&device)
                .ok_or_else(|| unknown(format!("no figures of \"{device}\", only of {}", titles())))?;
            (gpu.peaks(precision), format!("the data sheet of {}", gpu.title))
        }
    };
    let products = match precision {
        Precision::F32 => String::new(),
        p @ (Precision::Tf32 | Precision::Bf16) => {
            format!(", products in {} {:.1} GFLOP/s", p.name(), peaks.product_flops_per_second / 1e9)
        }
    };
    let line = format!(
        "roof of {name}: {:.1} GFLOP/s{products}, {:.1} GB/s ({from})",
        peaks.flops_per_second / 1e9,
        peaks.bytes_per_second / 1e9
    );
    Ok(Roof { peaks, line })
}
