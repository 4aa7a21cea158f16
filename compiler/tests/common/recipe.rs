//! Random graphs for property tests.
//!
//! A recipe is a list of steps that shrinks well: each step picks an op and its operands from what is there, and is
//! left out where it does not fit. Ops are emitted as they are, without the builder's laws, so that a pass meets what
//! the builder would have tidied away. Values stay within a few units whatever the steps (products are squashed, sums
//! are means), so that rounding errors stay small, and every op is continuous in its operands, so that they stay
//! rounding errors: no sign, floor or equality.
#![allow(dead_code, reason = "each test file uses a part")]

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use slrc_compiler::ir::graph::{Init, Input, InputId, InputKind, VarId, VarKind, Variable};
use slrc_compiler::ir::interp::Env;
use slrc_compiler::ir::op::Splat;
use slrc_compiler::ir::ops::contract::{Conv, ConvInputGrad, ConvShape, MatMul};
use slrc_compiler::ir::ops::index::{Gather, ScatterAdd};
use slrc_compiler::ir::ops::keep::Keep;
use slrc_compiler::ir::ops::map::Map;
use slrc_compiler::ir::ops::mode::{Detach, ModeSelect};
use slrc_compiler::ir::ops::random::Random;
use slrc_compiler::ir::ops::reduce::{LogSumExp, Reduce};
use slrc_compiler::ir::ops::shape::{Broadcast, Concat, Pad, Reshape, Slice, Transpose};
use slrc_compiler::ir::ops::window::{WindowMaxIndex, WindowSelect, WindowSpread, WindowSum, WindowUnselect};
use slrc_compiler::ir::types::{DType, Number};
use slrc_compiler::ir::{Builder, Graph, NodeId, Op, Root, RootKind, Tensor, Type};
use slrc_plan::kernel::WindowGeometry;
use slrc_plan::random::Sequence;
use slrc_plan::statement::Combine;
use slrc_plan::{Dims, ScalarFn};

/// Steps and the seed of the leaves' values.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    steps: Vec<[u16; 4]>,
    seed: u16,
}

/// Recipes of at most `longest` steps.
pub(crate) fn recipes(longest: usize) -> impl Strategy<Value = Recipe> {
    (prop::collection::vec(any::<[u16; 4]>(), 1..=longest), any::<u16>())
        .prop_map(|(steps, seed)| Recipe { steps, seed })
}

/// Settings of a property test: the same cases in every run.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(17), failure_persistence: None, ..ProptestConfig::default() }
}

/// Rows of the table that index inputs point into.
const ROWS: usize = 3;
/// Largest value built, in elements.
const LARGEST: usize = 2048;

struct Maker<'g> {
    b: Builder<'g>,
    /// Real values so far.
    pool: Vec<NodeId>,
    index: NodeId,
    swapped: bool,
}

impl Recipe {
    /// The graph. Its one root holds every value that nothing else uses. `swapped` exchanges the two sides of every
    /// mode selection.
    pub(crate) fn graph(&self, swapped: bool) -> Graph {
        let mut graph = Graph::new("random");
        let mut input = |ty: Type| {
            let name = format!("x{}", graph.inputs.len());
            graph.add_input(Input { name, kind: InputKind::Data, ty })
        };
        let real: Vec<InputId> =
            [&[2, 3, 4][..], &[4, 3], &[2, 3, 4, 4], &[2, 3, 4]].map(|s| input(Type::f32(s))).to_vec();
        let index = input(Type::new(DType::I32, [5]));
        let mut b = Builder::new(&mut graph);
        let pool = real.into_iter().map(|i| b.input(i)).collect();
        let index = b.input(index);
        let mut m = Maker { b, pool, index, swapped };
        self.steps.iter().for_each(|&s| m.step(s));
        let value = m.everything();
        assert_eq!(m.b.take_error(), None, "steps fit by construction");
        graph.roots.push(Root { kind: RootKind::Output("y".into()), value });
        graph
    }

    /// Values of the graph's inputs and of its variables, in table order: representable in f32, within [-1, 1).
    pub(crate) fn leaves(&self, g: &Graph) -> (Vec<Tensor>, Vec<Tensor>) {
        let mut rng = Sequence::new(u64::from(self.seed), 0, 0);
        let mut draw = |ty: &Type| {
            Tensor::from_fn(ty.shape.clone(), |_| match ty.is_real() {
                true => f64::from(rng.symmetric(1.0)),
                false => (f64::from(rng.unit()) * ROWS as f64).floor(),
            })
        };
        (g.inputs.iter().map(|i| draw(&i.ty)).collect(), g.variables.iter().map(|v| draw(&v.ty)).collect())
    }

