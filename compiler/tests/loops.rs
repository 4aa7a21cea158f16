//! `Loop`, `Scan` and sequences whose steps and elements are known at import mean what their steps compute one after
//! another, in values, weights and exports; all others are refused by a reason.

#[path = "common/protos.rs"]
mod protos;

use onnx_protobuf::{AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, attribute_proto::AttributeType};
use protos::{bytes, flag, floats, graph_attribute, inner, int, ints, model, node, open, open_bytes, run, value, with};
use slrc_compiler::onnx::export::{Norms, Trained, export, skeleton};
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;
use slrc_compiler::weights::initial_weights;

fn list(name: &str, all: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: all.to_vec(), type_: AttributeType::INTS.into(), ..Default::default() }
}

/// A body with inputs of unsaid types.
fn body(input: &[&str], nodes: Vec<NodeProto>, output: &[&str]) -> GraphProto {
    let input = input.iter().map(|i| value(i, 1, None)).collect();
    GraphProto { input, ..inner(nodes, vec![], output) }
}

fn looped(op: &str, input: &[&str], output: &[&str], body: GraphProto) -> NodeProto {
    with(node(op, input, output), vec![graph_attribute("body", body)])
}

/// y = x, doubled three times and one added each time; z = all of it on the way.
fn doubled(output: &str) -> ModelProto {
    let nodes = vec![
        node("Identity", &["on"], &["again"]),
        node("Add", &["s", "s"], &["d"]),
        node("Add", &["d", "one"], &["t"]),
    ];
    let b = body(&["i", "on", "s"], nodes, &["again", "t", "t"]);
    let nodes = vec![looped("Loop", &["three", "", "x"], &["y", "z"], b)];
    model(&[2], nodes, vec![ints("three", &[], &[3]), floats("one", &[1], &[1.0])], &[output])
}

#[test]
fn states_and_what_steps_put_together() {
    let y = run(&open(&doubled("y")), &[2], &[1.0, 2.0]).expect("a value");
    assert_eq!(y.data, [15.0, 23.0]);
    let z = run(&open(&doubled("z")), &[2], &[1.0, 2.0]).expect("a value");
    assert_eq!((z.shape, z.data), (vec![3, 2], vec![3.0, 5.0, 7.0, 11.0, 15.0, 23.0]));
}

#[test]
fn a_condition_that_ends_a_loop() {
    // while (i + n < 4): n grows by the number of the step; the steps are 0, 1, 2 and 3.
    let nodes = vec![
        node("Add", &["n", "i"], &["m"]),
        node("Less", &["m", "four"], &["again"]),
        node("Mul", &["s", "two"], &["t"]),
    ];
    let b = body(&["i", "on", "n", "s"], nodes, &["again", "m", "t"]);
    let nodes = vec![looped("Loop", &["", "yes", "none", "x"], &["count", "y"], b)];
    let known = vec![ints("none", &[], &[0]), ints("four", &[], &[4]), flag("yes", true), floats("two", &[1], &[2.0])];
    let y = run(&open(&model(&[1], nodes, known, &["y"])), &[1], &[1.0]).expect("a value");
    assert_eq!(y.data, [16.0]);
}

#[test]
fn loops_and_branches_within_loops() {
    // For i in 0..3, for j in 0..i: s + x where j is even, else 2 s.
    let even = inner(vec![node("Add", &["r", "x"], &["u"])], vec![], &["u"]);
    let odd = inner(vec![node("Add", &["r", "r"], &["u"])], vec![], &["u"]);
    let branches = vec![graph_attribute("then_branch", even), graph_attribute("else_branch", odd)];
    let nodes = vec![
        node("Mod", &["j", "two"], &["rest"]),
        node("Equal", &["rest", "zero"], &["c"]),
        with(node("If", &["c"], &["q"]), branches),
    ];
    let within = body(&["j", "on", "r"], nodes, &["on", "q"]);
    let around = body(&["i", "go", "s"], vec![looped("Loop", &["i", "", "s"], &["t"], within)], &["go", "t"]);
    let nodes = vec![looped("Loop", &["four", "", "x"], &["y"], around)];
    let known = vec![ints("four", &[], &[4]), ints("two", &[], &[2]), ints("zero", &[], &[0])];
    // i = 1: s + x; i = 2: 2 (s + x); i = 3: 2 (s + x) + x.
    let y = run(&open(&model(&[1], nodes, known, &["y"])), &[1], &[1.0]).expect("a value");
    assert_eq!(y.data, [15.0]);
}

