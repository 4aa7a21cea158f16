//! The cuts of networks of very many pieces, nearly all of which are alike.
//!
//! To cost all lengths that come into question would take longer than everything else, and what a part needs says
//! little of what something slightly longer does. Arenas grow evenly with what modules hold, so that two short segments
//! say what long ones need. Every so many cuts are tried, then all those near the best. Of the best partition's
//! modules the first, the last, and the largest of the others are costed, which corrects what is expected, until
//! nothing is expected to be better by more than a little.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::partition::search::{Aim, Found, best};
use crate::partition::segments::{Cost, Pieces, Segments, Sizes};

/// Most cuts that are tried at once.
const MANY: usize = 256;
/// Pieces of the shorter segment that is costed first of each kind.
const SHORT: usize = 16;
/// Partitions are as good as each other that differ by less than this part.
const ALIKE: usize = 64;
/// Most partitions of which segments are costed.
const ROUNDS: usize = 4;

/// Pieces from which a network is a long one.
const LONG: usize = 128;

/// Whether a network is cut into so many modules this way: its pieces are many, and of few kinds.
pub(super) fn is_long(pieces: &Pieces, modules: usize) -> bool {
    let n = pieces.work.len();
    let kinds: BTreeSet<(u64, usize, usize)> =
        (0..n).map(|i| (pieces.work[i], pieces.results[i], pieces.boundaries[i])).collect();
    n >= LONG && 16 * kinds.len() <= n && modules * 2 * SHORT <= n
}

/// What is known of one kind of segments: the first, the last, and all others.
#[derive(Clone, Debug, Default)]
struct Kind {
    /// Size and arena of those costed, ascending.
    known: Vec<(f64, usize)>,
    /// The latest costed.
    cost: Cost,
}

impl Kind {
    fn add(&mut self, size: f64, cost: Cost) {
        let at = self.known.partition_point(|k| k.0 < size);
        match self.known.get_mut(at) {
            Some(k) if k.0 == size => k.1 = k.1.max(cost.arena),
            _ => self.known.insert(at, (size, cost.arena)),
        }
        self.cost = cost;
    }

    /// The arena on the line through the shortest known and the one nearest to this size: what lies close together says
    /// nothing of growth.
    fn arena(&self, size: f64) -> usize {
        let Some(&(shortest, least)) = self.known.first() else { return size as usize };
        let others = self.known[1..].iter();
        let nearest = others.min_by(|a, b| (a.0 - size).abs().total_cmp(&(b.0 - size).abs()));
        let Some(&(of, arena)) = nearest else { return (least as f64 * size / shortest) as usize };
        let each = (arena as f64 - least as f64) / (of - shortest);
        (arena as f64 + each * (size - of)) as usize
    }
}

/// The partition of the smallest peak into some number of modules, if any takes at most `limit` bytes.
pub(super) fn search<S: Segments>(
    pieces: &Pieces,
    counts: RangeInclusive<usize>,
    limit: usize,
    segments: &mut S,
) -> Result<Option<Found>, S::Error> {
    let mut long = Long { n: pieces.work.len(), pieces, sizes: Sizes::new(pieces), kinds: Default::default() };
    let (n, middle) = (long.n, long.n / 2);
    let probes = [(0, SHORT), (0, 2 * SHORT), (middle, middle + SHORT), (middle, middle + 2 * SHORT)];
    long.learn(&[&probes[..], &[(n - 2 * SHORT, n), (n - SHORT, n)]].concat(), segments)?;
    let mut found: Option<Found> = None;
    for _ in 0..ROUNDS {
        let Some(next) = long.expected(counts.clone(), segments.shared_bytes()) else { break };
        let better = |f: &Found| next.bytes + next.bytes / ALIKE < f.bytes && next.cuts != f.cuts;
        if found.as_ref().is_some_and(|f| !better(f)) {
            break;
        }
        long.learn(&long.telling(&next.cuts), segments)?;
        let cuts = found.into_iter().map(|f| f.cuts).chain([next.cuts]);
        let known = cuts.map(|cuts| Found { bytes: long.bytes(&cuts, segments.shared_bytes()), cuts });
        found = known.min_by_key(|f| f.bytes);
    }
    Ok(found.filter(|f| f.bytes <= limit))
}

struct Long<'a> {
    n: usize,
    pieces: &'a Pieces,
    sizes: Sizes,
    /// The first module, those between, and the last.
    kinds: [Kind; 3],
}

