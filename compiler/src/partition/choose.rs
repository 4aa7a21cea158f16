//! Which cuts to take.

use crate::nearest::nearest;
use crate::partition::{Candidate, Candidates, PartitionError};
use crate::spec::PartitionSpec;

/// What a segment costs as a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of the arena of its training step.
    pub arena: usize,
    /// Bytes of the boundary it hands on.
    pub boundary: usize,
    /// Bytes its local head keeps for the whole run: parameters and their optimizer state.
    pub head: usize,
    /// Floating-point operations of a step.
    pub flops: u64,
}

/// Chooses cuts. `cost(i, j)` is the cost of the segment after cut `i - 1` up to cut `j - 1` of `found.cuts`
/// (0 is the network's input, `cuts.len() + 1` its output); it is asked only for `i < j`.
pub fn choose<E: From<PartitionError>>(
    found: &Candidates,
    spec: &PartitionSpec,
    mut cost: impl FnMut(usize, usize) -> Result<Cost, E>,
) -> Result<Vec<Candidate>, E> {
    match spec {
        PartitionSpec::Modules(1) => Ok(Vec::new()),
        PartitionSpec::Modules(k) => {
            if k - 1 > found.cuts.len() {
                let reasons = found.rejected.clone();
                return Err(PartitionError::TooMany { wanted: *k, cuts: found.cuts.len(), reasons }.into());
            }
            let n = found.cuts.len() + 1;
            let mut table = vec![vec![Cost::default(); n + 1]; n + 1];
            for (i, row) in table.iter_mut().enumerate().take(n) {
                for (j, entry) in row.iter_mut().enumerate().skip(i + 1) {
                    *entry = cost(i, j)?;
                }
            }
            Ok(smallest_peak(&table, *k).into_iter().map(|c| found.cuts[c - 1].clone()).collect())
        }
        PartitionSpec::PerLayer => Ok(per_layer(&found.cuts)),
        PartitionSpec::At(names) => at(found, names).map_err(E::from),
    }
}

/// Interior cuts, ascending, of the segments `0..n` into `k` parts: the smallest possible peak, and among the
/// partitions that reach it the one whose largest module does the least work. Exact, by dynamic programming twice.
fn smallest_peak(cost: &[Vec<Cost>], k: usize) -> Vec<usize> {
    let fewest = |all: Vec<Partial>| all.into_iter().min_by_key(|p| (p.peak(), p.flops)).expect("invariant: k <= n");
    let peak = fewest(partitions(cost, k, usize::MAX, false)).peak();
    fewest(partitions(cost, k, peak, true)).cuts
}

/// Some first segments as modules.
#[derive(Clone, Debug)]
struct Partial {
    arena: usize,
    /// The two slots that boundaries use in turn.
    slots: [usize; 2],
    heads: usize,
    flops: u64,
    cuts: Vec<usize>,
}

impl Partial {
    /// Bytes of a step beyond what every partition needs: the largest arena, both slots, the heads.
    fn peak(&self) -> usize {
        self.arena + self.slots[0] + self.slots[1] + self.heads
    }

    fn then(&self, module: usize, from: usize, c: &Cost) -> Partial {
        let mut p = self.clone();
        p.arena = p.arena.max(c.arena);
        p.slots[module % 2] = p.slots[module % 2].max(c.boundary);
        p.heads += c.head;
        p.flops = p.flops.max(c.flops);
        if from > 0 {
            p.cuts.push(from);
        }
        p
    }

    /// Whether whatever follows, this is as good as the other.
    fn beats(&self, other: &Partial, by_flops: bool) -> bool {
        self.arena <= other.arena
            && self.slots[0] <= other.slots[0]
            && self.slots[1] <= other.slots[1]
            && self.heads <= other.heads
            && (!by_flops || self.flops <= other.flops)
    }
}

