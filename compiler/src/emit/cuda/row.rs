//! Reductions along rows with work before and after, in one kernel: softmax, LayerNorm, cross-entropy.
//!
//! A warp takes a row of up to [`WARP_ROW`] elements, a block a longer one. Elements pass once through registers where
//! a thread has few of them; longer rows are read again after each reduction. Sums run over lanes in a fixed tree.

use std::collections::BTreeSet;

use slrc_plan::region::{Level, Region};
use slrc_plan::statement::{Arg, Combine};

use crate::emit::cuda::body::{Body, Origin, arg_text, combined, identity};
use crate::emit::cuda::code::{BLOCK, Call, Code, Registers, Rows, Table, blocks_for, index_type, number};

/// Longest row of a warp.
const WARP_ROW: usize = 1024;
/// Rows of a block where a warp has one.
const WARPS: usize = BLOCK / 32;
/// Most rows that are given as many blocks as they take: a step over all of them must not leave the range of an `int`.
const MOST_ROWS: usize = 1 << 29;
/// Most registers for elements kept between passes.
const KEPT_REGISTERS: usize = 64;

/// Registers for positions, sums and what is computed.
const SPARE: usize = 20;

/// Work on one row, by a warp or by a block.
pub(super) struct Row<'a> {
    body: Body<'a>,
    ty: &'static str,
    /// Elements of a row.
    length: usize,
    /// Threads of a row.
    threads: usize,
    /// Elements of a thread.
    per_thread: usize,
    inner: Vec<usize>,
    /// Element values that later passes take from registers.
    cached: BTreeSet<usize>,
    /// Element values that are left outside memory, and where.
    wanted: Vec<(String, String)>,
}

pub(super) fn emit(table: &Table<'_>, r: &Region) -> Vec<Call> {
    let mut code = Code::new(table);
    let body = Body::new(r);
    body.describe(&mut code);
    let outer = body.walk.dimensions(false);
    let (rows, length) = (body.walk.count(&outer), body.walk.count(&body.walk.dimensions(true)));
    let warp = length <= WARP_ROW;
    let threads = if warp { 32 } else { BLOCK };
    let ty = index_type(body.walk.end);
    let row = Row::new(body, ty, threads, Vec::new());
    if warp {
        code.line("const int lane = threadIdx.x % 32;");
        code.open(format!(
            "for ({ty} row = blockIdx.x * {WARPS} + threadIdx.x / 32; row < {rows}; row += ({ty})gridDim.x * {WARPS})"
        ));
    } else {
        code.line("const int lane = threadIdx.x;");
        code.shared("float", "partial", &[BLOCK / 32]);
        code.open(format!("for ({ty} row = blockIdx.x; row < {rows}; row += gridDim.x)"));
    }
    row.run(&mut code);
    code.close();
    let grid = blocks_for(rows, if warp { WARPS } else { 1 });
    let call = code.finish("row", BLOCK, grid);
    let each = if warp && rows <= MOST_ROWS {
        Rows::Each { rows: WARPS, blocks: rows.div_ceil(WARPS) }
    } else {
        Rows::Unknown
    };
    vec![Call { registers: Registers::For(row.live()), rows: each, ..call }]
}

