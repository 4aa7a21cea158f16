//! What is known of segments as modules, and what is expected of those that have not been costed.
//!
//! A segment not costed is taken to need what parts of it were seen to need, less a little ([`PART`]), and a part never
//! seen nothing. The first module is not reconciled, so that it is compared with parts that begin where it does only.

/// What a segment costs as a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of the arena of its training step, with the boundaries on both sides.
    pub arena: usize,
    /// Bytes it keeps for the whole run: parameters of its local head, their optimizer state, the numbers it reports.
    /// It depends on where the segment ends, and on whether it is the first.
    pub kept: usize,
    /// Constants and scalars it reads, which it may share with others.
    pub shared: Shared,
    /// Floating-point operations of its training step.
    pub work: u64,
}

/// A set of things that modules share, by number: see [`Segments::shared_bytes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared(u64);

impl Shared {
    /// Numbers a set can hold.
    pub const MOST: usize = u64::BITS as usize;

    /// Adds a number below [`Shared::MOST`].
    pub fn insert(&mut self, i: usize) {
        self.0 |= 1 << i;
    }

    /// What is in either.
    pub fn union(self, other: Shared) -> Shared {
        Shared(self.0 | other.0)
    }

    /// Whether all of it is in the other.
    pub fn within(self, other: Shared) -> bool {
        self.0 & !other.0 == 0
    }

    /// Sum of the bytes of what is in it.
    pub fn bytes(self, of: &[usize]) -> usize {
        of.iter().enumerate().filter(|&(i, _)| self.0 >> i & 1 == 1).map(|(_, n)| n).sum()
    }
}

/// Finds out what segments cost, which takes a while.
pub trait Segments {
    /// Why a segment cannot be a module.
    type Error;

    /// Cost of the pieces `i..j` as a module.
    fn cost(&mut self, i: usize, j: usize) -> Result<Cost, Self::Error>;

    /// Bytes of everything that [`Cost::shared`] has named, by number.
    fn shared_bytes(&self) -> &[usize];
}

/// A segment is taken to need at least so much of the arena of a part of it, in percent. A part may need a little more
/// than the whole: it has a boundary and a head where the whole has neither.
pub(super) const PART: usize = 80;

/// What is known of segments `i..j`.
#[derive(Clone, Debug)]
pub struct Table {
    known: Vec<Vec<Option<Cost>>>,
    /// Bytes kept, by end: of a first segment, and of others.
    kept: Vec<[usize; 2]>,
    /// Work of the forward pass before each cut.
    forward: Vec<u64>,
}

impl Table {
    /// Knows the work of every piece's forward pass, and no cost.
    pub fn new(work: &[u64]) -> Table {
        let n = work.len();
        let mut sum = 0;
        let after = work.iter().map(|w| {
            sum += w;
            sum
        });
        let forward = std::iter::once(0).chain(after).collect();
        Table { known: vec![vec![None; n + 1]; n + 1], kept: vec![[0; 2]; n + 1], forward }
    }

    /// Pieces there are.
    pub fn pieces(&self) -> usize {
        self.forward.len() - 1
    }

    /// Work of a segment's forward pass.
    pub(super) fn forward(&self, i: usize, j: usize) -> u64 {
        self.forward[j] - self.forward[i]
    }

    pub(super) fn is_known(&self, i: usize, j: usize) -> bool {
        self.known[i][j].is_some()
    }

    /// Costs a segment, if that has not been done.
    pub(super) fn learn<S: Segments>(&mut self, i: usize, j: usize, segments: &mut S) -> Result<Cost, S::Error> {
        if let Some(cost) = self.known[i][j] {
            return Ok(cost);
        }
        let cost = segments.cost(i, j)?;
        self.known[i][j] = Some(cost);
        self.kept[j][usize::from(i > 0)] = cost.kept;
        Ok(cost)
    }

    /// Costs the whole as one module.
    pub fn learn_whole<S: Segments>(&mut self, segments: &mut S) -> Result<(), S::Error> {
        self.learn(0, self.pieces(), segments).map(|_| ())
    }

    /// Costs, and where they are not known: bytes that they are at least, and the work that is likely.
    pub(super) fn expected(&self) -> Vec<Vec<Cost>> {
        let n = self.pieces();
        let mut out = vec![vec![Cost::default(); n + 1]; n + 1];
        // The largest arena known of a segment or a part of it.
        let mut parts = vec![vec![0; n + 1]; n + 1];
        for length in 1..=n {
            for i in 0..=n - length {
                let j = i + length;
                let within = match (i, length) {
                    (_, 1) => 0,
                    // What is not reconciled may need less than a part that would be.
                    (0, _) => parts[0][j - 1],
                    _ => parts[i + 1][j].max(parts[i][j - 1]),
                };
                let known = self.known[i][j];
                parts[i][j] = within.max(known.map_or(0, |c| c.arena));
                out[i][j] = known.unwrap_or_else(|| Cost {
                    arena: within / 100 * PART,
                    kept: self.kept[j][usize::from(i > 0)],
                    shared: Shared::default(),
                    work: self.likely_work(i, j),
                });
            }
        }
        out
    }

    /// Work in proportion to that of the forward pass, as in the segments nearest in size of which it is known.
    fn likely_work(&self, i: usize, j: usize) -> u64 {
        let scaled = |a: usize, b: usize, from: usize, to: usize| {
            let whole = self.known[a][b]?.work as f64;
            let part = self.forward(from, to) as f64 / self.forward(a, b).max(1) as f64;
            Some((whole * part) as u64)
        };
        let forward = |a: usize, b: usize| self.forward(a, b);
        if i == 0 {
            let known = (1..=self.pieces()).filter(|&b| self.is_known(0, b));
            return known
                .min_by_key(|&b| forward(0, b).abs_diff(forward(0, j)))
                .and_then(|b| scaled(0, b, 0, j))
                .unwrap_or(0);
        }
        // Each piece as a module of its own, where it is known as such.
        (i..j).map(|p| scaled(p, p + 1, p, p + 1).unwrap_or(0)).sum()
    }
}
