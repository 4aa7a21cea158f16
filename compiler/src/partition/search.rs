//! The cuts of the smallest peak, by costing as few segments as possible: to cost one is to compile it.
//!
//! A partition is sought with what is known. Where a segment has not been costed, it is taken to need what parts of it
//! were seen to need, less a little ([`PART`]), and a part never seen nothing. The best partition's segment of which
//! most is expected is costed, and the search begins again, until a partition is best of which everything is known.
//! The first module is not reconciled, so that it is compared with parts that begin where it does only.

/// What a segment costs as a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of the arena of its training step, with the boundaries on both sides.
    pub arena: usize,
    /// Bytes its local head keeps for the whole run: parameters and their optimizer state. It depends on where the
    /// segment ends only.
    pub head: usize,
}

/// A segment is taken to need at least so much of the arena of a part of it, in percent. A part may need a little more
/// than the whole: it has a boundary and a head where the whole has neither.
const PART: usize = 80;

/// Interior cuts, ascending, of the pieces `0..work.len()` into `k` modules: the smallest peak, and among the
/// partitions that reach it the one whose largest module does the least work.
pub(super) fn smallest_peak<E>(
    work: &[u64],
    k: usize,
    mut cost: impl FnMut(usize, usize) -> Result<Cost, E>,
) -> Result<Vec<usize>, E> {
    let n = work.len();
    let mut table = Table { known: vec![vec![None; n + 1]; n + 1], heads: vec![0; n + 1], work: sums(work) };
    // The smallest peak, once it is known: then only work counts.
    let mut smallest: Option<usize> = None;
    loop {
        let expected = table.expected();
        let all = partitions(&expected, &table.work, k, smallest.unwrap_or(usize::MAX));
        let key = |p: &Partial| match smallest {
            None => (p.peak() as u64, p.work),
            Some(_) => (p.work, p.peak() as u64),
        };
        let best =
            all.into_iter().min_by_key(key).expect("invariant: k <= n, and some partition has the smallest peak");
        let ends = best.cuts.iter().copied().chain([n]);
        let segments = std::iter::once(0).chain(best.cuts.iter().copied()).zip(ends);
        let unknown = segments.filter(|&(i, j)| table.known[i][j].is_none());
        match unknown.max_by_key(|&(i, j)| (expected[i][j].arena, table.work[j] - table.work[i])) {
            Some((i, j)) => {
                let c = cost(i, j)?;
                table.known[i][j] = Some(c);
                table.heads[j] = c.head;
            }
            None if smallest.is_none() => smallest = Some(best.peak()),
            None => return Ok(best.cuts),
        }
    }
}

/// What is known of segments `i..j`.
struct Table {
    known: Vec<Vec<Option<Cost>>>,
    /// By end.
    heads: Vec<usize>,
    /// Work before each cut.
    work: Vec<u64>,
}

fn sums(work: &[u64]) -> Vec<u64> {
    let mut sum = 0;
    let after = work.iter().map(|w| {
        sum += w;
        sum
    });
    std::iter::once(0).chain(after).collect()
}

impl Table {
    /// Costs, and where they are not known what they are at least.
    fn expected(&self) -> Vec<Vec<Cost>> {
        let n = self.known.len() - 1;
        let mut out = vec![vec![Cost::default(); n + 1]; n + 1];
        // The largest arena known of a segment or a part of it.
        let mut parts = vec![vec![0; n + 1]; n + 1];
        for length in 1..=n {
            for i in 0..=n - length {
                let j = i + length;
                let within = match (i, length) {
                    (_, 1) => 0,
                    // What is not reconciled may need less than a part that would be.
                    (0, _) => parts[0][j - 1],
                    _ => parts[i + 1][j].max(parts[i][j - 1]),
                };
                let known = self.known[i][j];
                parts[i][j] = within.max(known.map_or(0, |c| c.arena));
                out[i][j] = known.unwrap_or(Cost { arena: within / 100 * PART, head: self.heads[j] });
            }
        }
        out
    }
}

/// Some first segments as modules.
#[derive(Clone, Debug)]
struct Partial {
    arena: usize,
    heads: usize,
    /// Work of the module with the most.
    work: u64,
    cuts: Vec<usize>,
}

impl Partial {
    /// Bytes of a step beyond what every partition needs: the largest arena and the heads.
    fn peak(&self) -> usize {
        self.arena + self.heads
    }

    fn then(&self, from: usize, c: &Cost, work: u64) -> Partial {
        let mut p = self.clone();
        p.arena = p.arena.max(c.arena);
        p.heads += c.head;
        p.work = p.work.max(work);
        if from > 0 {
            p.cuts.push(from);
        }
        p
    }

