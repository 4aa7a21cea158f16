//! Element types narrower than 16 bits: what their bits mean, and which of their numbers is nearest to another.

use crate::onnx::tensor::Elem;

/// A type of up to eight bits that packs or rounds in its own way; by its code in onnx.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Narrow {
    /// A float.
    Float(Format),
    /// A power of two, without a sign.
    Power,
    /// An integer of fewer than eight bits.
    Int { bits: usize, signed: bool },
}

/// A small float: sign, exponent, fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent: u32,
    fraction: u32,
    bias: i32,
    special: Special,
}

/// What a small float has besides numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    /// Infinities and no numbers, as IEEE 754 has them.
    Ieee,
    /// The last code of each sign is no number.
    Last,
    /// Negative zero is no number.
    NegativeZero,
    /// Nothing.
    None,
}

impl Narrow {
    /// The type of an ONNX code, if it is one of these.
    pub(crate) fn of(code: i32) -> Option<Narrow> {
        let float =
            |exponent, fraction, bias, special| Some(Narrow::Float(Format { exponent, fraction, bias, special }));
        match code {
            17 => float(4, 3, 7, Special::Last),
            18 => float(4, 3, 8, Special::NegativeZero),
            19 => float(5, 2, 15, Special::Ieee),
            20 => float(5, 2, 16, Special::NegativeZero),
            21 => Some(Narrow::Int { bits: 4, signed: false }),
            22 => Some(Narrow::Int { bits: 4, signed: true }),
            23 => float(2, 1, 1, Special::None),
            24 => Some(Narrow::Power),
            25 => Some(Narrow::Int { bits: 2, signed: false }),
            26 => Some(Narrow::Int { bits: 2, signed: true }),
            _ => None,
        }
    }

    pub(crate) fn name(code: i32) -> Option<&'static str> {
        Some(match code {
            23 => "float4e2m1",
            24 => "float8e8m0",
            25 => "uint2",
            26 => "int2",
            _ => return None,
        })
    }

    pub(crate) fn elem(self) -> Elem {
        match self {
            Narrow::Float(_) | Narrow::Power => Elem::Float,
            Narrow::Int { .. } => Elem::Int,
        }
    }

    /// Bits of an element; smaller ones lie in a byte from the lowest bit on.
    pub(crate) fn bits(self) -> usize {
        match self {
            Narrow::Float(f) => (1 + f.exponent + f.fraction) as usize,
            Narrow::Power => 8,
            Narrow::Int { bits, .. } => bits,
        }
    }

    /// Elements of packed bytes.
    pub(crate) fn unpack(self, bytes: impl Iterator<Item = u8>, count: usize) -> Vec<f64> {
        let (bits, each) = (self.bits(), 8 / self.bits());
        let mask = (1u16 << bits) - 1;
        let codes = bytes.flat_map(|b| (0..each).map(move |i| ((u16::from(b) >> (i * bits)) & mask) as u8));
        codes.take(count).map(|c| self.value(c)).collect()
    }

    fn value(self, code: u8) -> f64 {
        match self {
            Narrow::Float(f) => f.value(code),
            Narrow::Power if code == 0xff => f64::NAN,
            Narrow::Power => 2f64.powi(i32::from(code) - 127),
            Narrow::Int { bits, signed } => {
                let (x, half) = (f64::from(code), f64::from(1u16 << (bits - 1)));
                if signed && x >= half { x - 2.0 * half } else { x }
            }
        }
    }

    /// What a cast makes of a number. `saturate` says whether a float keeps within its largest number.
    pub(crate) fn cast(self, x: f64, saturate: bool, up: Option<bool>) -> f64 {
        match self {
            Narrow::Float(f) => f.nearest(x, saturate),
            Narrow::Power => power_of_two(x, up),
            Narrow::Int { bits, signed } => {
                let (low, high) = bounds(bits, signed);
                // Two's complement of so many bits.
                low + (x.trunc() - low).rem_euclid(high - low + 1.0)
            }
        }
    }
}

/// Least and greatest integer of so many bits.
pub(crate) fn bounds(bits: usize, signed: bool) -> (f64, f64) {
    let all = 2f64.powi(bits as i32);
    if signed { (-all / 2.0, all / 2.0 - 1.0) } else { (0.0, all - 1.0) }
}