/// Partitions of everything into `k` modules within `limit`, without those that another is sure to beat: a peak is made
/// of maxima and sums, so what is worse in every part stays so.
fn partitions(cost: &[Vec<Cost>], k: usize, limit: usize, by_flops: bool) -> Vec<Partial> {
    let n = cost.len() - 1;
    let none = Partial { arena: 0, slots: [0; 2], heads: 0, flops: 0, cuts: Vec::new() };
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
                    let p = p.then(module, from, &cost[from][to]);
                    if p.peak() <= limit && !next[to].iter().any(|q| q.beats(&p, by_flops)) {
                        next[to].retain(|q| !p.beats(q, by_flops));
                        next[to].push(p);
                    }
                }
            }
        }
        ends = next;
    }
    ends.swap_remove(n)
}

/// Of the cuts between two layers with weights, the last: what follows pooling is smaller.
fn per_layer(cuts: &[Candidate]) -> Vec<Candidate> {
    let mut out: Vec<Candidate> = Vec::new();
    for c in cuts.iter().filter(|c| c.layers_before > 0) {
        if out.last().is_some_and(|l| l.layers_before == c.layers_before) {
            out.pop();
        }
        out.push(c.clone());
    }
    out
}

fn at(found: &Candidates, names: &[String]) -> Result<Vec<Candidate>, PartitionError> {
    let mut chosen: Vec<Candidate> = Vec::new();
    for name in names {
        let matches = |node: &str, value: &str| node == name || value == name;
        if let Some(c) = found.cuts.iter().find(|c| matches(&c.node, &c.name)) {
            chosen.push(c.clone());
        } else if let Some(r) = found.rejected.iter().find(|r| matches(&r.node, &r.name)) {
            let possible = r.possible.clone();
            chosen
                .push(possible.ok_or_else(|| PartitionError::NoCut { name: name.clone(), reason: r.reason.clone() })?);
        } else if found.others.iter().any(|(node, value)| matches(node, value)) {
            let reason = "it carries no gradient of its own to a later layer".into();
            return Err(PartitionError::NoCut { name: name.clone(), reason });
        } else {
            let all = found.cuts.iter().map(|c| c.node.as_str()).chain(found.rejected.iter().map(|r| r.node.as_str()));
            let nearest = nearest(name, all).map(str::to_string);
            return Err(PartitionError::NoSuchNode { name: name.clone(), nearest });
        }
    }
    chosen.sort_by_key(|c| c.value);
    chosen.dedup_by_key(|c| c.value);
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Costs as networks have them: longer segments need more, boundaries and heads belong to the end.
    fn table(rng: &mut slrc_plan::random::Sequence, n: usize) -> Vec<Vec<Cost>> {
        let mut draw = |below: u32| (rng.word() % below) as usize;
        let pieces: Vec<usize> = (0..n).map(|_| draw(50)).collect();
        let ends: Vec<(usize, usize)> = (0..n).map(|_| (draw(40), draw(10))).collect();
        let mut t = vec![vec![Cost::default(); n + 1]; n + 1];
        for i in 0..n {
            for j in i + 1..=n {
                let (boundary, head) = if j == n { (0, 0) } else { ends[j] };
                let arena = pieces[i..j].iter().sum::<usize>() + draw(5);
                t[i][j] = Cost { arena, boundary, head, flops: draw(20) as u64 + (j - i) as u64 };
            }
        }
        t
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
    fn the_choice_is_exact() {
        let mut rng = slrc_plan::random::Sequence::new(5, 0, 0);
        for _ in 0..60 {
            let n = 4 + rng.word() as usize % 5;
            let t = table(&mut rng, n);
            for k in 2..=n {
                let score = |cuts: &[usize]| {
                    let ends = cuts.iter().copied().chain([n]);
                    let starts = [0].into_iter().chain(cuts.iter().copied());
                    let modules: Vec<Cost> = starts.zip(ends).map(|(i, j)| t[i][j]).collect();
                    let slot = |s: usize| modules.iter().skip(s).step_by(2).map(|c| c.boundary).max().unwrap_or(0);
                    let arena = modules.iter().map(|c| c.arena).max().unwrap_or(0);
                    let heads: usize = modules.iter().map(|c| c.head).sum();
                    (arena + slot(0) + slot(1) + heads, modules.iter().map(|c| c.flops).max())
                };
                let found = score(&smallest_peak(&t, k));
                let best = all_cuts(n, k).iter().map(|c| score(c)).min().expect("some partition");
                assert_eq!(found, best, "{t:?} into {k}");
            }
        }
    }
}
