//! Cuts where several tensors cross (`--allow-skips`), through the command: which there are, which fit together, what a
//! plan says of them, and that they train.

#[path = "support/cli.rs"]
mod cli;

use cli::{Array, Values, Workspace, npz};
use slrc_plan::Plan;
use slrc_plan::kernel::KernelOp;
use slrc_plan::random::Sequence;

/// The golden U-Net of tests/goldens.
const UNET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/unet.onnx");

/// Where its goldens are cut.
const CUTS: &str = "/down/act/Mul,/bottom/act/Mul,/merge1/act/Mul";

fn plan(work: &Workspace, options: &str) -> Plan {
    work.ok(&format!("partition {UNET} --batch 8 {options} -o plan"));
    slrc_runtime::folder::read_plan(&work.path("plan")).expect("a plan")
}

#[test]
fn a_plan_names_everything_that_crosses() {
    let work = Workspace::new();
    let p = plan(&work, &format!("--allow-skips 2 --at {CUTS} --reconcile exact"));
    let crossing: Vec<Vec<&str>> = p.boundaries.iter().map(|b| b.tensors().map(|t| t.0).collect()).collect();
    let [wide, down] = ["/enter/act/Mul_output_0", "/down/act/Mul_output_0"];
    let [bottom, merge] = ["/bottom/act/Mul_output_0", "/merge1/act/Mul_output_0"];
    assert_eq!(crossing, [vec![down, wide], vec![bottom, wide, down], vec![merge, wide]]);
    assert!(p.boundaries.iter().flat_map(|b| b.tensors()).all(|(_, _, e)| e.is_some()), "gradients come along");
    assert!(p.settings.partition.ends_with("allow-skips 2"), "{}", p.settings.partition);
    // The second module makes neither of what it carries on: it copies both, with their gradients.
    let copies = p.modules[1].step.kernels.iter().filter(|k| matches!(k.run, KernelOp::Copy(_)));
    let carried: Vec<&str> = p.boundaries[1].carried.iter().map(|c| c.x.as_str()).collect();
    let copied = copies.filter(|k| k.run.operands().iter().any(|o| carried.contains(&o.view.buffer.as_str())));
    assert_eq!(copied.count(), 2);
    // Nothing compares, so no gradient crosses.
    let blind = plan(&work, &format!("--allow-skips 2 --at {CUTS} --reconcile off --no-monitor"));
    assert!(blind.boundaries.iter().flat_map(|b| b.tensors()).all(|(_, _, e)| e.is_none()));
    // Where it may be cut and where not is in the report.
    let report = std::fs::read_to_string(work.path("plan/partition.txt")).expect("a report");
    assert!(
        report.contains("8x8x2x2 + 8x4x8x8 of /enter/act/Mul_output_0 + 8x6x4x4 of /down/act/Mul_output_0"),
        "{report}"
    );
}

#[test]
fn more_places_never_take_more_memory() {
    let work = Workspace::new();
    for modules in [2, 3] {
        let peak = |skips| plan(&work, &format!("--modules {modules} --allow-skips {skips}")).memory.peak();
        let peaks: Vec<usize> = (0..3).map(peak).collect();
        assert!(peaks.is_sorted_by(|a, b| a >= b), "{modules} modules: {peaks:?}");
    }
}

#[test]
fn cuts_that_do_not_fit_say_what_would() {
    let work = Workspace::new();
    let at = |skips: usize, at: &str, words: &[&str]| {
        work.fails(&format!("partition {UNET} --batch 8 --allow-skips {skips} --at {at} -o plan"), 3, words);
    };
    at(1, "/bottom/act/Mul", &["3 tensors are live here", "--allow-skips 2 would carry the others"]);
    let modules = format!("partition {UNET} --batch 8 --modules 6 -o plan");
    work.fails(&modules, 3, &["--allow-skips N also cuts where up to N tensors cross"]);
}

/// Reports, comparisons and checks of a plan whose boundaries have several tensors; and it learns.
#[test]
fn every_verb_takes_such_a_plan() {
    let work = Workspace::new();
    let options = format!("{UNET} --batch 8 --allow-skips 2 --at {CUTS} --lr 0.05");
    work.ok(&format!("partition {options} -o plan"));
    work.ok("plan verify plan");
    work.ok(&format!("partition {options} --check plan"));
    work.ok(&format!("partition {UNET} --batch 8 --modules 2 -o other"));
    let different = work.ok("plan diff other plan").stdout;
    assert!(different.contains("/merge1/act/Mul"), "{different}");
    work.ok("plan report plan -o report.html");
    let page = std::fs::read_to_string(work.path("report.html")).expect("a page");
    assert!(page.contains("and 2 carried along"), "boundary 2 is not described");
    let mut rng = Sequence::new(3, 1, 4);
    let x = (0..16 * 2 * 8 * 8).map(|_| rng.normal()).collect();
    let y = (0..16).map(|_| i64::from(rng.word() % 5)).collect();
    let samples = [Array::new("input", &[16, 2, 8, 8], Values::F32(x)), Array::new("y", &[16], Values::I64(y))];
    work.write("train.npz", npz(&samples));
    work.ok("train plan --data train.npz --steps 12 --log-every 1 -o run");
    let text = std::fs::read_to_string(work.path("run/metrics.jsonl")).expect("metrics");
    let losses: Vec<f64> = text
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["modules"][3]["loss"].as_f64())
        .collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    work.ok("export run -o trained.onnx");
}
