//! Damaged plans: whatever `read_plan` accepts can be loaded and run, and everything else is a typed error.
//!
//! A device trusts a validated plan with raw memory, so what is accepted here is run. Mutations are seeded, so a
//! failure names the case and repeats.
#![allow(clippy::print_stdout, reason = "the counts, for --nocapture")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/mutate.rs"]
mod mutate;
#[path = "support/mutate_plan.rs"]
mod mutate_plan;

use std::collections::BTreeMap;
use std::path::Path;

use cli::Workspace;
use mutate::{Dice, cases, no_panic};
use mutate_plan::{Size, replace};
use slrc_plan::random::Sequence;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::data::dataset::{Dataset, Part};
use slrc_runtime::device::{Device, ProgramKind, StepContext};
use slrc_runtime::folder::read_plan;
use slrc_runtime::session::Session;
use slrc_runtime::trainer::{Length, RunOptions, evaluate, train};

/// Plans that together use every kernel family.
const PLANS: &[(&str, &str)] = &[
    ("mnist_mlp", "--modules 2"),
    ("mnist_cnn", "--modules 2 --reconcile exact --optimizer adamw"),
    ("tokens_bert", "--modules 2 --distance squared"),
    ("mnist_deep8", "--modules 2 --reconcile off --head mlp-sr"),
];

/// Most bytes of a plan that is loaded: a damaged plan may well ask for all memory there is.
const LOAD_BYTES: usize = 1 << 30;

/// Reads a plan, loads it and runs every program. What was reached, for the count.
fn attempt(folder: &Path, text: &[u8], run: bool) -> &'static str {
    std::fs::write(folder.join("plan.yaml"), text).expect("a file");
    let Ok(plan) = read_plan(folder) else { return "reading" };
    if plan.memory.peak() > LOAD_BYTES {
        return "loading";
    }
    let Ok(mut device) = CpuDevice::load(&plan, Some(1)) else { return "loading" };
    if !run {
        return "the end";
    }
    // Numbers as they occur, so that no branch is taken for zero's sake; labels stay zero.
    let mut rng = Sequence::new(1, 1, 1);
    for p in &plan.parameters {
        let b = plan.buffers.iter().find(|b| b.id == p.buffer).expect("a validated plan has it");
        let bytes: Vec<u8> = (0..b.bytes / 4).flat_map(|_| (0.1 + 0.1 * rng.symmetric(1.0)).to_le_bytes()).collect();
        device.write(b, &bytes).expect("memory can be written");
    }
    for m in &plan.modules {
        for step in 0..2 {
            // Data may be refused, with an error.
            let _ = device.run(m.index, ProgramKind::Step, StepContext { seed: 1, pass: step });
        }
        let _ = device.run(m.index, ProgramKind::Eval, StepContext { seed: 1, pass: 0 });
    }
    // The way a user takes: weights, data, an epoch's worth of steps, evaluation.
    let weights = slrc_runtime::folder::read_weights(folder).expect("weights");
    let (Ok(mut session), Ok(data)) =
        (Session::new(plan, Box::new(device), &weights), Dataset::read(&folder.join("data.npz"), Part::Train))
    else {
        return "a session";
    };
    let options = RunOptions {
        length: Some(Length::Steps(2)),
        shuffle: true,
        seed: 1,
        log_every: 1,
        checkpoint_every: Some(100),
    };
    let out = folder.join("run");
    std::fs::create_dir_all(&out).expect("a folder");
    let trained = train(&mut session, &data, &out, &options, None, &mut |_| {});
    std::fs::remove_dir_all(&out).expect("remove");
    let evaluated = evaluate(&mut session, &data, &mut |_, _| {});
    if trained.is_ok() && evaluated.is_ok() { "the end" } else { "a step" }
}

fn run(name: &str, count: u64, run: bool, change: impl Fn(&str, &mut Dice) -> Vec<u8>) {
    let work = Workspace::new();
    let mut reached = BTreeMap::<&str, usize>::new();
    for (i, (model, options)) in PLANS.iter().enumerate() {
        work.ok(&format!("partition MODELS/{model}/model.onnx {options} --batch 2 -o p{i}"));
        work.write(&format!("p{i}/data.npz"), cli::npz(&cli::samples(model, 4, 1)));
        let folder = work.path(&format!("p{i}"));
        let text = std::fs::read_to_string(folder.join("plan.yaml")).expect("a plan");
        assert_eq!(attempt(&folder, text.as_bytes(), run), "the end", "{model} itself");
        for seed in cases(count) {
            let changed = change(&text, &mut Dice::new(seed));
            let what = format!("{name} plan {i} seed {seed}");
            let end = no_panic(&what, || attempt(&folder, &changed, run));
            *reached.entry(end).or_default() += 1;
            if end != "reading" {
                // Totals of any plan can be shown.
                work.ok(&format!("plan show p{i} --json"));
            }
        }
    }
    for stage in ["reading", "the end"] {
        assert!(reached.contains_key(stage), "{name}: no case ends at {stage}: {reached:?}");
    }
}

