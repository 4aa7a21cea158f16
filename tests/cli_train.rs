//! `slrc train`, `eval` and `export` on every small model: what every option does, and that their numbers agree with
//! ours.

#[path = "support/cli.rs"]
mod cli;

use cli::{Array, Values, Workspace, npz, parameters, same_file, same_run, samples};
use slrc_runtime::data::npz::read_npz;

/// Models and modules to cut them into.
const MODELS: &[(&str, usize)] = &[("mnist_cnn", 3), ("mnist_vit", 3), ("mnist_mlp", 2), ("tokens_bert", 3)];

/// A plan folder `plan` of a model with a batch of 8, and `train.npz`, `test.npz`.
fn prepare(work: &Workspace, name: &str, k: usize, options: &str) {
    work.ok(&format!("partition MODELS/{name}/model.onnx --modules {k} --batch 8 {options} -o plan"));
    work.write("train.npz", npz(&samples(name, 48, 1)));
    work.write("test.npz", npz(&samples(name, 21, 2)));
}

/// Lines of a run's `metrics.jsonl`.
fn metrics(work: &Workspace, run: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(work.path(run).join("metrics.jsonl")).expect("metrics");
    text.lines().map(|l| serde_json::from_str(l).expect("a line of JSON")).collect()
}

fn steps(work: &Workspace, run: &str) -> Vec<u64> {
    metrics(work, run).iter().map(|l| l["step"].as_u64().expect("a step")).collect()
}

fn state(work: &Workspace, run: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(work.path(run).join("checkpoint/state.json")).expect("state");
    serde_json::from_str(&text).expect("JSON")
}

/// Mean cross-entropy and accuracy, in f64 from the definitions.
fn score(logits: &[f64], labels: &[i64]) -> (f64, f64) {
    let classes = logits.len() / labels.len();
    let mut sums = (0.0, 0.0);
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        sums.0 += total.ln() + largest - row[label as usize];
        sums.1 += f64::from(row[label as usize] == largest);
    }
    (sums.0 / labels.len() as f64, sums.1 / labels.len() as f64)
}

#[test]
fn every_model_trains_evaluates_and_exports() {
    for &(name, k) in MODELS {
        let work = Workspace::new();
        let adamw = matches!(name, "mnist_vit" | "tokens_bert");
        prepare(&work, name, k, if adamw { "--optimizer adamw --lr 0.003" } else { "--seed 3" });
        let out = work.ok("train plan --data train.npz --steps 30 --log-every 5 -o run").stdout;
        assert!(out.contains("after 30 steps") && out.contains("run written to run"), "{name}: {out}");
        // The log: the first step, every fifth, every module, every boundary.
        assert_eq!(steps(&work, "run"), [1, 5, 10, 15, 20, 25, 30], "{name}");
        let lines = metrics(&work, "run");
        for l in &lines {
            assert_eq!(l["modules"].as_array().map(Vec::len), Some(k), "{name}");
            let boundaries = l["boundaries"].as_array().expect("boundaries");
            assert_eq!(boundaries.len(), k - 1, "{name}");
            for b in boundaries {
                let number = |key: &str| b[key].as_f64().expect("a number");
                assert!(number("cosine").abs() <= 1.0 + 1e-6 && number("discord") >= 0.0 && number("ratio") > 0.0);
            }
            for m in l["modules"].as_array().expect("modules") {
                assert!(m["loss"].as_f64().expect("a loss").is_finite());
                let eighths = m["accuracy"].as_f64().expect("an accuracy") * 8.0;
                assert!((eighths - eighths.round()).abs() < 1e-6, "{name}: accuracy of a batch of 8");
            }
        }
        // It learns: the samples are marked by their labels, and every head sees the marks.
        let loss = |l: &serde_json::Value, m: usize| l["modules"][m]["loss"].as_f64().expect("a loss");
        for m in 0..k {
            let (first, last) = (loss(&lines[0], m), loss(&lines[lines.len() - 1], m));
            assert!(last < 0.7 * first, "{name} module {}: loss {first} at the start, {last} after 30 steps", m + 1);
        }
        assert_eq!(state(&work, "run")["step"], 30);
        let report = std::fs::read_to_string(work.path("run/report.html")).expect("report");
        assert!(report.matches("<svg").count() == 4 && !report.contains("NaN"), "{name}");
        // The same numbers from eval's logits, computed here.
        let json = work.json("eval run --data test.npz --json --save-logits logits.npz");
        assert_eq!(json["samples"], 21, "{name}: the last batch is not full");
        assert_eq!(json["heads"].as_array().map(Vec::len), Some(k));
        let (_, logits) = read_npz(&work.path("logits.npz")).expect("logits").remove(0);
        assert_eq!(logits.shape[0], 21);
        let test = samples(name, 21, 2);
        let Some(Values::I64(labels)) = test.iter().find(|a| a.name == "y").map(|a| &a.values) else {
            panic!("labels")
        };
        let (loss, accuracy) = score(&logits.to_f64(), labels);
        let network = &json["heads"][k - 1];
        assert_eq!(network["head"], "network");
        // Per-sample losses are f32: 21 of them, each to 1e-6 relative.
        assert!((network["loss"].as_f64().expect("a loss") - loss).abs() < 2e-6 * (1.0 + loss), "{name}: {loss}");
        assert!((network["accuracy"].as_f64().expect("an accuracy") - accuracy).abs() < 1e-6, "{name}: {accuracy}");
        let text = work.ok("eval run --data test.npz").stdout;
        assert!(text.contains("21 samples") && text.contains(&format!("{:.2} %", 100.0 * accuracy)), "{name}: {text}");
        assert!(work.ok("export run -o out.onnx").stdout.starts_with("out.onnx written"));
        assert!(work.path("out.onnx").is_file());
        // A run shows its plan.
        assert_eq!(work.ok("plan show run").stdout, work.ok("plan show plan").stdout);
        // One epoch where nothing is said: six batches of eight.
        work.ok("train plan --data train.npz -o one");
        assert_eq!(state(&work, "one")["step"], 6, "{name}");
    }
}

