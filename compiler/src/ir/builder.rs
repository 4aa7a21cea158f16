//! The builder: the way nodes are added to a graph. It applies shape rules and the local laws of
//! [`crate::ir::identities`], so passes write mathematics and get tidy graphs.
//!
//! A shape error does not panic: the builder records the first one ([`Builder::take_error`]) and yields a
//! scalar NaN in its place, so that an importer can report it with the node at fault.

use slrc_plan::kernel::{Phase, WindowGeometry};
use slrc_plan::scalar::ScalarFn;
use slrc_plan::statement::Combine;

use crate::ir::graph::{ConstId, Constant, Graph, InputId, Node, NodeId, OriginId, ScalarId, VarId};
use crate::ir::op::{Op, Splat};
use crate::ir::ops::contract::{Conv, ConvInputGrad, ConvShape, ConvWeightGrad, MatMul};
use crate::ir::ops::index::{Gather, ScatterAdd};
use crate::ir::ops::map::Map;
use crate::ir::ops::mode::{Detach, ModeSelect};
use crate::ir::ops::random::Random;
use crate::ir::ops::reduce::{LogSumExp, Reduce};
use crate::ir::ops::shape::{Broadcast, Concat, Pad, Reshape, Slice, Transpose};
use crate::ir::ops::window::{WindowMaxIndex, WindowSelect, WindowSpread, WindowSum, WindowUnselect};
use crate::ir::types::{Number, Type};
use crate::ir::{identities, products};

/// Adds nodes to a graph under a current origin and phase.
pub struct Builder<'g> {
    graph: &'g mut Graph,
    /// Origin given to new nodes.
    pub origin: OriginId,
    /// Phase given to new nodes.
    pub phase: Phase,
    error: Option<String>,
}

/// Most elements of a value: far beyond any memory, and few enough for sizes and costs to be added up.
const MAX_ELEMENTS: usize = 1 << 40;

/// Most dimensions of a value.
const MAX_RANK: usize = 64;

fn checked(ty: Type) -> Result<Type, String> {
    if ty.rank() > MAX_RANK {
        return Err(format!("a value of {} dimensions has too many", ty.rank()));
    }
    match ty.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
        Some(n) if n <= MAX_ELEMENTS => Ok(ty),
        _ => Err(format!("a value of type {ty} is too large")),
    }
}

