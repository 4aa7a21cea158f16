//! What the operands of matrix products and convolutions are rounded to.

use serde::{Deserialize, Serialize};

/// A format of the operands of matrix products and convolutions. Everything is stored in f32 whichever it is, and sums
/// of products are f32: only what a multiplication reads is rounded, to the nearest number of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 24 bits of significand: not rounded.
    #[default]
    F32,
    /// 11 bits of significand, the range of f32.
    Tf32,
    /// 8 bits of significand, the range of f32.
    Bf16,
}

impl Precision {
    /// Every precision, the finest first.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

    /// As written in a spec, a plan or on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Whether nothing is rounded.
    pub fn is_f32(&self) -> bool {
        *self == Precision::F32
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| format!("`{s}` is not one of {}", Self::ALL.map(Precision::name).join(", ")))
    }
}
