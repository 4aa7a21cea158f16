//! Convolutions of three by three weights with stride 1 by F(2x2, 3x3): 16 multiplications where 36 would be needed.
//!
//! Results are cut into tiles of two by two pixels. A task transforms the tiles of some pixels, multiplies them
//! position by position with the transformed weights, and transforms what comes out back. The input gradient is the
//! same with the weights turned around. The weight gradient sums its products over all tiles of some samples, for some
//! channels a task, and transforms the sums.

mod image;
mod lanes;
mod micro;
mod pack;
mod transform;
mod weight_grad;

use slrc_plan::kernel::{Conv as Plan, ConvDirection, WINOGRAD_CHANNELS};

use std::ops::Range;

use slrc_plan::Dims;

use crate::cpu::conv::{Source, rows_between};
use crate::cpu::epilogue::Epilogue;
use crate::cpu::math::Vector;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{LINE, for_each, part, scratch};
use crate::cpu::prologue::Prologue;

use image::{FromProducts, Layout, Picture, ToTiles};
use lanes::with_lanes;
use micro::{CHUNK, Left, Panels, ROW, panel_width};
use pack::Pack;
use transform::POSITIONS;

/// Pixels of a side of a tile of results.
const SIDE: usize = 2;
/// Elements of scratch memory that the tiles of a task should fit.
const SCRATCH: usize = 3 << 18;
/// Tiles of a task: enough to use every weight often, few enough to leave tasks for every thread.
const MIN_TILES: usize = 48;
const MAX_TILES: usize = 96;
/// Tasks are a multiple of this where there are few.
const EVEN: usize = 4;
/// Most columns of results that are computed at a time.
const COLUMNS: usize = 128;
/// Elements between the positions of tiles beyond what they need: positions that are a power of two apart would all
/// fall into the same set of a cache.
const SKEW: usize = 48;

/// The tiles of a picture's results.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    rows: usize,
    cols: usize,
    count: usize,
}

impl Tiles {
    fn new(batch: usize, extents: [usize; 2]) -> Tiles {
        let [rows, cols] = extents.map(|n| n.div_ceil(SIDE));
        Tiles { rows, cols, count: batch * rows * cols }
    }

    /// Sample, and the first pixel's row and column.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let row = tile / self.cols;
        (row / self.rows, row % self.rows * SIDE, tile % self.cols * SIDE)
    }
}

/// A prepared convolution.
pub(super) struct Winograd {
    direction: ConvDirection,
    batch: usize,
    in_channels: usize,
    out_channels: usize,
    source: Picture,
    target: Picture,
    w: Operand,
    packed: Option<Operand>,
    split: Option<(usize, Operand)>,
    source_prologue: Option<Prologue>,
    target_prologue: Option<Prologue>,
    epilogue: Option<Epilogue>,
    vector: Vector,
}

impl Winograd {
    pub(super) fn new(memory: &Memory, p: &Plan) -> Winograd {
        let g = &p.geometry;
        let picture = |operand, extents: &[usize], channels, pads: [usize; 2]| Picture {
            operand: memory.operand(operand),
            extents: [extents[0], extents[1]],
            channels,
            pads,
        };
        let pads = [g.pads[0], g.pads[1]];
        let x = picture(&p.x, &g.input, p.in_channels, pads);
        // Turned around, the weights look as far back as they looked ahead.
        let back = if p.direction == ConvDirection::InputGrad { pads.map(|n| 2 - n) } else { [0, 0] };
        let y = picture(&p.y, &g.output, p.out_channels, back);
        let made = |name: &str| p.made().find(|m| m.name == name).map(|m| Prologue::new(memory, &m));
        let (made_x, made_y) = (made("x"), made("y"));
        let (source_prologue, target_prologue) =
            if p.direction == ConvDirection::InputGrad { (made_y, made_x) } else { (made_x, made_y) };
        let (source, target) = if p.direction == ConvDirection::InputGrad { (y, x) } else { (x, y) };
        Winograd {
            direction: p.direction,
            batch: p.batch,
            in_channels: p.in_channels,
            out_channels: p.out_channels,
            source,
            target,
            w: memory.operand(&p.w),
            packed: p.packed.as_ref().map(|v| memory.operand(v)),
            split: p.split.as_ref().map(|s| (s.count, memory.operand(&s.partials))),
            source_prologue,
            target_prologue,
            epilogue: Epilogue::new(memory, &p.product()),
            vector: Vector::detect(),
        }
    }

    pub(super) fn run(&self) {
        match self.direction {
            ConvDirection::Forward | ConvDirection::InputGrad => self.results(),
            ConvDirection::WeightGrad => self.weight_grad(),
        }
    }