#[test]
fn bytes() {
    run("bytes", 200, true, |text, dice| dice.mangle(text.as_bytes().to_vec()));
}

/// One to three numbers, names or lines in place of others of the same plan.
#[test]
fn words() {
    run("words", 100, true, |text, dice| {
        let mut text = text.to_string();
        for _ in 0..1 + dice.below(3) {
            text = replace(&text, dice, Size::Small);
        }
        text.into_bytes()
    });
}

/// Numbers that no memory could hold and no sum would fit.
#[test]
fn large_numbers() {
    run("large numbers", 50, false, |text, dice| replace(text, dice, Size::Large).into_bytes());
}

/// Lines of commands that look at plan folder `p` beside its sound twin `q`, and the codes they may end with.
const LOOKS: &[(&str, &[i32])] = &[
    ("plan show p", &[0, 4]),
    ("plan show p --json --device t4", &[0, 4]),
    ("plan explain p", &[0, 4]),
    ("plan explain p --csv", &[0, 4]),
    ("plan diff p q", &[0, 4]),
    ("plan diff q p --format markdown", &[0, 4]),
    ("plan verify p --against q", &[0, 4, 5]),
    ("plan report p -o page.html", &[0, 4]),
];

/// Runs every look; a plan that is refused is refused by all, and one that is not, by none.
fn look(work: &Workspace, what: &str) {
    let sound = read_plan(&work.path("p")).is_ok();
    for (line, codes) in LOOKS {
        let ran = work.slrc(line);
        let code = ran.code.unwrap_or_else(|| panic!("{what}: slrc {line} was killed"));
        assert!(
            codes.contains(&code) && !ran.stderr.contains("panicked"),
            "{what}: slrc {line}: {code}\n{}",
            ran.stderr
        );
        if line.starts_with("plan verify") {
            assert!(sound || code != 0, "{what}: verify passes what cannot be read");
        } else {
            assert_eq!(code == 0, sound, "{what}: slrc {line}\n{}", ran.stderr);
        }
    }
}

/// A plan folder and its twin.
fn twins(work: &Workspace, model: &str, options: &str) {
    for folder in ["p", "q"] {
        work.ok(&format!("partition MODELS/{model}/model.onnx {options} --batch 2 -o {folder}"));
    }
    look(work, model);
}

#[test]
fn looks_at_damaged_plans() {
    let work = Workspace::new();
    let cuda = PLANS[..2].iter().map(|p| (p.0, format!("{} --target cuda:sm_80", p.1)));
    let all = PLANS.iter().map(|p| (p.0, p.1.to_string())).chain(cuda);
    let mut read = 0;
    for (model, options) in all {
        twins(&work, model, &options);
        // Compiling again takes longer than everything else here; other tests do it.
        std::fs::remove_file(work.path("p/model.onnx")).expect("remove");
        let text = std::fs::read_to_string(work.path("p/plan.yaml")).expect("a plan");
        for seed in cases(16) {
            let mut dice = Dice::new(1000 + seed);
            let damaged = match seed % 4 {
                0 => dice.mangle(text.as_bytes().to_vec()),
                1 => replace(&text, &mut dice, Size::Large).into_bytes(),
                _ => replace(&text, &mut dice, Size::Small).into_bytes(),
            };
            work.write("p/plan.yaml", damaged);
            read += usize::from(read_plan(&work.path("p")).is_ok());
            look(&work, &format!("{model} {options} seed {seed}"));
        }
    }
    assert!(read > 0, "no damaged plan is read");
}

/// Files beside the plan: only `verify` and `report` open them.
#[test]
fn looks_at_damaged_files() {
    let work = Workspace::new();
    twins(&work, "mnist_mlp", "--modules 2 --target cuda:sm_80");
    for name in ["weights.safetensors", "model.onnx", "kernels.cu", "kernels.sm_80.cubin"] {
        let path = work.path("p").join(name);
        let whole = std::fs::read(&path).unwrap_or_else(|_| b"code\n{\"format\":\"slrc-cubin/1\"}\n".to_vec());
        for seed in cases(12) {
            work.write(&format!("p/{name}"), Dice::new(seed).mangle(whole.clone()));
            look(&work, &format!("{name} seed {seed}"));
        }
        work.write(&format!("p/{name}"), &whole);
    }
}
