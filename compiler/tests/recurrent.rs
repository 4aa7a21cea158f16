//! Recurrent layers against their formulas, written out number by number.

#[path = "common/protos.rs"]
mod protos;

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, NodeProto, TensorProto};
use protos::{float, floats, int, ints, model, node, open, run, text, with};
use slrc_compiler::pipeline::compile;
use slrc_compiler::spec::SpecFile;

const STEPS: usize = 4;
const BATCH: usize = 2;
const WIDTH: usize = 3;
const HIDDEN: usize = 2;

/// Numbers without a pattern, in [-1, 1).
fn numbers(name: &str, n: usize) -> Vec<f64> {
    let mut rng = slrc_plan::random::Sequence::new(7, slrc_plan::random::stream_of(name), 0);
    (0..n).map(|_| f64::from(rng.symmetric(1.0))).collect()
}

fn tensor(name: &str, dims: &[usize]) -> TensorProto {
    let dims_i: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    let data: Vec<f32> = numbers(name, dims.iter().product()).iter().map(|&x| x as f32).collect();
    floats(name, &dims_i, &data)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A layer's parameters in one direction, as slices of the tensors.
struct Cell<'a> {
    gates: usize,
    w: &'a [f64],
    r: &'a [f64],
    b: &'a [f64],
}

impl Cell<'_> {
    /// `W x + Wb` and `R h + Rb` of gate `k`, element `j`.
    fn sums(&self, k: usize, j: usize, x: &[f64], h: &[f64]) -> (f64, f64) {
        let row = k * HIDDEN + j;
        let dot = |m: &[f64], v: &[f64]| -> f64 { v.iter().enumerate().map(|(i, x)| m[row * v.len() + i] * x).sum() };
        (dot(self.w, x) + self.b[row], dot(self.r, h) + self.b[self.gates * HIDDEN + row])
    }

    fn sum(&self, k: usize, j: usize, x: &[f64], h: &[f64]) -> f64 {
        let (a, b) = self.sums(k, j, x, h);
        a + b
    }
}

/// The state after a step of direction, cell, input, state and memory.
type Step<'a> = dyn Fn(usize, &Cell<'_>, &[f64], &[f64], &mut Vec<f64>) -> Vec<f64> + 'a;

/// All states `[sequence, directions, batch, hidden]` by a step function.
fn reference(gates: usize, backwards: &[bool], step: &Step<'_>, h0: Option<&str>) -> Vec<f64> {
    let n = backwards.len();
    let (w, r) = (numbers("w", n * gates * HIDDEN * WIDTH), numbers("r", n * gates * HIDDEN * HIDDEN));
    let b = numbers("b", n * 2 * gates * HIDDEN);
    let x = numbers("x", STEPS * BATCH * WIDTH);
    let first = h0.map_or(vec![0.0; n * BATCH * HIDDEN], |name| numbers(name, n * BATCH * HIDDEN));
    let mut out = vec![0.0; STEPS * n * BATCH * HIDDEN];
    for (d, &back) in backwards.iter().enumerate() {
        let part = |v: &[f64], each: usize| v[d * each..(d + 1) * each].to_vec();
        let (w, r, b) =
            (part(&w, gates * HIDDEN * WIDTH), part(&r, gates * HIDDEN * HIDDEN), part(&b, 2 * gates * HIDDEN));
        let cell = Cell { gates, w: &w, r: &r, b: &b };
        for s in 0..BATCH {
            let mut h = first[(d * BATCH + s) * HIDDEN..][..HIDDEN].to_vec();
            let mut memory = vec![0.0; HIDDEN];
            for i in 0..STEPS {
                let t = if back { STEPS - 1 - i } else { i };
                h = step(d, &cell, &x[(t * BATCH + s) * WIDTH..][..WIDTH], &h, &mut memory);
                out[((t * n + d) * BATCH + s) * HIDDEN..][..HIDDEN].copy_from_slice(&h);
            }
        }
    }
    out
}

