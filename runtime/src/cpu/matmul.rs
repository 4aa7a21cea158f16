//! Batched matrix products, cut into tasks by the plan's shapes alone.

use std::ops::Range;

use slrc_plan::kernel::Matmul as Plan;

use crate::cpu::epilogue::Epilogue;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::product::{Division, Matrix, product};
use crate::cpu::prologue::Prologue;
use crate::cpu::reduce::Reduce;

/// Terms of which operands are made at a time: a block's stay in a core's cache.
const MADE_TERMS: usize = 512;

/// A prepared `matmul` kernel.
pub(super) struct Matmul {
    batch: Vec<usize>,
    m: usize,
    n: usize,
    k: usize,
    a: Operand,
    b: Operand,
    c: Operand,
    a_prologue: Option<Prologue>,
    b_prologue: Option<Prologue>,
    split: Option<(usize, Operand)>,
    epilogue: Option<Epilogue>,
    /// Sums of `b`, read once more: it has just been in a cache.
    sums: Option<Box<Reduce>>,
    /// Of a single product.
    division: Division,
}

impl Matmul {
    pub(super) fn new(memory: &Memory, p: &Plan) -> Matmul {
        let batch = p.batch.0.clone();
        let count: usize = batch.iter().product();
        let epilogue = Epilogue::new(memory, &p.product());
        let division = Division::new([p.m, p.n, p.k], count, p.m, [1, 1]);
        let division = division.within(epilogue.as_ref().and_then(Epilogue::groups));
        let made = |name: &str| p.made().find(|m| m.name == name).map(|m| Prologue::new(memory, &m));
        Matmul {
            batch,
            m: p.m,
            n: p.n,
            k: p.k,
            a: memory.operand(&p.a),
            b: memory.operand(&p.b),
            c: memory.operand(&p.c),
            a_prologue: made("a"),
            b_prologue: made("b"),
            split: p.split.as_ref().map(|s| (s.count, memory.operand(&s.partials))),
            epilogue,
            sums: p.b_sums.as_ref().map(|r| Box::new(Reduce::new(memory, r))),
            division,
        }
    }

    /// The matrix of one batch.
    fn matrix(&self, o: &Operand, batch: usize) -> Matrix {
        let d = self.batch.len();
        let (mut rest, mut at) = (batch, 0);
        for i in (0..d).rev() {
            at += rest % self.batch[i] * o.strides[i];
            rest /= self.batch[i];
        }
        Matrix { at: o.f32(at), row: o.strides[d], col: o.strides[d + 1] }
    }

    pub(super) fn run(&self) {
        self.multiply_all();
        if let Some(sums) = &self.sums {
            sums.run();
        }
    }

    fn multiply_all(&self) {
        if let Some((count, partials)) = &self.split {
            return self.run_split(*count, partials);
        }
        let batches: usize = self.batch.iter().product();
        let blocks = self.division.blocks();
        let tasks = tasks_for(batches * blocks, self.m * self.n * self.k / blocks);
        let (rows, cols) = self.division.largest();
        let made = self.made_scratch(rows, cols);
        self.for_each_task(tasks, made, |t, memory| {
            let (made, memory) = memory.split_at_mut(made);
            for i in part(batches * blocks, tasks, t) {
                let (batch, (rows, cols)) = (i / blocks, self.division.block(i % blocks));
                let c = self.matrix(&self.c, batch).from(rows.start, cols.start);
                // SAFETY: views lie in their buffers, results overlap no operand, tasks write disjoint blocks.
                unsafe { self.multiply(batch, rows.clone(), cols.clone(), 0..self.k, c, made) };
                if let Some(e) = &self.epilogue {
                    let range = batch * self.m + rows.start..batch * self.m + rows.end;
                    e.run(self.division.row_part(i % blocks), cols, memory, |work| work(range));
                }
            }
        });
        if let Some(e) = &self.epilogue {
            e.finish(self.division.row_parts());
        }
    }

    /// f32 scratch for the operands of blocks that are made.
    fn made_scratch(&self, rows: usize, cols: usize) -> usize {
        let terms = self.k.min(MADE_TERMS);
        let each = |p: &Option<Prologue>, lines: usize| p.as_ref().map_or(0, |p| lines * terms + p.scratch());
        each(&self.a_prologue, rows) + each(&self.b_prologue, cols)
    }

