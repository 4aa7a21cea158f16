//! The same input gives the same bytes: plans wherever they are compiled, runs on any number of threads.

#[path = "support/cli.rs"]
mod cli;

use cli::{Workspace, model, npz, parameters, same_file, same_run, samples};

const MODELS: &[&str] = &["mnist_cnn", "mnist_deep8", "mnist_mlp", "mnist_vit", "tokens_bert"];

/// Most modules every one of the models allows.
fn most(name: &str) -> usize {
    if name == "mnist_mlp" { 2 } else { 3 }
}

#[test]
fn a_plan_depends_on_model_and_spec_alone() {
    for name in MODELS {
        let work = Workspace::new();
        let options = format!("--modules {} --batch 8 --init random --seed 5", most(name));
        work.ok(&format!("partition MODELS/{name}/model.onnx {options} -o a"));
        // Again; from a copy under another name and folder, by a relative path; by a spec; into a nested folder.
        work.ok(&format!("partition MODELS/{name}/model.onnx {options} -o b"));
        std::fs::create_dir_all(work.path("far/away")).expect("a folder");
        std::fs::copy(model(name), work.path("far/away/other.onnx")).expect("copy");
        work.ok(&format!("partition ./far/../far/away/other.onnx {options} -o deep/er/c"));
        let absolute = work.path("far/away/other.onnx");
        work.ok(&format!("partition {} {options} -o d", absolute.display()));
        let spec = format!("batch: 8\npartition: {{modules: {}}}\ninit: random\nseed: 5\n", most(name));
        work.write("far/s.yaml", format!("model: away/other.onnx\n{spec}"));
        work.ok("partition --spec far/s.yaml -o e");
        for other in ["b", "deep/er/c", "d", "e"] {
            for file in ["plan.yaml", "weights.safetensors", "model.onnx", "partition.txt"] {
                same_file(&work.path("a").join(file), &work.path(other).join(file));
            }
        }
        let text = std::fs::read_to_string(work.path("a/plan.yaml")).expect("plan");
        assert!(!text.contains(&work.path("").display().to_string()) && !text.contains("other.onnx"), "{name}: a path");
        // What is asked for does matter.
        work.ok(&format!("partition MODELS/{name}/model.onnx {options} --lr 0.01 -o f"));
        assert_ne!(text, std::fs::read_to_string(work.path("f/plan.yaml")).expect("plan"));
    }
}

#[test]
fn a_run_does_not_depend_on_threads() {
    for (name, batch) in [("mnist_cnn", 16), ("mnist_vit", 16), ("tokens_bert", 32), ("mnist_mlp", 64)] {
        let work = Workspace::new();
        work.ok(&format!("partition MODELS/{name}/model.onnx --modules {} --batch {batch} -o plan", most(name)));
        work.write("train.npz", npz(&samples(name, 4 * batch, 1)));
        for threads in [1, 2, 3] {
            work.ok(&format!(
                "train plan --data train.npz --steps 5 --log-every 1 --threads {threads} -o run{threads}"
            ));
        }
        for other in ["run2", "run3"] {
            same_run(&work.path("run1"), &work.path(other));
        }
        let eval = |threads: usize| {
            work.ok(&format!("eval run1 --data train.npz --json --threads {threads} --save-logits l{threads}.npz"))
                .stdout
        };
        assert_eq!(eval(1), eval(3));
        same_file(&work.path("l1.npz"), &work.path("l3.npz"));
    }
}

#[test]
fn a_run_depends_on_its_seed() {
    let work = Workspace::new();
    work.write("train.npz", npz(&samples("mnist_cnn", 40, 1)));
    work.ok("partition MODELS/mnist_cnn/model.onnx --modules 3 --batch 8 --init random --seed 1 -o one");
    work.ok("partition MODELS/mnist_cnn/model.onnx --modules 3 --batch 8 --init random --seed 2 -o two");
    let run = |plan: &str, options: &str, run: &str| {
        work.ok(&format!("train {plan} --data train.npz --steps 6 {options} -o {run}"));
        parameters(&work.path(run))
    };
    let first = run("one", "", "a");
    run("one", "", "b");
    same_run(&work.path("a"), &work.path("b"));
    assert!(first != run("one", "--seed 7", "c"), "another order of samples");
    assert!(first != run("two", "--seed 1", "d"), "other initial weights");
}
