//! Work on the results of a product, block by block, as soon as a block is computed: elementwise, or reductions of its
//! columns.

use std::ops::Range;

use slrc_plan::kernel::Product;

use crate::cpu::map::operands;
use crate::cpu::memory::Memory;
use crate::cpu::reduce::Reduce;
use crate::cpu::rows::row_blocks;
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
        row_blocks(&self.space, rows, cols, |_, index, rows, cols| work(index, rows, cols));
    }
}
