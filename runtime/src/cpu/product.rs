//! Matrix products on the `gemm` crate, and how they are divided among tasks.

use std::ops::Range;

use crate::cpu::parallel::{panels, part};
use crate::cpu::transpose::transpose;

/// A matrix in memory: first element and the steps of rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) at: *mut f32,
    pub(super) row: usize,
    pub(super) col: usize,
}

impl Matrix {
    /// The matrix from an element on.
    pub(super) fn from(self, row: usize, col: usize) -> Matrix {
        Matrix { at: self.at.wrapping_add(row * self.row + col * self.col), ..self }
    }
}

/// Fewest rows of a product for which a right operand is worth turning.
const TURNED_ROWS: usize = 32;
/// Terms and columns that are turned at a time: they stay in a core's cache.
const TURNED_TERMS: usize = 512;
const TURNED_COLUMNS: usize = 256;
/// Between rows of turned columns: rows that are a power of two apart would fall into the same set of a cache.
const SKEW: usize = 16;

/// `c = a b` (or `c += a b`) with `c` of `m x n` and `k` terms.
///
/// A right operand whose terms lie side by side is turned first, block by block: the crate loads columns, and loading
/// them from as many rows that lie far apart takes it up to a third of its speed.
///
/// # Safety
/// The matrices lie in memory that may be read (and, for `c`, written) and `c` overlaps neither `a` nor `b`.
pub(super) unsafe fn product(m: usize, n: usize, k: usize, c: Matrix, a: Matrix, b: Matrix, add: bool) {
    let turn = b.row == 1 && b.col > 1 && c.col == 1 && m >= TURNED_ROWS && n > 1;
    if !turn {
        // SAFETY: by the caller.
        unsafe { multiply(m, n, k, c, a, b, add) };
        return;
    }
    let (col_parts, term_parts) = (n.div_ceil(TURNED_COLUMNS), k.div_ceil(TURNED_TERMS));
    panels(TURNED_TERMS * (TURNED_COLUMNS + 2 * SKEW), |memory| {
        for j in 0..col_parts {
            let cols = part(n, col_parts, j);
            for i in 0..term_parts {
                let terms = part(k, term_parts, i);
                let stride = cols.len().next_multiple_of(SKEW) + SKEW;
                let from = b.from(terms.start, cols.start);
                let turned = Matrix { at: memory.as_mut_ptr(), row: stride, col: 1 };
                // SAFETY: by the caller; the block fits the scratch memory.
                unsafe {
                    transpose(from.at, from.col, cols.len(), terms.len(), turned.at, stride);
                    let (to, left) = (c.from(0, cols.start), a.from(0, terms.start));
                    multiply(m, cols.len(), terms.len(), to, left, turned, add || i > 0);
                }
            }
        }
    });
}

unsafe fn multiply(m: usize, n: usize, k: usize, c: Matrix, a: Matrix, b: Matrix, add: bool) {
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

/// Multiplications worth a task.
const TASK_WORK: usize = 1 << 21;
/// Tasks of a product, where it is large enough for so many.
const TASKS: usize = 16;
/// Few tasks are a multiple of this: two, or four, threads get as much each.
const EVEN: usize = 4;
/// Smallest side of a block.
const MIN_SIDE: usize = 64;

/// Rows and columns of a product cut into blocks, by its extents alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    rows: usize,
    cols: usize,
    row_parts: usize,
    col_parts: usize,
}

impl Division {
    /// Blocks of at most `most` rows, of a product that is one of `alike`. Of all ways to cut it into enough tasks it
    /// is the one that brings its operands into order for the least; `cost` is what an element of the left and of the
    /// right takes.
    pub(super) fn new(extents: [usize; 3], alike: usize, most: usize, cost: [usize; 2]) -> Division {
        let [rows, cols, terms] = extents;
        let work = rows.saturating_mul(cols).saturating_mul(terms).saturating_mul(alike);
        let tasks = (work / TASK_WORK).clamp(1, TASKS);
        let wanted = (1 << tasks.ilog2()).max(1usize).div_ceil(alike.max(1));
        let least = rows.div_ceil(most.max(1)).max(1);
        let reads = |d: &Division| d.row_parts * cols * cost[1] + d.col_parts * rows * cost[0];
        let ways = |wanted: usize| {
            let cut = move |col_parts: usize| {
                let row_parts = least.max(wanted.div_ceil(col_parts));
                let few = row_parts * col_parts < 2 * TASKS;
                let even = (wanted / col_parts).clamp(1, EVEN);
                let row_parts = if few { row_parts.next_multiple_of(even) } else { row_parts };
                let fits = |n: usize, parts: usize, forced: usize| parts <= forced || n / parts >= MIN_SIDE;
                let fit = fits(cols, col_parts, 1) && fits(rows, row_parts, least);
                fit.then_some(Division { rows, cols, row_parts, col_parts })
            };
            (0..=TASKS.ilog2()).filter_map(move |i| cut(1 << i)).min_by_key(reads)
        };
        // Half as many tasks where that saves a quarter of the reading.
        let halves = std::iter::successors(Some(wanted), |&w| (w > 1).then_some(w / 2));
        let mut found = halves.filter_map(ways);
        let whole = Division { rows, cols, row_parts: least, col_parts: 1 };
        let best = found.next().unwrap_or(whole);
        found.next().filter(|half| 4 * reads(half) < 3 * reads(&best)).unwrap_or(best)
    }

    /// Rows cut into no more parts than `groups`, where there is such a bound.
    pub(super) fn within(self, groups: Option<usize>) -> Division {
        Division { row_parts: groups.map_or(self.row_parts, |g| self.row_parts.min(g)), ..self }
    }

    pub(super) fn blocks(&self) -> usize {
        self.row_parts * self.col_parts
    }

    /// Rows and columns of the largest block.
    pub(super) fn largest(&self) -> (usize, usize) {
        (self.rows.div_ceil(self.row_parts), self.cols.div_ceil(self.col_parts))
    }

    /// Parts that rows are cut into.
    pub(super) fn row_parts(&self) -> usize {
        self.row_parts
    }

    /// Which of these a block is of.
    pub(super) fn row_part(&self, i: usize) -> usize {
        i / self.col_parts
    }

    /// Rows and columns of a block.
    pub(super) fn block(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let rows = part(self.rows, self.row_parts, self.row_part(i));
        (rows, part(self.cols, self.col_parts, i % self.col_parts))
    }
}