    /// The same for the interpreter.
    pub(crate) fn env(&self, g: &Graph) -> Env {
        let (inputs, variables) = self.leaves(g);
        let mut env = Env::default();
        env.inputs.extend(inputs.into_iter().enumerate().map(|(i, t)| (InputId(i as u32), t)));
        env.variables.extend(variables.into_iter().enumerate().map(|(i, t)| (VarId(i as u32), t)));
        env
    }
}

impl Maker<'_> {
    fn shape(&self, x: NodeId) -> Vec<usize> {
        self.b.shape(x)
    }

    fn pick(&self, n: u16) -> NodeId {
        // Later values are picked more often, so that chains grow long.
        let (n, len) = (usize::from(n), self.pool.len());
        self.pool[(n % len).max(n / len % len)]
    }

    fn map(&mut self, f: ScalarFn, x: &[NodeId]) -> NodeId {
        self.b.emit(Map(f), x)
    }

    fn splat(&mut self, value: f64, like: NodeId) -> NodeId {
        let shape = self.shape(like);
        self.b.emit(Splat { value: Number(value), shape }, &[])
    }

    fn scale(&mut self, x: NodeId, factor: f64) -> NodeId {
        let c = self.splat(factor, x);
        self.map(ScalarFn::Mul, &[x, c])
    }

    fn squash(&mut self, x: NodeId) -> NodeId {
        self.map(ScalarFn::Tanh, &[x])
    }

    fn reshape(&mut self, x: NodeId, shape: Vec<usize>) -> NodeId {
        self.b.emit(Reshape { shape }, &[x])
    }

    /// `x^2 + 1/2`: away from the singularities of log, root and reciprocal.
    fn positive(&mut self, x: NodeId) -> NodeId {
        let square = self.map(ScalarFn::Mul, &[x, x]);
        let half = self.splat(0.5, x);
        self.map(ScalarFn::Add, &[square, half])
    }

    /// Two values of one shape: broadcast where that is possible, else the first twice.
    fn pair(&mut self, a: u16, b: u16) -> (NodeId, NodeId) {
        let (x, y) = (self.pick(a), self.pick(b));
        let Some(shape) = slrc_compiler::ir::builder::common_shape(&self.shape(x), &self.shape(y)) else {
            return (x, x);
        };
        if shape.iter().product::<usize>() > LARGEST {
            return (x, x);
        }
        let mut widen = |v: NodeId| {
            let own = self.shape(v);
            let full = [vec![1; shape.len() - own.len()], own].concat();
            let v = self.reshape(v, full);
            self.b.emit(Broadcast { shape: shape.clone() }, &[v])
        };
        (widen(x), widen(y))
    }

    fn step(&mut self, [kind, a, b, c]: [u16; 4]) {
        let choice = usize::from(c);
        let made = match kind % 18 {
            0 => Some(self.unary(a, choice)),
            1 => Some(self.binary(a, b, choice)),
            2 => Some(self.selection(a, b, choice)),
            3 => Some(self.reduction(a, choice)),
            4 => Some(self.softmax(a, choice)),
            5 => Some(self.reshaped(a, choice)),
            6 => Some(self.transposed(a, choice)),
            7 => self.broadcast(a, choice),
            8 => Some(self.sliced(a, choice)),
            9 => Some(self.padded(a, choice)),
            10 => Some(self.concatenated(a, b, choice)),
            11 => self.product(a, b, choice),
            12 => self.convolution(a, choice),
            13 => self.pooled(a, choice),
            14 => self.indexed(a, choice),
            15 => Some(self.modal(a, b, choice)),
            16 => Some(self.redundant(a, choice)),
            _ => {
                let random = self.b.emit(Random { stream: u32::from(c), shape: vec![2, 3] }, &[]);
                Some(random)
            }
        };
        self.pool.extend(made.filter(|&x| self.b.graph().ty(x).count() <= LARGEST));
    }

    fn unary(&mut self, a: u16, choice: usize) -> NodeId {
        use ScalarFn::{Abs, Atan, Cos, Erf, Exp, Log, Neg, Recip, Rsqrt, Sigmoid, Sin, Sqrt, Tanh};
        let f = [Neg, Abs, Tanh, Sigmoid, Erf, Sin, Cos, Exp, Log, Sqrt, Rsqrt, Recip, Atan][choice % 13];
        let x = self.pick(a);
        let x = match f {
            Exp => self.squash(x),
            Log | Sqrt | Rsqrt | Recip => self.positive(x),
            _ => x,
        };
        self.map(f, &[x])
    }

    fn binary(&mut self, a: u16, b: u16, choice: usize) -> NodeId {
        let (x, y) = self.pair(a, b);
        match choice % 5 {
            0 | 1 => {
                let f = if choice.is_multiple_of(5) { ScalarFn::Add } else { ScalarFn::Sub };
                let z = self.map(f, &[x, y]);
                self.scale(z, 0.5)
            }
            2 => {
                let z = self.map(ScalarFn::Mul, &[x, y]);
                self.squash(z)
            }
            3 => {
                let y = self.positive(y);
                let z = self.map(ScalarFn::Div, &[x, y]);
                self.squash(z)
            }
            _ => {
                let (x, y) = (self.positive(x), self.squash(y));
                let z = self.map(ScalarFn::Pow, &[x, y]);
                self.squash(z)
            }
        }
    }

    /// Minimum, maximum and ReLU, spelled with flags.
    fn selection(&mut self, a: u16, b: u16, choice: usize) -> NodeId {
        let (x, mut y) = self.pair(a, b);
        if choice.is_multiple_of(3) {
            y = self.splat(0.0, x);
        }
        let below = if choice.is_multiple_of(2) { ScalarFn::Lt } else { ScalarFn::Le };
        let flag = self.map(below, &[x, y]);
        let flag = match choice % 5 {
            0 => self.map(ScalarFn::Not, &[flag]),
            1 => self.map(ScalarFn::And, &[flag, flag]),
            2 => {
                let above = self.map(ScalarFn::Lt, &[y, x]);
                let above = self.map(ScalarFn::Not, &[above]);
                self.map(ScalarFn::Or, &[flag, above])
            }
            _ => flag,
        };
        self.map(ScalarFn::Select, &[flag, x, y])
    }

    fn axes(&self, x: NodeId, choice: usize) -> Vec<usize> {
        (0..self.shape(x).len()).filter(|d| choice >> d & 1 == 1).collect()
    }

    fn reduction(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let axes = self.axes(x, choice);
        let n: usize = axes.iter().map(|&d| self.shape(x)[d]).product();
        if (choice / 16).is_multiple_of(2) {
            let sum = self.b.emit(Reduce { combine: Combine::Sum, axes }, &[x]);
            return self.scale(sum, 1.0 / n as f64);
        }
        self.b.emit(Reduce { combine: Combine::Max, axes }, &[x])
    }

    fn softmax(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let (axes, shape) = (self.axes(x, choice), self.shape(x));
        let lse = self.b.emit(LogSumExp { axes }, &[x]);
        let wide = self.b.emit(Broadcast { shape }, &[lse]);
        let shifted = self.map(ScalarFn::Sub, &[x, wide]);
        if (choice / 16).is_multiple_of(2) { self.map(ScalarFn::Exp, &[shifted]) } else { self.squash(shifted) }
    }

    fn reshaped(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let mut shape = self.shape(x);
        let at = choice / 4 % shape.len().max(1);
        match choice % 4 {
            0 => shape = vec![shape.iter().product()],
            1 if at + 1 < shape.len() => {
                let n = shape.remove(at + 1);
                shape[at] *= n;
            }
            2 if shape.get(at).is_some_and(|n| n % 2 == 0) => {
                shape[at] /= 2;
                shape.insert(at, 2);
            }
            _ => shape.insert(at, 1),
        }
        // Deeper shapes only slow the interpreter down.
        if shape.len() > 5 {
            shape = vec![shape.iter().product()];
        }
        self.reshape(x, shape)
    }

    fn transposed(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let mut permutation: Vec<usize> = (0..self.shape(x).len()).collect();
        let n = permutation.len();
        if n > 1 {
            permutation.rotate_left(choice % n);
            permutation.swap(0, choice / n % n);
        }
        self.b.emit(Transpose { permutation }, &[x])
    }

    fn broadcast(&mut self, a: u16, choice: usize) -> Option<NodeId> {
        let x = self.pick(a);
        let shape: Vec<usize> = self.shape(x).iter().map(|&n| if n == 1 { 1 + choice % 3 } else { n }).collect();
        (shape.iter().product::<usize>() <= LARGEST).then(|| self.b.emit(Broadcast { shape }, &[x]))
    }

    fn sliced(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let from = self.shape(x);
        let step = |d: usize| 1 + (choice >> (2 * d)) % 2;
        let start = |d: usize, n: usize| (choice >> (2 * d + 1)) % 2 % n;
        let slice = Slice {
            starts: from.iter().enumerate().map(|(d, &n)| start(d, n)).collect(),
            steps: (0..from.len()).map(step).collect(),
            shape: from.iter().enumerate().map(|(d, &n)| (n - start(d, n)).div_ceil(step(d))).collect(),
        };
        self.b.emit(slice, &[x])
    }

    fn padded(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let amounts = |shift: usize| (0..self.shape(x).len()).map(|d| (choice >> (shift + d)) % 2).collect();
        let pad = Pad { low: amounts(0), high: amounts(3), interior: amounts(6) };
        self.b.emit(pad, &[x])
    }

    fn concatenated(&mut self, a: u16, b: u16, choice: usize) -> NodeId {
        let (x, y) = (self.pick(a), self.pick(b));
        let (sx, sy) = (self.shape(x), self.shape(y));
        let axis = choice % sx.len().max(1);
        let fits = sx.len() == sy.len() && (0..sx.len()).all(|d| d == axis || sx[d] == sy[d]);
        if sx.is_empty() {
            return self.reshape(x, vec![1]);
        }
        let parts = if fits { vec![x, y, x] } else { vec![x, x] };
        self.b.emit(Concat { axis }, &parts)
    }

    /// `x x^T / n` over the last two dimensions, or `x y / n` where that fits.
    fn product(&mut self, a: u16, b: u16, choice: usize) -> Option<NodeId> {
        let (x, y) = (self.pick(a), self.pick(b));
        let (sx, sy) = (self.shape(x), self.shape(y));
        let n = sx.len();
        if n < 2 {
            return None;
        }
        let fits = sy.len() == n && sx[..n - 2] == sy[..n - 2] && sx[n - 1] == sy[n - 2];
        let right = if fits && choice.is_multiple_of(2) {
            y
        } else {
            let mut permutation: Vec<usize> = (0..n).collect();
            permutation.swap(n - 2, n - 1);
            self.b.emit(Transpose { permutation }, &[x])
        };
        if sx[..n - 1].iter().product::<usize>() * self.shape(right)[n - 1] > LARGEST {
            return None;
        }
        let product = self.b.emit(MatMul, &[x, right]);
        Some(self.scale(product, 1.0 / sx[n - 1] as f64))
    }

    fn convolution(&mut self, a: u16, choice: usize) -> Option<NodeId> {
        let x = self.pick(a);
        let s = self.shape(x);
        if s.len() != 4 || s[1] > 8 {
            return None;
        }
        let kernel = if choice.is_multiple_of(3) { 1 } else { 3 };
        let geometry = geometry([s[2], s[3]], kernel, 1 + choice / 3 % 2, kernel / 2);
        let groups = if (choice / 6).is_multiple_of(3) { s[1] } else { 1 };
        let shape = ConvShape { groups, geometry };
        let out = if groups > 1 { s[1] } else { 1 + choice / 18 % 4 };
        let name = format!("w{}", self.b.graph().variables.len());
        let ty = Type::f32([out, s[1] / groups, kernel, kernel]);
        let id =
            self.b.graph_mut().add_variable(Variable { name, kind: VarKind::Weight, ty, init: Init::Constant(0.0) });
        let w = self.b.variable(id);
        let y = self.b.emit(Conv(shape.clone()), &[x, w]);
        let y = if (choice / 72).is_multiple_of(3) { self.b.emit(ConvInputGrad(shape), &[w, y]) } else { y };
        let y = self.scale(y, 0.2);
        Some(self.squash(y))
    }

    fn pooled(&mut self, a: u16, choice: usize) -> Option<NodeId> {
        let x = self.pick(a);
        let s = self.shape(x);
        if s.len() != 4 || s[2] < 2 || s[3] < 2 {
            return None;
        }
        let g =
            if choice.is_multiple_of(2) { geometry([s[2], s[3]], 2, 2, 0) } else { geometry([s[2], s[3]], 3, 2, 1) };
        let taps = (g.kernel[0] * g.kernel[1]) as f64;
        Some(match choice / 2 % 4 {
            0 => {
                let sum = self.b.emit(WindowSum(g), &[x]);
                self.scale(sum, 1.0 / taps)
            }
            1 => {
                let sum = self.b.emit(WindowSum(g.clone()), &[x]);
                let wide = self.b.emit(WindowSpread(g), &[sum]);
                self.scale(wide, 0.1)
            }
            2 => {
                let index = self.b.emit(WindowMaxIndex(g.clone()), &[x]);
                let best = self.b.emit(WindowSelect(g.clone()), &[x, index]);
                let wide = self.b.emit(WindowUnselect(g), &[best, index]);
                // In the sum over an image it does not matter which of two nearly equal elements won.
                let all = self.b.emit(Reduce { combine: Combine::Sum, axes: vec![2, 3] }, &[wide]);
                self.scale(all, 1.0 / (s[2] * s[3]) as f64)
            }
            _ => {
                let index = self.b.emit(WindowMaxIndex(g.clone()), &[x]);
                self.b.emit(WindowSelect(g), &[x, index])
            }
        })
    }

    fn indexed(&mut self, a: u16, choice: usize) -> Option<NodeId> {
        let x = self.pick(a);
        let s = self.shape(x);
        match s[..] {
            [rows, _] if rows == 5 && choice.is_multiple_of(2) => {
                let sum = self.b.emit(ScatterAdd { rows: ROWS }, &[x, self.index]);
                Some(self.scale(sum, 0.2))
            }
            [rows, _] if rows >= ROWS => Some(self.b.emit(Gather, &[x, self.index])),
            _ => None,
        }
    }

    fn modal(&mut self, a: u16, b: u16, choice: usize) -> NodeId {
        let (x, y) = self.pair(a, b);
        if choice.is_multiple_of(3) {
            return self.b.emit(Detach, &[x]);
        }
        if choice.is_multiple_of(5) {
            return self.b.emit(Keep { later: self.swapped }, &[x]);
        }
        let sides = if self.swapped { [y, x] } else { [x, y] };
        self.b.emit(ModeSelect, &sides)
    }

    /// What the builder's laws take away.
    fn redundant(&mut self, a: u16, choice: usize) -> NodeId {
        let x = self.pick(a);
        let shape = self.shape(x);
        let (zero, one) = (self.splat(0.0, x), self.splat(1.0, x));
        match choice % 10 {
            0 => self.map(ScalarFn::Mul, &[x, one]),
            1 => self.map(ScalarFn::Add, &[zero, x]),
            2 => self.map(ScalarFn::Mul, &[x, zero]),
            3 => self.map(ScalarFn::Sub, &[x, x]),
            4 => self.map(ScalarFn::Div, &[x, one]),
            5 => {
                let y = self.map(ScalarFn::Neg, &[x]);
                self.map(ScalarFn::Neg, &[y])
            }
            6 => {
                let flat = self.reshape(x, vec![shape.iter().product()]);
                self.reshape(flat, shape)
            }
            7 => {
                let y = self.scale(x, 4.0);
                self.scale(y, 0.25)
            }
            8 => self.map(ScalarFn::Copy, &[x]),
            _ => {
                let y = self.map(ScalarFn::Pow, &[one, x]);
                self.map(ScalarFn::Mul, &[x, y])
            }
        }
    }

    /// Every value that is not used, flattened and joined.
    fn everything(&mut self) -> NodeId {
        let unused: Vec<NodeId> =
            self.pool.clone().into_iter().filter(|&x| self.b.graph().users(x).is_empty()).collect();
        let mut flat: Vec<NodeId> = Vec::new();
        for x in unused {
            let n = self.b.graph().ty(x).count();
            let y = self.reshape(x, vec![n]);
            if !flat.contains(&y) {
                flat.push(y);
            }
        }
        self.b.emit(Concat { axis: 0 }, &flat)
    }
}

fn geometry(input: [usize; 2], kernel: usize, stride: usize, pad: usize) -> WindowGeometry {
    let out = |n: usize| (n + 2 * pad - kernel) / stride + 1;
    WindowGeometry {
        input: Dims(input.to_vec()),
        output: Dims(input.map(out).to_vec()),
        kernel: Dims(vec![kernel; 2]),
        strides: Dims(vec![stride; 2]),
        pads: Dims(vec![pad; 2]),
        dilations: Dims(vec![1; 2]),
    }
}

/// Names of the ops that graphs of recipes hold, to see that the generator reaches them.
pub(crate) fn ops_in(g: &Graph) -> impl Iterator<Item = &'static str> {
    g.ids().map(|id| match &g.node(id).op {
        Op::Map(f) => f.0.name(),
        op => op.rule().name(),
    })
}
