//! `slrc profile` on the CPU: what it says is consistent, and its trace is one that viewers take.

#[path = "support/cli.rs"]
mod cli;

use cli::Workspace;
use serde_json::Value;

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is no number"))
}

fn list<'a>(v: &'a Value, field: &str) -> &'a Vec<Value> {
    v[field].as_array().unwrap_or_else(|| panic!("{field} is no list"))
}

/// A plan of a convolutional network in two modules, and its kernels: module and id, in the order of a step.
fn workspace() -> (Workspace, Vec<String>) {
    let work = Workspace::new();
    work.ok("partition MODELS/mnist_cnn/model.onnx --batch 4 --modules 2 -o plan");
    let plan = slrc_runtime::folder::read_plan(&work.path("plan")).expect("a plan");
    let of = |m: &slrc_plan::ModulePlan| -> Vec<String> {
        m.step.kernels.iter().map(|k| format!("m{}.{}", m.index, k.id)).collect()
    };
    let kernels = plan.modules.iter().flat_map(of).collect();
    (work, kernels)
}

#[test]
fn every_kernel_is_held_against_the_roof() {
    let (work, kernels) = workspace();
    let p = work.json("profile plan --steps 3 --threads 1 --json");
    assert_eq!((&p["device"], &p["batch"], &p["steps"]), (&"cpu".into(), &4.into(), &3.into()));
    let named: Vec<String> =
        list(&p, "kernels").iter().map(|k| format!("m{}.{}", k["module"], k["id"].as_str().expect("an id"))).collect();
    assert_eq!(named, kernels);
    let roof = &p["roof"];
    let [work_peak, memory_peak] = ["flops_per_second", "bytes_per_second"].map(|f| number(&roof[f]));
    assert!(work_peak > 0.0 && memory_peak > 0.0, "{roof}");
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * a.abs().max(b.abs()), "{a} is not {b}");
    let (mut roof_seconds, mut seconds) = (0.0, 0.0);
    for k in list(&p, "kernels") {
        let (by_work, by_memory) = (number(&k["flops"]) / work_peak, number(&k["bytes"]) / memory_peak);
        near(number(&k["roof_seconds"]), by_work.max(by_memory));
        assert_eq!(k["bound"], if by_memory >= by_work { "memory" } else { "work" }, "{k}");
        near(number(&k["of_roof"]) * number(&k["seconds"]), number(&k["roof_seconds"]));
        near(number(&k["flops_per_second"]) * number(&k["seconds"]), number(&k["flops"]));
        roof_seconds += number(&k["roof_seconds"]);
        seconds += number(&k["seconds"]);
    }
    near(number(&p["roof_seconds"]), roof_seconds);
    near(list(&p, "families").iter().map(|f| number(&f["seconds"])).sum(), seconds);
    near(list(&p, "families").iter().map(|f| number(&f["share"])).sum(), 1.0);
    assert_eq!(list(&p, "families").iter().map(|f| number(&f["kernels"])).sum::<f64>(), kernels.len() as f64);
}

#[test]
fn tables_are_narrow() {
    let (work, _) = workspace();
    let text = work.ok("profile plan --steps 1 --top 100 --threads 2").stdout;
    assert!(text.lines().nth(1).is_some_and(|l| l.starts_with("roof of cpu: ") && l.contains("2 threads")), "{text}");
    for word in ["roof ms", "of roof", "bound", "GFLOP/s", "GB/s"] {
        assert!(text.contains(word), "{text}");
    }
    let wide: Vec<&str> = text.lines().filter(|l| l.chars().count() > 120).collect();
    assert!(wide.is_empty(), "{wide:?}");
}

#[test]
fn a_trace_has_an_event_a_kernel() {
    let (work, kernels) = workspace();
    let said = work.ok("profile plan --steps 2 --trace step.json").stdout;
    assert!(said.lines().last().is_some_and(|l| l.starts_with("step.json written, ")), "{said}");
    let trace: Value =
        serde_json::from_slice(&std::fs::read(work.path("step.json")).expect("a trace")).expect("a trace is JSON");
    let of = |phase: &str| -> Vec<&Value> { list(&trace, "traceEvents").iter().filter(|e| e["ph"] == phase).collect() };
    let rows: Vec<String> = of("M").into_iter().map(|e| format!("{} {}", e["name"], e["tid"])).collect();
    assert_eq!(rows, ["\"process_name\" 0", "\"thread_name\" 1", "\"thread_name\" 2"]);
    let events = of("X");
    let named: Vec<&str> = events.iter().map(|e| e["args"]["kernel"].as_str().expect("a kernel")).collect();
    assert_eq!(named, kernels);
    for (e, kernel) in events.iter().zip(&kernels) {
        assert!(kernel.starts_with(&format!("m{}.", e["tid"])), "{e}");
        assert!(e["name"].as_str().is_some_and(|n| !n.is_empty()) && number(&e["dur"]) >= 0.0, "{e}");
        for field in ["bytes", "flops", "GFLOP/s", "GB/s", "predicted us"] {
            number(&e["args"][field]);
        }
        assert!(e["args"]["nodes"].is_array(), "{e}");
    }
    // In nanoseconds, as written.
    let nanoseconds = |v: &Value| (number(v) * 1e3).round() as u64;
    for pair in events.windows(2) {
        assert!(nanoseconds(&pair[0]["ts"]) + nanoseconds(&pair[0]["dur"]) <= nanoseconds(&pair[1]["ts"]), "{pair:?}");
    }
}

#[test]
fn a_trace_that_cannot_be_written_is_no_result() {
    let (work, _) = workspace();
    work.fails("profile plan --steps 1 --trace nowhere/step.json", 4, &["nowhere/step.json"]);
    work.fails("profile nowhere --trace step.json", 4, &["nowhere"]);
    work.ok("profile plan --steps 1 --trace step.json");
    let p = work.json("profile plan --steps 1 --trace again.json --json");
    assert!(p["kernels"].is_array() && work.path("again.json").exists());
}
