//! Graphs that are none: circles, names that mean two things, nesting, text that is no text.

use onnx_protobuf::{GraphProto, ModelProto, NodeProto};

use crate::protos::{bytes, flag, floats, graph_attribute, inner, int, model, node, open_bytes, value, with};
use crate::{refusal, refused};

fn of(nodes: Vec<NodeProto>) -> ModelProto {
    model(&[8, 4], nodes, vec![floats("a", &[4], &[1.0; 4])], &["y"])
}

#[test]
fn circles() {
    for (what, nodes) in [
        ("a node of itself", vec![node("Add", &["x", "y"], &["y"])]),
        ("two", vec![node("Add", &["x", "z"], &["y"]), node("Relu", &["y"], &["z"])]),
        (
            "names going round",
            vec![
                node("Identity", &["q"], &["p"]),
                node("Identity", &["p"], &["q"]),
                node("Add", &["x", "q"], &["z"]),
                node("Softmax", &["z"], &["y"]),
            ],
        ),
        (
            "dropout and convolutions in a circle",
            vec![
                node("Conv", &["r", "a"], &["p"]),
                node("Dropout", &["p"], &["q"]),
                node("Relu", &["q"], &["r"]),
                node("Add", &["x", "r"], &["y"]),
            ],
        ),
    ] {
        refused(what, &of(nodes), "before the node that makes it");
    }
}

#[test]
fn names_that_mean_two_things() {
    let twice = |change: &dyn Fn(&mut GraphProto)| {
        let mut m = of(vec![node("Add", &["x", "a"], &["y"])]);
        change(m.graph.mut_or_insert_default());
        m
    };
    let said = "\"y\" is made twice: by node \"y\" (Add) and by node \"y\" (Relu)";
    refused("nodes", &twice(&|g| g.node.push(node("Relu", &["x"], &["y"]))), said);
    refused("results", &twice(&|g| g.node[0].output.push("y".into())), "\"y\" is made twice");
    refused("initializers", &twice(&|g| g.initializer.push(floats("a", &[4], &[2.0; 4]))), "\"a\" is made twice");
    refused("a node and an initializer", &twice(&|g| g.node[0].output[0] = "a".into()), "\"a\" is made twice");
    refused("a node and an input", &twice(&|g| g.node[0].output[0] = "x".into()), "\"x\" is made twice");
    refused("inputs", &twice(&|g| g.input.push(value("x", 1, Some(&[8, 5])))), "\"x\" is made twice");
    let axes = twice(&|g| g.node[0] = with(node("Softmax", &["x"], &["y"]), vec![int("axis", 0), int("axis", 1)]));
    refused("attributes", &axes, "node \"y\" has two attributes \"axis\"");
    let branch = inner(vec![node("Neg", &["x"], &["t"]), node("Relu", &["x"], &["t"])], vec![], &["t"]);
    let branches = vec![graph_attribute("then_branch", branch.clone()), graph_attribute("else_branch", branch)];
    let within = twice(&|g| {
        g.initializer.push(flag("c", true));
        g.node[0] = with(node("If", &["c"], &["y"]), branches.clone());
    });
    refused("within a branch", &within, "\"t\" is made twice");
    // The first versions of the format list initializers as inputs.
    let listed = twice(&|g| g.input.push(value("a", 1, Some(&[4]))));
    crate::taken(&crate::protos::open(&listed));
}

#[test]
fn deep_nesting() {
    let nested = |depth: usize| {
        let mut g = inner(vec![node("Neg", &["x"], &["t0"])], vec![], &["t0"]);
        for i in 1..depth {
            let name = format!("t{i}");
            let n = with(node("If", &["c"], &[&name]), vec![graph_attribute("then_branch", g)]);
            g = inner(vec![n], vec![], &[&name]);
        }
        let n = with(node("If", &["c"], &["y"]), vec![graph_attribute("then_branch", g)]);
        model(&[8, 4], vec![n], vec![flag("c", true)], &["y"])
    };
    crate::taken(&crate::protos::open(&nested(18)));
    refused("branches", &nested(30), "nested more than");
}

#[test]
fn text_that_is_no_text() {
    // A byte that UTF-8 never has, in place of one of a marked name.
    let mut m = of(vec![node("Add", &["x", "a"], &["y"])]);
    m.producer_name = "MARK1".into();
    m.graph.mut_or_insert_default().name = "MARK2".into();
    m.graph.mut_or_insert_default().node[0].name = "MARK3".into();
    m.graph.mut_or_insert_default().initializer[0].doc_string = "MARK4".into();
    let whole = bytes(&m);
    assert!(open_bytes(&whole).is_ok());
    for i in 1..=4 {
        let mark = format!("MARK{i}").into_bytes();
        let at = whole.windows(5).position(|w| w == mark).expect("the mark");
        let mut damaged = whole.clone();
        damaged[at] = 0xff;
        let e = open_bytes(&damaged).err().expect("refused");
        assert!(e.contains("UTF-8"), "{e}");
    }
}

/// Messages are made of names of any length, whose letters may have several bytes.
#[test]
fn cve_2024_27319_long_names_in_messages() {
    for n in [255, 256, 257, 4095, 4096, 4097, 1 << 20] {
        let name = format!("{}é", "n".repeat(n - 1));
        let mut unknown = node(&name, &["x"], &["y"]);
        unknown.name = name.clone();
        let said = refusal(&of(vec![unknown]));
        assert!(said.contains(&name), "a name of {n}");
    }
}

#[test]
fn empty_names() {
    refused("an operator", &of(vec![node("", &["x"], &["y"])]), "not supported");
    refused("an operand", &of(vec![node("Add", &["x", ""], &["y"])]), "input 1 is missing");
    let mut m = of(vec![node("Relu", &["x"], &[""])]);
    m.graph.mut_or_insert_default().output[0].name = String::new();
    refused("an output", &m, "does not depend on any input");
}

/// Thousands of names that nothing defines are refused at once; a chain of as many nodes is taken.
#[test]
fn names_are_found_without_a_search() {
    const MANY: usize = 100_000;
    let name = |i: usize| format!("v{i}");
    // What nothing makes, used by all.
    let used = (0..MANY).map(|i| node("Relu", &[&format!("nowhere{i}")], &[&name(i)]));
    let mut nodes: Vec<NodeProto> = used.collect();
    let all: Vec<String> = ["x".into()].into_iter().chain((0..MANY).map(name)).collect();
    nodes.push(node("Sum", &all.iter().map(String::as_str).collect::<Vec<_>>(), &["y"]));
    refused("undefined", &of(nodes), "which nothing defines");
    // An output that is passed on and on; the loss looks for a softmax behind it.
    let passed =
        (0..MANY).map(|i| node("Identity", &[&if i == 0 { "x".to_string() } else { name(i) }], &[&name(i + 1)]));
    let mut nodes: Vec<NodeProto> = passed.collect();
    nodes.push(node("Identity", &[&name(MANY)], &["y"]));
    let file = crate::protos::open(&of(nodes));
    crate::taken(&file);
}
