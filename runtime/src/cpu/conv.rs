//! Convolution and its two gradients as matrix products over patches.
//!
//! A task gathers the patches of some pixels into its scratch memory (one row a pixel, in the order of the weights) and
//! multiplies. The input gradient gathers output pixels instead: input pixels of one residue modulo the stride see the
//! same kernel positions, so each residue is a dense product. The weight gradient cuts the patch's columns among tasks
//! and walks the pixels in order.

use std::ops::Range;

use slrc_plan::Dims;
use slrc_plan::kernel::{Conv as Plan, ConvDirection, WindowGeometry};

use crate::cpu::epilogue::Epilogue;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::product::{Division, Matrix, product};
use crate::cpu::prologue::{Prologue, Rows};

/// Patch elements a task gathers at a time.
const PATCHES: usize = 1 << 18;
/// Pixels of a product: enough to hide packing, few enough to leave tasks for every thread.
const MIN_PIXELS: usize = 256;
const MAX_PIXELS: usize = 1024;
/// What gathering an element of a patch takes, beside reading one that lies in order.
const GATHER: usize = 8;

/// Input pixels of one residue modulo the strides.
struct Residue {
    /// First input row and column.
    start: [usize; 2],
    /// Rows and columns of such pixels.
    extent: [usize; 2],
    /// Kernel positions that reach them, by dimension.
    taps: [Vec<usize>; 2],
    /// Where its weights begin among the packed ones, in rows of `in_channels / groups`.
    packed: usize,
}

/// A prepared `conv` kernel.
pub(super) struct Conv {
    direction: ConvDirection,
    batch: usize,
    in_channels: usize,
    out_channels: usize,
    groups: usize,
    geometry: WindowGeometry,
    x: Operand,
    w: Operand,
    y: Operand,
    split: Option<(usize, Operand)>,
    packed: Option<Operand>,
    x_prologue: Option<Prologue>,
    y_prologue: Option<Prologue>,
    epilogue: Option<Epilogue>,
    /// Patches are the pixels themselves.
    pointwise: bool,
    residues: Vec<Residue>,
}

impl Conv {
    pub(super) fn new(memory: &Memory, p: &Plan) -> Conv {
        let g = &p.geometry;
        let residues =
            if p.direction == ConvDirection::InputGrad { residues(g, p.out_channels / p.groups) } else { Vec::new() };
        let made = |name: &str| p.made().find(|m| m.name == name).map(|m| Prologue::new(memory, &m));
        Conv {
            x_prologue: made("x"),
            y_prologue: made("y"),
            direction: p.direction,
            batch: p.batch,
            in_channels: p.in_channels,
            out_channels: p.out_channels,
            groups: p.groups,
            geometry: g.clone(),
            x: memory.operand(&p.x),
            w: memory.operand(&p.w),
            y: memory.operand(&p.y),
            split: p.split.as_ref().map(|s| (s.count, memory.operand(&s.partials))),
            packed: p.packed.as_ref().map(|v| memory.operand(v)),
            epilogue: Epilogue::new(memory, &p.product()),
            pointwise: g.is_pointwise(),
            residues,
        }
    }

    pub(super) fn run(&self) {
        match self.direction {
            ConvDirection::Forward => self.forward(),
            ConvDirection::InputGrad => self.input_grad(),
            ConvDirection::WeightGrad => self.weight_grad(),
        }
    }

    /// Lends `count` elements of scratch memory, and what the epilogue needs.
    fn scratch(&self, count: usize, work: impl FnOnce(&mut [f32], &mut [f32])) {
        let more = self.epilogue.as_ref().map_or(0, Epilogue::scratch);
        scratch(count + more, |memory| {
            let (own, epilogue) = memory.split_at_mut(count);
            work(own, epilogue);
        });
    }

    fn group_channels(&self) -> (usize, usize) {
        (self.in_channels / self.groups, self.out_channels / self.groups)
    }

