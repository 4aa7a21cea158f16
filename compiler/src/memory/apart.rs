//! A place of its own for a result that would be written over an operand, where that takes no more bytes than are live
//! at the fullest moment anyway: blocks that live shorter leave more ways to pack them.

use crate::memory::pack::{Block, Place};
use crate::memory::{Division, Members};

/// The blocks of a division, cut where `wanted` and where there is room for both parts in the moment that they share;
/// `None` if there is nowhere.
pub(super) fn apart(
    division: &Division,
    kernels: usize,
    live_bytes: usize,
    mut wanted: impl FnMut() -> bool,
) -> Option<(Vec<Members>, Vec<Block>)> {
    let mut live = vec![0; kernels];
    for b in &division.blocks {
        live[b.first..=b.last].iter_mut().for_each(|l| *l += b.bytes);
    }
    let (mut members, mut blocks) = (Vec::new(), Vec::new());
    for (all, block) in division.members.iter().zip(&division.blocks) {
        let mut rest = *block;
        let mut part = Members::new();
        for &m in all {
            let first = division.buffers[m].live.expect("invariant: arena buffers have live ranges").first;
            if !part.is_empty() && live[first] + block.bytes <= live_bytes && wanted() {
                live[first] += block.bytes;
                // What is received comes first in its place, what is handed on comes last.
                let received = matches!(block.place, Place::Bottom(_)) && rest.first == block.first;
                let place = if received { block.place } else { Place::Anywhere };
                blocks.push(Block { last: first, place, ..rest });
                members.push(std::mem::take(&mut part));
                rest.first = first;
            }
            part.push(m);
        }
        let cut = rest.first != block.first;
        let place = if cut && matches!(block.place, Place::Bottom(_)) { Place::Anywhere } else { block.place };
        blocks.push(Block { place, ..rest });
        members.push(part);
    }
    (blocks.len() > division.blocks.len()).then_some((members, blocks))
}

#[cfg(test)]
mod tests {
    use slrc_plan::buffer::Live;
    use slrc_plan::{Buffer, DType, Dims, Space};

    use super::*;
    use crate::memory::most_live;

    fn buffer(first: usize, last: usize) -> Buffer {
        let (shape, live) = (Dims(vec![16]), Some(Live { first, last }));
        let (id, space, dtype) = (format!("b{first}"), Space::Arena, DType::F32);
        Buffer { id, space, dtype, shape, order: None, offset: 0, bytes: 64, live }
    }

    /// Three results, each over the one before, and one beside the second change of places.
    fn division(place: Place) -> Division {
        let lives = [(0, 2), (2, 4), (4, 6), (4, 5)];
        let blocks = [(0, 6, place), (4, 5, Place::Anywhere)];
        Division {
            buffers: lives.iter().map(|&(first, last)| buffer(first, last)).collect(),
            own: 4,
            members: vec![vec![0, 1, 2], vec![3]],
            blocks: blocks.iter().map(|&(first, last, place)| Block { first, last, bytes: 64, place }).collect(),
        }
    }

    #[test]
    fn blocks_are_cut_where_there_is_room() {
        let lives = |blocks: &[Block]| blocks.iter().map(|b| (b.first, b.last, b.place)).collect::<Vec<_>>();
        for (place, first, second) in [
            (Place::Anywhere, Place::Anywhere, Place::Anywhere),
            (Place::Bottom(0), Place::Bottom(0), Place::Anywhere),
            (Place::Top(0), Place::Anywhere, Place::Top(0)),
        ] {
            let d = division(place);
            let live = most_live(&d.blocks, 7);
            assert_eq!(live, 128);
            let (members, blocks) = apart(&d, 7, live, || true).expect("room at 2");
            assert_eq!(members, [vec![0], vec![1, 2], vec![3]]);
            assert_eq!(lives(&blocks), [(0, 2, first), (2, 6, second), (4, 5, Place::Anywhere)]);
            assert_eq!(most_live(&blocks, 7), live);
            assert!(apart(&d, 7, live, || false).is_none());
            assert!(apart(&d, 7, live - 1, || true).is_none());
        }
    }
}
