//! Pooling over channels-last images: every position works on all channels at once.

use slrc_plan::DType;
use slrc_plan::kernel::{Window as Plan, WindowGeometry, WindowOp};

use crate::cpu::math::Vector;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, tasks_for};

/// A prepared `window` kernel.
pub(super) struct Window {
    op: WindowOp,
    batch: usize,
    channels: usize,
    geometry: WindowGeometry,
    large: Operand,
    small: Operand,
    index: Option<Operand>,
}

impl Window {
    pub(super) fn new(memory: &Memory, p: &Plan) -> Window {
        Window {
            op: p.op,
            batch: p.batch,
            channels: p.channels,
            geometry: p.geometry.clone(),
            large: memory.operand(&p.large),
            small: memory.operand(&p.small),
            index: p.index.as_ref().map(|v| memory.operand(v)),
        }
    }

    pub(super) fn run(&self) {
        match self.op {
            WindowOp::MaxIndex => self.rows(|n, y| self.max_index(n, y)),
            WindowOp::Select => self.rows(|n, y| self.select(n, y)),
            WindowOp::Sum => self.rows(|n, y| self.sum(n, y)),
            // Windows may overlap, so a sample is one task's.
            WindowOp::Unselect => self.samples(|n| self.unselect(n)),
            WindowOp::Spread => self.samples(|n| self.spread(n)),
        }
    }

    fn rows(&self, work: impl Fn(usize, usize) + Send + Sync) {
        let rows = self.geometry.output[0];
        let taps = self.geometry.kernel[0] * self.geometry.kernel[1];
        let tasks = tasks_for(self.batch * rows, self.geometry.output[1] * self.channels * taps);
        for_each(tasks, |t| part(self.batch * rows, tasks, t).for_each(|i| work(i / rows, i % rows)));
    }

    fn samples(&self, work: impl Fn(usize) + Send + Sync) {
        let g = &self.geometry;
        let tasks = tasks_for(self.batch, self.channels * (g.input[0] * g.input[1] + g.output[0] * g.output[1]));
        for_each(tasks, |t| part(self.batch, tasks, t).for_each(&work));
    }

    fn large_at(&self, n: usize, y: usize, x: usize) -> usize {
        n * self.large.strides[0] + y * self.large.strides[1] + x * self.large.strides[2]
    }

    fn small_at(&self, n: usize, y: usize, x: usize) -> usize {
        n * self.small.strides[0] + y * self.small.strides[1] + x * self.small.strides[2]
    }

    /// Calls `f(tap, position of the tap's first channel in large)` for the taps of a window that lie inside.
    fn taps(&self, n: usize, oy: usize, ox: usize, mut f: impl FnMut(usize, usize)) {
        let g = &self.geometry;
        for ky in 0..g.kernel[0] {
            let Some(iy) = g.source(0, oy, ky) else { continue };
            for kx in 0..g.kernel[1] {
                let Some(ix) = g.source(1, ox, kx) else { continue };
                f(ky * g.kernel[1] + kx, self.large_at(n, iy, ix));
            }
        }
    }

    /// `channels` consecutive f32 of an operand.
    fn channels_of(&self, o: &Operand, at: usize) -> &[f32] {
        // SAFETY: views lie in their buffers; channels are consecutive.
        unsafe { std::slice::from_raw_parts(o.f32(at), self.channels) }
    }

    #[allow(clippy::mut_from_ref, reason = "operands are memory outside this struct; tasks write disjoint elements")]
    fn channels_mut(&self, o: &Operand, at: usize) -> &mut [f32] {
        // SAFETY: as above, and tasks write disjoint elements.
        unsafe { std::slice::from_raw_parts_mut(o.f32(at), self.channels) }
    }

    fn max_index(&self, n: usize, oy: usize) {
        let vector = Vector::detect();
        let (mut best, mut winner) = (vec![0.0f32; self.channels], vec![0u32; self.channels]);
        let mut rows: Vec<(u32, &[f32])> = Vec::new();
        for ox in 0..self.geometry.output[1] {
            rows.clear();
            self.taps(n, oy, ox, |tap, at| rows.push((tap as u32, self.channels_of(&self.large, at))));
            winners(vector, &rows, &mut best, &mut winner);
            let at = self.small_at(n, oy, ox);
            // SAFETY: views lie in their buffers; tasks write disjoint rows.
            unsafe {
                match self.small.dtype {
                    DType::U8 => winner.iter().enumerate().for_each(|(i, &w)| *self.small.u8(at + i) = w as u8),
                    _ => winner.iter().enumerate().for_each(|(i, &w)| *self.small.i32(at + i) = w as i32),
                }
            }
        }
    }

    /// By tap of a window, the position of its first channel in large, if it lies inside.
    fn places(&self, n: usize, oy: usize, ox: usize, places: &mut [Option<usize>]) {
        places.fill(None);
        self.taps(n, oy, ox, |tap, at| places[tap] = Some(at));
    }

    /// Room for the places of a window's taps.
    fn no_places(&self) -> Vec<Option<usize>> {
        vec![None; self.geometry.kernel[0] * self.geometry.kernel[1]]
    }

