//! Layouts: where the elements of every value are, or that they are nowhere.
//!
//! Activations of convolutions lie channels-last, their weights `O, kh, kw, C`; everything else lies row-major unless
//! what it is made from lies otherwise. A view op changes strides where it can, lets neighbours share an element where
//! that describes it (`repeated.rs`), and copies where neither will do.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::ScalarFn;
use slrc_plan::buffer::strides_of;

use crate::fuse::prologues::{self, Prologues, fits};
use crate::fuse::repeated::{Repeated, channels_last, is_image_of, spread_order};
use crate::fuse::scores::{Scores, find};
use crate::ir::graph::{Graph, InputKind, NodeId, RootKind};
use crate::ir::op::{Class, Op};
use crate::ir::ops::map::Map;
use crate::ir::ops::shape::Slice;

/// Who owns the memory of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The node itself: a leaf, a kernel's result, a stored expression.
    Node(NodeId),
    /// A copy made because a view or an operand needs another layout; an index into [`Layouts::copies`].
    Copy(usize),
}

/// Strided elements of an owner's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whose memory.
    pub owner: Owner,
    /// First element.
    pub offset: usize,
    /// Elements to step per unit of each logical dimension.
    pub strides: Vec<usize>,
}

/// What a value is after layout.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// One known number in every element.
    Number(f64),
    /// In memory.
    Memory(Layout),
    /// In memory, one element for several neighbours: kernels that use it copy it, regions read it as it is.
    Repeated(Repeated),
    /// An expression: an elementwise function, or a view of one.
    Expression,
    /// A product that the kernels which use it compute, strip by strip.
    Score,
    /// Not needed by any root.
    Unused,
}

/// A copy to another memory order.
#[derive(Clone, Debug)]
pub struct CopyItem {
    /// The value copied.
    pub of: NodeId,
    /// Its layout.
    pub from: Layout,
    /// Extents of the index space of both sides.
    pub shape: Vec<usize>,
    /// Strides of the dense result.
    pub to: Vec<usize>,
}

/// Layout of every value of a graph.
#[derive(Clone, Debug)]
pub struct Layouts {
    /// By node.
    pub forms: Vec<Form>,
    /// By node: the order in which loops over it should run, outermost first, over all its dimensions.
    pub orders: Vec<Vec<usize>>,
    /// By node: the roots whose value it is, as indices into the graph's.
    pub roots: Vec<Vec<usize>>,
    /// Copies, in the order they were found necessary.
    pub copies: Vec<CopyItem>,
    /// Operands of kernel nodes, in the layout the kernel needs.
    pub operands: BTreeMap<(NodeId, usize), Layout>,
    /// What is computed strip by strip.
    pub scores: Scores,
    /// What products may make as they read it.
    pub(super) prologues: Prologues,
    /// Concatenations in whose memory a value lies, with the operand it is.
    inside: BTreeMap<NodeId, (NodeId, usize)>,
    made: BTreeMap<(NodeId, Vec<usize>), usize>,
    /// Of every extent, the repeats along dimensions of it: each divides the next, so that one split of a dimension
    /// serves all.
    pub(super) repeats: BTreeMap<usize, BTreeSet<usize>>,
}

/// Channels-last order of an image.
pub const CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];

/// Memory order in which a tensor crosses a boundary.
pub fn boundary_order(rank: usize) -> Vec<usize> {
    if rank == 4 { CHANNELS_LAST.to_vec() } else { (0..rank).collect() }
}

/// Memory order of a leaf's buffer.
pub fn leaf_order(g: &Graph, id: NodeId) -> Vec<usize> {
    let n = g.node(id);
    let rank = n.ty.rank();
    let row_major = (0..rank).collect();
    match &n.op {
        Op::Input(i) => match g.inputs[i.index()].kind {
            InputKind::Boundary(_) | InputKind::BoundaryGradient(_) => boundary_order(rank),
            InputKind::Data | InputKind::Labels => row_major,
        },
        Op::Variable(v) => variable_order(g, *v),
        _ => row_major,
    }
}

