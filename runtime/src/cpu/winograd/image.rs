//! Between pictures and transformed tiles.

use std::ops::Range;

use super::lanes::{Lanes, Work};
use super::micro::{CHUNK, ROW};
use super::transform::{Along, Image, ResultGrads, Results, both, load, store};
use super::{SIDE, Tiles};
use crate::cpu::memory::Operand;

/// Samples of some rows, columns and channels, channels innermost.
pub(super) struct Picture {
    pub(super) operand: Operand,
    pub(super) extents: [usize; 2],
    pub(super) channels: usize,
    /// Rows above and columns left of it that count as zeros.
    pub(super) pads: [usize; 2],
}

/// How the transformed tiles of a position lie.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// Chunks of channels; in a chunk a row a tile, [`ROW`] elements apart.
    Chunks {
        /// Tiles of a chunk.
        tiles: usize,
    },
    /// Panels of channels; in a panel a row a tile.
    Panels {
        /// Tiles of a panel.
        tiles: usize,
        /// Channels of a panel.
        width: usize,
    },
}

impl Layout {
    /// Where channel `c` of tile `i` lies.
    #[inline(always)]
    fn at(self, i: usize, c: usize) -> usize {
        match self {
            Layout::Chunks { tiles } => (c / CHUNK * tiles + i) * ROW + c % CHUNK,
            Layout::Panels { tiles, width } => (c / width * tiles + i) * width + c % width,
        }
    }
}

impl Picture {
    /// Channels from `channel` on of `N x N` pixels of what begins at `at`, from row `y` and column `x` on, counted
    /// from the padding's start; zeros outside.
    #[inline(always)]
    unsafe fn patch<L: Lanes, const N: usize>(
        &self,
        at: *mut f32,
        n: usize,
        y: usize,
        x: usize,
        channel: usize,
    ) -> [[L; N]; N] {
        let [height, width] = self.extents;
        let inside = |at: usize, pad: usize, extent: usize| at >= pad && at + N - pad <= extent;
        // SAFETY: pixels are inside; by the caller.
        unsafe {
            if inside(y, self.pads[0], height) && inside(x, self.pads[1], width) {
                let first = (n * height + y - self.pads[0]) * width + x - self.pads[1];
                load(at.wrapping_add(first * self.channels + channel), width * self.channels, self.channels)
            } else {
                self.edge(at, n, y, x, channel)
            }
        }
    }

    /// A patch some of whose pixels are outside.
    #[inline(always)]
    unsafe fn edge<L: Lanes, const N: usize>(
        &self,
        from: *mut f32,
        n: usize,
        y: usize,
        x: usize,
        channel: usize,
    ) -> [[L; N]; N] {
        let [height, width] = self.extents;
        // SAFETY: by the caller.
        let mut out = unsafe { [[L::splat(0.0); N]; N] };
        for (r, row) in out.iter_mut().enumerate() {
            let Some(y) = (y + r).checked_sub(self.pads[0]).filter(|&y| y < height) else { continue };
            for (s, value) in row.iter_mut().enumerate() {
                let Some(x) = (x + s).checked_sub(self.pads[1]).filter(|&x| x < width) else { continue };
                let at = ((n * height + y) * width + x) * self.channels + channel;
                // SAFETY: the pixel is inside; by the caller.
                *value = unsafe { L::load(from.wrapping_add(at)) };
            }
        }
        out
    }
}

/// Transforms the tiles of a picture under a kernel of three by three.
pub(super) struct ToTiles<'a> {
    pub(super) picture: &'a Picture,
    /// Where the picture's memory begins, or would, if all of it was there.
    pub(super) at: *mut f32,
    pub(super) tiles: Tiles,
    pub(super) range: Range<usize>,
    /// A multiple of sixteen of them.
    pub(super) channels: Range<usize>,
    pub(super) layout: Layout,
    /// Elements from position to position.
    pub(super) step: usize,
    pub(super) to: *mut f32,
}

impl Work for ToTiles<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: by the caller.
        unsafe { transform::<Image, L, 4>(&self) }
    }
}

/// Transforms the tiles of a result's gradient.
pub(super) struct GradsToTiles<'a>(pub(super) ToTiles<'a>);

impl Work for GradsToTiles<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: by the caller.
        unsafe { transform::<ResultGrads, L, 2>(&self.0) }
    }
}

#[inline(always)]
unsafe fn transform<F: Along<FROM, 4>, L: Lanes, const FROM: usize>(w: &ToTiles<'_>) {
    for (i, tile) in w.range.clone().enumerate() {
        let (n, y, x) = w.tiles.place(tile);
        for c in w.channels.clone().step_by(L::WIDTH) {
            // SAFETY: by the caller.
            unsafe {
                let tile = both::<F, L, FROM, 4>(w.picture.patch(w.at, n, y, x, c));
                let to = w.to.add(w.layout.at(i, c - w.channels.start));
                store(tile, to, 4 * w.step, w.step);
            }
        }
    }
}

/// Puts results where they belong, from the products of their tiles.
pub(super) struct FromProducts<'a> {
    pub(super) picture: &'a Picture,
    pub(super) tiles: Tiles,
    pub(super) range: Range<usize>,
    /// The channels that the products are of, a multiple of sixteen.
    pub(super) channels: Range<usize>,
    /// A row a tile.
    pub(super) products: *const f32,
    /// Elements from position to position, and from row to row.
    pub(super) step: usize,
    pub(super) stride: usize,
}

impl Work for FromProducts<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let [height, width] = self.picture.extents;
        for (i, tile) in self.range.clone().enumerate() {
            let (n, y, x) = self.tiles.place(tile);
            for c in (0..self.channels.len()).step_by(L::WIDTH) {
                // SAFETY: by the caller; tasks write disjoint pixels.
                unsafe {
                    let from = self.products.add(i * self.stride + c);
                    let results = both::<Results, L, 4, SIDE>(load(from, 4 * self.step, self.step));
                    let channels = self.picture.channels;
                    let at = ((n * height + y) * width + x) * channels + self.channels.start + c;
                    let to = self.picture.operand.f32(at);
                    if y + SIDE <= height && x + SIDE <= width {
                        store(results, to, width * channels, channels);
                    } else {
                        for (r, row) in results.iter().enumerate().take(height - y) {
                            for (s, value) in row.iter().enumerate().take(width - x) {
                                value.store(to.add((r * width + s) * channels));
                            }
                        }
                    }
                }
            }
        }
    }
}
