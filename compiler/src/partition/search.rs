//! The cuts of the smallest peak, or of the least work within a limit, by costing as few segments as possible: to cost
//! one is to compile it.
//!
//! A partition is sought with what is known ([`Table`]). The best partition's segment that most is likely of is costed,
//! and with it the one that would be next if it were as is likely, since two can be costed at once. Then the search
//! begins again, until a partition is best of which everything is known.

use std::ops::RangeInclusive;

use crate::partition::segments::{Cost, Segments, Shared, Table};

/// What the best partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The one of the smallest peak; among those the one of the fewest modules, and then the one whose largest module
    /// does the least work in its forward pass.
    Smallest,
    /// The one whose step does the least work; among those the one of the smallest peak.
    Fastest,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Interior cuts, ascending.
    pub cuts: Vec<usize>,
    /// Bytes of a step beyond what every partition needs: the largest arena, and what modules keep.
    pub bytes: usize,
}

/// The best partition into as many modules as `counts` allows that takes at most `limit` bytes beyond what every
/// partition needs; none if there is no such partition.
pub fn search<S: Segments>(
    table: &mut Table,
    counts: RangeInclusive<usize>,
    limit: usize,
    aim: Aim,
    segments: &mut S,
) -> Result<Option<Found>, S::Error> {
    let n = table.pieces();
    if aim == Aim::Fastest {
        // What the work of other segments is expected from.
        let unknown = (1..n).map(|piece| (piece, piece + 1)).filter(|&(i, j)| !table.is_known(i, j));
        table.learn(&unknown.collect::<Vec<_>>(), segments)?;
    }
    // No partition was expected to take less.
    let mut least = 0;
    loop {
        let Some(found) = expected(table, counts.clone(), limit, aim, least, segments.shared_bytes()) else {
            return Ok(None);
        };
        least = found.bytes;
        let Some(first) = doubtful(table, &found) else { return Ok(Some(found)) };
        table.suppose(first.0, first.1);
        let then = expected(table, counts.clone(), limit, aim, least, segments.shared_bytes());
        let next = then.and_then(|found| doubtful(table, &found));
        table.forget(first.0, first.1);
        table.learn(&[first].into_iter().chain(next).collect::<Vec<_>>(), segments)?;
    }
}

/// The segment of a partition that is most likely to need more than it is taken to.
fn doubtful(table: &Table, found: &Found) -> Option<(usize, usize)> {
    let ends = found.cuts.iter().copied().chain([table.pieces()]);
    let modules = std::iter::once(0).chain(found.cuts.iter().copied()).zip(ends);
    let unknown = modules.filter(|&(i, j)| !table.is_known(i, j));
    unknown.max_by_key(|&(i, j)| (table.likely(i, j), table.forward(i, j)))
}

/// The best partition by what is known, where none takes less than `least`.
fn expected(
    table: &Table,
    counts: RangeInclusive<usize>,
    limit: usize,
    aim: Aim,
    least: usize,
    shared: &[usize],
) -> Option<Found> {
    let n = table.pieces();
    let work: Vec<Vec<u64>> = match aim {
        Aim::Smallest => Vec::new(),
        Aim::Fastest => (0..n).map(|i| (0..=n).map(|j| if i < j { table.work(i, j) } else { 0 }).collect()).collect(),
    };
    let work = |i: usize, j: usize| match aim {
        Aim::Smallest => table.forward(i, j),
        Aim::Fastest => work[i][j],
    };
    let cost = |i: usize, j: usize| table.expected(i, j);
    // Whatever takes more than the smallest is in its way only.
    let mut near = match aim {
        Aim::Smallest if least > 0 => limit.min(least + least / 64),
        Aim::Smallest | Aim::Fastest => limit,
    };
    loop {
        match best(n, &cost, &work, counts.clone(), near, aim, shared) {
            Some((cuts, bytes)) => return Some(Found { cuts, bytes }),
            None if near == limit => return None,
            None => near = limit.min(near.saturating_mul(2)),
        }
    }
}

/// Some first segments as modules.
#[derive(Clone, Copy, Debug)]
struct Partial {
    arena: usize,
    kept: usize,
    shared: Shared,
    /// Of the module with the most, or of all.
    work: u64,
    /// Where the last module begins, and which partial partition is before it there.
    from: usize,
    before: usize,
}

