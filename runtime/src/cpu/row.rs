//! Reductions along rows that stay in cache, with elementwise work before and after: softmax, LayerNorm, cross-entropy.
//!
//! A block is some whole rows. A value is either a tile (one number per element) or a column (one number per row).
//! Between the products of attention, some values come from matrices in scratch memory, and some go there.

use std::collections::BTreeMap;
use std::ops::Range;

use slrc_plan::region::{Level, Region};
use slrc_plan::statement::{Arg, Combine, StatementOp};
use slrc_plan::{DType, ScalarFn};

use crate::cpu::instruction::{Source, execute, max, sum};
use crate::cpu::map::with_dimension;
use crate::cpu::math::Vector;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::tile::{Registers, TILE, block_count, for_each_block, read_number, read_row, write_row};

/// Most elements of a block: rows may be longer than [`TILE`].
const BLOCK: usize = 2 * TILE;

#[derive(Clone, Copy, Debug)]
enum Place {
    Tile(usize),
    Column(usize),
    Number(f32),
}

#[derive(Clone, Debug)]
enum Action {
    ReadTile { operand: Operand, to: usize },
    ReadColumn { operand: Operand, to: usize },
    ReadMatrix { matrix: usize, to: usize },
    Element { f: ScalarFn, to: usize, args: [Place; 3] },
    PerRow { f: ScalarFn, to: usize, args: [Place; 3] },
    Reduce { combine: Combine, from: Place, to: usize },
    WriteTile { operand: Operand, from: Place },
    WriteColumn { operand: Operand, from: Place },
    WriteMatrix { matrix: usize, from: Place },
}

/// A prepared `row` kernel.
pub(super) struct Row {
    /// Row dimensions, then the length of a row.
    space: Vec<usize>,
    rows: usize,
    actions: Vec<Action>,
    tiles: usize,
    columns: usize,
}

impl Row {
    pub(super) fn new(memory: &Memory, r: &Region) -> Row {
        Row::between(memory, r, &[], &[])
    }

    /// Work that finds the values `given` in matrices and leaves the values `wanted` in them, each from the first on.
    pub(super) fn between(memory: &Memory, r: &Region, given: &[&str], wanted: &[&str]) -> Row {
        let r = with_dimension(r);
        let levels = r.levels_given(given).expect("invariant: plans are validated");
        let n = r.space.len();
        let mut places: BTreeMap<&str, Place> = BTreeMap::new();
        let mut tiles = Registers::default();
        let mut columns = 0;
        let mut next = |level: Level, tiles: &mut Registers| match level {
            Level::Element => Place::Tile(tiles.take()),
            Level::Kept => {
                columns += 1;
                Place::Column(columns - 1)
            }
        };
        let last_use = |name: &str| {
            let uses = |s: &slrc_plan::Statement| s.args.iter().any(|a| matches!(a, Arg::Value(v) if v == name));
            let stored = r.stores.iter().any(|s| s.value == name) || wanted.contains(&name);
            if stored { usize::MAX } else { r.body.iter().rposition(uses).unwrap_or(0) }
        };
        // Tiles to give back after each statement.
        let mut expiring: Vec<(usize, usize)> = Vec::new();
        let mut actions = Vec::new();
        for (matrix, name) in given.iter().enumerate() {
            let to = tiles.take();
            actions.push(Action::ReadMatrix { matrix, to });
            expiring.push((last_use(name), to));
            places.insert(name, Place::Tile(to));
        }
        for l in &r.loads {
            let operand = memory.operand(&l.view);
            // A row length of 1 makes everything look constant along rows.
            let level = if operand.strides[n - 1] == 0 { Level::Kept } else { levels[l.name.as_str()] };
            let place = next(level, &mut tiles);
            if let Place::Tile(t) = place {
                expiring.push((last_use(&l.name), t));
            }
            actions.push(match place {
                Place::Tile(to) => Action::ReadTile { operand, to },
                Place::Column(to) => Action::ReadColumn { operand, to },
                Place::Number(_) => unreachable!("loads are tiles or columns"),
            });
            places.insert(&l.name, place);
        }
        for (i, s) in r.body.iter().enumerate() {
            let mut args = [Place::Number(0.0); 3];
            for (a, arg) in args.iter_mut().zip(&s.args) {
                *a = match arg {
                    Arg::Number(x) => Place::Number(*x),
                    Arg::Value(v) => places[v.as_str()],
                };
            }
            let element = args.iter().any(|a| matches!(a, Place::Tile(_)));
            let place = match s.op {
                StatementOp::Scalar(f) if element => {
                    let place = next(Level::Element, &mut tiles);
                    let Place::Tile(to) = place else { unreachable!("an element value is a tile") };
                    actions.push(Action::Element { f, to, args });
                    place
                }
                StatementOp::Scalar(f) => {
                    let place = next(Level::Kept, &mut tiles);
                    let Place::Column(to) = place else { unreachable!("a kept value is a column") };
                    actions.push(Action::PerRow { f, to, args });
                    place
                }
                StatementOp::Reduce(combine) => {
                    let place = next(Level::Kept, &mut tiles);
                    let Place::Column(to) = place else { unreachable!("a kept value is a column") };
                    actions.push(Action::Reduce { combine, from: args[0], to });
                    place
                }
            };
            places.insert(&s.name, place);
            if let Place::Tile(t) = place {
                expiring.push((last_use(&s.name), t));
            }
            expiring.retain(|&(last, tile)| {
                if last <= i {
                    tiles.give_back(tile);
                }
                last > i
            });
        }
        for s in &r.stores {
            let operand = memory.operand(&s.view);
            let from = places[s.value.as_str()];
            actions.push(match from {
                Place::Tile(_) => Action::WriteTile { operand, from },
                Place::Column(_) | Place::Number(_) => Action::WriteColumn { operand, from },
            });
        }
        for (matrix, name) in wanted.iter().enumerate() {
            actions.push(Action::WriteMatrix { matrix, from: places[name] });
        }
        let length = r.space[n - 1].max(1);
        let outer = if n >= 2 { r.space[n - 2] } else { 1 };
        let rows = (BLOCK / length).clamp(1, outer.max(1));
        Row { space: r.space.0.clone(), rows, actions, tiles: tiles.count, columns }
    }

