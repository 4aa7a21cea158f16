//! Kernel nodes, copies and exports.

use slrc_plan::Dims;
use slrc_plan::kernel::{
    Conv, ConvAlgorithm, ConvDirection, Copy, Fill, Gather, KernelOp, Matmul, MatmulSplit, Random, Window,
    WindowGeometry, WindowOp,
};
use slrc_plan::{Prologue, View};

use crate::fuse::{Besides, Layout, Owner, Region};
use crate::ir::graph::NodeId;
use crate::ir::op::Op;
use crate::ir::ops::contract::ConvShape;
use crate::lower::{Convolutions, Lowering};

/// A weight gradient of at most this many elements is computed in groups of samples.
const SPLIT_WEIGHTS: usize = 1 << 17;
/// Most groups.
const MAX_GROUPS: usize = 8;
/// The same for weight gradients by Winograd's algorithm, which are cut by channels as well: 64 by 64 are one piece.
const SPLIT_WINOGRAD: usize = MAX_GROUPS * 64 * 64 * 9;
/// Fewest tiles worth transforming the weights for.
const WINOGRAD_TILES: usize = 64;

/// The algorithm of a convolution.
fn algorithm(c: &Conv, convolutions: Convolutions) -> ConvAlgorithm {
    let g = &c.geometry;
    let results = if c.direction == ConvDirection::InputGrad { &g.input } else { &g.output };
    let tiles = c.batch * results.iter().map(|n| n.div_ceil(2)).product::<usize>();
    // Nine products a result directly, sixteen a tile: tiles that are half empty save nothing.
    let pays = tiles >= WINOGRAD_TILES && 3 * 16 * tiles < 2 * 9 * c.batch * results.iter().product::<usize>();
    match convolutions {
        Convolutions::Fastest if c.fits_winograd() && pays => ConvAlgorithm::Winograd,
        Convolutions::Fastest | Convolutions::Direct | Convolutions::Tiled => ConvAlgorithm::Direct,
    }
}
/// A product with at least this inner extent and at most this many results is split.
const SPLIT_INNER: usize = 1 << 14;
const SPLIT_RESULTS: usize = 1 << 14;

