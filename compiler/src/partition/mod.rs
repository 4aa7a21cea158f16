//! Partition: where to cut the network into modules.
//!
//! A cut is a value that carries everything differentiable from what comes before to what comes after: alone, or where
//! that is asked for, with some tensors beside it that are carried along.
//! [`candidates`] finds every cut and says of every other value why not; [`choose`] picks cuts by the spec,
//! given the cost of segments ([`Segments`]); [`apply`] puts a `detach` at each and says which module every node is in;
//! [`verify_isolation`] proves that nothing else crosses. Costs come from the caller: this pass calls no other.

mod candidates;
mod choose;
mod long;
#[cfg(test)]
mod random;
mod search;
mod segments;
mod separation;
mod split;

pub use candidates::{Candidate, Candidates, Carried, Rejected, candidates, check_path};
pub use choose::choose;
pub use search::{Aim, Found, search};
pub use segments::{Cost, Pieces, Segments, Shared, Table};
pub use split::{IsolationError, Partitioned, apply, module_graph, verify_isolation};

/// A partition that cannot be made; the user's to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// More modules than cuts allow.
    #[error("{wanted} modules need {} cuts, but the network allows only {cuts}: ask for {} modules or fewer, or force places with --at{}", wanted - 1, cuts + 1, hint(reasons))]
    TooMany {
        /// Modules asked for.
        wanted: usize,
        /// Cuts there are.
        cuts: usize,
        /// Why there are not more.
        reasons: Vec<Rejected>,
    },
    /// Two cuts on different paths.
    #[error(
        "cannot cut at both \"{first}\" and \"{second}\": \"{second}\" does not need \"{first}\", and cuts follow one path"
    )]
    Beside {
        /// The earlier one.
        first: String,
        /// The later one.
        second: String,
    },
    /// `--at` names something that is no node.
    #[error("cannot cut at \"{name}\": the network has no such node or value{}", near(nearest))]
    NoSuchNode {
        /// The name given.
        name: String,
        /// A name that resembles it.
        nearest: Option<String>,
    },
    /// `--at` names a node where no cut is possible.
    #[error("cannot cut at \"{name}\": {reason}{}", carrying(*beside))]
    NoCut {
        /// The name given.
        name: String,
        /// Why not.
        reason: String,
        /// If only tensors that cross beside it are in the way: how many.
        beside: Option<usize>,
    },
}

fn hint(reasons: &[Rejected]) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = reasons.iter().take(8).map(|r| format!("\n  {}: {}", r.node, r.reason)).collect();
    let fewest = reasons.iter().filter_map(|r| r.beside).min();
    let skips = fewest.map_or(String::new(), |n| {
        format!("; --allow-skips N also cuts where up to N tensors cross beside the one cut at, here {n} or more")
    });
    format!("{skips}; places where it cannot be cut:{}", lines.concat())
}

fn carrying(beside: Option<usize>) -> String {
    match beside {
        None => String::new(),
        Some(1) => "; --allow-skips 1 would carry the other along".into(),
        Some(n) => format!("; --allow-skips {n} would carry the others along"),
    }
}

fn near(name: &Option<String>) -> String {
    name.as_ref().map_or(String::new(), |n| format!("; did you mean \"{n}\"?"))
}