#[test]
fn scans_in_both_directions_and_along_any_axis() {
    let b = || body(&["s", "e"], vec![node("Add", &["s", "e"], &["t"])], &["t", "t"]);
    let scan = |attributes| {
        let nodes = vec![with(looped("Scan", &["start", "x"], &["end", "y"], b()), attributes)];
        let one = int("num_scan_inputs", 1);
        let mut m = model(&[2, 3], nodes, vec![floats("start", &[], &[0.0])], &["y"]);
        m.graph.mut_or_insert_default().node[0].attribute.push(one);
        // Along the last axis a step sees a column; a state of one number is as good as a column of them.
        run(&open(&m), &[2, 3], &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]).expect("a value")
    };
    let y = scan(vec![list("scan_input_axes", &[-1]), list("scan_output_axes", &[-1])]);
    assert_eq!((y.shape, y.data), (vec![2, 3], vec![1.0, 3.0, 6.0, 10.0, 30.0, 60.0]));
    let y = scan(vec![list("scan_input_directions", &[1])]);
    assert_eq!((y.shape, y.data), (vec![2, 3], vec![10.0, 20.0, 30.0, 11.0, 22.0, 33.0]));
    let y = scan(vec![list("scan_output_directions", &[1])]);
    assert_eq!((y.shape, y.data), (vec![2, 3], vec![11.0, 22.0, 33.0, 1.0, 2.0, 3.0]));
}

#[test]
fn scans_of_opset_8_go_sample_by_sample() {
    // Two samples of three steps of two numbers; each sample has a state of its own.
    let b = || body(&["s", "e"], vec![node("Add", &["s", "e"], &["t"])], &["t", "t"]);
    let scan = |lengths: &str, directions: i64, output: &str| {
        let n = looped("Scan", &[lengths, "start", "x"], &["end", "y"], b());
        let nodes = vec![with(n, vec![int("num_scan_inputs", 1), list("directions", &[directions])])];
        let known = vec![floats("start", &[2, 2], &[0.0, 1.0, 2.0, 3.0]), ints("lengths", &[2], &[3, 2])];
        let mut m = model(&[2, 3, 2], nodes, known, &[output]);
        m.opset_import[0].version = 8;
        let x: Vec<f64> = (0..12).map(f64::from).collect();
        run(&open(&m), &[2, 3, 2], &x)
    };
    let y = scan("", 0, "y").expect("a value");
    let all = [0.0, 2.0, 2.0, 5.0, 6.0, 10.0, 8.0, 10.0, 16.0, 19.0, 26.0, 30.0];
    assert_eq!((y.shape, &y.data[..]), (vec![2, 3, 2], &all[..]));
    let end = scan("", 0, "end").expect("a value");
    assert_eq!((end.shape, end.data), (vec![2, 2], vec![6.0, 10.0, 26.0, 30.0]));
    let back = scan("", 1, "y").expect("a value");
    assert_eq!(back.data, [4.0, 6.0, 6.0, 9.0, 6.0, 10.0, 12.0, 14.0, 20.0, 23.0, 26.0, 30.0]);
    let e = scan("lengths", 0, "y").expect_err("lengths");
    assert!(e.to_string().contains("lengths of their own"), "{e}");
}

