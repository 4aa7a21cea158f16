//! Products of the transformed tiles: a block of results in registers, one operand in panels.

use super::lanes::{Lanes, Work, with_lanes};
use crate::cpu::math::Vector;

/// Values of a row that lie together: channels of a tile.
pub(super) const CHUNK: usize = 64;
/// From row to row of a chunk: rows of equal distance fall into different sets of a cache.
pub(super) const ROW: usize = CHUNK + 16;

/// How the left operand lies.
#[derive(Clone, Copy)]
pub(super) enum Left {
    /// Chunks of [`CHUNK`] terms, `next` elements apart, their rows [`ROW`] elements apart.
    Rows { next: usize },
    /// A chunk's columns are the rows of the operand: terms are [`ROW`] elements apart.
    Columns,
}

/// `c = a b`, or `c += a b`: `rows x panels * width` results of `terms` terms.
pub(super) struct Panels {
    pub(super) rows: usize,
    pub(super) terms: usize,
    pub(super) panels: usize,
    pub(super) a: *const f32,
    pub(super) left: Left,
    /// Panels of `terms` rows of [`panel_width`] numbers, one after the other.
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    /// From row to row of `c`.
    pub(super) stride: usize,
    pub(super) add: bool,
}

/// Columns of a panel.
pub(super) fn panel_width(v: Vector) -> usize {
    struct Width;
    impl Work for Width {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) -> usize {
            2 * L::WIDTH
        }
    }
    with_lanes(v, Width)
}

impl Panels {
    /// # Safety
    /// The operands lie in memory that may be read, the results in memory that may be written and that neither
    /// operand shares.
    pub(super) unsafe fn run(self, v: Vector) {
        with_lanes(v, self);
    }
}

impl Work for Panels {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let blocks = self.rows.div_ceil(L::ROWS);
        for panel in 0..self.panels {
            let mut first = 0;
            for i in 0..blocks {
                let rows = self.rows / blocks + usize::from(i < self.rows % blocks);
                // SAFETY: blocks lie in the operands and results.
                unsafe { self.rows::<L>(first, rows, panel) };
                first += rows;
            }
        }
    }
}

impl Panels {
    #[inline(always)]
    unsafe fn rows<L: Lanes>(&self, first: usize, rows: usize, panel: usize) {
        macro_rules! exactly {
            ($($n:literal)*) => {
                // SAFETY: by the caller.
                unsafe {
                    match rows {
                        $($n => match self.left {
                            Left::Rows { next } => self.block::<L, $n, ROW, 1>(self.a.add(first * ROW), next, first, panel),
                            Left::Columns => self.block::<L, $n, 1, ROW>(self.a.add(first), 0, first, panel),
                        },)*
                        _ => unreachable!("invariant: blocks have between one and twelve rows"),
                    }
                }
            };
        }
        exactly!(1 2 3 4 5 6 7 8 9 10 11 12)
    }

    /// `M` rows of results; an element of `a` is `ROWS` elements after that of the row before, `TERMS` elements after
    /// that of the term before.
    #[inline(always)]
    unsafe fn block<L: Lanes, const M: usize, const ROWS: usize, const TERMS: usize>(
        &self,
        a: *const f32,
        next: usize,
        first: usize,
        panel: usize,
    ) {
        // SAFETY: by the caller.
        unsafe {
            let width = 2 * L::WIDTH;
            let mut sums = [[L::splat(0.0); 2]; M];
            let mut b = self.b.add(panel * self.terms * width);
            let (mut chunk, mut left) = (a, self.terms);
            while left > 0 {
                let count = if TERMS == 1 { left.min(CHUNK) } else { left };
                let mut a = chunk;
                for _ in 0..count {
                    let (low, high) = (L::load(b), L::load(b.add(L::WIDTH)));
                    for (i, s) in sums.iter_mut().enumerate() {
                        let x = L::splat(*a.add(i * ROWS));
                        *s = [s[0].plus_product(x, low), s[1].plus_product(x, high)];
                    }
                    a = a.add(TERMS);
                    b = b.add(width);
                }
                chunk = chunk.add(next);
                left -= count;
            }
            for (i, s) in sums.into_iter().enumerate() {
                let to = self.c.add((first + i) * self.stride + panel * width);
                let [mut low, mut high] = s;
                if self.add {
                    low = L::load(to).plus(low);
                    high = L::load(to.add(L::WIDTH)).plus(high);
                }
                low.store(to);
                high.store(to.add(L::WIDTH));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors that this processor has.
    fn vectors() -> Vec<Vector> {
        match Vector::detect() {
            Vector::Baseline => vec![Vector::Baseline],
            Vector::Avx2 => vec![Vector::Baseline, Vector::Avx2],
            Vector::Avx512 => vec![Vector::Baseline, Vector::Avx2, Vector::Avx512],
        }
    }

    /// Small integers, so that every order of summing gives the same.
    fn number(seed: usize) -> f32 {
        ((seed * 2_654_435_761) >> 7) as u8 as f32 % 7.0 - 3.0
    }

    #[test]
    fn every_vector_multiplies() {
        for v in vectors() {
            let width = panel_width(v);
            for (rows, terms, panels, columns) in
                [(1, 1, 1, false), (13, 64, 2, false), (25, 80, 1, false), (30, 200, 3, false), (64, 9, 2, true)]
            {
                let b: Vec<f32> = (0..panels * terms * width).map(|i| number(i + 99)).collect();
                let value = |i: usize, t: usize| number(i * 1009 + t);
                let mut a = vec![f32::NAN; if columns { terms * ROW } else { terms.div_ceil(CHUNK) * rows * ROW }];
                for i in 0..rows {
                    for t in 0..terms {
                        let at = if columns { t * ROW + i } else { (t / CHUNK * rows + i) * ROW + t % CHUNK };
                        a[at] = value(i, t);
                    }
                }
                let stride = panels * width + 3;
                for add in [false, true] {
                    let mut c = vec![1.0f32; rows * stride];
                    let work = Panels {
                        rows,
                        terms,
                        panels,
                        a: a.as_ptr(),
                        left: if columns { Left::Columns } else { Left::Rows { next: rows * ROW } },
                        b: b.as_ptr(),
                        c: c.as_mut_ptr(),
                        stride,
                        add,
                    };
                    // SAFETY: the operands are as long as the extents say.
                    unsafe { work.run(v) };
                    for (at, &got) in c.iter().enumerate() {
                        let (i, j) = (at / stride, at % stride);
                        let sum: f32 = (0..terms)
                            .map(|t| value(i, t) * b.get((j / width * terms + t) * width + j % width).unwrap_or(&0.0))
                            .sum();
                        let want = if j >= panels * width { 1.0 } else { sum + f32::from(u8::from(add)) };
                        assert_eq!(got, want, "{v}: {rows}x{terms} in {panels} panels, row {i}, column {j}");
                    }
                }
            }
        }
    }
}
