//! Batched matrix products, cut into tasks by the plan's shapes alone.

use slrc_plan::kernel::Matmul as Plan;

use crate::cpu::epilogue::Epilogue;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::product::{Division, Matrix, product};

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
        Matmul {
            batch,
            m: p.m,
            n: p.n,
            k: p.k,
            a: memory.operand(&p.a),
            b: memory.operand(&p.b),
            c: memory.operand(&p.c),
            split: p.split.as_ref().map(|s| (s.count, memory.operand(&s.partials))),
            epilogue,
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
        if let Some((count, partials)) = &self.split {
            return self.run_split(*count, partials);
        }
        let batches: usize = self.batch.iter().product();
        let blocks = self.division.blocks();
        let tasks = tasks_for(batches * blocks, self.m * self.n * self.k / blocks);
        self.for_each_task(tasks, |t, memory| {
            for i in part(batches * blocks, tasks, t) {
                let (batch, (rows, cols)) = (i / blocks, self.division.block(i % blocks));
                let (a, b, c) = (self.matrix(&self.a, batch), self.matrix(&self.b, batch), self.matrix(&self.c, batch));
                let (a, b, c) = (a.from(rows.start, 0), b.from(0, cols.start), c.from(rows.start, cols.start));
                // SAFETY: views lie in their buffers, results overlap no operand, tasks write disjoint blocks.
                unsafe { product(rows.len(), cols.len(), self.k, c, a, b, false) };
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
                e.run(0, 0..self.n, memory, |work| work(rows));
            }
        });
    }
}