    /// Calls `f(channel, position in large of the chosen element)` for the channels of a window whose choice lies
    /// inside.
    fn chosen(&self, n: usize, oy: usize, ox: usize, places: &[Option<usize>], mut f: impl FnMut(usize, usize)) {
        let index = self.index.as_ref().expect("invariant: selections have an index");
        let at = n * index.strides[0] + oy * index.strides[1] + ox * index.strides[2];
        for channel in 0..self.channels {
            // SAFETY: views lie in their buffers.
            let tap = unsafe {
                match index.dtype {
                    DType::U8 => usize::from(*index.u8(at + channel)),
                    _ => *index.i32(at + channel) as usize,
                }
            };
            if let Some(&Some(place)) = places.get(tap) {
                f(channel, place + channel);
            }
        }
    }

    fn select(&self, n: usize, oy: usize) {
        let mut places = self.no_places();
        for ox in 0..self.geometry.output[1] {
            self.places(n, oy, ox, &mut places);
            let out = self.channels_mut(&self.small, self.small_at(n, oy, ox));
            out.fill(0.0);
            // SAFETY: views lie in their buffers.
            self.chosen(n, oy, ox, &places, |i, at| out[i] = unsafe { *self.large.f32(at) });
        }
    }

    fn clear(&self, n: usize) {
        let g = &self.geometry;
        for y in 0..g.input[0] {
            for x in 0..g.input[1] {
                self.channels_mut(&self.large, self.large_at(n, y, x)).fill(0.0);
            }
        }
    }

    fn unselect(&self, n: usize) {
        self.clear(n);
        let g = &self.geometry;
        let mut places = self.no_places();
        for oy in 0..g.output[0] {
            for ox in 0..g.output[1] {
                self.places(n, oy, ox, &mut places);
                let dy = self.channels_of(&self.small, self.small_at(n, oy, ox));
                // SAFETY: views lie in their buffers; a sample is one task's.
                self.chosen(n, oy, ox, &places, |i, at| unsafe { *self.large.f32(at) += dy[i] });
            }
        }
    }

    fn sum(&self, n: usize, oy: usize) {
        for ox in 0..self.geometry.output[1] {
            let out = self.channels_mut(&self.small, self.small_at(n, oy, ox));
            out.fill(0.0);
            self.taps(n, oy, ox, |_, at| {
                let x = self.channels_of(&self.large, at);
                out.iter_mut().zip(x).for_each(|(o, &x)| *o += x);
            });
        }
    }

    fn spread(&self, n: usize) {
        self.clear(n);
        let g = &self.geometry;
        for oy in 0..g.output[0] {
            for ox in 0..g.output[1] {
                let dy = self.channels_of(&self.small, self.small_at(n, oy, ox));
                self.taps(n, oy, ox, |_, at| {
                    let dx = self.channels_mut(&self.large, at);
                    dx.iter_mut().zip(dy).for_each(|(x, &d)| *x += d);
                });
            }
        }
    }
}

/// By element, the number of the row whose element is the largest, the first of equal ones; a NaN wins and stays. Zero
/// where there are no rows. `best` is as long as a row, for work.
fn winners(v: Vector, rows: &[(u32, &[f32])], best: &mut [f32], to: &mut [u32]) {
    match v {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Vector::detect` found these instructions on this processor.
        Vector::Avx512 => unsafe { winners_avx512(rows, best, to) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Vector::Avx2 => unsafe { winners_avx2(rows, best, to) },
        _ => winners_of(rows, best, to),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn winners_avx2(rows: &[(u32, &[f32])], best: &mut [f32], to: &mut [u32]) {
    winners_of(rows, best, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn winners_avx512(rows: &[(u32, &[f32])], best: &mut [f32], to: &mut [u32]) {
    winners_of(rows, best, to);
}

#[inline(always)]
fn winners_of(rows: &[(u32, &[f32])], best: &mut [f32], to: &mut [u32]) {
    let Some(((first, row), others)) = rows.split_first() else { return to.fill(0) };
    best.copy_from_slice(row);
    to.fill(*first);
    for (number, row) in others {
        for ((at, best), &x) in to.iter_mut().zip(best.iter_mut()).zip(*row) {
            // Larger, or the first NaN. Without branches, so that it is done in vectors.
            let better = (x > *best) | (x.is_nan() & !best.is_nan());
            *at = if better { *number } else { *at };
            *best = if better { x } else { *best };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_wins() {
        let nan = f32::NAN;
        let rows: [&[f32]; 3] = [
            &[1.0, 2.0, nan, -1.0, 0.0, f32::NEG_INFINITY],
            &[3.0, 2.0, 9.0, nan, -0.0, f32::NEG_INFINITY],
            &[2.0, 2.5, nan, nan, 0.0, 1.0],
        ];
        let long: Vec<Vec<f32>> = rows.iter().map(|r| r.iter().copied().cycle().take(41).collect()).collect();
        let numbered: Vec<(u32, &[f32])> = [2, 5, 7].into_iter().zip(long.iter().map(|r| &r[..])).collect();
        let expected: Vec<u32> = [5, 7, 2, 5, 2, 7].into_iter().cycle().take(41).collect();
        for v in [Vector::Baseline, Vector::detect()] {
            let (mut best, mut to) = (vec![0.0; 41], vec![9; 41]);
            winners(v, &numbered, &mut best, &mut to);
            assert_eq!(to, expected, "{v:?}");
        }
        let (mut best, mut to) = ([0.0], [9]);
        winners(Vector::Baseline, &[], &mut best, &mut to);
        assert_eq!(to, [0]);
    }
}
