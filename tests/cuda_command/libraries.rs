//! `--libraries cublaslt`: what computes products, what is said of it, and what happens where the library is missing
//! or fails.

use std::path::Path;

use super::cli::{Workspace, same_run};
use super::support::cuda_host::{Counts, Options, real};
use super::{TRAIN, fails, ok, slrc, workspace_with};

/// A plan whose products the library can compute.
fn workspace() -> Workspace {
    workspace_with("--column-sums kernels")
}

fn with_library() -> Options {
    Options { cublaslt: true, ..Options::default() }
}

/// Whether this machine has a library of its own, which a test cannot take away.
fn has_its_own(work: &Workspace) -> bool {
    let text = ok(work, &Options::default(), "devices").stdout;
    !text.contains("no cuBLASLt: ")
}

const MISSING: &str = "no cuBLASLt: libcublasLt.so.12 is not on the loader path; install cuBLAS of CUDA 12 (the Python \
                       package nvidia-cublas-cu12 holds it) and name its folder in LD_LIBRARY_PATH, or use --libraries none";

#[test]
fn a_library_is_used_and_said_to_be() {
    let (work, device) = (workspace(), with_library());
    let train = |more: &str| ok(&work, &device, &format!("{TRAIN} {more}")).stdout;
    let first = |text: &str| text.lines().next().unwrap_or_default().to_string();
    assert!(first(&train("-o own")).starts_with("cuda:0, all modules: "));
    let said = first(&train("--libraries cublaslt -o run"));
    assert!(said.starts_with("products: cuBLASLt 12."), "{said}");
    if !real() {
        let expected = "products: cuBLASLt 12.9 computes 9 of 16 of a step, the plan's own kernels the others";
        assert_eq!(said, expected);
        let text = ok(&work, &device, "devices").stdout;
        assert!(text.contains("cuBLASLt 12.9, for --libraries cublaslt"), "{text}");
    }
    // Where the library is there, both ways to ask for it are one, but for what is said of the other library.
    assert!(first(&train("--libraries auto -o auto")).starts_with(&said));
    same_run(&work.path("run"), &work.path("auto"));
    let bytes = |run: &str| std::fs::read(work.path(run).join("checkpoint/params.safetensors")).expect("weights");
    assert!(bytes("own") != bytes("run"), "the library computes nothing");

    let text = ok(&work, &device, "eval run --data data.npz --libraries cublaslt").stdout;
    assert!(text.starts_with("products: cuBLASLt 12.") && text.contains(" of an evaluation"), "{text}");
    let text = ok(&work, &device, "eval run --data data.npz --libraries cublaslt --json").stdout;
    assert!(text.starts_with('{'), "{text}");
    let text = ok(&work, &device, "profile plan --steps 1 --libraries cublaslt").stdout;
    assert!(text.starts_with("products: cuBLASLt 12.") && text.contains("matmul (cuBLASLt)"), "{text}");
    let text = ok(&work, &device, "profile plan --steps 1").stdout;
    assert!(!text.contains("cuBLASLt"), "{text}");
}

/// What `slrc bench` says of a library is what the device did.
#[test]
fn bench_counts_products() {
    let work = workspace();
    let counts = work.path("counts.json");
    let options = Options { counts: Some(counts.clone()), ..with_library() };
    let json = ok(&work, &options, "bench plan --steps 4 --libraries cublaslt --json").stdout;
    let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let (row, number) = (&rows[0], |name: &str| rows[0][name].as_u64().expect("a number"));
    assert!(row["library"].as_str().is_some_and(|n| n.starts_with("cuBLASLt 12.")), "{json}");
    if !real() {
        let counts = Counts::read(&counts);
        // Three steps do not count.
        assert_eq!(number("library_kernels") * (4 + 3), counts.launches["cublasLtMatmul"]);
        assert_eq!(number("launches_per_step") * (4 + 3), counts.launches.values().sum::<u64>());
        assert_eq!(number("allocated_bytes"), counts.peak_bytes);
    }
    let text = ok(&work, &with_library(), "bench plan --steps 1 --libraries cublaslt").stdout;
    assert!(text.starts_with("plan: products: cuBLASLt 12.") && text.contains("cuda:0, cuBLASLt 12."), "{text}");
}

#[test]
fn a_missing_library_is_said_with_the_way_out() {
    let (work, device) = (workspace(), Options::default());
    if real() || has_its_own(&work) {
        return; // A machine's own library cannot be taken away.
    }
    let missing = format!("error: {MISSING}\n");
    for line in [format!("{TRAIN} -o run"), "profile plan --steps 1".into(), "bench plan --steps 1".into()] {
        assert_eq!(fails(&work, &device, &format!("{line} --libraries cublaslt"), &[]).stderr, missing);
    }
    assert!(!work.path("run").exists(), "nothing is written");
    let said = ok(&work, &device, &format!("{TRAIN} --libraries auto -o run")).stdout;
    let expected = format!("products: the plan's own kernels compute all; {MISSING}; no cuDNN: ");
    assert!(said.starts_with(&expected), "{said}");
    for line in ["eval run --data data.npz", "profile plan --steps 1", "bench plan --steps 1"] {
        let said = ok(&work, &device, &format!("{line} --libraries auto")).stdout;
        assert!(said.trim_start_matches("plan: ").starts_with(&expected), "{said}");
    }
    ok(&work, &device, &format!("{TRAIN} -o own"));
    same_run(&work.path("own"), &work.path("run"));

    // As the library counted before version 12; and one that is newer than the stand-in's driver.
    for (number, words) in [
        (11_401, ["cuBLASLt on the loader path is 11.4; 12.0 is needed", "libcublasLt.so.12", "--libraries none"]),
        (130_100, ["driver supports CUDA 12.8, cuBLASLt on the loader path is 13.1", "update", "--libraries none"]),
    ] {
        let other = Options { fail: format!("cublasLtGetVersion:1:{number}"), ..with_library() };
        fails(&work, &other, &format!("{TRAIN} --libraries cublaslt -o {number}"), &words);
        let said = ok(&work, &other, &format!("{TRAIN} --libraries auto -o {number}")).stdout;
        assert!(said.starts_with("products: the plan's own kernels compute all; "), "{said}");
        assert!(words.iter().all(|w| said.contains(w)), "{said}");
    }
}

