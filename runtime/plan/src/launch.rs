//! How a CUDA device runs a program: functions of `kernels.cu` with their launch geometry and arguments.
//!
//! Kernels say what is computed, launches how. A kernel may take several launches (partial results, then their sum),
//! and a launch may do the work of several kernels: side by side, each in blocks of its own, or one behind another, on
//! the rows of a product that are complete.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dims::Dims;
use crate::view::is_buffer_id;

/// One launch. Launches run in order; each sees the results of those before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Ids of the kernels whose work it does, in order.
    pub kernels: Vec<String>,
    /// Name of an `extern "C" __global__` function.
    pub function: String,
    /// Blocks along x, y and z.
    pub grid: Dims,
    /// Where it works for several kernels: how many blocks each takes. Those of kernels that follow none are the grid,
    /// one kernel after the other; those of the others come behind, for when these run by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<usize>,
    /// Kernels that work on the rows of another, a product, in the blocks of that one, as rows are completed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub follows: BTreeMap<String, String>,
    /// Threads of a block, along x.
    pub block: usize,
    /// Bytes of dynamic shared memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared: usize,
    /// One parameter of the function each.
    pub args: Vec<LaunchArg>,
}

/// Kernels of a launch, which can run without the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Positions in [`Launch::kernels`].
    pub kernels: Vec<usize>,
    /// The first of their blocks.
    pub first: usize,
    /// Blocks along x, y and z.
    pub grid: Vec<usize>,
    /// Whether they run without the kernels that follow them.
    pub alone: bool,
}

impl Launch {
    /// What is left of it without the kernels that are `taken`: as few parts as can be, in an order in which they can
    /// run.
    pub fn without(&self, taken: impl Fn(&str) -> bool) -> Vec<Part> {
        if self.blocks.is_empty() {
            let kernels = (0..self.kernels.len()).collect();
            let all = Part { kernels, first: 0, grid: self.grid.0.clone(), alone: false };
            return if self.kernels.iter().any(|k| taken(k)) { Vec::new() } else { vec![all] };
        }
        let firsts = self.firsts();
        let all = || self.kernels.iter().enumerate();
        let part = |kernels: Vec<usize>, i: usize, alone: bool| {
            let grid = vec![self.blocks[i], 1, 1];
            Part { kernels, first: firsts[i], grid, alone }
        };
        let mut parts: Vec<Part> = Vec::new();
        // Whether the blocks before the next ones are the last part's.
        let mut joins = false;
        for (i, id) in all().filter(|(_, id)| !self.follows.contains_key(*id)) {
            if taken(id) {
                joins = false;
                continue;
            }
            let mut behind: Vec<usize> = all().filter(|(_, f)| self.follows.get(*f) == Some(id)).map(|f| f.0).collect();
            let alone = behind.iter().any(|&f| taken(&self.kernels[f]));
            if alone {
                behind.clear();
            }
            let kernels = [vec![i], behind].concat();
            match parts.last_mut() {
                Some(p) if joins && !alone && !p.alone => {
                    p.kernels.extend(kernels);
                    p.grid[0] += self.blocks[i];
                }
                _ => parts.push(part(kernels, i, alone)),
            }
            joins = true;
        }
        let done: Vec<usize> = parts.iter().flat_map(|p| p.kernels.clone()).collect();
        let rest = all().filter(|(i, id)| !done.contains(i) && !taken(id));
        parts.extend(rest.map(|(i, _)| part(vec![i], i, true)));
        parts
    }

    /// Each kernel by itself, where it works for several, in their order.
    pub fn one_by_one(&self) -> Vec<Part> {
        (0..self.kernels.len())
            .flat_map(|i| self.without(|id| self.blocks.len() > 1 && self.kernels[i] != id))
            .collect()
    }

    /// By kernel, the first of its blocks.
    fn firsts(&self) -> Vec<usize> {
        let mut firsts = vec![0; self.kernels.len()];
        let mut next = 0;
        for behind in [false, true] {
            for (i, id) in self.kernels.iter().enumerate() {
                if self.follows.contains_key(id) == behind {
                    firsts[i] = next;
                    next += self.blocks[i];
                }
            }
        }
        firsts
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What an argument of a launch points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum LaunchArg {
    /// The first byte of a buffer.
    Buffer(String),
    /// Two `u64` of device memory, seed and step, which the runtime sets before each step. Written `$run`.
    Run,
    /// One `i32` of device memory, set to a [`fault`] by a kernel that meets data it cannot work with. Written
    /// `$fault`.
    Fault,
    /// A `u32` of device memory for every block along x, zero before a launch and after it, by which blocks find out
    /// which of them finishes last. Written `$turns`.
    Turns,
    /// A number: the first of the launch's blocks that are to run, where those of some of its kernels are. Written
    /// `$first`.
    First,
    /// A number: 1 where a product's kernel runs without those that follow it, otherwise 0. Written `$alone`.
    Alone,
}

impl LaunchArg {
    /// Whether it is a number of 64 bits, not negative, rather than an address.
    pub fn is_number(&self) -> bool {
        match self {
            LaunchArg::First | LaunchArg::Alone => true,
            LaunchArg::Buffer(_) | LaunchArg::Run | LaunchArg::Fault | LaunchArg::Turns => false,
        }
    }
}

/// Values of [`LaunchArg::Fault`].
pub mod fault {
    /// Nothing is wrong.
    pub const NONE: i32 = 0;
    /// An index lies outside its table.
    pub const INDEX: i32 = 1;
}

impl fmt::Display for LaunchArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaunchArg::Buffer(id) => f.write_str(id),
            LaunchArg::Run => f.write_str("$run"),
            LaunchArg::Fault => f.write_str("$fault"),
            LaunchArg::Turns => f.write_str("$turns"),
            LaunchArg::First => f.write_str("$first"),
            LaunchArg::Alone => f.write_str("$alone"),
        }
    }
}

