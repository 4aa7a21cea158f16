//! Counter-based random numbers: Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). The same key and counter give the same numbers on every device and for every thread count.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Four random words for a key and a counter.
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A word as a number in [0, 1): its upper 24 bits, so that every value is exact in f32.
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / 16_777_216.0
}

/// Number `index` of `stream` at `step` of a run with `seed`: what [`crate::kernel::Random`] writes.
pub fn uniform(seed: u64, step: u64, stream: u32, index: usize) -> f32 {
    unit(block(seed, step, stream, (index / 4) as u32)[index % 4])
}

/// Numbers `4 * block .. 4 * block + 4` of a stream, as words.
pub fn block(seed: u64, step: u64, stream: u32, block: u32) -> [u32; 4] {
    philox([seed as u32, (seed >> 32) as u32], [block, stream, step as u32, (step >> 32) as u32])
}

/// A sequential generator over one stream, for initial weights and shuffles.
pub struct Sequence {
    seed: u64,
    stream: u32,
    step: u64,
    next: usize,
}

impl Sequence {
    /// The sequence for a seed, a stream and a step (an epoch number, say).
    pub fn new(seed: u64, stream: u32, step: u64) -> Sequence {
        Sequence { seed, stream, step, next: 0 }
    }

    /// The next word.
    pub fn word(&mut self) -> u32 {
        let i = self.next;
        self.next += 1;
        block(self.seed, self.step, self.stream, (i / 4) as u32)[i % 4]
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        unit(self.word())
    }

    /// Uniform in [-bound, bound).
    pub fn symmetric(&mut self, bound: f32) -> f32 {
        (2.0 * self.unit() - 1.0) * bound
    }

    /// Standard normal, by Box and Muller's transform in f64.
    pub fn normal(&mut self) -> f32 {
        let u = (f64::from(self.word()) + 1.0) / 4_294_967_296.0;
        let v = f64::from(self.word()) / 4_294_967_296.0;
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// A permutation of `0..n` (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut p: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            let j = (u64::from(self.word()) * (i as u64 + 1)) >> 32;
            p.swap(i, j as usize);
        }
        p
    }
}

/// A stream number for a name: FNV-1a over its bytes, so that a parameter's initial values do not depend on its
/// neighbours.
pub fn stream_of(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from the authors' published test vectors (Random123, kat_vectors).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn moments_are_right() {
        let mut s = Sequence::new(7, 1, 0);
        let n = 40_000;
        let (mut sum, mut square) = (0.0f64, 0.0f64);
        for _ in 0..n {
            let x = f64::from(s.normal());
            sum += x;
            square += x * x;
        }
        // Four standard errors: 4 / sqrt(n) for the mean, 4 * sqrt(2 / n) for the variance.
        assert!((sum / f64::from(n)).abs() < 0.02);
        assert!((square / f64::from(n) - 1.0).abs() < 0.03);
    }

    #[test]
    fn permutations_hold_every_index_once() {
        let mut p = Sequence::new(3, 0, 5).permutation(1000);
        assert_ne!(p[..5], [0, 1, 2, 3, 4]);
        p.sort_unstable();
        assert!(p.iter().enumerate().all(|(i, &x)| i as u32 == x));
    }
}