#[test]
fn places_from_the_end_of_a_list_count_its_elements() {
    // -1 is the last element's place: what is inserted there stands before it.
    let nodes = vec![
        node("SequenceConstruct", &["a", "x"], &["pair"]),
        node("SequenceInsert", &["pair", "b", "last"], &["three"]),
        node("SequenceErase", &["three", "third"], &["two"]),
        with(node("ConcatFromSequence", &["two"], &["y"]), vec![int("axis", 0)]),
    ];
    let known =
        vec![floats("a", &[1], &[1.0]), floats("b", &[1], &[2.0]), ints("last", &[], &[-1]), ints("third", &[], &[-3])];
    let y = run(&open(&model(&[1], nodes, known, &["y"])), &[1], &[7.0]).expect("a value");
    assert_eq!(y.data, [2.0, 7.0]);
}

#[test]
fn lists_that_loops_append_to() {
    let nodes = vec![
        with(node("Gather", &["x", "i"], &["row"]), vec![int("axis", 0)]),
        node("SequenceInsert", &["l", "row"], &["m"]),
    ];
    let b = body(&["i", "on", "l"], nodes, &["on", "m"]);
    let nodes = vec![
        node("SequenceEmpty", &[], &["none"]),
        looped("Loop", &["two", "", "none"], &["all"], b),
        node("SequenceLength", &["all"], &["count"]),
        node("SequenceInsert", &["all", "front", "zero"], &["more"]),
        node("SequenceErase", &["more", "last"], &["fewer"]),
        node("SequenceAt", &["more", "count"], &["second"]),
        node("SequenceConstruct", &["second", "second"], &["pair"]),
        with(node("ConcatFromSequence", &["fewer"], &["a"]), vec![int("axis", 0), int("new_axis", 1)]),
        with(node("ConcatFromSequence", &["pair"], &["b"]), vec![int("axis", 1), int("new_axis", 1)]),
        node("Add", &["a", "b"], &["y"]),
    ];
    let known = vec![
        ints("two", &[], &[2]),
        ints("zero", &[], &[0]),
        ints("last", &[], &[-1]),
        floats("front", &[2], &[100.0, 200.0]),
    ];
    // The front and the first row, one above the other, and the second row as two columns.
    let y = run(&open(&model(&[2, 2], nodes, known, &["y"])), &[2, 2], &[1.0, 2.0, 3.0, 4.0]).expect("a value");
    assert_eq!((y.shape, y.data), (vec![2, 2], vec![103.0, 203.0, 5.0, 6.0]));
}

#[test]
fn parts_and_what_is_made_of_each() {
    let doubled = body(&["e"], vec![node("Add", &["e", "e"], &["f"])], &["f"]);
    for (sizes, keeps, expected) in [
        (None, 0, vec![2.0, 4.0, 6.0]),
        (Some(ints("s", &[], &[2])), 1, vec![2.0, 4.0, 6.0]),
        (Some(ints("s", &[2], &[1, 2])), 1, vec![2.0, 4.0, 6.0]),
    ] {
        let input: &[&str] = if sizes.is_some() { &["x", "s"] } else { &["x"] };
        let nodes = vec![
            with(node("SplitToSequence", input, &["parts"]), vec![int("keepdims", keeps)]),
            looped("SequenceMap", &["parts"], &["twice"], doubled.clone()),
            with(node("ConcatFromSequence", &["twice"], &["y"]), vec![int("axis", 0), int("new_axis", 1 - keeps)]),
        ];
        let known = sizes.into_iter().collect();
        let y = run(&open(&model(&[3], nodes, known, &["y"])), &[3], &[1.0, 2.0, 3.0]).expect("a value");
        assert_eq!(y.data, expected);
    }
}

