//! A step in micro-batches is the step over the whole batch, where no layer and no penalty looks at several samples at
//! once; and it resumes, and is counted, as any other.

mod support;

#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use cli::{Workspace, model, npz, same_run, samples};
use slrc_compiler::ir::Tensor;
use slrc_compiler::ir::text::{parse, print};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Compiled;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::session::{ModuleReport, Session};
use support::steps::{Batch, by_name, compile_spec, session, weights};

const BATCH: usize = 12;
const STEPS: u64 = 3;

/// Part `part` of `of` of a batch's samples.
fn part(batch: &Batch, part: usize, of: usize) -> Batch {
    let cut = |t: &Tensor| {
        let mut shape = t.shape.clone();
        shape[0] /= of;
        let n = t.data.len() / of;
        Tensor::new(shape, t.data[part * n..(part + 1) * n].to_vec())
    };
    Batch { inputs: batch.inputs.iter().map(|(n, t)| (n.clone(), cut(t))).collect(), labels: cut(&batch.labels) }
}

fn open(c: &Compiled, file: &OnnxFile, batch: &Batch) -> Session {
    session(c, Box::new(CpuDevice::load(&c.plan, Some(1)).expect("a device")), &weights(c, file), batch)
}

/// Trained weights, and the reports of every pass.
fn trained(c: &Compiled, file: &OnnxFile, batches: &[Batch]) -> (BTreeMap<String, Vec<f64>>, Vec<Vec<ModuleReport>>) {
    let passes = c.plan.settings.micro_batches;
    let mut s = open(c, file, &part(&batches[0], 0, passes));
    let mut reports = Vec::new();
    for pass in 0..STEPS * passes as u64 {
        let micro = part(&batches[pass as usize / passes], pass as usize % passes, passes);
        for (name, t) in &micro.inputs {
            let bytes: Vec<u8> = match s.input_buffer(name).expect("an input").dtype {
                slrc_plan::DType::F32 => t.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
                slrc_plan::DType::I32 => t.data.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
                slrc_plan::DType::U8 => t.data.iter().map(|&x| x as u8).collect(),
                slrc_plan::DType::Bit => unreachable!("inputs are of whole bytes"),
            };
            s.set_input(name, &bytes).expect("an input");
        }
        s.set_labels(&micro.labels.data.iter().map(|&x| x as i32).collect::<Vec<_>>()).expect("labels");
        reports.push(s.pass(pass, STEPS).expect("a pass"));
    }
    (by_name(s.parameters().expect("parameters")), reports)
}

/// The largest change of a weight that training made, and the largest difference between two trainings.
fn check(name: &str, modules: usize, settings: &str) {
    let file = OnnxFile::open(&model(name)).expect("model");
    let whole = compile_spec(&file, &format!("partition: {{modules: {modules}}}\n{settings}"), BATCH);
    // Fewer samples may be cut elsewhere.
    let at: Vec<&str> = whole.cuts.iter().map(|c| c.name.as_str()).collect();
    let cuts = if at.is_empty() { "partition: {modules: 1}".into() } else { format!("partition: {{at: {at:?}}}") };
    let batches: Vec<Batch> = (0..STEPS).map(|s| Batch::random(&whole, s)).collect();
    let start = by_name(weights(&whole, &file));
    let (expected, reports) = trained(&whole, &file, &batches);
    let distance = |a: &BTreeMap<String, Vec<f64>>, b: &BTreeMap<String, Vec<f64>>| {
        a.iter().flat_map(|(n, x)| x.iter().zip(&b[n])).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    };
    let moved = distance(&expected, &start);
    for n in [2, 4, BATCH] {
        let micro = compile_spec(&file, &format!("{cuts}\n{settings}\nmicro-batches: {n}"), BATCH);
        assert_eq!((micro.plan.settings.batch, micro.plan.settings.samples()), (BATCH / n, BATCH));
        let (found, passes) = trained(&micro, &file, &batches);
        let error = distance(&expected, &found);
        // Sums of f32 in another order, of gradients and (2e-7) of weights of about 1.
        assert!(
            error < 2e-5 * moved + 2e-7,
            "{name}, {settings}, {n} micro-batches: {error:e} where weights moved {moved:e}"
        );
        for (step, all) in passes.chunks(n).enumerate() {
            for (m, whole) in reports[step].iter().enumerate() {
                let mean = all.iter().map(|r| f64::from(r[m].loss)).sum::<f64>() / n as f64;
                assert!((mean - f64::from(whole.loss)).abs() < 1e-5, "{name}, step {step}: {mean}, {}", whole.loss);
            }
        }
    }
}

