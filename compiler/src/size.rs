//! Sizes of memory: how they are written, read and shown.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A number of bytes that people write: `2GiB`, `512MiB`, `1.5GB`, `65536`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number and a unit.
    #[error("`{0}` is not a size; write a number and a unit, such as 2GiB, 512MiB or 1.5GB, or bytes, such as 65536")]
    Malformed(String),
    /// More than can be counted.
    #[error("`{0}` is more bytes than can be counted; the largest size is {max}", max = usize::MAX)]
    TooLarge(String),
}

/// Units and their bytes; letter case does not matter.
const UNITS: &[(&str, u128)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Size {
    type Err = SizeError;

    /// Part of a byte is left out.
    fn from_str(text: &str) -> Result<Size, SizeError> {
        let malformed = || SizeError::Malformed(text.into());
        let too_large = || SizeError::TooLarge(text.into());
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = UNITS.iter().find(|u| u.0.eq_ignore_ascii_case(unit.trim())).ok_or_else(malformed)?.1;
        let (whole, fraction) = match number.split_once('.') {
            None => (number, ""),
            Some((_, "")) => return Err(malformed()),
            Some(parts) => parts,
        };
        if whole.is_empty() || fraction.contains('.') {
            return Err(malformed());
        }
        // What is smaller than the 18th place of the largest unit is no byte.
        let fraction = &fraction[..fraction.len().min(18)];
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_large())?;
        let bytes = digits.checked_mul(unit).ok_or_else(too_large)? / 10u128.pow(fraction.len() as u32);
        usize::try_from(bytes).map(Size).map_err(|_| too_large())
    }
}

impl fmt::Display for Size {
    /// Exactly, in the largest binary unit of which it is a multiple.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|&&(_, bits)| self.0 > 0 && self.0.trailing_zeros() >= bits) {
            Some((unit, bits)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Reads the text of a size, which may be a plain number in YAML.
pub(crate) fn written<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Whole(i128),
        Number(f64),
        Text(String),
    }
    let written = Option::<Written>::deserialize(from)?;
    Ok(written.map(|w| match w {
        Written::Whole(n) => n.to_string(),
        Written::Number(x) => x.to_string(),
        Written::Text(text) => text,
    }))
}

/// Bytes in binary units, rounded.
pub fn readable(n: usize) -> String {
    let x = n as f64;
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", x / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", x / 1_048_576.0),
        _ => format!("{:.2} GiB", x / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("512MiB", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("1.5 GiB", 3 << 29),
            ("64kib", 65536),
            ("64KIB", 65536),
            ("3kb", 3000),
            ("3KB", 3000),
            ("1tib", 1 << 40),
            ("2TB", 2_000_000_000_000),
            ("65536", 65536),
            ("65536B", 65536),
            ("0", 0),
            ("0.0001KiB", 0),
            ("0.1KiB", 102),
            ("9007199254740993", 9_007_199_254_740_993),
            ("18446744073709551615", usize::MAX),
            ("1.00000000000000000000000000001GiB", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_to_write() {
        for text in [
            "",
            "GiB",
            "-1",
            "-2GiB",
            "+2GiB",
            "2 parsecs",
            "2Gi",
            "2G",
            ".5GiB",
            "1.GiB",
            "1..5GiB",
            "1.5.5GiB",
            "1e9",
            "NaN",
            "infMB",
            "two",
            "2GiB more",
            "0x10",
        ] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::Malformed(text.into())), "{text}");
        }
        assert!(SizeError::Malformed("2G".into()).to_string().contains("such as 2GiB"));
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999999999999999999999999"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge(text.into())), "{text}");
        }
    }

    #[test]
    fn a_size_is_written_as_it_would_be_read() {
        for (bytes, text) in
            [(0, "0"), (1, "1"), (1536, "1536"), (65536, "64KiB"), (3 << 29, "1536MiB"), (1 << 40, "1TiB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
    }
}