/// A recurrent network: h = relu(x[t] w + h u), from zeros in the file; the logits are h v.
fn recurrent() -> ModelProto {
    let raw = |name: &str, dims: &[i64], by: f32| onnx_protobuf::TensorProto {
        // Beyond what stays in the message.
        raw_data: (0..dims.iter().product()).flat_map(|i| (by * ((i % 13) as f32 - 6.0)).to_le_bytes()).collect(),
        ..floats(name, dims, &[])
    };
    let nodes = vec![
        node("MatMul", &["e", "w"], &["own"]),
        // Every step transposes the same weight.
        with(node("Transpose", &["u"], &["turned"]), vec![list("perm", &[1, 0])]),
        node("MatMul", &["h", "turned"], &["past"]),
        node("Add", &["own", "past"], &["sum"]),
        node("Relu", &["sum"], &["g"]),
    ];
    let b = body(&["h", "e"], nodes, &["g"]);
    let mut scan = looped("Scan", &["start", "x"], &["end"], b);
    scan.attribute.extend([int("num_scan_inputs", 1), list("scan_input_axes", &[1])]);
    // The graph around the body has a node of the same name.
    let nodes = vec![scan, node("MatMul", &["end", "v"], &["logits"]), node("Relu", &["x"], &["g"])];
    let start = raw("start", &[8, 16], 0.0);
    let all = vec![raw("w", &[32, 16], 0.02), raw("u", &[16, 16], 0.03), raw("v", &[16, 10], 0.01), start];
    let mut m = model(&[8, 5, 32], nodes, all, &["logits"]);
    m.graph.mut_or_insert_default().node[2].output[0] = "unread".into();
    m
}

