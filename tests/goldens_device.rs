//! The CPU device against PyTorch in f64: plans of every method, executed in f32.

mod support;

use std::collections::BTreeMap;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::import::read_weight;
use slrc_compiler::pipeline::{Compiled, compile};
use slrc_compiler::spec::SpecFile;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::session::{NamedTensor, Session};
use support::Goldens;

/// f32 against f64, largest difference relative to the largest element of the tensor. Measured by PyTorch against itself in
/// tests/goldens/README.md: losses and weights 3e-7, gradients 1e-6; another order of summation may cost a few times that.
const LOSS: f64 = 2e-6;
const WEIGHT: f64 = 2e-6;
const GRADIENT: f64 = 1e-5;

fn build(g: &Goldens, text: &str) -> (Compiled, Session) {
    let file = OnnxFile::open(&g.model()).expect("model");
    let mut spec: SpecFile = slrc_plan::yaml::from_str(text).expect("spec");
    spec.batch = Some(g.shape("x")[0]);
    if spec.partition.modules.is_none() {
        spec.partition.at = g.cuts();
    }
    let c = compile(&file, &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for p in &c.plan.parameters {
        let (shape, data) = if let Some(s) = c.network.sources.get(&p.name) {
            let v = c.network.graph.variable(&p.name).expect("variable");
            (c.network.graph.variables[v.index()].ty.shape.clone(), read_weight(&file, &s.source).expect("weight"))
        } else {
            let key = format!("init/{}", p.name);
            (g.shape(&key).to_vec(), g.get(&key).iter().map(|&x| x as f32).collect())
        };
        tensors.push(NamedTensor { name: p.name.clone(), shape, data });
    }
    for (constant, id) in &c.names.constants {
        let data = constant.data.iter().map(|&x| x as f32).collect();
        tensors.push(NamedTensor { name: id.clone(), shape: constant.ty.shape.clone(), data });
    }
    let device = CpuDevice::load(&c.plan, None).expect("device");
    let mut session = Session::new(c.plan.clone(), Box::new(device), &tensors).expect("session");
    let x: Vec<f32> = g.get("x").iter().map(|&x| x as f32).collect();
    let y: Vec<i32> = g.get("y").iter().map(|&x| x as i32).collect();
    session.set_input("input", &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).expect("input");
    session.set_labels(&y).expect("labels");
    (c, session)
}

fn by_name(tensors: Vec<NamedTensor>) -> BTreeMap<String, Vec<f64>> {
    tensors.into_iter().map(|t| (t.name, t.data.into_iter().map(f64::from).collect())).collect()
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
        let report = session.step(s as u64, steps as u64).expect("step");
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
    #[allow(clippy::print_stdout, reason = "the measured numbers, for --nocapture")]
    {
        println!("{} {method}: {worst:?}", g.case);
    }
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