    fn taps(&self) -> usize {
        self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    fn pixels(&self) -> usize {
        self.batch * self.geometry.output[0] * self.geometry.output[1]
    }

    fn forward(&self) {
        let (ci, co) = self.group_channels();
        let k = self.taps() * ci;
        let pixels = self.pixels();
        let division = self.division(pixels, co, k).within(self.groups_of_rows());
        for_each(division.blocks(), |t| {
            let (range, cols) = division.block(t);
            let x = Source::new(&self.x, self.in_channels, &self.x_prologue, || self.read_pixels(&range));
            let patch = if self.pointwise { 0 } else { range.len() * k };
            self.scratch(patch + x.scratch(), |memory, tiles| {
                let (patches, made) = memory.split_at_mut(patch);
                let x = x.make(0..self.in_channels, made);
                for g in 0..self.groups {
                    let a = if self.pointwise {
                        let at = x.wrapping_add(range.start * self.in_channels + g * ci);
                        Matrix { at, row: self.in_channels, col: 1 }
                    } else {
                        self.gather(x, range.clone(), g, 0..k, patches);
                        Matrix { at: patches.as_mut_ptr(), row: k, col: 1 }
                    };
                    let b = Matrix { at: self.w.f32((g * co + cols.start) * k), row: 1, col: k };
                    let at = self.y.f32(range.start * self.out_channels + g * co + cols.start);
                    let c = Matrix { at, row: self.out_channels, col: 1 };
                    // SAFETY: views lie in their buffers; tasks write disjoint blocks.
                    unsafe { product(range.len(), cols.len(), k, c, a, b, false) };
                }
                if let Some(e) = &self.epilogue {
                    e.run(division.row_part(t), cols, tiles, |work| work(range));
                }
            });
        });
        if let Some(e) = &self.epilogue {
            e.finish(division.row_parts());
        }
    }

    /// Into how many groups the results' pixels may be cut, if that matters.
    fn groups_of_rows(&self) -> Option<usize> {
        self.epilogue.as_ref().and_then(Epilogue::groups)
    }

    /// How the product over some pixels is cut: the channels of one group, those of several whole.
    fn division(&self, pixels: usize, channels: usize, terms: usize) -> Division {
        let cost = if self.pointwise { [1, 1] } else { [GATHER, 1] };
        Division::new([pixels, channels, terms], self.groups, pixel_tile(terms, pixels), cost)
    }

    /// Input pixels that some output pixels see, in whole rows.
    fn read_pixels(&self, pixels: &Range<usize>) -> Range<usize> {
        let g = &self.geometry;
        if self.pointwise {
            return pixels.clone();
        }
        let reach = (g.kernel[0] - 1) * g.dilations[0];
        let see = |oy: usize| [oy * g.strides[0], oy * g.strides[0] + reach].map(|y| y.saturating_sub(g.pads[0]));
        rows_between([&g.output, &g.input], pixels, see)
    }

    /// Output pixels that some input pixels of a residue are seen by, in whole rows.
    fn seen_pixels(&self, r: &Residue, pixels: &Range<usize>) -> Range<usize> {
        let g = &self.geometry;
        if self.pointwise {
            return pixels.clone();
        }
        let reach = (g.kernel[0] - 1) * g.dilations[0];
        let see = |i: usize| {
            let last = r.start[0] + i * g.strides[0] + g.pads[0];
            [last.saturating_sub(reach) / g.strides[0], last / g.strides[0]]
        };
        rows_between([&Dims(r.extent.to_vec()), &g.output], pixels, see)
    }

    /// Columns `columns` of the patches of output pixels `pixels` in group `group`, one row a pixel; `x` is where the
    /// image begins.
    fn gather(&self, x: *mut f32, pixels: Range<usize>, group: usize, columns: Range<usize>, to: &mut [f32]) {
        let g = &self.geometry;
        let (ci, _) = self.group_channels();
        let (kw, width) = (g.kernel[1], columns.len());
        let whole_rows = self.groups == 1 && g.dilations[1] == 1 && width == self.taps() * ci;
        for (row, p) in to.chunks_exact_mut(width).zip(pixels) {
            let (n, oy, ox) = (p / (g.output[0] * g.output[1]), p / g.output[1] % g.output[0], p % g.output[1]);
            if whole_rows {
                for (ky, part) in row.chunks_exact_mut(kw * ci).enumerate() {
                    match g.source(0, oy, ky) {
                        Some(iy) => self.gather_row(x, n, iy, ox, part),
                        None => part.fill(0.0),
                    }
                }
                continue;
            }
            let mut column = columns.start;
            let mut at = 0;
            while column < columns.end {
                let (tap, channel) = (column / ci, column % ci);
                let run = (ci - channel).min(columns.end - column);
                let part = &mut row[at..at + run];
                match (g.source(0, oy, tap / kw), g.source(1, ox, tap % kw)) {
                    (Some(iy), Some(ix)) => {
                        let from = ((n * g.input[0] + iy) * g.input[1] + ix) * self.in_channels + group * ci + channel;
                        copy(x, from, part);
                    }
                    _ => part.fill(0.0),
                }
                column += run;
                at += run;
            }
        }
    }

    /// One row of a patch whose columns are neighbours in the image: padding, pixels, padding.
    fn gather_row(&self, x: *mut f32, n: usize, iy: usize, ox: usize, to: &mut [f32]) {
        let g = &self.geometry;
        let c = self.in_channels;
        let first = ox * g.strides[1];
        let left = g.pads[1].saturating_sub(first).min(g.kernel[1]);
        let start = (first + left).saturating_sub(g.pads[1]);
        let inside = g.input[1].saturating_sub(start).min(g.kernel[1] - left);
        to[..left * c].fill(0.0);
        let from = ((n * g.input[0] + iy) * g.input[1] + start) * c;
        copy(x, from, &mut to[left * c..(left + inside) * c]);
        to[(left + inside) * c..].fill(0.0);
    }

    fn input_grad(&self) {
        let (ci, co) = self.group_channels();
        if !self.pointwise {
            self.pack_weights();
        }
        // One residue's pixels after the other, cut into blocks. Where columns are reduced there is one residue.
        let mut blocks: Vec<(usize, usize, Range<usize>, Range<usize>)> = Vec::new();
        let mut parts = 0;
        for (r, residue) in self.residues.iter().enumerate() {
            let pixels = self.batch * residue.extent[0] * residue.extent[1];
            let k = residue.taps[0].len() * residue.taps[1].len() * co;
            let division = self.division(pixels, ci, k.max(1)).within(self.groups_of_rows());
            parts = division.row_parts();
            blocks.extend((0..division.blocks()).map(|i| {
                let (pixels, cols) = division.block(i);
                (r, division.row_part(i), pixels, cols)
            }));
        }
        blocks.retain(|(_, _, pixels, _)| !pixels.is_empty());
        let dense = self.geometry.strides[..] == [1, 1];
        for_each(blocks.len(), |t| {
            let (residue, group, range, cols) = blocks[t].clone();
            let residue = &self.residues[residue];
            let k = residue.taps[0].len() * residue.taps[1].len() * co;
            let y = Source::new(&self.y, self.out_channels, &self.y_prologue, || self.seen_pixels(residue, &range));
            let patch = if self.pointwise { 0 } else { range.len() * k };
            let result = if dense { 0 } else { range.len() * cols.len() };
            self.scratch(patch + result + y.scratch(), |memory, tiles| {
                let (patches, rest) = memory.split_at_mut(patch);
                let (results, made) = rest.split_at_mut(result);
                let y = y.make(0..self.out_channels, made);
                for g in 0..self.groups {
                    let (a, b);
                    if self.pointwise {
                        let at = y.wrapping_add(range.start * self.out_channels + g * co);
                        a = Matrix { at, row: self.out_channels, col: 1 };
                        b = Matrix { at: self.w.f32(g * co * ci + cols.start), row: ci, col: 1 };
                    } else {
                        self.gather_outputs(y, residue, range.clone(), g, patches);
                        a = Matrix { at: patches.as_mut_ptr(), row: k, col: 1 };
                        let packed =
                            self.packed.as_ref().expect("invariant: the plan has a workspace for packed weights");
                        let size = self.taps() * co * ci;
                        b = Matrix { at: packed.f32(g * size + residue.packed * ci + cols.start), row: ci, col: 1 };
                    }
                    let c = if dense {
                        let at = self.x.f32(range.start * self.in_channels + g * ci + cols.start);
                        Matrix { at, row: self.in_channels, col: 1 }
                    } else {
                        Matrix { at: results.as_mut_ptr(), row: cols.len(), col: 1 }
                    };
                    if k == 0 {
                        results.fill(0.0);
                    } else {
                        // SAFETY: views lie in their buffers; tasks write disjoint blocks.
                        unsafe { product(range.len(), cols.len(), k, c, a, b, false) };
                    }
                    if !dense {
                        self.scatter(residue, range.clone(), g * ci + cols.start, cols.len(), results);
                    }
                }
                if let Some(e) = &self.epilogue {
                    if dense {
                        e.run(group, cols, tiles, |work| work(range));
                    } else {
                        e.run(group, cols, tiles, |work| {
                            range.map(|p| self.input_pixel(residue, p)).for_each(|p| work(p..p + 1));
                        });
                    }
                }
            });
        });
        if let Some(e) = &self.epilogue {
            e.finish(parts);
        }
    }

    /// Weights as `[group][residue][tap, output channel][input channel]`, residues in order.
    fn pack_weights(&self) {
        let packed = self.packed.as_ref().expect("invariant: the plan has a workspace for packed weights");
        let (ci, co) = self.group_channels();
        let (kw, size) = (self.geometry.kernel[1], self.taps() * co * ci);
        // (first packed row, tap) of every kernel position that is used.
        let mut rows: Vec<(usize, usize)> = Vec::new();
        for r in &self.residues {
            for (i, &ky) in r.taps[0].iter().enumerate() {
                for (j, &kx) in r.taps[1].iter().enumerate() {
                    rows.push((r.packed + (i * r.taps[1].len() + j) * co, ky * kw + kx));
                }
            }
        }
        let tasks = tasks_for(self.groups * rows.len(), co * ci);
        for_each(tasks, |t| {
            for i in part(self.groups * rows.len(), tasks, t) {
                let (group, (row, tap)) = (i / rows.len(), rows[i % rows.len()]);
                for o in 0..co {
                    let from = ((group * co + o) * self.taps() + tap) * ci;
                    // SAFETY: views lie in their buffers; tasks write disjoint rows.
                    let to = unsafe { std::slice::from_raw_parts_mut(packed.f32(group * size + (row + o) * ci), ci) };
                    copy(self.w.f32(0), from, to);
                }
            }
        });
    }

    /// For input pixels of a residue: the output channels at every kernel position that reaches them, one row a pixel.
    fn gather_outputs(&self, y: *mut f32, r: &Residue, pixels: Range<usize>, group: usize, to: &mut [f32]) {
        let g = &self.geometry;
        let (_, co) = self.group_channels();
        let width = r.taps[0].len() * r.taps[1].len() * co;
        if width == 0 {
            return;
        }
        let target = |d: usize, i: usize, k: usize| {
            let at = (i + g.pads[d]).checked_sub(k * g.dilations[d])? / g.strides[d];
            (at < g.output[d]).then_some(at)
        };
        for (row, p) in to.chunks_exact_mut(width).zip(pixels) {
            let (n, rest) = (p / (r.extent[0] * r.extent[1]), p % (r.extent[0] * r.extent[1]));
            let iy = r.start[0] + rest / r.extent[1] * g.strides[0];
            let ix = r.start[1] + rest % r.extent[1] * g.strides[1];
            let mut parts = row.chunks_exact_mut(co);
            for &ky in &r.taps[0] {
                let oy = target(0, iy, ky);
                for &kx in &r.taps[1] {
                    let part = parts.next().expect("invariant: a part per tap");
                    match (oy, target(1, ix, kx)) {
                        (Some(oy), Some(ox)) => {
                            let from = ((n * g.output[0] + oy) * g.output[1] + ox) * self.out_channels + group * co;
                            copy(y, from, part);
                        }
                        _ => part.fill(0.0),
                    }
                }
            }
        }
    }

    /// Pixel `p` of a residue as a pixel of the input.
    fn input_pixel(&self, r: &Residue, p: usize) -> usize {
        let g = &self.geometry;
        let (n, rest) = (p / (r.extent[0] * r.extent[1]), p % (r.extent[0] * r.extent[1]));
        let iy = r.start[0] + rest / r.extent[1] * g.strides[0];
        let ix = r.start[1] + rest % r.extent[1] * g.strides[1];
        (n * g.input[0] + iy) * g.input[1] + ix
    }

    /// Puts results of a residue's pixels, `width` channels from `channel` on, where they belong.
    fn scatter(&self, r: &Residue, pixels: Range<usize>, channel: usize, width: usize, from: &[f32]) {
        for (row, p) in from.chunks_exact(width).zip(pixels) {
            let at = self.input_pixel(r, p) * self.in_channels + channel;
            // SAFETY: views lie in their buffers; tasks write disjoint channels of pixels.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.x.f32(at), width) };
        }
    }

    fn weight_grad(&self) {
        let (ci, co) = self.group_channels();
        let k = self.taps() * ci;
        let size = self.out_channels * k;
        let (count, partials) = match &self.split {
            Some((count, partials)) => (*count, Some(partials)),
            None => (1, None),
        };
        let division = {
            let cost = if self.pointwise { [1, 1] } else { [1, GATHER] };
            Division::new([co, k, self.pixels() / count], count * self.groups, co, cost)
        };
        let blocks = division.blocks();
        for_each(count * blocks, |t| {
            let (group, (rows, columns)) = (t / blocks, division.block(t % blocks));
            let samples = part(self.batch, count, group);
            let each = self.geometry.output[0] * self.geometry.output[1];
            let pixels = samples.start * each..samples.end * each;
            let to = |g: usize| {
                let at = (g * co + rows.start) * k + columns.start;
                let at = partials.map_or_else(|| self.w.f32(at), |p| p.f32(group * size + at));
                Matrix { at, row: k, col: 1 }
            };
            let outputs = |y: *mut f32, p: usize, g: usize| Matrix {
                at: y.wrapping_add(p * self.out_channels + g * co + rows.start),
                row: 1,
                col: self.out_channels,
            };
            let inputs = |x: *mut f32, p: usize, g: usize| Matrix {
                at: x.wrapping_add(p * self.in_channels + g * ci + columns.start),
                row: self.in_channels,
                col: 1,
            };
            // Of a split gradient, the sum of its parts has the epilogue.
            let epilogue = self.epilogue.as_ref().filter(|_| partials.is_none());
            let made = self.x_prologue.is_some() || self.y_prologue.is_some();
            let tile = if self.pointwise && !made {
                pixels.len().max(1)
            } else {
                pixel_tile(columns.len(), pixels.len().max(1))
            };
            let tiles = pixels.len().div_ceil(tile);
            let range = |i: usize| {
                let range = part(pixels.len(), tiles, i);
                pixels.start + range.start..pixels.start + range.end
            };
            let sources = |range: &Range<usize>| {
                let x = Source::new(&self.x, self.in_channels, &self.x_prologue, || self.read_pixels(range));
                (x, Source::new(&self.y, self.out_channels, &self.y_prologue, || range.clone()))
            };
            let needed = |i: usize| {
                let (x, y) = sources(&range(i));
                x.scratch() + y.scratch()
            };
            let patch = if self.pointwise { 0 } else { tile * columns.len() };
            let most = if made { (0..tiles).map(needed).max().unwrap_or(0) } else { 0 };
            // Of a patch, all channels are made.
            let channels = if self.pointwise { columns.clone() } else { 0..self.in_channels };
            self.scratch(patch + most, |memory_of_task, memory| {
                let (patches, made) = memory_of_task.split_at_mut(patch);
                for i in 0..tiles {
                    let range = range(i);
                    let (x, y) = sources(&range);
                    let (first, second) = made.split_at_mut(x.scratch());
                    let (x, y) = (x.make(channels.clone(), first), y.make(rows.clone(), second));
                    for g in 0..self.groups {
                        let b = if self.pointwise {
                            inputs(x, range.start, g)
                        } else {
                            self.gather(x, range.clone(), g, columns.clone(), patches);
                            Matrix { at: patches.as_mut_ptr(), row: columns.len(), col: 1 }
                        };
                        let a = outputs(y, range.start, g);
                        // SAFETY: views lie in their buffers; tasks write disjoint columns.
                        unsafe { product(rows.len(), columns.len(), range.len(), to(g), a, b, i > 0) };
                    }
                }
                if let Some(e) = epilogue {
                    e.run(0, columns.clone(), memory, |work| work(rows.clone()));
                }
            });
        });
        if let Some(p) = partials {
            sum_partials(&self.w, p, count, self.out_channels, k, self.epilogue.as_ref());
        }
    }
}

/// Sums `count` partial results of `rows x cols` elements in order, and runs what is done with the sums.
pub(super) fn sum_partials(
    to: &Operand,
    partials: &Operand,
    count: usize,
    rows: usize,
    cols: usize,
    epilogue: Option<&Epilogue>,
) {
    let size = rows * cols;
    let tasks = tasks_for(rows, cols * count);
    for_each(tasks, |t| {
        let part = part(rows, tasks, t);
        for i in part.start * cols..part.end * cols {
            // SAFETY: partials of every group are complete; tasks write disjoint rows.
            unsafe { *to.f32(i) = (1..count).fold(*partials.f32(i), |x, g| x + *partials.f32(g * size + i)) };
        }
        if let Some(e) = epilogue {
            scratch(e.scratch(), |memory| e.run(0, 0..cols, memory, |work| work(part)));
        }
    });
}

/// Copies consecutive f32 of an operand that begins at `from`.
fn copy(from: *mut f32, at: usize, to: &mut [f32]) {
    // SAFETY: views lie in their buffers; `to` is scratch or another buffer.
    unsafe { std::ptr::copy_nonoverlapping(from.wrapping_add(at), to.as_mut_ptr(), to.len()) };
}

/// The rows of pixels of one picture that those of another are computed from: `see` says of a row of the first which
/// rows of the second it needs, from and to.
pub(super) fn rows_between(
    [of, from]: [&Dims; 2],
    pixels: &Range<usize>,
    see: impl Fn(usize) -> [usize; 2],
) -> Range<usize> {
    if pixels.is_empty() {
        return 0..0;
    }
    let place = |p: usize| (p / (of[0] * of[1]), p / of[1] % of[0]);
    let ((n, first), (m, last)) = (place(pixels.start), place(pixels.end - 1));
    let (start, end) = (see(first)[0].min(from[0]), (see(last)[1] + 1).min(from[0]));
    let (start, end) = ((n * from[0] + start) * from[1], (m * from[0] + end) * from[1]);
    start..end.max(start)
}

/// An operand that a task reads: where it lies, or rows of it that are made for the task.
pub(super) struct Source<'a> {
    operand: &'a Operand,
    made: Option<(Rows<'a>, Range<usize>)>,
}

impl<'a> Source<'a> {
    /// An operand of pixels of so many channels; `pixels` says which are needed.
    pub(super) fn new(
        operand: &'a Operand,
        channels: usize,
        prologue: &'a Option<Prologue>,
        pixels: impl FnOnce() -> Range<usize>,
    ) -> Source<'a> {
        Source { operand, made: prologue.as_ref().map(|p| (Rows::new(p, channels), pixels())) }
    }

