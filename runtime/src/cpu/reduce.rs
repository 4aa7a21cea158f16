//! Reductions along any dimensions, with elementwise work before and work on the reduced values after.
//!
//! The space is cut into tasks at its leading kept dimensions, or, where there are too few of those, at the first
//! reduced one (the plan's split): each task reduces its part into accumulators, one for each kept element it meets.
//! Partial accumulators of a split are combined in order. Then the work on reduced values runs over the kept elements.

use slrc_plan::Region;
use slrc_plan::region::Store;
use slrc_plan::statement::{Arg, Combine, Statement, StatementOp};

use crate::cpu::instruction::{Source, accumulate, larger, max, sum};
use crate::cpu::map::{operands, with_dimension};
use crate::cpu::math::Vector;
use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, scratch, tasks_for};
use crate::cpu::tile::{Blocks, Place, TILE, TileProgram, block_count, block_shape, for_each_block};

struct Reduction {
    combine: Combine,
    from: Place,
    /// The value's index among the given values of the tail.
    given: usize,
}

impl Reduction {
    /// What it is of nothing.
    fn start(&self) -> f32 {
        match self.combine {
            Combine::Sum => 0.0,
            Combine::Max => f32::NEG_INFINITY,
        }
    }
}

/// A prepared `reduce` kernel.
pub(super) struct Reduce {
    space: Vec<usize>,
    /// Leading dimensions over which tasks run independently.
    prefix: usize,
    /// First reduced dimension.
    first: usize,
    /// Position step of each dimension among a task's accumulators; zero for reduced dimensions.
    accumulator_strides: Vec<usize>,
    /// Accumulators of one reduction in one task.
    accumulators: usize,
    reductions: Vec<Reduction>,
    head: TileProgram,
    tail: TileProgram,
    /// Extents of the kept dimensions after the prefix; at least one dimension.
    tail_space: Vec<usize>,
    /// Groups of the first reduced dimension, and their partial results.
    split: Option<(usize, Operand)>,
}

impl Reduce {
    pub(super) fn new(memory: &Memory, r: &Region) -> Reduce {
        let r = with_dimension(r);
        let n = r.space.len();
        let first = r.reduce[0];
        let prefix = if r.split.is_some() { 0 } else { first };
        let mut accumulator_strides = vec![0; n];
        let mut accumulators = 1;
        for d in (prefix..n).rev().filter(|d| !r.reduce.contains(d)) {
            accumulator_strides[d] = accumulators;
            accumulators *= r.space[d];
        }
        let late = late_values(&r);
        let is_late = |s: &Statement| late.contains(&s.name.as_str());
        let loads = operands(memory, &r);
        let element = |s: &&Store| r.reduce.iter().any(|&d| s.view.strides[d] != 0 && r.space[d] > 1);
        let levels = r.levels().expect("invariant: plans are validated");
        let stored_early = |s: &&Store| levels[s.value.as_str()] == slrc_plan::region::Level::Element || element(s);

        // Before: everything that reductions and stored elements need.
        let early: Vec<&Statement> =
            r.body.iter().filter(|s| !is_late(s) && matches!(s.op, StatementOp::Scalar(_))).collect();
        let early_stores: Vec<&Store> = r.stores.iter().filter(stored_early).collect();
        let reduced: Vec<&str> = r
            .body
            .iter()
            .filter(|s| matches!(s.op, StatementOp::Reduce(_)))
            .filter_map(|s| if let Arg::Value(v) = &s.args[0] { Some(v.as_str()) } else { None })
            .collect();
        let head = TileProgram::new(memory, &loads, &[], &early, &early_stores, &reduced);

        // After: the kept dimensions behind the prefix, with the reductions given.
        let kept: Vec<usize> = (0..n).filter(|d| !r.reduce.contains(d)).collect();
        let reductions: Vec<(&str, Combine, &Arg)> = r
            .body
            .iter()
            .filter_map(|s| match s.op {
                StatementOp::Reduce(c) => Some((s.name.as_str(), c, &s.args[0])),
                StatementOp::Scalar(_) => None,
            })
            .collect();
        let late_stores: Vec<Store> =
            r.stores.iter().filter(|s| !stored_early(s)).map(|s| narrow_store(s, &kept)).collect();
        let mut needed: Vec<&str> = late_stores.iter().map(|s| s.value.as_str()).collect();
        let mut after: Vec<&Statement> = Vec::new();
        for s in r.body.iter().rev() {
            if needed.contains(&s.name.as_str()) && matches!(s.op, StatementOp::Scalar(_)) {
                needed
                    .extend(s.args.iter().filter_map(|a| if let Arg::Value(v) = a { Some(v.as_str()) } else { None }));
                after.push(s);
            }
        }
        after.reverse();
        let kept_loads: Vec<(String, Operand)> = loads
            .iter()
            .filter(|(name, _)| needed.contains(&name.as_str()))
            .map(|(name, o)| (name.clone(), narrow(o, &kept)))
            .collect();
        let given: Vec<&str> = reductions.iter().map(|x| x.0).collect();
        let store_refs: Vec<&Store> = late_stores.iter().collect();
        let tail = TileProgram::new(memory, &kept_loads, &given, &after, &store_refs, &[]);

        let reductions = reductions
            .iter()
            .enumerate()
            .map(|(given, (_, combine, arg))| {
                let from = match arg {
                    Arg::Number(x) => Place::Number(*x),
                    Arg::Value(v) => head.place(v),
                };
                Reduction { combine: *combine, from, given }
            })
            .collect();
        let mut tail_space: Vec<usize> = kept.iter().map(|&d| r.space[d]).collect();
        if tail_space.is_empty() {
            tail_space.push(1);
        }
        let split = r.split.as_ref().map(|s| (s.count, memory.operand(&s.partials)));
        Reduce {
            space: r.space.0.clone(),
            prefix,
            first,
            accumulator_strides,
            accumulators,
            reductions,
            head,
            tail,
            tail_space,
            split,
        }
    }