#[test]
fn every_way_to_train_makes_a_step() {
    let work = Workspace::new();
    work.write("train.npz", npz(&samples("mnist_cnn", 16, 1)));
    let mut results = Vec::new();
    let modes = ["off", "exact", "finite-difference", "tangent"];
    let distances = ["squared", "relative", "cosine"];
    for (i, mode) in modes.iter().enumerate() {
        for distance in &distances[..if i == 0 { 1 } else { 3 }] {
            work.ok(&format!(
                "partition MODELS/mnist_cnn/model.onnx --modules 3 --batch 8 --reconcile {mode} --distance {distance} -o plan"
            ));
            let run = format!("{mode}-{distance}");
            work.ok(&format!("train plan --data train.npz --steps 3 --log-every 1 -o {run}"));
            results.push((run.clone(), parameters(&work.path(&run))));
        }
    }
    // Every mode and distance is another computation; finite differences come near what they approximate.
    for (i, a) in results.iter().enumerate() {
        for b in &results[..i] {
            assert!(a.1 != b.1, "{} and {} give the same weights", a.0, b.0);
        }
    }
    for name in ["mnist_mlp", "mnist_deep8"] {
        work.write("train.npz", npz(&samples(name, 16, 1)));
        work.ok(&format!("partition MODELS/{name}/model.onnx --per-layer --batch 8 --reconcile bp-free -o plan"));
        work.ok(&format!("train plan --data train.npz --steps 2 -o {name}"));
    }
    for head in ["gap-linear", "pool-linear", "conv", "mlp-sr", "linear"] {
        work.ok(&format!(
            "partition MODELS/mnist_cnn/model.onnx --modules 2 --batch 8 --head {head} --optimizer adamw -o plan"
        ));
        work.ok(&format!("train plan --data train.npz --steps 2 -o {head}"));
        work.ok(&format!("eval {head} --data train.npz"));
    }
}

