//! How a CUDA device runs a program: functions of `kernels.cu` with their launch geometry and arguments.
//!
//! Kernels say what is computed, launches how. A kernel may take several launches (partial results, then their sum).

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
    /// Threads of a block, along x.
    pub block: usize,
    /// Bytes of dynamic shared memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared: usize,
    /// One pointer each.
    pub args: Vec<LaunchArg>,
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
            id if is_buffer_id(id) => Ok(LaunchArg::Buffer(id.to_string())),
            _ => Err(format!("`{s}` is neither a buffer nor $run, $fault or $turns")),
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
        for a in [LaunchArg::Buffer("m1/relu:map~2".into()), LaunchArg::Run, LaunchArg::Fault, LaunchArg::Turns] {
            assert_eq!(a.to_string().parse(), Ok(a));
        }
        assert!("$seed".parse::<LaunchArg>().is_err());
    }
}