impl<'g> Builder<'g> {
    /// A builder that marks its nodes as forward work of no ONNX node.
    pub fn new(graph: &'g mut Graph) -> Builder<'g> {
        Builder { graph, origin: OriginId(0), phase: Phase::Forward, error: None }
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// The graph, for registering inputs and variables.
    pub fn graph_mut(&mut self) -> &mut Graph {
        self.graph
    }

    /// The first shape error since the last call.
    pub fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    /// Records an error found while building, unless one is recorded already.
    pub fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    /// Shape of a value.
    pub fn shape(&self, x: NodeId) -> Vec<usize> {
        self.graph.shape(x).to_vec()
    }

    /// Adds an op as it is, without applying identities.
    pub fn emit(&mut self, op: impl Into<Op>, operands: &[NodeId]) -> NodeId {
        let op = op.into();
        let types: Vec<&Type> = operands.iter().map(|&o| self.graph.ty(o)).collect();
        let ty = match &op {
            Op::Input(i) => Ok(self.graph.inputs[i.index()].ty.clone()),
            Op::Variable(v) => Ok(self.graph.variables[v.index()].ty.clone()),
            Op::Constant(c) => Ok(self.graph.constants[c.index()].ty.clone()),
            Op::StepScalar(_) => Ok(Type::f32([])),
            _ => op.rule().infer(&types),
        };
        match ty.and_then(checked) {
            Ok(ty) => {
                let node = Node { op, operands: operands.to_vec(), ty, origin: self.origin, phase: self.phase };
                self.graph.add(node)
            }
            Err(e) => {
                self.fail(format!("{}: {e}", op.rule().name()));
                self.splat(f64::NAN, &[])
            }
        }
    }

    /// Adds the node that `op` of new operands gives, applying identities: what passes use to rebuild a graph.
    pub fn replay(&mut self, op: &Op, x: &[NodeId]) -> NodeId {
        match op {
            Op::Map(Map(f)) => self.map(*f, x),
            Op::Reduce(Reduce { combine: Combine::Sum, axes }) => self.sum(x[0], axes),
            Op::Reduce(Reduce { combine: Combine::Max, axes }) => self.max(x[0], axes),
            Op::LogSumExp(LogSumExp { axes }) => self.log_sum_exp(x[0], axes),
            Op::Broadcast(Broadcast { shape }) => self.broadcast(x[0], shape),
            Op::Reshape(Reshape { shape }) => self.reshape(x[0], shape),
            Op::Transpose(Transpose { permutation }) => self.transpose(x[0], permutation),
            Op::Slice(slice) => self.slice(x[0], slice.clone()),
            Op::Pad(pad) => self.pad(x[0], pad.clone()),
            Op::Concat(Concat { axis }) => self.concat(x, *axis),
            Op::MatMul(_) => self.matmul(x[0], x[1]),
            Op::Detach(_) => self.detach(x[0]),
            Op::ModeSelect(_) => self.mode_select(x[0], x[1]),
            Op::Input(_)
            | Op::Variable(_)
            | Op::Constant(_)
            | Op::StepScalar(_)
            | Op::Splat(_)
            | Op::Random(_)
            | Op::Keep(_)
            | Op::Near(_)
            | Op::Conv(_)
            | Op::ConvInputGrad(_)
            | Op::ConvWeightGrad(_)
            | Op::WindowMaxIndex(_)
            | Op::WindowSelect(_)
            | Op::WindowUnselect(_)
            | Op::WindowSum(_)
            | Op::WindowSpread(_)
            | Op::Gather(_)
            | Op::ScatterAdd(_) => self.emit(op.clone(), x),
        }
    }

    /// Reads an input.
    pub fn input(&mut self, id: InputId) -> NodeId {
        self.emit(id, &[])
    }

    /// Reads a variable as it was before the step.
    pub fn variable(&mut self, id: VarId) -> NodeId {
        self.emit(id, &[])
    }

    /// Reads a step scalar, shape `[]`.
    pub fn step_scalar(&mut self, id: ScalarId) -> NodeId {
        self.emit(id, &[])
    }

    /// A constant tensor; one value throughout becomes a splat.
    pub fn constant(&mut self, ty: Type, data: Vec<f64>) -> NodeId {
        if ty.is_real() && !data.is_empty() && data.iter().all(|&x| Number(x) == Number(data[0])) {
            return self.splat(data[0], &ty.shape);
        }
        let id: ConstId = self.graph.add_constant(Constant { ty, data });
        self.emit(id, &[])
    }

    /// One number in every element.
    pub fn splat(&mut self, value: f64, shape: &[usize]) -> NodeId {
        self.emit(Splat { value: Number(value), shape: shape.to_vec() }, &[])
    }

    /// One number in the shape of `x`.
    pub fn splat_like(&mut self, x: NodeId, value: f64) -> NodeId {
        let shape = self.shape(x);
        self.splat(value, &shape)
    }

    /// Zeros in the shape of `x`.
    pub fn zeros_like(&mut self, x: NodeId) -> NodeId {
        self.splat_like(x, 0.0)
    }

    /// Uniform numbers of a stream.
    pub fn random(&mut self, stream: u32, shape: &[usize]) -> NodeId {
        self.emit(Random { stream, shape: shape.to_vec() }, &[])
    }

    /// An elementwise function of operands of one shape.
    pub fn map(&mut self, f: ScalarFn, x: &[NodeId]) -> NodeId {
        let x = identities::canonical_order(self, f, x);
        identities::map(self, f, &x).unwrap_or_else(|| self.emit(Map(f), &x))
    }

    /// An elementwise function of two operands that broadcast to one shape.
    pub fn binary(&mut self, f: ScalarFn, a: NodeId, b: NodeId) -> NodeId {
        let (a, b) = self.align(a, b);
        self.map(f, &[a, b])
    }

    /// `a + b`, one shape.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.map(ScalarFn::Add, &[a, b])
    }

    /// `a - b`, one shape.
    pub fn sub(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.map(ScalarFn::Sub, &[a, b])
    }

    /// `a * b`, one shape.
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.map(ScalarFn::Mul, &[a, b])
    }

    /// `a / b`, one shape.
    pub fn div(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.map(ScalarFn::Div, &[a, b])
    }

    /// `-a`.
    pub fn neg(&mut self, a: NodeId) -> NodeId {
        self.map(ScalarFn::Neg, &[a])
    }

    /// `a * factor`.
    pub fn scale(&mut self, a: NodeId, factor: f64) -> NodeId {
        let c = self.splat_like(a, factor);
        self.mul(a, c)
    }

