//! Vectors of f32 as wide as the processor has them.
//!
//! Code over [`Lanes`] is always inlined into a function compiled for the vector's instructions; [`with_lanes`] is that
//! function.

use crate::cpu::math::Vector;

/// Some f32 that are worked on together.
///
/// # Safety
/// Every method needs the instructions of its vector: it is called from code that [`with_lanes`] runs.
pub(super) trait Lanes: Copy {
    /// Numbers of a vector.
    const WIDTH: usize;
    /// Rows of two vectors that stay in registers, with room for what they are made of.
    const ROWS: usize;
    unsafe fn splat(x: f32) -> Self;
    /// [`Lanes::WIDTH`] numbers from `p` on, however aligned.
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    /// `self + a b`, rounded once where the processor can.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
}

macro_rules! lanes {
    ($vector:ty, $width:literal x $rows:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $fma:ident) => {
        impl Lanes for $vector {
            const WIDTH: usize = $width;
            const ROWS: usize = $rows;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: by the caller, here and below.
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                unsafe { $store(p, self) }
            }
            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            unsafe fn minus(self, other: Self) -> Self {
                unsafe { $sub(self, other) }
            }
            #[inline(always)]
            unsafe fn times(self, other: Self) -> Self {
                unsafe { $mul(self, other) }
            }
            #[inline(always)]
            unsafe fn plus_product(self, a: Self, b: Self) -> Self {
                unsafe { $fma(a, b, self) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    lanes!(
        __m512,
        16 x 12,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps
    );
    lanes!(
        __m256,
        8 x 6,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Lanes;
    use std::arch::aarch64::*;

    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, to: float32x4_t) -> float32x4_t {
        // SAFETY: by the caller.
        unsafe { vfmaq_f32(to, a, b) }
    }

    lanes!(
        float32x4_t,
        4 x 12,
        vdupq_n_f32,
        vld1q_f32,
        vst1q_f32,
        vaddq_f32,
        vsubq_f32,
        vmulq_f32,
        multiply_add
    );
}

/// Vectors of [`Vector::Baseline`].
#[cfg(target_arch = "aarch64")]
type Baseline = std::arch::aarch64::float32x4_t;
/// Vectors of [`Vector::Baseline`].
#[cfg(not(target_arch = "aarch64"))]
type Baseline = Plain;

/// What every processor can do; compilers make vectors of it.
#[derive(Clone, Copy)]
#[cfg_attr(target_arch = "aarch64", allow(dead_code, reason = "every such processor has vectors of its own"))]
pub(super) struct Plain([f32; 4]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Plain, f: impl Fn(f32, f32) -> f32) -> Plain {
        Plain(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Plain {
    const WIDTH: usize = 4;
    const ROWS: usize = 6;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: by the caller, here and below.
        Plain(unsafe { *p.cast::<[f32; 4]>() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { *p.cast::<[f32; 4]>() = self.0 }
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        self.zip(a.zip(b, |a, b| a * b), |a, b| a + b)
    }
}

/// Work that is compiled once for each vector.
pub(super) trait Work {
    type Output;
    /// # Safety
    /// As for [`Lanes`]; to be marked `#[inline(always)]`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs work with the vectors of `v`, which this processor has.
pub(super) fn with_lanes<W: Work>(v: Vector, work: W) -> W::Output {
    // SAFETY: `v` was found on this processor; each function has its vector's instructions.
    unsafe {
        match v {
            #[cfg(target_arch = "x86_64")]
            Vector::Avx512 => avx512(work),
            #[cfg(target_arch = "x86_64")]
            Vector::Avx2 => avx2(work),
            _ => work.run::<Baseline>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
fn avx512<W: Work>(work: W) -> W::Output {
    // SAFETY: this function has the instructions.
    unsafe { work.run::<std::arch::x86_64::__m512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<W: Work>(work: W) -> W::Output {
    // SAFETY: this function has the instructions.
    unsafe { work.run::<std::arch::x86_64::__m256>() }
}
