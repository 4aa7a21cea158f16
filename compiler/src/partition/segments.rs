//! What is known of segments as modules, and what is expected of those that have not been costed.
//!
//! A segment not costed is taken to need what parts of it were seen to need, less a little ([`PART`], [`ALIKE`]), and
//! for its size what any was seen to need at least, less more ([`SIZED`]): most of what an arena holds are results of
//! products and convolutions, gradients of weights, and boundaries, which the network tells without being compiled.
//! The first module is not reconciled, so that it is compared with parts that begin where it does only.
//!
//! What is most likely, rather than what is taken for sure, says what is worth costing ([`Table::likely`]).

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

    /// Costs of some runs `i..j` of pieces as modules.
    fn costs(&mut self, segments: &[(usize, usize)]) -> Result<Vec<Cost>, Self::Error>;

    /// Bytes of everything that [`Cost::shared`] has named, by number.
    fn shared_bytes(&self) -> &[usize];
}

/// A segment is taken to need at least so much of the arena of a part of it, in percent. A part may need a little more
/// than the whole: it has a boundary and a head where the whole has neither.
pub(super) const PART: usize = 80;

/// What is carried along adds up to so many times its bytes to an arena: the tensor on both sides, its gradient, and
/// what that is compared with. A whole that ends elsewhere does not hold it.
const CARRIED: usize = 4;

/// The same of a part between boundaries of the same types as those of the whole, which has the same head.
const ALIKE: usize = 98;

/// A segment is taken to need at least so much, in percent, of the least that any was seen to need for its size.
pub(super) const SIZED: f64 = 70.0;

/// The pieces between one possible cut and the next.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// Work of every piece's forward pass.
    pub work: Vec<u64>,
    /// Bytes of the results of its products and convolutions, and of its weights.
    pub results: Vec<usize>,
    /// Bytes of the boundary before every piece and after the last; none at the ends of the network.
    pub boundaries: Vec<usize>,
    /// Of these, bytes of what is carried along beside what a head reads.
    pub carried: Vec<usize>,
    /// What type of boundary that is: equal numbers for equal types, and numbers of their own for the ends.
    pub types: Vec<usize>,
}

impl Pieces {
    /// Pieces that are some of these each, between places that begin with 0 and end with the number of these.
    pub(super) fn between(&self, at: &[usize]) -> Pieces {
        let runs = || at.windows(2).map(|w| w[0]..w[1]);
        Pieces {
            work: runs().map(|r| self.work[r].iter().sum()).collect(),
            results: runs().map(|r| self.results[r].iter().sum()).collect(),
            boundaries: at.iter().map(|&i| self.boundaries[i]).collect(),
            carried: at.iter().map(|&i| self.carried[i]).collect(),
            types: at.iter().map(|&i| self.types[i]).collect(),
        }
    }
}

/// Sums of what comes before each.
fn before<T: Copy + Default + std::ops::AddAssign>(of: &[T]) -> Vec<T> {
    let mut sum = T::default();
    let after = of.iter().map(|&x| {
        sum += x;
        sum
    });
    std::iter::once(T::default()).chain(after).collect()
}

/// How large segments are: in bytes that their arenas grow with.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    results: Vec<usize>,
    boundaries: Vec<usize>,
}

impl Sizes {
    pub(super) fn new(pieces: &Pieces) -> Sizes {
        // What is carried along may only pass through.
        let boundaries = pieces.boundaries.iter().zip(&pieces.carried).map(|(all, carried)| all - carried).collect();
        Sizes { results: before(&pieces.results), boundaries }
    }

    /// Of a boundary there are a gradient and copies.
    pub(super) fn of(&self, i: usize, j: usize) -> f64 {
        let boundaries = self.boundaries[i] + self.boundaries[j];
        ((self.results[j] - self.results[i]) as f64 + 1.5 * boundaries as f64).max(1.0)
    }
}

/// What is known of segments `i..j`.
#[derive(Clone, Debug)]
pub struct Table {
    known: Vec<Vec<Option<Cost>>>,
    /// The largest arena known of a segment or a part of it.
    parts: Vec<Vec<usize>>,
    /// The same of parts between boundaries of the same types.
    alike: Vec<Vec<usize>>,
    /// Segments known, with their arenas.
    arenas: Vec<(usize, usize, usize)>,
    sizes: Sizes,
    /// The least arena of a byte of size: of first segments, and of others.
    least: [Option<f64>; 2],
    /// Bytes kept, by end: of a first segment, and of others.
    kept: Vec<[usize; 2]>,
    /// Work of the forward pass before each cut.
    forward: Vec<u64>,
    types: Vec<usize>,
    /// Bytes carried along beside each cut.
    carried: Vec<usize>,
}