/// Memory order of a variable: that of the convolution weights it is, or of the variable it is the optimizer state of.
pub fn variable_order(g: &Graph, v: crate::ir::graph::VarId) -> Vec<usize> {
    let variable = &g.variables[v.index()];
    let rank = variable.ty.rank();
    let is_filter = |v| {
        g.variable_node(v).is_some_and(|node| {
            g.users(node).iter().any(|&u| match &g.node(u).op {
                Op::Conv(_) => g.node(u).operands[1] == node,
                Op::ConvInputGrad(_) => g.node(u).operands[0] == node,
                _ => false,
            })
        })
    };
    let parent = variable.name.rsplit_once('.').and_then(|(name, _)| g.variable(name));
    let filter = rank == 4
        && (is_filter(v) || (variable.kind == crate::ir::graph::VarKind::Optimizer && parent.is_some_and(is_filter)));
    if filter { CHANNELS_LAST.to_vec() } else { (0..rank).collect() }
}

/// Dimensions sorted by stride, largest first; dimensions of extent 1 keep their place among their neighbours.
fn order_of(shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.sort_by_key(|&d| std::cmp::Reverse(if shape[d] == 1 { 0 } else { strides[d] }));
    order
}

/// Whether the elements are dense in the given order (offset apart); extents of 1 do not matter.
pub fn is_dense(shape: &[usize], strides: &[usize], order: &[usize]) -> bool {
    let want = strides_of(shape, order);
    (0..shape.len()).all(|d| shape[d] == 1 || strides[d] == want[d])
}

/// Strides of the same elements in another shape, if there are any: runs of dimensions that merge in memory may be
/// split and joined freely.
pub fn reshape_strides(from: &[usize], strides: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    // Runs of (extent, stride) that are one run in memory, extents of 1 left out.
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (&e, &s) in from.iter().zip(strides).filter(|(e, _)| **e != 1) {
        match runs.last_mut() {
            Some((extent, stride)) if *stride == s * e => {
                *extent *= e;
                *stride = s;
            }
            _ => runs.push((e, s)),
        }
    }
    let mut out = vec![0; to.len()];
    let mut runs = runs.into_iter();
    let mut left = 1;
    let mut run_stride = 0;
    for (d, &e) in to.iter().enumerate() {
        if e == 1 {
            continue;
        }
        if left == 1 {
            (left, run_stride) = runs.next()?;
        }
        if !left.is_multiple_of(e) {
            return None;
        }
        left /= e;
        out[d] = run_stride * left;
    }
    (left == 1 && runs.next().is_none()).then_some(out)
}

/// Whether a reshape only adds and removes extents of 1.
pub fn only_units(from: &[usize], to: &[usize]) -> bool {
    from.iter().filter(|&&e| e != 1).eq(to.iter().filter(|&&e| e != 1))
}

/// Marks values that must be in memory: operands of kernels (through views) and of views that expressions cannot see
/// through.
pub(crate) fn must_be_stored(g: &Graph, needed: &[bool], scores: &Scores, prologues: &Prologues) -> Vec<bool> {
    let mut hard = vec![false; g.len()];
    for r in &g.roots {
        hard[r.value.index()] = true;
    }
    g.ids().filter(|&id| prologues.adds_up(id)).for_each(|id| hard[id.index()] = true);
    for id in g.ids().rev().filter(|id| needed[id.index()]) {
        let n = g.node(id);
        for (slot, &o) in n.operands.iter().enumerate() {
            let through = match &n.op {
                // A conversion is cheaper than memory; anything else is computed before it repeats.
                Op::Broadcast(_) if is_conversion(g, o) => hard[id.index()],
                Op::Broadcast(_) => true,
                Op::Transpose(_) => hard[id.index()],
                Op::Reshape(_) => hard[id.index()] || !(prologues.sees(id) || only_units(g.shape(o), &n.ty.shape)),
                Op::Slice(_) | Op::Keep(_) => true,
                op => {
                    let inside = scores.consumes(id, slot) || prologues.may_make(id, slot);
                    op.rule().class() == Class::Kernel && !inside
                }
            };
            hard[o.index()] |= through;
        }
    }
    hard
}

/// Whether a node only converts a leaf to numbers.
fn is_conversion(g: &Graph, id: NodeId) -> bool {
    let n = g.node(id);
    matches!(n.op, Op::Map(Map(ScalarFn::Copy))) && is_leaf_view(g, n.operands[0])
}

