//! Work on the results of a product, block by block, as soon as a block is computed: elementwise, or reductions of its
//! columns.

use std::ops::Range;

use slrc_plan::kernel::Product;

use crate::cpu::map::operands;
use crate::cpu::memory::Memory;
use crate::cpu::parallel::part;
use crate::cpu::reduce::Reduce;
use crate::cpu::tile::{TILE, TileProgram};

/// A prepared epilogue.
pub(super) struct Epilogue {
    /// Rows by any number of dimensions, then a row.
    space: Vec<usize>,
    work: Work,
}

enum Work {
    Map(TileProgram),
    Columns(Box<Reduce>),
}

impl Epilogue {
    pub(super) fn new(memory: &Memory, p: &Product<'_>) -> Option<Epilogue> {
        let r = p.epilogue?;
        let work = if r.reduce.is_empty() {
            let loads = operands(memory, r);
            let (body, stores): (Vec<_>, Vec<_>) = (r.body.iter().collect(), r.stores.iter().collect());
            Work::Map(TileProgram::new(memory, &loads, &[], &body, &stores, &[]))
        } else {
            Work::Columns(Box::new(Reduce::new(memory, r)))
        };
        Some(Epilogue { space: r.space.0.clone(), work })
    }

    /// f32 scratch that [`Epilogue::run`] needs.
    pub(super) fn scratch(&self) -> usize {
        match &self.work {
            Work::Map(program) => program.scratch(TILE),
            Work::Columns(reduce) => reduce.rows_scratch(),
        }
    }

    /// Into how many groups of rows the product may be cut, if that matters.
    pub(super) fn groups(&self) -> Option<usize> {
        match &self.work {
            Work::Map(_) => None,
            Work::Columns(reduce) => Some(reduce.groups()),
        }
    }

    /// Works on columns `cols` of the ranges of rows that `rows` hands on, which are complete and the rows of group
    /// `group`. Groups are counted from zero; of what does not reduce they do not matter.
    pub(super) fn run(
        &self,
        group: usize,
        cols: Range<usize>,
        scratch: &mut [f32],
        rows: impl FnOnce(&mut dyn FnMut(Range<usize>)),
    ) {
        if cols.is_empty() {
            return;
        }
        match &self.work {
            Work::Map(program) => {
                let mut state = program.begin(scratch, TILE);
                let extent = self.space[self.space.len() - 1];
                let mut work = |index: &[usize], rows, width| state.run(index, rows, width, extent);
                rows(&mut |r| self.blocks(r, &cols, &mut work));
            }
            Work::Columns(reduce) => reduce.reduce_rows(group, cols.clone(), scratch, |work| {
                rows(&mut |r| self.blocks(r, &cols, work));
            }),
        }
    }

    /// Ends the work, once it ran on `groups` groups: those from zero on.
    pub(super) fn finish(&self, groups: usize) {
        match &self.work {
            Work::Map(_) => {}
            Work::Columns(reduce) => reduce.combine(groups),
        }
    }

    /// Calls `work` with the first element, the rows and the columns of every block.
    fn blocks(&self, rows: Range<usize>, cols: &Range<usize>, work: &mut dyn FnMut(&[usize], usize, usize)) {
        let (_, outer) = self.space.split_last().expect("invariant: a row is a dimension");
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
                work(&index, count, range.len());
            }
            row += count;
        }
    }
}
