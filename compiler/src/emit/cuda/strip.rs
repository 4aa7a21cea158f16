//! Products of a strip: some rows of one matrix, which stay in shared memory, on ordinary cores or, where operands are
//! rounded, on tensor cores (`strip_tensor.rs`).
//!
//! Names the code finds: `s`, all matrices' rows, one matrix behind the other; `r0`, the strip's first row; `z0`, `z1`
//! and so on, the batch at hand.

use slrc_plan::attention::{Attention, Contraction, Score};
use slrc_plan::{Precision, View};

use crate::emit::cuda::code::{BLOCK, Code, sum, times};
use crate::emit::cuda::strip_tensor as tensor;

/// Columns of a tile.
pub(super) const TILE: usize = 64;
/// Terms staged at a time.
const DEPTH: usize = 16;
/// Groups of threads that share a column of a tile: each takes a part of the strip's rows.
const GROUPS: usize = BLOCK / TILE;
/// Strips a block may have, highest first.
const STRIPS: [usize; 4] = [32, 16, 8, 4];
/// Words of shared memory that every device has for a block.
const SHARED: usize = (48 << 10) / 4;

/// The rows a block holds of every matrix.
pub(super) struct Strip {
    /// Rows and columns of a matrix.
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows of the strip.
    pub(super) height: usize,
    /// Numbers from the beginning of a row to that of the next.
    pub(super) pitch: usize,
    pub(super) precision: Precision,
}

impl Strip {
    /// As high as fits, but no higher than there are rows.
    pub(super) fn of(a: &Attention, precision: Precision) -> Strip {
        let (rows, cols) = (a.rows(), a.cols());
        let fits = |height: usize, pitch: usize| a.held() * height * pitch + staged(height, precision) <= SHARED;
        let enough = STRIPS.iter().rev().find(|h| **h >= rows).copied().unwrap_or(STRIPS[0]);
        let most = STRIPS.into_iter().find(|&h| fits(h, cols)).expect("invariant: fusion leaves out what does not fit");
        let height = most.min(enough);
        let apart = tensor::pitch(cols);
        let pitch = if precision == Precision::F32 || !fits(height, apart) { cols } else { apart };
        Strip { rows, cols, height, pitch, precision }
    }

    /// Numbers of a matrix that are held.
    pub(super) fn elements(&self) -> usize {
        self.height * self.pitch
    }

    /// Declares what products need; `products` says whether there are some besides results.
    pub(super) fn declare(&self, code: &mut Code<'_>, products: bool) {
        match self.precision {
            Precision::F32 => {}
            Precision::Tf32 | Precision::Bf16 => return tensor::declare(self, code, products),
        }
        if products {
            code.shared("float", "as", &[DEPTH, self.height]);
        }
        code.shared("float", "bs", &[DEPTH, TILE]);
        code.line(format!("const int tx = threadIdx.x % {TILE};"));
        code.line(format!("const int ty = threadIdx.x / {TILE};"));
    }

    /// An element of matrix `i`.
    pub(super) fn held(&self, i: usize, row: &str, col: &str) -> String {
        let inside = format!("{row} * {} + {col}", self.pitch);
        if i == 0 { format!("s[{inside}]") } else { format!("s[{} + {inside}]", i * self.elements()) }
    }

    /// Where matrix `i` begins.
    fn matrix(&self, i: usize) -> String {
        if i == 0 { "s".into() } else { format!("s + {}", i * self.elements()) }
    }

    /// Makes matrix `i` a product.
    pub(super) fn product(&self, code: &mut Code<'_>, ty: &str, i: usize, p: &Score) {
        match self.precision {
            Precision::F32 => {}
            Precision::Tf32 | Precision::Bf16 => return tensor::product(self, code, ty, i, p),
        }
        let (strip, each) = (self.height, self.height / GROUPS);
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
        stage(code, ty, &p.b, p.k, self.cols);
        code.line("__syncthreads();");
        code.line("#pragma unroll");
        code.open(format!("for (int k = 0; k < {DEPTH}; ++k)"));
        code.line("const float b = bs[k][tx];");
        self.each(code, &format!("acc[i] = fmaf(as[k][ty * {each} + i], b, acc[i]);"));
        code.close();
        code.line("__syncthreads();");
        code.close();
        code.open(format!("if (n0 + tx < {})", self.cols));
        let (matrix, pitch) = (self.matrix(i), self.pitch);
        self.each(code, &format!("({matrix})[(ty * {each} + i) * {pitch} + n0 + tx] = acc[i];"));
        code.close();
        code.close();
    }

    /// A result of matrix `i`.
    pub(super) fn contraction(&self, code: &mut Code<'_>, ty: &str, i: usize, r: &Contraction) {
        match self.precision {
            Precision::F32 => {}
            Precision::Tf32 | Precision::Bf16 => return tensor::contraction(self, code, ty, i, r),
        }
        let (each, cols, pitch) = (self.height / GROUPS, self.cols, self.pitch);
        code.open(format!("for ({ty} n0 = 0; n0 < {}; n0 += {TILE})", r.width));
        code.line(format!("float acc[{each}] = {{}};"));
        code.open(format!("for ({ty} k0 = 0; k0 < {cols}; k0 += {DEPTH})"));
        stage(code, ty, &r.by, cols, r.width);
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
        self.each(code, &format!("acc[i] = fmaf(({matrix})[(ty * {each} + i) * {pitch} + k0 + k], b, acc[i]);"));
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
        code.open(format!("for (int i = 0; i < {}; ++i)", self.height / GROUPS));
        code.line(line);
        code.close();
    }
}

/// Words that the operands of a strip's products take while they are staged.
fn staged(height: usize, precision: Precision) -> usize {
    match precision {
        Precision::F32 => DEPTH * (height + TILE),
        Precision::Tf32 | Precision::Bf16 => tensor::words(height) + tensor::words(TILE),
    }
}

/// The element of an operand at the batch at hand and two coordinates.
pub(super) fn element(pointer: &str, v: &View, first: &str, second: &str) -> String {
    let d = v.strides.len() - 2;
    let names = (0..d).map(|i| format!("z{i}")).chain([first.to_string(), second.to_string()]);
    let mut terms: Vec<String> =
        names.zip(&v.strides).filter(|(_, s)| **s != 0).map(|(name, &s)| times(&name, s)).collect();
    if v.offset != 0 {
        terms.push(v.offset.to_string());
    }
    format!("{pointer}[{}]", sum(terms))
}

/// Stages `bs[k][n]` from an operand, zeros outside.
fn stage(code: &mut Code<'_>, ty: &str, v: &View, terms: usize, cols: usize) {
    let p = code.pointer(&v.buffer, false);
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