fn is_leaf_view(g: &Graph, id: NodeId) -> bool {
    let n = g.node(id);
    match n.op.rule().class() {
        Class::Leaf => true,
        Class::View => is_leaf_view(g, n.operands[0]),
        _ => false,
    }
}

/// Gives every needed value a form. Products make operands as they read them, of as many tensors as `made_of` says.
pub fn layout(g: &Graph, made_of: usize) -> Layouts {
    let needed = g.needed(g.roots.iter().map(|r| r.value));
    let scores = find(g, &needed);
    let prologues = prologues::find(g, &needed, &scores, made_of);
    let hard = must_be_stored(g, &needed, &scores, &prologues);
    let mut l = Layouts {
        forms: vec![Form::Unused; g.len()],
        orders: vec![Vec::new(); g.len()],
        roots: vec![Vec::new(); g.len()],
        copies: Vec::new(),
        operands: BTreeMap::new(),
        scores,
        prologues,
        inside: BTreeMap::new(),
        made: BTreeMap::new(),
        repeats: BTreeMap::new(),
    };
    g.roots.iter().enumerate().for_each(|(i, r)| l.roots[r.value.index()].push(i));
    let mut weight = vec![0usize; g.len()];
    let mut owners = Owners { users: g.all_users(&needed), of: vec![Vec::new(); g.len()] };
    for id in g.ids().filter(|id| needed[id.index()]) {
        let made = l.prologues.holds(id) && !hard[id.index()];
        let hard = hard[id.index()] || owners.are_too_many(g, &l, id) || (made && !fits(g, &l, &l.prologues, id));
        let (form, order, w) = l.place(g, id, hard, &weight);
        owners.set(id, &form);
        l.forms[id.index()] = form;
        l.orders[id.index()] = order;
        weight[id.index()] = w;
    }
    crate::fuse::inside::place(g, &mut l);
    l
}

/// An expression of several uses that reads the memory of more than so many values is stored.
const MANY_OWNERS: usize = 128;

/// Whose memory expressions read. What a residual network adds up from its first block to its last would otherwise be
/// one expression of all of them in every block.
struct Owners {
    users: Vec<Vec<NodeId>>,
    /// By node, ascending; of more than [`MANY_OWNERS`] not all.
    of: Vec<Vec<Owner>>,
}

impl Owners {
    /// Whether an expression that several nodes use is of too many.
    fn are_too_many(&mut self, g: &Graph, l: &Layouts, id: NodeId) -> bool {
        let n = g.node(id);
        let mut all: Vec<Owner> = n.operands.iter().flat_map(|o| &self.of[o.index()]).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(MANY_OWNERS + 1);
        let pointwise = n.op.rule().class() == Class::Pointwise && !l.scores.holds(id);
        let too_many = pointwise && all.len() > MANY_OWNERS && self.users[id.index()].len() > 1;
        self.of[id.index()] = all;
        too_many
    }

    fn set(&mut self, id: NodeId, form: &Form) {
        match form {
            Form::Memory(layout) | Form::Repeated(Repeated { layout, .. }) => self.of[id.index()] = vec![layout.owner],
            Form::Number(_) | Form::Score | Form::Unused => self.of[id.index()].clear(),
            Form::Expression => {}
        }
    }
}

impl Layouts {
    /// The layout of a value in memory, every element for itself.
    pub fn memory(&self, id: NodeId) -> Option<&Layout> {
        match &self.forms[id.index()] {
            Form::Memory(l) => Some(l),
            _ => None,
        }
    }

    /// The order that what becomes of a root's value requires.
    pub fn required_order(&self, g: &Graph, id: NodeId) -> Option<Vec<usize>> {
        let rank = g.ty(id).rank();
        let first = *self.roots[id.index()].first()?;
        Some(match &g.roots[first].kind {
            RootKind::Output(_) | RootKind::Boundary(_) | RootKind::OutputGradient(_) => boundary_order(rank),
            RootKind::Update(v) => variable_order(g, *v),
            RootKind::Report(_) => (0..rank).collect(),
        })
    }

    /// Whether any root needs a value.
    pub(super) fn is_needed(&self, id: NodeId) -> bool {
        self.forms[id.index()] != Form::Unused
    }

    /// Lets a value lie in the memory of the concatenation whose operand `slot` it is.
    pub(super) fn put_inside(&mut self, id: NodeId, whole: NodeId, slot: usize, layout: Layout) {
        self.forms[id.index()] = Form::Memory(layout);
        self.inside.insert(id, (whole, slot));
    }

