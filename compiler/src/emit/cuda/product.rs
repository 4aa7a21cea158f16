//! The tiled matrix product behind matmul and the three convolutions: 64 x 64 results a block, 4 x 4 a thread, operands
//! staged through shared memory sixteen terms at a time. Operands are expressions, so patches are never stored.

use crate::emit::cuda::code::{Call, Code};

/// Results of a block along each side.
pub(super) const TILE: usize = 64;
/// Terms staged at a time.
const DEPTH: usize = 16;
/// Threads of a block.
pub(super) const THREADS: usize = 256;

/// One operand: how to compute its element, and which way consecutive threads should walk it.
pub(super) struct Side {
    /// Lines that set `v` from `m` (or `n`), `k` and the loop-invariant values; run only where those are in range.
    pub(super) lines: Vec<String>,
    /// Whether memory runs along `k`.
    pub(super) along_terms: bool,
}

/// `c(m, n) = sum over k of a(m, k) b(k, n)`, once for each `z`.
pub(super) struct Product<'s> {
    pub(super) family: &'static str,
    pub(super) ty: &'static str,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Terms of a sum: all of them, or those of one range where the sums are split.
    pub(super) terms: usize,
    /// Independent products.
    pub(super) count: usize,
    /// Lines after `z` is known: values the operands use, and `begin`, `end` where the terms are a range.
    pub(super) setup: Vec<String>,
    /// Whether `setup` declares `begin` and `end`.
    pub(super) ranged: bool,
    pub(super) a: Side,
    pub(super) b: Side,
    /// Stores `value` at `m`, `n`.
    pub(super) store: Store<'s>,
}

/// Writes the lines that do something with `value`.
pub(super) type Store<'s> = Box<dyn Fn(&mut Code<'_>) + 's>;

impl Product<'_> {
    pub(super) fn emit(&self, mut code: Code<'_>) -> Call {
        let ty = self.ty;
        let (row_blocks, col_blocks) = (self.rows.div_ceil(TILE), self.cols.div_ceil(TILE));
        code.line(format!("__shared__ float as[{DEPTH}][{TILE}];"));
        code.line(format!("__shared__ float bs[{DEPTH}][{TILE}];"));
        code.line(format!("const {ty} col_block = blockIdx.x % {col_blocks};"));
        code.line(format!("const {ty} row_block = blockIdx.x / {col_blocks} % {row_blocks};"));
        if self.count > 1 {
            code.line(format!("const {ty} z = blockIdx.x / {};", row_blocks * col_blocks));
        }
        self.setup.iter().for_each(|l| code.line(l));
        if !self.ranged {
            code.line(format!("const {ty} begin = 0;"));
            code.line(format!("const {ty} end = {};", self.terms));
        }
        code.line("const int tx = threadIdx.x % 16;");
        code.line("const int ty = threadIdx.x / 16;");
        code.line("float acc[4][4] = {};");
        code.open(format!("for ({ty} k0 = begin; k0 < end; k0 += {DEPTH})"));
        self.stage(&mut code, "as", "m", "row_block", self.rows, &self.a);
        self.stage(&mut code, "bs", "n", "col_block", self.cols, &self.b);
        code.line("__syncthreads();");
        code.line("#pragma unroll");
        code.open(format!("for (int k = 0; k < {DEPTH}; ++k)"));
        code.line("float ra[4];");
        code.line("float rb[4];");
        code.line("#pragma unroll");
        code.open("for (int i = 0; i < 4; ++i)");
        code.line("ra[i] = as[k][ty * 4 + i];");
        code.line("rb[i] = bs[k][tx * 4 + i];");
        code.close();
        code.line("#pragma unroll");
        code.open("for (int i = 0; i < 4; ++i)");
        code.line("#pragma unroll");
        code.open("for (int j = 0; j < 4; ++j)");
        code.line("acc[i][j] = fmaf(ra[i], rb[j], acc[i][j]);");
        code.close();
        code.close();
        code.close();
        code.line("__syncthreads();");
        code.close();
        code.line("#pragma unroll");
        code.open("for (int i = 0; i < 4; ++i)");
        code.line("#pragma unroll");
        code.open("for (int j = 0; j < 4; ++j)");
        code.line(format!("const {ty} m = row_block * {TILE} + ty * 4 + i;"));
        code.line(format!("const {ty} n = col_block * {TILE} + tx * 4 + j;"));
        code.open(format!("if (m < {} && n < {})", self.rows, self.cols));
        code.line("const float value = acc[i][j];");
        (self.store)(&mut code);
        code.close();
        code.close();
        code.close();
        code.finish(self.family, THREADS, [row_blocks * col_blocks * self.count, 1, 1])
    }

    /// Fills a tile of one operand.
    fn stage(&self, code: &mut Code<'_>, tile: &str, name: &str, block: &str, extent: usize, side: &Side) {
        let ty = self.ty;
        // Unrolled further, the bounds of patches need more predicates than there are, and ptxas spills them.
        code.line("#pragma unroll 2");
        code.open(format!("for (int j = 0; j < {}; ++j)", TILE * DEPTH / THREADS));
        code.line(format!("const int t = threadIdx.x + j * {THREADS};"));
        let (at, term) = if side.along_terms {
            (format!("t / {DEPTH}"), format!("t % {DEPTH}"))
        } else {
            (format!("t % {TILE}"), format!("t / {TILE}"))
        };
        code.line(format!("const {ty} {name} = {block} * {TILE} + {at};"));
        code.line(format!("const {ty} k = k0 + {term};"));
        code.line("float v = 0.0f;");
        code.open(format!("if ({name} < {extent} && k < end)"));
        side.lines.iter().for_each(|l| code.line(l));
        code.close();
        code.line(format!("{tile}[{term}][{at}] = v;"));
        code.close();
    }
}

/// Sums partial results of `count` groups, `size` elements each, in order; `store` deals with `value` at `i`.
pub(super) fn sum_groups(
    mut code: Code<'_>,
    family: &'static str,
    ty: &str,
    partials: &str,
    count: usize,
    size: usize,
    store: &Store<'_>,
) -> Call {
    use crate::emit::cuda::code::{BLOCK, blocks_for};
    code.formula(format!("sums {count} groups of {size} in order"));
    code.open(format!("for ({ty} i = blockIdx.x * {BLOCK} + threadIdx.x; i < {size}; i += ({ty})gridDim.x * {BLOCK})"));
    code.line(format!("float value = {partials}[i];"));
    code.open(format!("for (int group = 1; group < {count}; ++group)"));
    code.line(format!("value += {partials}[group * {size} + i];"));
    code.close();
    store(&mut code);
    code.close();
    code.finish(family, BLOCK, blocks_for(size, BLOCK))
}