impl Table {
    /// Knows the work of every piece's forward pass, and no cost.
    pub fn new(pieces: &Pieces) -> Table {
        let n = pieces.work.len();
        let none = vec![vec![0; n + 1]; n + 1];
        Table {
            known: vec![vec![None; n + 1]; n + 1],
            parts: none.clone(),
            alike: none,
            arenas: Vec::new(),
            sizes: Sizes::new(pieces),
            least: [None; 2],
            kept: vec![[0; 2]; n + 1],
            forward: before(&pieces.work),
            types: pieces.types.clone(),
            carried: pieces.carried.clone(),
        }
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

    /// Costs segments that are not known.
    pub(super) fn learn<S: Segments>(&mut self, which: &[(usize, usize)], segments: &mut S) -> Result<(), S::Error> {
        for (&(i, j), cost) in which.iter().zip(segments.costs(which)?) {
            self.set(i, j, cost);
        }
        Ok(())
    }

    fn set(&mut self, i: usize, j: usize, cost: Cost) {
        self.known[i][j] = Some(cost);
        self.kept[j][usize::from(i > 0)] = cost.kept;
        self.arenas.push((i, j, cost.arena));
        let per_byte = cost.arena as f64 / self.sizes.of(i, j);
        let least = &mut self.least[usize::from(i > 0)];
        *least = Some(least.map_or(per_byte, |l| l.min(per_byte)));
        let n = self.pieces();
        // What is not reconciled may need less than a part that would be.
        let starts = i.min(1)..=i;
        let carried = CARRIED * (self.carried[i] + self.carried[j]);
        raise(&mut self.parts, starts.clone().rev(), j..=n, cost.arena.saturating_sub(carried));
        let types = &self.types;
        let same_start = starts.rev().filter(|&a| types[a] == types[i]);
        let same_end = (j..=n).filter(|&b| types[b] == types[j]);
        raise(&mut self.alike, same_start, same_end, cost.arena);
    }

    /// Costs the whole as one module.
    pub fn learn_whole<S: Segments>(&mut self, segments: &mut S) -> Result<(), S::Error> {
        if self.is_known(0, self.pieces()) {
            return Ok(());
        }
        self.learn(&[(0, self.pieces())], segments)
    }

    /// A cost, and where it is not known: bytes that they are at least, and no work.
    pub(super) fn expected(&self, i: usize, j: usize) -> Cost {
        self.known[i][j].unwrap_or_else(|| Cost {
            arena: (self.parts[i][j] / 100 * PART).max(self.alike[i][j] / 100 * ALIKE).max(self.sized(i, j)),
            kept: self.kept[j][usize::from(i > 0)],
            shared: Shared::default(),
            work: 0,
        })
    }

    fn sized(&self, i: usize, j: usize) -> usize {
        self.least[usize::from(i > 0)].map_or(0.0, |least| SIZED / 100.0 * least * self.sizes.of(i, j)) as usize
    }

    /// Takes a segment not known for what it most likely costs, until [`Table::forget`].
    pub(super) fn suppose(&mut self, i: usize, j: usize) {
        let cost = Cost { arena: self.likely(i, j).max(self.expected(i, j).arena), ..self.expected(i, j) };
        self.known[i][j] = Some(cost);
    }

    pub(super) fn forget(&mut self, i: usize, j: usize) {
        self.known[i][j] = None;
    }

    /// The arena a segment not known is most likely to need: in proportion to its size, as of the known ones that are
    /// nearest in size of those that begin or end where it does.
    pub(super) fn likely(&self, i: usize, j: usize) -> usize {
        let size = self.sizes.of(i, j);
        let alike = self.arenas.iter().filter(|&&(a, b, _)| (a == 0) == (i == 0) && (a == i || b == j));
        let scaled = |&(a, b, arena): &(usize, usize, usize)| {
            let of = self.sizes.of(a, b);
            ((size - of).abs(), arena as f64 * size / of)
        };
        let nearest = alike.map(scaled).min_by(|x, y| x.0.total_cmp(&y.0));
        let any = self.arenas.iter().map(scaled).min_by(|x, y| x.0.total_cmp(&y.0));
        nearest.or(any).map_or(size, |(_, arena)| arena) as usize
    }

    /// The work of a segment's step, or where it is not known, what is likely.
    pub(super) fn work(&self, i: usize, j: usize) -> u64 {
        self.known[i][j].map_or_else(|| self.likely_work(i, j), |c| c.work)
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

/// Raises what is known at some ends, the nearest first, to what a part of all of these needs.
fn raise(
    of: &mut [Vec<usize>],
    starts: impl Iterator<Item = usize>,
    ends: impl Iterator<Item = usize> + Clone,
    arena: usize,
) {
    for i in starts {
        let mut raised = false;
        for j in ends.clone() {
            // Longer segments know of the same parts.
            if of[i][j] >= arena {
                break;
            }
            (of[i][j], raised) = (arena, true);
        }
        if !raised {
            break;
        }
    }
}
