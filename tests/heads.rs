//! Every kind of local head: whole steps with it, by the f64 interpreter and by the CPU device, agree in losses,
//! boundary numbers, gradients and inference.
#![allow(clippy::print_stdout, reason = "measured numbers, for --nocapture")]

mod support;

use std::collections::BTreeSet;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Compiled;
use slrc_compiler::spec::HeadKind;
use slrc_runtime::cpu::CpuDevice;
use support::Goldens;
use support::steps::{Batch, Oracle, by_name, compile_golden, compile_spec, session, weights};

/// f32 against f64, of the tensor's largest element. Measured: losses 6e-6; gradients 2e-5 by double backward and 9e-5
/// by finite differences, both with mlp-sr (six BatchNorms over as few as eight numbers, each of which may enlarge an
/// error some times). A finite difference enlarges rounding by its step, 1e-3. The other heads stay below 2e-6 without
/// one.
const LOSS: f64 = 2e-5;
const GRADIENT: f64 = 3e-4;
/// The same for heads without a tower of BatchNorms, by derivatives.
const GRADIENT_OF_SHALLOW_HEADS: f64 = 1e-5;

/// Compares two steps and inference after them.
fn compare(what: &str, file: &OnnxFile, c: &Compiled, gradient: f64) {
    let weights = weights(c, file);
    let batch = Batch::random(c, 5);
    let mut oracle = Oracle::new(c, &weights);
    let device = CpuDevice::load(&c.plan, None).expect("device");
    let mut session = session(c, Box::new(device), &weights, &batch);
    let mut worst = (0.0f64, 0.0f64);
    let mut close = |kind: &str, name: &str, ours: &[f64], theirs: &[f64]| {
        let r = support::relative(ours, theirs);
        let (limit, seen) = if kind == "loss" { (LOSS, &mut worst.0) } else { (gradient, &mut worst.1) };
        *seen = seen.max(r);
        assert!(r < limit, "{what}: {kind} {name}: {r:e}\n ours {ours:?}\n theirs {theirs:?}");
    };
    for s in 0..2 {
        let report = session.pass(s, 5).expect("step");
        let expected = oracle.step(&batch, s);
        let losses: Vec<f64> = report.iter().map(|m| f64::from(m.loss)).collect();
        close("loss", "of every module", &losses, &expected.loss);
        let discord: Vec<f64> = report.iter().filter_map(|m| m.boundary).map(|b| f64::from(b.discord)).collect();
        let expected: Vec<f64> = expected.boundary.iter().map(|b| b[0]).collect();
        close("gradient", "discord", &discord, &expected);
        if s == 0 {
            for (name, ours) in by_name(session.optimizer_state().expect("read")) {
                let theirs = oracle.data(&name);
                if theirs.iter().all(|x| x.abs() < 1e-9) {
                    // A bias before BatchNorm, or a key's before softmax: zero in theory, rounding in f32.
                    assert!(ours.iter().all(|x| x.abs() < 1e-6), "{what}: {name} {ours:?}");
                } else {
                    close("gradient", &name, &ours, theirs);
                }
            }
        }
    }
    let (reports, _) = session.eval().expect("inference");
    for (k, (ours, (_, theirs))) in reports.iter().zip(oracle.infer(&batch)).enumerate() {
        let ours: Vec<f64> = ours.loss.iter().map(|&x| f64::from(x)).collect();
        close("gradient", &format!("sample losses of head {}", k + 1), &ours, &theirs.data);
    }
    println!("{what}: losses {:e}, gradients {:e}", worst.0, worst.1);
}

fn check(case: &'static str, kind: HeadKind, mode: &str) {
    let g = Goldens::load(case);
    let file = OnnxFile::open(&g.model()).expect("model");
    let text = format!(
        "head: {{kind: {}}}\nreconcile: {{mode: {mode}, distance: squared, lambda: 0.5}}\nseed: 3",
        kind.name()
    );
    let c = compile_golden(&g, &text);
    let last = c.plan.modules.len() - 1;
    for m in &c.plan.modules[..last] {
        let wanted = if kind == HeadKind::Auto { auto(case) } else { kind };
        assert_eq!(m.head, wanted.name(), "{case} module {}", m.index);
        assert!(m.head_parameters > 0);
    }
    assert_eq!(c.plan.modules[last].head, "network");
    let deep = kind == HeadKind::MlpSr || mode == "finite-difference";
    let limit = if deep { GRADIENT } else { GRADIENT_OF_SHALLOW_HEADS };
    compare(&format!("{case} {} {mode}", kind.name()), &file, &c, limit);
}

fn auto(case: &str) -> HeadKind {
    if case == "convnet" { HeadKind::PoolLinear } else { HeadKind::Token }
}

const IMAGE: &[HeadKind] =
    &[HeadKind::Auto, HeadKind::GapLinear, HeadKind::PoolLinear, HeadKind::Conv, HeadKind::MlpSr, HeadKind::Linear];
const SEQUENCE: &[HeadKind] = &[HeadKind::Auto, HeadKind::Token, HeadKind::Linear];

#[test]
fn every_kind_is_tried() {
    // The one for pixels is tried in pixel_labels.rs.
    let tried: BTreeSet<HeadKind> = IMAGE.iter().chain(SEQUENCE).chain(&[HeadKind::Pixel]).copied().collect();
    assert_eq!(tried.into_iter().collect::<Vec<_>>(), HeadKind::ALL);
}

#[test]
fn heads_of_images() {
    for &kind in IMAGE {
        for mode in ["off", "exact", "finite-difference"] {
            check("convnet", kind, mode);
        }
    }
}

#[test]
fn heads_of_sequences() {
    for &kind in SEQUENCE {
        for mode in ["off", "exact", "finite-difference"] {
            check("transformer", kind, mode);
        }
    }
}

/// Vectors, per layer.
#[test]
fn heads_of_vectors() {
    let file = OnnxFile::open(&support::root().join("models/mnist_mlp/model.onnx")).expect("model");
    let c = compile_spec(&file, "partition: {per-layer: true}\nreconcile: {mode: exact, distance: squared}", 4);
    assert_eq!(c.plan.modules[0].head, "linear");
    compare("mnist_mlp", &file, &c, GRADIENT_OF_SHALLOW_HEADS);
}

/// A head that does not fit its boundary is refused, with the shape and the way out.
#[test]
fn kinds_that_do_not_fit() {
    for (case, kind) in [("convnet", "token"), ("transformer", "gap-linear"), ("transformer", "conv")] {
        let g = Goldens::load(case);
        let file = OnnxFile::open(&g.model()).expect("model");
        let text = format!("head: {{kind: {kind}}}\npartition: {{at: [{}]}}", g.cuts().join(", "));
        let spec = slrc_plan::yaml::from_str(&text).expect("spec");
        let e = slrc_compiler::pipeline::compile(&file, &spec, &mut |_, _| {}).expect_err("no such head").to_string();
        assert!(e.starts_with(&format!("head {kind} needs ")) && e.ends_with("use --head auto"), "{e}");
    }
}