    pub(super) fn run(&self) {
        if self.space.contains(&0) {
            return;
        }
        match &self.split {
            Some((count, partials)) => {
                self.run_split(*count, partials);
                self.combine(*count);
            }
            None => self.run_whole(),
        }
    }

    /// Groups of a split.
    pub(super) fn groups(&self) -> usize {
        self.split.as_ref().map_or(1, |s| s.0)
    }

    /// f32 scratch that [`Reduce::reduce_rows`] needs.
    pub(super) fn rows_scratch(&self) -> usize {
        TILE + self.head.scratch(TILE)
    }

    fn shape(&self) -> (usize, usize) {
        block_shape(&self.space[self.prefix..], TILE)
    }

    /// Tasks of whole kept elements.
    fn run_whole(&self) {
        let outer: usize = self.space[..self.prefix].iter().product();
        let inner: usize = self.space[self.prefix..].iter().product();
        let tasks = tasks_for(outer, inner);
        let (rows, cols) = self.shape();
        let (tile, tail_tile) = (rows * cols, TILE);
        let acc = self.accumulators * self.reductions.len();
        for_each(tasks, |t| {
            let (head_scratch, tail_scratch) = (self.head.scratch(tile), self.tail.scratch(tail_tile));
            scratch(acc + cols + head_scratch.max(tail_scratch), |memory| {
                let (acc, rest) = memory.split_at_mut(acc);
                let (row, rest) = rest.split_at_mut(cols);
                for o in part(outer, tasks, t) {
                    let mut index = vec![0; self.space.len()];
                    let mut rest_index = o;
                    for d in (0..self.prefix).rev() {
                        index[d] = rest_index % self.space[d];
                        rest_index /= self.space[d];
                    }
                    let whole = 0..self.space[self.prefix..][0];
                    self.accumulate(&mut index, whole, acc, row, rest);
                    let kept: Vec<usize> = index[..self.prefix].to_vec();
                    self.finish(&kept, acc, rest, 0..self.accumulators);
                }
            });
        });
    }

