//! Prologues: operands of products that are made as they are read.
//!
//! An elementwise value that only products read need not be stored: the product's kernel makes its elements from what
//! they are computed of. BatchNorm's second pass with the activation behind it is one, and so is the second pass of
//! its gradient: the convolutions that follow, and those that weights' gradients take, read what the sums were of. What
//! it costs is the work, once for each time that a kernel reads an element; so it must be little, and of few tensors.
//!
//! [`find`] looks for such values before anything has a place, `fits` decides where the places of what a value is
//! computed of are known.

use std::collections::BTreeSet;

use slrc_plan::buffer::strides_of;
use slrc_plan::{DType, ScalarFn};

use crate::fuse::expression::{Leaf, identity_map, item_space, long_dims, reads, reads_of};
use crate::fuse::layout::{CHANNELS_LAST, Form, Layouts, Owner, reshape_strides};
use crate::fuse::scores::Scores;
use crate::fuse::store::operation_bytes;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::{Class, Op};
use crate::ir::ops::map::Map;

/// Most functions that make an element, and most values that they are of.
const MAX_BODY: usize = 24;
const MAX_LEAVES: usize = 12;
/// Most work, in bytes of traffic that take as long: a few simple functions.
const MAX_WORK: f64 = 5.0;

/// Values that only products read, and where they read them.
#[derive(Clone, Debug, Default)]
pub struct Prologues {
    slots: BTreeSet<(NodeId, usize)>,
    values: BTreeSet<NodeId>,
    views: BTreeSet<NodeId>,
    sums: BTreeSet<NodeId>,
    /// Most tensors of an operand's size that an operand is made of.
    pub(super) tensors: usize,
}

impl Prologues {
    /// Whether operand `slot` of a product may be made as it is read.
    pub(super) fn may_make(&self, id: NodeId, slot: usize) -> bool {
        self.slots.contains(&(id, slot))
    }

    /// Whether only products read a value, which is elementwise.
    pub(super) fn holds(&self, id: NodeId) -> bool {
        self.values.contains(&id)
    }

    /// Whether such a value is of this one, which is of several tensors and reduced, too: a residual sum before
    /// LayerNorm. It is stored rather than added up in every product.
    pub(super) fn adds_up(&self, id: NodeId) -> bool {
        self.sums.contains(&id)
    }

    /// Whether a view of such a value is what products read.
    pub(super) fn sees(&self, id: NodeId) -> bool {
        self.views.contains(&id)
    }
}

/// Whether a kernel can make an operand.
fn takes(g: &Graph, scores: &Scores, id: NodeId, slot: usize) -> bool {
    match &g.node(id).op {
        Op::Conv(c) => c.0.groups == 1 && slot == 0,
        Op::ConvInputGrad(c) => c.0.groups == 1 && slot == 1,
        Op::ConvWeightGrad(c) => c.0.groups == 1,
        Op::MatMul(_) => !scores.holds(id) && !scores.yields(id),
        _ => false,
    }
}

/// Finds elementwise values that only products read, through views that rearrange dimensions at most. `tensors` is of
/// how many tensors of its size an operand may be made; of none, nothing is found.
pub fn find(g: &Graph, needed: &[bool], scores: &Scores, tensors: usize) -> Prologues {
    let mut out = Prologues { tensors, ..Prologues::default() };
    if tensors == 0 {
        return out;
    }
    let mut only_products: Vec<bool> = needed.to_vec();
    g.roots.iter().for_each(|r| only_products[r.value.index()] = false);
    for id in g.ids().rev().filter(|id| needed[id.index()]) {
        let n = g.node(id);
        for (slot, &o) in n.operands.iter().enumerate() {
            let passes = match &n.op {
                Op::Transpose(_) | Op::Reshape(_) => only_products[id.index()],
                _ => takes(g, scores, id, slot),
            };
            only_products[o.index()] &= passes;
        }
    }
    let holds = |id: NodeId| only_products[id.index()] && g.node(id).op.rule().class() == Class::Pointwise;
    out.values = g.ids().filter(|&id| holds(id)).collect();
    out.sums = out.values.iter().flat_map(|&id| sums(g, id)).collect();
    for id in g.ids().filter(|id| needed[id.index()]) {
        if is_view(g, id) && only_products[id.index()] && out.values.contains(&base(g, id)) {
            out.views.insert(id);
        }
        for (slot, &o) in g.node(id).operands.iter().enumerate() {
            if takes(g, scores, id, slot) && only_products[o.index()] && out.values.contains(&base(g, o)) {
                out.slots.insert((id, slot));
            }
        }
    }
    out
}

