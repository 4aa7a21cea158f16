//! Damaged plans and runs, and places where nothing can be written: what is said, and that nothing is lost.

#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use cli::{Tensor, Transcript, Workspace, npz, samples, tensors, write_tensors};

fn prepare() -> Workspace {
    let work = Workspace::new();
    work.ok("partition MODELS/mnist_mlp/model.onnx --modules 2 --batch 8 -o plan");
    work.write("train.npz", npz(&samples("mnist_mlp", 16, 1)));
    work.ok("train plan --data train.npz --steps 2 -o run");
    work
}

/// A fresh copy of a folder, in place of whatever was there.
fn copy(work: &Workspace, from: &str, to: &str) {
    if work.path(to).exists() {
        std::fs::remove_dir_all(work.path(to)).expect("remove");
    }
    std::fs::create_dir(work.path(to)).expect("a folder");
    for (name, bytes) in cli::tree(&work.path(from)) {
        if let Some(link) = name.strip_suffix(" ->") {
            let target = String::from_utf8(bytes).expect("a path");
            std::os::unix::fs::symlink(target, work.path(to).join(link)).expect("a link");
        } else if !name.ends_with('/') {
            work.write(&format!("{to}/{name}"), bytes);
        }
    }
}

fn text(work: &Workspace, name: &str) -> String {
    std::fs::read_to_string(work.path(name)).expect("a text")
}

/// Rewrites the tensors of a file.
fn edit(work: &Workspace, name: &str, change: impl Fn(&mut BTreeMap<String, Tensor>)) {
    let mut all = tensors(&work.path(name));
    change(&mut all);
    write_tensors(&work.path(name), &all);
}

/// The text of a plan with one line of the buffer of a parameter replaced.
fn with_line(plan: &str, parameter: &str, field: &str, value: &str) -> String {
    let at = plan.find(&format!("- id: w/{parameter}\n")).expect("a buffer");
    let line = plan[at..].find(&format!("  {field}: ")).expect("a field") + at;
    let end = plan[line..].find('\n').expect("a line") + line;
    format!("{}  {field}: {value}{}", &plan[..line], &plan[end..])
}

#[test]
fn plans_that_do_not_hold() {
    let work = prepare();
    let plan = text(&work, "plan/plan.yaml");
    let mut t = Transcript::new(&work);
    let mut refuse = |what: &str, text: &str, words: &[&str]| {
        copy(&work, "plan", "bad");
        work.write("bad/plan.yaml", text);
        t.fails(what, "train bad --data train.npz -o out", 4, &[&["bad/plan.yaml"], words].concat());
        for line in ["plan show bad", "plan show bad --json", "profile bad --steps 1"] {
            work.fails(line, 4, words);
        }
        // The same plan in a run.
        copy(&work, "run", "bad");
        work.write("bad/plan.yaml", text);
        for line in ["eval bad --data train.npz", "export bad -o out.onnx", "train x --data train.npz --resume -o bad"]
        {
            work.fails(line, 4, words);
        }
    };
    refuse("empty", "", &["not a plan"]);
    refuse("garbage", "\u{1}\u{2} garbage: [", &["not a plan"]);
    refuse("a spec", "modules: 3\n", &["not a plan", "modules"]);
    refuse("cut in half", &plan[..plan.len() / 2], &["not a plan"]);
    let first = plan.split_inclusive('\n').take(40).collect::<String>();
    refuse("cut at a line", &first, &["not a plan", "missing field"]);
    refuse("another format", &plan.replacen("slrc-plan/2", "slrc-plan/7", 1), &["slrc-plan/2", "slrc-plan/7"]);
    refuse("an unknown field", &plan.replacen("format:", "colour: red\nformat:", 1), &["colour"]);
    let second = with_line(&plan, "fc2.weight", "offset", "0");
    refuse("buffers that overlap", &second, &["fc2.weight", "overlaps"]);
    refuse("a crooked offset", &with_line(&plan, "fc2.weight", "offset", "7"), &["fc2.weight", "offset 7", "64"]);
    refuse("a buffer outside", &with_line(&plan, "fc2.weight", "offset", "64000000"), &["fc2.weight", "outside"]);
    refuse("other bytes", &with_line(&plan, "fc2.weight", "bytes", "100"), &["fc2.weight", "100 bytes"]);
    refuse("another shape", &with_line(&plan, "fc2.weight", "shape", "64x127"), &["fc2.weight", "64x127"]);
    refuse("too little memory", &plan.replacen("  arena: ", "  arena: 1\n  #", 1), &["buffer", "outside its space"]);
    refuse(
        "too little memory for parameters",
        &plan.replacen("  parameter: ", "  parameter: 1\n  #", 1),
        &["outside its space"],
    );
    insta::assert_snapshot!("plans", t.finish());
}