    /// f32 scratch to make them in.
    pub(super) fn scratch(&self) -> usize {
        self.made.as_ref().map_or(0, |(rows, pixels)| rows.scratch(pixels.len()))
    }

    /// Where the operand begins, of which channels `channels` of the pixels needed are there.
    pub(super) fn make(&self, channels: Range<usize>, memory: &mut [f32]) -> *mut f32 {
        match &self.made {
            None => self.operand.f32(0),
            Some((rows, pixels)) => rows.make(pixels.clone(), channels, memory),
        }
    }
}

/// Pixels of a product with `k` patch columns.
fn pixel_tile(k: usize, pixels: usize) -> usize {
    (PATCHES / k).clamp(MIN_PIXELS, MAX_PIXELS).min(pixels)
}

fn residues(g: &WindowGeometry, out_channels: usize) -> Vec<Residue> {
    let along = |d: usize, first: usize| -> Vec<usize> {
        (0..g.kernel[d]).filter(|k| (first + g.pads[d]) % g.strides[d] == k * g.dilations[d] % g.strides[d]).collect()
    };
    let extent = |d: usize, first: usize| g.input[d].saturating_sub(first).div_ceil(g.strides[d]);
    let mut out = Vec::new();
    let mut packed = 0;
    for y in 0..g.strides[0].min(g.input[0]) {
        for x in 0..g.strides[1].min(g.input[1]) {
            let taps = [along(0, y), along(1, x)];
            let rows = taps[0].len() * taps[1].len() * out_channels;
            out.push(Residue { start: [y, x], extent: [extent(0, y), extent(1, x)], taps, packed });
            packed += rows;
        }
    }
    out
}