impl Lowering<'_> {
    fn operand(&self, id: NodeId, slot: usize) -> Layout {
        self.l.operands[&(id, slot)].clone()
    }

    /// An operand of a product: where it lies, and how it is made of that where it lies nowhere.
    fn factor(&mut self, id: NodeId, slot: usize) -> (View, Option<Prologue>) {
        if self.l.is_made(self.g, id, slot) {
            let (view, prologue) = self.prologue(id, slot);
            return (view, Some(prologue));
        }
        (self.view(&self.operand(id, slot)), None)
    }

    fn result(&self, id: NodeId) -> Layout {
        self.l.memory(id).expect("invariant: kernels store their result").clone()
    }

    /// A view of a channels-last tensor over `N, H, W, C` (weights: `O, kh, kw, C`).
    fn image(&mut self, layout: &Layout) -> View {
        as_image(self.view(layout))
    }

    /// A kernel node, with the item it belongs to and the work on its result.
    pub(super) fn kernel(&mut self, id: NodeId, item: usize, besides: &Besides) {
        let epilogue = besides.epilogue.as_ref().map(|r| (item, r));
        let n = self.g.node(id).clone();
        match &n.op {
            Op::Conv(c) => self.conv(id, &c.0, ConvDirection::Forward, epilogue),
            Op::ConvInputGrad(c) => self.conv(id, &c.0, ConvDirection::InputGrad, epilogue),
            Op::ConvWeightGrad(c) => self.conv(id, &c.0, ConvDirection::WeightGrad, epilogue),
            Op::MatMul(_) => self.matmul(id, epilogue, besides.sums.as_ref().map(|r| (item, r))),
            Op::WindowMaxIndex(w) => self.window(id, &w.0, WindowOp::MaxIndex),
            Op::WindowSelect(w) => self.window(id, &w.0, WindowOp::Select),
            Op::WindowUnselect(w) => self.window(id, &w.0, WindowOp::Unselect),
            Op::WindowSum(w) => self.window(id, &w.0, WindowOp::Sum),
            Op::WindowSpread(w) => self.window(id, &w.0, WindowOp::Spread),
            Op::Gather(_) | Op::ScatterAdd(_) => self.gather(id),
            Op::Concat(c) => {
                let mut start = 0;
                let to = self.result(id);
                for (slot, &o) in n.operands.iter().enumerate() {
                    let shape = self.g.shape(o).to_vec();
                    let part = Layout { offset: to.offset + start * to.strides[c.axis], ..to.clone() };
                    start += shape[c.axis];
                    if self.l.is_in_place(id, slot) {
                        continue;
                    }
                    let from = self.operand(id, slot);
                    self.copy_between(id, &shape, &from, &part);
                }
            }
            Op::Pad(p) => {
                let to = self.result(id);
                self.fill(id, &n.ty.shape, &to, 0.0);
                let shape = self.g.shape(n.operands[0]).to_vec();
                let offset = to.offset + p.low.iter().zip(&to.strides).map(|(a, s)| a * s).sum::<usize>();
                let strides = p.interior.iter().zip(&to.strides).map(|(i, s)| (i + 1) * s).collect();
                let from = self.operand(id, 0);
                self.copy_between(id, &shape, &from, &Layout { offset, strides, ..to });
            }
            Op::Splat(s) => {
                let to = self.result(id);
                self.fill(id, &n.ty.shape, &to, s.value.0 as f32);
            }
            Op::Random(r) => {
                let buffer = self.buffer(Owner::Node(id));
                let count = n.ty.count();
                let run = KernelOp::Random(Random { stream: r.stream, count, to: View::new(buffer, vec![1]) });
                self.push(&[id], count as u64 * 20, run);
            }
            Op::Input(_)
            | Op::Variable(_)
            | Op::Constant(_)
            | Op::StepScalar(_)
            | Op::Map(_)
            | Op::Reduce(_)
            | Op::LogSumExp(_)
            | Op::Broadcast(_)
            | Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Slice(_)
            | Op::Keep(_)
            | Op::Detach(_)
            | Op::ModeSelect(_)
            | Op::Near(_) => unreachable!("invariant: {} is not a kernel", n.op),
        }
    }

    fn conv(&mut self, id: NodeId, c: &ConvShape, direction: ConvDirection, epilogue: Option<(usize, &Region)>) {
        let ((a, made_a), (b, made_b)) = (self.factor(id, 0), self.factor(id, 1));
        let out = self.result(id);
        let out = self.view(&out);
        let node = self.g.node(id);
        let (sa, sb, so) = (self.g.shape(node.operands[0]), self.g.shape(node.operands[1]), &node.ty.shape);
        let (x_shape, w_shape, y_shape, x, w, y) = match direction {
            ConvDirection::Forward => (sa, sb, &so[..], a, b, out),
            ConvDirection::InputGrad => (&so[..], sa, sb, out, a, b),
            ConvDirection::WeightGrad => (sa, &so[..], sb, a, out, b),
        };
        let (x_prologue, y_prologue) = match direction {
            ConvDirection::Forward => (made_a, None),
            ConvDirection::InputGrad => (None, made_b),
            ConvDirection::WeightGrad => (made_a, made_b),
        };
        let (batch, in_channels, out_channels) = (x_shape[0], x_shape[1], y_shape[1]);
        let weights: usize = w_shape.iter().product();
        let positions: usize = batch * y_shape[2] * y_shape[3];
        let flops = 2 * (positions * weights) as u64;
        let mut run = Conv {
            direction,
            algorithm: ConvAlgorithm::Direct,
            batch,
            in_channels,
            out_channels,
            groups: c.groups,
            geometry: c.geometry.clone(),
            x: as_image(x),
            w: as_image(w),
            y: as_image(y),
            x_prologue: x_prologue.map(of_image),
            y_prologue: y_prologue.map(of_image),
            split: None,
            packed: None,
            epilogue: None,
        };
        run.algorithm = algorithm(&run, self.convolutions);
        let most = match run.algorithm {
            ConvAlgorithm::Direct => SPLIT_WEIGHTS,
            ConvAlgorithm::Winograd => SPLIT_WINOGRAD,
        };
        let groups = MAX_GROUPS.min(batch).min(most / weights.max(1));
        run.split = (direction == ConvDirection::WeightGrad && groups > 1).then(|| MatmulSplit {
            count: groups,
            partials: View::new(self.workspace(id, groups * weights), vec![weights, 1]),
        });
        run.packed = run.workspace().map(|n| View::new(self.workspace(id, n), vec![1]));
        self.push_product(id, flops, KernelOp::Conv(run), epilogue, None);
    }

    fn matmul(&mut self, id: NodeId, epilogue: Option<(usize, &Region)>, sums: Option<(usize, &Region)>) {
        let ((mut a, mut a_prologue), (mut b, mut b_prologue)) = (self.factor(id, 0), self.factor(id, 1));
        let c = self.result(id);
        let mut c = self.view(&c);
        let node = self.g.node(id);
        let (sa, sc) = (self.g.shape(node.operands[0]), &node.ty.shape);
        let rank = sc.len();
        let (m, n, k) = (sc[rank - 2], sc[rank - 1], sa[rank - 1]);
        let batch: Vec<usize> = sc[..rank - 2].to_vec();
        let flops = 2 * (batch.iter().product::<usize>() * m * n * k) as u64;
        let splits = k / (SPLIT_INNER / MAX_GROUPS);
        // Columns are reduced tile by tile.
        let whole = epilogue.is_some_and(|(_, r)| !r.axes.is_empty());
        let split = (!whole && batch.is_empty() && k >= SPLIT_INNER && m * n <= SPLIT_RESULTS).then(|| {
            let count = splits.min(MAX_GROUPS);
            MatmulSplit { count, partials: View::new(self.workspace(id, count * m * n), vec![m * n, n, 1]) }
        });
        let made = a_prologue.iter_mut().chain(&mut b_prologue).flat_map(|p| &mut p.loads).map(|l| &mut l.view);
        let mut views: Vec<&mut View> = [&mut a, &mut b, &mut c].into_iter().chain(made).collect();
        let batch = Dims(collapse_batch(batch, &mut views));
        let b_sums = sums.map(|(item, region)| {
            let mut plan = self.plan_region(item, region);
            if let Some(s) = &split {
                self.cut(&mut plan, region.sinks[0].node, s.count);
            }
            plan
        });
        let flops = flops + b_sums.iter().map(|r| r.space.iter().product::<usize>() as u64).sum::<u64>();
        let run = Matmul { batch, m, n, k, a, b, c, a_prologue, b_prologue, split, epilogue: None, b_sums };
        self.push_product(id, flops, KernelOp::Matmul(run), epilogue, sums.map(|s| s.1));
    }

    fn window(&mut self, id: NodeId, g: &WindowGeometry, op: WindowOp) {
        let node = self.g.node(id).clone();
        let first = self.operand(id, 0);
        let index = (node.operands.len() > 1).then(|| self.operand(id, 1));
        let result = self.result(id);
        let (large, small) = match op {
            WindowOp::MaxIndex | WindowOp::Select | WindowOp::Sum => (first, result),
            WindowOp::Unselect | WindowOp::Spread => (result, first),
        };
        let shape = &node.ty.shape;
        let taps = g.kernel[0] * g.kernel[1];
        let run = Window {
            op,
            batch: shape[0],
            channels: shape[1],
            geometry: g.clone(),
            large: self.image(&large),
            small: self.image(&small),
            index: index.map(|i| self.image(&i)),
        };
        let windows = shape[0] * shape[1] * g.output[0] * g.output[1];
        self.push(&[id], (windows * taps) as u64, KernelOp::Window(run));
    }

    fn gather(&mut self, id: NodeId) {
        let node = self.g.node(id).clone();
        let (first, index, result) = (self.operand(id, 0), self.operand(id, 1), self.result(id));
        let scatter = matches!(node.op, Op::ScatterAdd(_));
        let (table, rows) = if scatter { (&result, &first) } else { (&first, &result) };
        let table_shape = if scatter { node.ty.shape.clone() } else { self.g.shape(node.operands[0]).to_vec() };
        let count = self.g.shape(node.operands[1])[0];
        let run = Gather {
            table_rows: table_shape[0],
            count,
            width: table_shape[1],
            table: self.view(table),
            index: self.view(&index),
            rows: self.view(rows),
        };
        let flops = if scatter { (count * table_shape[1]) as u64 } else { 0 };
        self.push(&[id], flops, if scatter { KernelOp::ScatterAdd(run) } else { KernelOp::Gather(run) });
    }

    pub(super) fn copy(&mut self, index: usize) {
        let c = self.l.copies[index].clone();
        let to = Layout { owner: Owner::Copy(index), offset: 0, strides: c.to };
        self.copy_between(c.of, &c.shape, &c.from, &to);
    }

    /// Copies a root's value to its place.
    pub(super) fn export(&mut self, root: usize) {
        let value = self.g.roots[root].value;
        let shape = self.g.shape(value).to_vec();
        let from = self.l.memory(value).expect("invariant: roots are stored").clone();
        let order = self.l.required_order(self.g, value).unwrap_or_default();
        let from = self.view(&from);
        let strides = slrc_plan::buffer::strides_of(&shape, &order);
        let to = View { buffer: self.root_buffer(root), offset: 0, strides };
        self.copy_views(value, &shape, from, to);
    }

    fn copy_between(&mut self, id: NodeId, shape: &[usize], from: &Layout, to: &Layout) {
        let (from, to) = (self.view(from), self.view(to));
        self.copy_views(id, shape, from, to);
    }

    /// A copy with its dimensions in the target's memory order, neighbours joined.
    fn copy_views(&mut self, id: NodeId, shape: &[usize], from: View, to: View) {
        let (space, mut views) = by_target(shape, vec![to, from]);
        let from = views.pop().expect("two views");
        let to = views.pop().expect("two views");
        self.push(&[id], 0, KernelOp::Copy(Copy { space: Dims(space), from, to }));
    }

    fn fill(&mut self, id: NodeId, shape: &[usize], to: &Layout, value: f32) {
        let to = self.view(to);
        let (space, mut views) = by_target(shape, vec![to]);
        let to = views.pop().expect("one view");
        self.push(&[id], 0, KernelOp::Fill(Fill { space: Dims(space), value, to }));
    }
}

