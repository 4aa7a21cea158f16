//! What a profile says, in numbers: of every kernel and of every family, beside what the roof allows.

use std::collections::BTreeMap;

use serde::Serialize;
use slrc_plan::kernel::{ConvDirection, KernelOp};
use slrc_plan::{Kernel, Plan};
use slrc_runtime::cuda::Library;
use slrc_runtime::devices::DeviceName;

use super::{Steps, Timed, pass_name};
use crate::bench::median;
use crate::roofline::{Peaks, bytes_moved};

/// A profile; field names are part of what `--json` prints.
#[derive(Serialize)]
pub(super) struct Profile {
    pub(super) model: String,
    /// What was run: a step, or one of its passes.
    pub(super) pass: &'static str,
    /// Samples of it.
    pub(super) batch: usize,
    pub(super) modules: usize,
    pub(super) device: String,
    /// How often it was run; times are medians.
    pub(super) steps: usize,
    /// What the device does at most, where known.
    pub(super) roof: Option<Peaks>,
    /// Of the whole.
    #[serde(flatten)]
    pub(super) whole: Numbers,
    pub(super) samples_per_second: f64,
    /// Longest first.
    pub(super) families: Vec<FamilyRow>,
    /// In the order of the step.
    pub(super) kernels: Vec<KernelRow>,
}

/// Work and bytes as planned, and seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Numbers {
    pub(super) seconds: f64,
    /// What the roof allows: kernel by kernel the longer of work and memory. Absent where the roof is unknown.
    pub(super) roof_seconds: Option<f64>,
    /// The part of the roof that is reached: what it allows by what was measured.
    pub(super) of_roof: Option<f64>,
    pub(super) flops: u64,
    pub(super) bytes: usize,
    pub(super) flops_per_second: f64,
    pub(super) bytes_per_second: f64,
}

/// A family of kernels.
#[derive(Serialize)]
pub(super) struct FamilyRow {
    pub(super) family: String,
    pub(super) kernels: usize,
    /// Of the sum of all families' seconds.
    pub(super) share: f64,
    #[serde(flatten)]
    pub(super) numbers: Numbers,
}

/// A kernel.
#[derive(Serialize)]
pub(super) struct KernelRow {
    pub(super) module: usize,
    pub(super) id: String,
    pub(super) family: String,
    pub(super) phase: &'static str,
    pub(super) nodes: Vec<String>,
    /// What bounds it: `work` or `memory`.
    pub(super) bound: Option<&'static str>,
    #[serde(flatten)]
    pub(super) numbers: Numbers,
}

impl Numbers {
    pub(super) fn new(seconds: f64, roof_seconds: Option<f64>, flops: u64, bytes: usize) -> Numbers {
        // A GPU's clock may see nothing of a kernel.
        let by_time = |x: f64| if seconds > 0.0 { x / seconds } else { 0.0 };
        Numbers {
            seconds,
            roof_seconds,
            of_roof: roof_seconds.map(by_time),
            flops,
            bytes,
            flops_per_second: by_time(flops as f64),
            bytes_per_second: by_time(bytes as f64),
        }
    }

    /// One after the other.
    fn and(self, o: Numbers) -> Numbers {
        let roof_seconds = self.roof_seconds.zip(o.roof_seconds).map(|(a, b)| a + b);
        Numbers::new(self.seconds + o.seconds, roof_seconds, self.flops.saturating_add(o.flops), self.bytes + o.bytes)
    }
}

impl KernelRow {
    fn of(plan: &Plan, t: &Timed, peaks: Option<Peaks>) -> KernelRow {
        let k = &t.kernel;
        let bytes = bytes_moved(plan, k);
        let bound = peaks.map(|p| p.bound(k, bytes));
        KernelRow {
            module: t.module,
            id: k.id.clone(),
            family: family(k, t.by_library),
            phase: k.phase.name(),
            nodes: k.nodes.clone(),
            bound: bound.map(|b| b.name()),
            numbers: Numbers::new(median(&t.seconds), bound.map(|b| b.seconds()), k.flops, bytes),
        }
    }

    /// Unique in the plan.
    pub(super) fn name(&self) -> String {
        format!("m{}.{}", self.module, self.id)
    }
}

impl Profile {
    pub(super) fn of(plan: &Plan, device: DeviceName, steps: &Steps, peaks: Option<Peaks>) -> Profile {
        let kernels: Vec<KernelRow> = steps.kernels.iter().map(|t| KernelRow::of(plan, t, peaks)).collect();
        let nothing = Numbers::new(0.0, peaks.map(|_| 0.0), 0, 0);
        let mut of_families: BTreeMap<&str, (usize, Numbers)> = BTreeMap::new();
        for k in &kernels {
            let e = of_families.entry(&k.family).or_insert((0, nothing));
            *e = (e.0 + 1, e.1.and(k.numbers));
        }
        let sum = of_families.values().fold(nothing, |sum, f| sum.and(f.1));
        let mut families: Vec<FamilyRow> = of_families
            .into_iter()
            .map(|(family, (kernels, numbers))| {
                // Medians of parts do not add up to the median of the whole.
                let share = if sum.seconds > 0.0 { numbers.seconds / sum.seconds } else { 0.0 };
                FamilyRow { family: family.to_string(), kernels, share, numbers }
            })
            .collect();
        families.sort_by(|a, b| b.numbers.seconds.total_cmp(&a.numbers.seconds));
        let whole = Numbers::new(median(&steps.totals), sum.roof_seconds, sum.flops, sum.bytes);
        Profile {
            model: plan.model.name.clone(),
            pass: pass_name(plan),
            batch: plan.settings.batch,
            modules: plan.modules.len(),
            device: device.to_string(),
            steps: steps.totals.len(),
            roof: peaks,
            samples_per_second: plan.settings.batch as f64 / whole.seconds,
            whole,
            families,
            kernels,
        }
    }
}

/// The family, with the direction of a convolution, and whether a library computes it.
fn family(k: &Kernel, by_library: Option<Library>) -> String {
    let family = match &k.run {
        KernelOp::Conv(c) => match c.direction {
            ConvDirection::Forward => "conv forward",
            ConvDirection::InputGrad => "conv input-grad",
            ConvDirection::WeightGrad => "conv weight-grad",
        },
        other => other.family(),
    };
    by_library.map_or_else(|| family.to_string(), |l| format!("{family} ({})", l.title()))
}