    /// The concatenation in whose memory a value lies.
    pub fn whole(&self, id: NodeId) -> Option<NodeId> {
        self.inside.get(&id).map(|(whole, _)| *whole)
    }

    /// Whether operand `slot` of a concatenation is already in its place.
    pub fn is_in_place(&self, whole: NodeId, slot: usize) -> bool {
        self.inside.values().any(|at| *at == (whole, slot))
    }

    /// Stores an expression after all: `id` becomes a value of its own in memory.
    pub fn store(&mut self, g: &Graph, id: NodeId) {
        let strides = strides_of(g.shape(id), &self.orders[id.index()]);
        self.forms[id.index()] = Form::Memory(Layout { owner: Owner::Node(id), offset: 0, strides });
    }

    /// The value in dense memory of the given order: as it is, or copied.
    pub fn dense(&mut self, g: &Graph, id: NodeId, order: &[usize]) -> Layout {
        let shape = g.shape(id).to_vec();
        let from = self.strided(g, id).expect("invariant: values that kernels use are stored");
        if is_dense(&shape, &from.strides, order) {
            return from;
        }
        self.copy(id, from, shape, order)
    }

    /// The value in memory, every element for itself: as it is, or copied.
    fn strided(&mut self, g: &Graph, id: NodeId) -> Option<Layout> {
        match &self.forms[id.index()] {
            Form::Memory(l) => Some(l.clone()),
            Form::Repeated(r) => {
                let (base, from) = r.apart.clone();
                Some(self.joined(id, base, from, g.shape(id)).0)
            }
            Form::Number(_) | Form::Expression | Form::Score | Form::Unused => None,
        }
    }

    /// What is in memory as `from` copied so that it can be seen as `to`; and in which order it then lies.
    fn joined(&mut self, of: NodeId, base: Layout, from: Vec<usize>, to: &[usize]) -> (Layout, Vec<usize>) {
        // Row-major memory can be reshaped at will; where the result is an image made from one with the same channels,
        // channels-last memory can too.
        let (mut copy_order, mut order): (Vec<usize>, Vec<usize>) =
            ((0..from.len()).collect(), (0..to.len()).collect());
        if is_image_of(&from, to) {
            copy_order = channels_last(from.len());
            order = CHANNELS_LAST.to_vec();
        }
        let copied = self.copy(of, base, from, &copy_order);
        (Layout { strides: strides_of(to, &order), ..copied }, order)
    }

    pub(super) fn copy(&mut self, of: NodeId, from: Layout, shape: Vec<usize>, order: &[usize]) -> Layout {
        let to = strides_of(&shape, order);
        let key = (of, [&shape[..], order].concat());
        let next = self.copies.len();
        let index = *self.made.entry(key).or_insert(next);
        if index == next {
            self.copies.push(CopyItem { of, from, shape, to: to.clone() });
        }
        Layout { owner: Owner::Copy(index), offset: 0, strides: to }
    }

    /// Form, loop order, and how many elements of memory the loop order stands on.
    fn place(&mut self, g: &Graph, id: NodeId, hard: bool, weight: &[usize]) -> (Form, Vec<usize>, usize) {
        let n = g.node(id);
        let shape = &n.ty.shape;
        let rank = shape.len();
        let own = |order: Vec<usize>| {
            let strides = strides_of(shape, &order);
            (Form::Memory(Layout { owner: Owner::Node(id), offset: 0, strides }), order, n.ty.count())
        };
        if let Some(v) = n.op.splat().filter(|_| !hard) {
            return (Form::Number(v), (0..rank).collect(), 0);
        }
        match n.op.rule().class() {
            Class::Leaf => own(leaf_order(g, id)),
            Class::View => self.place_view(g, id, hard, weight),
            Class::Pointwise => {
                let (order, w) = self.widest(&n.operands, weight, rank);
                let order = self.required_order(g, id).or_else(|| spread_order(g, id)).unwrap_or(order);
                if hard { own(order) } else { (Form::Expression, order, w) }
            }
            Class::Reduction => own(self.orders[n.operands[0].index()].clone()),
            Class::Kernel => {
                self.prepare_operands(g, id);
                if self.scores.holds(id) {
                    return (Form::Score, (0..rank).collect(), n.ty.count());
                }
                own(self.kernel_order(g, id, weight))
            }
            Class::Composite => unreachable!("invariant: composites are expanded before fusion"),
        }
    }

