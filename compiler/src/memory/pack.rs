//! Packing: offsets of blocks with fixed lives, in as little room as can be found.
//!
//! Finding the least room is NP-hard, but most bytes live at once are a lower bound that is nearly always reached.
//! Blocks are placed one by one, each at the lowest offset that is free for its whole life, so that a packing is an
//! order of blocks. Some natural orders are tried, then such that begin with the largest blocks as branch and bound
//! places these (`largest.rs`, `branch.rs`), and a search goes on from the best of them: whatever lies on top is placed
//! earlier. What it leaves, branch and bound of all blocks may find. All are bounded by steps, not by time, and the
//! search is seeded.
//!
//! A block at an end of the room has its place from the beginning. Where the upper end is depends on the packing: above
//! every block, as much room is needed as the blocks at the upper end take that live with it.

use slrc_plan::buffer::align;
use slrc_plan::random::Sequence;

use crate::memory::branch;
use crate::memory::largest::largest_first;

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
const PAIRS: usize = 4_000_000;
/// And those that natural orders may have looked at for others to be tried: of very many blocks an order takes long.
const MOST_PAIRS: usize = 16_000_000;
/// Most blocks that are packed by branch and bound where the search leaves room; the heights it tries, as parts of the
/// lower bound that are added to it, until one is not reached; and moments of blocks that it may look at for each, of
/// few blocks and of others.
const MOST_BRANCHED: usize = 1024;
const SLACK: [usize; 4] = [100, 200, 400, 0];
const FEW: usize = 128;
const WORK: [usize; 2] = [20_000_000, 4_000_000];

/// The smallest packing found of blocks of which `live` bytes are live at once.
pub(super) fn pack(blocks: &[Block], live: usize) -> Packing {
    let mut search = Search::new(blocks);
    let natural = orders(blocks);
    let mut best = search.smallest(&natural, None, live).expect("invariant: without a limit there is a packing");
    if best.end > live && search.pairs < MOST_PAIRS {
        let seeded = largest_first(blocks, &natural, live);
        best = search.smallest(&seeded, Some(&best), live).unwrap_or(best);
    }
    // However many orders there were, as much is left for the search.
    search.pairs = 0;
    let best = search.improve(best, live);
    search.tightened(&best, live).unwrap_or_else(|| search.packing(&best))
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

/// Blocks placed in an order.
#[derive(Clone, Debug, Default)]
struct Fit {
    order: Vec<usize>,
    /// Those that have a place so far, by where they start; blocks at the upper end have none.
    placed: Vec<Placed>,
    end: usize,
}

/// A block that has a place.
#[derive(Clone, Copy, Debug)]
struct Placed {
    start: usize,
    end: usize,
    block: usize,
}

struct Search<'a> {
    blocks: &'a [Block],
    /// Of every block, how many live with it for a while.
    neighbours: Vec<usize>,
    /// Of every block, the bytes at the upper end that are taken while it lives.
    above: Vec<usize>,
    /// Pairs looked at, as if every block were placed anew each time.
    pairs: usize,
}

