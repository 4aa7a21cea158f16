//! How a CUDA device runs a program: functions of `kernels.cu` with their launch geometry and arguments.
//!
//! Kernels say what is computed, launches how. A kernel may take several launches (partial results, then their sum),
//! and a launch may do the work of several kernels side by side, each in blocks of its own.

use std::fmt;
use std::ops::Range;
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
    /// Where it works for several kernels: how many blocks of the grid each takes, one kernel after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<usize>,
    /// Threads of a block, along x.
    pub block: usize,
    /// Bytes of dynamic shared memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared: usize,
    /// One parameter of the function each.
    pub args: Vec<LaunchArg>,
}

/// Neighbouring kernels of a launch, which can run without the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Positions in [`Launch::kernels`].
    pub kernels: Range<usize>,
    /// The first of their blocks.
    pub first: usize,
    /// Blocks along x, y and z.
    pub grid: Vec<usize>,
}

impl Launch {
    /// What is left of it without the kernels that are `taken`: as few parts as can be.
    pub fn without(&self, taken: impl Fn(&str) -> bool) -> Vec<Part> {
        if self.blocks.is_empty() {
            let all = || Part { kernels: 0..self.kernels.len(), first: 0, grid: self.grid.0.clone() };
            return if self.kernels.iter().any(|k| taken(k)) { Vec::new() } else { vec![all()] };
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut first = 0;
        for (i, (id, &blocks)) in self.kernels.iter().zip(&self.blocks).enumerate() {
            match parts.last_mut() {
                _ if taken(id) => {}
                Some(p) if p.kernels.end == i => {
                    p.kernels.end += 1;
                    p.grid[0] += blocks;
                }
                _ => parts.push(Part { kernels: i..i + 1, first, grid: vec![blocks, 1, 1] }),
            }
            first += blocks;
        }
        parts
    }

    /// Each kernel by itself, where it works for several.
    pub fn one_by_one(&self) -> Vec<Part> {
        (0..self.kernels.len())
            .flat_map(|i| self.without(|id| self.blocks.len() > 1 && self.kernels[i] != id))
            .collect()
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
            id if is_buffer_id(id) => Ok(LaunchArg::Buffer(id.to_string())),
            _ => Err(format!("`{s}` is neither a buffer nor $run, $fault, $turns or $first")),
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
    use super::*;

    #[test]
    fn text_round_trips() {
        let special = [LaunchArg::Run, LaunchArg::Fault, LaunchArg::Turns, LaunchArg::First];
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
            block: 256,
            shared: 0,
            args: vec![LaunchArg::First],
        };
        let part = |kernels: Range<usize>, first, blocks| Part { kernels, first, grid: vec![blocks, 1, 1] };
        assert_eq!(launch.without(|_| false), [part(0..4, 0, 100)]);
        assert_eq!(launch.without(|id| id == "k1"), [part(1..4, 10, 90)]);
        assert_eq!(launch.without(|id| id == "k2"), [part(0..1, 0, 10), part(2..4, 30, 70)]);
        assert_eq!(launch.without(|_| true), []);
        let each = [part(0..1, 0, 10), part(1..2, 10, 20), part(2..3, 30, 30), part(3..4, 60, 40)];
        assert_eq!(launch.one_by_one(), each);
        let alone = Launch { kernels: vec!["k1".into()], grid: Dims(vec![5, 2, 1]), blocks: Vec::new(), ..launch };
        let whole = [Part { kernels: 0..1, first: 0, grid: vec![5, 2, 1] }];
        assert_eq!((alone.without(|_| false), alone.one_by_one()), (whole.to_vec(), whole.to_vec()));
        assert_eq!(alone.without(|id| id == "k1"), []);
    }
}
