//! How a plan computes products, from what is asked for and what it runs on.

use crate::lower::{Convolutions, Products};
use crate::spec::{ColumnSums, Convolution, Prologues, Spec, Target};

/// Of how many tensors of its size an operand is made, at most: what BatchNorm's gradient is of.
const MADE_OF: usize = 2;

impl Spec {
    /// How its plan computes products.
    pub fn products(&self) -> Products {
        let convolutions = match (&self.target, self.convolution) {
            (Target::Cpu, Convolution::Auto) => Convolutions::Fastest,
            (Target::Cpu, Convolution::Direct) => Convolutions::Direct,
            (Target::Cuda { .. }, _) => Convolutions::Tiled,
        };
        let columns = match (self.column_sums, &self.target) {
            (ColumnSums::Products, _) | (ColumnSums::Auto, Target::Cuda { .. }) => true,
            // A tile that is reduced at once costs what reading it again from a cache does: docs/performance.md.
            (ColumnSums::Kernels, _) | (ColumnSums::Auto, Target::Cpu) => false,
        };
        let made_of = match self.prologues {
            Prologues::Products => MADE_OF,
            Prologues::Kernels => 0,
        };
        Products { convolutions, columns, made_of }
    }
}
