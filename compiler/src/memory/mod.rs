//! Memory: live ranges and exact arena offsets.
//!
//! A buffer is live from the kernel that first writes it to the last that touches it. An elementwise kernel may write
//! its result over an operand that dies there. What shares a place is a block; `pack.rs` finds where blocks lie.

mod pack;

use std::collections::BTreeMap;

use slrc_plan::buffer::{Live, align};
use slrc_plan::kernel::{Access, Kernel};
use slrc_plan::validate::in_place;
use slrc_plan::{Buffer, Dims, Space};

use crate::lower::Draft;
use crate::memory::pack::{Block, pack};

/// A program's arena.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    /// Buffers with offsets and live ranges.
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena.
    pub bytes: usize,
    /// Most bytes live at once; no arena can be smaller.
    pub live_bytes: usize,
}

/// Buffers that share one place, one after the other.
type Members = Vec<usize>;

/// Places every buffer of a draft.
pub fn place(draft: &Draft) -> Arena {
    let mut buffers = with_live_ranges(draft);
    let (members, blocks): (Vec<Members>, Vec<Block>) = share_in_place(&draft.kernels, &buffers).into_iter().unzip();
    let live_bytes = most_live(&blocks, draft.kernels.len());
    let packed = pack(&blocks, live_bytes);
    for (members, offset) in members.into_iter().zip(packed.offsets) {
        for m in members {
            buffers[m].offset = offset;
        }
    }
    Arena { buffers, bytes: packed.end, live_bytes }
}

fn with_live_ranges(draft: &Draft) -> Vec<Buffer> {
    let mut live: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (i, k) in draft.kernels.iter().enumerate() {
        for o in k.run.operands() {
            live.entry(o.view.buffer.as_str()).or_insert((i, i)).1 = i;
        }
    }
    let end = draft.kernels.len().saturating_sub(1);
    draft
        .buffers
        .iter()
        .filter_map(|d| {
            let &(first, last) = live.get(d.id.as_str())?;
            let identity: Vec<usize> = (0..d.shape.len()).collect();
            Some(Buffer {
                id: d.id.clone(),
                space: Space::Arena,
                dtype: d.dtype,
                shape: Dims(d.shape.clone()),
                order: (d.order != identity).then(|| Dims(d.order.clone())),
                offset: 0,
                bytes: d.shape.iter().product::<usize>() * d.dtype.size(),
                live: Some(Live { first, last: if d.keep { end } else { last } }),
            })
        })
        .collect()
}

/// Joins buffers that can follow each other in the same place.
fn share_in_place(kernels: &[Kernel], buffers: &[Buffer]) -> Vec<(Members, Block)> {
    let index: BTreeMap<&str, usize> = buffers.iter().enumerate().map(|(i, b)| (b.id.as_str(), i)).collect();
    let live = |i: usize| buffers[i].live.expect("invariant: arena buffers have live ranges");
    // The block of each buffer, named by its first member.
    let mut follows: Vec<Option<usize>> = vec![None; buffers.len()];
    let mut followed = vec![false; buffers.len()];
    for (i, k) in kernels.iter().enumerate() {
        let operands = k.run.operands();
        for new in operands.iter().filter(|o| o.access == Access::Write) {
            let Some(&n) = index.get(new.view.buffer.as_str()) else { continue };
            if live(n).first != i || follows[n].is_some() {
                continue;
            }
            let old = operands.iter().filter(|o| o.access == Access::Read).find_map(|o| {
                let &a = index.get(o.view.buffer.as_str())?;
                let dies = live(a).last == i && live(a).first < i && !followed[a];
                (dies && in_place(k, &buffers[a], &buffers[n])).then_some(a)
            });
            if let Some(a) = old {
                follows[n] = Some(a);
                followed[a] = true;
            }
        }
    }
    let next: BTreeMap<usize, usize> = follows.iter().enumerate().filter_map(|(n, a)| a.map(|a| (a, n))).collect();
    (0..buffers.len())
        .filter(|&i| follows[i].is_none())
        .map(|start| {
            let mut members = vec![start];
            while let Some(&n) = next.get(members.last().expect("not empty")) {
                members.push(n);
            }
            let last = *members.last().expect("not empty");
            let block = Block { first: live(start).first, last: live(last).last, bytes: align(buffers[start].bytes) };
            (members, block)
        })
        .collect()
}

fn most_live(blocks: &[Block], kernels: usize) -> usize {
    let mut change = vec![0isize; kernels + 1];
    for b in blocks {
        change[b.first] += b.bytes as isize;
        change[b.last + 1] -= b.bytes as isize;
    }
    let mut now = 0;
    change
        .iter()
        .map(|c| {
            now += c;
            now
        })
        .max()
        .unwrap_or(0) as usize
}