#[test]
fn a_cpu_has_no_library() {
    let work = workspace();
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 -o cpu");
    for choice in ["cublaslt", "auto"] {
        let line = format!("train cpu --data data.npz --steps 1 --libraries {choice} -o run");
        let words = [&format!("--libraries {choice} is for GPUs")[..], "leave it out", "--target cuda"];
        fails(&work, &Options::default(), &line, &words);
    }
    ok(&work, &Options::default(), "train cpu --data data.npz --steps 1 --libraries none -o run");
    let ran = slrc(&work, &Options::default(), "train cpu --data data.npz --libraries mkl -o run");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("`mkl` is not one of none, cublaslt, cudnn, auto"), "{}", ran.stderr);
}

/// A resumed run keeps to what it began with; where it is told otherwise, it says so.
#[test]
fn a_resumed_run_keeps_its_library() {
    let (work, device) = (workspace(), with_library());
    let half = "train plan --data data.npz --steps 2 --log-every 1 --checkpoint-every 2";
    ok(&work, &device, &format!("{TRAIN} --libraries cublaslt -o whole"));
    ok(&work, &device, &format!("{half} --libraries cublaslt -o run"));
    let said = ok(&work, &device, &format!("{TRAIN} -o run --resume")).stdout;
    assert!(said.starts_with("products: cuBLASLt 12.") && !said.contains("from here on"), "{said}");
    same_run(&work.path("whole"), &work.path("run"));

    ok(&work, &device, &format!("{half} --libraries cublaslt -o other"));
    let said = ok(&work, &device, &format!("{TRAIN} --libraries none -o other --resume")).stdout;
    let words = ["products: up to the checkpoint by cuBLASLt 12.", "from here on by the plan's own kernels"];
    assert!(words.iter().all(|w| said.contains(w)), "{said}");
    ok(&work, &device, &format!("{half} -o own"));
    let said = ok(&work, &device, &format!("{TRAIN} --libraries cublaslt -o own --resume")).stdout;
    assert!(said.contains("up to the checkpoint by the plan's own kernels, from here on by cuBLASLt 12."), "{said}");
    if !real() {
        // Another version counts as another library.
        ok(&work, &device, &format!("{half} --libraries cublaslt -o newer"));
        let newer = Options { fail: "cublasLtGetVersion:1:121000".into(), ..with_library() };
        let said = ok(&work, &newer, &format!("{TRAIN} -o newer --resume")).stdout;
        assert!(said.contains("by cuBLASLt 12.9, from here on by cuBLASLt 12.10"), "{said}");
    }
    ok(&work, &device, &format!("{half} --libraries cublaslt -o gone"));
    if !real() && !has_its_own(&work) {
        fails(&work, &Options::default(), &format!("{TRAIN} -o gone --resume"), &[MISSING]);
    }
}

/// Every function of the library that a run calls fails once: the message names it, or, where the library says that it
/// has no algorithm, the plan's own kernel computes that product.
#[test]
fn every_failing_call_of_the_library_is_named() {
    if real() {
        return; // A real library does not fail when told to.
    }
    let work = workspace();
    let counts = work.path("counts.json");
    let measured = Options { counts: Some(counts.clone()), ..with_library() };
    let train = format!("{TRAIN} --libraries cublaslt");
    ok(&work, &measured, &format!("{train} -o whole"));
    let called = Counts::read(Path::new(&counts)).calls;
    let called: Vec<&String> = called.keys().filter(|name| name.starts_with("cublasLt")).collect();
    assert_eq!(called.len(), 12, "{called:?}");
    for function in called {
        let internal_error = 14;
        let options = Options { fail: format!("{function}:1:{internal_error}"), ..with_library() };
        let line = format!("{train} -o {function}");
        if function.contains("Destroy") {
            ok(&work, &options, &line);
            continue;
        }
        let said = format!("error: {function} failed: CUBLAS_STATUS_INTERNAL_ERROR\n");
        let ran = fails(&work, &options, &line, &[]);
        assert!(ran.stderr.contains(&said), "{}", ran.stderr);
    }
    let not_supported = Options { fail: "cublasLtMatmulAlgoGetHeuristic:1:15".into(), ..with_library() };
    let said = ok(&work, &not_supported, &format!("{train} -o one-less")).stdout;
    assert!(said.starts_with("products: cuBLASLt 12.9 computes 8 of 16 of a step"), "{said}");
}
