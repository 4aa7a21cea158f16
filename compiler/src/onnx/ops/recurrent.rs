//! Recurrent layers, unrolled over the sequence: every step is products and elementwise work, on the same weights.
//!
//! What does not depend on the step before is one product for the whole sequence.

use crate::ir::graph::{NodeId, VarKind};
use crate::ir::ops::shape::Slice;
use crate::layers::fan_in;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;
use crate::onnx::ops::activation::{Shaped, clamp};
use crate::onnx::ops::linear::bias;
use crate::onnx::tensor::Elem;

pub(super) const OPS: &[Entry] = &[
    Entry { op: "RNN", note: "unrolled; sequences of full length", convert: rnn },
    Entry { op: "GRU", note: "unrolled; sequences of full length", convert: gru },
    Entry { op: "LSTM", note: "unrolled; sequences of full length", convert: lstm },
];

type R = Result<Vec<Out>, String>;

/// Most steps, of all directions, that are written out.
pub(super) const MOST_STEPS: usize = 1 << 12;

fn rnn(cx: &mut Cx<'_, '_, '_>) -> R {
    recurrent(cx, Kind::Rnn)
}

fn gru(cx: &mut Cx<'_, '_, '_>) -> R {
    let linear_before_reset = cx.int("linear_before_reset", 0) != 0;
    recurrent(cx, Kind::Gru { linear_before_reset })
}

fn lstm(cx: &mut Cx<'_, '_, '_>) -> R {
    let coupled = cx.int("input_forget", 0) != 0;
    recurrent(cx, Kind::Lstm { coupled })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Rnn,
    /// Whether the reset gate applies behind the product with the state.
    Gru {
        linear_before_reset: bool,
    },
    /// Whether what is let in is what is forgotten.
    Lstm {
        coupled: bool,
    },
}

impl Kind {
    fn gates(self) -> usize {
        match self {
            Kind::Rnn => 1,
            Kind::Gru { .. } => 3,
            Kind::Lstm { .. } => 4,
        }
    }

