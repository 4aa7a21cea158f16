//! The tiled matrix product behind matmul and the three convolutions: 64 x 64 results a block, 4 x 4 a thread, operands
//! staged through shared memory sixteen terms at a time. Operands are expressions, so patches are never stored. Where
//! operands are rounded, tensor cores do the sums (`tensor.rs`).

use slrc_plan::Precision;

use crate::emit::cuda::code::{Call, Code, Registers, Rows};
use crate::emit::cuda::columns::Sharing;
use crate::emit::cuda::epilogue::Epilogue;
use crate::emit::cuda::operand_sums::OperandSums;
use crate::emit::cuda::tensor;

/// Results of a block along each side.
const TILE: usize = 64;
/// Added to a row of a staged operand: consecutive terms then lie in other banks of shared memory, and rows begin on
/// 16 bytes.
const PAD: usize = 4;
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
    /// Whether elements are made rather than read.
    pub(super) made: bool,
}

impl Side {
    /// How often a loop that stages elements is unrolled, at most. Further, the bounds of patches need more predicates
    /// than there are, and ptxas spills them; and so do the values that an element is made of.
    pub(super) fn unrolled(&self) -> usize {
        if self.made { 1 } else { 2 }
    }

    /// Which row (or column) and which term of a tile of `extent x depth` the thread's element `t` is: neighbours in
    /// memory are neighbouring threads'.
    pub(super) fn walk(&self, extent: usize, depth: usize) -> (String, String) {
        if self.along_terms {
            (format!("t / {depth}"), format!("t % {depth}"))
        } else {
            (format!("t % {extent}"), format!("t / {extent}"))
        }
    }
}

/// `c(m, n) = sum over k of a(m, k) b(k, n)`, once for each `z`.
pub(super) struct Product<'s> {
    pub(super) family: &'static str,
    /// What the operands are rounded to.
    pub(super) precision: Precision,
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
    /// What is done with the elements of a tile besides, where that is more than one at a time.
    pub(super) epilogue: Option<&'s Epilogue<'s>>,
    /// What becomes of sums of ranges.
    pub(super) sum: Option<Sum<'s>>,
    /// Sums of the second operand, which is not walked along the terms.
    pub(super) sums: Option<&'s OperandSums<'s>>,
}

/// The sum of partial results, made by the last block to finish a tile.
pub(super) struct Sum<'s> {
    /// Number of ranges; of the products, those that differ in the range are `count / ranges` apart.
    pub(super) ranges: usize,
    /// The partial result of range `range` at `m`, `n`, an expression.
    pub(super) partial: String,
    /// Stores `value`, the sum at `m`, `n`.
    pub(super) store: Store<'s>,
}

/// Writes the lines that do something with `value`.
pub(super) type Store<'s> = Box<dyn Fn(&mut Code<'_>, Sharing) + 's>;

/// A side of a product with where it lies in it.
pub(super) struct Operand<'s> {
    pub(super) side: &'s Side,
    /// Sums of its elements.
    sums: Option<&'s OperandSums<'s>>,
    /// `m` or `n`.
    pub(super) name: &'static str,
    /// The variable that says which block of the rows or columns.
    pub(super) block: &'static str,
    /// Rows, or columns.
    extent: usize,
}

impl Operand<'_> {
    /// Declares `v`, the element at `m` (or `n`) and `k`: zero outside.
    pub(super) fn element(&self, code: &mut Code<'_>) {
        code.line("float v = 0.0f;");
        code.open(format!("if ({} < {} && k < end)", self.name, self.extent));
        self.side.lines.iter().for_each(|l| code.line(l));
        code.close();
        if let Some(s) = self.sums {
            s.add(code);
        }
    }
}

