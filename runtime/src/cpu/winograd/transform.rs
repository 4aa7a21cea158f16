//! The transforms of F(2x2, 3x3): tiles of four by four inputs, of two by two results.
//!
//! Minimal filtering (S. Winograd, Arithmetic Complexity of Computations, 1980; for convolutions A. Lavin and S. Gray,
//! Fast Algorithms for Convolutional Neural Networks, 2015): with `d` a tile of the image, `g` the weights and `m` the
//! products,
//!
//! ```text
//! results          y = A' [ (G g G') * (B' d B) ] A
//! weight gradient  g = G' [ (A dy A') * (B' d B) ] G
//!
//!      1  0 -1  0        1    0    0            1  1  1  0
//! B' = 0  1  1  0    G = 1/2  1/2  1/2     A' = 0  1 -1 -1
//!      0 -1  1  0        1/2 -1/2  1/2
//!      0  1  0 -1        0    0    1
//! ```
//!
//! All constants are exact, so what is lost is the rounding of a few sums: the error is about twice a direct sum's.

#![allow(clippy::needless_range_loop, reason = "tiles stay in registers where loops have constant bounds")]

use super::lanes::Lanes;

/// Weights of a pair of channels.
pub(super) const TAPS: usize = 9;
/// Positions of a transformed tile.
pub(super) const POSITIONS: usize = 16;

/// A function of vectors along one dimension of a tile.
pub(super) trait Along<const FROM: usize, const TO: usize> {
    unsafe fn apply<L: Lanes>(x: [L; FROM]) -> [L; TO];
}

/// `B' d`.
pub(super) struct Image;
/// `G g`.
pub(super) struct Weights;
/// `A' m`.
pub(super) struct Results;
/// `A dy`.
pub(super) struct ResultGrads;
/// `G' m`.
pub(super) struct WeightGrads;

impl Along<4, 4> for Image {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: [L; 4]) -> [L; 4] {
        // SAFETY: by the caller, here and below.
        unsafe { [x[0].minus(x[2]), x[1].plus(x[2]), x[2].minus(x[1]), x[1].minus(x[3])] }
    }
}

impl Along<3, 4> for Weights {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: [L; 3]) -> [L; 4] {
        unsafe {
            let half = L::splat(0.5);
            let ends = x[0].plus(x[2]);
            [x[0], ends.plus(x[1]).times(half), ends.minus(x[1]).times(half), x[2]]
        }
    }
}

impl Along<4, 2> for Results {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: [L; 4]) -> [L; 2] {
        unsafe { [x[0].plus(x[1]).plus(x[2]), x[1].minus(x[2]).minus(x[3])] }
    }
}

impl Along<2, 4> for ResultGrads {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: [L; 2]) -> [L; 4] {
        unsafe { [x[0], x[0].plus(x[1]), x[0].minus(x[1]), L::splat(0.0).minus(x[1])] }
    }
}

impl Along<4, 3> for WeightGrads {
    #[inline(always)]
    unsafe fn apply<L: Lanes>(x: [L; 4]) -> [L; 3] {
        unsafe {
            let half = L::splat(0.5);
            let (sum, difference) = (x[1].plus(x[2]).times(half), x[1].minus(x[2]).times(half));
            [x[0].plus(sum), difference, sum.plus(x[3])]
        }
    }
}

/// A function along both dimensions of a tile, columns first.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(super) unsafe fn both<F: Along<FROM, TO>, L: Lanes, const FROM: usize, const TO: usize>(
    x: [[L; FROM]; FROM],
) -> [[L; TO]; TO] {
    // SAFETY: by the caller.
    unsafe {
        let zero = L::splat(0.0);
        let mut half = [[zero; FROM]; TO];
        for s in 0..FROM {
            let mut column = [zero; FROM];
            for r in 0..FROM {
                column[r] = x[r][s];
            }
            let column = F::apply(column);
            for r in 0..TO {
                half[r][s] = column[r];
            }
        }
        let mut out = [[zero; TO]; TO];
        for r in 0..TO {
            out[r] = F::apply(half[r]);
        }
        out
    }
}

/// `N x N` vectors, `row` and `column` elements apart.
///
/// # Safety
/// As for [`Lanes`]; they may be read.
#[inline(always)]
pub(super) unsafe fn load<L: Lanes, const N: usize>(from: *const f32, row: usize, column: usize) -> [[L; N]; N] {
    // SAFETY: by the caller.
    unsafe {
        let mut out = [[L::splat(0.0); N]; N];
        for r in 0..N {
            for s in 0..N {
                out[r][s] = L::load(from.add(r * row + s * column));
            }
        }
        out
    }
}

/// The inverse of [`load`].
///
/// # Safety
/// As for [`Lanes`]; they may be written.
#[inline(always)]
pub(super) unsafe fn store<L: Lanes, const N: usize>(x: [[L; N]; N], to: *mut f32, row: usize, column: usize) {
    for r in 0..N {
        for s in 0..N {
            // SAFETY: by the caller.
            unsafe { x[r][s].store(to.add(r * row + s * column)) };
        }
    }
}
