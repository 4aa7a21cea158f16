//! `slrc plan report`: the page says what the plan says, in form and without help from outside.

use std::fs;

use crate::cli::{Workspace, model, same_file};
use crate::{edit, partition, read};

/// The page of a plan folder.
fn page(work: &Workspace, folder: &str) -> String {
    let said = work.ok(&format!("plan report {folder}")).stdout;
    assert!(said.starts_with(&format!("{folder}/plan.html written, ")), "{said}");
    fs::read_to_string(work.path(folder).join("plan.html")).expect("a page")
}

/// Text between the tags of a page that must be well formed: every tag closed in order, every attribute in quotes, no
/// mark left open.
fn well_formed(page: &str) -> String {
    let rest = page.strip_prefix("<!doctype html>\n").expect("a document type");
    let (mut open, mut text): (Vec<&str>, String) = (Vec::new(), String::new());
    let mut parts = rest.split('<');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (tag, after) = part.split_once('>').unwrap_or_else(|| panic!("an open tag: <{part:.80}"));
        let name = tag.split([' ', '/', '\n']).find(|w| !w.is_empty()).expect("a name");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "<{tag}> after {text:.0}");
        } else {
            assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
            assert_eq!(tag.matches('=').count(), tag.matches("=\"").count(), "<{tag}>");
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        let loose = |c: &str| after.matches(c).count();
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&apos;"].map(loose).iter().sum::<usize>();
        assert_eq!(loose("&"), entities, "{after:.80}");
        text.push_str(after);
        text.push(' ');
    }
    assert!(open.is_empty(), "left open: {open:?}");
    text
}

#[test]
fn the_page_says_what_the_plan_says() {
    let work = Workspace::new();
    for (model, options) in [
        ("mnist_mlp", "--modules 1"),
        ("mnist_mlp", "--modules 2 --optimizer adamw --target cuda:sm_80"),
        ("mnist_cnn", "--modules 4"),
        ("mnist_deep8", "--per-layer --reconcile off --no-monitor"),
        ("tokens_bert", "--modules 3 --reconcile exact"),
    ] {
        partition(&work, model, options, "plan");
        let plan = read(&work.path("plan"));
        let html = page(&work, "plan");
        let text = well_formed(&html);
        let what = format!("{model} {options}");
        for word in ["http", "url(", "@import", "src=", "href=", "<script", "<link"] {
            assert!(!html.contains(word), "{what}: {word}");
        }
        assert!(html.matches("<svg ").count() == 2, "{what}");
        let digits = plan.memory.peak().to_string();
        assert!(text.replace(',', "").contains(&format!("({digits} bytes)")), "{what}: no {digits}");
        for b in &plan.boundaries {
            assert!(text.contains(&b.value), "{what}: {}", b.value);
            let x = plan.buffers.iter().find(|x| x.id == b.x).expect("a buffer");
            assert!(text.contains(&x.shape.to_string()), "{what}: {}", x.shape);
        }
        for m in &plan.modules {
            assert!(text.contains(&m.first) && text.contains(&m.last), "{what}: module {}", m.index);
        }
        // One module compiled from the folder is the one compiled from the model.
        let said = text.contains("end-to-end backpropagation, has a peak of");
        assert_eq!(said, plan.modules.len() > 1, "{what}: {text}");
        if said {
            let base = options.replace("--per-layer", "");
            let base = base.split("--modules").next().unwrap_or_default().to_string();
            let optimizer = if options.contains("adamw") { "--optimizer adamw" } else { "" };
            for recompute in ["none", "elementwise"] {
                partition(&work, model, &format!("{base} {optimizer} --modules 1 --recompute {recompute}"), "one");
                let shown = work.ok("plan show one").stdout;
                let peak = shown.lines().find_map(|l| l.strip_prefix("peak")).expect("a peak");
                let peak = peak.split("  ").map(str::trim).find(|w| !w.is_empty()).expect("a size").to_string();
                assert!(text.contains(&format!("of {peak} with ")), "{what}: {recompute} {peak}");
            }
        }
    }
}