impl Product<'_> {
    pub(super) fn emit(&self, mut code: Code<'_>) -> Call {
        let ty = self.ty;
        let tile = match self.precision {
            Precision::F32 => [TILE; 2],
            Precision::Tf32 | Precision::Bf16 => tensor::tile(self.rows, self.cols, self.count),
        };
        let (row_blocks, col_blocks) = (self.rows.div_ceil(tile[0]), self.cols.div_ceil(tile[1]));
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
        let a = Operand { side: &self.a, sums: None, name: "m", block: "row_block", extent: self.rows };
        let b = Operand { side: &self.b, sums: self.sums, name: "n", block: "col_block", extent: self.cols };
        let sharing = match self.precision {
            Precision::F32 => Sharing { tile, each: 4, index: "j" },
            Precision::Tf32 | Precision::Bf16 => Sharing { tile, each: 1, index: "0" },
        };
        if let Some(e) = self.epilogue {
            e.begin(&mut code, sharing);
        }
        if let Some(s) = self.sums {
            s.begin(&mut code);
        }
        match self.precision {
            Precision::F32 => self.run(&mut code, &a, &b, sharing),
            Precision::Tf32 | Precision::Bf16 => {
                code.formula(format!("operands rounded to {}, sums in f32", self.precision.name()));
                tensor::run(self, &mut code, sharing, &a, &b);
            }
        }
        if let Some(e) = self.epilogue {
            e.end(&mut code, ty, sharing);
        }
        if let Some(s) = self.sums {
            s.end(&mut code, ty, tile[1]);
        }
        if let Some(sum) = &self.sum {
            let tiles = row_blocks * col_blocks * (self.count / sum.ranges);
            code.last_block(&format!("blockIdx.x % {tiles}"), sum.ranges);
            if let Some(s) = self.sums {
                s.combine(&mut code, ty, tile[1]);
            }
            let work = |code: &mut Code<'_>| {
                code.line("float value = 0.0f;");
                code.open(format!("for (int range = 0; range < {}; ++range)", sum.ranges));
                code.line(format!("value += {};", sum.partial));
                code.close();
                (sum.store)(code, sharing);
            };
            match self.precision {
                Precision::F32 => self.each(&mut code, false, work),
                Precision::Tf32 | Precision::Bf16 => tensor::each_of_tile(self, &mut code, tile, work),
            }
        }
        let call = code.finish(self.family, THREADS, [row_blocks * col_blocks * self.count, 1, 1]);
        let whole = self.count == 1
            && self.sum.is_none()
            && self.sums.is_none()
            && self.epilogue.is_none_or(Epilogue::is_elementwise);
        let rows = if whole { Rows::Tiles { tile: tile[0], across: col_blocks } } else { Rows::Unknown };
        // Left to itself, ptxas aims at more blocks, and spills where an epilogue needs registers.
        Call { registers: Registers::All, rows, ..call }
    }

    /// Computes a tile, 4 x 4 elements a thread, and hands them on, `value` at `m`, `n`, to the store.
    fn run(&self, code: &mut Code<'_>, a: &Operand<'_>, b: &Operand<'_>, sharing: Sharing) {
        let ty = self.ty;
        for name in ["as", "bs"] {
            code.shared("float", name, &[DEPTH, TILE + PAD]);
        }
        code.line("const int tx = threadIdx.x % 16;");
        code.line("const int ty = threadIdx.x / 16;");
        code.line("float acc[4][4] = {};");
        code.open(format!("for ({ty} k0 = begin; k0 < end; k0 += {DEPTH})"));
        self.stage(code, "as", a);
        self.stage(code, "bs", b);
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
        self.each(code, true, |code| {
            code.line("const float value = acc[i][j];");
            (self.store)(code, sharing);
        });
    }

    /// Does something with each of a thread's results. Where an extent is a multiple of four, either all four of a
    /// thread's rows (or columns) are there or none is.
    fn each(&self, code: &mut Code<'_>, unrolled: bool, work: impl Fn(&mut Code<'_>)) {
        let ty = self.ty;
        let unroll = if unrolled { "#pragma unroll" } else { "#pragma unroll 1" };
        let sides = [("m", "row_block", "ty", "i", self.rows), ("n", "col_block", "tx", "j", self.cols)];
        let together = |extent: usize| extent.is_multiple_of(4);
        for (_, block, thread, _, extent) in sides.iter().filter(|s| together(s.4)) {
            code.open(format!("if ({block} * {TILE} + {thread} * 4 < {extent})"));
        }
        for (name, block, thread, step, extent) in sides {
            code.line(unroll);
            code.open(format!("for (int {step} = 0; {step} < 4; ++{step})"));
            code.line(format!("const {ty} {name} = {block} * {TILE} + {thread} * 4 + {step};"));
            if !together(extent) {
                code.open(format!("if ({name} < {extent})"));
            }
        }
        work(code);
        // A loop and a condition a side.
        sides.iter().for_each(|_| {
            code.close();
            code.close();
        });
    }

    /// Fills a tile of one operand.
    fn stage(&self, code: &mut Code<'_>, tile: &str, o: &Operand<'_>) {
        let ty = self.ty;
        code.line(format!("#pragma unroll {}", o.side.unrolled()));
        code.open(format!("for (int j = 0; j < {}; ++j)", TILE * DEPTH / THREADS));
        code.line(format!("const int t = threadIdx.x + j * {THREADS};"));
        let (at, term) = o.side.walk(TILE, DEPTH);
        code.line(format!("const {ty} {} = {} * {TILE} + {at};", o.name, o.block));
        code.line(format!("const {ty} k = k0 + {term};"));
        o.element(code);
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
    store: impl FnOnce(&mut Code<'_>),
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
