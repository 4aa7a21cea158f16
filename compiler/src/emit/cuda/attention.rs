//! Attention: a block takes some rows of the scores, which stay in shared memory between the products on both sides.
//!
//! Results over rows are those of the transposed problem: blocks take some columns, and find in memory what rows have
//! been reduced to. Where there are matrices enough for all of a device, the block that finishes a matrix's last strip
//! goes on with its columns; otherwise these are a launch of their own, strip by strip. No block waits for another, and
//! nothing is added atomically.

use std::collections::BTreeSet;

use slrc_plan::attention::{Attention, Contraction, Over, Score};
use slrc_plan::region::{Load, Region};
use slrc_plan::statement::Arg;
use slrc_plan::{Dims, View};

use crate::emit::cuda::body::Body;
use crate::emit::cuda::code::{BLOCK, Call, Code, Registers, Table, index_type, sum, times};
use crate::emit::cuda::row::Row;

/// Columns of a tile.
const TILE: usize = 64;
/// Terms staged at a time.
const DEPTH: usize = 16;
/// Groups of threads that share a column of a tile: each takes a part of the strip's rows.
const GROUPS: usize = BLOCK / TILE;
/// Strips a block may have, highest first.
const STRIPS: [usize; 4] = [32, 16, 8, 4];
/// Bytes of shared memory that every device has for a block.
const SHARED: usize = 48 << 10;

/// Fewest matrices of which a block does all columns: about as many as the largest devices of 2026 have
/// multiprocessors.
const FEWEST_MATRICES: usize = 128;

pub(super) fn emit(table: &Table<'_>, a: &Attention) -> Vec<Call> {
    let results = |over: Over| a.results.iter().filter(move |r| r.over == over).cloned().collect::<Vec<_>>();
    let (by_cols, by_rows) = (results(Over::Cols), results(Over::Rows));
    let straight = (!by_cols.is_empty() || !a.region.stores.is_empty()).then(|| straight(a, by_cols));
    let transposed = (!by_rows.is_empty()).then(|| transposed(a, by_rows));
    match (straight, transposed) {
        (Some(first), Some(then))
            if a.batch().iter().product::<usize>() >= FEWEST_MATRICES && strip_of(&first) == strip_of(&then) =>
        {
            vec![launch(table, &first, Some(&then))]
        }
        (first, then) => first.iter().chain(&then).map(|a| launch(table, a, None)).collect(),
    }
}

/// Names that `values` are computed from, themselves included, not looking past those that are `known`.
fn needed<'a>(a: &'a Attention, values: Vec<&'a str>, known: impl Fn(&str) -> bool) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open = values;
    while let Some(name) = open.pop() {
        if !found.insert(name) || known(name) {
            continue;
        }
        let made = a.region.body.iter().find(|s| s.name == name);
        let values = made.iter().flat_map(|s| &s.args);
        open.extend(values.filter_map(|v| if let Arg::Value(v) = v { Some(v.as_str()) } else { None }));
    }
    found
}

/// What is stored of rows or summed over columns.
fn straight(a: &Attention, results: Vec<Contraction>) -> Attention {
    let stored = a.region.stores.iter().map(|s| s.value.as_str());
    let values = stored.chain(a.results.iter().filter(|r| r.over == Over::Cols).map(|r| r.value.as_str()));
    let needed = needed(a, values.collect(), |_| false);
    let products = a.products.iter().filter(|p| needed.contains(p.name.as_str())).cloned().collect();
    Attention { products, results, ..a.clone() }
}

