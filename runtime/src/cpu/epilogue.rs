//! Elementwise work on the results of a product, block by block, as soon as a block is computed.

use std::ops::Range;

use slrc_plan::kernel::Product;

use crate::cpu::map::operands;
use crate::cpu::memory::Memory;
use crate::cpu::parallel::part;
use crate::cpu::tile::{TILE, TileProgram};

/// A prepared epilogue.
pub(super) struct Epilogue {
    /// Rows by any number of dimensions, then a row.
    space: Vec<usize>,
    program: TileProgram,
}

impl Epilogue {
    pub(super) fn new(memory: &Memory, p: &Product<'_>) -> Option<Epilogue> {
        let r = p.epilogue?;
        let loads = operands(memory, r);
        let (body, stores): (Vec<_>, Vec<_>) = (r.body.iter().collect(), r.stores.iter().collect());
        let program = TileProgram::new(memory, &loads, &[], &body, &stores, &[]);
        Some(Epilogue { space: r.space.0.clone(), program })
    }

    /// f32 scratch that [`Epilogue::run`] needs.
    pub(super) fn scratch(&self) -> usize {
        self.program.scratch(TILE)
    }

    /// Works on the elements of `rows` and `cols` of the product, which are complete.
    pub(super) fn run(&self, rows: Range<usize>, cols: Range<usize>, scratch: &mut [f32]) {
        if cols.is_empty() {
            return;
        }
        let mut state = self.program.begin(scratch, TILE);
        let (extent, outer) = self.space.split_last().expect("invariant: a row is a dimension");
        // Rows of a block are neighbours along the last outer dimension.
        let line = outer.last().copied().unwrap_or(1);
        let parts = cols.len().div_ceil(TILE);
        let height = (TILE / cols.len()).max(1);
        let mut index = vec![0; self.space.len()];
        let mut row = rows.start;
        while row < rows.end {
            let count = height.min(rows.end - row).min(line - row % line);
            let mut rest = row;
            for (i, n) in index.iter_mut().zip(outer).rev() {
                *i = rest % n;
                rest /= n;
            }
            for p in 0..parts {
                let range = part(cols.len(), parts, p);
                index[outer.len()] = cols.start + range.start;
                state.run(&index, count, range.len(), *extent);
            }
            row += count;
        }
    }
}
