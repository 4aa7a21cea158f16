//! `slrc plan sweep`

use serde_json::Value;
use slrc_plan::buffer::align;

use crate::cli::{Workspace, tree};
use crate::read;

const MODEL: &str = "MODELS/mnist_cnn/model.onnx --batch 4";

fn rows(sweep: &Value) -> &Vec<Value> {
    sweep["plans"].as_array().expect("plans")
}

fn number(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("{name} of {row}"))
}

#[test]
fn the_table() {
    let work = Workspace::new();
    let out = work.ok(&format!("plan sweep {MODEL} --modules 1..3 --device a100")).stdout;
    insta::assert_snapshot!("sweep_mnist_cnn", out);
    assert!(tree(&work.path("")).is_empty(), "a sweep writes nothing");
}

/// Every row is the plan that `slrc partition` makes.
#[test]
fn rows_are_plans() {
    let work = Workspace::new();
    for options in ["--optimizer adamw --reconcile exact", "--reconcile off --no-monitor --target cuda:sm_80"] {
        let sweep = work.json(&format!("plan sweep {MODEL} {options} --json"));
        assert_eq!(number(&sweep, "most_modules"), 5);
        let modules: Vec<u64> = rows(&sweep).iter().map(|r| number(r, "modules")).collect();
        assert_eq!(modules, [1, 1, 2, 3, 4, 5], "1 with and without recomputation, then all there are");
        let one = &rows(&sweep)[0];
        for row in rows(&sweep) {
            let what = format!("{options}: {row}");
            let k = number(row, "modules");
            let recompute = row["recompute"].as_str().expect("a word");
            work.ok(&format!("partition {MODEL} {options} --modules {k} --recompute {recompute} -o plan"));
            let shown = work.json("plan show plan --json");
            let totals = &shown["totals"];
            assert_eq!(number(row, "peak_bytes"), number(totals, "peak_bytes"), "{what}");
            assert_eq!(number(row, "flops"), number(totals, "flops"), "{what}");
            let parts = ["resident_bytes", "working_bytes", "other_bytes"].map(|p| number(row, p));
            assert_eq!(parts.iter().sum::<u64>(), number(row, "peak_bytes"), "{what}");
            let working = ["arena_bytes", "head_bytes"].map(|p| number(row, p));
            assert_eq!(working.iter().sum::<u64>(), number(row, "working_bytes"), "{what}");
            // Heads' tensors are told by their names here, not by who made them.
            let plan = read(&work.path("plan"));
            let of_heads = plan.buffers.iter().filter(|b| b.id.starts_with("w/head."));
            let bytes: usize = of_heads.map(|b| align(b.bytes)).sum();
            assert_eq!(number(row, "head_bytes"), bytes as u64, "{what}");
            assert_eq!(bytes > 0, k > 1);
            let modules = shown["modules"].as_array().expect("modules");
            let kernels: u64 = modules.iter().map(|m| number(m, "kernels")).sum();
            assert_eq!(number(row, "kernels"), kernels, "{what}");
            let launches: usize = plan.modules.iter().map(|m| m.step.launches.len()).sum();
            assert_eq!(row["launches"].as_u64().unwrap_or(0), launches as u64, "{what}");
            let ends: Vec<&Value> = modules.iter().map(|m| &m["last_node"]).collect();
            let cuts: Vec<&Value> = row["cuts"].as_array().expect("cuts").iter().collect();
            assert_eq!(cuts, ends[..ends.len() - 1], "{what}");
            // What local heads train.
            assert_eq!(number(row, "local_heads"), k - 1);
            let own = |m: &Value| (number(m, "parameters") - number(m, "head_parameters")) as f64;
            let flops = |m: &Value| number(m, "flops") as f64;
            for (name, of) in [
                ("locally_trained_parameters", &own as &dyn Fn(&Value) -> f64),
                ("locally_trained_work", &flops as &dyn Fn(&Value) -> f64),
            ] {
                let all: f64 = modules.iter().map(of).sum();
                let last = of(modules.last().expect("a module"));
                let expected = (all - last) / all;
                assert!((row[name].as_f64().expect("a part") - expected).abs() < 1e-12, "{name} {what}");
            }
            for (name, of) in [("working_of_one", "working_bytes"), ("work_of_one", "flops")] {
                let expected = number(row, of) as f64 / number(one, of) as f64;
                assert!((row[name].as_f64().expect("a part") - expected).abs() < 1e-12, "{name} {what}");
            }
        }
        let point = |r: &Value| (number(r, "peak_bytes"), number(r, "flops"));
        for row in rows(&sweep) {
            let (peak, flops) = point(row);
            let better =
                |o: &&Value| (point(o).0 < peak && point(o).1 <= flops) || (point(o).0 <= peak && point(o).1 < flops);
            assert_eq!(row["front"], rows(&sweep).iter().find(better).is_none(), "{row}");
        }
    }
}

