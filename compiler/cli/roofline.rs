//! A roofline estimate: each kernel takes as long as the slower of its memory traffic and its arithmetic, at the peaks
//! of a device (Williams, Waterman, Patterson, CACM 2009). A bound from below, not a measurement. A table has the peaks
//! of GPUs.

use serde::Serialize;
use slrc_plan::plan::ModulePlan;
use slrc_plan::{DType, Kernel, KernelOp, Plan, Precision};

/// What a device does at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Peaks {
    /// Floating-point operations a second in f32.
    pub(crate) flops_per_second: f64,
    /// The same of matrix products, in the plan's precision.
    pub(crate) product_flops_per_second: f64,
    /// Bytes a second of memory.
    pub(crate) bytes_per_second: f64,
}

/// Seconds that a kernel cannot do without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bound {
    /// For its operands.
    pub(crate) memory: f64,
    /// For its arithmetic.
    pub(crate) work: f64,
}

impl Bound {
    /// The longer of the two.
    pub(crate) fn seconds(self) -> f64 {
        self.memory.max(self.work)
    }

    /// Which one is the longer.
    pub(crate) fn name(self) -> &'static str {
        if self.memory >= self.work { "memory" } else { "work" }
    }
}

impl Peaks {
    /// The bound of a kernel that moves so many bytes.
    pub(crate) fn bound(&self, k: &Kernel, bytes: usize) -> Bound {
        // Nearly all of attention's work is its products, on the same cores.
        let multiplies = k.run.is_product() || matches!(k.run, KernelOp::Attention(_));
        let flops = if multiplies { self.product_flops_per_second } else { self.flops_per_second };
        Bound { memory: bytes as f64 / self.bytes_per_second, work: k.flops as f64 / flops }
    }
}

/// A GPU's peaks: vendor's data sheets, boost clock, no sparsity.
pub(crate) struct Gpu {
    /// As written after `--device`.
    pub(crate) name: &'static str,
    /// As people know it.
    pub(crate) title: &'static str,
    /// As the driver names it, without the vendor; no other board of the same chip.
    driver: &'static str,
    /// Bytes a second of device memory.
    bandwidth: f64,
    /// Floating-point operations a second in f32, without tensor cores.
    flops: f64,
    /// The same on tensor cores, in TF32 and in bf16 with f32 sums, where it has them.
    tensor: Option<[f64; 2]>,
}

const GPUS: &[Gpu] = &[
    Gpu { name: "t4", title: "T4", driver: "Tesla T4", bandwidth: 320e9, flops: 8.1e12, tensor: None },
    Gpu { name: "l4", title: "L4", driver: "L4", bandwidth: 300e9, flops: 30.3e12, tensor: Some([60e12, 121e12]) },
    Gpu {
        name: "rtx3090",
        title: "GeForce RTX 3090",
        driver: "GeForce RTX 3090",
        bandwidth: 936e9,
        flops: 35.6e12,
        tensor: Some([35.6e12, 71e12]),
    },
    Gpu {
        name: "rtx4090",
        title: "GeForce RTX 4090",
        driver: "GeForce RTX 4090",
        bandwidth: 1008e9,
        flops: 82.6e12,
        tensor: Some([82.6e12, 165.2e12]),
    },
    Gpu {
        name: "a100",
        title: "A100 80 GB SXM",
        driver: "A100-SXM4-80GB",
        bandwidth: 2039e9,
        flops: 19.5e12,
        tensor: Some([156e12, 312e12]),
    },
    Gpu {
        name: "h100",
        title: "H100 SXM",
        driver: "H100 80GB HBM3",
        bandwidth: 3350e9,
        flops: 66.9e12,
        tensor: Some([494.7e12, 989.4e12]),
    },
    Gpu {
        name: "h200",
        title: "H200 SXM",
        driver: "H200",
        bandwidth: 4800e9,
        flops: 66.9e12,
        tensor: Some([494.7e12, 989.4e12]),
    },
];

