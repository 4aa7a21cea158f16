//! The kernel families: everything a device must be able to run.
//!
//! Each family has one implementation per device under the same name, reached by an exhaustive match on
//! [`KernelOp`]. Numbers in a kernel are resolved: shapes, strides and workspace are all in the plan.

use serde::{Deserialize, Serialize};

use crate::attention::Attention;
use crate::dims::Dims;
pub use crate::operand::{Access, Operand};
pub use crate::prologue::Prologue;
use crate::region::{Load, Region, Store};
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
    /// Reductions along the innermost dimension, with elementwise work before and after (softmax, LayerNorm).
    Row(Region),
    /// Reductions along any dimensions, with elementwise work before and kept-level work after (BatchNorm statistics).
    Reduce(Region),
    /// Rows of products, worked on and multiplied again without being stored.
    Attention(Attention),
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
    /// Whether it is a matrix product or a convolution that is one: what libraries compute.
    pub fn is_product(&self) -> bool {
        match self {
            KernelOp::Matmul(_) => true,
            KernelOp::Conv(c) => !c.is_depthwise(),
            KernelOp::Map(_)
            | KernelOp::Row(_)
            | KernelOp::Reduce(_)
            | KernelOp::Attention(_)
            | KernelOp::Window(_)
            | KernelOp::Gather(_)
            | KernelOp::ScatterAdd(_)
            | KernelOp::Copy(_)
            | KernelOp::Fill(_)
            | KernelOp::Random(_) => false,
        }
    }

    /// The result of a family that may have an epilogue.
    pub fn product(&self) -> Option<Product<'_>> {
        match self {
            KernelOp::Matmul(m) => Some(m.product()),
            KernelOp::Conv(c) => Some(c.product()),
            _ => None,
        }
    }

    /// The family's name, as in the plan text.
    pub fn family(&self) -> &'static str {
        match self {
            KernelOp::Map(_) => "map",
            KernelOp::Row(_) => "row",
            KernelOp::Reduce(_) => "reduce",
            KernelOp::Attention(_) => "attention",
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// What becomes of elements of `a` as they are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a_prologue: Option<Prologue>,
    /// The same of `b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b_prologue: Option<Prologue>,
    /// Fixed split of `k`: partial products of this many ranges of `k` are summed in order. One means no split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<MatmulSplit>,
    /// Elementwise work on `c`; see [`Product`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epilogue: Option<Region>,
    /// Sums along the columns of `b` as it is read, over `k`, `n`, and work on them: the gradient of a bias where the
    /// product is that of the weights. Of a single product whose `b` lies densely and is not made; split as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b_sums: Option<Region>,
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

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvAlgorithm {
    /// Every product of a weight and a number it meets, summed.
    #[default]
    Direct,
    /// Winograd's F(2x2, 3x3): tiles of two by two results by 16 products of transformed numbers instead of 36. Where
    /// [`Conv::fits_winograd`] says so.
    Winograd,
}

impl ConvAlgorithm {
    fn is_direct(&self) -> bool {
        *self == ConvAlgorithm::Direct
    }
}

/// What the channels of a convolution by Winograd's algorithm are a multiple of.
pub const WINOGRAD_CHANNELS: usize = 16;
/// Transformed weights come in panels of as many channels at most.
const WINOGRAD_PANEL: usize = 32;
/// Products of a transformed tile.
const WINOGRAD_PRODUCTS: usize = 16;

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

/// A convolution (as in neural networks: cross-correlation). Activations lie `N, H, W, C`; weights `O, kh, kw, C /
/// groups`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// Which product.
    pub direction: ConvDirection,
    /// How it is computed.
    #[serde(default, skip_serializing_if = "ConvAlgorithm::is_direct")]
    pub algorithm: ConvAlgorithm,
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
    /// What becomes of elements of `x` as they are read; one group only, as of `y`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_prologue: Option<Prologue>,
    /// The same of `y`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y_prologue: Option<Prologue>,
    /// Weight gradient only: fixed groups of samples whose partial gradients are summed in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<MatmulSplit>,
    /// f32 workspace for the weights in another order or transformed, of [`Conv::workspace`] elements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<View>,
    /// Elementwise work on the result; one group only. See [`Product`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epilogue: Option<Region>,
}

