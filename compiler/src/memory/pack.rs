//! Packing: offsets of blocks with fixed lives, in as little room as can be found.
//!
//! Finding the least room is NP-hard, but most bytes live at once are a lower bound that is nearly always reached.
//! Blocks are placed one by one, each at the lowest offset that is free for its whole life, so that a packing is an
//! order of blocks. Some natural orders are tried, and a search goes on from the best of them: whatever lies on top is
//! placed earlier. The search is seeded, and bounded by steps, not by time.
//!
//! A block at an end of the room has its place from the beginning. Where the upper end is depends on the packing: above
//! every block, as much room is needed as the blocks at the upper end take that live with it.

use slrc_plan::random::Sequence;

/// Bytes that are taken from kernel `first` to kernel `last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) bytes: usize,
    pub(super) place: Place,
}

/// Where a block may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Anywhere,
    /// So many bytes above the lower end.
    Bottom(usize),
    /// So many bytes below the upper end.
    Top(usize),
}

/// Where every block lies, and the end of the highest.
#[derive(Clone, Debug)]
pub(super) struct Packing {
    pub(super) offsets: Vec<usize>,
    pub(super) end: usize,
}

/// Pairs of blocks that the search may look at before it takes what it has.
const PAIRS: usize = 8_000_000;

/// The smallest packing found of blocks of which `live` bytes are live at once.
pub(super) fn pack(blocks: &[Block], live: usize) -> Packing {
    let mut search = Search::new(blocks);
    let mut best: Option<(Vec<usize>, Packing)> = None;
    for order in orders(blocks) {
        let limit = best.as_ref().map_or(usize::MAX, |(_, p)| p.end);
        if let Some(found) = search.first_fit(&order, limit) {
            best = Some((order, found));
        }
        if best.as_ref().is_some_and(|(_, p)| p.end <= live) {
            break;
        }
    }
    let (order, mut best) = best.expect("invariant: without a limit there is a packing");
    search.improve(order, &mut best, live);
    best
}

/// Largest first, longest-lived first, earliest first, largest area first; those where most is live first.
fn orders(blocks: &[Block]) -> Vec<Vec<usize>> {
    let ordered = |key: &dyn Fn(&Block) -> [isize; 3]| {
        let mut order: Vec<usize> = (0..blocks.len()).filter(|&i| blocks[i].place == Place::Anywhere).collect();
        order.sort_by_key(|&i| key(&blocks[i]));
        order
    };
    let (bytes, first) = (|b: &Block| b.bytes as isize, |b: &Block| b.first as isize);
    let life = |b: &Block| (b.last - b.first + 1) as isize;
    let live_at = |at: usize| blocks.iter().filter(|b| b.first <= at && at <= b.last).map(|b| b.bytes).sum::<usize>();
    let fullest = blocks.iter().map(|b| b.first).max_by_key(|&at| (live_at(at), at)).unwrap_or(0);
    vec![
        ordered(&|b| [-bytes(b), first(b), 0]),
        ordered(&|b| [-life(b), -bytes(b), first(b)]),
        ordered(&|b| [first(b), -bytes(b), 0]),
        ordered(&|b| [bytes(b).saturating_mul(-life(b)), -bytes(b), first(b)]),
        ordered(&|b| [isize::from(b.first > fullest || fullest > b.last), -bytes(b), first(b)]),
    ]
}

struct Search<'a> {
    blocks: &'a [Block],
    /// Of every block, those that live with it for a while.
    neighbours: Vec<Vec<usize>>,
    /// Of every block, the bytes at the upper end that are taken while it lives.
    above: Vec<usize>,
    /// Pairs looked at.
    pairs: usize,
}