/// Elementwise values as large as `id` that it is computed from, that are of several tensors and reduced, too.
fn sums(g: &Graph, id: NodeId) -> Vec<NodeId> {
    let large = |x: NodeId| g.ty(x).count() == g.ty(id).count();
    let pointwise = |x: NodeId| g.node(x).op.rule().class() == Class::Pointwise;
    let tensor = |x: NodeId| large(x) && !matches!(g.node(x).op, Op::Broadcast(_) | Op::Splat(_));
    let (mut out, mut seen, mut open) = (Vec::new(), BTreeSet::new(), g.node(id).operands.clone());
    while let Some(x) = open.pop() {
        if !large(x) || !pointwise(x) || !seen.insert(x) {
            continue;
        }
        let operands = &g.node(x).operands;
        let adds = matches!(g.node(x).op, Op::Map(Map(ScalarFn::Add | ScalarFn::Sub)));
        let reduced = || g.users(x).iter().any(|&u| matches!(g.node(u).op, Op::Reduce(_)));
        if adds && reduced() && operands.iter().filter(|&&o| tensor(o)).count() > 1 {
            out.push(x);
        } else {
            open.extend(operands);
        }
    }
    out
}

fn is_view(g: &Graph, id: NodeId) -> bool {
    matches!(g.node(id).op, Op::Transpose(_) | Op::Reshape(_))
}

/// What stands behind views that rearrange dimensions.
pub(super) fn base(g: &Graph, mut id: NodeId) -> NodeId {
    while is_view(g, id) {
        id = g.node(id).operands[0];
    }
    id
}

/// What products read of a value: it or views of it, with the product.
fn ends(g: &Graph, p: &Prologues, id: NodeId) -> Vec<(NodeId, NodeId)> {
    let mut out = Vec::new();
    for u in g.users(id) {
        if p.sees(u) {
            out.extend(ends(g, p, u));
        } else if g.node(u).operands.iter().enumerate().any(|(slot, &o)| o == id && p.may_make(u, slot)) {
            out.push((id, u));
        }
    }
    out
}

/// Whether a value, the places of whose operands are known, is made of little enough, and seen by products in a way
/// that strides describe.
pub(super) fn fits(g: &Graph, l: &Layouts, p: &Prologues, id: NodeId) -> bool {
    let (shape, rank) = (g.shape(id), item_space(g, id).len());
    let (leaves, body) = reads(g, l, &[(id, identity_map(shape))], rank, &|_| false);
    let work: f64 = body.iter().map(|(n, _)| *n).chain([id]).map(|n| operation_bytes(g, n)).sum();
    let tensors = leaves.iter().filter(|x| x.is_full()).count();
    let seen = |(operand, user): &(NodeId, NodeId)| {
        let seen: Option<Vec<Leaf>> = leaves.iter().map(|x| seen(g, id, *operand, x)).collect();
        seen.is_some_and(|s| s.iter().any(|x| l.stands_for(g, *user, *operand, x)))
    };
    (1..=p.tensors).contains(&tensors)
        && leaves.len() <= MAX_LEAVES
        && body.len() < MAX_BODY
        && work <= MAX_WORK
        && leaves.iter().all(|x| x.repeats.iter().all(|&r| r == 1))
        && ends(g, p, id).iter().all(seen)
}