#[test]
fn steps_share_their_weights_in_training_and_exports() {
    let file = open(&recurrent());
    let mut spec = SpecFile::default();
    spec.partition.modules = Some(1);
    let mut planner = Planner::new(&file, &spec).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(planner.network().sources.keys().map(String::as_str).collect::<Vec<_>>(), ["u", "v", "w"]);
    let notes = &planner.network().notes;
    assert!(notes.iter().any(|n| n.contains("Scan \"end\" has 5")), "{notes:?}");
    let compiled = planner.compile(&spec.partition, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    let (mut weights, _) = initial_weights(&compiled, planner.file(), &[]).unwrap_or_else(|e| panic!("{e}"));
    weights.retain(|w| ["u", "v", "w"].contains(&w.name.as_str()));
    weights.iter_mut().filter(|w| w.name == "w").flat_map(|w| w.data.iter_mut()).for_each(|x| *x *= 2.0);
    let bare = skeleton(planner.file(), &compiled.network.sources).unwrap_or_else(|e| panic!("{e}"));
    let trained = weights.iter().map(|w| Trained { name: &w.name, shape: &w.shape, data: &w.data });
    let bare = open_bytes(&bare).unwrap_or_else(|e| panic!("{e}"));
    let out = export(&bare, &trained.collect::<Vec<_>>(), Norms::Kept).unwrap_or_else(|e| panic!("{e}"));
    let graph = ModelProto::parse_from_bytes(&out).expect("a model").graph;
    assert!(graph.node.iter().all(|n| n.op_type != "Scan"));
    assert_eq!(graph.node.iter().filter(|n| n.op_type == "Transpose").count(), 1);
    let mut names: Vec<&str> = graph.node.iter().map(|n| n.name.as_str()).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    // The file itself, with w doubled.
    let mut doubled = recurrent();
    let w = &mut doubled.graph.mut_or_insert_default().initializer[0];
    w.raw_data =
        w.raw_data.chunks(4).flat_map(|b| (2.0 * f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_le_bytes()).collect();
    let x: Vec<f64> = (0..8 * 5 * 32).map(|i| f64::from(i % 17) / 8.0 - 1.0).collect();
    let again = open_bytes(&out).unwrap_or_else(|e| panic!("{e}"));
    let theirs = run(&open(&doubled), &[8, 5, 32], &x).expect("a value");
    assert_eq!(run(&again, &[8, 5, 32], &x).expect("a value"), theirs);
    assert!(theirs.data.iter().any(|&x| x != 0.0));
}

/// Why a loop with this body and these inputs is refused.
fn refused(input: &[&str], b: GraphProto) -> String {
    let output: &[&str] = &["y", "z"][..b.output.len() - 1];
    let nodes = vec![
        with(node("ReduceMax", &["x"], &["highest"]), vec![int("keepdims", 0)]),
        node("Greater", &["highest", "half"], &["high"]),
        with(node("Cast", &["highest"], &["count"]), vec![int("to", 7)]),
        looped("Loop", input, output, b),
    ];
    let known = vec![
        ints("many", &[], &[i64::MAX]),
        ints("four", &[], &[4]),
        ints("none", &[], &[0]),
        ints("each", &[], &[4096]),
        flag("yes", true),
        floats("half", &[], &[0.5]),
    ];
    run(&open(&model(&[1], nodes, known, &output[output.len() - 1..])), &[1], &[1.0]).expect_err("refused")
}

#[test]
fn what_cannot_be_unrolled_is_refused_by_its_reason() {
    let plain = || body(&["i", "on", "s"], vec![node("Add", &["s", "s"], &["t"])], &["on", "t"]);
    let asks = vec![node("Greater", &["s", "half"], &["again"])];
    let stacks = body(&["i", "on", "s"], vec![node("Neg", &["s"], &["t"])], &["on", "s", "t"]);
    let mut within = plain();
    for name in ["q", "r"] {
        let around = vec![looped("Loop", &["each", "", "s"], &[name], within)];
        within = body(&["i", "on", "s"], around, &["on", name]);
    }
    for (reason, input, b) in [
        ("the number of its steps depends on the data", ["count", "", "x"], plain()),
        ("whether it goes on depends on the data", ["four", "high", "x"], plain()),
        (
            "whether it goes on depends on the data",
            ["four", "yes", "x"],
            body(&["i", "on", "s"], asks, &["again", "s"]),
        ),
        ("it does not end", ["", "", "x"], plain()),
        ("more than 4096 steps", ["many", "", "x"], plain()),
        ("more than 4096 steps", ["", "yes", "x"], plain()),
        ("the steps of its loops make more than", ["each", "", "x"], within),
        ("its body has 2 inputs and 2 outputs", ["four", "", "x"], body(&["i", "on"], vec![], &["on", "on"])),
        ("has no shape", ["none", "", "x"], stacks),
    ] {
        let e = refused(&input, b);
        assert!(e.contains(reason) && e.contains("(Loop, opset 20)"), "{reason}: {e}");
    }
}

#[test]
fn places_that_are_not_there_are_refused() {
    for (reason, node) in [
        ("there is no place 2 in its sequence", node("SequenceAt", &["all", "two"], &["y"])),
        ("the elements of its sequence are not known", node("SequenceAt", &["x", "two"], &["y"])),
        ("has no axis", node("ConcatFromSequence", &["all"], &["y"])),
    ] {
        let nodes = vec![twice_x(), node];
        let e = run(&open(&model(&[1], nodes, vec![ints("two", &[], &[2])], &["y"])), &[1], &[1.0]);
        let e = e.expect_err("refused");
        assert!(e.contains(reason), "{reason}: {e}");
    }
}

fn twice_x() -> NodeProto {
    node("SequenceConstruct", &["x", "x"], &["all"])
}

#[test]
fn damaged_loops_are_errors() {
    // Every prefix and every changed byte opens or fails; none panics.
    let whole = bytes(&doubled("y"));
    for i in 0..whole.len() {
        let mut changed = whole.clone();
        changed[i] ^= 0x41;
        if let Ok(file) = open_bytes(&changed) {
            let _ = run_any(&file);
        }
    }
}

fn run_any(file: &slrc_compiler::onnx::file::OnnxFile) -> Result<(), String> {
    let given = std::collections::BTreeMap::from([(
        "x".to_string(),
        slrc_compiler::onnx::forward::Given::Data(slrc_compiler::onnx::tensor::Elem::Float, vec![2]),
    )]);
    slrc_compiler::onnx::forward::forward(file, &given).map(drop).map_err(|e| e.to_string())
}
