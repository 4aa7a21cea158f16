//! The weight gradient: products of transformed tiles of both pictures, summed over tiles.

use std::ops::Range;

use slrc_plan::kernel::WINOGRAD_CHANNELS;

use super::image::{GradsToTiles, Layout, ToTiles};
use super::lanes::{Lanes, Work, with_lanes};
use super::micro::{CHUNK, Left, Panels, ROW, panel_width};
use super::transform::{POSITIONS, TAPS, WeightGrads, both, load, store};
use super::{COLUMNS, SKEW, Tiles, Winograd};
use crate::cpu::conv::sum_partials;
use crate::cpu::epilogue::Epilogue;
use crate::cpu::parallel::{LINE, for_each, part, scratch};

/// Tiles that are transformed at a time.
const TILES: usize = 48;

impl Winograd {
    pub(super) fn weight_grad(&self) {
        let (ci, co) = (self.in_channels, self.out_channels);
        let (count, partials) = match &self.split {
            Some((count, partials)) => (*count, Some(partials)),
            None => (1, None),
        };
        let width = panel_width(self.vector);
        let (row_parts, col_parts) = (co.div_ceil(CHUNK), ci.div_ceil(if ci > COLUMNS { COLUMNS } else { CHUNK }));
        let tiles = Tiles::new(self.batch, self.target.extents);
        let (rows, cols) = (block(co, row_parts, 0).len(), block(ci, col_parts, 0).len());
        let wide = cols.next_multiple_of(width);
        let most = TILES.min(tiles.count);
        let (v_step, z_step) = (most * wide + SKEW, most * ROW + SKEW);
        let m_stride = wide + LINE;
        let m_step = rows * m_stride + SKEW;
        // Of a split gradient, the sum of its parts has the epilogue.
        let epilogue = self.epilogue.as_ref().filter(|_| partials.is_none());
        let more = epilogue.map_or(0, Epilogue::scratch);
        let each = row_parts * col_parts;
        for_each(count * each, |t| {
            let (group, part_of_rows, part_of_cols) = (t / each, t % each / col_parts, t % col_parts);
            let samples = part(self.batch, count, group);
            let (rows, cols) = (block(co, row_parts, part_of_rows), block(ci, col_parts, part_of_cols));
            let sample = tiles.rows * tiles.cols;
            let all = samples.start * sample..samples.end * sample;
            let blocks = all.len().div_ceil(most);
            let range = |b: usize| {
                let range = part(all.len(), blocks, b);
                all.start + range.start..all.start + range.end
            };
            let sources = |b: usize| (self.source_of(&tiles, &range(b)), self.target_of(&tiles, &range(b)));
            let needed = |b: usize| {
                let (x, y) = sources(b);
                x.scratch() + y.scratch()
            };
            let made = self.source_prologue.is_some() || self.target_prologue.is_some();
            let made = if made { (0..blocks).map(needed).max().unwrap_or(0) } else { 0 };
            scratch(POSITIONS * (v_step + z_step + m_step) + made + more, |memory| {
                let (v, rest) = memory.split_at_mut(POSITIONS * v_step);
                let (z, rest) = rest.split_at_mut(POSITIONS * z_step);
                let (m, rest) = rest.split_at_mut(POSITIONS * m_step);
                let (made, registers) = rest.split_at_mut(made);
                for b in 0..blocks {
                    let range = range(b);
                    let count = range.len();
                    let (x, y) = sources(b);
                    let (first, second) = made.split_at_mut(x.scratch());
                    let (x, y) = (x.make(cols.clone(), first), y.make(rows.clone(), second));
                    let image = ToTiles {
                        picture: &self.source,
                        at: x,
                        tiles,
                        range: range.clone(),
                        channels: cols.clone(),
                        layout: Layout::Panels { tiles: count, width },
                        step: v_step,
                        to: v.as_mut_ptr(),
                    };
                    with_lanes(self.vector, image);
                    let grads = ToTiles {
                        picture: &self.target,
                        at: y,
                        tiles,
                        range,
                        channels: rows.clone(),
                        layout: Layout::Chunks { tiles: count },
                        step: z_step,
                        to: z.as_mut_ptr(),
                    };
                    with_lanes(self.vector, GradsToTiles(grads));
                    for p in 0..POSITIONS {
                        let panels = Panels {
                            rows: rows.len(),
                            terms: count,
                            panels: cols.len().div_ceil(width),
                            a: z[p * z_step..].as_ptr(),
                            left: Left::Columns,
                            b: v[p * v_step..].as_ptr(),
                            c: m[p * m_step..].as_mut_ptr(),
                            stride: m_stride,
                            add: b > 0,
                        };
                        // SAFETY: everything lies in this task's scratch memory.
                        unsafe { panels.run(self.vector) };
                    }
                }
                let to = partials.map_or_else(|| self.w.f32(0), |p| p.f32(group * TAPS * ci * co));
                let sums = Sums {
                    products: m.as_ptr(),
                    step: m_step,
                    stride: m_stride,
                    rows: rows.clone(),
                    cols: cols.clone(),
                    channels: ci,
                    to,
                };
                with_lanes(self.vector, sums);
                if let Some(e) = epilogue {
                    for tap in 0..TAPS {
                        let cols = tap * ci + cols.start..tap * ci + cols.end;
                        e.run(0, cols, registers, |work| work(rows.clone()));
                    }
                }
            });
        });
        if let Some(p) = partials {
            sum_partials(&self.w, p, count, co, TAPS * ci, self.epilogue.as_ref());
        }
    }
}

/// Part `i` of `n` channels in parts of whole vectors.
fn block(n: usize, parts: usize, i: usize) -> Range<usize> {
    let units = part(n / WINOGRAD_CHANNELS, parts, i);
    units.start * WINOGRAD_CHANNELS..units.end * WINOGRAD_CHANNELS
}

/// Weight gradients of their transformed sums.
struct Sums {
    products: *const f32,
    step: usize,
    stride: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    /// Channels of a filter.
    channels: usize,
    to: *mut f32,
}

impl Work for Sums {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (i, row) in self.rows.clone().enumerate() {
            for c in (0..self.cols.len()).step_by(L::WIDTH) {
                // SAFETY: by the caller; tasks write disjoint rows and columns.
                unsafe {
                    let from = self.products.add(i * self.stride + c);
                    let to = self.to.add(row * TAPS * self.channels + self.cols.start + c);
                    let sums = both::<WeightGrads, L, 4, 3>(load(from, 4 * self.step, self.step));
                    store(sums, to, 3 * self.channels, self.channels);
                }
            }
        }
    }
}