    /// The product of some rows and columns over some terms; `made` is memory for operands that are made.
    ///
    /// # Safety
    /// As for [`product`].
    unsafe fn multiply(
        &self,
        batch: usize,
        rows: Range<usize>,
        cols: Range<usize>,
        terms: Range<usize>,
        c: Matrix,
        made: &mut [f32],
    ) {
        let (a, b) = (self.matrix(&self.a, batch), self.matrix(&self.b, batch));
        if self.a_prologue.is_none() && self.b_prologue.is_none() {
            let (a, b) = (a.from(rows.start, terms.start), b.from(terms.start, cols.start));
            // SAFETY: by the caller.
            unsafe { product(rows.len(), cols.len(), terms.len(), c, a, b, false) };
            return;
        }
        let parts = terms.len().div_ceil(MADE_TERMS);
        for i in 0..parts {
            let range = part(terms.len(), parts, i);
            let range = terms.start + range.start..terms.start + range.end;
            let mut rest = &mut *made;
            // Elements of a block, where they are made: rows and columns of `extents`.
            let mut block = |p: &Option<Prologue>, m: Matrix, extents: [usize; 2], r: Range<usize>, c: Range<usize>| {
                let Some(p) = p else { return m.from(r.start, c.start) };
                let count = r.len() * c.len();
                let (to, next) = std::mem::take(&mut rest).split_at_mut(count);
                let (scratch, next) = next.split_at_mut(p.scratch());
                rest = next;
                let (lines, along, all) = if p.turned { (c, r, extents[1]) } else { (r, c, extents[0]) };
                let stride = along.len();
                let lines = batch * all + lines.start..batch * all + lines.end;
                // SAFETY: the block has its own scratch memory.
                unsafe { p.make(lines, along, to.as_mut_ptr(), stride, scratch) };
                let (row, col) = if p.turned { (1, stride) } else { (stride, 1) };
                Matrix { at: to.as_mut_ptr(), row, col }
            };
            let a = block(&self.a_prologue, a, [self.m, self.k], rows.clone(), range.clone());
            let b = block(&self.b_prologue, b, [self.k, self.n], range.clone(), cols.clone());
            // SAFETY: by the caller.
            unsafe { product(rows.len(), cols.len(), range.len(), c, a, b, i > 0) };
        }
    }

    /// Runs tasks, each with `more` scratch memory and that for the epilogue.
    fn for_each_task(&self, tasks: usize, more: usize, work: impl Fn(usize, &mut [f32]) + Send + Sync) {
        let needed = more + self.epilogue.as_ref().map_or(0, Epilogue::scratch);
        for_each(tasks, |t| scratch(needed, |memory| work(t, memory)));
    }

    fn run_split(&self, count: usize, partials: &Operand) {
        let size = self.m * self.n;
        let made = self.made_scratch(self.m, self.n);
        for_each(count, |g| {
            let to = Matrix { at: partials.f32(g * size), row: self.n, col: 1 };
            scratch(made, |memory| {
                // SAFETY: each group has its own part of the partials.
                unsafe { self.multiply(0, 0..self.m, 0..self.n, part(self.k, count, g), to, memory) };
            });
        });
        let c = self.matrix(&self.c, 0);
        let (row, col, c_at) = (c.row, c.col, c.at as usize);
        let tasks = tasks_for(self.m, self.n * count);
        self.for_each_task(tasks, 0, |t, memory| {
            let rows = part(self.m, tasks, t);
            for i in rows.clone() {
                for j in 0..self.n {
                    // SAFETY: partials are complete; tasks write disjoint rows.
                    unsafe {
                        let value = |g: usize| *partials.f32(g * size + i * self.n + j);
                        *(c_at as *mut f32).add(i * row + j * col) = (1..count).fold(value(0), |x, g| x + value(g));
                    }
                }
            }
            if let Some(e) = &self.epilogue {
                e.run(0, 0..self.n, memory, |work| work(rows));
            }
        });
    }
}