    /// Whether whatever follows, this is as good as the other.
    fn beats(&self, other: &Partial) -> bool {
        self.arena <= other.arena && self.heads <= other.heads && self.work <= other.work
    }
}

/// Partitions of everything into `k` modules within `limit`, without those that another is sure to beat: a peak is made
/// of maxima and sums, so what is worse in every part stays so.
fn partitions(cost: &[Vec<Cost>], work: &[u64], k: usize, limit: usize) -> Vec<Partial> {
    let n = cost.len() - 1;
    let none = Partial { arena: 0, heads: 0, work: 0, cuts: Vec::new() };
    // Of every end, the partitions of what lies before it.
    let mut ends: Vec<Vec<Partial>> = vec![Vec::new(); n + 1];
    ends[0].push(none);
    for module in 0..k {
        let mut next: Vec<Vec<Partial>> = vec![Vec::new(); n + 1];
        // Every module still to come needs a segment.
        let last = n - (k - 1 - module);
        for to in (module + 1..=last).filter(|&to| module + 1 < k || to == n) {
            for from in module..to {
                for p in &ends[from] {
                    let p = p.then(from, &cost[from][to], work[to] - work[from]);
                    if p.peak() <= limit && !next[to].iter().any(|q| q.beats(&p)) {
                        next[to].retain(|q| !p.beats(q));
                        next[to].push(p);
                    }
                }
            }
        }
        ends = next;
    }
    ends.swap_remove(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Costs as networks have them: longer segments need more, boundaries and heads belong to the end.
    fn table(rng: &mut slrc_plan::random::Sequence, n: usize) -> (Vec<Vec<Cost>>, Vec<u64>) {
        let mut draw = |below: u32| (rng.word() % below) as usize;
        let pieces: Vec<usize> = (0..n).map(|_| draw(50)).collect();
        let ends: Vec<(usize, usize)> = (0..=n).map(|_| (draw(40), draw(10))).collect();
        let mut t = vec![vec![Cost::default(); n + 1]; n + 1];
        for i in 0..n {
            for j in i + 1..=n {
                let (boundary, head) = if j == n { (0, 0) } else { ends[j] };
                // A boundary is held beside the rest, but it was an activation within the whole.
                let arena = ends[i].0 + 4 * pieces[i..j].iter().sum::<usize>() + draw(5) + boundary;
                t[i][j] = Cost { arena: 100 * arena, head };
            }
        }
        (t, (0..n).map(|_| u64::from(rng.word() % 9)).collect())
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

    #[test]
    fn the_choice_is_exact_where_parts_need_no_more_than_the_whole() {
        let mut rng = slrc_plan::random::Sequence::new(5, 0, 0);
        let (mut tried, mut all, mut needed) = (0, 0, 0);
        for _ in 0..60 {
            let n = 4 + rng.word() as usize % 5;
            let (t, work) = table(&mut rng, n);
            let holds = |(i, j): (usize, usize)| {
                let starts = if i == 0 { 0..1 } else { i..j };
                let parts = starts.flat_map(|a| (a + 1..=j).map(move |b| (a, b)));
                parts.map(|(a, b)| t[a][b].arena).max().is_some_and(|most| most / 100 * PART <= t[i][j].arena)
            };
            if !(0..n).flat_map(|i| (i + 1..=n).map(move |j| (i, j))).all(holds) {
                continue;
            }
            tried += 1;
            for k in 2..=n {
                let score = |cuts: &[usize]| {
                    let ends = cuts.iter().copied().chain([n]);
                    let starts = [0].into_iter().chain(cuts.iter().copied());
                    let segments: Vec<(usize, usize)> = starts.zip(ends).collect();
                    let modules: Vec<Cost> = segments.iter().map(|&(i, j)| t[i][j]).collect();
                    let work = segments.iter().map(|&(i, j)| work[i..j].iter().sum::<u64>()).max();
                    let arena = modules.iter().map(|c| c.arena).max().unwrap_or(0);
                    let heads: usize = modules.iter().map(|c| c.head).sum();
                    (arena + heads, work)
                };
                let mut costed = std::collections::BTreeSet::new();
                let found = smallest_peak(&work, k, |i, j| {
                    assert!(costed.insert((i, j)), "costed twice");
                    Ok::<_, std::convert::Infallible>(t[i][j])
                });
                let Ok(found) = found.map(|cuts| score(&cuts));
                all += n * (n + 1) / 2;
                needed += costed.len();
                let best = all_cuts(n, k).iter().map(|c| score(c)).min().expect("some partition");
                assert_eq!(found, best, "{t:?} into {k}");
            }
        }
        assert!(tried >= 20 && needed * 3 < all * 2, "{tried} tables, {needed} of {all} segments costed");
    }
}