/// The problem with rows and columns exchanged, for what is summed over rows.
fn transposed(a: &Attention, results: Vec<Contraction>) -> Attention {
    let rank = a.region.space.len();
    let turn = |v: &View| {
        let mut v = v.clone();
        v.strides.swap(rank - 2, rank - 1);
        v
    };
    // What was stored of rows is not computed again.
    let stored = |name: &str| a.region.stores.iter().find(|s| s.value == name && s.view.strides[rank - 1] == 0);
    let values = a.results.iter().filter(|r| r.over == Over::Rows).map(|r| r.value.as_str());
    let needed = needed(a, values.collect(), |name| stored(name).is_some());
    let found = a.region.stores.iter().filter(|s| needed.contains(s.value.as_str()) && stored(&s.value) == Some(*s));
    let loads = a.region.loads.iter().filter(|l| needed.contains(l.name.as_str()));
    let mut space = a.region.space.0.clone();
    space.swap(rank - 2, rank - 1);
    let region = Region {
        space: Dims(space),
        reduce: vec![rank - 1],
        loads: found
            .map(|s| Load { name: s.value.clone(), view: turn(&s.view) })
            .chain(loads.map(|l| Load { name: l.name.clone(), view: turn(&l.view) }))
            .collect(),
        body: a
            .region
            .body
            .iter()
            .filter(|s| needed.contains(s.name.as_str()) && stored(&s.name).is_none())
            .cloned()
            .collect(),
        stores: Vec::new(),
        split: None,
    };
    let products = a.products.iter().filter(|p| needed.contains(p.name.as_str()));
    let products = products.map(|p| Score { a: turn(&p.b), b: turn(&p.a), ..p.clone() }).collect();
    let results = results.into_iter().map(|r| Contraction { over: Over::Cols, ..r }).collect();
    Attention { products, region, results, strip: a.strip }
}

/// Rows of a strip: as many as fit, but no more than there are.
fn strip_of(a: &Attention) -> usize {
    let fits = |r: &&usize| 4 * (a.held() * **r * a.cols() + DEPTH * (**r + TILE)) <= SHARED;
    let enough = STRIPS.iter().rev().find(|r| **r >= a.rows()).copied().unwrap_or(STRIPS[0]);
    let most = STRIPS.iter().find(fits).copied().expect("invariant: fusion leaves out what does not fit");
    most.min(enough)
}

/// The launch of a problem whose results are all sums over columns, and of one over the same matrices that needs all of
/// a matrix's strips.
fn launch(table: &Table<'_>, a: &Attention, then: Option<&Attention>) -> Call {
    let strip = strip_of(a);
    let all = || [a].into_iter().chain(then);
    let ty = index_type(all().map(end).max().unwrap_or(0));
    let mut code = Code::new(table);
    all().for_each(|a| describe(&mut code, a));
    let held = all().map(|a| a.held() * strip * a.cols()).max().unwrap_or(0);
    code.shared("float", "s", &[held]);
    if all().any(|a| !a.products.is_empty()) {
        code.shared("float", "as", &[DEPTH, strip]);
    }
    code.shared("float", "bs", &[DEPTH, TILE]);
    code.line(format!("const int tx = threadIdx.x % {TILE};"));
    code.line(format!("const int ty = threadIdx.x / {TILE};"));
    let (matrices, strips) = (a.batch().iter().product::<usize>(), a.rows().div_ceil(strip));
    code.line(format!("const {ty} z = blockIdx.x / {strips};"));
    let mut inner = 1;
    for (i, &extent) in a.batch().iter().enumerate().rev() {
        code.line(format!("const {ty} z{i} = z / {inner} % {extent};"));
        inner *= extent;
    }
    code.line("const int lane = threadIdx.x % 32;");
    let constant = if then.is_none() { "const " } else { "" };
    code.line(format!("{constant}{ty} r0 = blockIdx.x % {strips} * {strip};"));
    pass(&mut code, a, ty);
    if let Some(then) = then {
        code.last_block("z", strips);
        code.open(format!("for (r0 = 0; r0 < {}; r0 += {strip})", then.rows()));
        pass(&mut code, then, ty);
        code.close();
    }
    let call = code.finish("attention", BLOCK, [matrices * strips, 1, 1]);
    // Shared memory leaves room for few blocks in any case; left to itself, ptxas aims at more, and spills.
    Call { registers: Registers::All, ..call }
}

/// What is computed between products, given the element `e` of the row at hand in each matrix, and where these are.
fn between(a: &Attention) -> (Body<'_>, impl Fn(usize) -> String) {
    let held = strip_of(a) * a.cols();
    let at = move |i: usize| if i == 0 { "t[e]".to_string() } else { format!("t[{} + e]", i * held) };
    let given: Vec<(&str, String)> = a.products.iter().enumerate().map(|(i, p)| (p.name.as_str(), at(i))).collect();
    (Body::between(&a.region, &given), at)
}

