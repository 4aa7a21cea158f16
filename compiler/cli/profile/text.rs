//! A profile as tables for people, at most 120 columns wide where no family is by a library.

use super::numbers::{Numbers, Profile};
use crate::html::shortened;
use crate::table::table;

/// Longest list of nodes, in characters.
const NODES: usize = 40;

/// The whole, then families, then the slowest kernels.
pub(super) fn text(p: &Profile, roof: &str, top: usize) -> String {
    let w = &p.whole;
    let reached = w.of_roof.map_or(String::new(), |part| {
        format!("; the roof allows {} ms ({})", ms(w.roof_seconds.unwrap_or_default()), percent(part))
    });
    let mut out = format!(
        "a {} of {} samples: {} ms, {:.1} samples/s{reached}\n{roof}\n\n",
        p.pass,
        p.batch,
        ms(w.seconds),
        p.samples_per_second
    );
    let rows = p.families.iter().map(|f| {
        let mut row = vec![f.family.clone(), f.kernels.to_string(), percent(f.share)];
        row.extend(cells(&f.numbers));
        row
    });
    let header = ["family", "kernels", "share", "ms", "GFLOP/s", "GB/s", "roof ms", "of roof"];
    out.push_str(&table(&header, &[1, 2, 3, 4, 5, 6, 7], rows.collect()));
    if top == 0 {
        return out;
    }
    let mut slowest: Vec<_> = p.kernels.iter().collect();
    slowest.sort_by(|a, b| b.numbers.seconds.total_cmp(&a.numbers.seconds));
    let rows = slowest.iter().take(top).map(|k| {
        let mut row = vec![k.name(), k.family.clone()];
        row.extend(cells(&k.numbers));
        row.extend([k.bound.unwrap_or_default().to_string(), nodes(&k.nodes)]);
        row
    });
    let header = ["kernel", "family", "ms", "GFLOP/s", "GB/s", "roof ms", "of roof", "bound", "nodes"];
    out.push('\n');
    out.push_str(&table(&header, &[2, 3, 4, 5, 6], rows.collect()));
    out
}

/// Time, rates and the roof's part; empty where the roof is unknown.
fn cells(n: &Numbers) -> [String; 5] {
    [
        ms(n.seconds),
        format!("{:.1}", n.flops_per_second / 1e9),
        format!("{:.1}", n.bytes_per_second / 1e9),
        n.roof_seconds.map_or(String::new(), ms),
        n.of_roof.map_or(String::new(), percent),
    ]
}

fn ms(seconds: f64) -> String {
    format!("{:.2}", seconds * 1e3)
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// The first node, and how many more there are.
fn nodes(all: &[String]) -> String {
    let Some(first) = all.first() else { return String::new() };
    let more = if all.len() > 1 { format!(" +{}", all.len() - 1) } else { String::new() };
    shortened(first, NODES - more.len()) + &more
}

#[cfg(test)]
mod tests {
    use slrc_plan::Plan;
    use slrc_runtime::devices::DeviceName;

    use super::super::{Steps, Timed};
    use super::*;
    use crate::roofline::Peaks;

    fn steps(plan: &Plan) -> Steps {
        let kernel = |i: usize, seconds: [f64; 3]| {
            let mut kernel = plan.modules[1].step.kernels[i].clone();
            kernel.flops = 1000 * (i as u64 + 1);
            Timed {
                module: 2,
                kernel,
                by_library: (i == 1).then_some(slrc_runtime::cuda::Library::Cublaslt),
                seconds: seconds.to_vec(),
            }
        };
        // A step takes 10, 10 and 18 s; each kernel's median is 9 s.
        let kernels = vec![kernel(0, [1.0, 9.0, 9.0]), kernel(1, [9.0, 1.0, 9.0])];
        Steps { kernels, totals: vec![10.0, 10.0, 18.0] }
    }

    fn plan() -> Plan {
        let text = include_str!("../../../runtime/plan/tests/every_family.yaml");
        slrc_plan::yaml::from_str(text).expect("a plan")
    }

    #[test]
    fn shares_add_up_though_medians_do_not() {
        let plan = plan();
        let profile = Profile::of(&plan, DeviceName::Cpu, &steps(&plan), None);
        let text = text(&profile, "no roof", 0);
        assert!(text.starts_with("a step of 2 samples: 10000.00 ms, 0.2 samples/s\nno roof\n\n"), "{text}");
        assert_eq!(text.matches(" 50.0 % ").count(), 2, "{text}");
        assert_eq!(text.matches(" (cuBLASLt) ").count(), 1, "{text}");
    }

    #[test]
    fn the_longer_of_work_and_memory_bounds() {
        let plan = plan();
        let steps = steps(&plan);
        let of = |flops: f64, bytes: f64| {
            let peaks = Peaks { flops_per_second: flops, product_flops_per_second: flops, bytes_per_second: bytes };
            Profile::of(&plan, DeviceName::Cpu, &steps, Some(peaks))
        };
        // One byte a second, and arithmetic for nothing: as many seconds as bytes.
        let slow_memory = of(1e30, 1.0);
        for k in &slow_memory.kernels {
            assert_eq!((k.bound, k.numbers.roof_seconds), (Some("memory"), Some(k.numbers.bytes as f64)));
            assert_eq!(k.numbers.of_roof, Some(k.numbers.bytes as f64 / 9.0));
        }
        let sum: usize = slow_memory.kernels.iter().map(|k| k.numbers.bytes).sum();
        assert_eq!((slow_memory.whole.bytes, slow_memory.whole.roof_seconds), (sum, Some(sum as f64)));
        let slow_work = of(1.0, 1e30);
        for k in &slow_work.kernels {
            assert_eq!((k.bound, k.numbers.roof_seconds), (Some("work"), Some(k.numbers.flops as f64)));
        }
        assert_eq!(slow_work.whole.roof_seconds, Some(3000.0));
    }

    #[test]
    fn many_nodes_are_short() {
        let name = |n: usize| "x".repeat(n);
        assert_eq!(nodes(&[]), "");
        assert_eq!(nodes(&["a".into(), "b".into(), "c".into()]), "a +2");
        assert_eq!(nodes(&[name(100), name(3)]).chars().count(), NODES);
    }
}
