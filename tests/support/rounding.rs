//! Numbers as tensor cores read them, by arithmetic rather than by bits.

use slrc_plan::Precision;

/// Bits of significand, the leading one included.
fn bits(precision: Precision) -> i32 {
    match precision {
        Precision::F32 => 24,
        Precision::Tf32 => 11,
        Precision::Bf16 => 8,
    }
}

/// The nearest number with so many bits, ties away from zero (TF32) or to even (bf16).
pub(crate) fn rounded(x: f64, precision: Precision) -> f64 {
    if x == 0.0 {
        return x;
    }
    let unit = (x.abs().log2().floor() - f64::from(bits(precision) - 1)).exp2();
    let n = x / unit;
    unit * if precision == Precision::Bf16 { n.round_ties_even() } else { n.round() }
}