/// A leaf of `base`, over the dimensions of it that are longer than 1, over all dimensions of a view of it; those of
/// extent 1 are not walked.
fn seen(g: &Graph, base: NodeId, view: NodeId, leaf: &Leaf) -> Option<Leaf> {
    let strides = if view == base {
        let shape = g.shape(base);
        let mut all = vec![0; shape.len()];
        long_dims(shape).into_iter().zip(&leaf.strides).for_each(|(d, &s)| all[d] = s);
        all
    } else {
        let n = g.node(view);
        let from = seen(g, base, n.operands[0], leaf)?.strides;
        match &n.op {
            Op::Transpose(t) => t.permutation.iter().map(|&d| from[d]).collect(),
            _ => reshape_strides(g.shape(n.operands[0]), &from, &n.ty.shape)?,
        }
    };
    Some(Leaf { repeats: vec![1; strides.len()], strides, ..leaf.clone() })
}

fn reads_images(g: &Graph, id: NodeId) -> bool {
    matches!(g.node(id).op, Op::Conv(_) | Op::ConvInputGrad(_) | Op::ConvWeightGrad(_))
}

impl Layouts {
    /// Whether operand `slot` of a kernel is made as it is read.
    pub fn is_made(&self, g: &Graph, id: NodeId, slot: usize) -> bool {
        self.prologues.may_make(id, slot) && self.forms[g.node(id).operands[slot].index()] == Form::Expression
    }

    /// The elementwise value behind an operand that is made, and memory that it is made of, over the operand's
    /// dimensions.
    pub fn made_of(&self, g: &Graph, operand: NodeId) -> (NodeId, Vec<Leaf>) {
        let base = base(g, operand);
        let shape = g.shape(base);
        let leaves = reads_of(g, self, &[(base, identity_map(shape))], long_dims(shape).len(), &|_| false).0;
        (base, leaves.iter().map(|x| self.seen(g, operand, x)).collect())
    }

    /// Every value that is computed as a product reads it.
    pub(super) fn made_values(&self, g: &Graph) -> BTreeSet<NodeId> {
        let made = self.prologues.slots.iter().filter(|(id, slot)| self.is_made(g, *id, *slot));
        let bases: BTreeSet<NodeId> = made.map(|(id, slot)| base(g, g.node(*id).operands[*slot])).collect();
        let values = bases.into_iter().flat_map(|id| {
            let shape = g.shape(id);
            reads_of(g, self, &[(id, identity_map(shape))], long_dims(shape).len(), &|_| false).1
        });
        values.map(|(id, _)| id).collect()
    }

    /// Memory that the value behind an operand is made of, over the operand's dimensions.
    pub(crate) fn seen(&self, g: &Graph, operand: NodeId, leaf: &Leaf) -> Leaf {
        seen(g, base(g, operand), operand, leaf).expect("invariant: strides describe what products see")
    }

    /// Everything a kernel reads.
    pub fn owners_of_operands(&self, g: &Graph, id: NodeId) -> BTreeSet<Owner> {
        let mut out = BTreeSet::new();
        for (slot, &o) in g.node(id).operands.iter().enumerate() {
            if self.is_made(g, id, slot) {
                out.extend(self.made_of(g, o).1.into_iter().map(|x| x.owner));
            } else {
                out.insert(self.operands[&(id, slot)].owner);
            }
        }
        out
    }

    /// Whether a leaf's elements lie as those of a product's operand would: an image's channels-last, a matrix's in any
    /// way that has each for itself.
    pub(crate) fn stands_for(&self, g: &Graph, user: NodeId, operand: NodeId, leaf: &Leaf) -> bool {
        let node = match leaf.owner {
            Owner::Node(n) => n,
            Owner::Copy(c) => self.copies[c].of,
        };
        let shape = g.shape(operand);
        let image = reads_images(g, user).then(|| strides_of(shape, &CHANNELS_LAST));
        let walks = |d: usize| image.as_ref().map_or(leaf.strides[d] != 0, |want| leaf.strides[d] == want[d]);
        g.ty(node).dtype == DType::F32 && (0..shape.len()).all(|d| shape[d] == 1 || walks(d))
    }
}