    /// Loop order of the operand with the most elements in memory.
    fn widest(&self, operands: &[NodeId], weight: &[usize], rank: usize) -> (Vec<usize>, usize) {
        let best = operands.iter().copied().reduce(|a, b| if weight[b.index()] > weight[a.index()] { b } else { a });
        match best {
            Some(o) if weight[o.index()] > 0 => (self.orders[o.index()].clone(), weight[o.index()]),
            _ => ((0..rank).collect(), 0),
        }
    }

    fn place_view(&mut self, g: &Graph, id: NodeId, hard: bool, weight: &[usize]) -> (Form, Vec<usize>, usize) {
        let n = g.node(id);
        let o = n.operands[0];
        let (from, to) = (g.shape(o).to_vec(), n.ty.shape.clone());
        let Some(base) = self.strided(g, o) else {
            // A view of an expression is an expression: transposes, unit reshapes and repeated conversions get here.
            let order = match &n.op {
                Op::Transpose(t) => {
                    let place = crate::ir::ops::shape::inverse(&t.permutation);
                    self.orders[o.index()].iter().map(|&d| place[d]).collect()
                }
                Op::Reshape(_) if only_units(&from, &to) => carry_order(&from, &self.orders[o.index()], &to),
                _ => (0..to.len()).collect(),
            };
            debug_assert!(!hard, "{id} must be stored but its operand is an expression");
            return (Form::Expression, order, weight[o.index()]);
        };
        let strides = match &n.op {
            Op::Broadcast(_) => {
                Some((0..to.len()).map(|d| if from[d] == to[d] { base.strides[d] } else { 0 }).collect::<Vec<_>>())
            }
            Op::Keep(_) => Some(base.strides.clone()),
            Op::Transpose(t) => Some(t.permutation.iter().map(|&d| base.strides[d]).collect()),
            Op::Reshape(_) => reshape_strides(&from, &base.strides, &to),
            Op::Slice(Slice { starts, steps, .. }) => {
                let offset = base.offset + starts.iter().zip(&base.strides).map(|(a, s)| a * s).sum::<usize>();
                let strides: Vec<usize> = steps.iter().zip(&base.strides).map(|(a, s)| a * s).collect();
                let order = order_of(&to, &strides);
                return (Form::Memory(Layout { owner: base.owner, offset, strides }), order, n.ty.count());
            }
            op => unreachable!("{op} is not a view"),
        };
        match strides {
            Some(strides) => {
                let order = order_of(&to, &strides);
                let stored = (0..to.len()).filter(|&d| strides[d] != 0).map(|d| to[d]).product();
                let layout = Layout { owner: base.owner, offset: base.offset, strides };
                (Form::Memory(layout), order, stored)
            }
            None => {
                // A root's value must be there, element for element.
                let is_root = !self.roots[id.index()].is_empty();
                if let Some(repeated) = (!is_root).then(|| self.repeated(o, &base, &from, &to)).flatten() {
                    let (order, stored) = (order_of(&to, &repeated.layout.strides), repeated.stored(&to));
                    return (Form::Repeated(repeated), order, stored);
                }
                let (layout, order) = self.joined(o, base, from, &to);
                (Form::Memory(layout), order, n.ty.count())
            }
        }
    }

    /// Memory order of a kernel's result.
    fn kernel_order(&self, g: &Graph, id: NodeId, weight: &[usize]) -> Vec<usize> {
        let n = g.node(id);
        let rank = n.ty.rank();
        match &n.op {
            Op::Conv(_)
            | Op::ConvInputGrad(_)
            | Op::ConvWeightGrad(_)
            | Op::WindowMaxIndex(_)
            | Op::WindowSelect(_)
            | Op::WindowUnselect(_)
            | Op::WindowSum(_)
            | Op::WindowSpread(_) => CHANNELS_LAST.to_vec(),
            Op::Concat(_) | Op::Pad(_) => self
                .required_order(g, id)
                .or_else(|| transposed_order(g, id, rank - 1))
                .unwrap_or_else(|| self.widest(&n.operands, weight, rank).0),
            // The kernel's own order of a product whose second operand are scores is that of its transposition.
            Op::MatMul(_) if self.scores.consumes(id, 1) => {
                transposed_order(g, id, rank - 2).unwrap_or_else(|| (0..rank - 2).chain([rank - 1, rank - 2]).collect())
            }
            Op::MatMul(_) => transposed_order(g, id, rank - 1).unwrap_or_else(|| (0..rank).collect()),
            _ => (0..rank).collect(),
        }
    }

