//! Rows of a table by index, and adding rows into a table.

use std::sync::atomic::{AtomicUsize, Ordering};

use slrc_plan::kernel::Gather as Plan;

use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, tasks_for};

/// Operands of both kernels.
struct Table {
    table_rows: usize,
    count: usize,
    width: usize,
    table: Operand,
    index: Operand,
    rows: Operand,
}

impl Table {
    fn new(memory: &Memory, g: &Plan) -> Table {
        Table {
            table_rows: g.table_rows,
            count: g.count,
            width: g.width,
            table: memory.operand(&g.table),
            index: memory.operand(&g.index),
            rows: memory.operand(&g.rows),
        }
    }

    /// Index `i`, if it is in the table.
    fn at(&self, i: usize) -> Option<usize> {
        // SAFETY: views lie in their buffers.
        let x = unsafe { *self.index.i32(i * self.index.strides[0]) };
        usize::try_from(x).ok().filter(|&x| x < self.table_rows)
    }

    fn outside(&self, i: usize) -> Result<(), String> {
        if i == usize::MAX {
            return Ok(());
        }
        // SAFETY: views lie in their buffers.
        let x = unsafe { *self.index.i32(i * self.index.strides[0]) };
        Err(format!("index {x} at position {i} is outside a table of {} rows", self.table_rows))
    }
}

/// A prepared `gather` kernel.
pub(super) struct Gather(Table);

impl Gather {
    pub(super) fn new(memory: &Memory, g: &Plan) -> Gather {
        Gather(Table::new(memory, g))
    }

    pub(super) fn run(&self) -> Result<(), String> {
        let g = &self.0;
        let bad = AtomicUsize::new(usize::MAX);
        let tasks = tasks_for(g.count, g.width);
        for_each(tasks, |t| {
            for i in part(g.count, tasks, t) {
                let Some(row) = g.at(i) else {
                    bad.fetch_min(i, Ordering::Relaxed);
                    continue;
                };
                for w in 0..g.width {
                    let from = row * g.table.strides[0] + w * g.table.strides[1];
                    // SAFETY: views lie in their buffers; tasks write disjoint rows.
                    unsafe { *g.rows.f32(i * g.rows.strides[0] + w * g.rows.strides[1]) = *g.table.f32(from) };
                }
            }
        });
        g.outside(bad.into_inner())
    }
}

/// A prepared `scatter-add` kernel: tasks take columns, so every sum is in order of the indices.
pub(super) struct ScatterAdd(Table);

impl ScatterAdd {
    pub(super) fn new(memory: &Memory, g: &Plan) -> ScatterAdd {
        ScatterAdd(Table::new(memory, g))
    }

    pub(super) fn run(&self) -> Result<(), String> {
        let g = &self.0;
        let bad = AtomicUsize::new(usize::MAX);
        let tasks = tasks_for(g.width, g.count + g.table_rows).min(g.width.div_ceil(16));
        for_each(tasks, |t| {
            let columns = part(g.width, tasks, t);
            // SAFETY: views lie in their buffers; tasks write disjoint columns.
            unsafe {
                for r in 0..g.table_rows {
                    for w in columns.clone() {
                        *g.table.f32(r * g.table.strides[0] + w * g.table.strides[1]) = 0.0;
                    }
                }
                for i in 0..g.count {
                    let Some(row) = g.at(i) else {
                        bad.fetch_min(i, Ordering::Relaxed);
                        continue;
                    };
                    for w in columns.clone() {
                        let add = *g.rows.f32(i * g.rows.strides[0] + w * g.rows.strides[1]);
                        *g.table.f32(row * g.table.strides[0] + w * g.table.strides[1]) += add;
                    }
                }
            }
        });
        g.outside(bad.into_inner())
    }
}
