//! Elementwise kernels.

use slrc_plan::Region;

use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::tile::{TILE, TileProgram, block_count, block_shape, for_each_block};

/// A prepared `map` kernel.
pub(super) struct Map {
    space: Vec<usize>,
    program: TileProgram,
    rows: usize,
    cols: usize,
}

/// A region's loads with their operands; a space without dimensions gets one of extent 1.
pub(super) fn operands(memory: &Memory, r: &Region) -> Vec<(String, Operand)> {
    r.loads.iter().map(|l| (l.name.clone(), memory.operand(&l.view))).collect()
}

/// A region whose space has at least one dimension.
pub(super) fn with_dimension(r: &Region) -> Region {
    let mut r = r.clone();
    if r.space.is_empty() {
        r.space.0.push(1);
        let views = r.loads.iter_mut().map(|l| &mut l.view).chain(r.stores.iter_mut().map(|s| &mut s.view));
        views.for_each(|v| v.strides.push(0));
    }
    r
}

impl Map {
    pub(super) fn new(memory: &Memory, r: &Region) -> Map {
        let r = with_dimension(r);
        let loads = operands(memory, &r);
        let body: Vec<_> = r.body.iter().collect();
        let stores: Vec<_> = r.stores.iter().collect();
        let program = TileProgram::new(memory, &loads, &[], &body, &stores, &[]);
        let (rows, cols) = block_shape(&r.space, TILE);
        Map { space: r.space.0.clone(), program, rows, cols }
    }

    pub(super) fn run(&self) {
        if self.space.contains(&0) {
            return;
        }
        let blocks = block_count(&self.space, self.rows, self.cols);
        let tile = self.rows * self.cols;
        let tasks = tasks_for(blocks, tile);
        let extent = self.space[self.space.len() - 1];
        for_each(tasks, |t| {
            scratch(self.program.scratch(tile), |memory| {
                let mut state = self.program.begin(memory, tile);
                for_each_block(&self.space, self.rows, self.cols, part(blocks, tasks, t), |index, rows, cols| {
                    state.run(index, rows, cols, extent);
                });
            });
        });
    }
}
