//! Buffers: named ranges of memory with a shape, a dtype and a lifetime.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dims::Dims;

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer: labels, token ids, large pooling windows.
    I32,
    /// One byte: flags (0 or 1) and positions in a pooling window.
    U8,
    /// Flags, eight a byte in memory order, the first in the lowest bit (see [`crate::bits`]).
    Bit,
}

impl DType {
    /// Bits of one element.
    pub fn bits(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 32,
            DType::U8 => 8,
            DType::Bit => 1,
        }
    }

    /// Bytes of so many elements, if that is a number.
    pub fn checked_bytes(self, count: usize) -> Option<usize> {
        count.checked_mul(self.bits()).map(|bits| bits.div_ceil(8))
    }

    /// Bytes of so many elements.
    pub fn bytes(self, count: usize) -> usize {
        (count * self.bits()).div_ceil(8)
    }

    /// The name used in text forms.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::Bit => "bit",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The allocation a buffer lies in. Each space is one block of memory for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// Weights and running statistics: kept in checkpoints.
    Parameter,
    /// Momentum and moments: kept in checkpoints.
    Optimizer,
    /// Fixed tensors stored beside the weights.
    Constant,
    /// The batch: data and labels.
    Input,
    /// One number a step, set by the runtime from its schedule: learning rate, lambda.
    Scalar,
    /// Numbers a step reports.
    Metric,
    /// Transients of the program that runs, and what modules hand on: a boundary lies at one end of the arena while it
    /// is needed, the next boundary at the other end.
    Arena,
}

impl Space {
    /// Every space, in allocation order.
    pub const ALL: &'static [Space] = &[
        Space::Parameter,
        Space::Optimizer,
        Space::Constant,
        Space::Input,
        Space::Scalar,
        Space::Metric,
        Space::Arena,
    ];
}

/// Alignment of every buffer's offset, in bytes: one cache line.
pub const ALIGNMENT: usize = 64;

/// Rounds a byte count up to [`ALIGNMENT`].
pub fn align(bytes: usize) -> usize {
    bytes.div_ceil(ALIGNMENT) * ALIGNMENT
}

/// A named range of one space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Unique in the plan; kernels refer to it.
    pub id: String,
    /// Where it lies.
    pub space: Space,
    /// Element type.
    pub dtype: DType,
    /// Logical shape, as ONNX has it.
    pub shape: Dims,
    /// Memory order of the dimensions, outermost first; absent for row-major. `0x2x3x1` is channels-last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Dims>,
    /// First byte within the space.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
    /// First and last kernel of the program that touch it (a program's own buffers only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
}

/// An inclusive range of kernel indices, written `3..17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Live {
    /// Kernel that first writes the buffer.
    pub first: usize,
    /// Kernel that last touches it.
    pub last: usize,
}

impl From<Live> for String {
    fn from(l: Live) -> String {
        format!("{}..{}", l.first, l.last)
    }
}

impl TryFrom<String> for Live {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        let parsed = s.split_once("..").and_then(|(a, b)| Some(Live { first: a.parse().ok()?, last: b.parse().ok()? }));
        parsed.filter(|l| l.first <= l.last).ok_or_else(|| format!("`{s}` is not a live range such as 3..17"))
    }
}

impl Buffer {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Strides, in elements, of the logical dimensions.
    pub fn strides(&self) -> Vec<usize> {
        let identity: Vec<usize> = (0..self.shape.len()).collect();
        strides_of(&self.shape, self.order.as_ref().map_or(&identity, |o| &o.0))
    }
}

/// Strides of the logical dimensions of a dense tensor whose memory order is `order` (outermost first).
pub fn strides_of(shape: &[usize], order: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    let mut step = 1;
    for &d in order.iter().rev() {
        strides[d] = step;
        step *= shape[d].max(1);
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_last_strides() {
        assert_eq!(strides_of(&[2, 3, 4, 5], &[0, 1, 2, 3]), [60, 20, 5, 1]);
        assert_eq!(strides_of(&[2, 3, 4, 5], &[0, 2, 3, 1]), [60, 1, 15, 3]);
    }

    #[test]
    fn live_ranges_parse() {
        assert_eq!(Live::try_from("3..17".to_string()), Ok(Live { first: 3, last: 17 }));
        assert!(Live::try_from("17..3".to_string()).is_err());
        assert!(Live::try_from("a..b".to_string()).is_err());
    }
}
