//! `slrc profile`: a plan's training step, timed kernel by kernel on random data.

use std::collections::BTreeMap;

use slrc_plan::kernel::{ConvDirection, KernelOp};
use slrc_plan::random::{Sequence, stream_of};
use slrc_plan::{DType, Kernel, Plan};
use slrc_runtime::device::DeviceError;
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::Session;

use crate::args::ProfileArgs;
use crate::device;
use crate::failure::Failure;
use crate::output;
use crate::roofline::bytes_moved;
use crate::table::{bytes, flops, table};

/// Seconds of one kernel, step after step.
struct Timed {
    module: usize,
    kernel: Kernel,
    seconds: Vec<f64>,
}

pub(crate) fn run(a: &ProfileArgs) -> Result<(), Failure> {
    let plan = read_plan(&a.plan)?;
    let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), &a.plan)?;
    let mut session = Session::new(plan, device, &read_weights(&a.plan)?)?;
    fill(&mut session)?;
    let mut all: Vec<Timed> = Vec::new();
    let mut totals: Vec<f64> = Vec::new();
    // The first step touches memory for the first time.
    for step in 0..=a.steps.max(1) {
        let (mut at, mut total) = (0, 0.0);
        session.profile_step(step, &mut |module, kernel, seconds| {
            total += seconds;
            if step == 0 {
                all.push(Timed { module, kernel: kernel.clone(), seconds: Vec::new() });
            } else {
                all[at].seconds.push(seconds);
            }
            at += 1;
        })?;
        if step > 0 {
            totals.push(total);
        }
    }
    output::print(&report(session.plan(), &all, median(&totals), a.top));
    Ok(())
}

/// Fills inputs and labels with seeded random values.
fn fill(session: &mut Session) -> Result<(), DeviceError> {
    let inputs = session.plan().inputs.clone();
    for i in &inputs {
        let mut random = Sequence::new(0, stream_of(&i.name), 0);
        let Some(b) = session.input_buffer(&i.name) else { continue };
        let (dtype, count) = (b.dtype, b.count());
        let mut whole = || (random.unit() * i.index_below.unwrap_or(2) as f32) as i32;
        let data: Vec<u8> = match dtype {
            DType::F32 => (0..count).flat_map(|_| random.normal().to_le_bytes()).collect(),
            DType::I32 => (0..count).flat_map(|_| whole().to_le_bytes()).collect(),
            DType::U8 => (0..count).map(|_| whole() as u8).collect(),
        };
        session.set_input(&i.name, &data)?;
    }
    let classes = session.plan().labels.classes;
    let mut random = Sequence::new(0, stream_of("labels"), 0);
    let labels: Vec<i32> =
        (0..session.labels_buffer().count()).map(|_| (random.unit() * classes as f32) as i32).collect();
    session.set_labels(&labels)
}

fn median(values: &[f64]) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let middle = &v[v.len().saturating_sub(1) / 2..v.len() / 2 + usize::from(!v.is_empty())];
    middle.iter().sum::<f64>() / middle.len().max(1) as f64
}

fn report(plan: &Plan, all: &[Timed], step: f64, top: usize) -> String {
    let ms = |s: f64| format!("{:.2} ms", s * 1e3);
    let rate = |flops: u64, s: f64| format!("{:.1}", flops as f64 / s / 1e9);
    let mut out = format!(
        "a step of {} samples: {}, {:.1} samples/s\n\n",
        plan.settings.batch,
        ms(step),
        plan.settings.batch as f64 / step
    );
    let mut families: BTreeMap<&str, (f64, u64, usize)> = BTreeMap::new();
    for t in all {
        let e = families.entry(kind(&t.kernel)).or_default();
        *e = (e.0 + median(&t.seconds), e.1 + t.kernel.flops, e.2 + 1);
    }
    // Medians of parts do not add up to the median of the whole.
    let sum: f64 = families.values().map(|f| f.0).sum();
    let mut rows: Vec<_> = families.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let rows = rows
        .into_iter()
        .map(|(name, (s, f, n))| {
            vec![name.into(), n.to_string(), ms(s), format!("{:.1} %", 100.0 * s / sum), flops(f), rate(f, s)]
        })
        .collect();
    let header = ["family", "kernels", "time", "share", "work", "GFLOP/s"];
    out.push_str(&table(&header, &[1, 2, 3, 4, 5], rows));
    let mut slowest: Vec<&Timed> = all.iter().collect();
    slowest.sort_by(|a, b| median(&b.seconds).total_cmp(&median(&a.seconds)));
    let rows = slowest
        .iter()
        .take(top)
        .map(|t| {
            let s = median(&t.seconds);
            let k = &t.kernel;
            let moved = bytes_moved(plan, k);
            vec![
                format!("m{}.{}", t.module, k.id),
                kind(k).into(),
                ms(s),
                rate(k.flops, s),
                format!("{}/s", bytes((moved as f64 / s) as usize)),
                k.nodes.join(" "),
            ]
        })
        .collect();
    if top > 0 {
        out.push('\n');
        out.push_str(&table(&["kernel", "family", "time", "GFLOP/s", "memory", "nodes"], &[2, 3, 4], rows));
    }
    out
}

/// The family, with the direction of a convolution.
fn kind(k: &Kernel) -> &'static str {
    match &k.run {
        KernelOp::Conv(c) => match c.direction {
            ConvDirection::Forward => "conv forward",
            ConvDirection::InputGrad => "conv input-grad",
            ConvDirection::WeightGrad => "conv weight-grad",
        },
        other => other.family(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn shares_add_up_though_medians_do_not() {
        let text = include_str!("../../runtime/plan/tests/every_family.yaml");
        let plan: Plan = slrc_plan::yaml::from_str(text).expect("a plan");
        let kernel = |i: usize, seconds: [f64; 3]| {
            let kernel = plan.modules[1].step.kernels[i].clone();
            Timed { module: 2, kernel, seconds: seconds.to_vec() }
        };
        // A step takes 10, 10 and 18 s; each kernel's median is 9 s.
        let all = [kernel(0, [1.0, 9.0, 9.0]), kernel(1, [9.0, 1.0, 9.0])];
        let text = report(&plan, &all, median(&[10.0, 10.0, 18.0]), 0);
        assert!(text.starts_with("a step of 2 samples: 10000.00 ms, 0.2 samples/s\n"), "{text}");
        assert_eq!(text.matches(" 50.0 % ").count(), 2, "{text}");
    }
}