impl Search<'_> {
    fn new(blocks: &[Block]) -> Search<'_> {
        let meet = |a: &Block, b: &Block| a.first <= b.last && b.first <= a.last;
        let of = |i: usize| (0..blocks.len()).filter(|&j| j != i && meet(&blocks[i], &blocks[j])).collect();
        let neighbours: Vec<Vec<usize>> = (0..blocks.len()).map(of).collect();
        let depth = |&n: &usize| match blocks[n].place {
            Place::Top(depth) => depth + blocks[n].bytes,
            Place::Anywhere | Place::Bottom(_) => 0,
        };
        let above = neighbours.iter().map(|n| n.iter().map(depth).max().unwrap_or(0)).collect();
        Search { blocks, neighbours, above, pairs: 0 }
    }

    /// Places blocks in the given order, each at the lowest place free for its whole life; nothing if they do not end
    /// below `limit`.
    fn first_fit(&mut self, order: &[usize], limit: usize) -> Option<Packing> {
        const UNPLACED: usize = usize::MAX;
        let mut packing = Packing { offsets: vec![UNPLACED; self.blocks.len()], end: 0 };
        for (i, b) in self.blocks.iter().enumerate() {
            let needed = match b.place {
                Place::Anywhere => continue,
                Place::Bottom(at) => {
                    packing.offsets[i] = at;
                    at + b.bytes + self.above[i]
                }
                Place::Top(depth) => depth + b.bytes,
            };
            packing.end = packing.end.max(needed);
        }
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for &i in order {
            taken.clear();
            self.pairs += self.neighbours[i].len();
            let placed = self.neighbours[i].iter().filter(|&&n| packing.offsets[n] != UNPLACED);
            taken.extend(placed.map(|&n| (packing.offsets[n], packing.offsets[n] + self.blocks[n].bytes)));
            taken.sort_unstable();
            let mut at = 0;
            for &(start, end) in &taken {
                if start >= at + self.blocks[i].bytes {
                    break;
                }
                at = at.max(end);
            }
            packing.offsets[i] = at;
            packing.end = packing.end.max(at + self.blocks[i].bytes + self.above[i]);
            if packing.end >= limit {
                return None;
            }
        }
        for (b, offset) in self.blocks.iter().zip(&mut packing.offsets) {
            if let Place::Top(depth) = b.place {
                *offset = packing.end - depth - b.bytes;
            }
        }
        Some(packing)
    }

    /// Looks for a smaller packing than `best`, which is that of `order`.
    fn improve(&mut self, order: Vec<usize>, best: &mut Packing, live: usize) {
        /// Moves without a gain after which the search starts again from the best order, a little shuffled.
        const PATIENCE: usize = 60;
        let mut rng = Sequence::new(0, 0, 0);
        let (mut best_order, mut now, mut stale) = (order.clone(), best.clone(), 0);
        let mut order = order;
        while best.end > live && self.pairs < PAIRS && order.len() > 1 {
            let mut next = order.clone();
            let mut limit = now.end + 1;
            if stale >= PATIENCE {
                next.clone_from(&best_order);
                for _ in 0..1 + rng.word() % 4 {
                    let from = rng.word() as usize % next.len();
                    let to = rng.word() as usize % next.len();
                    next[from.min(to)..=from.max(to)].rotate_right(1);
                }
                (limit, stale) = (usize::MAX, 0);
            } else {
                // A block on top, and now and then any other, to somewhere before.
                let needs = |i: usize| now.offsets[i] + self.blocks[i].bytes + self.above[i];
                let top = order.iter().position(|&i| needs(i) == now.end);
                let from = match (rng.word() % 4, top) {
                    (0, _) | (_, None) => rng.word() as usize % order.len(),
                    (_, Some(top)) => top,
                };
                let to = rng.word() as usize % (from + 1);
                next[to..=from].rotate_right(1);
            }
            stale += 1;
            // As good is good enough: it leads elsewhere.
            let Some(found) = self.first_fit(&next, limit) else { continue };
            if found.end < now.end {
                stale = 0;
            }
            (order, now) = (next, found);
            if now.end < best.end {
                best.clone_from(&now);
                best_order.clone_from(&order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rng: &mut Sequence) -> Vec<Block> {
        let mut draw = |below: usize| rng.word() as usize % below;
        let block = |_| {
            let first = draw(30);
            Block { first, last: first + draw(12), bytes: 64 * (1 + draw(20)), place: Place::Anywhere }
        };
        (0..60).map(block).collect()
    }

    /// Two blocks at each end, as a module's boundaries lie: some hold from the start, some to the end.
    fn with_ends(rng: &mut Sequence) -> Vec<Block> {
        let mut blocks = random(rng);
        let mut draw = |below: usize| rng.word() as usize % below;
        let (outer, inner) = (64 * (1 + draw(40)), 64 * (1 + draw(40)));
        blocks.push(Block { first: 0, last: 20 + draw(22), bytes: outer, place: Place::Bottom(0) });
        blocks.push(Block { first: 0, last: 5 + draw(20), bytes: inner, place: Place::Bottom(outer) });
        blocks.push(Block { first: draw(20), last: 41, bytes: inner, place: Place::Top(0) });
        blocks.push(Block { first: 10 + draw(20), last: 41, bytes: outer, place: Place::Top(inner) });
        blocks
    }

    #[test]
    fn nothing_overlaps_and_little_is_wasted() {
        let mut rng = Sequence::new(9, 0, 0);
        let mut exact = [0; 2];
        for i in 0..80 {
            let blocks = if i % 2 == 0 { random(&mut rng) } else { with_ends(&mut rng) };
            let live_at = |t: usize| blocks.iter().filter(|b| b.first <= t && t <= b.last).map(|b| b.bytes).sum();
            let live = (0..42).map(live_at).max().expect("times");
            let p = pack(&blocks, live);
            let ends: Vec<usize> = blocks.iter().zip(&p.offsets).map(|(b, o)| o + b.bytes).collect();
            assert_eq!(ends.iter().max(), Some(&p.end));
            for (i, a) in blocks.iter().enumerate() {
                for (j, b) in blocks.iter().enumerate().filter(|(j, _)| *j != i) {
                    let apart = a.last < b.first || b.last < a.first;
                    assert!(apart || ends[i] <= p.offsets[j] || ends[j] <= p.offsets[i], "{a:?} {b:?}");
                }
            }
            for (b, &at) in blocks.iter().zip(&p.offsets) {
                let (Place::Bottom(depth) | Place::Top(depth)) = b.place else { continue };
                let there = if matches!(b.place, Place::Top(_)) { p.end - depth - b.bytes } else { depth };
                assert_eq!(at, there, "{b:?}");
            }
            // What has its place at an end keeps it where what lies further out is not there.
            let spare = if i % 2 == 0 { 106 } else { 115 };
            assert!(p.end >= live && p.end * 100 <= live * spare, "{} of {live}", p.end);
            exact[i % 2] += usize::from(p.end == live);
        }
        assert!(exact[0] >= 20 && exact[1] >= 10, "{exact:?} of 40 each");
    }
}
