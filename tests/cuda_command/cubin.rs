//! `slrc compile --cubin`: machine code made ahead of time is used in place of the compiler, or refused by name.

use std::path::Path;

use crate::cli::{same_file, same_run};
use crate::support::cuda_host::{Options, libraries, real};
use crate::{TRAIN, fails, ok, replace_kernels, slrc, workspace};

const COMPILE: &str = "compile plan --cubin";

/// A device whose compiler fails when it is asked for.
fn no_compiler() -> Options {
    Options { fail: "nvrtcCompileProgram:1:6".into(), ..Options::default() }
}

/// Names of a folder's files of machine code.
fn cubins(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| n.ends_with(".cubin"));
    names.sort();
    names
}

#[test]
fn machine_code_replaces_the_compiler() {
    let work = workspace();
    ok(&work, &Options::default(), &format!("{TRAIN} -o compiled"));
    std::fs::remove_dir_all(work.path("cache")).expect("the cache");

    let counts = work.path("counts.json");
    let printed = ok(&work, &Options { counts: Some(counts.clone()), ..Options::default() }, COMPILE).stdout;
    assert!(printed.contains("kernels.sm_80.cubin") && printed.contains("NVRTC 12."), "{printed}");
    assert_eq!(cubins(&work.path("plan")), ["kernels.sm_80.cubin"]);
    if real() {
        return; // A real device has no options.
    }
    // The stand-in's driver writes counts when it is first called.
    assert!(!counts.exists(), "the driver was called");

    ok(&work, &no_compiler(), &format!("{TRAIN} -o run"));
    assert!(!work.path("cache").exists(), "nothing was compiled");
    same_run(&work.path("compiled"), &work.path("run"));
    // A run is complete without its plan: it goes on and is scored with the code it carries.
    same_file(&work.path("plan/kernels.sm_80.cubin"), &work.path("run/kernels.sm_80.cubin"));
    ok(&work, &no_compiler(), "eval run --data data.npz");
    ok(&work, &no_compiler(), "train plan --data data.npz --steps 6 --log-every 1 -o run --resume");
    ok(&work, &no_compiler(), "profile plan --steps 1");
    // A later revision of the generation runs it too; another generation needs code of its own.
    ok(&work, &Options { capability: 86, ..no_compiler() }, &format!("{TRAIN} -o later"));
    let hopper = Options { capability: 90, ..no_compiler() };
    fails(&work, &hopper, &format!("{TRAIN} -o other"), &["do not compile for sm_90"]);
    ok(&work, &Options::default(), "compile plan --cubin --arch sm_90,sm_86,sm_90");
    assert_eq!(cubins(&work.path("plan")), ["kernels.sm_80.cubin", "kernels.sm_86.cubin", "kernels.sm_90.cubin"]);
    ok(&work, &hopper, &format!("{TRAIN} -o other"));

    // Compiled anew, a plan has no machine code: it would be the old plan's.
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 --target cuda -o plan");
    assert_eq!(cubins(&work.path("plan")), [""; 0]);
}

