//! Products with a block of results in registers: the right operand in panels of columns, the left where it lies.
//!
//! Some columns of some terms of the right operand are brought into panels, which a core's second cache holds. Block by
//! block of rows, the left operand then stays in the first cache while all panels pass. A left operand whose terms do
//! not lie side by side is brought into blocks too.

use std::ops::Range;

use crate::cpu::lanes::{Lanes, Work, with_lanes};
use crate::cpu::math::Vector;
use crate::cpu::parallel::{panels, part};
use crate::cpu::product::Matrix;
use crate::cpu::transpose::transpose;

/// Most terms and columns that are in panels at a time.
const TERMS: usize = 512;
const COLUMNS: usize = 384;
/// Most rows of a left operand that are brought into order at a time.
const GROUP: usize = 48;
/// A left operand whose rows lie side by side is read where it lies if its terms are no further apart.
const NEAR: usize = 64;
/// A right operand is read where it lies if no more rows are computed from it, and its rows are no further apart.
const FEW: usize = 256;
const APART: usize = 1024;
/// Most columns of a panel.
const WIDEST: usize = 64;

/// `c = a b` (or `c += a b`) with `c` of `m x n`, its columns side by side, and `k` terms.
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) c: Matrix,
    pub(super) a: Matrix,
    pub(super) b: Matrix,
    pub(super) add: bool,
}

impl Product {
    /// # Safety
    /// The matrices lie in memory that may be read (and, for `c`, written) and `c` overlaps neither `a` nor `b`.
    pub(super) unsafe fn run(self, v: Vector) {
        debug_assert!(self.c.col == 1 || self.n == 1);
        panels(TERMS * (COLUMNS + WIDEST + GROUP), |memory| with_lanes(v, Running { product: self, memory }));
    }
}

struct Running<'a> {
    product: Product,
    memory: &'a mut [f32],
}

impl Work for Running<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Running { product: p, memory } = self;
        let (left, right) = memory.split_at_mut(TERMS * GROUP);
        let (left, right) = (left.as_mut_ptr(), right.as_mut_ptr());
        let all = p.n.div_ceil(L::WIDTH);
        let (col_parts, term_parts) = (p.n.div_ceil(COLUMNS), p.k.div_ceil(TERMS).max(1));
        let in_place = p.b.col == 1 && p.n.is_multiple_of(L::WIDTH) && p.m <= FEW && p.b.row <= APART;
        for j in 0..col_parts {
            let vectors = part(all, col_parts, j);
            let panels = vectors.len().div_ceil(L::BLOCK.len());
            let columns = Columns {
                start: vectors.start * L::WIDTH,
                end: p.n.min(vectors.end * L::WIDTH),
                panels,
                least: vectors.len() / panels,
                wider: vectors.len() % panels,
            };
            for i in 0..term_parts {
                let terms = part(p.k, term_parts, i);
                // SAFETY: by the caller; panels fit the scratch memory.
                unsafe {
                    if !in_place {
                        pack_right::<L>(p.b.from(terms.start, 0), terms.len(), &columns, right);
                    }
                    let right = if in_place { None } else { Some(right.cast_const()) };
                    p.rows::<L>(&columns, terms, p.add || i > 0, left, right);
                }
            }
        }
    }
}

/// Columns of a right operand, cut into panels of nearly as many vectors each.
struct Columns {
    start: usize,
    end: usize,
    panels: usize,
    /// Vectors of a panel.
    least: usize,
    /// The first so many panels have one more.
    wider: usize,
}

impl Columns {
    /// The columns of panel `i`, and vectors of those before it.
    #[inline(always)]
    fn panel<L: Lanes>(&self, i: usize) -> (Range<usize>, usize) {
        let before = i * self.least + i.min(self.wider);
        let vectors = self.least + usize::from(i < self.wider);
        let start = self.start + before * L::WIDTH;
        (start..self.end.min(start + vectors * L::WIDTH), before)
    }
}