#[test]
fn sgd() {
    for optimizer in [
        "{momentum: 0.9, weight-decay: 0.01, schedule: cosine, warmup: 2}",
        "{momentum: 0.9, nesterov: true, weight-decay: 0.01}",
        "{momentum: 0, lr: 0.1}",
    ] {
        check("mnist_mlp", 1, &format!("optimizer: {optimizer}"));
        let reconcile = "{mode: exact, distance: squared, lambda: 0.01}";
        check("mnist_vit", 2, &format!("reconcile: {reconcile}\noptimizer: {optimizer}"));
    }
}

#[test]
fn adamw() {
    // Where a gradient is nothing but roundings, Adam makes a step of it; eps hides them.
    let optimizer = "{kind: adamw, eps: 1e-3, weight-decay: 0.01, schedule: step, every: 2}";
    check("mnist_mlp", 1, &format!("optimizer: {optimizer}"));
    check("tokens_bert", 3, &format!("reconcile: {{mode: 'off'}}\noptimizer: {optimizer}"));
}

/// Weights stay what they are until the last pass of a step.
#[test]
fn weights_change_in_the_last_pass() {
    let file = OnnxFile::open(&model("mnist_cnn")).expect("model");
    for optimizer in ["{momentum: 0.9}", "{momentum: 0.9, nesterov: true}", "{momentum: 0}", "{kind: adamw}"] {
        let c = compile_spec(&file, &format!("optimizer: {optimizer}\nmicro-batches: 3"), BATCH);
        for m in &c.modules {
            let text = print(&m.train);
            assert!(text.contains(" last 0.0 "), "{text}");
            assert_eq!(print(&parse(&text).expect("a graph's own text")), text);
        }
        let batch = part(&Batch::random(&c, 1), 0, 1);
        let mut s = open(&c, &file, &batch);
        let trainable: Vec<String> = c
            .plan
            .parameters
            .iter()
            .filter(|p| p.role == slrc_plan::plan::Role::Weight)
            .map(|p| p.name.clone())
            .collect();
        let of = |s: &Session| {
            let all = by_name(s.parameters().expect("parameters"));
            trainable.iter().map(|n| all[n].clone()).collect::<Vec<_>>()
        };
        let mut before = of(&s);
        for pass in 0..6 {
            s.pass(pass, 2).expect("a pass");
            let now = of(&s);
            assert_eq!(now != before, pass % 3 == 2, "{optimizer}, pass {pass}");
            before = now;
        }
    }
}

#[test]
fn runs_count_steps_and_resume() {
    let work = Workspace::new();
    let line = "partition MODELS/mnist_cnn/model.onnx --batch 12 --modules 2";
    let out = work.ok(&format!("{line} --micro-batches 3 -o plan")).stdout;
    assert!(out.contains("batch 12 in 3 micro-batches of 4"), "{out}");
    work.write("train.npz", npz(&samples("mnist_cnn", 60, 1)));
    let train = |options: &str| work.ok(&format!("train plan --data train.npz --seed 3 --log-every 1 {options}"));
    train("--steps 7 --checkpoint-every 2 -o whole");
    train("--steps 4 --checkpoint-every 2 -o part");
    work.ok("train plan --data train.npz --seed 3 --log-every 1 --steps 7 --resume -o part");
    same_run(&work.path("whole"), &work.path("part"));
    let log = std::fs::read_to_string(work.path("whole/metrics.jsonl")).expect("a log");
    let steps: Vec<u64> = log
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7]);
    let bench = work.json("bench plan --steps 1 --json");
    assert_eq!(bench[0]["batch"], 12);
    for (options, words) in [
        ("--micro-batches 0", "micro-batches: at least 1"),
        ("--micro-batches 5", "a batch of 12 is no multiple of 5 micro-batches"),
    ] {
        let r = work.slrc(&format!("{line} {options} -o other"));
        assert!(r.stderr.contains(words), "{}", r.stderr);
    }
}
