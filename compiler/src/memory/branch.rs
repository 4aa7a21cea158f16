//! Packing under a given height, by branch and bound.
//!
//! Any packing can be settled: every block that has no place of its own sinks until it lies on another or on the
//! ground. So blocks are placed in the order of their offsets, each as low as what lies below lets it, and a choice is
//! only which is next. A choice is dropped where another block would fit below the one chosen, and where at some moment
//! the blocks yet to come cannot fit between the lowest of them and the height. The form of the search is that of
//! Moffitt, "MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine Learning", 2023.

use std::ops::Range;

use crate::memory::pack::{Block, Place};

/// Offsets of blocks, none of which ends above `height` less what is taken `above` it; of those at the upper end,
/// nothing is said. `work` is how much may be looked at, and what is left of it.
pub(super) fn fit(blocks: &[Block], above: &[usize], height: usize, work: &mut usize) -> Option<Vec<usize>> {
    let mut times: Vec<usize> = blocks.iter().map(|b| b.first).collect();
    times.sort_unstable();
    times.dedup();
    // Two blocks that meet are both there when the later one begins.
    let span = |b: &Block| times.partition_point(|&t| t < b.first)..times.partition_point(|&t| t <= b.last);
    let mut ceiling = vec![height; times.len()];
    let mut own: Vec<usize> = Vec::new();
    for (i, b) in blocks.iter().enumerate() {
        match b.place {
            Place::Top(depth) if depth + b.bytes > height => return None,
            Place::Top(depth) => {
                ceiling[span(b)].iter_mut().for_each(|c| *c = (*c).min(height - depth - b.bytes));
            }
            Place::Anywhere | Place::Bottom(_) => own.push(i),
        }
    }
    // What takes most room for longest first, where two choices lie equally low.
    own.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes.saturating_mul(span(&blocks[i]).len())), i));
    let spans: Vec<Range<usize>> = own.iter().map(|&i| span(&blocks[i])).collect();
    let mut rest = vec![0; times.len()];
    for (&i, span) in own.iter().zip(&spans) {
        rest[span.clone()].iter_mut().for_each(|r| *r += blocks[i].bytes);
    }
    let fixed = own.iter().enumerate().filter_map(|(n, &i)| match blocks[i].place {
        Place::Bottom(at) => Some((n, at)),
        Place::Anywhere | Place::Top(_) => None,
    });
    let fixed = fixed.collect();
    let mut search = Search {
        blocks: own.iter().map(|&i| blocks[i]).collect(),
        fixed,
        ends: own.iter().map(|&i| height.saturating_sub(above[i])).collect(),
        spans,
        ceiling,
        floor: vec![0; times.len()],
        rest,
        offsets: vec![0; own.len()],
        placed: vec![false; own.len()],
        work,
    };
    for i in 0..own.len() {
        search.offsets[i] = search.lowest(i)?;
    }
    search.next(0, None).then(|| {
        let mut offsets = vec![0; blocks.len()];
        own.iter().zip(&search.offsets).for_each(|(&i, &at)| offsets[i] = at);
        offsets
    })
}

struct Search<'a> {
    blocks: Vec<Block>,
    /// Those that have a place of their own, and where that begins.
    fixed: Vec<(usize, usize)>,
    /// Where each must end, at the highest.
    ends: Vec<usize>,
    /// Moments at which each is there.
    spans: Vec<Range<usize>>,
    /// By moment: the highest end, the end of what is placed, and the bytes of what is not.
    ceiling: Vec<usize>,
    floor: Vec<usize>,
    rest: Vec<usize>,
    /// Where each is, or how low it could be.
    offsets: Vec<usize>,
    placed: Vec<bool>,
    work: &'a mut usize,
}