    /// `a + offset`.
    pub fn offset(&mut self, a: NodeId, offset: f64) -> NodeId {
        let c = self.splat_like(a, offset);
        self.add(a, c)
    }

    /// `a` where the flag is set, else `b`; one shape.
    pub fn select(&mut self, flag: NodeId, a: NodeId, b: NodeId) -> NodeId {
        self.map(ScalarFn::Select, &[flag, a, b])
    }

    /// Flags and integers as numbers; numbers as they are.
    pub fn number(&mut self, x: NodeId) -> NodeId {
        self.map(ScalarFn::Copy, &[x])
    }

    /// Sum over axes, which stay with extent 1.
    pub fn sum(&mut self, x: NodeId, axes: &[usize]) -> NodeId {
        identities::sum(self, x, axes).unwrap_or_else(|| {
            let axes = identities::long_axes(&self.shape(x), axes);
            self.emit(Reduce { combine: Combine::Sum, axes }, &[x])
        })
    }

    /// Mean over axes, which stay with extent 1.
    pub fn mean(&mut self, x: NodeId, axes: &[usize]) -> NodeId {
        let shape = self.shape(x);
        let n: usize = axes.iter().map(|&a| shape.get(a).copied().unwrap_or(1)).product();
        let s = self.sum(x, axes);
        self.scale(s, 1.0 / n as f64)
    }

    /// Sum of all elements, shape `[]`.
    pub fn sum_all(&mut self, x: NodeId) -> NodeId {
        let axes: Vec<usize> = (0..self.graph.ty(x).rank()).collect();
        let s = self.sum(x, &axes);
        self.reshape(s, &[])
    }

    /// Maximum over axes, which stay with extent 1.
    pub fn max(&mut self, x: NodeId, axes: &[usize]) -> NodeId {
        let axes = identities::long_axes(&self.shape(x), axes);
        if axes.is_empty() { x } else { self.emit(Reduce { combine: Combine::Max, axes }, &[x]) }
    }

    /// `log(sum(e^x))` over axes, which stay with extent 1.
    pub fn log_sum_exp(&mut self, x: NodeId, axes: &[usize]) -> NodeId {
        let axes = identities::long_axes(&self.shape(x), axes);
        if axes.is_empty() { x } else { self.emit(LogSumExp { axes }, &[x]) }
    }

    /// `e^(x - log_sum_exp(x))` over axes.
    pub fn softmax(&mut self, x: NodeId, axes: &[usize]) -> NodeId {
        let lse = self.log_sum_exp(x, axes);
        let shape = self.shape(x);
        let wide = self.broadcast(lse, &shape);
        let shifted = self.sub(x, wide);
        self.map(ScalarFn::Exp, &[shifted])
    }

    /// Repeats extents of 1 to `shape`, of the same rank.
    pub fn broadcast(&mut self, x: NodeId, shape: &[usize]) -> NodeId {
        identities::broadcast(self, x, shape).unwrap_or_else(|| self.emit(Broadcast { shape: shape.to_vec() }, &[x]))
    }

    /// Broadcasts as numpy does: extents are aligned at the last dimension.
    pub fn broadcast_to(&mut self, x: NodeId, shape: &[usize]) -> NodeId {
        let from = self.shape(x);
        if from.len() > shape.len() {
            self.fail(format!("{} does not broadcast to {shape:?}", self.graph.ty(x)));
            return x;
        }
        let mut full = vec![1; shape.len() - from.len()];
        full.extend(&from);
        let x = self.reshape(x, &full);
        self.broadcast(x, shape)
    }

    /// Broadcasts two values to their common shape.
    pub fn align(&mut self, a: NodeId, b: NodeId) -> (NodeId, NodeId) {
        let (sa, sb) = (self.shape(a), self.shape(b));
        match common_shape(&sa, &sb) {
            Some(shape) => (self.broadcast_to(a, &shape), self.broadcast_to(b, &shape)),
            None => {
                self.fail(format!("{} and {} do not broadcast", self.graph.ty(a), self.graph.ty(b)));
                (a, a)
            }
        }
    }

    /// Same elements, another shape.
    pub fn reshape(&mut self, x: NodeId, shape: &[usize]) -> NodeId {
        identities::reshape(self, x, shape).unwrap_or_else(|| self.emit(Reshape { shape: shape.to_vec() }, &[x]))
    }

    /// Dimension `d` of the result is dimension `permutation[d]` of `x`.
    pub fn transpose(&mut self, x: NodeId, permutation: &[usize]) -> NodeId {
        identities::transpose(self, x, permutation)
            .unwrap_or_else(|| self.emit(Transpose { permutation: permutation.to_vec() }, &[x]))
    }

