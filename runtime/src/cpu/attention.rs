//! Attention: some rows of the scores at a time, which stay in a core's cache between the products on both sides.
//!
//! A result over rows is summed strip by strip, so a task then takes all strips of a batch; otherwise a strip is a unit
//! of its own.

use slrc_plan::attention::{Attention as Plan, Over};

use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::product::{Matrix, product};
use crate::cpu::row::{Row, Strips};

struct Score {
    k: usize,
    a: Operand,
    b: Operand,
}

struct Contraction {
    over: Over,
    width: usize,
    by: Operand,
    to: Operand,
}

/// A prepared `attention` kernel.
pub(super) struct Attention {
    batch: Vec<usize>,
    rows: usize,
    cols: usize,
    strip: usize,
    /// Matrices of a strip.
    held: usize,
    products: Vec<Score>,
    work: Row,
    results: Vec<Contraction>,
}

impl Attention {
    pub(super) fn new(memory: &Memory, p: &Plan) -> Attention {
        let wanted: Vec<&str> = p.results.iter().map(|r| r.value.as_str()).collect();
        let score =
            |s: &slrc_plan::attention::Score| Score { k: s.k, a: memory.operand(&s.a), b: memory.operand(&s.b) };
        let contraction = |c: &slrc_plan::attention::Contraction| Contraction {
            over: c.over,
            width: c.width,
            by: memory.operand(&c.by),
            to: memory.operand(&c.to),
        };
        Attention {
            batch: p.batch().to_vec(),
            rows: p.rows(),
            cols: p.cols(),
            strip: p.strip,
            held: p.held(),
            products: p.products.iter().map(score).collect(),
            work: Row::between(memory, &p.region, &p.given(), &wanted),
            results: p.results.iter().map(contraction).collect(),
        }
    }

    pub(super) fn run(&self) {
        let batches: usize = self.batch.iter().product();
        let strips = self.rows.div_ceil(self.strip);
        let together = self.results.iter().any(|r| r.over == Over::Rows);
        let each = if together { strips } else { 1 };
        let units = batches * strips / each;
        let terms: usize = self.products.iter().map(|p| p.k).chain(self.results.iter().map(|r| r.width)).sum();
        let tasks = tasks_for(units, self.strip * self.cols * (each + terms / 16));
        let size = self.strip * self.cols;
        for_each(tasks, |t| {
            scratch(self.held * size + self.work.scratch(), |memory| {
                let (matrices, registers) = memory.split_at_mut(self.held * size);
                let mut index = vec![0; self.batch.len()];
                for unit in part(units, tasks, t) {
                    let first = unit * each;
                    let mut rest = first / strips;
                    for (i, n) in index.iter_mut().zip(&self.batch).rev() {
                        *i = rest % n;
                        rest /= n;
                    }
                    for s in first % strips..first % strips + each {
                        let rows = s * self.strip..self.rows.min((s + 1) * self.strip);
                        self.strip(&index, rows, matrices, registers);
                    }
                }
            });
        });
    }

    /// Works on some rows of one batch.
    fn strip(&self, index: &[usize], rows: std::ops::Range<usize>, matrices: &mut [f32], registers: &mut [f32]) {
        let (cols, height) = (self.cols, rows.len());
        let size = self.strip * cols;
        let d = index.len();
        let matrix = |o: &Operand| {
            let at = index.iter().zip(&o.strides).map(|(i, s)| i * s).sum();
            Matrix { at: o.f32(at), row: o.strides[d], col: o.strides[d + 1] }
        };
        let below = |m: Matrix| Matrix { at: m.at.wrapping_add(rows.start * m.row), ..m };
        let base = matrices.as_mut_ptr();
        let held = |i: usize| Matrix { at: base.wrapping_add(i * size), row: cols, col: 1 };
        for (i, p) in self.products.iter().enumerate() {
            // SAFETY: views lie in their buffers; every product has its own matrix.
            unsafe { product(height, cols, p.k, held(i), below(matrix(&p.a)), matrix(&p.b), false) };
        }
        self.work.run_rows(index, rows.clone(), &mut Strips { matrices, size }, registers);
        for (i, r) in self.results.iter().enumerate() {
            let (value, by, to) = (held(i), matrix(&r.by), matrix(&r.to));
            // SAFETY: views lie in their buffers, results overlap no operand; tasks write disjoint batches or strips.
            unsafe {
                match r.over {
                    Over::Cols => product(height, r.width, cols, below(to), value, by, false),
                    Over::Rows => {
                        let turned = Matrix { row: value.col, col: value.row, ..value };
                        product(cols, r.width, height, to, turned, below(by), rows.start > 0);
                    }
                }
            }
        }
    }
}
