//! `slrc bench` on the CPU: what it says is consistent, and what is not a measurement is right.

#[path = "support/cli.rs"]
mod cli;

use cli::Workspace;
use serde_json::Value;

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is no number"))
}

/// Two plans of one network.
fn workspace() -> Workspace {
    let work = Workspace::new();
    for modules in [1, 2] {
        work.ok(&format!("partition MODELS/mnist_mlp/model.onnx --batch 8 --modules {modules} -o plan-{modules}"));
    }
    work
}

#[test]
fn a_line_a_plan() {
    let work = workspace();
    let text = work.ok("bench plan-1 plan-2 --steps 2").stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for word in
        ["plan", "device", "step", "spread", "samples/s", "launches", "bandwidth", "allocated", "peak", "resident"]
    {
        assert!(lines[0].contains(word), "{text}");
    }
    assert!(lines[1].starts_with("plan-1  cpu ") && lines[2].starts_with("plan-2  cpu "), "{text}");
}

#[test]
fn numbers_fit_each_other_and_the_plan() {
    let work = workspace();
    let rows = work.json("bench plan-1 plan-2/plan.yaml --steps 3 --json --threads 1");
    assert_eq!(rows.as_array().map(Vec::len), Some(2));
    for (i, row) in rows.as_array().expect("rows").iter().enumerate() {
        let name = format!("plan-{}", i + 1);
        assert_eq!((&row["plan"], &row["device"]), (&Value::from(&name[..]), &Value::from("cpu")));
        assert_eq!((&row["modules"], &row["batch"], &row["steps"]), (&(i + 1).into(), &8.into(), &3.into()));
        assert_eq!((&row["launches_per_step"], &row["stream_modules"]), (&Value::Null, &Value::from(false)));
        let seconds = number(&row["step_seconds"]);
        assert!(seconds > 0.0);
        let quartile = |i: usize| number(&row["step_seconds_quartiles"][i]);
        assert!(quartile(0) <= seconds && seconds <= quartile(1), "{row}");
        // Weights at the least are there when a step ends.
        let resident = &row["resident_bytes"];
        assert!(resident.is_null() || number(resident) > 1e6, "{row}");
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b} {row}");
        near(number(&row["samples_per_second"]), 8.0 / seconds);
        near(number(&row["bytes_per_second"]), number(&row["planned_bytes_per_step"]) / seconds);
        // The same by another route: the roofline estimate, which is made module by module.
        let shown = work.json(&format!("plan show {name} --device h100 --json"));
        let moved = |m: &Value| number(&m["estimate"]["bytes_moved"]);
        let modules = shown["modules"].as_array().expect("modules");
        assert_eq!(number(&row["planned_bytes_per_step"]), modules.iter().map(moved).sum::<f64>());
        assert_eq!(row["peak_bytes"], shown["totals"]["peak_bytes"]);
        // Allocated is every space, with the larger of the two arenas.
        let largest = |field: &str| modules.iter().map(|m| number(&m[field])).fold(0.0, f64::max);
        let (arena, eval) = (largest("arena_bytes"), largest("eval_arena_bytes"));
        let expected = number(&row["peak_bytes"]) - arena + arena.max(eval);
        assert_eq!(number(&row["allocated_bytes"]), expected);
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let work = workspace();
    work.fails("bench plan-3", 4, &["plan-3"]);
    work.fails("bench plan-1 --stream-modules", 4, &["--stream-modules", "leave it out", "--target cuda"]);
    work.fails("bench plan-1 --device cuda:0", 4, &["the plan is for cpu", "--target cuda"]);
    for (line, word) in [("bench", "PLAN"), ("bench plan-1 --steps 0", "--steps")] {
        let ran = work.slrc(line);
        assert!(ran.code == Some(2) && ran.stderr.contains(word), "{}", ran.stderr);
    }
}