    /// Exchanges the last two dimensions.
    pub fn matrix_transpose(&mut self, x: NodeId) -> NodeId {
        let r = self.graph.ty(x).rank();
        let mut p: Vec<usize> = (0..r).collect();
        if r >= 2 {
            p.swap(r - 2, r - 1);
        }
        self.transpose(x, &p)
    }

    /// A strided part.
    pub fn slice(&mut self, x: NodeId, slice: Slice) -> NodeId {
        identities::slice(self, x, &slice).unwrap_or_else(|| self.emit(slice, &[x]))
    }

    /// Zeros around and between.
    pub fn pad(&mut self, x: NodeId, pad: Pad) -> NodeId {
        identities::pad(self, x, &pad).unwrap_or_else(|| self.emit(pad, &[x]))
    }

    /// One after the other along `axis`.
    pub fn concat(&mut self, parts: &[NodeId], axis: usize) -> NodeId {
        identities::concat(self, parts, axis).unwrap_or_else(|| self.emit(Concat { axis }, parts))
    }

    /// Matrix product over the last two dimensions.
    pub fn matmul(&mut self, a: NodeId, b: NodeId) -> NodeId {
        products::matmul(self, a, b).unwrap_or_else(|| self.emit(MatMul, &[a, b]))
    }

    /// Convolution of `x` by `w`.
    pub fn conv(&mut self, x: NodeId, w: NodeId, shape: &ConvShape) -> NodeId {
        self.emit(Conv(shape.clone()), &[x, w])
    }

    /// Its gradient with respect to x.
    pub fn conv_input_grad(&mut self, w: NodeId, dy: NodeId, shape: &ConvShape) -> NodeId {
        self.emit(ConvInputGrad(shape.clone()), &[w, dy])
    }

    /// Its gradient with respect to w.
    pub fn conv_weight_grad(&mut self, x: NodeId, dy: NodeId, shape: &ConvShape) -> NodeId {
        self.emit(ConvWeightGrad(shape.clone()), &[x, dy])
    }

    /// Maximum pooling: `select(x, max_index(x))`.
    pub fn max_pool(&mut self, x: NodeId, g: &WindowGeometry) -> NodeId {
        let index = self.emit(WindowMaxIndex(g.clone()), &[x]);
        self.window_select(x, index, g)
    }

    /// The element of each window at a position.
    pub fn window_select(&mut self, x: NodeId, index: NodeId, g: &WindowGeometry) -> NodeId {
        self.emit(WindowSelect(g.clone()), &[x, index])
    }

    /// Its gradient with respect to x.
    pub fn window_unselect(&mut self, dy: NodeId, index: NodeId, g: &WindowGeometry) -> NodeId {
        self.emit(WindowUnselect(g.clone()), &[dy, index])
    }

    /// Sum of each window.
    pub fn window_sum(&mut self, x: NodeId, g: &WindowGeometry) -> NodeId {
        self.emit(WindowSum(g.clone()), &[x])
    }

    /// Its gradient.
    pub fn window_spread(&mut self, dy: NodeId, g: &WindowGeometry) -> NodeId {
        self.emit(WindowSpread(g.clone()), &[dy])
    }

    /// Rows of a table.
    pub fn gather(&mut self, table: NodeId, index: NodeId) -> NodeId {
        self.emit(Gather, &[table, index])
    }

    /// Its gradient with respect to the table.
    pub fn scatter_add(&mut self, rows: NodeId, index: NodeId, table_rows: usize) -> NodeId {
        self.emit(ScatterAdd { rows: table_rows }, &[rows, index])
    }

    /// The value without its gradient.
    pub fn detach(&mut self, x: NodeId) -> NodeId {
        if self.graph.node(x).op.splat().is_some() { x } else { self.emit(Detach, &[x]) }
    }

    /// One value in training, another in inference.
    pub fn mode_select(&mut self, train: NodeId, eval: NodeId) -> NodeId {
        if train == eval { train } else { self.emit(ModeSelect, &[train, eval]) }
    }
}

/// The shape two shapes broadcast to, aligned at the last dimension.
pub fn common_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let n = a.len().max(b.len());
    let at = |s: &[usize], d: usize| if d + s.len() < n { 1 } else { s[d + s.len() - n] };
    (0..n)
        .map(|d| match (at(a, d), at(b, d)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}
