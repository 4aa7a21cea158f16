//! Scalar functions on f32, written so that compilers turn loops over them into vector code: no branches, no calls.
//!
//! Polynomials are minimax fits (Lawson's iteration on Chebyshev nodes, relative error); the bound stated at each
//! function is of the whole f32 computation and is checked in tests against f64.
#![allow(
    clippy::excessive_precision,
    clippy::approx_constant,
    reason = "coefficients of fits, as found: one near a known constant is not meant to be it"
)]

use slrc_plan::ScalarFn;

/// `a * b + c`, fused where the target has it: a call to a software routine would be slower than two roundings.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn poly<const FUSED: bool, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut y = c[N - 1];
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        y = fma::<FUSED>(y, x, c[i]);
    }
    y
}

/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact in few bits.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x`, within 2 ulp; underflows to 0 below -87.3, overflows to infinity above 88.72.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    let clipped = if x > 88.722_84 { 88.722_84 } else { x };
    let clipped = if clipped < -87.336_5 { -87.336_5 } else { clipped };
    let t = clipped * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = fma::<FUSED>(n, -LN2_HIGH, clipped);
    let r = fma::<FUSED>(n, -LN2_LOW, r);
    let p = poly::<FUSED, 5>(r, [4.999_999_4e-1, 1.666_652_1e-1, 4.166_838_9e-2, 8.368_71e-3, 1.381_461_3e-3]);
    let y = fma::<FUSED>(r * r, p, r) + 1.0;
    // 2^n in two factors, so that n = 128 does not overflow on the way.
    let bits = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = bits >> 1;
    let scale = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let y = y * scale(half) * scale(bits - half);
    let y = if x > 88.722_84 { f32::INFINITY } else { y };
    let y = if x < -87.336_5 { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// Natural logarithm, within 2 ulp for normal arguments; NaN below zero, negative infinity at zero.
#[inline(always)]
fn log<const FUSED: bool>(x: f32) -> f32 {
    // Mantissa in [sqrt(1/2), sqrt(2)).
    let shifted = (x.to_bits() as i32).wrapping_sub(0x3f35_04f3);
    let e = shifted >> 23;
    let m = f32::from_bits(((shifted & 0x007f_ffff) + 0x3f35_04f3) as u32);
    let f = m - 1.0;
    let p = poly::<FUSED, 9>(
        f,
        [
            3.333_331_3e-1,
            -2.500_001e-1,
            2.000_211_9e-1,
            -1.666_799_6e-1,
            1.421_955_2e-1,
            -1.240_558_9e-1,
            1.188_816_2e-1,
            -1.167_565_2e-1,
            6.746_641e-2,
        ],
    );
    let n = e as f32;
    let low = fma::<FUSED>(n, LN2_LOW, f * f * f * p - 0.5 * f * f);
    let y = fma::<FUSED>(n, LN2_HIGH, f + low);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// Hyperbolic tangent, within 3 ulp.
#[inline(always)]
fn tanh<const FUSED: bool>(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let small = poly::<FUSED, 5>(s, [-3.333_328e-1, 1.333_144_2e-1, -5.373_971_5e-2, 2.063_909e-2, -5.704_99e-3]);
    let small = fma::<FUSED>(x * s, small, x);
    let large = (1.0 - 2.0 / (exp::<FUSED>(2.0 * a) + 1.0)).copysign(x);
    if a < 0.625 { small } else { large }
}

/// `1 / (1 + e^-x)`, within 3 ulp where it is normal.
#[inline(always)]
fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// Error function, within 3 ulp.
#[inline(always)]
fn erf<const FUSED: bool>(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let small = poly::<FUSED, 7>(
        s,
        [1.128_379_1, -3.761_262_6e-1, 1.128_358_5e-1, -2.685_381_3e-2, 5.188_328_7e-3, -8.010_201_3e-4, 7.853_885e-5],
    );
    let small = x * small;
    // erfc(a) = e^(-a^2) Q(t), t = 1 / (1 + a / 2); beyond 4.2 the result rounds to 1.
    let t = 1.0 / fma::<FUSED>(a, 0.5, 1.0);
    let q = poly::<FUSED, 6>(t, ERFC);
    let large = (1.0 - exp::<FUSED>(-s) * q).copysign(x);
    if a < 1.0 { small } else { large }
}

/// Fit of `erfc(x) e^(x^2)` in `1 / (1 + x / 2)` on [1, 4.2].
const ERFC: [f32; 6] = [1.822_479_5e-3, 2.597_006_3e-1, 3.968_02e-1, -6.446_05e-2, 6.366_8e-1, -2.308_016_4e-1];

/// One function of numbers; unused arguments are ignored. Flags are 0.0 and 1.0.
#[inline(always)]
pub(super) fn apply<const FUSED: bool>(f: ScalarFn, a: f32, b: f32, c: f32) -> f32 {
    let flag = |x: bool| if x { 1.0 } else { 0.0 };
    match f {
        ScalarFn::Copy => a,
        ScalarFn::Neg => -a,
        ScalarFn::Abs => a.abs(),
        ScalarFn::Sign => {
            let y = if a > 0.0 { 1.0 } else { a };
            if a < 0.0 { -1.0 } else { y }
        }
        ScalarFn::Floor => a.floor(),
        ScalarFn::Exp => exp::<FUSED>(a),
        ScalarFn::Log => log::<FUSED>(a),
        ScalarFn::Sqrt => a.sqrt(),
        ScalarFn::Rsqrt => 1.0 / a.sqrt(),
        ScalarFn::Recip => 1.0 / a,
        ScalarFn::Tanh => tanh::<FUSED>(a),
        ScalarFn::Sigmoid => sigmoid::<FUSED>(a),
        ScalarFn::Erf => erf::<FUSED>(a),
        ScalarFn::Sin => a.sin(),
        ScalarFn::Atan => a.atan(),
        ScalarFn::Cos => a.cos(),
        ScalarFn::Not => 1.0 - a,
        ScalarFn::Add => a + b,
        ScalarFn::Sub => a - b,
        ScalarFn::Mul => a * b,
        ScalarFn::Div => a / b,
        ScalarFn::Pow => a.powf(b),
        ScalarFn::Lt => flag(a < b),
        ScalarFn::Le => flag(a <= b),
        ScalarFn::Eq => flag(a == b),
        ScalarFn::And => flag((a != 0.0) & (b != 0.0)),
        ScalarFn::Or => flag((a != 0.0) | (b != 0.0)),
        ScalarFn::Select => {
            if a != 0.0 {
                b
            } else {
                c
            }
        }
    }
}

/// Vector instructions a process may use; found once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vector {
    /// What every x86-64 (or other) processor has.
    Baseline,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Vector {
    /// The widest this processor has.
    pub fn detect() -> Vector {
        static FOUND: std::sync::OnceLock<Vector> = std::sync::OnceLock::new();
        *FOUND.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
                if avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                    return Vector::Avx512;
                }
                if avx2 {
                    return Vector::Avx2;
                }
            }
            Vector::Baseline
        })
    }
}

impl std::fmt::Display for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Vector::Baseline => "baseline instructions",
            Vector::Avx2 => "AVX2",
            Vector::Avx512 => "AVX-512",
        })
    }
}

/// One function of one element, as the device computes it: for tests and tools.
pub fn evaluate(f: ScalarFn, a: f32, b: f32, c: f32) -> f32 {
    match Vector::detect() {
        Vector::Baseline => apply::<false>(f, a, b, c),
        Vector::Avx2 | Vector::Avx512 => apply::<true>(f, a, b, c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place of the f32 nearest the true value.
    fn worst<const FUSED: bool>(f: ScalarFn, truth: impl Fn(f64) -> f64, range: (f32, f32)) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        let n = 200_000;
        for i in 0..=n {
            let x = range.0 + (range.1 - range.0) * (i as f32 / n as f32);
            let y = f64::from(apply::<FUSED>(f, x, 0.0, 0.0));
            let t = truth(f64::from(x));
            let ulp = f64::from((t as f32).abs().max(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON) / 2.0;
            // An ulp is between half and one epsilon of the value.
            let error = (y - t).abs() / ulp.max(1e-45);
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    fn check(f: ScalarFn, truth: impl Fn(f64) -> f64 + Copy, range: (f32, f32), ulps: f64) {
        for (name, (error, x)) in
            [("fused", worst::<true>(f, truth, range)), ("plain", worst::<false>(f, truth, range))]
        {
            assert!(error <= 2.0 * ulps, "{f} {name}: {error} half-epsilons at {x}");
        }
    }

    #[test]
    fn accuracy() {
        check(ScalarFn::Exp, f64::exp, (-87.0, 88.5), 2.0);
        check(ScalarFn::Exp, f64::exp, (-1.0, 1.0), 2.0);
        check(ScalarFn::Log, f64::ln, (1e-3, 0.9), 2.0);
        check(ScalarFn::Log, f64::ln, (1.1, 1e4), 2.0);
        check(ScalarFn::Tanh, f64::tanh, (-9.0, 9.0), 3.0);
        check(ScalarFn::Tanh, f64::tanh, (-0.7, 0.7), 3.0);
        check(ScalarFn::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), (-80.0, 80.0), 3.0);
        // The reference is libm's, through its identity with the normal distribution's series below.
        check(ScalarFn::Erf, erf64, (-5.0, 5.0), 3.0);
        check(ScalarFn::Erf, erf64, (-1.2, 1.2), 3.0);
    }

    /// Taylor series in f64, summed until it stops changing; accurate to 1e-12 for |x| <= 5 with f64's 16 digits.
    fn erf64(x: f64) -> f64 {
        if x.abs() > 3.0 {
            // Continued fraction of erfc.
            let a = x.abs();
            let mut fraction = 0.0;
            for k in (1..=80).rev() {
                fraction = 0.5 * f64::from(k) / (a + fraction);
            }
            let erfc = (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt());
            return (1.0 - erfc).copysign(x);
        }
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn corners() {
        for fused in [false, true] {
            let e = |f, x| if fused { apply::<true>(f, x, 0.0, 0.0) } else { apply::<false>(f, x, 0.0, 0.0) };
            assert_eq!(e(ScalarFn::Exp, 0.0), 1.0);
            assert_eq!(e(ScalarFn::Exp, -1000.0), 0.0);
            assert_eq!(e(ScalarFn::Exp, 1000.0), f32::INFINITY);
            assert_eq!(e(ScalarFn::Exp, f32::NEG_INFINITY), 0.0);
            assert!(e(ScalarFn::Exp, f32::NAN).is_nan());
            assert_eq!(e(ScalarFn::Log, 1.0), 0.0);
            assert_eq!(e(ScalarFn::Log, 0.0), f32::NEG_INFINITY);
            assert!(e(ScalarFn::Log, -1.0).is_nan());
            assert_eq!(e(ScalarFn::Log, f32::INFINITY), f32::INFINITY);
            assert_eq!(e(ScalarFn::Tanh, 100.0), 1.0);
            assert_eq!(e(ScalarFn::Tanh, -100.0), -1.0);
            assert_eq!(e(ScalarFn::Tanh, 0.0), 0.0);
            assert!(e(ScalarFn::Tanh, f32::NAN).is_nan());
            assert_eq!(e(ScalarFn::Erf, 10.0), 1.0);
            assert_eq!(e(ScalarFn::Erf, -10.0), -1.0);
            assert!(e(ScalarFn::Erf, f32::NAN).is_nan());
            assert_eq!(e(ScalarFn::Sigmoid, 200.0), 1.0);
            assert_eq!(e(ScalarFn::Sigmoid, -200.0), 0.0);
        }
    }
}