impl Search<'_> {
    fn new(blocks: &[Block]) -> Search<'_> {
        let sorted = |key: fn(&Block) -> usize| {
            let mut out: Vec<usize> = blocks.iter().map(key).collect();
            out.sort_unstable();
            out
        };
        let (firsts, lasts) = (sorted(|b| b.first), sorted(|b| b.last));
        let begun = |b: &Block| firsts.partition_point(|&first| first <= b.last);
        let gone = |b: &Block| lasts.partition_point(|&last| last < b.first);
        let neighbours = blocks.iter().map(|b| begun(b) - gone(b) - 1).collect();
        Search { blocks, neighbours, above: above(blocks), pairs: 0 }
    }

    /// Places blocks in the given order, each at the lowest place free for its whole life; nothing if they do not end
    /// below `limit`. Of `known`, which does, as many blocks are where they are as come first in this order too.
    fn first_fit(&mut self, order: Vec<usize>, known: Option<(&Fit, usize)>, limit: usize) -> Option<Fit> {
        let mut fit = Fit::default();
        for (i, b) in self.blocks.iter().enumerate() {
            let needed = match b.place {
                Place::Anywhere => continue,
                Place::Bottom(at) => {
                    fit.put(at, b.bytes, i);
                    at + b.bytes + self.above[i]
                }
                Place::Top(depth) => depth + b.bytes,
            };
            fit.end = fit.end.max(needed);
        }
        let (same, rest) = order.split_at(known.map_or(0, |(_, same)| same));
        if let Some((known, _)) = known {
            let mut moves = vec![false; self.blocks.len()];
            rest.iter().for_each(|&i| moves[i] = true);
            fit.placed = known.placed.iter().filter(|p| !moves[p.block]).copied().collect();
            self.pairs += same.iter().map(|&i| self.neighbours[i]).sum::<usize>();
            let ends = fit.placed.iter().map(|p| p.end + self.above[p.block]);
            fit.end = ends.max().unwrap_or(0).max(fit.end);
        }
        for &i in rest {
            self.pairs += self.neighbours[i];
            let b = &self.blocks[i];
            let mut at = 0;
            for p in &fit.placed {
                if p.start >= at + b.bytes {
                    break;
                }
                if p.end > at && meet(&self.blocks[p.block], b) {
                    at = p.end;
                }
            }
            fit.put(at, b.bytes, i);
            fit.end = fit.end.max(at + b.bytes + self.above[i]);
            if fit.end >= limit {
                return None;
            }
        }
        fit.order = order;
        Some(fit)
    }

    /// The smallest packing that one of the orders gives, if any is smaller than `known`.
    fn smallest(&mut self, orders: &[Vec<usize>], known: Option<&Fit>, live: usize) -> Option<Fit> {
        let mut best: Option<Fit> = None;
        for order in orders {
            let limit = best.as_ref().or(known).map_or(usize::MAX, |f| f.end);
            if limit <= live {
                break;
            }
            best = self.first_fit(order.clone(), None, limit).or(best);
        }
        best
    }

    /// The smallest packing found, beginning with `best`.
    fn improve(&mut self, mut best: Fit, live: usize) -> Fit {
        /// Moves without a gain after which the search starts again from the best order, a little shuffled.
        const PATIENCE: usize = 60;
        let mut rng = Sequence::new(0, 0, 0);
        let (mut now, mut stale) = (best.clone(), 0);
        while best.end > live && self.pairs < PAIRS && now.order.len() > 1 {
            let end = now.end;
            let mut limit = end + 1;
            let (mut next, mut same);
            if stale >= PATIENCE {
                next = best.order.clone();
                same = next.len();
                for _ in 0..1 + rng.word() % 4 {
                    let from = rng.word() as usize % next.len();
                    let to = rng.word() as usize % next.len();
                    next[from.min(to)..=from.max(to)].rotate_right(1);
                    same = same.min(from).min(to);
                }
                now.clone_from(&best);
                (limit, stale) = (usize::MAX, 0);
            } else {
                // A block on top, and now and then any other, to somewhere before.
                let on_top = |p: &&Placed| p.end + self.above[p.block] == now.end;
                let tops: Vec<usize> = now.placed.iter().filter(on_top).map(|p| p.block).collect();
                let top = now.order.iter().position(|i| tops.contains(i));
                let from = match (rng.word() % 4, top) {
                    (0, _) | (_, None) => rng.word() as usize % now.order.len(),
                    (_, Some(top)) => top,
                };
                same = rng.word() as usize % (from + 1);
                next = now.order.clone();
                next[same..=from].rotate_right(1);
            }
            stale += 1;
            // As good is good enough: it leads elsewhere.
            let Some(found) = self.first_fit(next, Some((&now, same)), limit) else { continue };
            if found.end < end {
                stale = 0;
            }
            now = found;
            if now.end < best.end {
                best.clone_from(&now);
            }
        }
        best
    }

    /// A packing of little more than `live` bytes where that is less than what is known and can be found.
    fn tightened(&self, fit: &Fit, live: usize) -> Option<Packing> {
        let mut found = None;
        let heights = SLACK.iter().map(|&slack| align(live + live.checked_div(slack).unwrap_or(0)));
        let work = WORK[usize::from(self.blocks.len() > FEW)];
        for end in heights.filter(|&height| height < fit.end && self.blocks.len() <= MOST_BRANCHED) {
            let Some(mut offsets) = branch::fit(self.blocks, &self.above, end, &mut work.clone()) else { break };
            self.put_at_top(&mut offsets, end);
            found = Some(Packing { offsets, end });
        }
        found
    }

    fn put_at_top(&self, offsets: &mut [usize], end: usize) {
        for (b, offset) in self.blocks.iter().zip(offsets) {
            if let Place::Top(depth) = b.place {
                *offset = end - depth - b.bytes;
            }
        }
    }

    /// Where that leaves every block.
    fn packing(&self, fit: &Fit) -> Packing {
        let mut offsets = vec![0; self.blocks.len()];
        fit.placed.iter().for_each(|p| offsets[p.block] = p.start);
        self.put_at_top(&mut offsets, fit.end);
        Packing { offsets, end: fit.end }
    }
}

impl Fit {
    fn put(&mut self, start: usize, bytes: usize, block: usize) {
        let at = self.placed.partition_point(|p| p.start < start);
        self.placed.insert(at, Placed { start, end: start + bytes, block });
    }
}

/// Of every block, the bytes at the upper end that are taken while it lives.
pub(super) fn above(blocks: &[Block]) -> Vec<usize> {
    let tops: Vec<(usize, usize)> = (0..blocks.len())
        .filter_map(|i| match blocks[i].place {
            Place::Top(depth) => Some((i, depth + blocks[i].bytes)),
            Place::Anywhere | Place::Bottom(_) => None,
        })
        .collect();
    let depth = |i: usize| {
        let met = tops.iter().filter(|&&(t, _)| t != i && meet(&blocks[t], &blocks[i]));
        met.map(|&(_, depth)| depth).max().unwrap_or(0)
    };
    (0..blocks.len()).map(depth).collect()
}

/// Whether both live at some moment.
fn meet(a: &Block, b: &Block) -> bool {
    a.first <= b.last && b.first <= a.last
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
        assert!(exact[0] == 40 && exact[1] >= 32, "{exact:?} of 40 each");
    }
}
