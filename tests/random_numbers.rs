//! Files that draw random numbers, as exports in training mode do for stochastic depth: drawn anew every step, whatever
//! the file knows of what they are drawn for, and nothing in inference where a draw of 0 or 1 is divided by its chance.

#[path = "support/cli.rs"]
mod cli;
#[path = "support/made.rs"]
mod made;

use cli::{Array, Values, Workspace, npz};
use made::Made;
use onnx_protobuf::{AttributeProto, Message as _, ModelProto, attribute_proto::AttributeType};
use slrc_runtime::data::npz::read_npz;

/// A float attribute of the last node.
fn float(mut m: Made, name: &str, f: f32) -> Made {
    let node = m.graph.node.last_mut().expect("a node");
    let kind = if name == "to" { AttributeType::INT } else { AttributeType::FLOAT };
    let i = f as i64;
    node.attribute.push(AttributeProto { name: name.into(), type_: kind.into(), f, i, ..Default::default() });
    m
}

/// A classifier of four numbers whose hidden layer passes `branch`, from h to r. The file's batch is 4.
fn network(branch: &dyn Fn(Made) -> Made) -> Vec<u8> {
    let m = Made::new(&[4, 4], &[4, 3]).weight("w", &[4, 4]).weight("v", &[4, 3]).node("MatMul", "x w", "h");
    branch(m).node("MatMul", "r v", "y").bytes()
}

/// Drawn for four samples, since the file has four; kept with a chance of a half, and doubled then.
fn stochastic_depth(m: Made) -> Made {
    let m = float(m.node("Constant", "", "half"), "value_float", 0.5);
    // [4, 1], by what is known of shapes alone.
    let m = m.node("Constant", "", "extents").ints("value_ints", &[4, 1]).node("ConstantOfShape", "extents", "zeros");
    let m = m.node("RandomUniformLike", "zeros", "drawn").int("dtype", 1);
    let m = float(m.node("Less", "drawn half", "kept").node("Cast", "kept", "number"), "to", 1.0);
    m.node("Div", "number half", "noise").node("Mul", "h noise", "r")
}

fn workspace() -> Workspace {
    let work = Workspace::new();
    let x = Array::new("x", &[8, 4], Values::F32((0..32).map(|i| (i as f32).sin()).collect()));
    let y = Array::new("y", &[8], Values::I64((0..8).map(|i| i % 3).collect()));
    work.write("d.npz", npz(&[x, y]));
    work
}

/// Losses of three steps that change nothing, over the same batch, and logits in inference.
fn measured(work: &Workspace, model: Vec<u8>) -> (Vec<f64>, Vec<f64>) {
    work.write("m.onnx", model);
    for folder in ["plan", "run"] {
        let _ = std::fs::remove_dir_all(work.path(folder));
    }
    work.ok("partition m.onnx --modules 1 --batch 8 --lr 0 -o plan");
    work.ok("train plan --data d.npz --steps 3 --no-shuffle --log-every 1 -o run");
    let lines = std::fs::read_to_string(work.path("run/metrics.jsonl")).expect("metrics");
    let loss = |line: &str| -> f64 {
        let line: serde_json::Value = serde_json::from_str(line).expect("json");
        line["modules"][0]["loss"].as_f64().expect("a loss")
    };
    work.ok("eval run --data d.npz --save-logits logits.npz");
    let logits = read_npz(&work.path("logits.npz")).expect("logits").remove(0).1.to_f64();
    (lines.lines().map(loss).collect(), logits)
}

#[test]
fn stochastic_depth_is_random_in_training_and_nothing_in_inference() {
    let work = workspace();
    let (plain, logits) = measured(&work, network(&|m| m.node("Identity", "h", "r")));
    assert!(plain.iter().all(|l| *l == plain[0]), "{plain:?}");
    let (drawn, with) = measured(&work, network(&stochastic_depth));
    assert_eq!(with, logits);
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2], "{drawn:?}");
    // Bernoulli says the same in one node; nothing is divided, so inference has half of it.
    let bernoulli = |m: Made| {
        let m = float(m.node("Constant", "", "half"), "value_float", 0.5);
        let m = m.node("Sub", "h h", "zero").node("Add", "zero half", "chances");
        m.node("Bernoulli", "chances", "noise").node("Mul", "h noise", "r")
    };
    let (drawn, with) = measured(&work, network(&bernoulli));
    assert!(drawn[0] != drawn[1], "{drawn:?}");
    with.iter().zip(&logits).for_each(|(a, b)| assert!((2.0 * a - b).abs() < 1e-6, "{a} {b}"));
    // Uniform and normal numbers are drawn in inference, too.
    for op in ["RandomUniformLike", "RandomNormalLike"] {
        let (drawn, with) = measured(&work, network(&|m| m.node(op, "h", "noise").node("Add", "h noise", "r")));
        assert!(drawn[0] != drawn[1], "{op}: {drawn:?}");
        assert_ne!(with, logits, "{op}");
    }
}

