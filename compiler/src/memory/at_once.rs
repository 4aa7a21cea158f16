//! Room for kernels that run at once: neighbours that do not depend on each other share a launch on a GPU, unless one's
//! result lies where another's operand did. So blocks that one of them touches are kept for all of them, where that
//! takes no more bytes than are live at the fullest moment anyway.

use std::collections::BTreeMap;
use std::ops::Range;

use slrc_plan::Space;
use slrc_plan::kernel::Kernel;
use slrc_plan::touches::Touched;

use crate::memory::pack::Block;

/// Lets blocks live as long as the kernels that run at once with the first and the last that touch them. `block_of`
/// says in which block a buffer lies; what it does not know lies outside the arena.
pub(super) fn extend(kernels: &[Kernel], block_of: &BTreeMap<&str, usize>, blocks: &mut [Block]) {
    let groups = groups(kernels, block_of, blocks);
    let group = |kernel: usize| &groups[groups.partition_point(|g| g.end <= kernel)];
    for b in blocks {
        (b.first, b.last) = (group(b.first).start, group(b.last).end - 1);
    }
}

/// Ranges of kernels that may run at once, each as long as it can be.
fn groups(kernels: &[Kernel], block_of: &BTreeMap<&str, usize>, blocks: &[Block]) -> Vec<Range<usize>> {
    // Bytes that begin to live, and that have ended to, when a kernel runs.
    let (mut begins, mut ended) = (vec![0usize; kernels.len()], vec![0usize; kernels.len() + 1]);
    for b in blocks {
        begins[b.first] += b.bytes;
        ended[b.last + 1] += b.bytes;
    }
    let mut live = vec![0usize; kernels.len()];
    let mut now = 0;
    for i in 0..kernels.len() {
        now = now + begins[i] - ended[i];
        live[i] = now;
    }
    let most = live.iter().copied().max().unwrap_or(0);
    // Blocks apart from each other; what lies outside the arena shares no place.
    let ends: Vec<usize> = blocks
        .iter()
        .scan(0, |end, b| {
            *end += b.bytes;
            Some(*end)
        })
        .collect();
    let find = |id: &str| (Space::Arena, block_of.get(id).map_or(0..0, |&b| ends[b] - blocks[b].bytes..ends[b]));
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut touched = Touched::default();
    let mut bytes = 0;
    for (i, k) in kernels.iter().enumerate() {
        match out.last_mut() {
            Some(group) if bytes + begins[i] <= most && touched.admit(k, find) => {
                group.end = i + 1;
                bytes += begins[i];
            }
            _ => {
                touched = Touched::default();
                touched.admit(k, find);
                out.push(i..i + 1);
                bytes = live[i];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use slrc_plan::kernel::{Copy, KernelOp, Phase};
    use slrc_plan::{Dims, View};

    use super::*;
    use crate::memory::pack::Place;

    fn copy(from: &str, to: &str) -> Kernel {
        let view = |b: &str| View::new(b, vec![1]);
        let run = KernelOp::Copy(Copy { space: Dims(vec![8]), from: view(from), to: view(to) });
        Kernel { id: "k0".into(), phase: Phase::Forward, nodes: Vec::new(), flops: 0, run }
    }

    /// Lives of blocks `a`, `b`, `c` and `d`, which is as large as the three, when room has been made.
    fn lives(kernels: &[Kernel], lives: [[usize; 2]; 4]) -> Vec<[usize; 2]> {
        let block_of = BTreeMap::from([("a", 0), ("b", 1), ("c", 2), ("d", 3)]);
        let block = |([first, last], bytes): ([usize; 2], usize)| Block { first, last, bytes, place: Place::Anywhere };
        let mut blocks: Vec<Block> = lives.into_iter().zip([64, 64, 64, 192]).map(block).collect();
        extend(kernels, &block_of, &mut blocks);
        blocks.iter().map(|b| [b.first, b.last]).collect()
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