/// One past the largest position of any operand.
fn end(a: &Attention) -> usize {
    let (rows, cols) = (a.rows(), a.cols());
    let ends = a.products.iter().flat_map(|p| [p.a.end(&a.with([rows, p.k])), p.b.end(&a.with([p.k, cols]))]);
    let ends = ends
        .chain(a.results.iter().flat_map(|r| [r.by.end(&a.with([cols, r.width])), r.to.end(&a.with([rows, r.width]))]));
    ends.flatten().chain([between(a).0.walk.end]).max().unwrap_or(0)
}

/// The formula, for the head comment.
fn describe(code: &mut Code<'_>, a: &Attention) {
    let (rows, cols) = (a.rows(), a.cols());
    for p in &a.products {
        code.formula(format!("{}[{rows}, {cols}] = sum of {} terms a[r, k] b[k, c]", p.name, p.k));
    }
    between(a).0.describe(code);
    for r in &a.results {
        code.formula(format!("to[{rows}, {}] = sum over c of {}[r, c] by[c, e]", r.width, r.value));
    }
}

/// Works on the strip of matrix `z` that begins at row `r0`.
fn pass(code: &mut Code<'_>, a: &Attention, ty: &'static str) {
    let (rows, cols, strip) = (a.rows(), a.cols(), strip_of(a));
    let (body, at) = between(a);
    let wanted = a.results.iter().enumerate().map(|(i, r)| (r.value.clone(), at(i))).collect();
    let row = Row::new(body, ty, 32, wanted);
    let tile = Tile { ty, rows, cols, strip, held: strip * cols };
    a.products.iter().enumerate().for_each(|(i, p)| tile.product(code, i, p));
    code.line("__syncthreads();");
    code.open(format!("for (int q = threadIdx.x / 32; q < {strip}; q += {})", BLOCK / 32));
    code.open(format!("if (r0 + q < {rows})"));
    code.line(format!("const {ty} row = z * {rows} + r0 + q;"));
    code.line(format!("float* const t = s + q * {cols};"));
    row.run(code);
    code.close();
    code.close();
    if !a.results.is_empty() {
        code.line("__syncthreads();");
    }
    a.results.iter().enumerate().for_each(|(i, r)| tile.contraction(code, i, r));
}

/// Extents of a block's tiles.
struct Tile {
    ty: &'static str,
    rows: usize,
    cols: usize,
    strip: usize,
    /// Elements of a matrix.
    held: usize,
}

/// The element of an operand at the batch at hand and two coordinates.
fn element(pointer: &str, v: &View, first: &str, second: &str) -> String {
    let d = v.strides.len() - 2;
    let names = (0..d).map(|i| format!("z{i}")).chain([first.to_string(), second.to_string()]);
    let mut terms: Vec<String> =
        names.zip(&v.strides).filter(|(_, s)| **s != 0).map(|(name, &s)| times(&name, s)).collect();
    if v.offset != 0 {
        terms.push(v.offset.to_string());
    }
    format!("{pointer}[{}]", sum(terms))
}

impl Tile {
    fn matrix(&self, i: usize) -> String {
        if i == 0 { "s".into() } else { format!("s + {}", i * self.held) }
    }

    /// Stages `bs[k][n]` from an operand, zeros outside.
    fn stage(&self, code: &mut Code<'_>, v: &View, terms: usize, cols: usize) {
        let (ty, p) = (self.ty, code.pointer(&v.buffer, false));
        let d = v.strides.len();
        let along_terms = v.strides[d - 2] < v.strides[d - 1];
        let (k, n) = if along_terms {
            (format!("t % {DEPTH}"), format!("t / {DEPTH}"))
        } else {
            (format!("t / {TILE}"), format!("t % {TILE}"))
        };
        code.open(format!("for (int t = threadIdx.x; t < {}; t += {BLOCK})", DEPTH * TILE));
        code.line(format!("const {ty} k = k0 + {k};"));
        code.line(format!("const {ty} n = n0 + {n};"));
        let value = element(&p, v, "k", "n");
        code.line(format!("bs[{k}][{n}] = k < {terms} && n < {cols} ? {value} : 0.0f;"));
        code.close();
    }

