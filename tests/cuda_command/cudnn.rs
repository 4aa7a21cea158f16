//! `--libraries cudnn`: what convolutions are left to cuDNN, what is said of it, and what happens where it is missing
//! or fails.

use std::path::Path;

use super::cli::{Workspace, npz, same_run, samples};
use super::support::cuda_host::{Counts, Options, real};
use super::{TRAIN, fails, ok, slrc};

/// A workspace with a small convolutional plan for CUDA and data for it.
fn workspace(more: &str) -> Workspace {
    let work = Workspace::new();
    work.write("data.npz", npz(&samples("mnist_cnn", 40, 3)));
    work.ok(&format!(
        "partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 2 --target cuda --column-sums kernels {more} -o plan"
    ));
    work
}

fn with_cudnn() -> Options {
    Options { cudnn: true, ..Options::default() }
}

const MISSING: &str = "no cuDNN: libcudnn.so.9 is not on the loader path; install cuDNN 9 (the Python package \
                       nvidia-cudnn-cu12 holds it) and name its folder in LD_LIBRARY_PATH, or use --libraries without cudnn";
const BESIDE: &str = "; 4.0 KiB of device memory beside the plan's to work in";

fn first(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}

/// Whether this machine has a library of its own, which a test cannot take away.
fn has_its_own(work: &Workspace) -> bool {
    !ok(work, &Options::default(), "devices").stdout.contains("no cuDNN: ")
}

#[test]
fn convolutions_are_left_to_it_and_said_to_be() {
    let (work, device) = (workspace(""), with_cudnn());
    let train = |more: &str| ok(&work, &device, &format!("{TRAIN} {more}")).stdout;
    let said = first(&train("--libraries cudnn -o run"));
    assert!(said.starts_with("products: cuDNN 9."), "{said}");
    if !real() {
        let computes = "products: cuDNN 9.10 computes 34 of 45 of a step, the plan's own kernels the others";
        assert_eq!(said, format!("{computes}{BESIDE}"));
        let text = ok(&work, &device, "devices").stdout;
        assert!(text.contains("cuDNN 9.10, for --libraries cudnn"), "{text}");
    }
    let text = ok(&work, &device, "profile plan --steps 1 --libraries cudnn").stdout;
    for family in ["conv forward (cuDNN)", "conv input-grad (cuDNN)", "conv weight-grad (cuDNN)"] {
        assert!(text.contains(family), "{text}");
    }
    // A resumed run keeps to it.
    let half = "train plan --data data.npz --steps 2 --log-every 1 --checkpoint-every 2";
    ok(&work, &device, &format!("{half} --libraries cudnn -o half"));
    let resumed = ok(&work, &device, &format!("{TRAIN} -o half --resume")).stdout;
    assert!(resumed.starts_with("products: cuDNN 9.") && !resumed.contains("from here on"), "{resumed}");
    same_run(&work.path("run"), &work.path("half"));
    if !real() && !has_its_own(&work) {
        fails(&work, &Options::default(), &format!("{TRAIN} -o half --resume"), &[MISSING]);
    }
}

#[test]
fn both_libraries_share_the_work() {
    let work = workspace("");
    let both = Options { cublaslt: true, ..with_cudnn() };
    let said = first(&ok(&work, &both, &format!("{TRAIN} --libraries cudnn,cublaslt -o run")).stdout);
    let automatic = first(&ok(&work, &both, &format!("{TRAIN} --libraries auto -o auto")).stdout);
    assert_eq!(said, automatic);
    same_run(&work.path("run"), &work.path("auto"));
    let resumed = first(&ok(&work, &both, &format!("{TRAIN} --resume -o run")).stdout);
    assert_eq!(resumed, said);
    if real() {
        return; // A real library may have no algorithm for one of them.
    }
    let counts = work.path("counts.json");
    let counted = Options { counts: Some(counts.clone()), ..both };
    let json = ok(&work, &counted, "bench plan --steps 4 --libraries auto --json").stdout;
    let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let number = |name: &str| rows[0][name].as_u64().expect("a number");
    assert_eq!(rows[0]["library"], "cuBLASLt 12.9, cuDNN 9.10");
    let counts = Counts::read(&counts);
    let of = |library: &str| {
        counts.launches.iter().filter(|(name, _)| name.starts_with(library)).map(|(_, n)| n).sum::<u64>() / (4 + 3)
    };
    let (gemms, convolutions) = (of("cublasLt"), of("cudnn"));
    assert_eq!(gemms + convolutions, number("library_kernels"));
    assert_eq!(number("allocated_bytes"), counts.peak_bytes);
    let computes = format!("cuBLASLt 12.9 computes {gemms} and cuDNN 9.10 computes {convolutions} of 45 of a step");
    assert!(gemms > 0 && said.contains(&computes) && said.ends_with(BESIDE), "{said}");
}

