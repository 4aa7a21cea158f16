//! Seeded mutations of bytes and of texts, and the watch over what they do.
#![allow(dead_code, reason = "each test file uses a part")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use slrc_plan::random::Sequence;

/// Random choices of one case.
pub(crate) struct Dice(Sequence);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(Sequence::new(seed, 0xd1ce, 0))
    }

    /// A number below `n`, which is not zero.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.word()) << 32 | u64::from(self.0.word())) % n as u64) as usize
    }

    /// One of some.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// An integer of the kind that breaks things: around zero, powers of two, the ends of the range.
    pub(crate) fn integer(&mut self) -> i64 {
        match self.below(8) {
            0 => -1,
            1 => *self.pick(&[i64::MIN, i64::MAX, i64::from(i32::MIN), i64::from(u32::MAX), 1 << 40]),
            2 => -(self.below(6) as i64),
            3 => 1 << self.below(20),
            _ => self.below(34) as i64,
        }
    }

    /// Bytes with one to three small damages.
    pub(crate) fn mangle(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..1 + self.below(3) {
            if bytes.is_empty() {
                return bytes;
            }
            let at = self.below(bytes.len());
            let run = at..(at + 1 + self.below(12)).min(bytes.len());
            match self.below(8) {
                0..=2 => bytes[at] ^= 1 << self.below(8),
                3 => bytes[at] = *self.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                4 => drop(bytes.drain(run)),
                5 => {
                    let copy = bytes[run].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
                6 => {
                    let noise: Vec<u8> = (0..1 + self.below(6)).map(|_| self.below(256) as u8).collect();
                    bytes.splice(at..at, noise);
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}

/// How many cases to try: `usual`, times the environment variable SLRC_FUZZ for a longer search.
pub(crate) fn cases(usual: u64) -> std::ops::Range<u64> {
    let times = std::env::var("SLRC_FUZZ").map_or(1, |v| v.parse().expect("SLRC_FUZZ is a number"));
    0..usual * times
}

/// Runs a case; a panic fails the test under the case's name.
pub(crate) fn no_panic<R>(what: &str, case: impl FnOnce() -> R) -> R {
    // Should the process die, this tells in which case.
    let folder = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, Into::into);
    let log = folder.join(format!("case-{:?}", std::thread::current().id()));
    let _ = std::fs::write(log, what);
    match catch_unwind(AssertUnwindSafe(case)) {
        Ok(r) => r,
        Err(_) => panic!("case `{what}` panics"),
    }
}
