//! Buffers: inside their spaces, and apart from whatever lives at the same time.

use crate::buffer::{ALIGNMENT, Buffer, Live, Space};
use crate::kernel::{Kernel, KernelOp, Product};
use crate::plan::Program;
use crate::validate::{InvalidPlan, fail};
use crate::view::View;

pub(super) fn check_buffer(b: &Buffer, space_bytes: usize) -> Result<(), InvalidPlan> {
    let place = || format!("buffer {}", b.id);
    // Strides are products of extents, of empty buffers too.
    if b.shape.iter().try_fold(1usize, |n, &e| n.checked_mul(e.max(1))).is_none() {
        return fail(place(), "its extents overflow");
    }
    if b.dtype.checked_bytes(b.shape.iter().product()) != Some(b.bytes) {
        return fail(place(), format!("{} bytes do not hold {}[{}]", b.bytes, b.dtype, b.shape));
    }
    if !b.offset.is_multiple_of(ALIGNMENT) {
        return fail(place(), format!("offset {} is not a multiple of {ALIGNMENT}", b.offset));
    }
    if b.offset.checked_add(b.bytes).is_none_or(|end| end > space_bytes) {
        return fail(place(), format!("ends outside its space of {space_bytes} bytes"));
    }
    if let Some(order) = &b.order {
        let mut sorted = order.0.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..b.shape.len()) {
            return fail(place(), format!("order {order} is not a permutation of its dimensions"));
        }
    }
    Ok(())
}

/// Buffers outside the arena live for the whole run. Those of a program have a live range of their own, boundaries have
/// one in each program that touches them.
pub(super) fn check_disjoint(buffers: &[Buffer]) -> Result<(), InvalidPlan> {
    if let Some(b) = buffers.iter().find(|b| b.live.is_some()) {
        return fail(format!("buffer {}", b.id), "only a program's own buffers have a live range");
    }
    let mut sorted: Vec<&Buffer> = buffers.iter().filter(|b| b.bytes > 0 && b.space != Space::Arena).collect();
    sorted.sort_by_key(|b| (b.space, b.offset));
    for pair in sorted.windows(2) {
        if pair[0].space == pair[1].space && overlap(pair[0], pair[1]) {
            return fail(format!("buffer {}", pair[1].id), format!("overlaps {}", pair[0].id));
        }
    }
    Ok(())
}

fn overlap(a: &Buffer, b: &Buffer) -> bool {
    a.bytes > 0 && b.bytes > 0 && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
}

/// Two buffers may share bytes only if their live ranges do not meet, or meet in one elementwise kernel that reads the
/// old one and writes the new one at the very same places.
pub(super) fn check_arena(p: &Program, handed: &[(&Buffer, Live)], place: &str) -> Result<(), InvalidPlan> {
    let own = p.buffers.iter().map(|b| (b, b.live.expect("checked")));
    let mut sorted: Vec<(&Buffer, Live)> = own.chain(handed.iter().copied()).filter(|(b, _)| b.bytes > 0).collect();
    sorted.sort_by_key(|(b, _)| (b.offset, b.id.as_str()));
    for (i, &(a, la)) in sorted.iter().enumerate() {
        for &(b, lb) in &sorted[i + 1..] {
            if b.offset >= a.offset + a.bytes {
                break;
            }
            if la.last < lb.first || lb.last < la.first {
                continue;
            }
            let (old, new, at) = if la.last == lb.first { (a, b, la.last) } else { (b, a, lb.last) };
            let meet = la.last == lb.first || lb.last == la.first;
            if !(meet && in_place(&p.kernels[at], old, new)) {
                return fail(place, format!("buffers {} and {} are live together and overlap", a.id, b.id));
            }
        }
    }
    Ok(())
}

/// Whether `kernel` may write `new` over `old`: both elementwise, same bytes, same walk.
pub fn in_place(kernel: &Kernel, old: &Buffer, new: &Buffer) -> bool {
    let r = match (&kernel.run, kernel.run.product()) {
        (KernelOp::Map(r) | KernelOp::Row(r), _) => r,
        (run, Some(Product { epilogue: Some(r), to, .. })) => {
            // The product is written before its epilogue reads, and its operands are read while the epilogue writes.
            let made = run.made();
            let made = made.iter().flat_map(|m| &m.by.loads).map(|l| &l.view);
            let factors: Vec<&View> = run.operands().into_iter().take(2).map(|o| o.view).chain(made).collect();
            let reduces = !r.reduce.is_empty();
            if reduces || [old, new].iter().any(|b| b.id == to.buffer) || factors.iter().any(|v| v.buffer == old.id) {
                return false;
            }
            r
        }
        _ => return false,
    };
    let stores: Vec<_> = r.stores.iter().filter(|s| s.view.buffer == new.id).collect();
    let loads: Vec<_> = r.loads.iter().filter(|l| l.view.buffer == old.id).collect();
    let dense = |v: &View| r.space.iter().zip(&v.strides).all(|(&e, &s)| e == 1 || s != 0);
    old.dtype.bits() == new.dtype.bits()
        && old.offset == new.offset
        && old.bytes == new.bytes
        && stores.len() == 1
        && !loads.is_empty()
        && dense(&stores[0].view)
        && loads.iter().all(|l| l.view.offset == stores[0].view.offset && l.view.strides == stores[0].view.strides)
}