/// The result of a matrix product or a convolution: `rows x cols` elements.
///
/// An epilogue is a map over the same elements in the same order; its last dimension is a row. An element of it runs
/// once that element of the product is known. It reads the product where it lies, densely, and may overwrite it there;
/// where it does not, the product stays.
///
/// Or it reduces all dimensions but the last, for results a column, too: then its split says into how many groups of
/// rows, at most, the product is cut. A device reduces each group where it computes the rows, in an order that the
/// extents alone decide, and combines the groups in order.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Where the product lies.
    pub to: &'a View,
    /// Elements of a row.
    pub cols: usize,
    /// Number of rows, those of all batches.
    pub rows: usize,
    /// Work on it.
    pub epilogue: Option<&'a Region>,
}

/// Rows of a tile of a product on a GPU, at least; groups of such tiles whose sums are added first.
pub const TILE_ROWS: usize = 64;
/// Tiles of a column whose partial results are combined before those of other tiles are.
pub const TILE_GROUP: usize = 64;

impl Matmul {
    /// Its result.
    pub fn product(&self) -> Product<'_> {
        let rows = self.batch.iter().product::<usize>() * self.m;
        Product { to: &self.c, cols: self.n, rows, epilogue: self.epilogue.as_ref() }
    }

    /// What the sums along the columns of `b` read besides it.
    pub fn other_sum_loads(&self) -> impl Iterator<Item = &Load> {
        self.b_sums.iter().flat_map(|r| &r.loads).filter(|l| l.view != self.b)
    }
}

impl Conv {
    /// Whether every filter sees one channel and every channel has one filter: no matrix product, then.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.in_channels && self.groups == self.out_channels
    }

    /// Whether Winograd's algorithm can compute it.
    pub fn fits_winograd(&self) -> bool {
        let g = &self.geometry;
        let channels = [self.in_channels, self.out_channels];
        g.kernel[..] == [3, 3]
            && g.strides[..] == [1, 1]
            && g.dilations[..] == [1, 1]
            && g.pads.iter().all(|&n| n <= 2)
            && self.groups == 1
            && channels.iter().all(|n| n.is_multiple_of(WINOGRAD_CHANNELS))
    }

    /// f32 elements of workspace for its weights, where it needs one: the transformed weights of Winograd's algorithm,
    /// in whole panels; of a direct input gradient the weights themselves, in another order, unless the kernel is 1x1
    /// with stride 1 or depthwise.
    pub fn workspace(&self) -> Option<usize> {
        let (from, to) = match self.direction {
            ConvDirection::Forward => (self.in_channels, self.out_channels),
            ConvDirection::InputGrad => (self.out_channels, self.in_channels),
            ConvDirection::WeightGrad => return None,
        };
        match self.algorithm {
            ConvAlgorithm::Winograd => Some(WINOGRAD_PRODUCTS * from * to.next_multiple_of(WINOGRAD_PANEL)),
            ConvAlgorithm::Direct => {
                let packs =
                    self.direction == ConvDirection::InputGrad && !self.geometry.is_pointwise() && !self.is_depthwise();
                packs.then(|| from / self.groups.max(1) * to * self.geometry.kernel.iter().product::<usize>())
            }
        }
    }

    /// Its result: a row a pixel, of all channels; of a weight gradient, a row an output channel.
    pub fn product(&self) -> Product<'_> {
        let g = &self.geometry;
        let (to, rows, cols) = match self.direction {
            ConvDirection::Forward => (&self.y, self.batch * g.output[0] * g.output[1], self.out_channels),
            ConvDirection::InputGrad => (&self.x, self.batch * g.input[0] * g.input[1], self.in_channels),
            ConvDirection::WeightGrad => {
                let weights = g.kernel[0] * g.kernel[1] * self.in_channels / self.groups.max(1);
                (&self.w, self.out_channels, weights)
            }
        };
        Product { to, cols, rows, epilogue: self.epilogue.as_ref() }
    }
}

impl<'a> Product<'a> {
    /// What the epilogue reads besides the product.
    pub fn other_loads(&self) -> impl Iterator<Item = &'a Load> + use<'a> {
        let to = self.to;
        self.epilogue.into_iter().flat_map(|r| &r.loads).filter(move |l| l.view.buffer != to.buffer)
    }

    /// What it writes besides.
    pub fn other_stores(&self) -> impl Iterator<Item = &'a Store> + use<'a> {
        let to = self.to;
        self.epilogue.into_iter().flat_map(|r| &r.stores).filter(move |s| s.view.buffer != to.buffer)
    }
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

/// `rows[i, :] = table[index[i], :]`, or, for scatter-add, `table = 0; table[index[i], :] += rows[i, :]` in order of
/// `i`.
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
