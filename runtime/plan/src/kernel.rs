//! The kernel families: everything a device must be able to run.
//!
//! Each family has one implementation per device under the same name, reached by an exhaustive match on
//! [`KernelOp`]. Numbers in a kernel are resolved: shapes, strides and workspace are all in the plan.

use serde::{Deserialize, Serialize};

use crate::dims::Dims;
use crate::region::Region;
use crate::view::View;

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Unique in its program.
    pub id: String,
    /// Which part of the step it belongs to.
    pub phase: Phase,
    /// ONNX nodes whose work it does (or whose gradient it computes), in order; empty for work slrc added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Floating-point operations, counting a multiply-add as two.
    pub flops: u64,
    /// What it does.
    pub run: KernelOp,
}

/// Part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The module's own network.
    Forward,
    /// Its local head.
    Head,
    /// Loss and reported numbers.
    Loss,
    /// Gradients.
    Backward,
    /// Reconciliation with the previous module's gradient.
    Reconcile,
    /// Optimizer and running statistics.
    Update,
}

impl Phase {
    /// The name used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Head => "head",
            Phase::Loss => "loss",
            Phase::Backward => "backward",
            Phase::Reconcile => "reconcile",
            Phase::Update => "update",
        }
    }

    /// Every phase in step order.
    pub const ALL: &'static [Phase] =
        &[Phase::Forward, Phase::Head, Phase::Loss, Phase::Backward, Phase::Reconcile, Phase::Update];
}

/// The closed set of kernel families.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "kebab-case")]
pub enum KernelOp {
    /// Elementwise work.
    Map(Region),
    /// Reductions along the innermost dimensions, with elementwise work before and after (softmax, LayerNorm).
    Row(Region),
    /// Reductions along any dimensions, with elementwise work before and kept-level work after (BatchNorm statistics).
    Reduce(Region),
    /// Batched matrix product.
    Matmul(Matmul),
    /// Convolution and its two gradients.
    Conv(Conv),
    /// Pooling windows.
    Window(Window),
    /// Rows of a table by index.
    Gather(Gather),
    /// Adds rows into a table by index.
    ScatterAdd(Gather),
    /// Strided copy.
    Copy(Copy),
    /// Constant fill.
    Fill(Fill),
    /// Uniform random numbers.
    Random(Random),
}

impl KernelOp {
    /// The family's name, as in the plan text.
    pub fn family(&self) -> &'static str {
        match self {
            KernelOp::Map(_) => "map",
            KernelOp::Row(_) => "row",
            KernelOp::Reduce(_) => "reduce",
            KernelOp::Matmul(_) => "matmul",
            KernelOp::Conv(_) => "conv",
            KernelOp::Window(_) => "window",
            KernelOp::Gather(_) => "gather",
            KernelOp::ScatterAdd(_) => "scatter-add",
            KernelOp::Copy(_) => "copy",
            KernelOp::Fill(_) => "fill",
            KernelOp::Random(_) => "random",
        }
    }
}

/// `c[b, i, j] = sum over l of a[b, i, l] * b[b, l, j]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matmul {
    /// Batch extents (`scalar` for a single product).
    pub batch: Dims,
    /// Rows of `a` and `c`.
    pub m: usize,
    /// Columns of `b` and `c`.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// Over batch extents, `m`, `k`.
    pub a: View,
    /// Over batch extents, `k`, `n`.
    pub b: View,
    /// Over batch extents, `m`, `n`.
    pub c: View,
    /// Fixed split of `k`: partial products of this many ranges of `k` are summed in order. One means no split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<MatmulSplit>,
}

/// A fixed split of a product's inner dimension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulSplit {
    /// Number of ranges.
    pub count: usize,
    /// f32 workspace of `count * m * n` elements.
    pub partials: View,
}

/// Which of the three products of a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvDirection {
    /// `y` from `x` and `w`.
    Forward,
    /// `x` (holding its gradient) from `w` and `y` (holding its gradient).
    InputGrad,
    /// `w` (holding its gradient) from `x` and `y` (holding its gradient).
    WeightGrad,
}

/// Geometry shared by convolution and pooling; two spatial dimensions, `height x width`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowGeometry {
    /// Input extents.
    pub input: Dims,
    /// Output extents.
    pub output: Dims,
    /// Kernel extents.
    pub kernel: Dims,
    /// Steps between windows.
    pub strides: Dims,
    /// Rows above and columns left of the input that count as padding. What is needed below and right follows.
    pub pads: Dims,
    /// Steps between elements of a window.
    pub dilations: Dims,
}