    /// Brings the operands of a kernel into the layout it needs.
    fn prepare_operands(&mut self, g: &Graph, id: NodeId) {
        let n = g.node(id);
        let images: &[usize] = match &n.op {
            Op::Conv(_)
            | Op::ConvInputGrad(_)
            | Op::ConvWeightGrad(_)
            | Op::WindowSelect(_)
            | Op::WindowUnselect(_) => &[0, 1],
            Op::WindowMaxIndex(_) | Op::WindowSum(_) | Op::WindowSpread(_) => &[0],
            _ => &[],
        };
        for (slot, &o) in n.operands.iter().enumerate() {
            if self.scores.consumes(id, slot) || self.is_made(g, id, slot) {
                continue;
            }
            let layout = match &self.forms[o.index()] {
                _ if images.contains(&slot) => self.dense(g, o, &CHANNELS_LAST),
                Form::Memory(_) | Form::Repeated(_) => self.strided(g, o).expect("invariant: both are in memory"),
                form => unreachable!("invariant: operand {o} of kernel {id} is stored, not {form:?}"),
            };
            self.operands.insert((id, slot), layout);
        }
    }
}

/// What is only transposed (heads moved next to their columns, say) is written transposed, if dimension `inner` becomes
/// the last; so is what is kept to be transposed again later.
fn transposed_order(g: &Graph, id: NodeId, inner: usize) -> Option<Vec<usize>> {
    let kept = |u: NodeId| if matches!(g.node(u).op, Op::Keep(_)) { g.users(u) } else { vec![u] };
    let permutation = |u: NodeId| match &g.node(u).op {
        Op::Transpose(t) => Some(&t.permutation[..]),
        _ => None,
    };
    let users: Vec<NodeId> = g.users(id).into_iter().flat_map(kept).collect();
    let first = permutation(*users.first()?)?;
    let fits = first.last() == Some(&inner) && users.iter().all(|&u| permutation(u) == Some(first));
    fits.then(|| first.to_vec())
}

/// The loop order of a reshaped value whose reshape only adds and removes extents of 1.
fn carry_order(from: &[usize], order: &[usize], to: &[usize]) -> Vec<usize> {
    let long = |s: &[usize]| (0..s.len()).filter(|&d| s[d] != 1).collect::<Vec<_>>();
    let (a, b) = (long(from), long(to));
    let mut out: Vec<usize> = order.iter().filter_map(|d| a.iter().position(|x| x == d)).map(|i| b[i]).collect();
    out.extend((0..to.len()).filter(|d| to[*d] == 1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshapes_that_need_no_copy() {
        // Row-major: anything.
        assert_eq!(reshape_strides(&[2, 3, 4], &[12, 4, 1], &[6, 4]), Some(vec![4, 1]));
        assert_eq!(reshape_strides(&[6, 4], &[4, 1], &[2, 3, 1, 4]), Some(vec![12, 4, 0, 1]));
        // Channels-last: height and width merge, channels do not join them.
        assert_eq!(reshape_strides(&[2, 3, 4, 5], &[60, 1, 15, 3], &[2, 3, 20]), Some(vec![60, 1, 3]));
        assert_eq!(reshape_strides(&[2, 3, 4, 5], &[60, 1, 15, 3], &[2, 60]), None);
        assert_eq!(reshape_strides(&[2, 3, 1, 1], &[3, 1, 3, 3], &[2, 3]), Some(vec![3, 1]));
        // Broadcast dimensions merge with each other only.
        assert_eq!(reshape_strides(&[2, 3, 4], &[0, 0, 1], &[6, 4]), Some(vec![0, 1]));
        assert_eq!(reshape_strides(&[2, 3], &[0, 1], &[6]), None);
        assert_eq!(reshape_strides(&[1, 1], &[0, 0], &[]), Some(vec![]));
    }
}