    pub(super) fn run(&self) {
        if self.space.contains(&0) {
            return;
        }
        let n = self.space.len();
        let length = self.space[n - 1];
        let blocks = block_count(&self.space, self.rows, length);
        let tasks = tasks_for(blocks, self.rows * length);
        for_each(tasks, |t| {
            scratch(self.scratch(), |memory| {
                let mut state = self.state(memory);
                let mut none = Strips { matrices: &mut [], size: 0 };
                for_each_block(&self.space, self.rows, length, part(blocks, tasks, t), |index, rows, _| {
                    self.actions.iter().for_each(|a| state.act(a, index, rows, &mut none, 0));
                });
            });
        });
    }

    /// f32 scratch that [`Row::run_rows`] needs.
    pub(super) fn scratch(&self) -> usize {
        let length = self.space.last().copied().unwrap_or(1);
        self.tiles * self.rows * length + self.columns * self.rows
    }

    fn state<'a>(&self, memory: &'a mut [f32]) -> State<'a> {
        let length = self.space.last().copied().unwrap_or(1);
        let tile = self.rows * length;
        let (tiles, columns) = memory.split_at_mut(self.tiles * tile);
        State { tiles, columns, tile, column: self.rows, length, vector: Vector::detect() }
    }

    /// Works on rows `rows` of the last outer dimension at `outer`, the first of which is the matrices' first.
    pub(super) fn run_rows(&self, outer: &[usize], rows: Range<usize>, strips: &mut Strips<'_>, memory: &mut [f32]) {
        let mut state = self.state(memory);
        let mut index = [outer, &[0, 0]].concat();
        for first in rows.clone().step_by(self.rows) {
            index[outer.len()] = first;
            let count = self.rows.min(rows.end - first);
            self.actions.iter().for_each(|a| state.act(a, &index, count, strips, first - rows.start));
        }
    }
}

/// Matrices of some rows and all columns, one after the other, `size` elements each.
pub(super) struct Strips<'a> {
    pub(super) matrices: &'a mut [f32],
    pub(super) size: usize,
}

impl Strips<'_> {
    /// The elements of `rows` rows of matrix `i` from row `first` on.
    fn rows(&mut self, i: usize, first: usize, rows: usize, length: usize) -> &mut [f32] {
        &mut self.matrices[i * self.size + first * length..][..rows * length]
    }
}

struct State<'a> {
    tiles: &'a mut [f32],
    columns: &'a mut [f32],
    tile: usize,
    column: usize,
    length: usize,
    vector: Vector,
}

/// Disjoint parts of one slice: register `to` for writing, the others for reading.
fn registers(all: &mut [f32], size: usize, to: usize) -> (&mut [f32], impl Fn(usize) -> &'static [f32]) {
    let base = all.as_mut_ptr();
    // SAFETY: registers are disjoint parts of `all`; an instruction never reads the register it writes, and nothing
    // outlives the action.
    let out = unsafe { std::slice::from_raw_parts_mut(base.add(to * size), size) };
    let base = base as usize;
    (out, move |i| unsafe { std::slice::from_raw_parts((base as *const f32).add(i * size), size) })
}

