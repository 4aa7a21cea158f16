//! Memory: live ranges and exact arena offsets.
//!
//! A buffer is live from the kernel that first writes it to the last that touches it. An elementwise kernel may write
//! its result over an operand that dies there. Blocks are placed one by one, each at the lowest offset that is free for
//! its whole life; several orders are tried and the smallest arena kept.

use std::collections::BTreeMap;

use slrc_plan::buffer::{Live, align};
use slrc_plan::kernel::{Access, Kernel};
use slrc_plan::validate::in_place;
use slrc_plan::{Buffer, Dims, Space};

use crate::lower::Draft;

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
struct Block {
    members: Vec<usize>,
    first: usize,
    last: usize,
    bytes: usize,
}

/// Where every block lies, and the end of the highest.
struct Placement {
    offsets: Vec<usize>,
    end: usize,
}

/// Orders tried from each starting order while the arena is more than 1 % above its lower bound.
const RETRIES: usize = 24;

/// Places every buffer of a draft.
pub fn place(draft: &Draft) -> Arena {
    let mut buffers = with_live_ranges(draft);
    let blocks = share_in_place(&draft.kernels, &buffers);
    let live_bytes = most_live(&blocks, draft.kernels.len());
    let best = best_placement(&blocks, live_bytes);
    for (b, offset) in blocks.iter().zip(best.offsets) {
        for &m in &b.members {
            buffers[m].offset = offset;
        }
    }
    Arena { buffers, bytes: best.end, live_bytes }
}

/// The smallest placement found: largest blocks first, longest-lived first, earliest first; then, from each of these,
/// by taking the block that ended up on top first, again and again.
fn best_placement(blocks: &[Block], live_bytes: usize) -> Placement {
    let ordered = |key: &dyn Fn(&Block) -> [isize; 3]| {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&i| key(&blocks[i]));
        order
    };
    let (bytes, first) = (|b: &Block| b.bytes as isize, |b: &Block| b.first as isize);
    let mut orders = [
        ordered(&|b| [-bytes(b), first(b), 0]),
        ordered(&|b| [first(b) - b.last as isize, -bytes(b), first(b)]),
        ordered(&|b| [first(b), -bytes(b), 0]),
    ];
    let mut best = Placement { offsets: vec![0; blocks.len()], end: usize::MAX };
    for order in &orders {
        keep_smaller(&mut best, first_fit(blocks, order));
    }
    for order in &mut orders {
        for _ in 0..RETRIES {
            if best.end <= live_bytes + live_bytes / 100 {
                return best;
            }
            let found = first_fit(blocks, order);
            let top = order.iter().position(|&i| found.offsets[i] + blocks[i].bytes == found.end);
            keep_smaller(&mut best, found);
            match top {
                Some(at) if at > 0 => order[..=at].rotate_right(1),
                _ => break,
            }
        }
    }
    best
}

fn keep_smaller(best: &mut Placement, found: Placement) {
    if found.end < best.end {
        *best = found;
    }
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
fn share_in_place(kernels: &[Kernel], buffers: &[Buffer]) -> Vec<Block> {
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
            Block { first: live(start).first, last: live(last).last, bytes: align(buffers[start].bytes), members }
        })
        .collect()
}

/// Places blocks in the given order, each at the lowest place free for its whole life.
fn first_fit(blocks: &[Block], order: &[usize]) -> Placement {
    let mut offsets = vec![0; blocks.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut end = 0;
    for &i in order {
        let b = &blocks[i];
        let mut at = 0;
        // `placed` is sorted by offset.
        for &p in &placed {
            let other = &blocks[p];
            if other.last < b.first || b.last < other.first {
                continue;
            }
            if offsets[p] >= at + b.bytes {
                break;
            }
            at = at.max(offsets[p] + other.bytes);
        }
        offsets[i] = at;
        end = end.max(at + b.bytes);
        let place = placed.partition_point(|&p| offsets[p] <= at);
        placed.insert(place, i);
    }
    Placement { offsets, end }
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