impl FromStr for LaunchArg {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "$run" => Ok(LaunchArg::Run),
            "$fault" => Ok(LaunchArg::Fault),
            "$turns" => Ok(LaunchArg::Turns),
            "$first" => Ok(LaunchArg::First),
            "$alone" => Ok(LaunchArg::Alone),
            id if is_buffer_id(id) => Ok(LaunchArg::Buffer(id.to_string())),
            _ => Err(format!("`{s}` is neither a buffer nor $run, $fault, $turns, $first or $alone")),
        }
    }
}

impl From<LaunchArg> for String {
    fn from(a: LaunchArg) -> String {
        a.to_string()
    }
}

impl TryFrom<String> for LaunchArg {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn text_round_trips() {
        let special = [LaunchArg::Run, LaunchArg::Fault, LaunchArg::Turns, LaunchArg::First, LaunchArg::Alone];
        for a in special.into_iter().chain([LaunchArg::Buffer("m1/relu:map~2".into())]) {
            assert_eq!(a.to_string().parse(), Ok(a));
        }
        assert!("$seed".parse::<LaunchArg>().is_err());
    }

    #[test]
    fn kernels_are_taken_from_launches() {
        let launch = Launch {
            kernels: ["k1", "k2", "k3", "k4"].map(String::from).to_vec(),
            function: "together".into(),
            grid: Dims(vec![100, 1, 1]),
            blocks: vec![10, 20, 30, 40],
            follows: BTreeMap::new(),
            block: 256,
            shared: 0,
            args: vec![LaunchArg::First],
        };
        let part = |kernels: Range<usize>, first, blocks| {
            let alone = false;
            Part { kernels: kernels.collect(), first, grid: vec![blocks, 1, 1], alone }
        };
        assert_eq!(launch.without(|_| false), [part(0..4, 0, 100)]);
        assert_eq!(launch.without(|id| id == "k1"), [part(1..4, 10, 90)]);
        assert_eq!(launch.without(|id| id == "k2"), [part(0..1, 0, 10), part(2..4, 30, 70)]);
        assert_eq!(launch.without(|_| true), []);
        let each = [part(0..1, 0, 10), part(1..2, 10, 20), part(2..3, 30, 30), part(3..4, 60, 40)];
        assert_eq!(launch.one_by_one(), each);
        let alone = Launch { kernels: vec!["k1".into()], grid: Dims(vec![5, 2, 1]), blocks: Vec::new(), ..launch };
        let whole = [Part { kernels: vec![0], first: 0, grid: vec![5, 2, 1], alone: false }];
        assert_eq!((alone.without(|_| false), alone.one_by_one()), (whole.to_vec(), whole.to_vec()));
        assert_eq!(alone.without(|id| id == "k1"), []);
    }

    #[test]
    fn what_follows_runs_behind_its_product_or_by_itself() {
        // `k2` and `k5` work on the rows of `k1`.
        let launch = Launch {
            kernels: ["k0", "k1", "k2", "k3", "k5"].map(String::from).to_vec(),
            function: "together".into(),
            grid: Dims(vec![60, 1, 1]),
            blocks: vec![10, 20, 7, 30, 8],
            follows: [("k2", "k1"), ("k5", "k1")].map(|(a, b)| (a.to_string(), b.to_string())).into(),
            block: 256,
            shared: 0,
            args: vec![LaunchArg::First, LaunchArg::Alone],
        };
        let part = |kernels: &[usize], first, blocks, alone| Part {
            kernels: kernels.to_vec(),
            first,
            grid: vec![blocks, 1, 1],
            alone,
        };
        assert_eq!(launch.without(|_| false), [part(&[0, 1, 2, 4, 3], 0, 60, false)]);
        let behind = [part(&[2], 60, 7, true), part(&[4], 67, 8, true)];
        // A library has the product: what follows waits for it.
        let without = launch.without(|id| id == "k1");
        assert_eq!(without, [&[part(&[0], 0, 10, false), part(&[3], 30, 30, false)][..], &behind].concat());
        assert_eq!(launch.without(|id| id == "k0"), [part(&[1, 2, 4, 3], 10, 50, false)]);
        let each = [part(&[0], 0, 10, false), part(&[1], 10, 20, true), behind[0].clone()];
        let each = [&each[..], &[part(&[3], 30, 30, false), behind[1].clone()]].concat();
        assert_eq!(launch.one_by_one(), each);
    }
}