impl State<'_> {
    /// Runs one action on a block that begins at `index` and, in the matrices, at row `first`.
    fn act(&mut self, action: &Action, index: &[usize], rows: usize, strips: &mut Strips<'_>, first: usize) {
        let n = index.len();
        let length = self.length;
        let start = |o: &Operand| index.iter().zip(&o.strides).map(|(i, s)| i * s).sum::<usize>();
        let stride = |o: &Operand| if n >= 2 { o.strides[n - 2] } else { 0 };
        match action {
            Action::ReadTile { operand, to } => {
                let (at, row, col) = (start(operand), stride(operand), operand.strides[n - 1]);
                let tile = &mut self.tiles[to * self.tile..][..rows * length];
                tile.chunks_exact_mut(length).enumerate().for_each(|(r, t)| read_row(operand, at + r * row, col, t));
            }
            Action::ReadColumn { operand, to } => {
                let (at, row) = (start(operand), stride(operand));
                let column = &mut self.columns[to * self.column..][..rows];
                column.iter_mut().enumerate().for_each(|(r, c)| *c = read_number(operand, at + r * row));
            }
            Action::ReadMatrix { matrix, to } => {
                let tile = &mut self.tiles[to * self.tile..][..rows * length];
                tile.copy_from_slice(strips.rows(*matrix, first, rows, length));
            }
            Action::Element { f, to, args } => self.element(*f, *to, args, rows),
            Action::PerRow { f, to, args } => {
                let (out, column) = registers(self.columns, self.column, *to);
                let [a, b, c] = args.map(|a| match a {
                    Place::Column(i) => Source::Tile(&column(i)[..rows]),
                    Place::Number(x) => Source::Number(x),
                    Place::Tile(_) => unreachable!("invariant: per-row work has no tiles"),
                });
                execute(self.vector, *f, &mut out[..rows], a, b, c);
            }
            Action::Reduce { combine, from, to } => {
                for r in 0..rows {
                    self.columns[to * self.column + r] = match from {
                        Place::Tile(i) => {
                            let row = &self.tiles[i * self.tile + r * length..][..length];
                            match combine {
                                Combine::Sum => sum(self.vector, row),
                                Combine::Max => max(self.vector, row),
                            }
                        }
                        Place::Column(i) => self.repeat(*combine, self.columns[i * self.column + r]),
                        Place::Number(x) => self.repeat(*combine, *x),
                    };
                }
            }
            Action::WriteTile { operand, from } => {
                let (at, row, col) = (start(operand), stride(operand), operand.strides[n - 1]);
                let Place::Tile(i) = from else { unreachable!("invariant: tiles are written as tiles") };
                for r in 0..rows {
                    let part = &self.tiles[i * self.tile + r * length..][..length];
                    write_row(operand, at + r * row, col, length, Source::Tile(part));
                }
            }
            Action::WriteMatrix { matrix, from } => {
                let Place::Tile(i) = from else { unreachable!("invariant: what is wanted varies along rows") };
                let tile = &self.tiles[i * self.tile..][..rows * length];
                strips.rows(*matrix, first, rows, length).copy_from_slice(tile);
            }
            Action::WriteColumn { operand, from } => {
                self.write_column(operand, *from, start(operand), stride(operand), rows)
            }
        }
    }

    /// A reduction of a value that does not vary along the row.
    fn repeat(&self, combine: Combine, x: f32) -> f32 {
        match combine {
            Combine::Sum => x * self.length as f32,
            Combine::Max => x,
        }
    }

    /// Elementwise work: over the whole block where all arguments are tiles or numbers, row by row where one is a
    /// column.
    fn element(&mut self, f: ScalarFn, to: usize, args: &[Place; 3], rows: usize) {
        let (length, columns, size) = (self.length, &*self.columns, self.column);
        let (out, tile) = registers(self.tiles, self.tile, to);
        let by_row = args.iter().any(|a| matches!(a, Place::Column(_)));
        let (parts, width) = if by_row { (rows, length) } else { (1, rows * length) };
        for p in 0..parts {
            let [a, b, c] = args.map(|a| match a {
                Place::Tile(i) => Source::Tile(&tile(i)[p * width..][..width]),
                Place::Column(i) => Source::Number(columns[i * size + p]),
                Place::Number(x) => Source::Number(x),
            });
            execute(self.vector, f, &mut out[p * width..][..width], a, b, c);
        }
    }

    fn write_column(&self, operand: &Operand, from: Place, at: usize, row: usize, rows: usize) {
        let count = if row == 0 { rows.min(1) } else { rows };
        let column = match from {
            Place::Column(i) => Source::Tile(&self.columns[i * self.column..][..count]),
            Place::Number(x) => Source::Number(x),
            Place::Tile(_) => unreachable!("invariant: columns are written as columns"),
        };
        debug_assert!(operand.dtype != DType::I32);
        write_row(operand, at, row, count, column);
    }
}
