//! Epilogues: elementwise work on the result of a product, done by the product's kernel.
//!
//! A map becomes part of the matrix product or convolution whose result it reads when it walks that result as it lies
//! in memory, and when the product is the last thing it waits for: nothing runs later than it would have, so nothing
//! lives longer. So does a reduction of the result's columns, such as the sums of BatchNorm and a bias's gradient: a
//! tile of the product is reduced while it is at hand.

use std::collections::BTreeMap;

use crate::fuse::items::{Besides, Item, Items};
use crate::fuse::layout::{Layouts, Owner, is_dense};
use crate::fuse::merge::Merger;
use crate::fuse::regions::Region;
use crate::ir::graph::{Graph, NodeId, RootKind};
use crate::ir::op::Op;

/// Gives products their epilogues; such that reduce columns, too, where `columns` says so.
pub fn attach(g: &Graph, l: &Layouts, items: &mut Items, columns: bool) {
    let keys = items.keys(g, l);
    let order = items.topological(|i| keys[i]);
    let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(at, &i)| (i, at)).collect();
    let mut merger = Merger::new(items, &order, g, l);
    for &i in &order {
        let Some(Item::Kernel(id, Besides { epilogue: None, sums: None })) = items.items[i] else { continue };
        let Some(row) = row_of(g, l, id) else { continue };
        let mut next: Vec<usize> = merger.paths.after(i).collect();
        next.sort_by_key(|x| place[x]);
        let fits = |r: &usize| {
            let Some(Item::Region(region)) = &items.items[*r] else { return false };
            let last = items.before[*r].iter().map(|&b| merger.paths.find(b)).all(|b| place[&b] <= place[&i]);
            last && (columns || region.axes.is_empty())
                && merger.may_run_at(i, region)
                && walks(g, l, id, row, region)
                && !overwrites_operand(g, l, id, region)
                && !merger.paths.through_others(i, *r)
        };
        let Some(r) = next.into_iter().find(fits) else { continue };
        if let Some(Item::Region(region)) = items.items[r].take() {
            items.items[i] = Some(Item::Kernel(id, Besides { epilogue: Some(region), sums: None }));
        }
        merger.paths.absorb(i, r);
    }
    items.order(g, l);
}

/// Elements of a row of the result, if the kernel can have an epilogue: its result must be dense in the order in which
/// the kernel computes it.
pub fn row_of(g: &Graph, l: &Layouts, id: NodeId) -> Option<usize> {
    let n = g.node(id);
    let shape = &n.ty.shape;
    let identity: Vec<usize> = (0..shape.len()).collect();
    let images = vec![0, 2, 3, 1];
    let (order, row) = match &n.op {
        Op::MatMul(_) => (identity, *shape.last()?),
        Op::Conv(c) if c.0.groups == 1 => (images, shape[1]),
        Op::ConvInputGrad(c) if c.0.groups == 1 => (images, shape[1]),
        Op::ConvWeightGrad(c) if c.0.groups == 1 => (images, shape[1..].iter().product()),
        _ => return None,
    };
    let layout = l.memory(id)?;
    (layout.owner == Owner::Node(id) && layout.offset == 0 && is_dense(shape, &layout.strides, &order)).then_some(row)
}

/// Whether a map walks a product's result as it lies, and every operand of it row by row.
fn walks(g: &Graph, l: &Layouts, id: NodeId, row: usize, r: &Region) -> bool {
    let extents: Vec<usize> = r.order.iter().map(|&d| r.space[d]).collect();
    if !(r.axes.is_empty() || reduces_columns(g, id, row, r))
        || extents.is_empty()
        || extents.iter().product::<usize>() != g.ty(id).count()
    {
        return false;
    }
    let mut views: Vec<Vec<usize>> = Vec::new();
    // Dimensions that become two.
    let parted: Vec<bool> = r.order.iter().map(|&d| r.leaves.iter().any(|x| x.repeats[d] > 1)).collect();
    if parted.last() == Some(&true) {
        return false;
    }
    let stored: Option<Vec<_>> = r.sinks.iter().map(|s| r.canonical(l, s.node)).collect();
    let Some(stored) = stored else { return false };
    for leaf in r.leaves.iter().chain(&stored) {
        let strides: Vec<usize> = r.order.iter().map(|&d| leaf.strides[d]).collect();
        if leaf.owner == Owner::Node(id) && (leaf.offset != 0 || !is_dense(&extents, &strides, &identity(&extents))) {
            return false;
        }
        views.push(strides);
    }
    // The elements along which every view steps evenly, innermost dimensions first.
    let mut run = *extents.last().expect("not empty");
    for d in (0..extents.len() - 1).rev() {
        if parted[d] || !views.iter().all(|v| v[d] == v[d + 1] * extents[d + 1]) {
            break;
        }
        run *= extents[d];
    }
    run.is_multiple_of(row)
}

/// Whether a region reduces whole columns of a product that is computed tile by tile.
fn reduces_columns(g: &Graph, id: NodeId, row: usize, r: &Region) -> bool {
    let columns = r.order.last().is_some_and(|&d| r.kept() == [d] && r.space[d] == row);
    columns
        && match &g.node(id).op {
            Op::MatMul(_) => g.shape(id).len() == 2,
            Op::Conv(_) => true,
            // Rows of a strided one are computed in another order.
            Op::ConvInputGrad(c) => c.0.geometry.strides[..] == [1, 1],
            _ => false,
        }
}

fn identity(extents: &[usize]) -> Vec<usize> {
    (0..extents.len()).collect()
}

/// Whether the map updates a variable that the product reads.
fn overwrites_operand(g: &Graph, l: &Layouts, id: NodeId, r: &Region) -> bool {
    let read = l.owners_of_operands(g, id);
    let roots = r.sinks.iter().flat_map(|s| &l.roots[s.node.index()]);
    roots.into_iter().any(|&root| match g.roots[root].kind {
        RootKind::Update(v) => g.variable_node(v).is_some_and(|n| read.contains(&Owner::Node(n))),
        _ => false,
    })
}