impl Search<'_> {
    /// How low a block can be that is not placed; nothing if that is too high.
    fn lowest(&self, i: usize) -> Option<usize> {
        let bytes = self.blocks[i].bytes;
        let ground = self.floor[self.spans[i].clone()].iter().copied().max().unwrap_or(0);
        if let Place::Bottom(at) = self.blocks[i].place {
            return (ground <= at && at + bytes <= self.ends[i]).then_some(at);
        }
        let mut at = ground;
        while let Some(over) = self.in_the_way(i, at) {
            at = over;
        }
        (at + bytes <= self.ends[i]).then_some(at)
    }

    /// The end of a block with a place of its own that is not placed yet and that block `i` would meet at `at`.
    fn in_the_way(&self, i: usize, at: usize) -> Option<usize> {
        self.fixed.iter().find_map(|&(f, from)| {
            let end = from + self.blocks[f].bytes;
            let meets = !self.placed[f] && self.meet(i, f) && at < end && from < at + self.blocks[i].bytes;
            meets.then_some(end)
        })
    }

    fn meet(&self, i: usize, j: usize) -> bool {
        i != j && self.spans[i].start < self.spans[j].end && self.spans[j].start < self.spans[i].end
    }

    /// Places what is left, `count` blocks being placed, the last of them at this offset and of this number: blocks are
    /// placed in the order of both.
    fn next(&mut self, count: usize, last: Option<(usize, usize)>) -> bool {
        if count == self.blocks.len() {
            return true;
        }
        let Some(choices) = self.choices(last) else { return false };
        choices.into_iter().any(|i| *self.work > 0 && self.put(i, count))
    }

    /// Blocks that may be next, best first; nothing where what is left cannot fit.
    fn choices(&mut self, last: Option<(usize, usize)>) -> Option<Vec<usize>> {
        let moments = self.floor.len();
        // By moment: how low the lowest of what is left begins, and the least end.
        let (mut begin, mut end) = (vec![usize::MAX; moments], vec![usize::MAX; moments]);
        let left: Vec<usize> = (0..self.blocks.len()).filter(|&i| !self.placed[i]).collect();
        for &i in &left {
            let at = self.offsets[i].max(last.map_or(0, |l| l.0));
            for s in self.spans[i].clone() {
                begin[s] = begin[s].min(at);
                end[s] = end[s].min(at + self.blocks[i].bytes);
            }
        }
        let looked_at = left.iter().map(|&i| self.spans[i].len()).sum::<usize>() + moments;
        *self.work = self.work.saturating_sub(looked_at);
        if (0..moments).any(|s| self.rest[s] > 0 && begin[s] + self.rest[s] > self.ceiling[s]) {
            return None;
        }
        let may_be_next = |&i: &usize| {
            last.is_none_or(|last| (self.offsets[i], i) > last)
                && self.spans[i].clone().all(|s| end[s] > self.offsets[i])
        };
        let mut choices: Vec<usize> = left.into_iter().filter(may_be_next).collect();
        choices.sort_by_key(|&i| (self.offsets[i], i));
        Some(choices)
    }

    /// Places a block, and then what is left; where that fails, everything is as before.
    fn put(&mut self, i: usize, count: usize) -> bool {
        let (at, bytes, span) = (self.offsets[i], self.blocks[i].bytes, self.spans[i].clone());
        let floor = self.floor[span.clone()].to_vec();
        self.floor[span.clone()].fill(at + bytes);
        self.rest[span.clone()].iter_mut().for_each(|r| *r -= bytes);
        self.placed[i] = true;
        *self.work = self.work.saturating_sub(self.blocks.len());
        let mut before: Vec<(usize, usize)> = Vec::new();
        let mut fits = true;
        for j in (0..self.blocks.len()).filter(|&j| !self.placed[j] && self.meet(i, j)).collect::<Vec<_>>() {
            let Some(lowest) = self.lowest(j) else {
                fits = false;
                break;
            };
            before.push((j, std::mem::replace(&mut self.offsets[j], lowest)));
        }
        if fits && self.next(count + 1, Some((at, i))) {
            return true;
        }
        before.into_iter().for_each(|(j, offset)| self.offsets[j] = offset);
        self.placed[i] = false;
        self.rest[span.clone()].iter_mut().for_each(|r| *r += bytes);
        self.floor[span].copy_from_slice(&floor);
        false
    }
}
