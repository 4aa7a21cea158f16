//! `slrc` on a CUDA device: the stand-in's (tests/cuda-host), which can be given little memory, an old driver, another
//! architecture and calls that fail.

#[path = "support/cli.rs"]
mod cli;
#[path = "cuda_command/cubin.rs"]
mod cubin;
#[path = "cuda_command/cudnn.rs"]
mod cudnn;
#[path = "cuda_command/libraries.rs"]
mod libraries;
mod support;

use std::path::Path;

use cli::{Ran, Workspace, npz, same_file, same_run, samples};
use slrc_compiler::onnx::file::sha256_hex;
use support::cuda_host::{Counts, Options, Streams, real};

/// A workspace with a small plan for CUDA and data for it.
fn workspace() -> Workspace {
    workspace_with("")
}

/// The same, partitioned with more options.
fn workspace_with(more: &str) -> Workspace {
    let work = Workspace::new();
    work.write("data.npz", npz(&samples("mnist_mlp", 40, 3)));
    work.ok(&format!("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 --target cuda {more} -o plan"));
    work
}

/// Runs a line on a device of these options, with kernels cached in the workspace.
fn slrc(work: &Workspace, options: &Options, line: &str) -> Ran {
    let mut command = work.command(line);
    command.envs(options.environment()).env("SLRC_CACHE", work.path("cache"));
    let out = command.output().expect("slrc starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("slrc prints UTF-8");
    Ran { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
}

fn ok(work: &Workspace, options: &Options, line: &str) -> Ran {
    let ran = slrc(work, options, line);
    assert_eq!(ran.code, Some(0), "slrc {line}\n{}{}", ran.stdout, ran.stderr);
    ran
}

/// A line that must fail as a run does, and say every one of `words`.
fn fails(work: &Workspace, options: &Options, line: &str, words: &[&str]) -> Ran {
    let ran = slrc(work, options, line);
    assert_eq!(ran.code, Some(4), "slrc {line}\n{}{}", ran.stdout, ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "slrc {line}\ndoes not say {word:?}:\n{}", ran.stderr);
    }
    ran
}

const TRAIN: &str = "train plan --data data.npz --steps 4 --log-every 1 --checkpoint-every 2";

#[test]
fn trains_evaluates_profiles_and_exports() {
    let (work, device) = (workspace(), Options::default());
    ok(&work, &device, &format!("{TRAIN} -o run"));
    same_file(&work.path("plan/kernels.cu"), &work.path("run/kernels.cu"));
    // The plan says where it runs; naming the device changes nothing.
    ok(&work, &device, &format!("{TRAIN} -o named --device cuda:0"));
    same_run(&work.path("run"), &work.path("named"));
    let scores = ok(&work, &device, "eval run --data data.npz --json").stdout;
    assert!(scores.contains("\"samples\":40"), "{scores}");
    let profile = ok(&work, &device, "profile plan --steps 2").stdout;
    for word in ["matmul", "reduce", "samples/s", "roof of cuda:0: unknown, no figures of ", "H100 SXM"] {
        assert!(profile.contains(word), "{profile}");
    }
    ok(&work, &device, "export run -o trained.onnx");
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let (work, device) = (workspace(), Options::default());
    ok(&work, &device, &format!("{TRAIN} -o whole"));
    ok(&work, &device, "train plan --data data.npz --steps 2 --log-every 1 --checkpoint-every 2 -o run");
    ok(&work, &device, &format!("{TRAIN} -o run --resume"));
    same_run(&work.path("whole"), &work.path("run"));
}

/// `--stream-modules`: the same run, on a device too small for all modules, which says so.
#[test]
fn modules_take_turns() {
    let (work, device) = (workspace(), Options::default());
    work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 3 --target cuda -o cnn");
    let shown = work.ok("plan show cnn --json").stdout;
    let number = |name: &str| -> u64 {
        let rest = shown.split_once(&format!("\"{name}\": ")).expect(name).1;
        rest.split(',').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let (all, in_turn) = (number("device_bytes"), number("streamed_device_bytes"));
    assert!(in_turn < all, "{shown}");
    assert!(work.ok("plan show cnn").stdout.contains("--stream-modules"));
    let train = "train cnn --data data.npz --steps 4 --log-every 1 --checkpoint-every 2";
    let banner = ok(&work, &device, &format!("{train} -o whole")).stdout;
    assert!(banner.starts_with("cuda:0, all modules: "), "{banner}");

    // The stand-in's device holds this and no more.
    let small = Options { memory: in_turn, streams: Streams::Lazy, ..device.clone() };
    let banner = ok(&work, &small, &format!("{train} --stream-modules -o run")).stdout;
    assert!(banner.starts_with("cuda:0, modules in turn: "), "{banner}");
    same_run(&work.path("whole"), &work.path("run"));
    ok(&work, &small, &format!("{} --stream-modules -o parts", train.replace("--steps 4", "--steps 2")));
    ok(&work, &small, &format!("{train} --stream-modules -o parts --resume"));
    same_run(&work.path("whole"), &work.path("parts"));
    let scores = ok(&work, &device, "eval whole --data data.npz --json").stdout;
    assert_eq!(ok(&work, &small, "eval run --data data.npz --stream-modules --json").stdout, scores);
    ok(&work, &small, "profile cnn --steps 1 --stream-modules");

    if real() {
        return; // A real device has no options.
    }
    let advice = format!("use --stream-modules, which needs {in_turn} bytes, or more modules or a smaller batch");
    fails(&work, &small, &format!("{train} -o none"), &[&format!("the plan needs {all} bytes"), &advice]);
    // Where it would not do, it is not advised.
    let smaller = Options { memory: in_turn - 1, ..device.clone() };
    for more in ["", "--stream-modules"] {
        let ran = fails(&work, &smaller, &format!("{train} -o none {more}"), &["use more modules or a smaller batch"]);
        assert!(!ran.stderr.contains("--stream-modules"), "{}", ran.stderr);
    }
    work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 3 -o cpu");
    for line in ["train cpu --data data.npz -o none", "profile cpu"] {
        let words = ["--stream-modules", "leave it out", "--target cuda"];
        fails(&work, &device, &format!("{line} --stream-modules"), &words);
    }
    assert!(!work.path("none").exists(), "nothing is written");
}

/// However many steps a run has, the host never waits for all that it has queued, but where a checkpoint is written.
#[test]
fn steps_do_not_stall() {
    if real() {
        return; // A real device counts nothing.
    }
    let work = workspace();
    work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 3 --target cuda -o cnn");
    for (plan, more) in [("plan", ""), ("cnn", "--stream-modules")] {
        let waits = |steps: u64, checkpoints: u64| {
            let counts = work.path("counts.json");
            let options = Options { counts: Some(counts.clone()), ..Options::default() };
            let run = format!("{plan}-{steps}-{checkpoints}");
            let every = steps.div_ceil(checkpoints);
            let line =
                format!("train {plan} --data data.npz --steps {steps} --checkpoint-every {every} {more} -o {run}");
            ok(&work, &options, &line);
            Counts::read(&counts).calls("cuStreamSynchronize")
        };
        let (few, many) = (waits(3, 1), waits(9, 1));
        assert_eq!(few, many, "{plan}");
        assert!(many < waits(9, 3), "{plan}");
    }
}

/// What `slrc bench` says is what the device did.
#[test]
fn bench_counts_what_runs() {
    let (work, device) = (workspace(), Options::default());
    work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 3 --target cuda -o cnn");
    for (plan, more) in [("plan", ""), ("cnn", ""), ("cnn", "--stream-modules")] {
        let counts = work.path("counts.json");
        let options = Options { counts: Some(counts.clone()), ..device.clone() };
        let json = ok(&work, &options, &format!("bench {plan} --steps 4 --json {more}")).stdout;
        let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let row = &rows[0];
        assert_eq!((row["device"].as_str(), rows.as_array().map(Vec::len)), (Some("cuda:0"), Some(1)), "{json}");
        assert_eq!(row["stream_modules"], !more.is_empty());
        if real() {
            continue; // A real device counts nothing.
        }
        let counts = Counts::read(&counts);
        let launches = row["launches_per_step"].as_u64().expect("a number");
        // Three steps do not count.
        assert_eq!(launches * (4 + 3), counts.launches.values().sum::<u64>());
        assert_eq!(row["allocated_bytes"], counts.peak_bytes);
    }
    let text = ok(&work, &device, "bench plan cnn --steps 1").stdout;
    assert_eq!(text.lines().count(), 3, "{text}");
}

/// The report of a step is read when the next one is queued: the error is the step's that diverged all the same, and
/// what was logged ends before it.
#[test]
fn divergence_is_told_of_its_step() {
    let work = workspace();
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 --lr 1e4 --target cuda -o wild");
    for streams in [Streams::Eager, Streams::Lazy, Streams::Random(1)] {
        let options = Options { streams, ..Options::default() };
        let name = format!("{streams:?}").to_lowercase().replace(['(', ')'], "");
        let line = format!("train wild --data data.npz --steps 40 --log-every 1 --checkpoint-every 40 -o {name}");
        let ran = fails(&work, &options, &line, &[" at step ", "the last checkpoint is intact"]);
        let (_, rest) = ran.stderr.split_once(" at step ").expect("a step");
        let step: usize = rest.split(';').next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(step > 0, "{}", ran.stderr);
        let log = std::fs::read_to_string(work.path(&name).join("metrics.jsonl")).expect("a log");
        assert_eq!(log.lines().count(), step, "{}\n{log}", ran.stderr);
    }
}

#[test]
fn a_plan_runs_on_what_it_was_compiled_for() {
    let (work, device) = (workspace(), Options::default());
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 -o plan-cpu");
    let text = std::fs::read_to_string(work.path("plan-cpu/plan.yaml")).expect("a plan");
    assert!(!text.contains("kernels_sha256") && !text.contains("launches"), "a plan for the CPU knows no CUDA");
    let words = ["the plan is for cuda:sm_80", "--target cpu", "--device cuda:0"];
    fails(&work, &device, &format!("{TRAIN} --device cpu -o run"), &words);
    let line = "train plan-cpu --data data.npz --steps 1 --device cuda -o run";
    fails(&work, &device, line, &["the plan is for cpu", "--target cuda", "--device cpu"]);
    assert!(!work.path("run").exists(), "nothing is written");
}

/// The hash that a folder's plan asks for.
fn kernels_sha256(folder: &Path) -> String {
    let text = std::fs::read_to_string(folder.join("plan.yaml")).expect("a plan");
    let line = text.lines().find_map(|l| l.strip_prefix("kernels_sha256: "));
    line.expect("a plan for CUDA names its kernels").to_string()
}

/// Replaces a folder's kernels, and the plan's hash of them.
fn replace_kernels(folder: &Path, text: &str) {
    let (plan, hash) = (folder.join("plan.yaml"), kernels_sha256(folder));
    let yaml = std::fs::read_to_string(&plan).expect("a plan");
    std::fs::write(&plan, yaml.replace(&hash, &sha256_hex(text.as_bytes()))).expect("a plan");
    std::fs::write(folder.join("kernels.cu"), text).expect("kernels");
}

#[test]
fn kernels_of_another_plan_are_refused() {
    let (work, device) = (workspace(), Options::default());
    let (plan, path) = (work.path("plan"), work.path("plan/kernels.cu"));
    let text = std::fs::read_to_string(&path).expect("kernels");
    let expected = kernels_sha256(&plan);
    assert_eq!(expected, sha256_hex(text.as_bytes()));
    let train = &format!("{TRAIN} -o run");
    // The same functions with the same arguments: only the hash tells.
    let edited = format!("{text}// edited\n");
    std::fs::write(&path, &edited).expect("kernels");
    let found = sha256_hex(edited.as_bytes());
    let words = ["kernels.cu is not this plan's", &expected, &found, "slrc partition"];
    fails(&work, &device, train, &words);
    fails(&work, &device, "profile plan --steps 1", &words);
    std::fs::remove_file(&path).expect("kernels");
    fails(&work, &device, train, &["cannot read", "kernels.cu"]);
    std::fs::write(&path, &text).expect("kernels");
    let yaml = std::fs::read_to_string(work.path("plan/plan.yaml")).expect("a plan");
    work.write("plan/plan.yaml", yaml.replace(&format!("kernels_sha256: {expected}\n"), ""));
    fails(&work, &device, train, &["kernels.cu is not this plan's", &expected, "kernels_sha256 is missing"]);
    assert!(!work.path("run").exists(), "nothing is written");
    work.write("plan/plan.yaml", &yaml);

    // A run's kernels are checked when it goes on.
    ok(&work, &device, "train plan --data data.npz --steps 2 --checkpoint-every 2 -o run");
    work.write("run/kernels.cu", &edited);
    fails(&work, &device, &format!("{TRAIN} -o run --resume"), &words);
    fails(&work, &device, "eval run --data data.npz", &words);
}

/// A plan and its kernels changed alike: what the driver does not check is checked before it.
#[test]
fn kernels_that_do_not_fit_the_launches_are_refused() {
    let (work, device) = (workspace(), Options::default());
    let text = std::fs::read_to_string(work.path("plan/kernels.cu")).expect("kernels");
    let (start, rest) = text.split_once("__global__ ").expect("a kernel");
    let more = rest.replacen("(\n", "(\n    const float* more,\n", 1);
    for (changed, words) in [
        (format!("{start}__global__ {more}"), &["plan.yaml and kernels.cu do not fit", "the plan gives it"][..]),
        (start.to_string(), &["plan.yaml and kernels.cu do not fit", "is missing"]),
        (
            format!("{text}\nextern \"C\" __global__ void f(float* x) {{ nothing(); }}\n"),
            &["do not compile for sm_80", "nothing"],
        ),
    ] {
        replace_kernels(&work.path("plan"), &changed);
        fails(&work, &device, &format!("{TRAIN} -o run"), words);
    }
    assert!(!work.path("run").exists(), "nothing is written");
}

#[test]
fn what_the_machine_lacks_is_said_with_the_way_out() {
    if real() {
        return; // A real device has no options.
    }
    let work = workspace();
    let device = Options::default;
    for (options, words) in [
        (Options { devices: 0, ..device() }, &["finds no device", "--device cpu"][..]),
        (Options { driver_version: 11040, ..device() }, &["supports CUDA 11.4", "12.0 is needed", "update the driver"]),
        (Options { capability: 75, ..device() }, &["is for sm_80 or later", "is sm_75", "--target cuda:sm_75"]),
        (
            Options { fail: "nvrtcCompileProgram:1:6".into(), ..device() },
            &["do not compile for sm_80", "injected error"],
        ),
        // The kernels are in the cache from here on.
        (
            Options { memory: 1 << 20, ..device() },
            &["the plan needs ", " bytes of cuda:0 (", "are free", "smaller batch"],
        ),
    ] {
        fails(&work, &options, &format!("{TRAIN} -o run"), words);
        assert!(!work.path("run").exists(), "nothing is written: {words:?}");
    }
    let two = Options { devices: 2, ..device() };
    fails(&work, &two, &format!("{TRAIN} -o run --device cuda:2"), &["no cuda:2", "only cuda:0, cuda:1"]);
    // A later architecture gets code of its own.
    ok(&work, &Options { capability: 90, ..device() }, &format!("{TRAIN} -o run"));
}

#[test]
fn kernels_are_compiled_once() {
    if real() {
        return; // A real device has no options.
    }
    let (work, device) = (workspace(), Options::default());
    ok(&work, &device, &format!("{TRAIN} -o first"));
    let no_compiler = Options { fail: "nvrtcCompileProgram:1:6".into(), ..device };
    ok(&work, &no_compiler, &format!("{TRAIN} -o second"));
    same_run(&work.path("first"), &work.path("second"));
    let entries: Vec<_> = std::fs::read_dir(work.path("cache/kernels")).expect("the cache").flatten().collect();
    assert_eq!(entries.len(), 1);
    // A damaged entry is as good as none.
    std::fs::write(entries[0].path(), "damaged").expect("an entry");
    fails(&work, &no_compiler, &format!("{TRAIN} -o third"), &["injected error"]);
}

/// An illegal address and its like: no later call works, and the process must end.
#[test]
fn a_lost_device_leaves_the_last_checkpoint() {
    if real() {
        return; // A real device has no options.
    }
    let work = workspace();
    ok(&work, &Options::default(), &format!("{TRAIN} -o whole"));
    for streams in [Streams::Eager, Streams::Lazy] {
        let name = format!("{streams:?}").to_lowercase();
        // Two modules a step: the sixth launch of a graph is in the third step, after a checkpoint.
        let options = Options { fail: "cuGraphLaunch:6:700:late".into(), streams, ..Options::default() };
        let words = ["CUDA_ERROR_ILLEGAL_ADDRESS", "the run's last checkpoint is intact", "--resume"];
        fails(&work, &options, &format!("{TRAIN} -o {name}"), &words);
        let state = std::fs::read_to_string(work.path(&name).join("checkpoint/state.json")).expect("a checkpoint");
        assert!(state.contains("\"step\": 2"), "{state}");
        ok(&work, &Options::default(), &format!("{TRAIN} -o {name} --resume"));
        same_run(&work.path("whole"), &work.path(&name));
    }
}

/// Every function of the driver that a run calls fails once: no panic, and the message names the function. Only what is
/// called to give something back may fail unseen.
#[test]
fn every_failing_call_is_named() {
    if real() {
        return; // A real device has no options.
    }
    let work = workspace();
    // Which module is on the device when makes no difference to which functions are called, but for the copies back.
    every_failing_call(&work, TRAIN);
    work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 3 --target cuda -o in-turn");
    every_failing_call(&work, "train in-turn --stream-modules --data data.npz --steps 2");
}

fn every_failing_call(work: &Workspace, train: &str) {
    let counts = work.path("counts.json");
    let measured = Options { counts: Some(counts.clone()), ..Options::default() };
    let name = if train == TRAIN { "all" } else { "in-turn" };
    ok(work, &measured, &format!("{train} -o {name}-run"));
    let called: Vec<String> = Counts::read(Path::new(&counts)).calls.into_keys().collect();
    assert!(called.len() > 30, "{called:?}");
    for function in called {
        let out_of_memory = 2;
        let options = Options { fail: format!("{function}:1:{out_of_memory}"), ..Options::default() };
        let ran = slrc(work, &options, &format!("{train} -o {name}-{function}"));
        let back = ["Destroy", "Free", "Release", "Unload"].iter().any(|word| function.contains(word));
        let text = ["cuGetErrorName", "cuGetErrorString"].contains(&function.as_str());
        if back || text {
            assert_eq!(ran.code, Some(0), "{function}: {}", ran.stderr);
            continue;
        }
        assert_eq!(ran.code, Some(4), "{function}: {}{}", ran.stdout, ran.stderr);
        let said = |word: &str| ran.stderr.contains(word);
        let by_name = function.split("_v").next().is_some_and(said) && said("CUDA_ERROR_OUT_OF_MEMORY");
        // What these failures mean is said in other words.
        let by_meaning = match function.as_str() {
            "cuInit" => said("the NVIDIA driver does not start: CUDA_ERROR_OUT_OF_MEMORY"),
            "cuMemAlloc_v2" => said("the plan needs"),
            _ => false,
        };
        assert!(by_name || by_meaning, "{function}: {}", ran.stderr);
    }
}

#[test]
fn devices_lists_what_there_is() {
    if real() {
        return; // A real device has no options.
    }
    let work = Workspace::new();
    let text = ok(&work, &Options { devices: 2, ..Options::default() }, "devices").stdout;
    for word in ["cpu", "cuda:0", "cuda:1", "sm_80", "16.00 GiB", "NVIDIA driver for CUDA 12.8", "NVRTC"] {
        assert!(text.contains(word), "{text}");
    }
    let text = ok(&work, &Options { devices: 0, ..Options::default() }, "devices").stdout;
    assert!(text.contains("cpu") && text.contains("no CUDA device can be used: "), "{text}");
    // Whatever this machine has, asking does not fail.
    assert!(work.ok("devices").stdout.contains("cpu"));
}