impl Long<'_> {
    fn kind(&self, i: usize, j: usize) -> usize {
        if i == 0 { 0 } else { 1 + usize::from(j == self.n) }
    }

    fn modules(&self, cuts: &[usize]) -> Vec<(usize, usize)> {
        std::iter::once(0).chain(cuts.iter().copied()).zip(cuts.iter().copied().chain([self.n])).collect()
    }

    /// The largest segment of each kind.
    fn telling(&self, cuts: &[usize]) -> Vec<(usize, usize)> {
        let modules = self.modules(cuts);
        let size = |&(i, j): &(usize, usize)| self.sizes.of(i, j);
        let largest = |kind| {
            let of_kind = modules.iter().copied().filter(|&(i, j)| self.kind(i, j) == kind);
            of_kind.max_by(|a, b| size(a).total_cmp(&size(b)))
        };
        (0..self.kinds.len()).filter_map(largest).collect()
    }

    fn learn<S: Segments>(&mut self, which: &[(usize, usize)], segments: &mut S) -> Result<(), S::Error> {
        for (&(i, j), cost) in which.iter().zip(segments.costs(which)?) {
            let kind = self.kind(i, j);
            self.kinds[kind].add(self.sizes.of(i, j), cost);
        }
        Ok(())
    }

    /// A segment's cost as it is expected.
    fn cost(&self, i: usize, j: usize) -> Cost {
        let kind = &self.kinds[self.kind(i, j)];
        Cost { arena: kind.arena(self.sizes.of(i, j)), ..kind.cost }
    }

    /// Bytes that a partition is expected to take.
    fn bytes(&self, cuts: &[usize], shared: &[usize]) -> usize {
        let costs: Vec<Cost> = self.modules(cuts).into_iter().map(|(i, j)| self.cost(i, j)).collect();
        let all = costs.iter().map(|c| c.shared).reduce(|a, b| a.union(b)).unwrap_or_default();
        let arena = costs.iter().map(|c| c.arena).max().unwrap_or(0);
        arena + costs.iter().map(|c| c.kept).sum::<usize>() + all.bytes(shared)
    }

    /// The partition that is expected to be best.
    fn expected(&self, counts: RangeInclusive<usize>, shared: &[usize]) -> Option<Found> {
        let step = self.n.div_ceil(MANY);
        let grid: Vec<usize> = (0..self.n).step_by(step).chain([self.n]).collect();
        let mut found = self.among(&grid, counts, shared)?;
        loop {
            let near = found.cuts.iter().flat_map(|&c| c.saturating_sub(step).max(1)..(c + step + 1).min(self.n));
            let near: BTreeSet<usize> = near.chain([0, self.n]).collect();
            let modules = found.cuts.len() + 1;
            let nearer = self.among(&near.into_iter().collect::<Vec<_>>(), modules..=modules, shared)?;
            if nearer.bytes >= found.bytes {
                return Some(found);
            }
            found = nearer;
        }
    }

    /// The same of cuts at some places, which begin with 0 and end with the number of pieces.
    fn among(&self, at: &[usize], counts: RangeInclusive<usize>, shared: &[usize]) -> Option<Found> {
        let work = self.pieces.between(at).work;
        let cost = |i: usize, j: usize| self.cost(at[i], at[j]);
        let work = |i: usize, j: usize| work[i..j].iter().sum();
        let (cuts, bytes) = best(at.len() - 1, &cost, &work, counts, usize::MAX, Aim::Smallest, shared)?;
        Some(Found { cuts: cuts.into_iter().map(|c| at[c]).collect(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal blocks of two pieces each, and what their segments cost, nearly in a line.
    struct Blocks {
        n: usize,
        costed: usize,
    }

    impl Segments for Blocks {
        type Error = std::convert::Infallible;

        fn costs(&mut self, segments: &[(usize, usize)]) -> Result<Vec<Cost>, Self::Error> {
            self.costed += segments.len();
            Ok(segments.iter().map(|&(i, j)| self.cost(i, j)).collect())
        }

        fn shared_bytes(&self) -> &[usize] {
            &[]
        }
    }

    impl Blocks {
        fn cost(&self, i: usize, j: usize) -> Cost {
            let each = if i == 0 { 70 } else { 100 };
            let arena = each * (j - i) + 500 + 30 * (i % 2) + 7 * (j % 2) + if j == self.n { 200 } else { 0 };
            Cost { arena, kept: 10, ..Cost::default() }
        }

        fn pieces(&self) -> Pieces {
            let n = self.n;
            let boundaries = (0..=n).map(|i| if i % n == 0 { 0 } else { 8 }).collect();
            Pieces {
                work: vec![1; n],
                results: vec![64; n],
                boundaries,
                carried: vec![0; n + 1],
                types: vec![0; n + 1],
            }
        }
    }

    #[test]
    fn few_segments_tell_where_to_cut() {
        for (n, modules) in [(300, 2), (700, 3), (701, 4), (2001, 4), (2500, 8)] {
            let mut blocks = Blocks { n, costed: 0 };
            assert!(is_long(&blocks.pieces(), modules));
            let Ok(found) = search(&blocks.pieces(), modules..=modules, usize::MAX, &mut blocks);
            let found = found.expect("a partition");
            // With the first module longer than the others.
            let even = (70.0 * n as f64 * 100.0) / (100.0 + 70.0 * (modules - 1) as f64) + 500.0;
            let ends = found.cuts.iter().copied().chain([n]);
            let modules_found = [0].into_iter().chain(found.cuts.iter().copied()).zip(ends);
            let most = modules_found.map(|(i, j)| blocks.cost(i, j).arena).max().expect("modules");
            assert!(found.bytes.abs_diff(most + 10 * modules) <= 40, "{} and {most}", found.bytes);
            assert!(most as f64 <= 1.02 * even + 300.0, "{most}, {even} if even");
            assert!(blocks.costed <= 6 + 3 * 2, "{} costed", blocks.costed);
            let Ok(none) = search(&blocks.pieces(), modules..=modules, found.bytes / 2, &mut blocks);
            assert_eq!(none, None);
        }
    }
}
