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
use slrc_plan::{Dims, Precision, View};

use crate::emit::cuda::body::Body;
use crate::emit::cuda::code::{BLOCK, Call, Code, Registers, Table, index_type};
use crate::emit::cuda::row::Row;
use crate::emit::cuda::strip::Strip;

/// Fewest matrices of which a block does all columns: about as many as the largest devices of 2026 have
/// multiprocessors.
const FEWEST_MATRICES: usize = 128;

pub(super) fn emit(table: &Table<'_>, a: &Attention, precision: Precision) -> Vec<Call> {
    let strip_of = |a: &Attention| Strip::of(a, precision).height;
    let results = |over: Over| a.results.iter().filter(move |r| r.over == over).cloned().collect::<Vec<_>>();
    let (by_cols, by_rows) = (results(Over::Cols), results(Over::Rows));
    let straight = (!by_cols.is_empty() || !a.region.stores.is_empty()).then(|| straight(a, by_cols));
    let transposed = (!by_rows.is_empty()).then(|| transposed(a, by_rows));
    match (straight, transposed) {
        (Some(first), Some(then))
            if a.batch().iter().product::<usize>() >= FEWEST_MATRICES && strip_of(&first) == strip_of(&then) =>
        {
            vec![launch(table, precision, &first, Some(&then))]
        }
        (first, then) => first.iter().chain(&then).map(|a| launch(table, precision, a, None)).collect(),
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

/// The launch of a problem whose results are all sums over columns, and of one over the same matrices that needs all of
/// a matrix's strips.
fn launch(table: &Table<'_>, precision: Precision, a: &Attention, then: Option<&Attention>) -> Call {
    let strip = Strip::of(a, precision);
    let height = strip.height;
    let all = || [a].into_iter().chain(then);
    let ty = index_type(all().map(end).max().unwrap_or(0));
    let mut code = Code::new(table);
    all().for_each(|a| describe(&mut code, a));
    if precision != Precision::F32 {
        code.formula(format!("operands of products rounded to {}, sums in f32", precision.name()));
    }
    let held = all().map(|a| a.held() * Strip::of(a, precision).elements()).max().unwrap_or(0);
    code.shared("float", "s", &[held]);
    strip.declare(&mut code, all().any(|a| !a.products.is_empty()));
    let (matrices, strips) = (a.batch().iter().product::<usize>(), a.rows().div_ceil(height));
    code.line(format!("const {ty} z = blockIdx.x / {strips};"));
    let mut inner = 1;
    for (i, &extent) in a.batch().iter().enumerate().rev() {
        code.line(format!("const {ty} z{i} = z / {inner} % {extent};"));
        inner *= extent;
    }
    code.line("const int lane = threadIdx.x % 32;");
    let constant = if then.is_none() { "const " } else { "" };
    code.line(format!("{constant}{ty} r0 = blockIdx.x % {strips} * {height};"));
    pass(&mut code, a, &strip, ty);
    if let Some(then) = then {
        code.last_block("z", strips);
        code.open(format!("for (r0 = 0; r0 < {}; r0 += {height})", then.rows()));
        pass(&mut code, then, &Strip::of(then, precision), ty);
        code.close();
    }
    let call = code.finish("attention", BLOCK, [matrices * strips, 1, 1]);
    // Shared memory leaves room for few blocks in any case; left to itself, ptxas aims at more, and spills.
    Call { registers: Registers::All, ..call }
}

/// What is computed between products, given the element `e` of the row at hand in each matrix of so many elements, and
/// where these are.
fn between(a: &Attention, elements: usize) -> (Body<'_>, impl Fn(usize) -> String) {
    let at = move |i: usize| if i == 0 { "t[e]".to_string() } else { format!("t[{} + e]", i * elements) };
    let given: Vec<(&str, String)> = a.products.iter().enumerate().map(|(i, p)| (p.name.as_str(), at(i))).collect();
    (Body::between(&a.region, &given), at)
}

/// One past the largest position of any operand.
fn end(a: &Attention) -> usize {
    let (rows, cols) = (a.rows(), a.cols());
    let ends = a.products.iter().flat_map(|p| [p.a.end(&a.with([rows, p.k])), p.b.end(&a.with([p.k, cols]))]);
    let ends = ends
        .chain(a.results.iter().flat_map(|r| [r.by.end(&a.with([cols, r.width])), r.to.end(&a.with([rows, r.width]))]));
    ends.flatten().chain([between(a, 0).0.walk.end]).max().unwrap_or(0)
}

/// The formula, for the head comment.
fn describe(code: &mut Code<'_>, a: &Attention) {
    let (rows, cols) = (a.rows(), a.cols());
    for p in &a.products {
        code.formula(format!("{}[{rows}, {cols}] = sum of {} terms a[r, k] b[k, c]", p.name, p.k));
    }
    between(a, 0).0.describe(code);
    for r in &a.results {
        code.formula(format!("to[{rows}, {}] = sum over c of {}[r, c] by[c, e]", r.width, r.value));
    }
}

/// Works on the strip of matrix `z` that begins at row `r0`.
fn pass(code: &mut Code<'_>, a: &Attention, strip: &Strip, ty: &'static str) {
    let (rows, height, pitch) = (a.rows(), strip.height, strip.pitch);
    let (body, at) = between(a, strip.elements());
    let wanted = a.results.iter().enumerate().map(|(i, r)| (r.value.clone(), at(i))).collect();
    let row = Row::new(body, ty, 32, wanted);
    a.products.iter().enumerate().for_each(|(i, p)| strip.product(code, ty, i, p));
    code.line("__syncthreads();");
    code.open(format!("for (int q = threadIdx.x / 32; q < {height}; q += {})", BLOCK / 32));
    code.open(format!("if (r0 + q < {rows})"));
    code.line(format!("const {ty} row = z * {rows} + r0 + q;"));
    code.line(format!("float* const t = s + q * {pitch};"));
    row.run(code);
    code.close();
    code.close();
    if !a.results.is_empty() {
        code.line("__syncthreads();");
    }
    a.results.iter().enumerate().for_each(|(i, r)| strip.contraction(code, ty, i, r));
}
