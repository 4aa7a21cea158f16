//! The ways to a reconciliation gradient agree on the models here: the BP-free mode and the directional derivative with
//! double backward on modules of one layer, and finite differences with frozen kinks on a net that has many.
#![allow(clippy::print_stdout, reason = "measured numbers, for --nocapture")]

mod support;

use std::collections::BTreeMap;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_runtime::cpu::CpuDevice;
use support::steps::{Batch, Oracle, by_name, compile_spec, norm_ratio, session, weights};

const BATCH: usize = 4;
const DISTANCES: [(&str, f64); 3] = [("squared", 3.0), ("relative", 0.02), ("cosine", 0.3)];

fn spec(mode: &str, distance: &str, lambda: f64) -> String {
    format!("partition: {{per-layer: true}}\nreconcile: {{mode: {mode}, distance: {distance}, lambda: {lambda}}}")
}

fn model(name: &str) -> OnnxFile {
    OnnxFile::open(&support::root().join("models").join(name).join("model.onnx")).expect("model")
}

type Gradients = BTreeMap<String, Vec<f64>>;

fn by_oracle(file: &OnnxFile, text: &str) -> Gradients {
    let c = compile_spec(file, text, BATCH);
    let mut oracle = Oracle::new(&c, &weights(&c, file));
    oracle.step(&Batch::random(&c, 2), 0);
    let names = c.plan.optimizer_state.iter().map(|o| o.name.clone());
    names.map(|n| (n.clone(), oracle.data(&n).to_vec())).collect()
}

fn by_device(file: &OnnxFile, text: &str) -> Gradients {
    let c = compile_spec(file, text, BATCH);
    let device = CpuDevice::load(&c.plan, None).expect("device");
    let mut session = session(&c, Box::new(device), &weights(&c, file), &Batch::random(&c, 2));
    session.pass(0, 1).expect("step");
    by_name(session.optimizer_state().expect("read"))
}

/// Error of the penalty's part alone, by norm over all tensors together.
fn error(ours: &Gradients, exact: &Gradients, local: &Gradients) -> f64 {
    let penalty: BTreeMap<&str, Vec<f64>> =
        exact.iter().map(|(n, e)| (n.as_str(), e.iter().zip(&local[n]).map(|(e, l)| e - l).collect())).collect();
    norm_ratio(exact.iter().map(|(n, e)| (&ours[n][..], &e[..], &penalty[n.as_str()][..])))
}

/// f64 against f64: only the order of operations differs. Measured 3e-13.
#[test]
fn the_same_mathematics() {
    for name in ["mnist_mlp", "mnist_deep8"] {
        let file = model(name);
        let local = by_oracle(&file, &spec("off", "cosine", 0.3));
        for (distance, lambda) in DISTANCES {
            let exact = by_oracle(&file, &spec("exact", distance, lambda));
            let ours = by_oracle(&file, &spec("bp-free", distance, lambda));
            let e = error(&ours, &exact, &local);
            println!("{name} {distance}: {e:e}");
            assert!(e < 1e-11, "{name} {distance}: {e:e}");
        }
    }
}

/// f32 against f32, each with its own rounding. Measured 3e-7 of the whole gradient, and 3e-5 of the penalty's, which
/// is as small as a hundredth of the whole.
#[test]
fn the_same_gradients_on_the_device() {
    for name in ["mnist_mlp", "mnist_deep8"] {
        let file = model(name);
        let local = by_device(&file, &spec("off", "cosine", 0.3));
        for (distance, lambda) in DISTANCES {
            let exact = by_device(&file, &spec("exact", distance, lambda));
            for mode in ["bp-free", "tangent"] {
                let ours = by_device(&file, &spec(mode, distance, lambda));
                let of_penalty = error(&ours, &exact, &local);
                let of_all = norm_ratio(exact.iter().map(|(n, e)| (&ours[n][..], &e[..], &e[..])));
                println!("{name} {mode} {distance}: {of_penalty:e} of the penalty, {of_all:e} of all");
                assert!(of_penalty < 2e-4 && of_all < 2e-6, "{name} {mode} {distance}: {of_penalty:e} {of_all:e}");
            }
        }
    }
}

/// A net with thousands of ReLUs and pooling windows, in f32: with kinks frozen, the finite difference is double
/// backward's gradient up to truncation, in proportion to the step (METHOD's table has 0.0016 to 0.0041 at 1e-3;
/// measured here 0.0057, and half of it at half the step). With free kinks it is another function; so the test would
/// see them thaw.
#[test]
fn frozen_and_free_kinks() {
    let file = model("mnist_cnn");
    let of = |mode: &str| {
        let cuts = "partition: {at: [/relu/Relu, /layer1/layer1.0/relu_1/Relu]}";
        by_device(&file, &format!("{cuts}\nreconcile: {{mode: {mode}, distance: squared, lambda: 3}}"))
    };
    let (exact, local) = (of("exact"), of("off"));
    let error = |mode: &str| error(&of(mode), &exact, &local);
    let (frozen, finer) = (error("finite-difference"), error("finite-difference, step: 0.0005"));
    let free = error("finite-difference, kinks: free");
    println!("frozen {frozen:e}, at half the step {finer:e}, free {free:e}");
    assert!(frozen < 8e-3, "{frozen:e}");
    assert!((frozen / finer - 2.0).abs() < 0.2, "{frozen:e} and {finer:e}");
    assert!(free > 0.5, "{free:e}");
}
