//! Sums of a product's operand, made by the product's kernel as it reads it.
//!
//! The gradient of a bias is the sum along the columns of a matrix of which the gradient of the weights is a product.
//! Where the matrix is stored anyway and the product reads it as it lies, one pass over it serves both.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::statement::Combine;

use crate::fuse::expression::Leaf;
use crate::fuse::items::{Besides, Item, Items};
use crate::fuse::layout::{Form, Layouts, Owner, is_dense};
use crate::fuse::merge::Merger;
use crate::fuse::regions::Region;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;
use crate::ir::ops::reduce::Reduce;

/// Makes sums part of the kernels of products that read the same matrix.
pub fn attach(g: &Graph, l: &Layouts, items: &mut Items) {
    let keys = items.keys(g, l);
    let order = items.topological(|i| keys[i]);
    let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(at, &i)| (i, at)).collect();
    // By what they sum.
    let mut sums: BTreeMap<Owner, BTreeSet<usize>> = BTreeMap::new();
    for &i in &order {
        if let Some(Item::Region(r)) = &items.items[i]
            && let Some(owner) = summed(g, l, r)
        {
            sums.entry(owner).or_default().insert(i);
        }
    }
    let mut merger = Merger::new(items, &order, g, l);
    for &i in &order {
        let Some(Item::Kernel(id, Besides { sums: None, .. })) = items.items[i] else { continue };
        let Some((owner, columns)) = matrix(g, l, id) else { continue };
        let fits = |r: &usize| {
            let Some(Item::Region(region)) = &items.items[*r] else { return false };
            let ready = items.before[*r].iter().map(|&b| merger.paths.find(b)).all(|b| place[&b] < place[&i]);
            ready
                && region.order.last().is_some_and(|&d| region.space[d] == columns)
                && merger.may_run_at(i, region)
                && !merger.paths.leads(i, *r)
                && !merger.paths.leads(*r, i)
        };
        let Some(r) = sums.get(&owner).into_iter().flatten().copied().find(fits) else { continue };
        let Some(Item::Region(region)) = items.items[r].take() else { continue };
        if let Some(Item::Kernel(_, besides)) = &mut items.items[i] {
            besides.sums = Some(region);
        }
        merger.paths.absorb(i, r);
    }
    items.order(g, l);
}

/// Whose memory a region sums along the columns of, if it does nothing else with elements.
fn summed(g: &Graph, l: &Layouts, r: &Region) -> Option<Owner> {
    let &last = r.order.last()?;
    if r.axes.is_empty() || r.kept() != [last] {
        return None;
    }
    let mut owner = None;
    for s in &r.sinks {
        if r.axes.iter().any(|&a| s.map.contains(&Some(a))) {
            return None;
        }
        let Op::Reduce(Reduce { combine, .. }) = &g.node(s.node).op else { continue };
        let [leaf] = &s.reads[..] else { return None };
        let stored = matches!(l.forms[g.node(s.node).operands[0].index()], Form::Memory(_));
        if *combine != Combine::Sum || !stored || !is_whole(r, leaf) || *owner.get_or_insert(leaf.owner) != leaf.owner {
            return None;
        }
    }
    let varies = |x: &&Leaf| r.axes.iter().any(|&a| x.strides[a] != 0);
    r.leaves.iter().filter(varies).all(|x| Some(x.owner) == owner && is_whole(r, x)).then_some(owner)?
}

/// Whether a region reads memory as it lies.
fn is_whole(r: &Region, x: &Leaf) -> bool {
    let extents: Vec<usize> = r.order.iter().map(|&d| r.space[d]).collect();
    let strides: Vec<usize> = r.order.iter().map(|&d| x.strides[d]).collect();
    let in_order: Vec<usize> = (0..extents.len()).collect();
    x.offset == 0 && x.repeats.iter().all(|&n| n == 1) && is_dense(&extents, &strides, &in_order)
}

/// The second operand of a single matrix product, if it is read as it lies: whose memory, and its columns.
fn matrix(g: &Graph, l: &Layouts, id: NodeId) -> Option<(Owner, usize)> {
    let Op::MatMul(_) = g.node(id).op else { return None };
    let operand = g.shape(*g.node(id).operands.get(1)?);
    let &[rows, columns] = operand else { return None };
    if rows < 2 || columns < 2 || l.is_made(g, id, 1) {
        return None;
    }
    let at = l.operands.get(&(id, 1))?;
    (at.offset == 0 && is_dense(operand, &at.strides, &[0, 1])).then_some((at.owner, columns))
}
