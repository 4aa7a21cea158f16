//! Products of a strip on tensor cores: operands rounded to TF32 or bf16 as they are staged or read, sums in f32.
//!
//! Eight warps share a strip of up to 32 rows and a tile of 64 columns: a warp has sixteen of the rows, and eight or
//! sixteen of the columns. Words and fragments are those of `tensor.rs`. Of a strip of fewer than sixteen rows, the
//! rows that are missing are zeros in the fragments.

use slrc_plan::attention::{Contraction, Score};
use slrc_plan::{Precision, View};

use crate::emit::cuda::code::{BLOCK, Code, times};
use crate::emit::cuda::strip::{Strip, TILE, element};
use crate::emit::cuda::tensor::{WORDS, packed};

/// Rows of a fragment.
const ROWS: usize = 16;

/// Numbers from the beginning of a row to that of the next, such that the words of a fragment lie in 32 banks.
pub(super) fn pitch(cols: usize) -> usize {
    cols + (12 - cols % 8) % 8
}

/// Words that so many rows of an operand take while they are staged, whichever way they lie.
pub(super) fn words(rows: usize) -> usize {
    let [along, across] = [true, false].map(|along| Layout { along, rows }.words());
    along.max(across)
}

/// How the rows (or columns) of a staged operand lie.
struct Layout {
    /// Whether the words of a row are neighbours, rather than rows of a word.
    along: bool,
    rows: usize,
}

impl Layout {
    fn of(v: &View, terms: usize, rows: usize) -> Layout {
        let other = 1 - terms;
        let [.., first, second] = v.strides[..] else { panic!("invariant: operands are matrices") };
        let strides = [first, second];
        Layout { along: strides[terms] <= strides[other], rows }
    }

    /// Rows and words are padded so that the words of a fragment lie in 32 banks.
    fn words(&self) -> usize {
        let Layout { along, rows } = *self;
        if along { rows * (WORDS + 4) } else { WORDS * pitch_of_rows(rows) }
    }

    fn at(&self, name: &str, row: &str, word: &str) -> String {
        if self.along {
            format!("{name}[{row} * {} + {word}]", WORDS + 4)
        } else {
            let word = if word.contains('+') { format!("({word})") } else { word.to_string() };
            format!("{name}[{word} * {} + {row}]", pitch_of_rows(self.rows))
        }
    }

    /// Which row and which word the thread's element `t` is: neighbours in memory are neighbouring threads'.
    fn walk(&self) -> [String; 2] {
        let rows = self.rows;
        if self.along {
            [format!("t / {WORDS}"), format!("t % {WORDS}")]
        } else {
            [format!("t % {rows}"), format!("t / {rows}")]
        }
    }
}

fn pitch_of_rows(rows: usize) -> usize {
    if rows < ROWS { rows + 1 } else { rows + 8 }
}

pub(super) fn declare(s: &Strip, code: &mut Code<'_>, products: bool) {
    if products {
        code.shared("unsigned int", "as", &[words(s.height)]);
    }
    code.shared("unsigned int", "bs", &[words(TILE)]);
    let across = BLOCK / 32 / down(s);
    if down(s) > 1 {
        code.line(format!("const int warp_row = threadIdx.x / {} * {ROWS};", 32 * across));
        code.line(format!("const int warp_col = threadIdx.x / 32 % {across} * {};", TILE / across));
    } else {
        code.line("const int warp_row = 0;");
        code.line(format!("const int warp_col = threadIdx.x / 32 * {};", TILE / across));
    }
    code.line("const int lane_row = threadIdx.x % 32 / 4;");
    code.line("const int lane_col = threadIdx.x % 4;");
}

/// Fragments one below the other in a strip.
fn down(s: &Strip) -> usize {
    s.height.div_ceil(ROWS)
}

/// Fragments of the result side by side that a warp has.
fn each(s: &Strip) -> usize {
    TILE / 8 * down(s) / (BLOCK / 32)
}

/// Makes matrix `i` a product.
pub(super) fn product(s: &Strip, code: &mut Code<'_>, ty: &str, i: usize, p: &Score) {
    let (a, b) = (Layout::of(&p.a, 1, s.height), Layout::of(&p.b, 0, TILE));
    open(s, code, ty, s.cols, p.k);
    stage(code, s.precision, ty, &a, &Staged { name: "as", view: &p.a, coordinates: ["r", "k"] }, [s.rows, p.k]);
    stage(code, s.precision, ty, &b, &Staged { name: "bs", view: &p.b, coordinates: ["k", "n"] }, [s.cols, p.k]);
    multiply(s, code, &b, |_| a.at("as", "q", "word"));
    each_result(s, code, s.cols, |code| {
        code.line(format!("{} = acc[j][e];", s.held(i, "q", "n")));
    });
    code.close();
}

/// A result of matrix `i`.
pub(super) fn contraction(s: &Strip, code: &mut Code<'_>, ty: &str, i: usize, r: &Contraction) {
    let b = Layout::of(&r.by, 0, TILE);
    open(s, code, ty, r.width, s.cols);
    stage(code, s.precision, ty, &b, &Staged { name: "bs", view: &r.by, coordinates: ["k", "n"] }, [r.width, s.cols]);
    let n = packed(s.precision);
    multiply(s, code, &b, |code| {
        code.line(format!("const {ty} k = k0 + {};", times("word", n)));
        let number = |k: &str| {
            let read = s.held(i, "q", k);
            if s.cols.is_multiple_of(WORDS * n) { read } else { format!("{k} < {} ? {read} : 0.0f", s.cols) }
        };
        match n {
            1 => format!("tf32({})", number("k")),
            _ => format!("bf16x2({}, {})", number("k"), number("k + 1")),
        }
    });
    let to = code.pointer(&r.to.buffer, true);
    each_result(s, code, r.width, |code| {
        code.line(format!("const {ty} r = r0 + q;"));
        code.open(format!("if (r < {})", s.rows));
        code.line(format!("{} = acc[j][e];", element(&to, &r.to, "r", "n")));
        code.close();
    });
    code.close();
}