/// Finds a GPU that multiplies with this precision; the error lists the table.
pub(crate) fn gpu(name: &str, precision: Precision) -> Result<&'static Gpu, String> {
    let gpu = GPUS.iter().find(|g| g.name == name).ok_or_else(|| {
        let all: Vec<&str> = GPUS.iter().map(|g| g.name).collect();
        format!("--device {name}: figures are known of {}", all.join(", "))
    })?;
    match gpu.product_flops(precision) {
        Some(_) => Ok(gpu),
        None => Err(format!("--device {name}: {} has no tensor cores for {}", gpu.title, precision.name())),
    }
}

/// The GPU of a driver's name.
pub(crate) fn gpu_of_driver(name: &str) -> Option<&'static Gpu> {
    let short = name.strip_prefix("NVIDIA ").unwrap_or(name);
    GPUS.iter().find(|g| g.driver == short)
}

/// GPUs whose figures are known, as people know them.
pub(crate) fn titles() -> String {
    GPUS.iter().map(|g| g.title).collect::<Vec<_>>().join(", ")
}

impl Gpu {
    /// Floating-point operations a second of matrix products.
    fn product_flops(&self, precision: Precision) -> Option<f64> {
        match precision {
            Precision::F32 => Some(self.flops),
            Precision::Tf32 => self.tensor.map(|[tf32, _]| tf32),
            Precision::Bf16 => self.tensor.map(|[_, bf16]| bf16),
        }
    }

    /// With products of this precision, or in f32 where it has no tensor cores for it.
    pub(crate) fn peaks(&self, precision: Precision) -> Peaks {
        Peaks {
            flops_per_second: self.flops,
            product_flops_per_second: self.product_flops(precision).unwrap_or(self.flops),
            bytes_per_second: self.bandwidth,
        }
    }
}

/// Estimate of one module's training step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// Bytes read and written by its kernels, each operand once a kernel.
    pub(crate) bytes_moved: usize,
    /// Seconds in kernels bound by memory.
    pub(crate) memory_seconds: f64,
    /// Seconds in kernels bound by arithmetic.
    pub(crate) compute_seconds: f64,
}

impl Estimate {
    pub(crate) fn seconds(&self) -> f64 {
        self.memory_seconds + self.compute_seconds
    }
}

/// Bytes of a kernel's operands, each element once.
pub(crate) fn bytes_moved(plan: &Plan, k: &Kernel) -> usize {
    let of = |o: &slrc_plan::kernel::Operand<'_>| {
        let dtype = plan.all_buffers().find(|b| b.id == o.view.buffer).map_or(DType::F32, |b| b.dtype);
        let count: usize = o.space.iter().zip(&o.view.strides).filter(|(_, s)| **s != 0).map(|(n, _)| n).product();
        dtype.bytes(count)
    };
    k.run.operands().iter().map(of).sum()
}

/// Estimates a module's training step.
pub(crate) fn estimate(plan: &Plan, m: &ModulePlan, gpu: &Gpu) -> Estimate {
    let (mut e, peaks) = (Estimate::default(), gpu.peaks(plan.settings.precision));
    for k in &m.step.kernels {
        let bytes = bytes_moved(plan, k);
        e.bytes_moved += bytes;
        let Bound { memory, work } = peaks.bound(k, bytes);
        if memory >= work { e.memory_seconds += memory } else { e.compute_seconds += work }
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_or_listed() {
        assert_eq!(gpu("h100", Precision::Bf16).map(|g| g.title), Ok("H100 SXM"));
        assert!(gpu("h1000", Precision::F32).is_err_and(|e| e.contains("h100, h200")));
        assert!(gpu("t4", Precision::F32).is_ok() && gpu("t4", Precision::Tf32).is_err());
        let of = |name| gpu_of_driver(name).map(|g| g.name);
        assert_eq!(
            (of("NVIDIA H100 80GB HBM3"), of("Tesla T4"), of("NVIDIA L4")),
            (Some("h100"), Some("t4"), Some("l4"))
        );
        for other in ["NVIDIA H100 PCIe", "NVIDIA L40", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A100-SXM4-40GB", ""] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