/// A view over `N, C, H, W` as one over `N, H, W, C`.
fn as_image(v: View) -> View {
    let s = &v.strides;
    View { strides: vec![s[0], s[2], s[3], s[1]], ..v }
}

fn of_image(mut p: Prologue) -> Prologue {
    p.loads.iter_mut().for_each(|l| l.view = as_image(l.view.clone()));
    p
}

/// Sorts dimensions by the first view's strides, outermost first, leaves out extents of 1 and joins neighbours.
fn by_target(shape: &[usize], views: Vec<View>) -> (Vec<usize>, Vec<View>) {
    let mut order: Vec<usize> = (0..shape.len()).filter(|&d| shape[d] != 1).collect();
    order.sort_by_key(|&d| std::cmp::Reverse(views[0].strides[d]));
    let mut space: Vec<usize> = order.iter().map(|&d| shape[d]).collect();
    let mut views: Vec<View> =
        views.into_iter().map(|v| View { strides: order.iter().map(|&d| v.strides[d]).collect(), ..v }).collect();
    let mut d = 0;
    while d + 1 < space.len() {
        if views.iter().all(|v| v.strides[d] == v.strides[d + 1] * space[d + 1]) {
            let inner = space.remove(d + 1);
            space[d] *= inner;
            views.iter_mut().for_each(|v| {
                v.strides.remove(d);
            });
        } else {
            d += 1;
        }
    }
    (space, views)
}

/// Joins batch dimensions that every operand walks as one, and drops extents of 1.
pub(super) fn collapse_batch(mut batch: Vec<usize>, views: &mut [&mut View]) -> Vec<usize> {
    let mut d = 0;
    while d < batch.len() {
        let unit = batch[d] == 1;
        let joins = d + 1 < batch.len() && views.iter().all(|v| v.strides[d] == v.strides[d + 1] * batch[d + 1]);
        if unit || joins {
            if joins && !unit {
                batch[d + 1] *= batch[d];
            }
            batch.remove(d);
            views.iter_mut().for_each(|v| {
                v.strides.remove(d);
            });
        } else {
            d += 1;
        }
    }
    batch
}
