//! The largest blocks first, where branch and bound puts them: these decide how much room is needed, and are few enough
//! for a search that finds the least. The others fill the gaps.

use slrc_plan::buffer::align;

use crate::memory::branch;
use crate::memory::most_live;
use crate::memory::pack::{Block, Place, above};

/// Parts of all that is live at once: what takes that much is large.
const PARTS: [usize; 2] = [100, 200];
/// Moments of blocks that each search may look at.
const WORK: usize = 1_000_000;

/// Orders of blocks that begin with the largest, as these lie in the least room that they can; `orders` are such of all
/// blocks, and `live` is how many bytes are live at once. None where that was not found.
pub(super) fn largest_first(blocks: &[Block], orders: &[Vec<usize>], live: usize) -> Vec<Vec<usize>> {
    PARTS.iter().flat_map(|part| begun(blocks, orders, live / part)).collect()
}

/// Those in which blocks of that many bytes are large.
fn begun(blocks: &[Block], orders: &[Vec<usize>], bytes: usize) -> Vec<Vec<usize>> {
    let is_large = |i: usize| blocks[i].bytes >= bytes || blocks[i].place != Place::Anywhere;
    let large: Vec<usize> = (0..blocks.len()).filter(|&i| is_large(i)).collect();
    let only: Vec<Block> = large.iter().map(|&i| blocks[i]).collect();
    let moments = only.iter().map(|b| b.last + 1).max().unwrap_or(0);
    let height = align(most_live(&only, moments));
    let Some(offsets) = branch::fit(&only, &above(&only), height, &mut WORK.clone()) else { return Vec::new() };
    let mut lowest: Vec<(usize, usize)> = offsets.into_iter().zip(large).collect();
    lowest.retain(|&(_, i)| blocks[i].place == Place::Anywhere);
    lowest.sort_unstable();
    let first = lowest.iter().map(|&(_, i)| i);
    let rest = |order: &[usize]| order.iter().copied().filter(|&i| !is_large(i)).collect::<Vec<_>>();
    orders.iter().map(|order| first.clone().chain(rest(order)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: usize, last: usize, bytes: usize, place: Place) -> Block {
        Block { first, last, bytes, place }
    }

    #[test]
    fn the_largest_lie_as_low_as_they_can() {
        let blocks = [
            block(0, 1, 640, Place::Anywhere),
            block(2, 3, 64, Place::Anywhere),
            block(1, 2, 3200, Place::Anywhere),
            block(2, 3, 6400, Place::Anywhere),
            block(0, 0, 6400, Place::Bottom(0)),
            block(3, 3, 3200, Place::Top(0)),
        ];
        let all = [vec![0, 1, 2, 3], vec![1, 3, 0, 2]];
        let orders = |bytes: usize| begun(&blocks, &all, bytes);
        assert_eq!(orders(4000), [vec![3, 0, 1, 2], vec![3, 1, 0, 2]]);
        assert_eq!(orders(3000), [vec![3, 2, 0, 1], vec![3, 2, 1, 0]]);
        assert!(orders(640).iter().all(|o| o.len() == 4 && o[3] == 1), "{:?}", orders(640));
    }

    #[test]
    fn nothing_where_the_least_is_not_found() {
        // Between what is received and what is handed on there is no room for the third in 200 bytes.
        let blocks =
            [block(0, 1, 100, Place::Bottom(0)), block(1, 2, 100, Place::Anywhere), block(2, 3, 100, Place::Top(0))];
        assert_eq!(most_live(&blocks, 4), 200);
        assert!(begun(&blocks, &[vec![1]], 100).is_empty());
    }
}