#[test]
fn plan_folders_that_are_not_whole() {
    let work = prepare();
    let mut t = Transcript::new(&work);
    let mut refuse = |what: &str, damage: &dyn Fn(), words: &[&str]| {
        copy(&work, "plan", "bad");
        damage();
        t.fails(what, "train bad --data train.npz -o out", 4, words);
    };
    let remove = |name: &str| std::fs::remove_file(work.path(name)).expect("remove");
    let weights = "bad/weights.safetensors";
    refuse("no plan", &|| remove("bad/plan.yaml"), &["bad/plan.yaml"]);
    refuse("no weights", &|| remove(weights), &[weights]);
    refuse("no model", &|| remove("bad/model.onnx"), &["bad/model.onnx"]);
    refuse("weights that are none", &|| drop(work.write(weights, "tensors")), &[weights, "not a safetensors file"]);
    let whole = std::fs::read(work.path("plan/weights.safetensors")).expect("weights");
    refuse("weights cut off", &|| drop(work.write(weights, &whole[..whole.len() - 40])), &[weights, "safetensors"]);
    refuse(
        "a weight lost",
        &|| edit(&work, weights, |w| drop(w.remove("fc2.bias"))),
        &[weights, "\"fc2.bias\"", "missing"],
    );
    let shape = |w: &mut BTreeMap<String, Tensor>| w.get_mut("fc1.weight").expect("fc1").shape = vec![784, 128];
    refuse(
        "a weight of another shape",
        &|| edit(&work, weights, shape),
        &[weights, "\"fc1.weight\"", "[784, 128]", "[128, 784]"],
    );
    t.fails("no folder", "plan show nowhere", 4, &["nowhere/plan.yaml"]);
    t.fails("no plan in it", "plan show run/checkpoint", 4, &["run/checkpoint/plan.yaml"]);
    insta::assert_snapshot!("plan_folders", t.finish());
}

#[test]
fn runs_that_are_damaged() {
    let work = prepare();
    let mut t = Transcript::new(&work);
    let (eval, export) = ("eval bad --data train.npz", "export bad -o out.onnx");
    let resume = "train plan --data train.npz --steps 4 --resume -o bad";
    let mut refuse = |what: &str, damage: &dyn Fn(), lines: &[&str], words: &[&str]| {
        copy(&work, "run", "bad");
        damage();
        t.fails(what, lines[0], 4, words);
        lines[1..].iter().for_each(|l| drop(work.fails(l, 4, words)));
    };
    let remove = |name: &str| std::fs::remove_file(work.path(name)).expect("remove");
    let cut = |name: &str| {
        let bytes = std::fs::read(work.path(name)).expect("a file");
        work.write(name, &bytes[..bytes.len() / 2]);
    };
    let all = [eval, export, resume];
    let params = "bad/checkpoint/params.safetensors";
    let optimizer = "bad/checkpoint/optimizer.safetensors";
    refuse("no checkpoint", &|| remove("bad/checkpoint"), &all[..2], &["bad", "no checkpoint", "slrc train"]);
    refuse("no plan", &|| remove("bad/plan.yaml"), &all, &["bad/plan.yaml"]);
    refuse("a state that is none", &|| drop(work.write("bad/checkpoint/state.json", "{")), &all, &["state.json"]);
    refuse("no weights", &|| remove(params), &all, &[params]);
    refuse("weights cut off", &|| cut(params), &all, &[params, "safetensors"]);
    refuse(
        "a weight lost",
        &|| edit(&work, params, |w| drop(w.remove("fc3.bias"))),
        &all,
        &[params, "\"fc3.bias\"", "missing"],
    );
    let shape = |w: &mut BTreeMap<String, Tensor>| w.get_mut("fc1.weight").expect("fc1").shape = vec![784, 128];
    refuse(
        "a weight of another shape",
        &|| edit(&work, params, shape),
        &all,
        &[params, "\"fc1.weight\"", "[784, 128]"],
    );
    refuse("optimizer state cut off", &|| cut(optimizer), &[resume], &[optimizer]);
    let lost = |w: &mut BTreeMap<String, Tensor>| drop(w.pop_first());
    refuse(
        "optimizer state lost",
        &|| edit(&work, optimizer, lost),
        &[resume],
        &["optimizer", "momentum_buffer", "missing"],
    );
    refuse("no model", &|| remove("bad/model.onnx"), &[export], &["bad/model.onnx"]);
    refuse("a model cut off", &|| cut("bad/model.onnx"), &[export], &["bad/model.onnx", "not a valid ONNX model"]);
    let other = cli::model("mnist_mlp");
    refuse(
        "a model slrc did not write",
        &|| drop(work.write("bad/model.onnx", std::fs::read(&other).expect("model"))),
        &[export],
        &["model.onnx", "weights are used"],
    );
    refuse("no constants", &|| remove("bad/constants.safetensors"), &[eval, resume], &["bad/constants.safetensors"]);
    t.fails("no run", "eval nowhere --data train.npz", 4, &["nowhere"]);
    t.fails("a plan", "eval plan --data train.npz", 4, &["plan", "no checkpoint", "slrc train"]);
    t.fails("a plan", "export plan -o out.onnx", 4, &["plan", "no checkpoint", "slrc train"]);
    insta::assert_snapshot!("runs", t.finish());
}