#[test]
fn epochs_order_and_seed() {
    let work = Workspace::new();
    prepare(&work, "mnist_mlp", 2, "");
    work.ok("train plan --data train.npz --epochs 2 --log-every 1 -o epochs");
    work.ok("train plan --data train.npz --steps 12 --log-every 1 -o steps");
    same_run(&work.path("epochs"), &work.path("steps"));
    let epochs: Vec<u64> = metrics(&work, "epochs").iter().map(|l| l["epoch"].as_u64().expect("an epoch")).collect();
    assert_eq!(epochs, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    // Without shuffling a seed changes nothing; with it, it does.
    let train = |run: &str, options: &str| {
        work.ok(&format!("train plan --data train.npz --steps 5 {options} -o {run}"));
        parameters(&work.path(run))
    };
    let plain = train("plain", "--no-shuffle");
    assert_eq!(plain, train("plain9", "--no-shuffle --seed 9"));
    let zero = train("zero", "");
    assert_eq!(zero, train("zero0", "--seed 0"), "the plan's seed where none is given");
    let nine = train("nine", "--seed 9");
    assert_eq!(nine, train("nine9", "--seed 9"));
    assert!(plain != zero && zero != nine);
    // File order is file order: one step on the first batch is a step on a file of the first batch.
    let first: Vec<Array> = samples("mnist_mlp", 48, 1)
        .into_iter()
        .map(|a| match a.values {
            Values::F32(v) => Array::new(a.name, &[8, 1, 28, 28], Values::F32(v[..8 * 784].to_vec())),
            Values::I64(v) => Array::new(a.name, &[8], Values::I64(v[..8].to_vec())),
            _ => panic!("samples are f32 and i64"),
        })
        .collect();
    work.write("first.npz", npz(&first));
    work.ok("train plan --data first.npz --steps 1 --no-shuffle -o first");
    work.ok("train plan --data train.npz --steps 1 --no-shuffle -o of_all");
    same_file(&work.path("first/checkpoint/params.safetensors"), &work.path("of_all/checkpoint/params.safetensors"));
}

#[test]
fn steps_of_no_length() {
    let work = Workspace::new();
    prepare(&work, "mnist_mlp", 2, "");
    for (run, options) in [("none", "--steps 0"), ("no_epoch", "--epochs 0")] {
        work.ok(&format!("train plan --data train.npz {options} -o {run}"));
        // What was not trained is the plan's weights.
        let mut weights = cli::tensors(&work.path("plan/weights.safetensors"));
        let kept = parameters(&work.path(run));
        weights.retain(|name, _| kept.contains_key(name));
        assert_eq!(kept, weights);
        work.ok(&format!("eval {run} --data test.npz"));
        work.ok(&format!("export {run} -o {run}.onnx"));
    }
}

#[test]
fn a_spec_trains_like_its_plan() {
    let work = Workspace::new();
    std::fs::copy(cli::model("mnist_cnn"), work.path("net.onnx")).expect("copy");
    let spec = "model: net.onnx\nbatch: 8\npartition: {modules: 3}\nreconcile: {mode: exact}\ninit: random\nseed: 4\n";
    work.write("s.yaml", spec);
    work.write("train.npz", npz(&samples("mnist_cnn", 24, 1)));
    work.ok("partition --spec s.yaml -o plan");
    work.ok("train plan --data train.npz --steps 4 -o a");
    let out = work.ok("train s.yaml --data train.npz --steps 4 -o b").stdout;
    assert!(out.starts_with(&work.ok("plan show plan").stdout), "the modules are shown: {out}");
    same_run(&work.path("a"), &work.path("b"));
    for name in ["plan.yaml", "model.onnx"] {
        same_file(&work.path("a").join(name), &work.path("b").join(name));
    }
    work.ok("train plan/plan.yaml --data train.npz --steps 4 -o c");
    same_run(&work.path("a"), &work.path("c"));
}

#[test]
fn data_in_every_form() {
    let work = Workspace::new();
    let arrays = samples("mnist_mlp", 16, 1);
    prepare(&work, "mnist_mlp", 2, "");
    let (Values::F32(x), Values::I64(y)) = (&arrays[0].values, &arrays[1].values) else { panic!("f32 and i64") };
    let shape = [16, 1, 28, 28];
    let train = |run: &str, data: &str| {
        work.ok(&format!("train plan --data {data} --steps 2 --no-shuffle -o {run}"));
        parameters(&work.path(run))
    };
    work.write("plain.npz", npz(&arrays));
    let expected = train("plain", "plain.npz");
    // The same numbers in other types, under the input's own name, flattened, in another order, beside strangers.
    let wide = x.iter().map(|&v| f64::from(v)).collect();
    let bytes = y.iter().map(|&v| v as u8).collect();
    let real = y.iter().map(|&v| v as f32).collect();
    for (i, arrays) in [
        vec![Array::new("x", &shape, Values::F64(wide)), Array::new("y", &[16], Values::U8(bytes))],
        vec![Array::new("input", &[16, 784], Values::F32(x.clone())), Array::new("y", &[16, 1], Values::F32(real))],
        vec![
            Array::new("y", &[16], Values::I64(y.clone())),
            Array::new("stranger", &[16, 2], Values::F32(vec![0.0; 32])),
            Array::new("x", &shape, Values::F32(x.clone())),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        work.write(&format!("form{i}.npz"), npz(&arrays));
        assert_eq!(train(&format!("form{i}"), &format!("form{i}.npz")), expected, "form {i}");
    }
    // A folder with two parts.
    work.write("parts/train.npz", npz(&arrays));
    work.write("parts/test.npz", npz(&samples("mnist_mlp", 9, 2)));
    assert_eq!(train("parts_run", "parts"), expected);
    assert_eq!(work.json("eval plain --data parts --json")["samples"], 9, "eval takes the test part");
    assert_eq!(work.json("eval plain --data parts/train.npz --json")["samples"], 16);
}

/// An idx file: dimensions and bytes.
fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|d| out.extend(d.to_be_bytes()));
    out.extend(data);
    out
}