#[test]
fn a_missing_library_is_said_with_the_way_out() {
    let work = workspace("");
    if real() || has_its_own(&work) {
        return; // A machine's own library cannot be taken away.
    }
    let line = format!("{TRAIN} --libraries cudnn -o run");
    assert_eq!(fails(&work, &Options::default(), &line, &[]).stderr, format!("error: {MISSING}\n"));
    // One of two is missing: the other works, where it was said that it may.
    let one = Options { cublaslt: true, ..Options::default() };
    fails(&work, &one, &format!("{TRAIN} --libraries cublaslt,cudnn -o run"), &[MISSING]);
    assert!(!work.path("run").exists(), "nothing is written");
    let said = first(&ok(&work, &one, &format!("{TRAIN} --libraries auto -o run")).stdout);
    assert!(said.starts_with("products: cuBLASLt 12.9 computes ") && said.ends_with(&format!("; {MISSING}")), "{said}");

    // An old one, and one for a driver that is newer than the stand-in's.
    for (fail, words) in [
        ("cudnnGetVersion:1:8907", ["cuDNN on the loader path is 8.9; 9.0 is needed", "libcudnn.so.9"]),
        ("cudnnGetCudartVersion:1:13010", ["CUDA 12.8, cuDNN on the loader path is for 13.1", "nvidia-cudnn-cu12"]),
    ] {
        let other = Options { fail: fail.into(), ..with_cudnn() };
        fails(&work, &other, &format!("{TRAIN} --libraries cudnn -o other"), &words);
    }
}

#[test]
fn it_does_not_multiply_in_bf16() {
    let (work, device) = (workspace("--precision bf16"), with_cudnn());
    let words = ["the plan asks for bf16", "--libraries cublaslt", "--precision tf32"];
    fails(&work, &device, &format!("{TRAIN} --libraries cudnn -o run"), &words);
    let said = first(&ok(&work, &device, &format!("{TRAIN} --libraries auto -o run")).stdout);
    assert!(words.iter().all(|w| said.contains(w)), "{said}");
}

#[test]
fn too_little_memory_for_its_workspace() {
    if real() {
        return; // A real device has as much memory as it has.
    }
    let work = workspace("");
    let json = ok(&work, &with_cudnn(), "bench plan --steps 1 --json").stdout;
    let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let memory = rows[0]["allocated_bytes"].as_u64().expect("a number");
    let tight = Options { memory, ..with_cudnn() };
    ok(&work, &tight, &format!("{TRAIN} -o own"));
    let words = ["cuDNN needs 4096 bytes of cuda:0", "0 are free", "--libraries without cudnn"];
    fails(&work, &tight, &format!("{TRAIN} --libraries cudnn -o run"), &words);
    assert!(!work.path("run").exists(), "nothing is written");
}

/// Every function of the library that a run calls fails once: the message names it.
#[test]
fn every_failing_call_of_the_library_is_named() {
    if real() {
        return; // A real library does not fail when told to.
    }
    let work = workspace("");
    let counts = work.path("counts.json");
    let measured = Options { counts: Some(counts.clone()), ..with_cudnn() };
    let train = "train plan --data data.npz --steps 1 --libraries cudnn";
    ok(&work, &measured, &format!("{train} -o whole"));
    let called = Counts::read(Path::new(&counts)).calls;
    let called: Vec<&String> = called.keys().filter(|name| name.starts_with("cudnn")).collect();
    // All but `cudnnConvolutionBiasActivationForward`, which training has no use for here, and its activation's.
    assert_eq!(called.len(), 20, "{called:?}");
    for function in called {
        let internal_error = 4000;
        let options = Options { fail: format!("{function}:1:{internal_error}"), ..with_cudnn() };
        let ran = slrc(&work, &options, &format!("{train} -o {function}"));
        if function.contains("Destroy") {
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            continue;
        }
        let said = format!("error: {function} failed: CUDNN_STATUS_INTERNAL_ERROR\n");
        assert!(ran.code == Some(4) && ran.stderr.contains(&said), "{}", ran.stderr);
    }
}
