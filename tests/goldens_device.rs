//! The CPU device against PyTorch in f64: plans of every method, executed in f32.
#![allow(clippy::print_stdout, reason = "measured numbers, for --nocapture")]

mod support;

use std::collections::BTreeMap;

use slrc_compiler::pipeline::Compiled;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::session::Session;
use support::Goldens;
use support::steps::{Batch, by_name, compile_golden, golden_weights, norm_ratio, penalty_error, session};

/// f32 against f64, largest difference relative to the largest element of the tensor. Measured by PyTorch against
/// itself in tests/goldens/README.md: losses and weights 3e-7, gradients 1e-6; another order of summation may cost a
/// few times that.
const LOSS: f64 = 2e-6;
const WEIGHT: f64 = 2e-6;
const GRADIENT: f64 = 1e-5;

fn build(g: &Goldens, text: &str) -> (Compiled, Session) {
    let c = compile_golden(g, text);
    let device = CpuDevice::load(&c.plan, None).expect("device");
    let session = session(&c, Box::new(device), &golden_weights(g, &c), &Batch::golden(g));
    (c, session)
}

fn check(
    worst: &mut BTreeMap<&'static str, (f64, String)>,
    kind: &'static str,
    what: String,
    ours: &[f64],
    golden: &[f64],
) {
    let r = support::relative(ours, golden);
    let w = worst.entry(kind).or_insert((0.0, String::new()));
    if r.is_nan() || r > w.0 {
        *w = (r, what);
    }
}

fn compare(g: &Goldens, method: &str, text: &str) {
    let (_, mut session) = build(g, text);
    let steps = g.shape(&format!("{method}/loss"))[0];
    let k = session.plan().modules.len();
    let mut worst = BTreeMap::new();
    for s in 0..steps {
        let report = session.pass(s as u64, steps as u64).expect("step");
        let row = |name: &str, n: usize| g.get(&format!("{method}/{name}"))[s * n..(s + 1) * n].to_vec();
        let loss: Vec<f64> = report.iter().map(|r| f64::from(r.loss)).collect();
        check(&mut worst, "loss", format!("step {s}"), &loss, &row("loss", k));
        let accuracy: Vec<f64> = report.iter().map(|r| f64::from(r.accuracy)).collect();
        check(&mut worst, "loss", format!("accuracy at step {s}"), &accuracy, &row("accuracy", k));
        if k > 1 {
            let boundary: Vec<_> = report.iter().filter_map(|r| r.boundary).collect();
            let of = |f: &dyn Fn(&slrc_runtime::session::BoundaryReport) -> f32| {
                boundary.iter().map(|b| f64::from(f(b))).collect::<Vec<f64>>()
            };
            check(&mut worst, "gradient", format!("discord at step {s}"), &of(&|b| b.discord), &row("discord", k - 1));
            check(&mut worst, "gradient", format!("ratio at step {s}"), &of(&|b| b.ratio), &row("ratio", k - 1));
            let cosine: Vec<f64> = of(&|b| b.cosine).iter().map(|c| c + 2.0).collect();
            let golden: Vec<f64> = row("cosine", k - 1).iter().map(|c| c + 2.0).collect();
            check(&mut worst, "gradient", format!("cosine (plus 2) at step {s}"), &cosine, &golden);
        }
        if s == 0 && session.plan().settings.optimizer.starts_with("sgd lr") {
            // With momentum, the buffer after one step is the gradient.
            let state = by_name(session.optimizer_state().expect("state"));
            for name in g.below(&format!("{method}/grad1/")) {
                let golden = g.get(&format!("{method}/grad1/{name}"));
                let ours = &state[&format!("{name}.momentum_buffer")];
                if golden.iter().all(|x| x.abs() < 1e-12) {
                    // A key's bias does not reach the softmax: its gradient is zero up to rounding.
                    assert!(ours.iter().all(|x| x.abs() < 1e-7), "{method} {name}");
                } else {
                    check(&mut worst, "gradient", name.clone(), ours, &golden);
                }
            }
        }
        for (at, prefix) in [(1, "param1"), (steps, "param5")] {
            if s + 1 == at {
                let state = by_name(session.parameters().expect("parameters"));
                for name in g.below(&format!("{method}/{prefix}/")) {
                    check(
                        &mut worst,
                        "weight",
                        format!("{name} after step {at}"),
                        &state[&name],
                        &g.get(&format!("{method}/{prefix}/{name}")),
                    );
                }
            }
        }
    }
    println!("{} {method}: {worst:?}", g.case);
    for (kind, limit) in [("loss", LOSS), ("weight", WEIGHT), ("gradient", GRADIENT)] {
        if let Some((r, what)) = worst.get(kind) {
            assert!(*r < limit, "{} {method}: {kind} {what}: {r:e}", g.case);
        }
    }
}

const SGD: &str = "optimizer: {lr: 0.05, momentum: 0.9}";

fn reconcile(mode: &str, distance: &str, lambda: f64) -> String {
    format!("{SGD}\nreconcile: {{mode: {mode}, distance: {distance}, lambda: {lambda}}}")
}

#[test]
fn convnet() {
    let g = Goldens::load("convnet");
    compare(&g, "bp", &format!("{SGD}\npartition: {{modules: 1}}"));
    compare(&g, "local", &reconcile("off", "cosine", 0.3));
    compare(&g, "exact_squared", &reconcile("exact", "squared", 1.0));
    compare(&g, "exact_relative", &reconcile("exact", "relative", 0.1));
    compare(&g, "exact_cosine", &reconcile("exact", "cosine", 0.3));
    compare(&g, "local_adamw", "reconcile: {mode: off}\noptimizer: {kind: adamw, lr: 0.001, weight-decay: 0.01}");
    compare(
        &g,
        "local_sgd_nesterov",
        "reconcile: {mode: off}\noptimizer: {lr: 0.05, momentum: 0.9, nesterov: true, weight-decay: 0.0005}",
    );
}

