//! Pooling over channels-last images: every position works on all channels at once.

use slrc_plan::DType;
use slrc_plan::kernel::{Window as Plan, WindowGeometry, WindowOp};

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
        let c = self.channels;
        let mut best = vec![0.0f32; c];
        let mut winner = vec![0u32; c];
        for ox in 0..self.geometry.output[1] {
            let mut first = true;
            winner.fill(0);
            self.taps(n, oy, ox, |tap, at| {
                let x = self.channels_of(&self.large, at);
                if first {
                    best.copy_from_slice(x);
                    winner.fill(tap as u32);
                    first = false;
                    return;
                }
                for i in 0..c {
                    // A NaN wins and stays.
                    let better = x[i] > best[i] || (x[i].is_nan() && !best[i].is_nan());
                    winner[i] = if better { tap as u32 } else { winner[i] };
                    best[i] = if better { x[i] } else { best[i] };
                }
            });
            let at = self.small_at(n, oy, ox);
            // SAFETY: views lie in their buffers; tasks write disjoint rows.
            unsafe {
                match self.small.dtype {
                    DType::U8 => (0..c).for_each(|i| *self.small.u8(at + i) = winner[i] as u8),
                    _ => (0..c).for_each(|i| *self.small.i32(at + i) = winner[i] as i32),
                }
            }
        }
    }

    /// Position in large of the chosen element of a window, and whether it lies inside.
    fn chosen(&self, n: usize, oy: usize, ox: usize, channel: usize) -> Option<usize> {
        let index = self.index.as_ref().expect("invariant: selections have an index");
        let at = n * index.strides[0] + oy * index.strides[1] + ox * index.strides[2] + channel;
        // SAFETY: views lie in their buffers.
        let tap = unsafe {
            match index.dtype {
                DType::U8 => usize::from(*index.u8(at)),
                _ => *index.i32(at) as usize,
            }
        };
        let g = &self.geometry;
        let y = g.source(0, oy, tap / g.kernel[1])?;
        let x = g.source(1, ox, tap % g.kernel[1])?;
        Some(self.large_at(n, y, x) + channel)
    }

    fn select(&self, n: usize, oy: usize) {
        for ox in 0..self.geometry.output[1] {
            let out = self.channels_mut(&self.small, self.small_at(n, oy, ox));
            for (i, o) in out.iter_mut().enumerate() {
                // SAFETY: views lie in their buffers.
                *o = self.chosen(n, oy, ox, i).map_or(0.0, |at| unsafe { *self.large.f32(at) });
            }
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
        for oy in 0..g.output[0] {
            for ox in 0..g.output[1] {
                let dy = self.channels_of(&self.small, self.small_at(n, oy, ox));
                for (i, &d) in dy.iter().enumerate() {
                    if let Some(at) = self.chosen(n, oy, ox, i) {
                        // SAFETY: views lie in their buffers; a sample is one task's.
                        unsafe { *self.large.f32(at) += d };
                    }
                }
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
