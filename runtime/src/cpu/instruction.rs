//! One scalar function over a tile, compiled for each set of vector instructions.

use slrc_plan::ScalarFn;

use crate::cpu::math::{Vector, apply};

/// An argument of an instruction.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// One value per element.
    Tile(&'a [f32]),
    /// The same value for every element.
    Number(f32),
}

/// `out[i] = f(a[i], b[i], c[i])`; tiles are as long as `out`, unused arguments are ignored.
pub(super) fn execute(v: Vector, f: ScalarFn, out: &mut [f32], a: Source<'_>, b: Source<'_>, c: Source<'_>) {
    match v {
        Vector::Baseline => body::<false>(f, out, a, b, c),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vector::detect` found these instructions on this processor.
        Vector::Avx2 => unsafe { avx2(f, out, a, b, c) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Vector::Avx512 => unsafe { avx512(f, out, a, b, c) },
        #[cfg(not(target_arch = "x86_64"))]
        Vector::Avx2 | Vector::Avx512 => body::<false>(f, out, a, b, c),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(f: ScalarFn, out: &mut [f32], a: Source<'_>, b: Source<'_>, c: Source<'_>) {
    body::<true>(f, out, a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
fn avx512(f: ScalarFn, out: &mut [f32], a: Source<'_>, b: Source<'_>, c: Source<'_>) {
    body::<true>(f, out, a, b, c);
}

#[inline(always)]
fn body<const FUSED: bool>(f: ScalarFn, out: &mut [f32], a: Source<'_>, b: Source<'_>, c: Source<'_>) {
    macro_rules! each {
        ($($variant:ident: $arity:ident),*) => {
            match f { $( ScalarFn::$variant => $arity(out, a, b, c, #[inline(always)] |x, y, z| apply::<FUSED>(ScalarFn::$variant, x, y, z)), )* }
        };
    }
    each!(
        Copy: unary, Neg: unary, Abs: unary, Sign: unary, Floor: unary, Exp: unary, Log: unary, Sqrt: unary, Rsqrt: unary,
        Recip: unary, Tanh: unary, Sigmoid: unary, Erf: unary, Sin: unary, Atan: unary, Cos: unary, Not: unary,
        Add: binary, Sub: binary, Mul: binary, Div: binary, Pow: binary, Lt: binary, Le: binary, Eq: binary, And: binary,
        Or: binary, Select: ternary
    );
}

#[inline(always)]
fn unary(out: &mut [f32], a: Source<'_>, _: Source<'_>, _: Source<'_>, f: impl Fn(f32, f32, f32) -> f32) {
    match a {
        Source::Tile(a) => out.iter_mut().zip(a).for_each(|(o, &x)| *o = f(x, 0.0, 0.0)),
        Source::Number(a) => out.fill(f(a, 0.0, 0.0)),
    }
}

#[inline(always)]
fn binary(out: &mut [f32], a: Source<'_>, b: Source<'_>, _: Source<'_>, f: impl Fn(f32, f32, f32) -> f32) {
    match (a, b) {
        (Source::Tile(a), Source::Tile(b)) => {
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (&x, &y))| *o = f(x, y, 0.0));
        }
        (Source::Tile(a), Source::Number(y)) => out.iter_mut().zip(a).for_each(|(o, &x)| *o = f(x, y, 0.0)),
        (Source::Number(x), Source::Tile(b)) => out.iter_mut().zip(b).for_each(|(o, &y)| *o = f(x, y, 0.0)),
        (Source::Number(x), Source::Number(y)) => out.fill(f(x, y, 0.0)),
    }
}

#[inline(always)]
fn ternary(out: &mut [f32], a: Source<'_>, b: Source<'_>, c: Source<'_>, f: impl Fn(f32, f32, f32) -> f32) {
    match (a, b, c) {
        (Source::Tile(a), Source::Tile(b), Source::Tile(c)) => {
            out.iter_mut().zip(a.iter().zip(b.iter().zip(c))).for_each(|(o, (&x, (&y, &z)))| *o = f(x, y, z));
        }
        (Source::Tile(a), Source::Tile(b), Source::Number(z)) => {
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (&x, &y))| *o = f(x, y, z));
        }
        (Source::Tile(a), Source::Number(y), Source::Tile(c)) => {
            out.iter_mut().zip(a.iter().zip(c)).for_each(|(o, (&x, &z))| *o = f(x, y, z));
        }
        (Source::Tile(a), Source::Number(y), Source::Number(z)) => {
            out.iter_mut().zip(a).for_each(|(o, &x)| *o = f(x, y, z));
        }
        (Source::Number(x), b, c) => {
            let chosen = if x != 0.0 { b } else { c };
            match chosen {
                Source::Tile(t) => out.copy_from_slice(t),
                Source::Number(v) => out.fill(v),
            }
        }
    }
}

/// Lanes over which sums are kept apart before they are joined: the widest vector's, whatever the processor has.
pub(super) const LANES: usize = 16;

/// Sum of a slice: sixteen interleaved partial sums, then a fixed tree.
pub(super) fn sum(v: Vector, x: &[f32]) -> f32 {
    combine(v, x, 0.0, |a, b| a + b)
}

/// Largest element of a slice; NaN if there is one.
pub(super) fn max(v: Vector, x: &[f32]) -> f32 {
    combine(v, x, f32::NEG_INFINITY, larger)
}

/// The larger of two, NaN if either is.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

fn combine(v: Vector, x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    match v {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vector::detect` found these instructions on this processor.
        Vector::Avx2 | Vector::Avx512 => unsafe { combine_avx2(x, start, f) },
        _ => lanes(x, start, f),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn combine_avx2(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    lanes(x, start, f)
}

#[inline(always)]
fn lanes(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut acc = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        for i in 0..LANES {
            acc[i] = f(acc[i], c[i]);
        }
    }
    for (i, &r) in rest.iter().enumerate() {
        acc[i] = f(acc[i], r);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] = f(acc[i], acc[i + width]);
        }
        width /= 2;
    }
    acc[0]
}

/// `acc[i] = f(acc[i], x[i])` for sums (`max` false) or maxima.
pub(super) fn accumulate(v: Vector, acc: &mut [f32], x: &[f32], maximum: bool) {
    match v {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vector::detect` found these instructions on this processor.
        Vector::Avx2 | Vector::Avx512 => unsafe { accumulate_avx2(acc, x, maximum) },
        _ => accumulate_body(acc, x, maximum),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn accumulate_avx2(acc: &mut [f32], x: &[f32], maximum: bool) {
    accumulate_body(acc, x, maximum);
}

#[inline(always)]
fn accumulate_body(acc: &mut [f32], x: &[f32], maximum: bool) {
    if maximum {
        acc.iter_mut().zip(x).for_each(|(a, &x)| *a = larger(*a, x));
    } else {
        acc.iter_mut().zip(x).for_each(|(a, &x)| *a += x);
    }
}