impl Product {
    /// All rows of some columns and terms, which lie in panels at `right` or else in `b`.
    #[inline(always)]
    unsafe fn rows<L: Lanes>(
        &self,
        columns: &Columns,
        terms: Range<usize>,
        add: bool,
        left: *mut f32,
        right: Option<*const f32>,
    ) {
        let k = terms.len();
        let by_rows = self.a.col == 1 || k == 1;
        let in_place = by_rows || self.a.row == 1 && self.a.col <= NEAR;
        let most = L::BLOCK[columns.least + usize::from(columns.wider > 0) - 1];
        let groups = if in_place { 1 } else { self.m.div_ceil(GROUP) };
        for g in 0..groups {
            let rows = part(self.m, groups, g);
            let blocks = rows.len().div_ceil(most);
            let mut a = self.a.from(rows.start, terms.start);
            if !in_place {
                // SAFETY: by the caller; a group fits the scratch memory.
                unsafe { pack_left::<L>(a, rows.len(), k, left) };
                a = Matrix { at: left, row: 1, col: GROUP };
            }
            for i in 0..blocks {
                let block = part(rows.len(), blocks, i);
                for p in 0..columns.panels {
                    let (cols, before) = columns.panel::<L>(p);
                    let (b, b_step) = match right {
                        Some(right) => {
                            (right.wrapping_add(before * L::WIDTH * k), cols.len().next_multiple_of(L::WIDTH))
                        }
                        None => (self.b.from(terms.start, cols.start).at.cast_const(), self.b.row),
                    };
                    let tile = Tile {
                        k,
                        a: a.from(block.start, 0),
                        by_rows,
                        b,
                        b_step,
                        c: self.c.from(rows.start + block.start, cols.start).at,
                        stride: self.c.row,
                        width: cols.len(),
                        add,
                    };
                    // SAFETY: by the caller.
                    unsafe { tile.run::<L>(block.len()) };
                }
            }
        }
    }
}

/// A block of rows of one panel's columns.
struct Tile {
    k: usize,
    a: Matrix,
    /// Whether terms of `a` lie side by side; otherwise its rows do.
    by_rows: bool,
    b: *const f32,
    /// From term to term of `b`.
    b_step: usize,
    c: *mut f32,
    /// From row to row of `c`.
    stride: usize,
    width: usize,
    add: bool,
}