fn agrees(op: NodeProto, gates: usize, directions: usize, more: Vec<TensorProto>, expected: &[f64]) {
    let mut tensors = vec![
        tensor("w", &[directions, gates * HIDDEN, WIDTH]),
        tensor("r", &[directions, gates * HIDDEN, HIDDEN]),
        tensor("b", &[directions, 2 * gates * HIDDEN]),
    ];
    tensors.extend(more);
    let m = model(&[STEPS as i64, BATCH as i64, WIDTH as i64], vec![op], tensors, &["y"]);
    let y = run(&open(&m), &[STEPS, BATCH, WIDTH], &numbers("x", STEPS * BATCH * WIDTH)).expect("a value");
    assert_eq!(y.shape, [STEPS, directions, BATCH, HIDDEN]);
    for (i, (a, b)) in y.data.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < 1e-6, "element {i}: {a}, not {b}");
    }
}

#[test]
fn plain_with_an_activation_s_numbers_and_a_state_to_begin_with() {
    let expected = reference(
        1,
        &[true],
        &|_, c, x, h, _| {
            let each = |j: usize| {
                let sum = c.sum(0, j, x, h).clamp(-0.75, 0.75);
                if sum > 0.0 { sum } else { 0.3 * sum }
            };
            (0..HIDDEN).map(each).collect()
        },
        Some("h"),
    );
    let names = AttributeProto {
        name: "activations".into(),
        strings: vec![b"LeakyRelu".to_vec()],
        type_: AttributeType::STRINGS.into(),
        ..Default::default()
    };
    let alpha = AttributeProto {
        name: "activation_alpha".into(),
        floats: vec![0.3],
        type_: AttributeType::FLOATS.into(),
        ..Default::default()
    };
    let attributes = vec![text("direction", "reverse"), names, alpha, float("clip", 0.75), int("hidden_size", 2)];
    let op = with(node("RNN", &["x", "w", "r", "b", "lengths", "h"], &["y"]), attributes);
    let lengths =
        TensorProto { data_type: 6, int32_data: vec![4, 4], int64_data: vec![], ..ints("lengths", &[2], &[]) };
    agrees(op, 1, 1, vec![lengths, tensor("h", &[1, BATCH, HIDDEN])], &expected);
}

#[test]
fn gated_with_the_reset_before_and_behind_the_product() {
    for behind in [false, true] {
        let step = |_: usize, c: &Cell<'_>, x: &[f64], h: &[f64], _: &mut Vec<f64>| -> Vec<f64> {
            let gate = |k: usize, j: usize| sigmoid(c.sum(k, j, x, h));
            let reset: Vec<f64> = (0..HIDDEN).map(|j| gate(1, j) * h[j]).collect();
            let each = |j: usize| {
                let (own, of_state) = if behind { c.sums(2, j, x, h) } else { c.sums(2, j, x, &reset) };
                let new = (own + if behind { gate(1, j) * of_state } else { of_state }).tanh();
                (1.0 - gate(0, j)) * new + gate(0, j) * h[j]
            };
            (0..HIDDEN).map(each).collect()
        };
        let expected = reference(3, &[false, true], &step, None);
        let attributes = vec![text("direction", "bidirectional"), int("linear_before_reset", i64::from(behind))];
        agrees(with(node("GRU", &["x", "w", "r", "b"], &["y"]), attributes), 3, 2, vec![], &expected);
    }
}

#[test]
fn long_short_term_memory_with_peepholes() {
    let p = numbers("p", 2 * 3 * HIDDEN);
    let step = |d: usize, c: &Cell<'_>, x: &[f64], h: &[f64], memory: &mut Vec<f64>| -> Vec<f64> {
        let p = &p[d * 3 * HIDDEN..];
        let each = |j: usize| {
            let i = sigmoid(c.sum(0, j, x, h) + p[j] * memory[j]);
            let f = sigmoid(c.sum(2, j, x, h) + p[2 * HIDDEN + j] * memory[j]);
            let new = f * memory[j] + i * c.sum(3, j, x, h).tanh();
            let o = sigmoid(c.sum(1, j, x, h) + p[HIDDEN + j] * new);
            (new, o * new.tanh())
        };
        let all: Vec<(f64, f64)> = (0..HIDDEN).map(each).collect();
        *memory = all.iter().map(|x| x.0).collect();
        all.iter().map(|x| x.1).collect()
    };
    let expected = reference(4, &[false, true], &step, None);
    let op =
        with(node("LSTM", &["x", "w", "r", "b", "", "", "", "p"], &["y"]), vec![text("direction", "bidirectional")]);
    agrees(op, 4, 2, vec![tensor("p", &[2, 3 * HIDDEN])], &expected);
}