    /// Matrix `i` is a product.
    fn product(&self, code: &mut Code<'_>, i: usize, p: &Score) {
        let (ty, strip, each) = (self.ty, self.strip, self.strip / GROUPS);
        let a = code.pointer(&p.a.buffer, false);
        code.open(format!("for ({ty} n0 = 0; n0 < {}; n0 += {TILE})", self.cols));
        code.line(format!("float acc[{each}] = {{}};"));
        code.open(format!("for ({ty} k0 = 0; k0 < {}; k0 += {DEPTH})", p.k));
        let d = p.a.strides.len();
        let along_terms = p.a.strides[d - 1] <= p.a.strides[d - 2];
        let (k, q) = if along_terms {
            (format!("t % {DEPTH}"), format!("t / {DEPTH}"))
        } else {
            (format!("t / {strip}"), format!("t % {strip}"))
        };
        code.open(format!("for (int t = threadIdx.x; t < {}; t += {BLOCK})", DEPTH * strip));
        code.line(format!("const {ty} k = k0 + {k};"));
        code.line(format!("const {ty} r = r0 + {q};"));
        let value = element(&a, &p.a, "r", "k");
        code.line(format!("as[{k}][{q}] = k < {} && r < {} ? {value} : 0.0f;", p.k, self.rows));
        code.close();
        self.stage(code, &p.b, p.k, self.cols);
        code.line("__syncthreads();");
        code.line("#pragma unroll");
        code.open(format!("for (int k = 0; k < {DEPTH}; ++k)"));
        code.line("const float b = bs[k][tx];");
        self.each(code, &format!("acc[i] = fmaf(as[k][ty * {each} + i], b, acc[i]);"));
        code.close();
        code.line("__syncthreads();");
        code.close();
        code.open(format!("if (n0 + tx < {})", self.cols));
        let (matrix, cols) = (self.matrix(i), self.cols);
        self.each(code, &format!("({matrix})[(ty * {each} + i) * {cols} + n0 + tx] = acc[i];"));
        code.close();
        code.close();
    }

    /// A result of matrix `i`.
    fn contraction(&self, code: &mut Code<'_>, i: usize, r: &Contraction) {
        let (ty, each, cols) = (self.ty, self.strip / GROUPS, self.cols);
        code.open(format!("for ({ty} n0 = 0; n0 < {}; n0 += {TILE})", r.width));
        code.line(format!("float acc[{each}] = {{}};"));
        code.open(format!("for ({ty} k0 = 0; k0 < {cols}; k0 += {DEPTH})"));
        self.stage(code, &r.by, cols, r.width);
        code.line("__syncthreads();");
        let depth = if cols.is_multiple_of(DEPTH) {
            DEPTH.to_string()
        } else {
            code.line(format!("const int depth = min({DEPTH}, (int)({cols} - k0));"));
            "depth".into()
        };
        code.line("#pragma unroll 4");
        code.open(format!("for (int k = 0; k < {depth}; ++k)"));
        code.line("const float b = bs[k][tx];");
        let matrix = self.matrix(i);
        self.each(code, &format!("acc[i] = fmaf(({matrix})[(ty * {each} + i) * {cols} + k0 + k], b, acc[i]);"));
        code.close();
        code.line("__syncthreads();");
        code.close();
        let to = code.pointer(&r.to.buffer, true);
        code.open(format!("if (n0 + tx < {})", r.width));
        code.line(format!("const {ty} n = n0 + tx;"));
        code.line("#pragma unroll");
        code.open(format!("for (int i = 0; i < {each}; ++i)"));
        code.line(format!("const {ty} r = r0 + ty * {each} + i;"));
        code.open(format!("if (r < {})", self.rows));
        code.line(format!("{} = acc[i];", element(&to, &r.to, "r", "n")));
        code.close();
        code.close();
        code.close();
        code.close();
    }

    /// A line for each of a thread's rows.
    fn each(&self, code: &mut Code<'_>, line: &str) {
        code.line("#pragma unroll");
        code.open(format!("for (int i = 0; i < {}; ++i)", self.strip / GROUPS));
        code.line(line);
        code.close();
    }
}
