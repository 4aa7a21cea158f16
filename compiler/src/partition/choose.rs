//! Which cuts to take.

use crate::nearest::nearest;
use crate::partition::{Candidate, Candidates, PartitionError};
use crate::spec::PartitionSpec;

/// What a segment costs as a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes a step needs at once beyond all weights and optimizer state.
    pub peak: usize,
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
            Ok(balance(&table, *k).into_iter().map(|c| found.cuts[c - 1].clone()).collect())
        }
        PartitionSpec::PerLayer => Ok(per_layer(&found.cuts)),
        PartitionSpec::At(names) => at(found, names).map_err(E::from),
    }
}

/// Interior cuts, ascending, of the segments `0..n` into `k` parts: first the smallest possible largest peak, then
/// among those the smallest possible largest flops, then the earliest cuts. Exact, by dynamic programming twice.
fn balance(cost: &[Vec<Cost>], k: usize) -> Vec<usize> {
    let n = cost.len() - 1;
    let peak = best(n, k, |i, j| Some(cost[i][j].peak as u64)).0;
    best(n, k, |i, j| (cost[i][j].peak as u64 <= peak).then_some(cost[i][j].flops)).1
}

/// Smallest largest weight over partitions of `0..n` into `k` segments, and the interior cuts that reach it; a segment
/// without a weight is not allowed.
fn best(n: usize, k: usize, weight: impl Fn(usize, usize) -> Option<u64>) -> (u64, Vec<usize>) {
    // reach[p][j]: smallest largest weight of covering 0..j with p segments, and the last segment's start.
    let mut reach = vec![vec![None::<(u64, usize)>; n + 1]; k + 1];
    reach[0][0] = Some((0, 0));
    for p in 1..=k {
        for j in p..=n {
            for i in p - 1..j {
                let (Some((so_far, _)), Some(w)) = (reach[p - 1][i], weight(i, j)) else { continue };
                let largest = so_far.max(w);
                if reach[p][j].is_none_or(|(b, _)| largest < b) {
                    reach[p][j] = Some((largest, i));
                }
            }
        }
    }
    let mut cuts = Vec::new();
    let mut at = n;
    for p in (1..=k).rev() {
        let (_, i) = reach[p][at].expect("invariant: k segments of at least one piece each exist");
        if p > 1 {
            cuts.push(i);
        }
        at = i;
    }
    cuts.reverse();
    (reach[k][n].expect("invariant: checked above").0, cuts)
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

    fn table(weights: &[usize]) -> Vec<Vec<Cost>> {
        let n = weights.len();
        let mut t = vec![vec![Cost::default(); n + 1]; n + 1];
        for i in 0..n {
            for j in i + 1..=n {
                let peak = weights[i..j].iter().sum();
                t[i][j] = Cost { peak, flops: (j - i) as u64 };
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
    fn dynamic_programme_is_exact() {
        let mut rng = slrc_plan::random::Sequence::new(5, 0, 0);
        for _ in 0..50 {
            let n = 4 + rng.word() as usize % 5;
            let weights: Vec<usize> = (0..n).map(|_| rng.word() as usize % 50).collect();
            let t = table(&weights);
            for k in 2..=n {
                let score = |cuts: &[usize]| {
                    let mut ends = cuts.to_vec();
                    ends.push(n);
                    let mut from = 0;
                    let (mut peak, mut flops) = (0, 0);
                    for e in ends {
                        peak = peak.max(t[from][e].peak);
                        flops = flops.max(t[from][e].flops);
                        from = e;
                    }
                    (peak, flops)
                };
                let found = score(&balance(&t, k));
                let best = all_cuts(n, k).iter().map(|c| score(c)).min().expect("some partition");
                assert_eq!(found, best, "{weights:?} into {k}");
            }
        }
    }
}