impl<'a> Row<'a> {
    /// Work of `threads` threads on a row; the values `wanted` go to places outside memory, expressions of the
    /// element's number `e`.
    pub(super) fn new(body: Body<'a>, ty: &'static str, threads: usize, wanted: Vec<(String, String)>) -> Row<'a> {
        let inner = body.walk.dimensions(true);
        let length = body.walk.count(&inner);
        let per_thread = length.div_ceil(threads);
        let mut row = Row { body, ty, length, threads, per_thread, inner, cached: BTreeSet::new(), wanted };
        row.cached = row.worth_keeping();
        row
    }

    /// Works on row `row`; `lane` is the thread's number in it.
    pub(super) fn run(&self, code: &mut Code<'_>) {
        let outer = self.body.walk.dimensions(false);
        self.body.walk.coordinates(code, self.ty, "row", &outer);
        self.passes(code);
    }

    /// Values live at once at most: what is kept of a thread's elements and what one pass loads of them, addresses, and
    /// some numbers beside.
    fn live(&self) -> usize {
        let region = self.body.region;
        let together = if self.in_registers() { self.per_thread } else { 1 };
        let steps = (0..region.loads.len()).filter(|&l| self.body.walk.steps(l)).count();
        let elements = self.cached.len() * self.per_thread + steps * together;
        elements + 2 * (region.loads.len() + region.stores.len()) + SPARE
    }

    /// Whether a thread's elements stay in registers from pass to pass, and loops over them are unrolled.
    fn in_registers(&self) -> bool {
        !self.cached.is_empty() || self.per_thread <= 8
    }

    fn stages(&self) -> usize {
        self.body.values.iter().map(|v| v.stage).max().unwrap_or(0)
    }

    /// What pass `stage` must produce from elements.
    fn targets(&self, stage: usize) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for i in self.body.reductions(stage + 1) {
            if let Origin::Reduce(_, Arg::Value(v)) = &self.body.values[i].origin
                && self.body.value(v).level == Level::Element
            {
                out.push(v.clone());
            }
        }
        if stage == self.stages() {
            out.extend(self.body.stored(&self.body.stores(Level::Element)));
            out.extend(self.wanted.iter().map(|w| w.0.clone()));
        }
        out
    }

    fn elements(&self, targets: &[String]) -> BTreeSet<usize> {
        self.body.closure(targets, |v| v.level == Level::Kept)
    }

    /// Element values of earlier passes that later passes need, if registers hold them all.
    fn worth_keeping(&self) -> BTreeSet<usize> {
        let mut keep: BTreeSet<usize> = BTreeSet::new();
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        for stage in 0..=self.stages() {
            let needed = self.elements(&self.targets(stage));
            // The latest values known make the earlier ones unnecessary.
            let again = self.body.closure(&self.targets(stage), |v| v.level == Level::Kept || self.in_set(&seen, v));
            for i in needed.intersection(&seen) {
                let direct = again.iter().any(|&u| self.body.values[u].needs.contains(&self.body.values[*i].name))
                    || self.targets(stage).contains(&self.body.values[*i].name);
                if direct {
                    keep.insert(*i);
                }
            }
            seen.extend(needed);
        }
        if keep.len() * self.per_thread <= KEPT_REGISTERS { keep } else { BTreeSet::new() }
    }

    fn in_set(&self, set: &BTreeSet<usize>, v: &crate::emit::cuda::body::Value) -> bool {
        set.iter().any(|&i| self.body.values[i].name == v.name)
    }

    fn passes(&self, code: &mut Code<'_>) {
        for &i in &self.cached {
            code.line(format!("float {}_k[{}];", self.body.values[i].name, self.per_thread));
        }
        let mut declared: BTreeSet<usize> = BTreeSet::new();
        let mut filled: BTreeSet<usize> = BTreeSet::new();
        for stage in 0..=self.stages() {
            // Numbers of the row that are known before this pass.
            for (i, v) in self.body.values.iter().enumerate() {
                let plain = !matches!(v.origin, Origin::Reduce(..));
                if plain && v.level == Level::Kept && v.stage <= stage && self.used(i) && declared.insert(i) {
                    self.body.declare(code, i);
                }
            }
            self.pass(code, stage, &mut filled);
        }
        let kept = self.body.stores(Level::Kept);
        if !kept.is_empty() {
            code.open("if (lane == 0)");
            kept.iter().for_each(|&s| self.body.store(code, s));
            code.close();
        }
    }

    /// Whether anything stored needs value `i`.
    fn used(&self, i: usize) -> bool {
        let stored = self.body.region.stores.iter().map(|s| s.value.clone());
        let all: Vec<String> = stored.chain(self.wanted.iter().map(|w| w.0.clone())).collect();
        self.body.closure(&all, |_| false).contains(&i)
    }

    fn pass(&self, code: &mut Code<'_>, stage: usize, filled: &mut BTreeSet<usize>) {
        let reductions: Vec<usize> = self.body.reductions(stage + 1).into_iter().filter(|&i| self.used(i)).collect();
        let mut accumulated: Vec<(usize, Combine, String)> = Vec::new();
        let mut constant: Vec<(usize, Combine, String)> = Vec::new();
        for i in reductions {
            let Origin::Reduce(c, arg) = &self.body.values[i].origin else { continue };
            let varies = matches!(arg, Arg::Value(v) if self.body.value(v).level == Level::Element);
            if varies { &mut accumulated } else { &mut constant }.push((i, *c, arg_text(arg)));
        }
        let stores = if stage == self.stages() { self.body.stores(Level::Element) } else { Vec::new() };
        let last = stage == self.stages() && !self.wanted.is_empty();
        if !accumulated.is_empty() || !stores.is_empty() || last {
            for (i, c, _) in &accumulated {
                code.line(format!("float {}_a = {};", self.body.values[*i].name, identity(*c)));
            }
            self.loop_over_elements(code, stage, filled, &accumulated, &stores);
        }
        for (i, c, _) in &accumulated {
            let name = &self.body.values[*i].name;
            let what = if *c == Combine::Sum { "sum" } else { "max" };
            code.line(if self.threads == 32 {
                format!("const float {name} = warp_{what}({name}_a);")
            } else {
                format!("const float {name} = block_{what}({name}_a, partial);")
            });
        }
        for (i, c, arg) in &constant {
            let name = &self.body.values[*i].name;
            let value = match c {
                Combine::Sum => format!("{arg} * {}", number(self.length as f32)),
                Combine::Max => arg.clone(),
            };
            code.line(format!("const float {name} = {value};"));
        }
    }

    fn loop_over_elements(
        &self,
        code: &mut Code<'_>,
        stage: usize,
        filled: &mut BTreeSet<usize>,
        accumulated: &[(usize, Combine, String)],
        stores: &[usize],
    ) {
        let (ty, t, length) = (self.ty, self.threads, self.length);
        let in_registers = self.in_registers();
        if in_registers {
            code.line("#pragma unroll");
            code.open(format!("for (int j = 0; j < {}; ++j)", self.per_thread));
            code.line(format!("const {ty} e = lane + j * {t};"));
        } else {
            code.open(format!("for ({ty} e = lane; e < {length}; e += {t})"));
        }
        let guarded = in_registers && !length.is_multiple_of(t);
        if guarded {
            code.open(format!("if (e < {length})"));
        }
        self.body.walk.coordinates(code, ty, "e", &self.inner);
        let known: BTreeSet<usize> = filled.intersection(&self.cached).copied().collect();
        let targets = self.targets(stage);
        let needed = self.body.closure(&targets, |v| v.level == Level::Kept || self.in_set(&known, v));
        let mut from_registers: BTreeSet<usize> = BTreeSet::new();
        for &i in &known {
            let name = &self.body.values[i].name;
            if targets.contains(name) || needed.iter().any(|&u| self.body.values[u].needs.contains(name)) {
                from_registers.insert(i);
            }
        }
        for &i in &from_registers {
            code.line(format!("const float {0} = {0}_k[j];", self.body.values[i].name));
        }
        for &i in &needed {
            self.body.declare(code, i);
            if self.cached.contains(&i) {
                code.line(format!("{0}_k[j] = {0};", self.body.values[i].name));
                filled.insert(i);
            }
        }
        for (i, c, arg) in accumulated {
            let a = format!("{}_a", self.body.values[*i].name);
            code.line(format!("{a} = {};", combined(*c, &a, arg)));
        }
        for &s in stores {
            self.body.store(code, s);
        }
        if stage == self.stages() {
            self.wanted.iter().for_each(|(value, to)| code.line(format!("{to} = {value};")));
        }
        if guarded {
            code.close();
        }
        code.close();
    }
}