#[test]
fn places_that_cannot_be_written() {
    let work = prepare();
    work.write("file", "a regular file");
    work.write("mine/thesis.txt", "years of work");
    copy(&work, "plan", "mixed");
    work.write("mixed/notes.txt", "on this plan");
    let partition = "partition MODELS/mnist_mlp/model.onnx --modules 2 --batch 8 -o";
    let train = "train plan --data train.npz --steps 1 -o";
    let mut t = Transcript::new(&work);
    t.fails("a plan in a file", &format!("{partition} file"), 4, &["file", "no folder"]);
    t.fails("a plan below a file", &format!("{partition} file/plan"), 4, &["file"]);
    t.fails("a plan far below a file", &format!("{partition} file/a/b/plan"), 4, &["file"]);
    t.fails("a plan in a strange folder", &format!("{partition} mine"), 4, &["mine", "thesis.txt", "another folder"]);
    t.fails("a plan over a plan with notes", &format!("{partition} mixed"), 4, &["mixed", "notes.txt"]);
    t.fails("a plan over a run", &format!("{partition} run"), 4, &["run", "lost"]);
    t.fails("a plan where nobody may write", &format!("{partition} /proc/plan"), 4, &["/proc"]);
    t.fails("a run in a file", &format!("{train} file"), 4, &["file"]);
    t.fails("a run below a file", &format!("{train} file/run"), 4, &["file"]);
    t.fails("a run in a strange folder", &format!("{train} mine"), 4, &["mine", "not empty"]);
    t.fails("a run in a plan", &format!("{train} plan"), 4, &["plan", "not empty"]);
    t.fails("a run over a run", &format!("{train} run"), 4, &["run", "--resume"]);
    t.fails("an export below a file", "export run -o file/out.onnx", 4, &["file/out.onnx"]);
    t.fails("an export into a folder that is not there", "export run -o nowhere/out.onnx", 4, &["nowhere/out.onnx"]);
    t.fails("an export over a folder", "export run -o mine", 4, &["mine"]);
    t.fails("logits below a file", "eval run --data train.npz --save-logits file/l.npz", 4, &["file/l.npz"]);
    insta::assert_snapshot!("places", t.finish());
    // Folders that are not there are made for plans and runs.
    work.ok(&format!("{partition} a/b/plan"));
    work.ok("train a/b/plan --data train.npz --steps 1 -o c/d/run");
    work.ok("export c/d/run -o c/out.onnx");
    // An export replaces an older one; a failed one leaves it.
    std::fs::write(work.path("c/out.onnx"), "old").expect("write");
    work.ok("export c/d/run -o c/out.onnx");
    assert!(text_of(&work, "c/out.onnx").len() > 100_000);
}

fn text_of(work: &Workspace, name: &str) -> Vec<u8> {
    std::fs::read(work.path(name)).expect("a file")
}