#[test]
fn idx_files_plain_and_packed() {
    let work = Workspace::new();
    prepare(&work, "mnist_mlp", 2, "");
    let pixels: Vec<u8> = (0..16 * 784).map(|i: usize| (i * 37 % 251) as u8).collect();
    let labels: Vec<u8> = (0..16).map(|i| i % 10).collect();
    let x = pixels.iter().map(|&p| f32::from(p) / 255.0).collect();
    let arrays = [Array::new("x", &[16, 28, 28], Values::F32(x)), Array::new("y", &[16], Values::U8(labels.clone()))];
    work.write("same.npz", npz(&arrays));
    let pack = |bytes: Vec<u8>| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gz, &bytes).expect("gzip");
        gz.finish().expect("gzip")
    };
    work.write("plain/train-images-idx3-ubyte", idx(&[16, 28, 28], &pixels));
    work.write("plain/train-labels-idx1-ubyte", idx(&[16], &labels));
    work.write("packed/train-images-idx3-ubyte.gz", pack(idx(&[16, 28, 28], &pixels)));
    work.write("packed/train-labels-idx1-ubyte.gz", pack(idx(&[16], &labels)));
    for data in ["same.npz", "plain", "packed"] {
        work.ok(&format!("train plan --data {data} --steps 3 -o run_{data}"));
        same_run(&work.path(&format!("run_{data}")), &work.path("run_same.npz"));
    }
    // The digits in the repository.
    work.ok("train plan --data MODELS/data/mnist --steps 3 -o digits");
    assert_eq!(state(&work, "digits")["samples"], 6000);
    assert_eq!(work.json("eval digits --data MODELS/data/mnist --json")["samples"], 1000);
}

#[test]
fn checkpoints_and_resume() {
    let work = Workspace::new();
    prepare(&work, "mnist_cnn", 3, "");
    work.ok("train plan --data train.npz --steps 9 --log-every 2 -o whole");
    // In three parts, the length given anew each time; checkpoints replace each other.
    work.ok("train plan --data train.npz --steps 2 --log-every 2 -o parts");
    work.ok("train plan --data train.npz --steps 5 --log-every 2 -o parts --resume");
    work.ok("train plan --data train.npz --steps 9 --log-every 2 -o parts --resume");
    for name in ["checkpoint/params.safetensors", "checkpoint/optimizer.safetensors"] {
        same_file(&work.path("whole").join(name), &work.path("parts").join(name));
    }
    // The ends of the parts are logged besides.
    assert_eq!(steps(&work, "whole"), [1, 2, 4, 6, 8, 9]);
    assert_eq!(steps(&work, "parts"), [1, 2, 4, 5, 6, 8, 9]);
    let checkpoints = std::fs::read_dir(work.path("parts/checkpoints")).expect("checkpoints").count();
    assert_eq!(checkpoints, 1, "older checkpoints are removed");
    // A finished run has nothing left to do.
    let before = cli::tree(&work.path("whole"));
    work.ok("train plan --data train.npz --log-every 2 -o whole --resume");
    assert_eq!(cli::tree(&work.path("whole")), before);
    // The plan folder may be gone.
    work.ok("train nowhere --data train.npz --steps 10 -o whole --resume");
    assert_eq!(state(&work, "whole")["step"], 10);
}