    /// Forward, and the input gradient.
    fn results(&self) {
        let packed = self.packed.as_ref().expect("invariant: the plan has a workspace for transformed weights");
        let (from, to) = (self.source.channels, self.target.channels);
        let pack = Pack {
            weights: &self.w,
            packed,
            in_channels: self.in_channels,
            turned: self.direction == ConvDirection::InputGrad,
            from,
            to,
            width: panel_width(self.vector),
        };
        let tasks = pack.tasks();
        for_each(tasks, |t| {
            for unit in part(pack.units(), tasks, t) {
                with_lanes(self.vector, pack.unit(unit));
            }
        });
        let tiles = Tiles::new(self.batch, self.target.extents);
        let width = panel_width(self.vector);
        let blocks = to.div_ceil(COLUMNS);
        // Columns of the widest block of results, whole panels.
        let wide = to.div_ceil(blocks).next_multiple_of(width.max(WINOGRAD_CHANNELS));
        let chunks = from.div_ceil(CHUNK);
        let each = ((SCRATCH / POSITIONS / (chunks * ROW + wide)).clamp(MIN_TILES, MAX_TILES)).min(tiles.count);
        let cut = Cut::new(&tiles, each).within(self.epilogue.as_ref().and_then(Epilogue::groups));
        let most = cut.most();
        let (v_step, m_stride) = (chunks * most * ROW + SKEW, wide + LINE);
        let m_step = most * m_stride + SKEW;
        let more = self.epilogue.as_ref().map_or(0, Epilogue::scratch);
        for_each(cut.tasks, |t| {
            let range = cut.tiles(t);
            let count = range.len();
            let source = self.source_of(&tiles, &range);
            scratch(POSITIONS * (v_step + m_step) + source.scratch() + more, |memory| {
                let (v, rest) = memory.split_at_mut(POSITIONS * v_step);
                let (m, rest) = rest.split_at_mut(POSITIONS * m_step);
                let (made, registers) = rest.split_at_mut(source.scratch());
                let source = source.make(0..from, made);
                let layout = Layout::Chunks { tiles: count };
                with_lanes(
                    self.vector,
                    ToTiles {
                        picture: &self.source,
                        at: source,
                        tiles,
                        range: range.clone(),
                        channels: 0..from,
                        layout,
                        step: v_step,
                        to: v.as_mut_ptr(),
                    },
                );
                let mut first = 0;
                while first < to {
                    let cols = wide.min(to - first);
                    for p in 0..POSITIONS {
                        let panels = Panels {
                            rows: count,
                            terms: from,
                            panels: cols.div_ceil(width),
                            a: v[p * v_step..].as_ptr(),
                            left: Left::Rows { next: count * ROW },
                            b: packed.f32(pack.panel(p, first / width)),
                            c: m[p * m_step..].as_mut_ptr(),
                            stride: m_stride,
                            add: false,
                        };
                        // SAFETY: tiles and products lie in this task's scratch memory, weights in their workspace.
                        unsafe { panels.run(self.vector) };
                    }
                    with_lanes(
                        self.vector,
                        FromProducts {
                            picture: &self.target,
                            tiles,
                            range: range.clone(),
                            channels: first..first + cols,
                            products: m.as_ptr(),
                            step: m_step,
                            stride: m_stride,
                        },
                    );
                    first += cols;
                }
                if let Some(e) = &self.epilogue {
                    e.run(t, 0..to, registers, |work| self.pixels(&tiles, range, work));
                }
            });
        });
        if let Some(e) = &self.epilogue {
            e.finish(cut.tasks);
        }
    }

    /// What some tiles of results are computed from.
    fn source_of(&self, tiles: &Tiles, range: &Range<usize>) -> Source<'_> {
        let pad = self.source.pads[0];
        let see = |y: usize| [y.saturating_sub(pad), (y + 3).saturating_sub(pad)];
        read_by(tiles, range, &self.source, &self.source_prologue, see)
    }

    /// Results, or their gradients, of some tiles.
    fn target_of(&self, tiles: &Tiles, range: &Range<usize>) -> Source<'_> {
        read_by(tiles, range, &self.target, &self.target_prologue, |y| [y, y + 1])
    }

    /// Calls `work` for the runs of neighbouring pixels that make up some tiles, in order.
    fn pixels(&self, tiles: &Tiles, range: Range<usize>, work: &mut dyn FnMut(Range<usize>)) {
        let [height, width] = self.target.extents;
        let mut run = 0..0;
        let mut tile = range.start;
        while tile < range.end {
            let (n, y, x) = tiles.place(tile);
            let count = (tiles.cols - x / SIDE).min(range.end - tile);
            let columns = x..width.min(x + count * SIDE);
            for y in y..height.min(y + SIDE) {
                let row = (n * height + y) * width;
                let next = row + columns.start..row + columns.end;
                if next.start == run.end {
                    run.end = next.end;
                } else {
                    if !run.is_empty() {
                        work(run);
                    }
                    run = next;
                }
            }
            tile += count;
        }
        if !run.is_empty() {
            work(run);
        }
    }
}

/// The rows of a picture that tiles read; `see` says which those are that begin at some row.
fn read_by<'a>(
    tiles: &Tiles,
    range: &Range<usize>,
    picture: &'a Picture,
    prologue: &'a Option<Prologue>,
    see: impl Fn(usize) -> [usize; 2],
) -> Source<'a> {
    Source::new(&picture.operand, picture.channels, prologue, || {
        let tiled = Dims(vec![tiles.rows, tiles.cols]);
        rows_between([&tiled, &Dims(picture.extents.to_vec())], range, |row| see(row * SIDE))
    })
}

/// Tiles divided among tasks: whole rows of tiles where a task has room for one.
struct Cut {
    tasks: usize,
    units: usize,
    /// Tiles of a unit.
    each: usize,
}

impl Cut {
    fn new(tiles: &Tiles, most: usize) -> Cut {
        let each = if tiles.cols <= most { tiles.cols } else { 1 };
        let units = tiles.count / each;
        let tasks = units.div_ceil((most / each).max(1));
        let tasks = if tasks < EVEN * EVEN { tasks.next_multiple_of(EVEN) } else { tasks };
        Cut { tasks: tasks.min(units), units, each }
    }

    /// No more tasks than `groups`, where there is such a bound.
    fn within(self, groups: Option<usize>) -> Cut {
        Cut { tasks: groups.map_or(self.tasks, |g| self.tasks.min(g)), ..self }
    }

    fn tiles(&self, task: usize) -> Range<usize> {
        let units = part(self.units, self.tasks, task);
        units.start * self.each..units.end * self.each
    }

    /// Tiles of the largest task.
    fn most(&self) -> usize {
        self.units.div_ceil(self.tasks) * self.each
    }
}