/// A machine that trains needs a driver only.
#[test]
fn no_compiler_need_be_installed() {
    if real() {
        return; // The machine's libraries are where they are.
    }
    let work = workspace();
    let driver_only = |line: &str| {
        let mut command = work.command(line);
        command.envs(Options::default().environment()).env("LD_LIBRARY_PATH", work.path("driver"));
        command.output().expect("slrc starts")
    };
    std::fs::create_dir(work.path("driver")).expect("a folder");
    let library = libraries().join("libcuda.so");
    std::os::unix::fs::symlink(library, work.path("driver/libcuda.so")).expect("a link");
    let without = driver_only(&format!("{TRAIN} -o run"));
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    if !without.status.success() {
        for word in ["no CUDA compiler", "slrc compile PLAN --cubin --arch sm_80"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(!work.path("run").exists(), "nothing is written");
    } else {
        // The loader found a compiler outside the folder.
        std::fs::remove_dir_all(work.path("run")).expect("the run");
    }
    ok(&work, &Options::default(), COMPILE);
    let with = driver_only(&format!("{TRAIN} -o run"));
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
}

/// Machine code of other kernels is never used, and never passed over either: not even by a device it is not for.
#[test]
fn stale_machine_code_is_an_error() {
    if real() {
        return; // A real device has no options.
    }
    let (work, device) = (workspace(), Options::default());
    ok(&work, &device, "compile plan --cubin --arch sm_80,sm_90");
    let (old, new) = (work.path("plan/kernels.sm_80.cubin"), work.path("plan/kernels.sm_90.cubin"));
    let whole = std::fs::read(&old).expect("machine code");
    let train = &format!("{TRAIN} -o run");
    let again = "slrc compile";

    // The kernels have changed since, in a way that changes no function.
    let text = std::fs::read_to_string(work.path("plan/kernels.cu")).expect("kernels");
    replace_kernels(&work.path("plan"), &format!("{text}// edited\n"));
    fails(
        &work,
        &device,
        train,
        &["kernels.sm_80.cubin is out of date", "compiled from a kernels.cu of SHA-256", again],
    );
    ok(&work, &device, COMPILE);
    // The one for the other device is still old.
    fails(&work, &device, train, &["kernels.sm_90.cubin is out of date", again]);
    std::fs::remove_file(&new).expect("machine code");
    ok(&work, &device, &format!("{TRAIN} -o fresh"));
    replace_kernels(&work.path("plan"), &text);
    std::fs::write(&old, &whole).expect("machine code");

    let stamped = |from: &str, to: &str| {
        let start = whole.iter().rposition(|&b| b == b'{').expect("a stamp");
        let stamp = String::from_utf8(whole[start..].to_vec()).expect("text");
        assert!(stamp.contains(from), "{stamp}");
        [&whole[..start], stamp.replace(from, to).as_bytes()].concat()
    };
    let flipped = [&[whole[0] ^ 1], &whole[1..]].concat();
    for (bytes, words) in [
        (stamped("--fmad=false", "--fmad=true"), &["kernels.sm_80.cubin is out of date", "--fmad=true", again][..]),
        (stamped("slrc-cubin/1", "slrc-cubin/0"), &["kernels.sm_80.cubin is out of date", "slrc-cubin/0", again]),
        (stamped("[12,8]", "[13,0]"), &["the compiler of kernels.sm_80.cubin is 13.0", "update the driver"]),
        (flipped, &["kernels.sm_80.cubin: it is cut short or damaged", again]),
        (whole[..whole.len() - 2].to_vec(), &["kernels.sm_80.cubin: it is cut short or damaged", again]),
        (vec![], &["kernels.sm_80.cubin: it is cut short or damaged", again]),
    ] {
        std::fs::write(&old, bytes).expect("machine code");
        fails(&work, &device, train, words);
    }
    // What a device refuses, a check finds, and every file at once; what it needs a driver for is left to the device.
    std::fs::write(&old, &whole).expect("machine code");
    work.ok("plan verify plan --cubin sm_80");
    let finds = |line: &str, words: &[&str]| {
        let ran = work.slrc(line);
        assert_eq!(ran.code, Some(5), "slrc {line}\n{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.stdout.lines().count(), words.len(), "a line a violation: {}", ran.stdout);
        for (word, line) in words.iter().zip(ran.stdout.lines()) {
            assert!(line.contains(word), "{line}");
        }
    };
    finds("plan verify plan --cubin sm_80,sm_90", &["kernels.sm_90.cubin is missing"]);
    std::fs::write(&old, stamped("--fmad=false", "--fmad=true")).expect("machine code");
    std::fs::write(&new, &whole[1..]).expect("machine code");
    std::fs::write(work.path("plan/kernels.volta.cubin"), &whole).expect("machine code");
    let all = ["kernels.sm_80.cubin is out of date", "kernels.sm_90.cubin: it is cut short", "`volta` is not"];
    finds("plan verify plan", &all);
    finds("plan verify plan --cubin sm_90", &[&all[..], &["kernels.sm_90.cubin is missing, or damaged"]].concat());
    std::fs::remove_file(work.path("plan/kernels.volta.cubin")).expect("machine code");
    // Renamed, it says itself what it was compiled for.
    std::fs::write(&old, &whole).expect("machine code");
    std::fs::rename(&old, &new).expect("machine code");
    fails(&work, &device, train, &["kernels.sm_90.cubin is out of date", "--gpu-architecture=sm_80", again]);
    assert!(!work.path("run").exists(), "nothing is written");
}

#[test]
fn what_cannot_be_compiled_is_said_and_nothing_written() {
    if real() {
        return; // A real device has no options.
    }
    let (work, device) = (workspace(), Options::default());
    work.ok("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules 2 -o plan-cpu");
    let before = std::fs::read_to_string(work.path("plan/kernels.cu")).expect("kernels");
    for (line, words) in [
        ("compile plan-cpu --cubin", &["the plan is for cpu", "--target cuda"][..]),
        ("compile plan-cpu --cubin --arch sm_80", &["the plan is for cpu", "--target cuda"]),
        ("compile plan --cubin --arch sm_75", &["the plan is for sm_80 or later", "--target cuda:sm_75"]),
        // The first compiles; it is not written because the second does not.
        ("compile plan --cubin --arch sm_80,sm_999", &["cannot compile for sm_999", "sm_90"]),
        ("compile nowhere --cubin", &["cannot read nowhere/plan.yaml"]),
    ] {
        fails(&work, &device, line, words);
    }
    fails(&work, &no_compiler(), COMPILE, &["do not compile for sm_80", "injected error"]);
    work.write("plan/kernels.cu", format!("{before}// edited\n"));
    fails(&work, &device, COMPILE, &["kernels.cu is not this plan's"]);
    assert_eq!(cubins(&work.path("plan")), [""; 0]);
    for (line, word) in [("compile plan", "--cubin"), ("compile plan --cubin --arch volta", "sm_80")] {
        let ran = slrc(&work, &device, line);
        assert_eq!(ran.code, Some(2), "slrc {line}\n{}", ran.stderr);
        assert!(ran.stderr.contains(word), "slrc {line}\n{}", ran.stderr);
    }
}
