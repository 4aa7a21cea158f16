//! `slrc profile`: a plan's training step, timed kernel by kernel on random data.

use std::collections::BTreeMap;

use slrc_plan::kernel::{ConvDirection, KernelOp};
use slrc_plan::{Kernel, Plan};
use slrc_runtime::device::ProgramKind;
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::Session;

use crate::args::ProfileArgs;
use crate::batch::Batch;
use crate::bench::median;
use crate::device;
use crate::failure::Failure;
use crate::output;
use crate::roofline::bytes_moved;
use crate::table::{bytes, flops, table};

/// Seconds of one kernel, step after step.
struct Timed {
    module: usize,
    kernel: Kernel,
    /// Whether a library computes it.
    by_library: bool,
    seconds: Vec<f64>,
}

pub(crate) fn run(a: &ProfileArgs) -> Result<(), Failure> {
    let plan = read_plan(&a.plan)?;
    let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), a.library.choice(), &a.plan)?;
    let mut session = Session::new(plan, device, &read_weights(&a.plan)?)?;
    Batch::random(&session).feed(&mut session)?;
    let library = session.library();
    if let Some(line) = device::products(session.plan(), &library, ProgramKind::Step) {
        output::line(line);
    }
    let by_library = |module: usize, id: &str| library.kernels.get(module - 1).is_some_and(|k| k[0].contains(id));
    let mut all: Vec<Timed> = Vec::new();
    let mut totals: Vec<f64> = Vec::new();
    // The first step touches memory for the first time.
    for step in 0..=a.steps.max(1) {
        let (mut at, mut total) = (0, 0.0);
        session.profile_pass(step, &mut |module, kernel, seconds| {
            total += seconds;
            if step == 0 {
                let by_library = by_library(module, &kernel.id);
                all.push(Timed { module, kernel: kernel.clone(), by_library, seconds: Vec::new() });
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

fn report(plan: &Plan, all: &[Timed], step: f64, top: usize) -> String {
    let ms = |s: f64| format!("{:.2} ms", s * 1e3);
    let rate = |flops: u64, s: f64| format!("{:.1}", flops as f64 / s / 1e9);
    let mut out = format!(
        "a {} of {} samples: {}, {:.1} samples/s\n\n",
        if plan.settings.micro_batches == 1 { "step" } else { "pass over a micro-batch" },
        plan.settings.batch,
        ms(step),
        plan.settings.batch as f64 / step
    );
    let mut families: BTreeMap<String, (f64, u64, usize)> = BTreeMap::new();
    for t in all {
        let e = families.entry(kind(t)).or_default();
        *e = (e.0 + median(&t.seconds), e.1 + t.kernel.flops, e.2 + 1);
    }
    // Medians of parts do not add up to the median of the whole.
    let sum: f64 = families.values().map(|f| f.0).sum();
    let mut rows: Vec<_> = families.into_iter().collect();
    rows.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let rows = rows
        .into_iter()
        .map(|(name, (s, f, n))| {
            vec![name, n.to_string(), ms(s), format!("{:.1} %", 100.0 * s / sum), flops(f), rate(f, s)]
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
                kind(t),
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

/// The family, with the direction of a convolution, and whether a library computes it.
fn kind(t: &Timed) -> String {
    let family = match &t.kernel.run {
        KernelOp::Conv(c) => match c.direction {
            ConvDirection::Forward => "conv forward",
            ConvDirection::InputGrad => "conv input-grad",
            ConvDirection::WeightGrad => "conv weight-grad",
        },
        other => other.family(),
    };
    if t.by_library { format!("{family} (cuBLASLt)") } else { family.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_though_medians_do_not() {
        let text = include_str!("../../runtime/plan/tests/every_family.yaml");
        let plan: Plan = slrc_plan::yaml::from_str(text).expect("a plan");
        let kernel = |i: usize, seconds: [f64; 3]| {
            let kernel = plan.modules[1].step.kernels[i].clone();
            Timed { module: 2, kernel, by_library: i == 1, seconds: seconds.to_vec() }
        };
        // A step takes 10, 10 and 18 s; each kernel's median is 9 s.
        let all = [kernel(0, [1.0, 9.0, 9.0]), kernel(1, [9.0, 1.0, 9.0])];
        let text = report(&plan, &all, median(&[10.0, 10.0, 18.0]), 0);
        assert!(text.starts_with("a step of 2 samples: 10000.00 ms, 0.2 samples/s\n"), "{text}");
        assert_eq!(text.matches(" 50.0 % ").count(), 2, "{text}");
        assert_eq!(text.matches(" (cuBLASLt) ").count(), 1, "{text}");
    }
}
