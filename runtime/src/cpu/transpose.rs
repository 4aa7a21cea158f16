//! Transposition of f32 matrices, eight by eight where the processor has the instructions.

use crate::cpu::math::Vector;

/// `to[c * to_stride + r] = from[r * stride + c]`.
///
/// # Safety
/// `from` may be read at `rows` rows of `cols` elements, `to` written at `cols` rows of `rows`; they do not overlap.
pub(super) unsafe fn transpose(
    from: *const f32,
    stride: usize,
    rows: usize,
    cols: usize,
    to: *mut f32,
    to_stride: usize,
) {
    let whole = match Vector::detect() {
        #[cfg(target_arch = "x86_64")]
        Vector::Avx2 | Vector::Avx512 => {
            let whole = [rows, cols].map(|n| n / 8 * 8);
            for c in (0..whole[1]).step_by(8) {
                for r in (0..whole[0]).step_by(8) {
                    // SAFETY: the instructions were found on this processor; the block lies in both matrices.
                    unsafe { eight(from.add(r * stride + c), stride, to.add(c * to_stride + r), to_stride) };
                }
            }
            whole
        }
        _ => [0, 0],
    };
    for r in 0..rows {
        for c in if r < whole[0] { whole[1] } else { 0 }..cols {
            // SAFETY: by the caller.
            unsafe { *to.add(c * to_stride + r) = *from.add(r * stride + c) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn eight(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: by the caller.
    unsafe {
        let row = |i: usize| _mm256_loadu_ps(from.add(i * stride));
        let pair = |i: usize| (_mm256_unpacklo_ps(row(i), row(i + 1)), _mm256_unpackhi_ps(row(i), row(i + 1)));
        // Columns of four rows: two of the first half of a row's columns, two of the second, side by side.
        let four = |i: usize| {
            let ((a, b), (c, d)) = (pair(i), pair(i + 2));
            [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ]
        };
        let (top, bottom) = (four(0), four(4));
        for i in 0..4 {
            _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]));
            _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_arrives() {
        for (rows, cols) in [(1, 1), (7, 9), (8, 8), (16, 24), (19, 21), (40, 3)] {
            let (stride, to_stride) = (cols + 3, rows + 5);
            let from: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            let mut to = vec![-1.0; cols * to_stride];
            // SAFETY: both are long enough.
            unsafe { transpose(from.as_ptr(), stride, rows, cols, to.as_mut_ptr(), to_stride) };
            for (i, &x) in to.iter().enumerate() {
                let (c, r) = (i / to_stride, i % to_stride);
                assert_eq!(x, if r < rows { from[r * stride + c] } else { -1.0 }, "{rows}x{cols}: {r}, {c}");
            }
        }
    }
}
