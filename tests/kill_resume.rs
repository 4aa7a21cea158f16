//! A run that is killed at any moment and resumed ends bit for bit where an uninterrupted one does.

#[path = "support/cli.rs"]
mod cli;

use std::process::Stdio;
use std::time::Duration;

use cli::{Workspace, npz, same_run, samples, tree};
use slrc_plan::random::Sequence;

/// Steps of the checkpoint, if there is a whole one.
fn step(work: &Workspace, run: &str) -> Option<u64> {
    let text = std::fs::read_to_string(work.path(run).join("checkpoint/state.json")).ok()?;
    let state: serde_json::Value = serde_json::from_str(&text).expect("a checkpoint's state is whole at any moment");
    state["step"].as_u64()
}

/// Starts a run, kills it again and again (at the earliest when its checkpoint has moved on), and lets the last life
/// end by itself. Returns the steps at which it was killed.
fn train_with_kills(work: &Workspace, line: &str, run: &str, total: u64, seed: u64) -> Vec<u64> {
    let mut rng = Sequence::new(seed, 2, 0);
    let mut killed = Vec::new();
    for life in 0.. {
        assert!(life < 1000, "the run does not get on");
        let resume = if step(work, run).is_some() { "--resume" } else { "" };
        // Killed before its first checkpoint, a run has to be started anew.
        if resume.is_empty() && work.path(run).exists() {
            std::fs::remove_dir_all(work.path(run)).expect("remove");
        }
        let mut child = work
            .command(&format!("{line} {resume} -o {run}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("slrc starts");
        let goal = match killed.len() {
            0 => 0,
            n => killed[n - 1] + 1 + u64::from(rng.word()) % (total / 8),
        };
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break Some(status);
            }
            if step(work, run).is_some_and(|s| s >= goal) {
                // Anywhere within the steps, and the checkpoint, that follow.
                std::thread::sleep(Duration::from_micros(u64::from(rng.word()) % 15_000));
                child.kill().expect("kill");
                break child.wait().map(|s| if s.success() { Some(s) } else { None }).expect("wait");
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        match status {
            Some(s) => {
                assert!(s.success(), "{line}: {s}");
                return killed;
            }
            None => killed.extend(step(work, run)),
        }
    }
    unreachable!("the loop ends by returning")
}

fn check(name: &str, partition: &str, total: u64, options: &str, seeds: std::ops::Range<u64>) {
    let work = Workspace::new();
    work.ok(&format!("partition MODELS/{name}/model.onnx --batch 8 {partition} -o plan"));
    work.write("train.npz", npz(&samples(name, 60, 1)));
    let line = format!("train plan --data train.npz --steps {total} {options}");
    work.ok(&format!("{line} -o whole"));
    let eval = |run: &str| work.ok(&format!("eval {run} --data train.npz --json")).stdout;
    for seed in seeds {
        let run = format!("run{seed}");
        let killed = train_with_kills(&work, &line, &run, total, seed);
        let within = killed.iter().filter(|s| **s < total).count();
        assert!(within >= 3, "{name}: killed only at {killed:?}");
        same_run(&work.path("whole"), &work.path(&run));
        assert_eq!(eval("whole"), eval(&run));
        let left = std::fs::read_dir(work.path(&run).join("checkpoints")).expect("checkpoints").count();
        assert_eq!(left, 1, "checkpoints of killed lives are removed");
    }
}

#[test]
fn convolutions_with_every_step_a_checkpoint() {
    check("mnist_cnn", "--modules 3", 60, "--log-every 1 --checkpoint-every 1", 0..2);
}

#[test]
fn convolutions_with_few_checkpoints() {
    check("mnist_cnn", "--modules 3", 80, "--log-every 3 --checkpoint-every 7", 2..4);
}

#[test]
fn adamw_with_a_schedule() {
    let work = Workspace::new();
    let spec = "
batch: 8
partition: {modules: 2}
reconcile: {warmup: 20}
optimizer: {kind: adamw, schedule: cosine, warmup: 10}
";
    work.write("s.yaml", spec);
    let spec = work.path("s.yaml");
    check("mnist_mlp", &format!("--spec {}", spec.display()), 200, "--log-every 1 --checkpoint-every 2", 4..6);
}

#[test]
fn a_run_goes_on_only_as_what_it_was() {
    let work = Workspace::new();
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 -o plan");
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 --lr 0.01 -o other_plan");
    work.write(
        "s.yaml",
        format!("model: {}\nbatch: 8\npartition: {{modules: 2}}\n", cli::model("mnist_mlp").display()),
    );
    work.write("other.yaml", format!("model: {}\nbatch: 8\nseed: 4\n", cli::model("mnist_mlp").display()));
    work.write("train.npz", npz(&samples("mnist_mlp", 40, 1)));
    work.write("other.npz", npz(&samples("mnist_mlp", 40, 2)));
    work.write("fewer.npz", npz(&samples("mnist_mlp", 39, 1)));
    work.ok("train plan --data train.npz --steps 4 --seed 5 -o run");
    let mut t = cli::Transcript::new(&work);
    let resume = "--steps 8 --resume -o run";
    t.fails("fewer samples", &format!("train plan --data fewer.npz --seed 5 {resume}"), 4, &["40 samples", "39"]);
    t.fails("as many other samples", &format!("train plan --data other.npz --seed 5 {resume}"), 4, &["run", "SHA-256"]);
    t.fails("another seed", &format!("train plan --data train.npz --seed 6 {resume}"), 4, &["seed 5", "not 6"]);
    t.fails(
        "no shuffling",
        &format!("train plan --data train.npz --seed 5 --no-shuffle {resume}"),
        4,
        &["shuffling true"],
    );
    t.fails("another plan", &format!("train other_plan --data train.npz {resume}"), 4, &["other_plan", "another plan"]);
    t.fails("another spec", &format!("train other.yaml --data train.npz {resume}"), 4, &["other.yaml", "another plan"]);
    t.fails("without --resume", "train plan --data train.npz --seed 5 --steps 8 -o run", 4, &["--resume", "not empty"]);
    t.fails("no run", "train plan --data train.npz --resume -o nowhere", 4, &["nowhere", "no run folder"]);
    t.fails("a plan", "train plan --data train.npz --resume -o plan", 4, &["plan", "no checkpoint"]);
    insta::assert_snapshot!("resume_refused", t.finish());
    // The same data in another file, the seed left out: that is the same run.
    let mut again = samples("mnist_mlp", 40, 1);
    again.reverse();
    work.write("again.npz", npz(&again));
    work.ok(&format!("train plan --data again.npz {resume}"));
    work.ok("train plan --data train.npz --steps 4 --seed 5 -o twin");
    work.ok("train s.yaml --data train.npz --steps 8 --resume -o twin");
    same_run(&work.path("run"), &work.path("twin"));
}

#[test]
fn what_a_crash_leaves_is_no_obstacle() {
    let work = Workspace::new();
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 -o plan");
    work.write("train.npz", npz(&samples("mnist_mlp", 40, 1)));
    let line = "train plan --data train.npz --log-every 1 --checkpoint-every 2";
    work.ok(&format!("{line} --steps 8 -o whole"));
    work.ok(&format!("{line} --steps 4 -o run"));
    work.write("run/.slrc-a1B2c3", "half a report");
    // A half-written next checkpoint, a link not yet exchanged, half a line, and lines of steps that will be repeated.
    work.write("run/checkpoints/step-000000006/params.safetensors", "half");
    std::os::unix::fs::symlink("checkpoints/step-000000006", work.path("run/.checkpoint-new")).expect("a link");
    let mut log = std::fs::read_to_string(work.path("run/metrics.jsonl")).expect("metrics");
    let line5 = std::fs::read_to_string(work.path("whole/metrics.jsonl")).expect("metrics");
    log.push_str(line5.lines().nth(4).expect("a line"));
    log.push_str("\n{\"step\":6,\"epo");
    work.write("run/metrics.jsonl", log);
    work.ok(&format!("{line} --steps 8 --resume -o run"));
    same_run(&work.path("whole"), &work.path("run"));
    let names = |run: &str| tree(&work.path(run)).into_keys().collect::<Vec<String>>();
    assert_eq!(names("run"), names("whole"));
}
