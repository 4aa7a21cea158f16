//! Work on an operand of a product as it is read: a task makes the rows it needs in its scratch memory.

use std::ops::Range;

use slrc_plan::View;
use slrc_plan::prologue::Made;

use crate::cpu::instruction::Source;
use crate::cpu::memory::Memory;
use crate::cpu::rows::row_blocks;
use crate::cpu::tile::{Place, TILE, TileProgram};

/// A prepared prologue.
pub(super) struct Prologue {
    /// Rows by any number of dimensions, then a row.
    space: Vec<usize>,
    program: TileProgram,
    value: Place,
    /// Whether rows run along the operand's last dimension but one, as its memory does.
    pub(super) turned: bool,
}

impl Prologue {
    pub(super) fn new(memory: &Memory, made: &Made<'_>) -> Prologue {
        let rank = made.space.len();
        let along = |v: &View| v.strides[rank - 2] < v.strides[rank - 1];
        let turned = along(made.view);
        let mut space = made.space.clone();
        let mut views: Vec<View> = made.by.loads.iter().map(|l| l.view.clone()).collect();
        if turned {
            space.swap(rank - 2, rank - 1);
            views.iter_mut().for_each(|v| v.strides.swap(rank - 2, rank - 1));
        }
        // Rows are one dimension where every view steps through them evenly.
        let mut d = space.len() - 2;
        while d > 0 {
            let inner = space[d];
            if views.iter().all(|v| v.strides[d - 1] == v.strides[d] * inner) {
                space[d - 1] *= inner;
                space.remove(d);
                views.iter_mut().for_each(|v| {
                    v.strides.remove(d - 1);
                });
            }
            d -= 1;
        }
        let names = made.by.loads.iter().map(|l| l.name.clone());
        let loads: Vec<_> = names.zip(views.iter().map(|v| memory.operand(v))).collect();
        let body: Vec<_> = made.by.body.iter().collect();
        let program = TileProgram::new(memory, &loads, &[], &body, &[], &[&made.by.value]);
        let value = program.place(&made.by.value);
        Prologue { space, program, value, turned }
    }

    /// f32 scratch that [`Prologue::make`] needs.
    pub(super) fn scratch(&self) -> usize {
        self.program.scratch(TILE)
    }

    /// Makes columns `cols` of rows `rows`, rows `stride` elements apart from `to` on.
    ///
    /// # Safety
    /// What `to` points to is memory of the task's own for so many rows.
    pub(super) unsafe fn make(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        to: *mut f32,
        stride: usize,
        scratch: &mut [f32],
    ) {
        let mut state = self.program.begin(scratch, TILE);
        let (extent, first) = (self.space[self.space.len() - 1], cols.start);
        row_blocks(&self.space, rows.clone(), &cols, |row, index, count, width| {
            state.run(index, count, width, extent);
            let from = state.source(self.value, count * width);
            let column = index[index.len() - 1] - first;
            for r in 0..count {
                let at = (row - rows.start + r) * stride + column;
                // SAFETY: by the caller.
                let to = unsafe { std::slice::from_raw_parts_mut(to.add(at), width) };
                match from {
                    Source::Tile(t) => to.copy_from_slice(&t[r * width..(r + 1) * width]),
                    Source::Number(x) => to.fill(x),
                }
            }
        });
    }
}

/// An operand of which a task may make rows of its own.
pub(super) struct Rows<'a> {
    prologue: &'a Prologue,
    channels: usize,
}

impl<'a> Rows<'a> {
    /// Rows of so many elements, one after the other.
    pub(super) fn new(prologue: &'a Prologue, channels: usize) -> Rows<'a> {
        Rows { prologue, channels }
    }

    /// f32 scratch for so many rows.
    pub(super) fn scratch(&self, rows: usize) -> usize {
        rows * self.channels + self.prologue.scratch()
    }

    /// Makes columns `cols` of rows `rows` in `memory`, and says where row 0 would begin.
    pub(super) fn make(&self, rows: Range<usize>, cols: Range<usize>, memory: &mut [f32]) -> *mut f32 {
        let (to, scratch) = memory.split_at_mut(rows.len() * self.channels);
        let start = to.as_mut_ptr();
        // SAFETY: the slice has room for the rows.
        unsafe {
            self.prologue.make(rows.clone(), cols.clone(), start.wrapping_add(cols.start), self.channels, scratch)
        };
        start.wrapping_sub(rows.start * self.channels)
    }
}