    /// Activations of a direction, where the node does not say.
    fn activations(self) -> &'static [&'static str] {
        match self {
            Kind::Rnn => &["Tanh"],
            Kind::Gru { .. } => &["Sigmoid", "Tanh"],
            Kind::Lstm { .. } => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// One direction of a layer.
struct Direction {
    kind: Kind,
    batch: usize,
    hidden: usize,
    /// The inputs' share of all gates, biases included, `[sequence, batch, gates hidden]`.
    inputs: NodeId,
    /// The state's matrix, `[hidden, gates hidden]`.
    state: NodeId,
    /// The state's bias, `[gates hidden]`.
    state_bias: Option<NodeId>,
    /// An LSTM's weights of the cell in the gates, `[3 hidden]`.
    peepholes: Option<NodeId>,
    activations: Vec<Shaped>,
    clip: Option<f64>,
}

fn recurrent(cx: &mut Cx<'_, '_, '_>, kind: Kind) -> R {
    let batch_first = cx.int("layout", 0) != 0;
    let reversed: &[bool] = match cx.string("direction", "forward").as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(format!("direction \"{other}\" does not exist")),
    };
    let (ws, rs) = (cx.shape(1)?, cx.shape(2)?);
    let mut x = cx.real(0)?;
    if cx.b.shape(x).len() != 3 || rs.len() != 3 {
        return Err(format!("operands {:?}, {ws:?} and {rs:?} must have three dimensions", cx.b.shape(x)));
    }
    if batch_first {
        x = cx.b.transpose(x, &[1, 0, 2]);
    }
    let [steps, batch, width] = [0, 1, 2].map(|d| cx.b.shape(x)[d]);
    let (directions, hidden) = (reversed.len(), rs[2]);
    let rows = kind.gates().checked_mul(hidden).ok_or("its state is too large")?;
    let said = cx.int("hidden_size", hidden as i64);
    if ws != [directions, rows, width] || rs != [directions, rows, hidden] || said != hidden as i64 || hidden == 0 {
        return Err(format!("weights {ws:?} and {rs:?} do not fit inputs of {width} and a state of {said}"));
    }
    if steps == 0 || steps.saturating_mul(directions) > MOST_STEPS {
        return Err(format!("a sequence of {steps} steps cannot be unrolled: there may be 1 to {MOST_STEPS}"));
    }
    if cx.present(4) && cx.known_ints(4, "the lengths of the sequences")?.iter().any(|&n| n != steps as i64) {
        return Err(format!("sequences of another length than the {steps} steps of the input are not supported"));
    }
    let w = cx.weight(1, fan_in(hidden), VarKind::Weight)?;
    let r = cx.weight(2, fan_in(hidden), VarKind::Weight)?;
    let b = optional(cx, 3, &[directions, 2 * rows])?;
    let peepholes = match kind {
        Kind::Lstm { .. } => optional(cx, 7, &[directions, 3 * hidden])?,
        _ => None,
    };
    let h0 = initial(cx, 5, batch_first, [directions, batch, hidden])?;
    let c0 = match kind {
        Kind::Lstm { .. } => initial(cx, 6, batch_first, [directions, batch, hidden])?,
        _ => None,
    };
    let activations = activations(cx, kind, directions)?;
    let clip = cx.has("clip").then(|| cx.float("clip", 0.0));
    let flat = cx.b.reshape(x, &[steps * batch, width]);
    let (mut sequences, mut states, mut cells) = (Vec::new(), Vec::new(), Vec::new());
    for (d, &backwards) in reversed.iter().enumerate() {
        let (w, r) = (row(cx, w, d), row(cx, r, d));
        let (w, r) = (cx.b.transpose(w, &[1, 0]), cx.b.transpose(r, &[1, 0]));
        let mut inputs = cx.b.matmul(flat, w);
        let mut state_bias = None;
        if let Some(b) = b {
            let b = row(cx, b, d);
            let (own, of_state) = (columns(cx, b, 0, rows), columns(cx, b, rows, rows));
            let full = cx.b.shape(inputs);
            let own = cx.b.broadcast_to(own, &full);
            inputs = cx.b.add(inputs, own);
            state_bias = Some(of_state);
        }
        let inputs = cx.b.reshape(inputs, &[steps, batch, rows]);
        let peepholes = peepholes.map(|p| row(cx, p, d));
        let activations = activations[d].clone();
        let direction = Direction { kind, batch, hidden, inputs, state: r, state_bias, peepholes, activations, clip };
        let mut h = h0.map(|h| row(cx, h, d));
        let mut c = c0.map(|c| row(cx, c, d));
        let mut made = Vec::with_capacity(steps);
        for i in 0..steps {
            let t = if backwards { steps - 1 - i } else { i };
            let (next, cell) = direction.step(cx, t, h, c);
            (h, c) = (Some(next), cell);
            made.push(cx.b.reshape(next, &[1, 1, batch, hidden]));
        }
        if backwards {
            made.reverse();
        }
        sequences.push(cx.b.concat(&made, 0));
        states.extend(h.map(|h| cx.b.reshape(h, &[1, batch, hidden])));
        cells.extend(c.map(|c| cx.b.reshape(c, &[1, batch, hidden])));
    }
    // [sequence, directions, batch, hidden] and [directions, batch, hidden], or the batch first.
    let mut outs = vec![cx.b.concat(&sequences, 1), cx.b.concat(&states, 0)];
    if !cells.is_empty() {
        outs.push(cx.b.concat(&cells, 0));
    }
    if batch_first {
        outs[0] = cx.b.transpose(outs[0], &[2, 0, 1, 3]);
        for out in &mut outs[1..] {
            *out = cx.b.transpose(*out, &[1, 0, 2]);
        }
    }
    Ok(outs.into_iter().take(cx.proto.output.len().max(1)).map(|id| Out::Node(id, Elem::Float)).collect())
}

impl Direction {
    /// The state and an LSTM's cell after step `t`. No state before is one of zeros.
    fn step(
        &self,
        cx: &mut Cx<'_, '_, '_>,
        t: usize,
        h: Option<NodeId>,
        c: Option<NodeId>,
    ) -> (NodeId, Option<NodeId>) {
        let own = row(cx, self.inputs, t);
        match self.kind {
            Kind::Rnn => {
                let sum = self.with_state(cx, own, h);
                (self.activate(cx, 0, sum), None)
            }
            Kind::Gru { linear_before_reset } => (self.gru(cx, own, h, linear_before_reset), None),
            Kind::Lstm { coupled } => {
                let (h, c) = self.lstm(cx, own, h, c, coupled);
                (h, Some(c))
            }
        }
    }

    fn gru(&self, cx: &mut Cx<'_, '_, '_>, own: NodeId, h: Option<NodeId>, linear_before_reset: bool) -> NodeId {
        let n = self.hidden;
        // Gates are in the order z, r, h; what a candidate takes from the state has a product of its own if the reset
        // gate comes first.
        let of_state = self.of_state(cx, h);
        let part = |cx: &mut Cx<'_, '_, '_>, k: usize| {
            let own = columns(cx, own, k * n, n);
            match of_state {
                Some(s) => {
                    let s = columns(cx, s, k * n, n);
                    cx.b.add(own, s)
                }
                None => own,
            }
        };
        let (z, r) = (part(cx, 0), part(cx, 1));
        let (z, r) = (self.activate(cx, 0, z), self.activate(cx, 0, r));
        let own = columns(cx, own, 2 * n, n);
        let gated = if linear_before_reset {
            of_state.map(|s| {
                let s = columns(cx, s, 2 * n, n);
                cx.b.mul(r, s)
            })
        } else {
            let product = h.map(|h| {
                let reset = cx.b.mul(r, h);
                let matrix = columns(cx, self.state, 2 * n, n);
                cx.b.matmul(reset, matrix)
            });
            let bias = self.state_bias.map(|b| columns(cx, b, 2 * n, n));
            self.sum(cx, product, bias)
        };
        let sum = match gated {
            Some(g) => cx.b.add(own, g),
            None => own,
        };
        let candidate = self.activate(cx, 1, sum);
        // (1 - z) candidate + z h
        match h {
            Some(h) => {
                let change = cx.b.sub(h, candidate);
                let kept = cx.b.mul(z, change);
                cx.b.add(candidate, kept)
            }
            None => {
                let kept = cx.b.mul(z, candidate);
                cx.b.sub(candidate, kept)
            }
        }
    }

    fn lstm(
        &self,
        cx: &mut Cx<'_, '_, '_>,
        own: NodeId,
        h: Option<NodeId>,
        c: Option<NodeId>,
        coupled: bool,
    ) -> (NodeId, NodeId) {
        let n = self.hidden;
        let all = self.with_state(cx, own, h);
        // Gates are in the order i, o, f, c; peepholes in the order i, o, f.
        let gate = |cx: &mut Cx<'_, '_, '_>, k: usize, cell: Option<NodeId>| {
            let mut sum = columns(cx, all, k * n, n);
            if let (Some(p), Some(cell)) = (self.peepholes, cell) {
                let p = columns(cx, p, k * n, n);
                let p = cx.b.broadcast_to(p, &[self.batch, n]);
                let seen = cx.b.mul(p, cell);
                sum = cx.b.add(sum, seen);
            }
            self.activate(cx, 0, sum)
        };
        let i = gate(cx, 0, c);
        let new = columns(cx, all, 3 * n, n);
        let new = self.activate(cx, 1, new);
        let mut cell = cx.b.mul(i, new);
        if let Some(c) = c {
            let f = if coupled {
                let minus = cx.b.neg(i);
                cx.b.offset(minus, 1.0)
            } else {
                gate(cx, 2, Some(c))
            };
            let kept = cx.b.mul(f, c);
            cell = cx.b.add(kept, cell);
        }
        let o = gate(cx, 1, Some(cell));
        let seen = self.activations[2].apply(cx, cell);
        (cx.b.mul(o, seen), cell)
    }

    /// What the state before adds to the gates, biases included.
    fn of_state(&self, cx: &mut Cx<'_, '_, '_>, h: Option<NodeId>) -> Option<NodeId> {
        let product = h.map(|h| cx.b.matmul(h, self.state));
        self.sum(cx, product, self.state_bias)
    }

    fn sum(&self, cx: &mut Cx<'_, '_, '_>, product: Option<NodeId>, bias: Option<NodeId>) -> Option<NodeId> {
        let bias = bias.map(|b| {
            let width = cx.b.shape(b).first().copied().unwrap_or(1);
            cx.b.broadcast_to(b, &[self.batch, width])
        });
        match (product, bias) {
            (Some(p), Some(b)) => Some(cx.b.add(p, b)),
            (one, other) => one.or(other),
        }
    }

    fn with_state(&self, cx: &mut Cx<'_, '_, '_>, own: NodeId, h: Option<NodeId>) -> NodeId {
        match self.of_state(cx, h) {
            Some(s) => cx.b.add(own, s),
            None => own,
        }
    }

    /// Activation `k` of what it is given, clipped.
    fn activate(&self, cx: &mut Cx<'_, '_, '_>, k: usize, x: NodeId) -> NodeId {
        let x = match self.clip {
            Some(c) => clamp(cx, x, Some(-c), Some(c)),
            None => x,
        };
        self.activations[k].apply(cx, x)
    }
}