#[test]
fn what_is_refused() {
    let tensors = || {
        vec![
            tensor("w", &[1, 4 * HIDDEN, WIDTH]),
            tensor("r", &[1, 4 * HIDDEN, HIDDEN]),
            tensor("b", &[1, 4 * HIDDEN]),
            ints("lengths", &[2], &[4, 3]),
        ]
    };
    let lstm = |inputs: &[&str], attributes| with(node("LSTM", inputs, &["y"]), attributes);
    for (op, words) in [
        (lstm(&["x", "w", "r", "b"], vec![]), "input 3 has shape [1, 8], not [1, 16]"),
        (lstm(&["x", "w", "r", "", "lengths"], vec![]), "sequences of another length"),
        (lstm(&["x", "w", "r"], vec![text("direction", "sideways")]), "\"sideways\" does not exist"),
        (lstm(&["x", "w", "r"], vec![text("direction", "bidirectional")]), "do not fit"),
        (lstm(&["x", "r", "w"], vec![]), "do not fit"),
        (lstm(&["x", "w", "r"], vec![int("hidden_size", 3)]), "do not fit"),
    ] {
        let m = model(&[STEPS as i64, BATCH as i64, WIDTH as i64], vec![op], tensors(), &["y"]);
        let e = run(&open(&m), &[STEPS, BATCH, WIDTH], &[0.0; STEPS * BATCH * WIDTH]).expect_err(words);
        assert!(e.contains(words), "{e}");
    }
    let long = model(&[1 << 13, 2, WIDTH as i64], vec![lstm(&["x", "w", "r"], vec![])], tensors(), &["y"]);
    let e = run(&open(&long), &[1 << 13, 2, WIDTH], &[]).expect_err("refused");
    assert!(e.contains("cannot be unrolled"), "{e}");
}

#[test]
fn layers_are_trained_in_modules() {
    // Two layers with the batch first, and a classifier of the last state.
    let layer = |x: &str, y: &str, h: &str| {
        let names = [format!("{y}.w"), format!("{y}.r"), format!("{y}.b")];
        let mut n = node("LSTM", &[x, &names[0], &names[1], &names[2]], &[y, h]);
        n.attribute = vec![int("layout", 1), int("hidden_size", 5)];
        n
    };
    let nodes = vec![
        layer("x", "a", ""),
        node("Squeeze", &["a", "two"], &["s"]),
        layer("s", "c", "h"),
        node("Squeeze", &["h", "one"], &["last"]),
        node("MatMul", &["last", "out"], &["logits"]),
    ];
    let tensors = vec![
        tensor("a.w", &[1, 20, 6]),
        tensor("a.r", &[1, 20, 5]),
        tensor("a.b", &[1, 40]),
        tensor("c.w", &[1, 20, 5]),
        tensor("c.r", &[1, 20, 5]),
        tensor("c.b", &[1, 40]),
        tensor("out", &[5, 3]),
        ints("two", &[1], &[2]),
        ints("one", &[1], &[1]),
    ];
    let file = open(&model(&[8, 7, 6], nodes, tensors, &["logits"]));
    let mut spec = SpecFile::default();
    spec.partition.at = vec!["s".into()];
    let compiled = compile(&file, &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(compiled.modules.len(), 2);
    let names: Vec<&str> = compiled.network.sources.keys().map(String::as_str).collect();
    assert_eq!(names, ["a.b", "a.r", "a.w", "c.b", "c.r", "c.w", "out"]);
}
