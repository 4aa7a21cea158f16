//! Room for kernels that run at once: neighbours that do not depend on each other share a launch on a GPU, and so does
//! work on the rows of a product with the product, unless one's result lies where another's operand did. So blocks that
//! one of them touches are kept for all of them, and a result that would be written over an operand of a neighbour gets
//! a place of its own, where that takes no more bytes than are live at the fullest moment anyway.

use std::collections::BTreeMap;
use std::ops::Range;

use slrc_plan::kernel::Kernel;
use slrc_plan::touches::{self, Touched};
use slrc_plan::{Buffer, Space};

use crate::memory::pack::{Block, Place};
use crate::memory::{Division, Members};

/// Lets blocks live as long as the kernels that run at once with the first and the last that touch them.
pub(super) fn extend(kernels: &[Kernel], division: &mut Division) {
    let Division { buffers, members, blocks, .. } = division;
    let groups = Grouping::new(kernels, buffers, members, blocks).groups();
    let group = |kernel: usize| &groups[groups.partition_point(|g| g.end <= kernel)];
    for b in blocks {
        (b.first, b.last) = (group(b.first).start, group(b.last).end - 1);
    }
}

struct Grouping<'d> {
    kernels: &'d [Kernel],
    buffers: &'d [Buffer],
    members: &'d mut Vec<Members>,
    blocks: &'d mut Vec<Block>,
    /// In which block a buffer lies; what is not here lies outside the arena.
    block_of: BTreeMap<&'d str, usize>,
    /// By kernel, the buffers that it writes over others.
    in_place: BTreeMap<usize, Vec<usize>>,
    /// Bytes that begin to live, and that live, when a kernel runs.
    begins: Vec<usize>,
    live: Vec<usize>,
}

impl<'d> Grouping<'d> {
    fn new(
        kernels: &'d [Kernel],
        buffers: &'d [Buffer],
        members: &'d mut Vec<Members>,
        blocks: &'d mut Vec<Block>,
    ) -> Grouping<'d> {
        let (mut begins, mut ended) = (vec![0usize; kernels.len()], vec![0usize; kernels.len() + 1]);
        for b in blocks.iter() {
            begins[b.first] += b.bytes;
            ended[b.last + 1] += b.bytes;
        }
        let mut live = vec![0usize; kernels.len()];
        let mut now = 0;
        for i in 0..kernels.len() {
            now = now + begins[i] - ended[i];
            live[i] = now;
        }
        let mut block_of = BTreeMap::new();
        let mut in_place: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (block, m) in members.iter().enumerate() {
            block_of.extend(m.iter().map(|&b| (buffers[b].id.as_str(), block)));
            for &b in &m[1..] {
                let first = buffers[b].live.expect("invariant: arena buffers have live ranges").first;
                in_place.entry(first).or_default().push(b);
            }
        }
        Grouping { kernels, buffers, members, blocks, block_of, in_place, begins, live }
    }

    /// Ranges of kernels that may run at once, each as long as it can be.
    fn groups(mut self) -> Vec<Range<usize>> {
        let most = self.live.iter().copied().max().unwrap_or(0);
        let mut out: Vec<Range<usize>> = Vec::new();
        let mut touched = Touched::default();
        let mut bytes = 0;
        for i in 0..self.kernels.len() {
            let room = out.last().and_then(|_| most.checked_sub(bytes + self.begins[i]));
            let more = room.and_then(|room| self.joins(i, out.last().cloned()?, &mut touched, room));
            match (out.last_mut(), more) {
                (Some(group), Some(more)) => {
                    group.end = i + 1;
                    bytes += self.begins[i] + more;
                }
                _ => {
                    touched = Touched::default();
                    self.admit(i, 0..0, &[], &mut touched);
                    out.push(i..i + 1);
                    bytes = self.live[i];
                }
            }
        }
        out
    }

    /// Adds a kernel to a group if it may run at once with it: the bytes that this takes besides, of the `room` there
    /// is.
    fn joins(&mut self, i: usize, group: Range<usize>, touched: &mut Touched<'d>, room: usize) -> Option<usize> {
        if self.admit(i, group.clone(), &[], touched) {
            return Some(0);
        }
        let apart = self.in_place.get(&i)?.clone();
        let more = apart.iter().map(|&b| self.blocks[self.block_of[self.buffers[b].id.as_str()]].bytes).sum();
        if more > room || !self.admit(i, group, &apart, touched) {
            return None;
        }
        apart.into_iter().for_each(|b| self.part(i, b));
        Some(more)
    }

    /// Adds a kernel to those that run at once, if it may; `apart` has places of its own.
    fn admit(&self, i: usize, group: Range<usize>, apart: &[usize], touched: &mut Touched<'d>) -> bool {
        // Every block is a byte of its own here; what lies outside the arena shares no place.
        let find = |id: &str| -> touches::Place {
            let at = match apart.iter().position(|&b| self.buffers[b].id == id) {
                Some(n) => Some(self.blocks.len() + n),
                None => self.block_of.get(id).copied(),
            };
            (Space::Arena, at.map_or(0..0, |at| at..at + 1))
        };
        let k = &self.kernels[i];
        touched.admit(k, find) || self.kernels[group].iter().any(|p| touched.admit_behind(p, k, find))
    }

    /// Gives a buffer that kernel `i` writes over another, and those that come to lie there later, a block of their
    /// own.
    fn part(&mut self, i: usize, buffer: usize) {
        let block = self.block_of[self.buffers[buffer].id.as_str()];
        let at = self.members[block].iter().position(|&b| b == buffer).expect("invariant: it is a member");
        let later = self.members[block].split_off(at);
        let (old, new) = (self.blocks[block], self.blocks.len());
        // What is handed over comes first in its block, what is handed on last.
        let (before, after) = match old.place {
            Place::Top(_) => (Place::Anywhere, old.place),
            Place::Bottom(_) | Place::Anywhere => (old.place, Place::Anywhere),
        };
        self.blocks[block] = Block { last: i, place: before, ..old };
        self.blocks.push(Block { first: i, place: after, ..old });
        self.block_of.extend(later.iter().map(|&b| (self.buffers[b].id.as_str(), new)));
        self.members.push(later);
    }
}