/// Opens the loops over tiles of `cols` columns and, inside, over `terms`.
fn open(s: &Strip, code: &mut Code<'_>, ty: &str, cols: usize, terms: usize) {
    code.open(format!("for ({ty} n0 = 0; n0 < {cols}; n0 += {TILE})"));
    code.line(format!("float acc[{}][4] = {{}};", each(s)));
    code.open(format!("for ({ty} k0 = 0; k0 < {terms}; k0 += {})", WORDS * packed(s.precision)));
}

/// An operand and what its two coordinates are called.
struct Staged<'v> {
    name: &'static str,
    view: &'v View,
    coordinates: [&'static str; 2],
}

/// Stages an operand from term `k0` on, zeros outside its rows (or columns) and terms.
fn stage(
    code: &mut Code<'_>,
    precision: Precision,
    ty: &str,
    layout: &Layout,
    o: &Staged<'_>,
    [rows, terms]: [usize; 2],
) {
    let p = code.pointer(&o.view.buffer, false);
    let name = o.coordinates.into_iter().find(|c| *c != "k").unwrap_or("n");
    code.open(format!("for (int t = threadIdx.x; t < {}; t += {BLOCK})", layout.rows * WORDS));
    let [row, word] = layout.walk();
    code.line(format!("const {ty} {name} = {name}0 + {row};"));
    let [first, second] = o.coordinates;
    let value = element(&p, o.view, first, second);
    let guarded = format!("k < {terms} && {name} < {rows} ? {value} : 0.0f");
    let to = layout.at(o.name, &row, &word);
    match packed(precision) {
        1 => {
            code.line(format!("const {ty} k = k0 + {word};"));
            code.line(format!("{to} = tf32({guarded});"));
        }
        n => {
            code.line(format!("float pair[{n}];"));
            code.line("#pragma unroll");
            code.open(format!("for (int h = 0; h < {n}; ++h)"));
            code.line(format!("const {ty} k = k0 + {word} * {n} + h;"));
            code.line(format!("pair[h] = {guarded};"));
            code.close();
            code.line(format!("{to} = bf16x2(pair[0], pair[1]);"));
        }
    }
    code.close();
}

/// Multiplies what is staged, and closes the loop over terms. `a` is the word of a row of the first operand, `q` the
/// row and `word` which of those staged.
fn multiply(s: &Strip, code: &mut Code<'_>, b: &Layout, a: impl Fn(&mut Code<'_>) -> String) {
    code.line("__syncthreads();");
    code.line("#pragma unroll");
    code.open(format!("for (int w = lane_col; w < {WORDS}; w += 8)"));
    code.line("unsigned int fa[4];");
    code.line("#pragma unroll");
    code.open("for (int f = 0; f < 4; ++f)");
    code.line("const int q = warp_row + lane_row + f % 2 * 8;");
    code.line("const int word = w + f / 2 * 4;");
    let value = a(code);
    let inside = if s.height.is_multiple_of(ROWS) { value } else { format!("q < {} ? {value} : 0u", s.height) };
    code.line(format!("fa[f] = {inside};"));
    code.close();
    code.line("#pragma unroll");
    code.open(format!("for (int j = 0; j < {}; ++j)", each(s)));
    code.line("const int c = warp_col + j * 8 + lane_row;");
    code.line(format!("const unsigned int fb[2] = {{{}, {}}};", b.at("bs", "c", "w"), b.at("bs", "c", "w + 4")));
    code.line("multiply_add(acc[j], fa, fb);");
    code.close();
    code.close();
    code.line("__syncthreads();");
    code.close();
}

/// Hands on the results that lie in the strip and its first `cols` columns: `acc[j][e]`, row `q` of the strip, column
/// `n`.
fn each_result(s: &Strip, code: &mut Code<'_>, cols: usize, store: impl Fn(&mut Code<'_>)) {
    code.line("#pragma unroll");
    code.open(format!("for (int j = 0; j < {}; ++j)", each(s)));
    code.line("#pragma unroll");
    code.open(format!("for (int e = 0; e < {}; ++e)", if s.height <= 8 { 2 } else { 4 }));
    code.line("const int q = warp_row + lane_row + e / 2 * 8;");
    code.line("const int n = n0 + warp_col + j * 8 + lane_col * 2 + e % 2;");
    let inside = if s.height.is_multiple_of(8) { String::new() } else { format!("q < {} && ", s.height) };
    code.open(format!("if ({inside}n < {cols})"));
    store(code);
    code.close();
    code.close();
    code.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lane `4 r + c` reads word `c` of row `r`.
    #[test]
    fn fragments_meet_in_no_bank() {
        let banks = |pitch: usize| {
            let mut all: Vec<usize> = (0..32).map(|lane| (lane / 4 * pitch + lane % 4) % 32).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        for cols in 1..200 {
            assert!(pitch(cols) < cols + 8);
            assert_eq!(banks(pitch(cols)), 32, "{cols} columns");
        }
        assert_eq!(banks(WORDS + 4), 32);
        for rows in [16, 32, 64] {
            let across = (0..32).map(|lane| (lane % 4 * pitch_of_rows(rows) + lane / 4) % 32);
            let mut all: Vec<usize> = across.collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 32, "{rows} rows");
        }
    }
}
