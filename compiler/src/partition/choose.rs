//! Which cuts to take.

use crate::nearest::nearest;
use crate::partition::long::{self, is_long};
use crate::partition::search::{Aim, search};
use crate::partition::segments::{Pieces, Segments, Table};
use crate::partition::{Candidate, Candidates, PartitionError};
use crate::spec::PartitionSpec;

/// Chooses cuts.
pub fn choose<S: Segments<Error: From<PartitionError>>>(
    found: &Candidates,
    spec: &PartitionSpec,
    pieces: impl FnOnce() -> Pieces,
    segments: &mut S,
) -> Result<Vec<Candidate>, S::Error> {
    match spec {
        PartitionSpec::Modules(1) => Ok(Vec::new()),
        PartitionSpec::Modules(k) => {
            if k - 1 > found.cuts.len() {
                let reasons = found.rejected.clone();
                return Err(PartitionError::TooMany { wanted: *k, cuts: found.cuts.len(), reasons }.into());
            }
            let pieces = pieces();
            let best = match is_long(&pieces, *k) {
                true => long::search(&pieces, *k..=*k, usize::MAX, segments)?,
                false => search(&mut Table::new(&pieces), *k..=*k, usize::MAX, Aim::Smallest, segments)?,
            };
            let best = best.expect("invariant: there are enough cuts, and no limit");
            Ok(best.cuts.into_iter().map(|c| found.cuts[c - 1].clone()).collect())
        }
        PartitionSpec::PerLayer => Ok(per_layer(&found.cuts)),
        PartitionSpec::At(names) => at(found, names).map_err(S::Error::from),
        PartitionSpec::Budget(_) => unreachable!("the pipeline chooses by budget"),
    }
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
            chosen.push(possible.ok_or_else(|| PartitionError::NoCut {
                name: name.clone(),
                reason: r.reason.clone(),
                beside: r.beside,
            })?);
        } else if found.others.iter().any(|(node, value)| matches(node, value)) {
            let reason = "it carries no gradient of its own to a later layer".into();
            return Err(PartitionError::NoCut { name: name.clone(), reason, beside: None });
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