#[test]
fn the_page_repeats_byte_for_byte() {
    let work = Workspace::new();
    partition(&work, "mnist_cnn", "--modules 3", "a");
    partition(&work, "mnist_cnn", "--modules 3", "b/b");
    page(&work, "a");
    page(&work, "b/b");
    same_file(&work.path("a/plan.html"), &work.path("b/b/plan.html"));
    work.ok("plan report a/plan.yaml --out c.html");
    same_file(&work.path("a/plan.html"), &work.path("c.html"));
    work.ok("plan verify a");
    // The page is a part of the folder: it goes with the plan.
    partition(&work, "mnist_cnn", "--modules 2", "a");
    assert!(!work.path("a/plan.html").exists());
}

#[test]
fn without_its_model_the_page_says_so() {
    let work = Workspace::new();
    partition(&work, "mnist_cnn", "--modules 2", "plan");
    fs::remove_file(work.path("plan/model.onnx")).expect("remove");
    let text = well_formed(&page(&work, "plan"));
    assert!(text.contains("No comparison with one module: model.onnx is not in the plan's folder."), "{text}");
    fs::copy(model("mnist_deep8"), work.path("plan/model.onnx")).expect("copy");
    let text = well_formed(&page(&work, "plan"));
    assert!(text.contains("No comparison with one module: model.onnx has other weights"), "{text}");
    work.write("plan/model.onnx", "words");
    let html = page(&work, "plan");
    assert!(well_formed(&html).contains("No comparison with one module: "), "{html}");
    assert!(!html.contains(&work.path("").display().to_string()), "a path of this machine");
    partition(&work, "mnist_cnn", "--modules 2", "plan");
    edit(&work, "plan", |p| p.settings.optimizer = "lion lr=1".into());
    assert!(page(&work, "plan").contains("lion lr=1"), "settings are shown as they are");
}

#[test]
fn names_of_others_cannot_leave_their_places() {
    let work = Workspace::new();
    partition(&work, "mnist_cnn", "--modules 3", "plan");
    let name = "<script>alert(1)</script>\"&'\n".repeat(9);
    edit(&work, "plan", |p| {
        p.boundaries[0].value = name.clone();
        p.modules[0].first = name.clone();
        p.modules[1].head = name.clone();
        p.model.name = name.clone();
        p.settings.partition = name.clone();
        p.modules[2].step.kernels.iter_mut().for_each(|k| k.nodes = vec![name.clone()]);
    });
    let html = page(&work, "plan");
    well_formed(&html);
    assert!(!html.contains("<script"), "{html}");
}

#[test]
fn a_peak_of_any_size_has_a_page() {
    let work = Workspace::new();
    partition(&work, "mnist_mlp", "--modules 2", "plan");
    for bits in [40, 50, 62] {
        edit(&work, "plan", |p| p.memory.arena = 1 << bits);
        let text = well_formed(&page(&work, "plan"));
        assert_eq!(text.contains("The picture cannot be drawn"), bits >= 50, "2^{bits} bytes");
    }
    // A sum that its parts are not of.
    partition(&work, "mnist_mlp", "--modules 2", "plan");
    edit(&work, "plan", |p| p.modules[0].step.kernels[0].flops = u64::MAX);
    well_formed(&page(&work, "plan"));
}

#[test]
fn what_cannot_be_reported() {
    let work = Workspace::new();
    partition(&work, "mnist_mlp", "--modules 2", "a");
    work.fails("plan report nowhere", 4, &["nowhere/plan.yaml"]);
    work.fails("plan report a --out nowhere/a.html", 4, &["nowhere/a.html"]);
    edit(&work, "a", |p| p.memory.arena = 0);
    work.fails("plan report a", 4, &["does not hold"]);
}
