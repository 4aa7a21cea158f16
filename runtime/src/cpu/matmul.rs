//! Batched matrix products on the `gemm` crate, cut into tasks by the plan's shapes alone.

use slrc_plan::kernel::Matmul as Plan;

use crate::cpu::epilogue::Epilogue;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};

/// A matrix in memory: first element and the steps of rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) at: *mut f32,
    pub(super) row: usize,
    pub(super) col: usize,
}

/// `c = a b` (or `c += a b`) with `c` of `m x n` and `k` terms.
///
/// # Safety
/// The matrices lie in memory that may be read (and, for `c`, written) and `c` overlaps neither `a` nor `b`.
pub(super) unsafe fn product(m: usize, n: usize, k: usize, c: Matrix, a: Matrix, b: Matrix, add: bool) {
    // SAFETY: by the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.at,
            c.col as isize,
            c.row as isize,
            add,
            a.at,
            a.col as isize,
            a.row as isize,
            b.at,
            b.col as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A prepared `matmul` kernel.
pub(super) struct Matmul {
    batch: Vec<usize>,
    m: usize,
    n: usize,
    k: usize,
    a: Operand,
    b: Operand,
    c: Operand,
    split: Option<(usize, Operand)>,
    epilogue: Option<Epilogue>,
    /// Blocks into which rows and columns of a single product are cut.
    row_blocks: usize,
    col_blocks: usize,
}

/// Multiplications worth a task.
const TASK_WORK: usize = 1 << 21;
/// Smallest side of a block.
const MIN_SIDE: usize = 64;

impl Matmul {
    pub(super) fn new(memory: &Memory, p: &Plan) -> Matmul {
        let batch = p.batch.0.clone();
        let count: usize = batch.iter().product();
        let (mut row_blocks, mut col_blocks) = (1, 1);
        // Enough batches are tasks enough; else cut the longer side.
        while count * row_blocks * col_blocks < 16
            && count * p.m * p.n * p.k / (count * row_blocks * col_blocks) > TASK_WORK
        {
            let (rows, cols) = (p.m / row_blocks, p.n / col_blocks);
            if rows >= cols && rows >= 2 * MIN_SIDE {
                row_blocks *= 2;
            } else if cols >= 2 * MIN_SIDE {
                col_blocks *= 2;
            } else if rows >= 2 * MIN_SIDE {
                row_blocks *= 2;
            } else {
                break;
            }
        }
        Matmul {
            batch,
            m: p.m,
            n: p.n,
            k: p.k,
            a: memory.operand(&p.a),
            b: memory.operand(&p.b),
            c: memory.operand(&p.c),
            split: p.split.as_ref().map(|s| (s.count, memory.operand(&s.partials))),
            epilogue: Epilogue::new(memory, &p.product()),
            row_blocks,
            col_blocks,
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
        if let Some((count, partials)) = &self.split {
            return self.run_split(*count, partials);
        }
        let batches: usize = self.batch.iter().product();
        let blocks = self.row_blocks * self.col_blocks;
        let small = self.m * self.n * self.k * batches <= TASK_WORK;
        let tasks = if small { 1 } else { tasks_for(batches * blocks, self.m * self.n * self.k / blocks.max(1)) };
        self.for_each_task(tasks, |t, memory| {
            for i in part(batches * blocks, tasks, t) {
                let (batch, block) = (i / blocks, i % blocks);
                let rows = part(self.m, self.row_blocks, block / self.col_blocks);
                let cols = part(self.n, self.col_blocks, block % self.col_blocks);
                let (a, b, c) = (self.matrix(&self.a, batch), self.matrix(&self.b, batch), self.matrix(&self.c, batch));
                let a = Matrix { at: a.at.wrapping_add(rows.start * a.row), ..a };
                let b = Matrix { at: b.at.wrapping_add(cols.start * b.col), ..b };
                let c = Matrix { at: c.at.wrapping_add(rows.start * c.row + cols.start * c.col), ..c };
                // SAFETY: views lie in their buffers, results overlap no operand, tasks write disjoint blocks.
                unsafe { product(rows.len(), cols.len(), self.k, c, a, b, false) };
                if let Some(e) = &self.epilogue {
                    e.run(batch * self.m + rows.start..batch * self.m + rows.end, cols, memory);
                }
            }
        });
    }

    /// Runs tasks, each with scratch memory for the epilogue.
    fn for_each_task(&self, tasks: usize, work: impl Fn(usize, &mut [f32]) + Send + Sync) {
        let needed = self.epilogue.as_ref().map_or(0, Epilogue::scratch);
        for_each(tasks, |t| scratch(needed, |memory| work(t, memory)));
    }

    fn run_split(&self, count: usize, partials: &Operand) {
        let size = self.m * self.n;
        let (a, b, c) = (self.matrix(&self.a, 0), self.matrix(&self.b, 0), self.matrix(&self.c, 0));
        let (a_at, b_at, c_at) = (a.at as usize, b.at as usize, c.at as usize);
        for_each(count, |g| {
            let range = part(self.k, count, g);
            let to = Matrix { at: partials.f32(g * size), row: self.n, col: 1 };
            let a = Matrix { at: (a_at as *mut f32).wrapping_add(range.start * a.col), row: a.row, col: a.col };
            let b = Matrix { at: (b_at as *mut f32).wrapping_add(range.start * b.row), row: b.row, col: b.col };
            // SAFETY: each group has its own part of the partials.
            unsafe { product(self.m, self.n, range.len(), to, a, b, false) };
        });
        let (row, col) = (c.row, c.col);
        let tasks = tasks_for(self.m, self.n * count);
        self.for_each_task(tasks, |t, memory| {
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
                e.run(rows, 0..self.n, memory);
            }
        });
    }
}