impl WindowGeometry {
    /// Whether every window is one element and every element one window.
    pub fn is_pointwise(&self) -> bool {
        self.kernel[..] == [1, 1] && self.strides[..] == [1, 1] && self.pads[..] == [0, 0] && self.input == self.output
    }

    /// Input coordinate along spatial dimension `d` of window `out` at kernel position `tap`; `None` in the padding.
    #[inline]
    pub fn source(&self, d: usize, out: usize, tap: usize) -> Option<usize> {
        let at = out * self.strides.0[d] + tap * self.dilations.0[d];
        at.checked_sub(self.pads.0[d]).filter(|&i| i < self.input.0[d])
    }
}

/// A convolution (as in neural networks: cross-correlation). Activations lie `N, H, W, C`; weights `O, kh, kw, C / groups`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// Which product.
    pub direction: ConvDirection,
    /// Samples.
    pub batch: usize,
    /// Channels of `x`.
    pub in_channels: usize,
    /// Channels of `y`.
    pub out_channels: usize,
    /// Groups; divides both channel counts.
    pub groups: usize,
    /// Spatial extents.
    pub geometry: WindowGeometry,
    /// Over `N, H, W, C`, dense.
    pub x: View,
    /// Over `O, kh, kw, C / groups`, dense.
    pub w: View,
    /// Over `N, H, W, O`, dense.
    pub y: View,
    /// Weight gradient only: fixed groups of samples whose partial gradients are summed in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<MatmulSplit>,
    /// Input gradient only, unless the kernel is 1x1 with stride 1: f32 workspace for the weights in another order, as
    /// many elements as `w`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<View>,
}

/// What a pooling kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowOp {
    /// `small[w] = position of the first largest element of large in window w` (`u8` or `i32`; padding never wins).
    MaxIndex,
    /// `small[w] = large[element of window w at index[w]]`.
    Select,
    /// `large = 0`, then `large[element of window w at index[w]] += small[w]`.
    Unselect,
    /// `small[w] = sum of large in window w`.
    Sum,
    /// `large[i] = sum of small[w] over the windows w that hold i`.
    Spread,
}

/// A pooling kernel over `N, H, W, C` tensors: `large` has the input extents, `small` the output extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// What is computed.
    pub op: WindowOp,
    /// Samples.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Spatial extents.
    pub geometry: WindowGeometry,
    /// The tensor with the input extents, dense.
    pub large: View,
    /// The tensor with the output extents, dense.
    pub small: View,
    /// Window positions, dense, with the output extents; `Select` and `Unselect` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<View>,
}

/// `rows[i, :] = table[index[i], :]`, or, for scatter-add, `table = 0; table[index[i], :] += rows[i, :]` in order of `i`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// Rows of the table.
    pub table_rows: usize,
    /// Number of indices.
    pub count: usize,
    /// Elements of a row.
    pub width: usize,
    /// Over `table_rows, width`.
    pub table: View,
    /// Over `count`; `i32`. An index outside the table stops the run with an error.
    pub index: View,
    /// Over `count, width`.
    pub rows: View,
}

/// `to[i] = from[i]` over `space`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// Extents, outermost first in the memory order of `to`.
    pub space: Dims,
    /// Read.
    pub from: View,
    /// Written; same dtype.
    pub to: View,
}

/// `to[i] = value` over `space`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Extents.
    pub space: Dims,
    /// The constant, converted to the buffer's dtype.
    pub value: f32,
    /// Written.
    pub to: View,
}

/// `to[i] = uniform number in [0, 1)`, a pure function of the run's seed, the step, the stream and `i`
/// (see [`crate::random`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// Which sequence.
    pub stream: u32,
    /// How many numbers.
    pub count: usize,
    /// Over `count`.
    pub to: View,
}

/// How a kernel uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Only written; every element of the index space.
    Write,
}

/// An operand of a kernel: its access, its view and the index space the view is over.
#[derive(Clone, Debug)]
pub struct Operand<'a> {
    /// How it is used.
    pub access: Access,
    /// Which elements.
    pub view: &'a View,
    /// Index space of the view.
    pub space: Vec<usize>,
}

