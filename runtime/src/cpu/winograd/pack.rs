//! Transformed weights, in the order in which products read them.

use super::lanes::{Lanes, Work};
use super::transform::{POSITIONS, TAPS, Weights, both, load, store};
use crate::cpu::memory::Operand;
use crate::cpu::parallel::tasks_for;

/// Terms that are transformed at a time.
const TERMS: usize = 16;
/// Columns of the widest panel.
const WIDEST: usize = 32;

/// Weights `[to, 3, 3, from]` (`[from, 3, 3, to]` where turned around) as `[position][panel of to][from][in panel]`.
pub(super) struct Pack<'a> {
    pub(super) weights: &'a Operand,
    pub(super) packed: &'a Operand,
    pub(super) in_channels: usize,
    /// Of the input gradient: other way round, and taps in reverse.
    pub(super) turned: bool,
    pub(super) from: usize,
    pub(super) to: usize,
    /// Columns of a panel.
    pub(super) width: usize,
}

impl Pack<'_> {
    fn panels(&self) -> usize {
        self.to.div_ceil(self.width)
    }

    /// Where a panel of a position begins.
    pub(super) fn panel(&self, position: usize, panel: usize) -> usize {
        (position * self.panels() + panel) * self.from * self.width
    }

    /// Pieces of work: some terms of a panel.
    pub(super) fn units(&self) -> usize {
        self.panels() * (self.from / TERMS)
    }

    pub(super) fn tasks(&self) -> usize {
        tasks_for(self.units(), POSITIONS * TERMS * self.width)
    }

    pub(super) fn unit(&self, unit: usize) -> Unit<'_> {
        Unit { pack: self, panel: unit % self.panels(), first: unit / self.panels() * TERMS }
    }
}

/// [`TERMS`] terms of a panel.
pub(super) struct Unit<'a> {
    pack: &'a Pack<'a>,
    panel: usize,
    first: usize,
}

impl Work for Unit<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Unit { pack, panel, first } = self;
        let column = panel * pack.width;
        let columns = pack.width.min(pack.to - column);
        // Taps of the terms, a panel's columns side by side; columns beyond the last are zeros.
        let mut block = [[[0.0f32; WIDEST]; TERMS]; TAPS];
        for (tap, terms) in block.iter_mut().enumerate() {
            for c in 0..if pack.turned { 0 } else { columns } {
                let from = pack.weights.f32(((column + c) * TAPS + tap) * pack.in_channels + first);
                for (t, term) in terms.iter_mut().enumerate() {
                    // SAFETY: weights lie in their buffer.
                    term[c] = unsafe { *from.add(t) };
                }
            }
            for (t, term) in terms.iter_mut().enumerate().take(if pack.turned { TERMS } else { 0 }) {
                let from = pack.weights.f32(((first + t) * TAPS + TAPS - 1 - tap) * pack.in_channels + column);
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(from, term.as_mut_ptr(), columns) };
            }
        }
        for t in 0..TERMS {
            for c in (0..pack.width).step_by(L::WIDTH) {
                // SAFETY: by the caller; units write disjoint parts of the workspace.
                unsafe {
                    let taps = block.as_ptr().cast::<f32>().add(t * WIDEST + c);
                    let taps = load(taps, 3 * TERMS * WIDEST, TERMS * WIDEST);
                    let step = pack.panel(1, 0);
                    let to = pack.packed.f32(pack.panel(0, panel) + (first + t) * pack.width + c);
                    store(both::<Weights, L, 3, 4>(taps), to, 4 * step, step);
                }
            }
        }
    }
}
