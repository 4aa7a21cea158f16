//! The last step of a profile as a trace that Chrome and Perfetto show: a row a module, an event a kernel.

use serde_json::{Value, json};
use slrc_plan::Plan;

use super::numbers::{KernelRow, Numbers, Profile};
use super::{Steps, pass_name};

/// The trace, in the JSON format of Chrome's trace viewer. Kernels follow each other without gaps: a profile times
/// kernels, not what is between them.
pub(super) fn text(plan: &Plan, steps: &Steps, profile: &Profile) -> String {
    let name = format!("{}, a {} of {} samples on {}", profile.model, pass_name(plan), profile.batch, profile.device);
    let mut events = vec![metadata("process_name", 0, &name)];
    events.extend(plan.modules.iter().map(|m| {
        let row = format!("m{}: {} .. {}", m.index, m.first, m.last);
        metadata("thread_name", m.index, &row)
    }));
    // Whole nanoseconds, so that an event ends where the next one begins.
    let mut at: u64 = 0;
    for (t, row) in steps.kernels.iter().zip(&profile.kernels) {
        let seconds = t.seconds.last().copied().unwrap_or_default();
        let duration = (seconds * 1e9).round() as u64;
        events.push(event(row, seconds, at, duration));
        at += duration;
    }
    // An event a line.
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    format!("{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}\n", lines.join(",\n"))
}

fn metadata(what: &str, row: usize, name: &str) -> Value {
    json!({ "ph": "M", "name": what, "pid": 1, "tid": row, "args": { "name": name } })
}

/// A kernel, beginning and duration in nanoseconds; the format has microseconds.
fn event(k: &KernelRow, seconds: f64, at: u64, duration: u64) -> Value {
    let n = Numbers::new(seconds, k.numbers.roof_seconds, k.numbers.flops, k.numbers.bytes);
    // Work without a node is slrc's own.
    let subject = k.nodes.first().map_or(k.phase, String::as_str);
    json!({
        "ph": "X",
        "name": format!("{} {subject}", k.family),
        "cat": k.phase,
        "pid": 1,
        "tid": k.module,
        "ts": at as f64 / 1e3,
        "dur": duration as f64 / 1e3,
        "args": {
            "kernel": k.name(),
            "nodes": k.nodes,
            "flops": n.flops,
            "bytes": n.bytes,
            "GFLOP/s": n.flops_per_second / 1e9,
            "GB/s": n.bytes_per_second / 1e9,
            "predicted us": n.roof_seconds.map(|s| s * 1e6),
            "of roof": n.of_roof,
            "bound": k.bound,
        },
    })
}