impl Partial {
    /// Bytes of a step beyond what every partition needs.
    fn bytes(&self, shared: &[usize]) -> usize {
        self.arena + self.kept + self.shared.bytes(shared)
    }

    /// Whether whatever follows, this is as good as the other.
    fn beats(&self, other: &Partial) -> bool {
        self.arena <= other.arena
            && self.kept <= other.kept
            && self.work <= other.work
            && self.shared.within(other.shared)
    }
}

/// The best partition by these costs, as its cuts and bytes.
pub(super) fn best(
    n: usize,
    cost: &dyn Fn(usize, usize) -> Cost,
    work: &dyn Fn(usize, usize) -> u64,
    counts: RangeInclusive<usize>,
    limit: usize,
    aim: Aim,
    shared: &[usize],
) -> Option<(Vec<usize>, usize)> {
    let most = *counts.end();
    // After every number of modules, of every end, the partitions of what lies before it, without those that another
    // is sure to beat: a peak is made of maxima and sums, so what is worse in every part stays so.
    let mut layers: Vec<Vec<Vec<Partial>>> = vec![vec![Vec::new(); n + 1]];
    layers[0][0].push(Partial { arena: 0, kept: 0, shared: Shared::default(), work: 0, from: 0, before: 0 });
    let mut found: Option<((u64, u64, u64), usize, Partial)> = None;
    for module in 0..most {
        let mut next: Vec<Vec<Partial>> = vec![Vec::new(); n + 1];
        // As many modules as there must at least be still need a segment each.
        let last = n - counts.start().saturating_sub(module + 1);
        for to in (module + 1..=last).filter(|&to| module + 1 < most || to == n) {
            for (from, ending) in layers[module].iter().enumerate().take(to).skip(module) {
                if ending.is_empty() {
                    continue;
                }
                let (c, own) = (cost(from, to), work(from, to));
                if c.arena > limit {
                    continue;
                }
                for (before, p) in ending.iter().enumerate() {
                    let p = Partial {
                        arena: p.arena.max(c.arena),
                        kept: p.kept + c.kept,
                        shared: p.shared.union(c.shared),
                        work: match aim {
                            Aim::Smallest => p.work.max(own),
                            Aim::Fastest => p.work + own,
                        },
                        from,
                        before,
                    };
                    if p.bytes(shared) <= limit && !next[to].iter().any(|q| q.beats(&p)) {
                        next[to].retain(|q| !p.beats(q));
                        next[to].push(p);
                    }
                }
            }
        }
        if counts.contains(&(module + 1)) {
            for p in &next[n] {
                let bytes = p.bytes(shared) as u64;
                let key = match aim {
                    Aim::Smallest => (bytes, module as u64, p.work),
                    Aim::Fastest => (p.work, bytes, module as u64),
                };
                if found.as_ref().is_none_or(|f| key < f.0) {
                    found = Some((key, module + 1, *p));
                }
            }
        }
        layers.push(next);
    }
    let (_, modules, whole) = found?;
    let (mut cuts, mut at) = (Vec::new(), whole);
    for module in (1..modules).rev() {
        cuts.push(at.from);
        at = layers[module][at.from][at.before];
    }
    cuts.reverse();
    Some((cuts, whole.bytes(shared)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::segments::{PART, Pieces, SIZED, Sizes};

    /// A network whose costs are made up.
    struct Made {
        cost: Vec<Vec<Cost>>,
        forward: Vec<u64>,
        results: Vec<usize>,
        boundaries: Vec<usize>,
        shared: Vec<usize>,
        /// By end: the constant that a head there reads, if it is below 3.
        constant: Vec<usize>,
        costed: std::collections::BTreeSet<(usize, usize)>,
    }

    impl Segments for Made {
        type Error = std::convert::Infallible;

        fn costs(&mut self, segments: &[(usize, usize)]) -> Result<Vec<Cost>, Self::Error> {
            let cost = |&(i, j): &(usize, usize)| {
                assert!(self.costed.insert((i, j)), "costed twice");
                self.cost[i][j]
            };
            Ok(segments.iter().map(cost).collect())
        }

        fn shared_bytes(&self) -> &[usize] {
            &self.shared
        }
    }

    impl Made {
        /// Costs as networks have them: longer segments need more, boundaries and heads belong to the end. Two heads
        /// may share a constant.
        fn new(rng: &mut slrc_plan::random::Sequence, n: usize) -> Made {
            let mut draw = |below: u32| (rng.word() % below) as usize;
            let pieces: Vec<usize> = (0..n).map(|_| draw(50)).collect();
            let forward: Vec<u64> = (0..n).map(|_| 1 + draw(9) as u64).collect();
            let ends: Vec<(usize, usize, usize)> = (0..=n).map(|_| (draw(40), draw(10), draw(4))).collect();
            let mut cost = vec![vec![Cost::default(); n + 1]; n + 1];
            for i in 0..n {
                for j in i + 1..=n {
                    let (boundary, kept, constant) = if j == n { (0, 0, 3) } else { ends[j] };
                    // A boundary is held beside the rest, but it was an activation within the whole.
                    let arena = ends[i].0 + 4 * pieces[i..j].iter().sum::<usize>() + draw(5) + boundary;
                    let mut shared = Shared::default();
                    if constant < 3 {
                        shared.insert(constant);
                    }
                    let times = if i == 0 { 30 } else { 60 };
                    let work = times * forward[i..j].iter().sum::<u64>() + kept as u64;
                    cost[i][j] = Cost { arena: 100 * arena, kept: kept + usize::from(i > 0), shared, work };
                }
            }
            let constant = ends.iter().map(|e| e.2).collect();
            let results = pieces.iter().map(|p| 400 * p).collect();
            let mut boundaries: Vec<usize> = ends.iter().map(|e| 66 * e.0).collect();
            boundaries[n] = 0;
            let (shared, costed) = (vec![7, 20, 300], Default::default());
            Made { cost, forward, results, boundaries, shared, constant, costed }
        }

        /// Whether no part needs too much more than the whole, and nothing too much more for its size than others.
        fn holds(&self) -> bool {
            let n = self.forward.len();
            let fine = |i: usize, j: usize| {
                let starts = if i == 0 { 0..1 } else { i..j };
                let parts = starts.flat_map(|a| (a + 1..=j).map(move |b| (a, b)));
                let most = parts.map(|(a, b)| self.cost[a][b].arena).max();
                most.is_some_and(|most| most / 100 * PART <= self.cost[i][j].arena)
            };
            let sizes = Sizes::new(&Pieces {
                work: self.forward.clone(),
                results: self.results.clone(),
                boundaries: self.boundaries.clone(),
                carried: vec![0; self.boundaries.len()],
                types: Vec::new(),
            });
            let all = || (0..n).flat_map(|i| (i + 1..=n).map(move |j| (i, j)));
            let per_byte = || all().map(|(i, j)| self.cost[i][j].arena as f64 / sizes.of(i, j));
            let (least, most) = (per_byte().fold(f64::MAX, f64::min), per_byte().fold(0.0, f64::max));
            all().all(|(i, j)| fine(i, j)) && most * SIZED / 100.0 <= least
        }

        /// Bytes, work of the largest module's forward pass, and work of a step.
        fn score(&self, cuts: &[usize]) -> (usize, u64, u64) {
            let ends = cuts.iter().copied().chain([self.forward.len()]);
            let modules: Vec<(usize, usize)> = [0].into_iter().chain(cuts.iter().copied()).zip(ends).collect();
            let costs: Vec<Cost> = modules.iter().map(|&(i, j)| self.cost[i][j]).collect();
            let arena = costs.iter().map(|c| c.arena).max().unwrap_or(0);
            let kept: usize = costs.iter().map(|c| c.kept).sum();
            let n = self.forward.len();
            let used = |s: usize| modules.iter().any(|&(_, j)| j < n && self.constant[j] == s);
            let shared: usize = (0..3).filter(|&s| used(s)).map(|s| self.shared[s]).sum();
            let largest = modules.iter().map(|&(i, j)| self.forward[i..j].iter().sum()).max().unwrap_or(0);
            (arena + kept + shared, largest, costs.iter().map(|c| c.work).sum())
        }

        fn search(&mut self, counts: RangeInclusive<usize>, limit: usize, aim: Aim) -> Option<Found> {
            self.costed.clear();
            // No two ends are sure to be alike.
            let types: Vec<usize> = (0..=self.forward.len()).collect();
            let (work, results, boundaries) = (self.forward.clone(), self.results.clone(), self.boundaries.clone());
            let mut table = Table::new(&Pieces { work, results, boundaries, carried: vec![0; types.len()], types });
            let Ok(found) = search(&mut table, counts, limit, aim, self);
            found
        }
    }

    /// Every way to choose `k - 1` interior cuts of `n` pieces.
    fn all_cuts(n: usize, k: usize) -> Vec<Vec<usize>> {
        fn go(from: usize, n: usize, left: usize, so_far: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
            if left == 0 {
                out.push(so_far.clone());
                return;
            }
            for c in from..n {
                so_far.push(c);
                go(c + 1, n, left - 1, so_far, out);
                so_far.pop();
            }
        }
        let mut out = Vec::new();
        go(1, n, k - 1, &mut Vec::new(), &mut out);
        out
    }

    /// Networks on which the choice is exact.
    fn networks() -> Vec<Made> {
        let mut rng = slrc_plan::random::Sequence::new(5, 0, 0);
        let mut out: Vec<Made> = (0..60)
            .map(|_| {
                let n = 4 + rng.word() as usize % 5;
                Made::new(&mut rng, n)
            })
            .collect();
        out.retain(Made::holds);
        assert!(out.len() >= 20, "{} networks", out.len());
        out
    }

    #[test]
    fn the_choice_is_exact_where_parts_need_no_more_than_the_whole() {
        let (mut all, mut needed) = (0, 0);
        for mut m in networks() {
            let n = m.forward.len();
            for k in 2..=n {
                let found = m.search(k..=k, usize::MAX, Aim::Smallest).expect("a partition");
                all += n * (n + 1) / 2;
                needed += m.costed.len();
                let (bytes, largest, _) = m.score(&found.cuts);
                assert_eq!(found.bytes, bytes);
                let best = all_cuts(n, k).iter().map(|c| m.score(c)).map(|s| (s.0, s.1)).min().expect("some partition");
                assert_eq!((bytes, largest), best, "{:?} into {k}", m.cost);
            }
        }
        assert!(needed * 3 < all * 2, "{needed} of {all} segments costed");
    }

    #[test]
    fn the_number_of_modules_may_be_left_open() {
        for mut m in networks() {
            let n = m.forward.len();
            let found = m.search(2..=n, usize::MAX, Aim::Smallest).expect("a partition");
            let score = |c: &Vec<usize>| (m.score(c).0, c.len(), m.score(c).1);
            let best = (2..=n).flat_map(|k| all_cuts(n, k)).map(|c| score(&c)).min().expect("some partition");
            assert_eq!(score(&found.cuts), best);
        }
    }

    #[test]
    fn limits_are_kept_and_met() {
        for mut m in networks() {
            let n = m.forward.len();
            for k in 2..=n {
                let smallest = m.search(k..=k, usize::MAX, Aim::Smallest).expect("a partition").bytes;
                for aim in [Aim::Smallest, Aim::Fastest] {
                    assert_eq!(m.search(k..=k, smallest - 1, aim), None);
                    assert_eq!(m.search(k..=k, smallest, aim).expect("a partition").bytes, smallest);
                }
                for limit in [smallest, smallest + 50, smallest + 1000, usize::MAX] {
                    let found = m.search(k..=k, limit, Aim::Fastest).expect("a partition");
                    let within = all_cuts(n, k).into_iter().map(|c| m.score(&c)).filter(|s| s.0 <= limit);
                    let least = within.map(|s| s.2).min().expect("some partition");
                    let (bytes, _, work) = m.score(&found.cuts);
                    assert!(bytes <= limit);
                    // Work is likely, not certain, before it is known: heads' is not in proportion.
                    assert!(work <= least + least / 50, "{work} against {least} of {k} within {limit}");
                }
            }
        }
    }
}
