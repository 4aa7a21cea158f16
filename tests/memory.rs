//! The memory a plan promises is what a run takes: peak resident size of real processes.
#![cfg(target_os = "linux")]

#[path = "support/cli.rs"]
mod cli;

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use cli::{Array, Values, Workspace, models, npz};
use slrc_plan::random::Sequence;

/// Runs of which the largest peak counts: a thread that happens to get small tasks only keeps little scratch memory.
const RUNS: usize = 2;

/// Planned peak and peak resident size in bytes of a few steps of ResNet-18 (32x32, batch 64) in `modules` modules.
fn peaks(w: &Workspace, modules: usize, recompute: &str) -> (f64, f64) {
    let (plan, run) = (format!("plan{modules}-{recompute}"), format!("run{modules}-{recompute}"));
    let options = format!("--batch 64 --init random --lr 0.001 --modules {modules} --recompute {recompute}");
    w.ok(&format!("partition resnet18.onnx {options} -o {plan}"));
    let planned = w.json(&format!("plan show {plan} --json"))["totals"]["peak_bytes"].as_f64().expect("bytes");
    let resident = (0..RUNS).map(|i| peak(w, &format!("train {plan} --data data.npz --steps 2 -o {run}.{i}")));
    (planned, resident.fold(0.0, f64::max))
}

/// Peak resident size of a command in bytes.
fn peak(w: &Workspace, line: &str) -> f64 {
    let mut child = w.command(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("slrc starts");
    // The high-water mark only rises; the last one read before the end is the peak of all but the last moment.
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0;
    while child.try_wait().expect("a child").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = text.lines().find(|l| l.starts_with("VmHWM:")) {
            let kib = line.split_whitespace().nth(1).expect("a number");
            peak = kib.parse::<f64>().expect("a number") * 1024.0;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().expect("a child").success(), "{line}");
    peak
}

#[test]
fn four_modules_take_less_by_what_the_plans_say() {
    let w = Workspace::new();
    let packed = std::fs::read(models().join("exports/resnet18_cifar.torchscript.onnx.gz")).expect("export");
    let mut model = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut model).expect("gzip");
    w.write("resnet18.onnx", model);
    let mut random = Sequence::new(1, 0, 0);
    let x: Vec<f32> = (0..128 * 3 * 32 * 32).map(|_| random.normal()).collect();
    let y: Vec<i64> = (0..128).map(|i| i % 10).collect();
    w.write(
        "data.npz",
        npz(&[Array::new("x", &[128, 3, 32, 32], Values::F32(x)), Array::new("y", &[128], Values::I64(y))]),
    );
    let (planned_1, peak_1) = peaks(&w, 1, "none");
    let (planned_4, peak_4) = peaks(&w, 4, "none");
    let (planned, peak) = peaks(&w, 4, "elementwise");
    let (promised, saved) = (planned_1 - planned_4, peak_1 - peak_4);
    #[allow(clippy::print_stdout, reason = "the measured numbers, for --nocapture")]
    {
        println!("planned {planned_1}, {planned_4} and {planned}, resident {peak_1}, {peak_4} and {peak}");
    }
    assert!(promised > 20e6, "the plans differ by {promised} bytes");
    // The bound. What both runs hold besides the plan (code, data, buffers of files) cancels.
    assert!((saved - promised).abs() < 0.1 * promised, "{saved} bytes saved, {promised} promised");
    // A run is its plan and the same for all: program, data, what threads pack. Within 3 % of it, as the issue asks.
    let all = [(planned_1, peak_1), (planned_4, peak_4), (planned, peak)];
    let beside = all.map(|(planned, peak)| peak - planned);
    let middle = (beside.iter().copied().fold(f64::MAX, f64::min) + beside.iter().copied().fold(0.0, f64::max)) / 2.0;
    for ((planned, peak), beside) in all.into_iter().zip(beside) {
        assert!(peak > 0.9 * planned, "{peak} bytes resident, {planned} planned: not all of it was used");
        assert!((beside - middle).abs() < 0.03 * peak, "{beside} bytes beside the plan's {planned}, others {middle}");
    }
}