impl Tile {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, height: usize) {
        macro_rules! vectors {
            ($($v:literal)*) => {
                match self.width.div_ceil(L::WIDTH) {
                    // SAFETY: by the caller.
                    $($v if $v <= L::BLOCK.len() => unsafe { self.columns::<L, $v>(height) },)*
                    _ => unreachable!("invariant: a panel has few vectors"),
                }
            };
        }
        vectors!(1 2 3 4)
    }

    #[inline(always)]
    unsafe fn columns<L: Lanes, const V: usize>(&self, height: usize) {
        macro_rules! rows {
            ($($n:literal)*) => {
                match height {
                    // SAFETY: by the caller.
                    $($n if $n <= L::BLOCK[V - 1] => unsafe {
                        match self.by_rows {
                            true => self.block::<L, $n, V>(self.a.row, 1),
                            false => self.block::<L, $n, V>(1, self.a.col),
                        }
                    },)*
                    _ => unreachable!("invariant: a block has few rows"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const M: usize, const V: usize>(&self, row: usize, term: usize) {
        // SAFETY: by the caller.
        unsafe {
            let mut sums = [[L::splat(0.0); V]; M];
            let (mut a, mut b) = (self.a.at.cast_const(), self.b);
            for i in 0..M {
                expect(self.c.wrapping_add(i * self.stride), V * L::WIDTH);
            }
            for _ in 0..self.k {
                let mut right = [L::splat(0.0); V];
                for (v, r) in right.iter_mut().enumerate() {
                    *r = L::load(b.add(v * L::WIDTH));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = L::splat(*a.add(i * row));
                    for (s, r) in sums.iter_mut().zip(right) {
                        *s = s.plus_product(x, r);
                    }
                }
                a = a.wrapping_add(term);
                b = b.wrapping_add(self.b_step);
            }
            for (i, sums) in sums.into_iter().enumerate() {
                let to = self.c.wrapping_add(i * self.stride);
                if self.width == V * L::WIDTH {
                    for (v, s) in sums.into_iter().enumerate() {
                        let to = to.add(v * L::WIDTH);
                        let s = if self.add { L::load(to).plus(s) } else { s };
                        s.store(to);
                    }
                } else {
                    let mut row = [0.0f32; WIDEST];
                    for (v, s) in sums.into_iter().enumerate() {
                        s.store(row.as_mut_ptr().add(v * L::WIDTH));
                    }
                    for (j, s) in row.into_iter().enumerate().take(self.width) {
                        *to.add(j) = if self.add { *to.add(j) + s } else { s };
                    }
                }
            }
        }
    }
}

/// Asks for memory that is about to be written.
#[inline(always)]
fn expect(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(16) {
        // SAFETY: a hint; no memory is accessed, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}

/// Brings `k` terms into panels, each of whole vectors: zeros where there are no more columns.
#[inline(always)]
unsafe fn pack_right<L: Lanes>(b: Matrix, k: usize, columns: &Columns, to: *mut f32) {
    for p in 0..columns.panels {
        let (range, before) = columns.panel::<L>(p);
        let cols = range.len();
        let width = cols.next_multiple_of(L::WIDTH);
        let (from, to) = (b.from(0, range.start), to.wrapping_add(before * L::WIDTH * k));
        // SAFETY: by the caller.
        unsafe {
            if b.row == 1 && b.col != 1 {
                transpose(from.at, from.col, cols, k, to, width);
            } else if b.col == 1 {
                for t in 0..k {
                    let (from, to) = (from.at.add(t * b.row), to.add(t * width));
                    let whole = cols / L::WIDTH * L::WIDTH;
                    for c in (0..whole).step_by(L::WIDTH) {
                        L::load(from.add(c)).store(to.add(c));
                    }
                    for c in whole..cols {
                        *to.add(c) = *from.add(c);
                    }
                }
            } else {
                for t in 0..k {
                    for c in 0..cols {
                        *to.add(t * width + c) = *from.at.add(t * b.row + c * b.col);
                    }
                }
            }
            for t in 0..if cols < width { k } else { 0 } {
                for c in cols..width {
                    *to.add(t * width + c) = 0.0;
                }
            }
        }
    }
}

/// Brings `k` terms of at most [`GROUP`] rows into order: rows side by side, terms [`GROUP`] elements apart.
#[inline(always)]
unsafe fn pack_left<L: Lanes>(a: Matrix, rows: usize, k: usize, to: *mut f32) {
    let whole = if a.row == 1 { rows / L::WIDTH * L::WIDTH } else { 0 };
    for t in 0..k {
        let (from, to) = (a.from(0, t).at, to.wrapping_add(t * GROUP));
        // SAFETY: by the caller.
        unsafe {
            for r in (0..whole).step_by(L::WIDTH) {
                L::load(from.add(r)).store(to.add(r));
            }
            for r in whole..rows {
                *to.add(r) = *from.add(r * a.row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, so that every order of summing gives the same.
    fn number(seed: usize) -> f32 {
        ((seed * 2_654_435_761) >> 7) as u8 as f32 % 7.0 - 3.0
    }

    /// A matrix with its terms, its other dimension, or neither side by side.
    fn matrix(rows: usize, cols: usize, way: usize, seed: usize) -> (Vec<f32>, Matrix) {
        let (row, col) = [(cols + 3, 1), (1, rows + 5), (2 * cols + 1, 2)][way];
        let size = (rows.max(1) - 1) * row + (cols.max(1) - 1) * col + 1;
        let mut all: Vec<f32> = (0..size).map(|i| number(i + seed)).collect();
        let at = all.as_mut_ptr();
        (all, Matrix { at, row, col })
    }

    #[test]
    fn every_vector_multiplies() {
        let extents = [
            (1, 1, 1),
            (16, 64, 3),
            (5, 80, 40),
            (13, 197, 64),
            (67, 300, 20),
            (50, 33, 1100),
            (7, 16, 513),
            (3, 5, 0),
        ];
        for &v in Vector::all() {
            for (m, n, k) in extents {
                for (left, right, add) in (0..9).map(|i| (i / 3, i % 3, i % 2 == 0)) {
                    let ((a_memory, a), (b_memory, b)) = (matrix(m, k, left, 1), matrix(k, n, right, 7919));
                    let mut c = vec![1.0f32; m * (n + 3)];
                    let to = Matrix { at: c.as_mut_ptr(), row: n + 3, col: 1 };
                    // SAFETY: the matrices lie in their vectors.
                    unsafe { Product { m, n, k, c: to, a, b, add }.run(v) };
                    for (at, &got) in c.iter().enumerate() {
                        let (i, j) = (at / (n + 3), at % (n + 3));
                        let term = |t: usize| a_memory[i * a.row + t * a.col] * b_memory[t * b.row + j * b.col];
                        let want = match j < n {
                            true => (0..k).map(term).sum::<f32>() + f32::from(u8::from(add)),
                            false => 1.0,
                        };
                        assert_eq!(got, want, "{v}: {m} x {n} x {k}, operands {left} and {right}, row {i}, column {j}");
                    }
                }
            }
        }
    }
}