impl KernelOp {
    /// Every operand, reads before writes.
    pub fn operands(&self) -> Vec<Operand<'_>> {
        use Access::{Read, Write};
        fn op<'a>(access: Access, view: &'a View, space: &[usize]) -> Operand<'a> {
            Operand { access, view, space: space.to_vec() }
        }
        match self {
            KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => {
                let mut out: Vec<_> = r.loads.iter().map(|l| op(Read, &l.view, &r.space)).collect();
                if let Some(split) = &r.split {
                    out.push(op(Write, &split.partials, &[split.count, r.reductions(), r.kept_count()]));
                }
                out.extend(r.stores.iter().map(|s| op(Write, &s.view, &r.space)));
                out
            }
            KernelOp::Matmul(m) => {
                let with = |tail: [usize; 2]| [&m.batch[..], &tail].concat();
                let mut out = vec![op(Read, &m.a, &with([m.m, m.k])), op(Read, &m.b, &with([m.k, m.n]))];
                if let Some(s) = &m.split {
                    out.push(op(Write, &s.partials, &[s.count, m.m, m.n]));
                }
                out.push(op(Write, &m.c, &with([m.m, m.n])));
                out
            }
            KernelOp::Conv(c) => {
                let g = &c.geometry;
                let x = [c.batch, g.input[0], g.input[1], c.in_channels];
                let y = [c.batch, g.output[0], g.output[1], c.out_channels];
                let w = [c.out_channels, g.kernel[0], g.kernel[1], c.in_channels / c.groups.max(1)];
                let mut out = match c.direction {
                    ConvDirection::Forward => vec![op(Read, &c.x, &x), op(Read, &c.w, &w), op(Write, &c.y, &y)],
                    ConvDirection::InputGrad => vec![op(Read, &c.w, &w), op(Read, &c.y, &y), op(Write, &c.x, &x)],
                    ConvDirection::WeightGrad => vec![op(Read, &c.x, &x), op(Read, &c.y, &y), op(Write, &c.w, &w)],
                };
                if let Some(s) = &c.split {
                    out.push(op(Write, &s.partials, &[s.count, w.iter().product()]));
                }
                if let Some(p) = &c.packed {
                    out.push(op(Write, p, &[w.iter().product()]));
                }
                out
            }
            KernelOp::Window(w) => {
                let g = &w.geometry;
                let large = [w.batch, g.input[0], g.input[1], w.channels];
                let small = [w.batch, g.output[0], g.output[1], w.channels];
                let mut out = Vec::new();
                if let Some(i) = &w.index {
                    out.push(op(Read, i, &small));
                }
                match w.op {
                    WindowOp::MaxIndex | WindowOp::Select | WindowOp::Sum => {
                        out.push(op(Read, &w.large, &large));
                        out.push(op(Write, &w.small, &small));
                    }
                    WindowOp::Unselect | WindowOp::Spread => {
                        out.push(op(Read, &w.small, &small));
                        out.push(op(Write, &w.large, &large));
                    }
                }
                out
            }
            KernelOp::Gather(g) => vec![
                op(Read, &g.table, &[g.table_rows, g.width]),
                op(Read, &g.index, &[g.count]),
                op(Write, &g.rows, &[g.count, g.width]),
            ],
            KernelOp::ScatterAdd(g) => vec![
                op(Read, &g.index, &[g.count]),
                op(Read, &g.rows, &[g.count, g.width]),
                op(Write, &g.table, &[g.table_rows, g.width]),
            ],
            KernelOp::Copy(c) => vec![op(Read, &c.from, &c.space), op(Write, &c.to, &c.space)],
            KernelOp::Fill(f) => vec![op(Write, &f.to, &f.space)],
            KernelOp::Random(r) => vec![op(Write, &r.to, &[r.count])],
        }
    }

    /// Applies `f` to the buffer id of every operand.
    pub fn rename_buffers(&mut self, f: &mut dyn FnMut(&mut String)) {
        let mut views: Vec<&mut View> = Vec::new();
        match self {
            KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => {
                views.extend(r.loads.iter_mut().map(|l| &mut l.view));
                views.extend(r.stores.iter_mut().map(|s| &mut s.view));
                views.extend(r.split.iter_mut().map(|s| &mut s.partials));
            }
            KernelOp::Matmul(m) => {
                views.extend([&mut m.a, &mut m.b, &mut m.c]);
                views.extend(m.split.iter_mut().map(|s| &mut s.partials));
            }
            KernelOp::Conv(c) => {
                views.extend([&mut c.x, &mut c.w, &mut c.y]);
                views.extend(c.split.iter_mut().map(|s| &mut s.partials));
                views.extend(c.packed.iter_mut());
            }
            KernelOp::Window(w) => {
                views.extend([&mut w.large, &mut w.small]);
                views.extend(w.index.iter_mut());
            }
            KernelOp::Gather(g) | KernelOp::ScatterAdd(g) => views.extend([&mut g.table, &mut g.index, &mut g.rows]),
            KernelOp::Copy(c) => views.extend([&mut c.from, &mut c.to]),
            KernelOp::Fill(c) => views.push(&mut c.to),
            KernelOp::Random(r) => views.push(&mut r.to),
        }
        for v in views {
            f(&mut v.buffer);
        }
    }
}