#[test]
fn transformer() {
    let g = Goldens::load("transformer");
    compare(&g, "bp", &format!("{SGD}\npartition: {{modules: 1}}"));
    compare(&g, "local", &reconcile("off", "cosine", 0.3));
    compare(&g, "exact_squared", &reconcile("exact", "squared", 1.0));
    compare(&g, "exact_relative", &reconcile("exact", "relative", 0.1));
    compare(&g, "exact_cosine", &reconcile("exact", "cosine", 0.3));
}

#[test]
fn unet() {
    let g = Goldens::load("unet");
    compare(&g, "bp", &format!("{SGD}\npartition: {{modules: 1}}"));
    compare(&g, "local", &reconcile("off", "cosine", 0.3));
    compare(&g, "exact_squared", &reconcile("exact", "squared", 1.0));
    compare(&g, "exact_relative", &reconcile("exact", "relative", 0.1));
    compare(&g, "exact_cosine", &reconcile("exact", "cosine", 0.3));
}

/// The finite difference divides by a step of 1e-2 of the input's length, so f32's rounding of both gradients is
/// enlarged by about |G| lambda / t; measured 1.3e-6 of the gradient, within the bound for every method.
#[test]
fn free_finite_difference() {
    let g = Goldens::load("transformer");
    compare(
        &g,
        "fd_free_cosine",
        &format!(
            "{SGD}\nreconcile: {{mode: finite-difference, kinks: free, step: 0.01, distance: cosine, lambda: 0.3}}"
        ),
    );
}

/// The directional derivative is double backward's gradient.
#[test]
fn tangent() {
    for case in ["convnet", "transformer", "unet"] {
        let g = Goldens::load(case);
        for (distance, lambda) in [("squared", 1.0), ("relative", 0.1), ("cosine", 0.3)] {
            compare(&g, &format!("exact_{distance}"), &reconcile("tangent", distance, lambda));
        }
    }
}

/// Gradients of the first step.
fn first_gradients(g: &Goldens, text: &str) -> BTreeMap<String, Vec<f64>> {
    let (_, mut session) = build(g, text);
    session.pass(0, 5).expect("step");
    let state = by_name(session.optimizer_state().expect("read"));
    state.into_iter().filter_map(|(n, v)| Some((n.strip_suffix(".momentum_buffer")?.to_string(), v))).collect()
}

/// METHOD's table, in f32 on the device: the error of the penalty's gradient alone, at the default relative step 1e-3.
/// The table has 0.0016 to 0.0041 with BatchNorm, ReLU and max-pooling; the narrow transformer's loss is more strongly
/// curved.
#[test]
fn frozen_finite_difference_is_nearly_exact() {
    for (case, bound) in [("convnet", 5e-3), ("transformer", 3e-2), ("unet", 3e-2)] {
        let g = Goldens::load(case);
        for (distance, lambda) in [("squared", 1.0), ("cosine", 0.3)] {
            let of = |mode: &str| first_gradients(&g, &reconcile(mode, distance, lambda));
            let (frozen, exact, local) = (of("finite-difference"), of("exact"), of("off"));
            // Against the device's own double backward.
            let penalty: BTreeMap<&str, Vec<f64>> = exact
                .iter()
                .map(|(n, e)| (n.as_str(), e.iter().zip(&local[n]).map(|(e, l)| e - l).collect()))
                .collect();
            let triples = exact.iter().map(|(n, e)| (&frozen[n][..], &e[..], &penalty[n.as_str()][..]));
            let error = norm_ratio(triples);
            println!("{case} {distance}: {error:e}");
            assert!(error < bound, "{case} {distance}: {error:e}");
            // Against PyTorch's.
            if distance == "squared" {
                let error = penalty_error(&g, |name| &frozen[name]);
                assert!(error < bound, "{case} against the goldens: {error:e}");
            }
        }
    }
}

/// The perturbed pass runs BatchNorm a second time, but running statistics are updated once a step, from the first
/// pass.
#[test]
fn running_statistics_are_updated_once_a_step() {
    let g = Goldens::load("convnet");
    for mode in ["finite-difference", "tangent", "exact"] {
        let (_, mut session) = build(&g, &reconcile(mode, "squared", 1.0));
        session.pass(0, 5).expect("step");
        let state = by_name(session.parameters().expect("read"));
        let names = g.below("local/param1/");
        let running: Vec<&String> = names.iter().filter(|n| n.contains("running_")).collect();
        assert_eq!(running.len(), 16, "two of each BatchNorm");
        for name in running {
            // The first step's forward pass is that of every method.
            let r = support::relative(&state[name], &g.get(&format!("local/param1/{name}")));
            assert!(r < WEIGHT, "{mode} {name}: {r:e}");
        }
    }
}

/// Inference by running statistics, after five steps of exact reconciliation. PyTorch in f32 stays within 2e-6.
#[test]
fn inference() {
    for case in ["convnet", "transformer", "unet"] {
        let g = Goldens::load(case);
        let (_, mut session) = build(&g, &reconcile("exact", "cosine", 0.3));
        for s in 0..5 {
            session.pass(s, 5).expect("step");
        }
        let (_, logits) = session.eval().expect("inference");
        let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let r = support::relative(&logits, &g.get("eval/logits"));
        assert!(r < GRADIENT, "{case}: {r:e}");
    }
}