#[cfg(test)]
mod tests {
    use slrc_plan::buffer::Live;
    use slrc_plan::kernel::{Copy, KernelOp, Phase};
    use slrc_plan::{DType, Dims, View};

    use super::*;

    fn copy(from: &str, to: &str) -> Kernel {
        let view = |b: &str| View::new(b, vec![1]);
        let run = KernelOp::Copy(Copy { space: Dims(vec![8]), from: view(from), to: view(to) });
        Kernel { id: "k0".into(), phase: Phase::Forward, nodes: Vec::new(), flops: 0, run }
    }

    /// Buffers `a`, `b`, `c` and `d`, which is as large as the three, in blocks of these members.
    fn division(lives: [[usize; 2]; 4], members: &[&[usize]]) -> Division {
        let of = |(id, ([first, last], bytes)): (&str, ([usize; 2], usize))| {
            let (space, dtype, shape) = (Space::Arena, DType::F32, Dims(vec![bytes / 4]));
            let live = Some(Live { first, last });
            Buffer { id: id.into(), space, dtype, shape, order: None, offset: 0, bytes, live }
        };
        let buffers: Vec<Buffer> =
            ["a", "b", "c", "d"].into_iter().zip(lives.into_iter().zip([64, 64, 64, 192])).map(of).collect();
        let block = |m: &&[usize]| Block {
            first: lives[m[0]][0],
            last: lives[m[m.len() - 1]][1],
            bytes: buffers[m[0]].bytes,
            place: Place::Anywhere,
        };
        let blocks = members.iter().map(block).collect();
        Division { own: buffers.len(), members: members.iter().map(|m| m.to_vec()).collect(), blocks, buffers }
    }

    /// Lives of blocks when room has been made, each with its members.
    fn with_room(kernels: &[Kernel], mut division: Division) -> Vec<(Members, [usize; 2])> {
        extend(kernels, &mut division);
        let lives = division.blocks.iter().map(|b| [b.first, b.last]);
        division.members.clone().into_iter().zip(lives).collect()
    }

    /// Of a block each.
    fn lives(kernels: &[Kernel], lives: [[usize; 2]; 4]) -> Vec<[usize; 2]> {
        with_room(kernels, division(lives, &[&[0], &[1], &[2], &[3]])).into_iter().map(|(_, live)| live).collect()
    }

    #[test]
    fn a_result_does_not_lie_on_a_neighbours_operand() {
        // `b` would be written over `a`, which the kernel before reads; `d` is the fullest moment.
        let kernels = [copy("w", "a"), copy("a", "c"), copy("a", "b"), copy("w", "d")];
        let lives = [[0, 2], [2, 2], [1, 1], [3, 3]];
        let found = with_room(&kernels, division(lives, &[&[0, 1], &[2], &[3]]));
        assert_eq!(found, [(vec![0], [0, 2]), (vec![2], [1, 2]), (vec![3], [3, 3]), (vec![1], [1, 2])]);
        // Without it, there is no room.
        let found = with_room(&kernels[..3], division(lives, &[&[0, 1], &[2]]));
        assert_eq!(found, [(vec![0, 1], [0, 2]), (vec![2], [1, 1])]);
    }

    #[test]
    fn blocks_live_as_long_as_what_runs_at_once() {
        // `a` ends where `c` begins; `w` is no block.
        let kernels = [copy("w", "a"), copy("a", "b"), copy("w", "c"), copy("c", "d")];
        assert_eq!(lives(&kernels, [[0, 1], [1, 3], [2, 3], [3, 3]]), [[0, 2], [1, 3], [1, 3], [3, 3]]);
    }

    #[test]
    fn not_beyond_what_is_live_at_the_fullest() {
        // With `d` and the three others, nothing else has room.
        let kernels = [copy("w", "a"), copy("a", "d"), copy("w", "b"), copy("w", "c")];
        let alone = [[0, 1], [2, 3], [3, 3], [1, 1]];
        assert_eq!(lives(&kernels, alone), [[0, 1], [2, 3], [2, 3], [1, 1]]);
    }
}