/// The comparisons of a draw with its chance, and the number made of it, in the ways a file may say them: less or
/// greater, either side first.
fn compared(m: Made, op: &str, operands: &str, drawn: &str) -> Made {
    let m = float(m.node("Constant", "", "quarter"), "value_float", 0.25);
    let m = if drawn == "RandomUniform" {
        m.node(drawn, "", "drawn").ints("shape", &[4, 1])
    } else {
        m.node(drawn, "h", "drawn")
    };
    let m = float(m.node(op, operands, "kept").node("Cast", "kept", "number"), "to", 1.0);
    m.node("Mul", "h number", "r")
}

#[test]
fn exports_hold_chances_in_the_place_of_draws() {
    type Way<'a> = (&'a str, &'a dyn Fn(Made) -> Made);
    let bernoulli = |m: Made| {
        let m = float(m.node("Constant", "", "half"), "value_float", 0.5);
        let m = m.node("Sub", "h h", "zero").node("Add", "zero half", "chances");
        m.node("Bernoulli", "chances", "noise").node("Mul", "h noise", "r")
    };
    let ways: [Way<'_>; 6] = [
        ("stochastic depth", &stochastic_depth),
        ("bernoulli", &bernoulli),
        ("less", &|m| compared(m, "Less", "drawn quarter", "RandomUniformLike")),
        ("the other first", &|m| compared(m, "LessOrEqual", "quarter drawn", "RandomUniformLike")),
        ("greater", &|m| compared(m, "Greater", "drawn quarter", "RandomUniform")),
        ("greater, the other first", &|m| compared(m, "GreaterOrEqual", "quarter drawn", "RandomUniformLike")),
    ];
    for (what, branch) in ways {
        let work = workspace();
        let (_, logits) = measured(&work, network(branch));
        work.ok("export run -o out.onnx");
        let out = std::fs::read(work.path("out.onnx")).expect("an export");
        let model = ModelProto::parse_from_bytes(&out).expect("a model");
        let draws = |op: &str| op.starts_with("Random") || op == "Bernoulli";
        assert!(model.graph.node.iter().all(|n| !draws(&n.op_type)), "{what}");
        let (losses, again) = measured(&work, out);
        assert_eq!(again, logits, "{what}");
        assert!(losses.iter().all(|l| *l == losses[0]), "{what}: {losses:?}");
    }
    // A draw that is no chance stays one.
    let work = workspace();
    measured(&work, network(&|m| m.node("RandomUniformLike", "h", "noise").node("Add", "h noise", "r")));
    work.ok("export run -o out.onnx");
    let out = std::fs::read(work.path("out.onnx")).expect("an export");
    let model = ModelProto::parse_from_bytes(&out).expect("a model");
    assert!(model.graph.node.iter().any(|n| n.op_type == "RandomUniformLike"));
}

#[test]
fn numbers_are_spread_as_the_file_says() {
    let work = workspace();
    // 8 samples of 4,096 numbers, as logits.
    let spread = |op: &str, a: (&str, f32), b: (&str, f32)| -> (f64, f64) {
        let m = Made::new(&[0, 4], &[0, 4096])
            .weight("w", &[4, 4096])
            .node("MatMul", "x w", "h")
            .node("Sub", "h h", "zero");
        let m = float(float(m.node(op, "zero", "drawn"), a.0, a.1), b.0, b.1);
        let (_, all) = measured(&work, m.node("Add", "drawn zero", "y").bytes());
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        (mean, all.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / all.len() as f64)
    };
    // The mean of 32,768 numbers is off by a hundred-eightieth of a deviation; five of these are allowed.
    let (mean, variance) = spread("RandomUniformLike", ("low", -1.0), ("high", 3.0));
    assert!((mean - 1.0).abs() < 0.035 && (variance - 16.0 / 12.0).abs() < 0.05, "{mean} {variance}");
    let (mean, variance) = spread("RandomNormalLike", ("mean", 2.0), ("scale", 3.0));
    assert!((mean - 2.0).abs() < 0.09 && (variance - 9.0).abs() < 0.4, "{mean} {variance}");
}