/// Activations by direction. Their numbers are used up by those that have some.
fn activations(cx: &mut Cx<'_, '_, '_>, kind: Kind, directions: usize) -> Result<Vec<Vec<Shaped>>, String> {
    let each = kind.activations();
    let names = cx
        .strings("activations")
        .unwrap_or_else(|| (0..directions).flat_map(|_| each).map(|name| name.to_string()).collect());
    if names.len() != each.len() * directions {
        return Err(format!("{} activations for {directions} directions of {}", names.len(), each.len()));
    }
    let mut alphas = cx.floats("activation_alpha").unwrap_or_default().into_iter();
    let mut betas = cx.floats("activation_beta").unwrap_or_default().into_iter();
    let all: Vec<Shaped> =
        names.iter().map(|n| Shaped::by_name(n, &mut alphas, &mut betas)).collect::<Result<_, _>>()?;
    Ok(all.chunks(each.len()).map(<[Shaped]>::to_vec).collect())
}

/// A bias or peephole weights, if the node has some.
fn optional(cx: &mut Cx<'_, '_, '_>, i: usize, shape: &[usize]) -> Result<Option<NodeId>, String> {
    if !cx.present(i) {
        return Ok(None);
    }
    if cx.shape(i)? != shape {
        return Err(format!("input {i} has shape {:?}, not {shape:?}", cx.shape(i)?));
    }
    bias(cx, i, fan_in(shape[1])).map(Some)
}