    /// Reduces columns `cols` of the rows that `blocks` hands on, which are group `group` of a split: all dimensions
    /// but the last are reduced. A block is where it begins, its rows, and its columns, at most [`TILE`] elements.
    pub(super) fn reduce_rows(
        &self,
        group: usize,
        cols: std::ops::Range<usize>,
        memory: &mut [f32],
        blocks: impl FnOnce(&mut dyn FnMut(&[usize], usize, usize)),
    ) {
        let (count, partials) = self.split.as_ref().expect("invariant: an epilogue that reduces has groups");
        debug_assert!(group < *count);
        let acc = self.accumulators * self.reductions.len();
        // SAFETY: tasks of one group have different columns of its part of the partials.
        let at = |i: usize, col: usize| partials.f32(group * acc + i * self.accumulators + col);
        for (i, r) in self.reductions.iter().enumerate() {
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts_mut(at(i, cols.start), cols.len()) }.fill(r.start());
        }
        let (row, rest) = memory.split_at_mut(TILE);
        let mut state = self.head.begin(rest, TILE);
        let extent = self.space[self.space.len() - 1];
        blocks(&mut |index, rows, width| {
            state.run(index, rows, width, extent);
            let col = index[index.len() - 1];
            for (i, r) in self.reductions.iter().enumerate() {
                // SAFETY: as above.
                let acc = unsafe { std::slice::from_raw_parts_mut(at(i, col), width) };
                self.add_block(acc, 0, &state, r, rows, width, row);
            }
        });
    }

    /// Tasks of ranges of the first reduced dimension.
    fn run_split(&self, count: usize, partials: &Operand) {
        let (rows, cols) = self.shape();
        let tile = rows * cols;
        let acc = self.accumulators * self.reductions.len();
        for_each(count, |g| {
            scratch(cols + self.head.scratch(tile), |memory| {
                // SAFETY: each group has its own part of the partials.
                let acc = unsafe { std::slice::from_raw_parts_mut(partials.f32(g * acc), acc) };
                let (row, rest) = memory.split_at_mut(cols);
                let mut index = vec![0; self.space.len()];
                let range = part(self.space[self.first], count, g);
                self.accumulate(&mut index, range, acc, row, rest);
            });
        });
    }

    /// Combines the partial results of the first `count` groups in order, and does the work on what comes out.
    pub(super) fn combine(&self, count: usize) {
        let (_, partials) = self.split.as_ref().expect("invariant: there are groups");
        let acc = self.accumulators * self.reductions.len();
        let tasks = tasks_for(self.accumulators, count * self.reductions.len());
        for_each(tasks, |t| {
            let range = part(self.accumulators, tasks, t);
            scratch(acc + self.tail.scratch(TILE), |memory| {
                let (sums, rest) = memory.split_at_mut(acc);
                for (i, r) in self.reductions.iter().enumerate() {
                    for k in range.clone() {
                        let at = i * self.accumulators + k;
                        // SAFETY: partials of every group are complete.
                        let value = |g: usize| unsafe { *partials.f32(g * acc + at) };
                        sums[at] = (1..count).fold(value(0), |x, g| match r.combine {
                            Combine::Sum => x + value(g),
                            Combine::Max => larger(x, value(g)),
                        });
                    }
                }
                self.finish(&[], sums, rest, range);
            });
        });
    }

    /// Reduces the part of the space behind the prefix at `index` whose first reduced dimension is in `range`.
    fn accumulate(
        &self,
        index: &mut [usize],
        range: std::ops::Range<usize>,
        acc: &mut [f32],
        row: &mut [f32],
        rest: &mut [f32],
    ) {
        for (i, r) in self.reductions.iter().enumerate() {
            acc[i * self.accumulators..][..self.accumulators].fill(r.start());
        }
        let n = self.space.len();
        let mut space = self.space[self.prefix..].to_vec();
        space[self.first - self.prefix] = range.len();
        if space.contains(&0) {
            return;
        }
        let (rows, cols) = self.shape();
        let rows = rows.min(if space.len() >= 2 { space[space.len() - 2] } else { 1 });
        let cols = cols.min(space[space.len() - 1]);
        let tile = self.shape().0 * self.shape().1;
        let mut state = self.head.begin(rest, tile);
        let blocks = block_count(&space, rows, cols);
        let extent = self.space[n - 1];
        for_each_block(&space, rows, cols, 0..blocks, |at, rows, cols| {
            index[self.prefix..].copy_from_slice(at);
            index[self.first] += range.start;
            state.run(index, rows, cols, extent);
            let origin: usize = index.iter().zip(&self.accumulator_strides).map(|(i, s)| i * s).sum();
            for (i, r) in self.reductions.iter().enumerate() {
                let acc = &mut acc[i * self.accumulators..][..self.accumulators];
                self.add_block(acc, origin, &state, r, rows, cols, row);
            }
        });
    }

    /// Adds a block's elements to their accumulators.
    #[allow(clippy::too_many_arguments, reason = "a block and where it goes")]
    fn add_block(
        &self,
        acc: &mut [f32],
        origin: usize,
        state: &Blocks<'_>,
        r: &Reduction,
        rows: usize,
        cols: usize,
        row: &mut [f32],
    ) {
        let n = self.space.len();
        let (along_rows, along_cols) =
            (if n - self.prefix >= 2 { self.accumulator_strides[n - 2] } else { 0 }, self.accumulator_strides[n - 1]);
        let maximum = r.combine == Combine::Max;
        let vector = Vector::detect();
        let source = state.source(r.from, rows * cols);
        let join = |a: &mut f32, x: f32| *a = if maximum { larger(*a, x) } else { *a + x };
        match source {
            Source::Number(x) => {
                for i in 0..rows {
                    if along_cols == 0 {
                        join(&mut acc[origin + i * along_rows], if maximum { x } else { x * cols as f32 });
                    } else {
                        acc[origin + i * along_rows..][..cols].iter_mut().for_each(|a| join(a, x));
                    }
                }
            }
            Source::Tile(t) if along_cols == 0 => {
                for (i, part) in t.chunks_exact(cols).enumerate() {
                    let x = if maximum { max(vector, part) } else { sum(vector, part) };
                    join(&mut acc[origin + i * along_rows], x);
                }
            }
            Source::Tile(t) if along_rows == 0 && rows > 1 => {
                // Rows are summed among themselves first: fewer additions in a chain, less rounding.
                let row = &mut row[..cols];
                row.copy_from_slice(&t[..cols]);
                t.chunks_exact(cols).skip(1).for_each(|part| accumulate(vector, row, part, maximum));
                accumulate(vector, &mut acc[origin..][..cols], row, maximum);
            }
            Source::Tile(t) => {
                for (i, part) in t.chunks_exact(cols).enumerate() {
                    accumulate(vector, &mut acc[origin + i * along_rows..][..cols], part, maximum);
                }
            }
        }
    }

    /// Runs the work on reduced values for the accumulators in `range`, whose kept dimensions begin at `kept`.
    fn finish(&self, kept: &[usize], acc: &[f32], rest: &mut [f32], range: std::ops::Range<usize>) {
        let n = self.tail_space.len();
        let mut state = self.tail.begin(rest, TILE);
        let mut index = vec![0; n];
        index[..kept.len().min(n)].copy_from_slice(&kept[..kept.len().min(n)]);
        let inner = if kept.len() < n { self.tail_space[n - 1] } else { 1 };
        let mut at = range.start;
        while at < range.end {
            // A run along the innermost kept dimension.
            let mut position = at;
            for d in (kept.len()..n).rev() {
                index[d] = position % self.tail_space[d];
                position /= self.tail_space[d];
            }
            let column = if kept.len() < n { index[n - 1] } else { 0 };
            let count = (inner - column).min(range.end - at).min(TILE);
            for r in &self.reductions {
                let from = &acc[r.given * self.accumulators + at..][..count];
                state.given(r.given, count).copy_from_slice(from);
            }
            state.run(&index, 1, count, self.tail_space[n - 1]);
            at += count;
        }
    }
}

/// Values that exist only after the reduction.
fn late_values(r: &Region) -> Vec<&str> {
    let mut late: Vec<&str> = Vec::new();
    for s in &r.body {
        let depends = s.args.iter().any(|a| matches!(a, Arg::Value(v) if late.contains(&v.as_str())));
        if depends || matches!(s.op, StatementOp::Reduce(_)) {
            late.push(&s.name);
        }
    }
    late
}

/// An operand over the kept dimensions only; at least one.
fn narrow(o: &Operand, kept: &[usize]) -> Operand {
    let mut strides: Vec<usize> = kept.iter().map(|&d| o.strides[d]).collect();
    if strides.is_empty() {
        strides.push(0);
    }
    Operand { strides, ..o.clone() }
}

fn narrow_store(s: &Store, kept: &[usize]) -> Store {
    let mut s = s.clone();
    s.view.strides = kept.iter().map(|&d| s.view.strides[d]).collect();
    if s.view.strides.is_empty() {
        s.view.strides.push(0);
    }
    s
}