#[test]
fn numbers_of_modules_are_chosen() {
    let work = Workspace::new();
    let chosen = |list: &str| -> Vec<u64> {
        let sweep = work.json(&format!("plan sweep {MODEL} --modules {list} --reconcile off --json"));
        rows(&sweep).iter().map(|r| number(r, "modules")).collect()
    };
    assert_eq!(chosen("4,2"), [1, 1, 2, 4]);
    assert_eq!(chosen("2..3"), [1, 1, 2, 3]);
    assert_eq!(chosen("1"), [1, 1]);
    let sweep = work.json(&format!("plan sweep {MODEL} --modules 2 --recompute none --device t4 --json"));
    let recompute: Vec<&Value> = rows(&sweep).iter().map(|r| &r["recompute"]).collect();
    assert_eq!(recompute, ["none", "elementwise", "none"], "an option is for more than one module");
    assert_eq!(sweep["device"], "t4");
    assert!(rows(&sweep).iter().all(|r| r["estimate_seconds"].as_f64().is_some_and(|s| s > 0.0)));
}

#[test]
fn the_picture() {
    let work = Workspace::new();
    work.ok(&format!("plan sweep {MODEL} --modules 1..3 --svg a.svg"));
    work.ok(&format!("plan sweep {MODEL} --modules 1..3 --svg b.svg"));
    let svg = std::fs::read_to_string(work.path("a.svg")).expect("a picture");
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg:.200}");
    for words in ["K = 1", "K = 1, recomp.", "K = 2", "K = 3", "working memory", "peak, MiB", "work, of K = 1"] {
        assert!(svg.contains(words), "no {words:?}");
    }
    crate::cli::same_file(&work.path("a.svg"), &work.path("b.svg"));
}

#[test]
fn what_cannot_be_swept() {
    let work = Workspace::new();
    for (options, code, words) in [
        ("--modules 0..3", 2, "0..3"),
        ("--modules 3..2", 2, "3..2"),
        ("--modules two", 2, "1,2,4,8"),
        ("--per-layer", 2, "--per-layer"),
        ("--at a", 2, "--at"),
        ("--device abacus", 2, "h100"),
        ("--modules 2,9", 3, "with 9 modules"),
        ("--svg nowhere/a.svg --modules 2", 4, "nowhere/a.svg"),
    ] {
        let ran = work.slrc(&format!("plan sweep {MODEL} {options}"));
        assert_eq!(ran.code, Some(code), "{options}\n{}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(words), "{options}: {}", ran.stderr);
    }
    work.fails("plan sweep nowhere.onnx", 3, &["nowhere.onnx"]);
    work.fails("plan sweep", 2, &["MODEL.onnx"]);
    work.write("lambdas.yaml", "reconcile: {lambdas: {2: 0.5}}");
    work.fails(&format!("plan sweep {MODEL} --spec lambdas.yaml"), 2, &["reconcile.lambdas"]);
    let files = tree(&work.path(""));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["lambdas.yaml"], "a failed sweep writes nothing");
}