/// The power of two above (`up`), below or nearest to a number.
fn power_of_two(x: f64, up: Option<bool>) -> f64 {
    let x = x.abs();
    if x.is_nan() {
        return x;
    }
    let below = x.log2().floor();
    let exact = 2f64.powf(below) == x;
    let exponent = match up {
        Some(true) if !exact => below + 1.0,
        None if x / 2f64.powf(below) >= 1.5 => below + 1.0,
        _ => below,
    };
    2f64.powf(exponent.clamp(-127.0, 127.0))
}

impl Format {
    fn value(self, code: u8) -> f64 {
        let sign_bit = 1u8 << (self.exponent + self.fraction);
        let (negative, body) = (code & sign_bit != 0, code & (sign_bit - 1));
        let (e, f) = (i32::from(body >> self.fraction), i32::from(body) & ((1 << self.fraction) - 1));
        let last = (1 << self.exponent) - 1;
        let sign = if negative { -1.0 } else { 1.0 };
        match self.special {
            Special::Ieee if e == last => return if f == 0 { sign * f64::INFINITY } else { f64::NAN },
            Special::Last if body == sign_bit - 1 => return f64::NAN,
            Special::NegativeZero if code == sign_bit => return f64::NAN,
            _ => {}
        }
        let fraction = f64::from(f) / f64::from(1 << self.fraction);
        sign * if e == 0 { fraction * 2f64.powi(1 - self.bias) } else { (1.0 + fraction) * 2f64.powi(e - self.bias) }
    }

    fn largest(self) -> u8 {
        let codes = (0..1u8 << (self.exponent + self.fraction)).rev();
        codes.into_iter().find(|&c| self.value(c).is_finite()).unwrap_or(0)
    }

    /// Halves go to the even code. What is too large is the largest number, or, unless that is wanted, an infinity or
    /// no number.
    fn nearest(self, x: f64, saturate: bool) -> f64 {
        let sign = if x.is_sign_negative() { -1.0 } else { 1.0 };
        let (a, last) = (x.abs(), self.largest());
        let top = self.value(last);
        let beyond = if self.special == Special::Ieee { sign * f64::INFINITY } else { f64::NAN };
        if x.is_nan() {
            // Where there is none, as the reference has it.
            return if self.special == Special::None { -0.0 } else { x };
        }
        if a.is_infinite() {
            return if saturate || self.special == Special::None { sign * top } else { beyond };
        }
        let half_above = top + (top - self.value(last - 1)) / 2.0;
        if a > top {
            let within = a < half_above || (a == half_above && last % 2 == 0);
            return if saturate || within || self.special == Special::None { sign * top } else { beyond };
        }
        let above = (0..=last).find(|&c| self.value(c) >= a).unwrap_or(last);
        let nearest = if above == 0 || self.value(above) == a {
            above
        } else {
            let (down, up) = (a - self.value(above - 1), self.value(above) - a);
            if down < up || (down == up && (above - 1) % 2 == 0) { above - 1 } else { above }
        };
        let y = self.value(nearest);
        if y == 0.0 && self.special == Special::NegativeZero { 0.0 } else { sign * y }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_small_floats() {
        let of = |code| Narrow::of(code).expect("a narrow type");
        for (code, bits, value) in
            [(17, 0x7e, 448.0), (17, 0x01, 2f64.powi(-9)), (18, 0x7f, 240.0), (19, 0x7b, 57344.0)]
        {
            assert_eq!(of(code).value(bits), value, "{code} {bits:#x}");
        }
        assert!(of(17).value(0x7f).is_nan() && of(18).value(0x80).is_nan() && of(24).value(0xff).is_nan());
        assert_eq!([0, 7, 15].map(|c| of(22).value(c)), [0.0, 7.0, -1.0]);
        assert_eq!(of(21).unpack([0x21, 0x03].into_iter(), 3), [1.0, 2.0, 3.0]);
        // Every number is its own nearest.
        for code in 17..=20 {
            for bits in 0..=255u8 {
                let x = of(code).value(bits);
                assert!(x.is_nan() || x.is_infinite() || of(code).cast(x, true, None) == x, "{code} {bits:#x} {x}");
            }
        }
        // Between 1 and 1.125, and beyond the largest.
        assert_eq!([1.0625, 1.07].map(|x| of(17).cast(x, true, None)), [1.0, 1.125]);
        assert_eq!(of(17).cast(1e6, true, None), 448.0);
        assert!(of(17).cast(1e6, false, None).is_nan() && of(19).cast(-1e6, false, None) == f64::NEG_INFINITY);
    }
}
