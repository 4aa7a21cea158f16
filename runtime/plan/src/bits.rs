//! Flags stored as bits, an eighth of the memory of bytes: which kernels may write and read them.
//!
//! Bit `i % 8` of byte `i / 8` is element `i` in memory order. Several elements share a byte, so they have to be
//! written together: on a CPU eight neighbours by one thread, on a GPU the 32 of a warp's threads or the eight of one
//! thread.

use crate::kernel::KernelOp;
use crate::operand::Role;
use crate::region::Region;
use crate::view::View;

/// Neighbours that are written together.
pub fn together(gpu: bool) -> usize {
    if gpu { 32 } else { 8 }
}

/// Whether a kernel can store flags as bits there: work on elements or a reduction, which is cut into parts along its
/// innermost dimension nowhere but at multiples of what is written together.
pub fn may_write(run: &KernelOp, view: &View, gpu: bool) -> bool {
    let group = together(gpu);
    let (KernelOp::Map(r) | KernelOp::Reduce(r)) = run else { return false };
    let whole = r.stores.iter().any(|s| s.view == *view) && r.space.last().is_some_and(|e| e.is_multiple_of(group));
    if !whole || view.strides.last() != Some(&1) || !in_steps_of(group, view, r) {
        return false;
    }
    match run {
        KernelOp::Map(_) => !gpu || views(r).all(|v| matches!(v.strides.last(), Some(0 | 1)) && in_steps_of(8, v, r)),
        _ => r.reduce.iter().all(|&d| r.space[d] == 1 || view.strides[d] != 0) && parts_are_whole(r, gpu),
    }
}

/// Whether the parts that a reduction is cut into end between groups of neighbours: a CPU cuts the first reduced
/// dimension, a GPU all of them, taken together.
fn parts_are_whole(r: &Region, gpu: bool) -> bool {
    let last = r.space.len() - 1;
    if !gpu || !r.reduce.contains(&last) {
        return r.reduce.first() != Some(&last);
    }
    let count: usize = r.reduce.iter().map(|&d| r.space[d]).product();
    let part = count.div_ceil(r.split.as_ref().map_or(1, |s| s.count).max(1));
    [count, part].iter().all(|n| n.is_multiple_of(together(gpu)))
}

/// Whether a kernel can read bits there: as work on elements.
pub fn may_read(role: Role, view: &View) -> bool {
    matches!(role, Role::Load(_) | Role::Made) && view.offset.is_multiple_of(8)
}

/// Whether a view that steps along the innermost dimension begins a row at multiples of `group` only.
fn in_steps_of(group: usize, v: &View, r: &Region) -> bool {
    let outer = v.strides.iter().zip(r.space.iter()).rev().skip(1);
    v.strides.last() == Some(&0)
        || v.offset.is_multiple_of(group)
            && outer.into_iter().all(|(s, &extent)| extent == 1 || s.is_multiple_of(group))
}

fn views(r: &Region) -> impl Iterator<Item = &View> {
    r.loads.iter().map(|l| &l.view).chain(r.stores.iter().map(|s| &s.view))
}
