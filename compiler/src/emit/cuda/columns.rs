//! Reductions of a product's columns, tile by tile: every thread reduces what it computes, a block its tile, and the
//! last block of a column of tiles combines them, in the order of the tiles. Where there are many tiles, the last block
//! of a group of them combines the group first. No sum is made of atomics: the result does not depend on how blocks are
//! scheduled.

use slrc_plan::kernel::{TILE_GROUP, TILE_ROWS};
use slrc_plan::region::Region;

use crate::emit::cuda::body::{Body, combined, identity};
use crate::emit::cuda::code::Code;
use crate::emit::cuda::product::THREADS;
use crate::emit::cuda::reduce::Reductions;

/// How the threads of a block share a tile of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sharing {
    /// Rows and columns of a tile.
    pub(super) tile: [usize; 2],
    /// Columns of which a thread has elements, as many as its accumulators.
    pub(super) each: usize,
    /// The index that counts them where elements are worked on; where there is one, any number.
    pub(super) index: &'static str,
}

/// The reductions of an epilogue.
pub(super) struct Columns<'a> {
    reductions: Reductions,
    partials: &'a str,
    offset: usize,
    rows: usize,
    cols: usize,
}

impl<'a> Columns<'a> {
    /// Of a product of `rows x cols` elements; nothing where the epilogue is elementwise.
    pub(super) fn new(r: &'a Region, body: &Body<'_>, rows: usize, cols: usize) -> Option<Columns<'a>> {
        let split = r.split.as_ref()?;
        let partials = &split.partials;
        debug_assert!(split.count >= slots(rows.div_ceil(TILE_ROWS)), "invariant: a group for every tile");
        Some(Columns {
            reductions: Reductions::of(body),
            partials: &partials.buffer,
            offset: partials.offset,
            rows,
            cols,
        })
    }

    /// Values that elements are reduced of.
    pub(super) fn targets(&self) -> Vec<String> {
        self.reductions.accumulated.iter().map(|r| r.2.clone()).collect()
    }

    /// Declares a thread's accumulators.
    pub(super) fn begin(&self, code: &mut Code<'_>, sharing: Sharing) {
        for (i, (_, c, _)) in self.reductions.accumulated.iter().enumerate() {
            let start = vec![identity(*c); sharing.each].join(", ");
            code.line(format!("float column{i}[{}] = {{{start}}};", sharing.each));
        }
    }

    /// Adds an element to them.
    pub(super) fn add(&self, code: &mut Code<'_>, sharing: Sharing) {
        for (i, (_, c, arg)) in self.reductions.accumulated.iter().enumerate() {
            let to = format!("column{i}[{}]", sharing.index);
            code.line(format!("{to} = {};", combined(*c, &to, arg)));
        }
    }

    /// Reduces the tile, and what follows the reductions where all tiles are.
    pub(super) fn end(&self, code: &mut Code<'_>, body: &Body<'_>, ty: &str, sharing: Sharing) {
        let [height, width] = sharing.tile;
        let turns = THREADS * sharing.each / width;
        let tiles = self.rows.div_ceil(height);
        let p = code.pointer(self.partials, true);
        code.shared("float", "part", &[turns, width]);
        code.line(format!("const {ty} column = threadIdx.x % {width};"));
        code.line(format!("const {ty} position = col_block * {width} + column;"));
        code.line(format!("const bool active = threadIdx.x < {width} && position < {};", self.cols));
        let across = width / sharing.each;
        for i in 0..self.reductions.accumulated.len() {
            code.line("#pragma unroll");
            code.open(format!("for (int e = 0; e < {}; ++e)", sharing.each));
            let at = if sharing.each == 1 {
                "column".into()
            } else {
                format!("threadIdx.x % {across} * {} + e", sharing.each)
            };
            code.line(format!("part[threadIdx.x / {across}][{at}] = column{i}[e];"));
            code.close();
            let total = self.over_turns(code, i, turns);
            code.open("if (active)");
            code.line(format!("{} = {total};", self.slot(&p, "row_block", i)));
            code.close();
        }
        let mut range = ["0".to_string(), tiles.to_string()];
        let groups = tiles.div_ceil(TILE_GROUP);
        let grouped = slots(tiles) > tiles;
        if grouped {
            code.line(format!("const int tile_group = row_block / {TILE_GROUP};"));
            code.line(format!("const int first = tile_group * {TILE_GROUP};"));
            code.line(format!("const int after = min(first + {TILE_GROUP}, {tiles});"));
            code.last_of(&format!("col_block * {groups} + tile_group"), "after - first - 1");
            let totals = self.combine(code, ty, sharing, &p, ["first", "after"]);
            code.open("if (active)");
            for (i, total) in totals.iter().enumerate() {
                code.line(format!("{} = {total};", self.slot(&p, &format!("({tiles} + tile_group)"), i)));
            }
            code.close();
            range = [tiles.to_string(), (tiles + groups).to_string()];
        }
        let turn = if grouped {
            let blocks = self.cols.div_ceil(width);
            format!("{} + col_block", blocks * groups)
        } else {
            "col_block".into()
        };
        code.last_block(&turn, if grouped { groups } else { tiles });
        let totals = self.combine(code, ty, sharing, &p, [&range[0], &range[1]]);
        code.open("if (active)");
        for ((v, ..), total) in self.reductions.accumulated.iter().zip(totals) {
            code.line(format!("const float {} = {total};", body.values[*v].name));
        }
        self.reductions.tail(code, body, ty);
        code.close();
    }

    /// Combines the slots of a range in order: the names of every reduction's result.
    fn combine(
        &self,
        code: &mut Code<'_>,
        ty: &str,
        sharing: Sharing,
        p: &str,
        [first, after]: [&str; 2],
    ) -> Vec<String> {
        let width = sharing.tile[1];
        let turns = THREADS / width;
        let mut results = Vec::new();
        for (i, (_, c, _)) in self.reductions.accumulated.iter().enumerate() {
            let total = code.fresh("total");
            code.line(format!("float {total} = {};", identity(*c)));
            code.open(format!("if (position < {})", self.cols));
            code.line("#pragma unroll 4");
            code.open(format!("for ({ty} slot = {first} + threadIdx.x / {width}; slot < {after}; slot += {turns})"));
            code.line(format!("{total} = {};", combined(*c, &total, &self.slot(p, "slot", i))));
            code.close();
            code.close();
            code.line(format!("part[threadIdx.x / {width}][column] = {total};"));
            results.push(self.over_turns(code, i, turns));
        }
        results
    }

    /// Waits until the parts of a reduction are there, combines those of a column, and waits until all are done:
    /// the name of the result.
    fn over_turns(&self, code: &mut Code<'_>, i: usize, turns: usize) -> String {
        let c = self.reductions.accumulated[i].1;
        let name = code.fresh("sum");
        code.line("__syncthreads();");
        code.line(format!("float {name} = part[0][column];"));
        code.open(format!("for (int h = 1; h < {turns}; ++h)"));
        code.line(format!("{name} = {};", combined(c, &name, "part[h][column]")));
        code.close();
        code.line("__syncthreads();");
        name
    }

    fn slot(&self, p: &str, slot: &str, i: usize) -> String {
        let n = self.reductions.accumulated.len();
        format!("{p}[{} + ({slot} * {n} + {i}) * {} + position]", self.offset, self.cols)
    }
}

/// Partial results of a column of so many tiles: one each, and one of each group where groups are combined first.
fn slots(tiles: usize) -> usize {
    if tiles > 2 * TILE_GROUP { tiles + tiles.div_ceil(TILE_GROUP) } else { tiles }
}
