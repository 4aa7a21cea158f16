//! Depthwise convolution (one filter per channel): direct, every position on all channels at once.

use slrc_plan::kernel::{Conv as Plan, ConvDirection, WindowGeometry};

use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};

/// A prepared depthwise `conv` kernel.
pub(super) struct Depthwise {
    direction: ConvDirection,
    batch: usize,
    channels: usize,
    geometry: WindowGeometry,
    x: Operand,
    w: Operand,
    y: Operand,
    split: Option<(usize, Operand)>,
}

/// `acc[c] += a[c] * b[c]`
fn multiply_add(acc: &mut [f32], a: &[f32], b: &[f32]) {
    match crate::cpu::math::Vector::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these instructions were found on this processor.
        crate::cpu::Vector::Avx2 | crate::cpu::Vector::Avx512 => unsafe { multiply_add_avx2(acc, a, b) },
        _ => acc.iter_mut().zip(a.iter().zip(b)).for_each(|(z, (&x, &y))| *z += x * y),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(acc: &mut [f32], a: &[f32], b: &[f32]) {
    acc.iter_mut().zip(a.iter().zip(b)).for_each(|(z, (&x, &y))| *z = x.mul_add(y, *z));
}

impl Depthwise {
    /// Whether a convolution is depthwise with one output per channel.
    pub(super) fn fits(c: &Plan) -> bool {
        c.is_depthwise()
    }

    pub(super) fn new(memory: &Memory, p: &Plan) -> Depthwise {
        Depthwise {
            direction: p.direction,
            batch: p.batch,
            channels: p.in_channels,
            geometry: p.geometry.clone(),
            x: memory.operand(&p.x),
            w: memory.operand(&p.w),
            y: memory.operand(&p.y),
            split: p.split.as_ref().map(|s| (s.count, memory.operand(&s.partials))),
        }
    }

    fn taps(&self) -> usize {
        self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    pub(super) fn run(&self) {
        match self.direction {
            ConvDirection::Forward => self.forward(),
            ConvDirection::InputGrad => self.input_grad(),
            ConvDirection::WeightGrad => self.weight_grad(),
        }
    }

    #[allow(clippy::mut_from_ref, reason = "operands are memory outside this struct; tasks write disjoint elements")]
    fn channels_of(&self, o: &Operand, n: usize, y: usize, x: usize) -> &mut [f32] {
        let at = n * o.strides[0] + y * o.strides[1] + x * o.strides[2];
        // SAFETY: views lie in their buffers; channels are consecutive; tasks write disjoint positions.
        unsafe { std::slice::from_raw_parts_mut(o.f32(at), self.channels) }
    }

    /// Weights as `[tap][channel]`.
    fn by_tap(&self, to: &mut [f32]) {
        for tap in 0..self.taps() {
            let (ky, kx) = (tap / self.geometry.kernel[1], tap % self.geometry.kernel[1]);
            for c in 0..self.channels {
                let at = c * self.w.strides[0] + ky * self.w.strides[1] + kx * self.w.strides[2];
                // SAFETY: views lie in their buffers.
                to[tap * self.channels + c] = unsafe { *self.w.f32(at) };
            }
        }
    }

    fn forward(&self) {
        let g = &self.geometry;
        let rows = self.batch * g.output[0];
        let tasks = tasks_for(rows, g.output[1] * self.channels * self.taps());
        for_each(tasks, |t| {
            scratch(self.taps() * self.channels, |w| {
                self.by_tap(w);
                for row in part(rows, tasks, t) {
                    let (n, oy) = (row / g.output[0], row % g.output[0]);
                    for ox in 0..g.output[1] {
                        let out = self.channels_of(&self.y, n, oy, ox);
                        out.fill(0.0);
                        self.each_tap(oy, ox, |tap, iy, ix| {
                            multiply_add(
                                out,
                                self.channels_of(&self.x, n, iy, ix),
                                &w[tap * self.channels..][..self.channels],
                            );
                        });
                    }
                }
            });
        });
    }

    fn each_tap(&self, oy: usize, ox: usize, mut f: impl FnMut(usize, usize, usize)) {
        let g = &self.geometry;
        for ky in 0..g.kernel[0] {
            let Some(iy) = g.source(0, oy, ky) else { continue };
            for kx in 0..g.kernel[1] {
                let Some(ix) = g.source(1, ox, kx) else { continue };
                f(ky * g.kernel[1] + kx, iy, ix);
            }
        }
    }

    /// Output coordinate along `d` whose window has input coordinate `i` at kernel position `k`.
    fn target(&self, d: usize, i: usize, k: usize) -> Option<usize> {
        let g = &self.geometry;
        let at = (i + g.pads.0[d]).checked_sub(k * g.dilations.0[d])?;
        (at.is_multiple_of(g.strides.0[d]) && at / g.strides.0[d] < g.output.0[d]).then(|| at / g.strides.0[d])
    }

    fn input_grad(&self) {
        let g = &self.geometry;
        let rows = self.batch * g.input[0];
        let tasks = tasks_for(rows, g.input[1] * self.channels * self.taps());
        for_each(tasks, |t| {
            scratch(self.taps() * self.channels, |w| {
                self.by_tap(w);
                for row in part(rows, tasks, t) {
                    let (n, iy) = (row / g.input[0], row % g.input[0]);
                    for ix in 0..g.input[1] {
                        let out = self.channels_of(&self.x, n, iy, ix);
                        out.fill(0.0);
                        for ky in 0..g.kernel[0] {
                            let Some(oy) = self.target(0, iy, ky) else { continue };
                            for kx in 0..g.kernel[1] {
                                let Some(ox) = self.target(1, ix, kx) else { continue };
                                let tap = ky * g.kernel[1] + kx;
                                multiply_add(
                                    out,
                                    self.channels_of(&self.y, n, oy, ox),
                                    &w[tap * self.channels..][..self.channels],
                                );
                            }
                        }
                    }
                }
            });
        });
    }

    fn weight_grad(&self) {
        let size = self.taps() * self.channels;
        let (count, partials) = match &self.split {
            Some((count, partials)) => (*count, Some(partials)),
            None => (1, None),
        };
        for_each(count, |group| {
            scratch(size, |own| {
                let acc = match partials {
                    // SAFETY: each group has its own part of the partials.
                    Some(p) => unsafe { std::slice::from_raw_parts_mut(p.f32(group * size), size) },
                    None => own,
                };
                acc.fill(0.0);
                let g = &self.geometry;
                for n in part(self.batch, count, group) {
                    for oy in 0..g.output[0] {
                        for ox in 0..g.output[1] {
                            let dy = self.channels_of(&self.y, n, oy, ox);
                            self.each_tap(oy, ox, |tap, iy, ix| {
                                multiply_add(
                                    &mut acc[tap * self.channels..][..self.channels],
                                    self.channels_of(&self.x, n, iy, ix),
                                    dy,
                                );
                            });
                        }
                    }
                }
                if partials.is_none() {
                    self.store(|at| acc[at]);
                }
            });
        });
        if let Some(p) = partials {
            // SAFETY: partials of every group are complete.
            self.store(|at| (1..count).fold(unsafe { *p.f32(at) }, |x, g| x + unsafe { *p.f32(g * size + at) }));
        }
    }

    /// Writes weights given as `[tap][channel]`.
    fn store(&self, value: impl Fn(usize) -> f32) {
        for tap in 0..self.taps() {
            let (ky, kx) = (tap / self.geometry.kernel[1], tap % self.geometry.kernel[1]);
            for c in 0..self.channels {
                let at = c * self.w.strides[0] + ky * self.w.strides[1] + kx * self.w.strides[2];
                // SAFETY: views lie in their buffers; one task writes them.
                unsafe { *self.w.f32(at) = value(tap * self.channels + c) };
            }
        }
    }
}