/// A state to begin with, `[directions, batch, hidden]`; `None` is zeros.
fn initial(
    cx: &mut Cx<'_, '_, '_>,
    i: usize,
    batch_first: bool,
    [directions, batch, hidden]: [usize; 3],
) -> Result<Option<NodeId>, String> {
    // Zeros may have another batch's extent.
    let zeros = |data: &[f64]| data.iter().all(|&x| x == 0.0);
    if !cx.present(i) || (cx.elem(i)? == Elem::Float && cx.fixed_values(i)?.is_some_and(|c| zeros(&c.data))) {
        return Ok(None);
    }
    let shape = if batch_first { [batch, directions, hidden] } else { [directions, batch, hidden] };
    if cx.shape(i)? != shape {
        return Err(format!("input {i} has shape {:?}, not {shape:?}", cx.shape(i)?));
    }
    let x = cx.fixed(i)?;
    Ok(Some(if batch_first { cx.b.transpose(x, &[1, 0, 2]) } else { x }))
}

/// Element `i` along the first dimension.
fn row(cx: &mut Cx<'_, '_, '_>, x: NodeId, i: usize) -> NodeId {
    // What failed before is a scalar; the builder has said so.
    let Some(rest) = cx.b.shape(x).get(1..).map(<[usize]>::to_vec) else { return x };
    let part = slice(cx, x, 0, i, 1);
    cx.b.reshape(part, &rest)
}

/// Columns `from..from + n`, the last dimension.
fn columns(cx: &mut Cx<'_, '_, '_>, x: NodeId, from: usize, n: usize) -> NodeId {
    match cx.b.shape(x).len().checked_sub(1) {
        Some(last) => slice(cx, x, last, from, n),
        None => x,
    }
}

fn slice(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, from: usize, n: usize) -> NodeId {
    let mut shape = cx.b.shape(x);
    if (from, n) == (0, shape[axis]) {
        return x;
    }
    let (mut starts, steps) = (vec![0; shape.len()], vec![1; shape.len()]);
    (starts[axis], shape[axis]) = (from, n);
    cx.b.slice(x, Slice { starts, steps, shape })
}
