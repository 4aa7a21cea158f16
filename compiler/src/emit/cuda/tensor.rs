//! The tiled product on tensor cores: operands rounded to TF32 or bf16 as they are staged, sums in f32.
//!
//! A block of eight warps has a tile of the result, a warp half of its rows and a quarter of its columns. Both formats
//! are staged as words of 32 bits, one TF32 or two bf16 of neighbouring terms, since the fragments of
//! `mma.m16n8k8` of the one and `mma.m16n8k16` of the other are the same words of the same lanes: lane `4 r + c` brings
//! words `c` and `c + 4` of rows `r` and `r + 8` (of a) and of column `r` (of b), and holds columns `2 c`, `2 c + 1`
//! of rows `r` and `r + 8` of the result (PTX ISA, warp-level matrix fragments).

use slrc_plan::Precision;

use crate::emit::cuda::code::Code;
use crate::emit::cuda::columns::Sharing;
use crate::emit::cuda::product::{Operand, Product, THREADS};

/// Words of a row staged at a time: two instructions deep.
pub(super) const WORDS: usize = 16;
/// Tiles by preference: the larger, the more often a staged number is used.
const TILES: [[usize; 2]; 4] = [[128, 128], [128, 64], [64, 128], [64, 64]];
/// Blocks that keep a large device busy: two for each of an A100's 108 multiprocessors.
const ENOUGH: usize = 216;

/// Rows and columns of a block's tile.
pub(super) fn tile(rows: usize, cols: usize, count: usize) -> [usize; 2] {
    let [.., smallest] = TILES;
    let blocks = |t: [usize; 2]| rows.div_ceil(t[0]) * cols.div_ceil(t[1]) * count;
    let area = |t: [usize; 2]| blocks(t) * t[0] * t[1];
    // An eighth of the work may be on what lies outside the result.
    let fits = |t: &[usize; 2]| blocks(*t) >= ENOUGH && area(*t) * 8 <= area(smallest) * 9;
    TILES.into_iter().find(fits).unwrap_or(smallest)
}

/// Terms in a word.
pub(super) fn packed(precision: Precision) -> usize {
    match precision {
        Precision::F32 | Precision::Tf32 => 1,
        Precision::Bf16 => 2,
    }
}

/// A shared array of one operand, declared so that neither staging nor fragments meet in a bank more than they must.
struct Staged<'s> {
    name: &'static str,
    extent: usize,
    operand: &'s Operand<'s>,
}

impl Staged<'_> {
    fn declare(&self, code: &mut Code<'_>) {
        let name = self.name;
        let (rows, cols) =
            if self.operand.side.along_terms { (self.extent, WORDS + 4) } else { (WORDS, self.extent + 8) };
        code.shared("unsigned int", name, &[rows, cols]);
    }

    fn at(&self, row: &str, word: &str) -> String {
        let name = self.name;
        if self.operand.side.along_terms { format!("{name}[{row}][{word}]") } else { format!("{name}[{word}][{row}]") }
    }

    /// Fills the array from term `k0` on.
    fn fill(&self, code: &mut Code<'_>, ty: &str, precision: Precision) {
        let (o, extent) = (self.operand, self.extent);
        code.line(format!("#pragma unroll {}", o.side.unrolled().div_ceil(packed(precision))));
        code.open(format!("for (int j = 0; j < {}; ++j)", extent * WORDS / THREADS));
        code.line(format!("const int t = threadIdx.x + j * {THREADS};"));
        let (row, word) = o.side.walk(extent, WORDS);
        code.line(format!("const {ty} {} = {} * {extent} + {row};", o.name, o.block));
        let to = self.at(&row, &word);
        match packed(precision) {
            1 => {
                code.line(format!("const {ty} k = k0 + {word};"));
                o.element(code);
                code.line(format!("{to} = tf32(v);"));
            }
            n => {
                code.line(format!("float pair[{n}];"));
                code.line("#pragma unroll");
                code.open(format!("for (int h = 0; h < {n}; ++h)"));
                code.line(format!("const {ty} k = k0 + {word} * {n} + h;"));
                o.element(code);
                code.line("pair[h] = v;");
                code.close();
                code.line(format!("{to} = bf16x2(pair[0], pair[1]);"));
            }
        }
        code.close();
    }
}

/// Computes a tile and hands its elements on, `value` at `m`, `n`, to the product's store.
pub(super) fn run(p: &Product<'_>, code: &mut Code<'_>, sharing: Sharing, a: &Operand<'_>, b: &Operand<'_>) {
    let tile = sharing.tile;
    let [rows, cols] = tile;
    let (down, across) = (rows / 32, cols / 32);
    let a = Staged { name: "as", extent: rows, operand: a };
    let b = Staged { name: "bs", extent: cols, operand: b };
    a.declare(code);
    b.declare(code);
    code.shared("float", "out", &[16, cols + 8]);
    code.line("const int warp_row = threadIdx.x / 128;");
    code.line("const int warp_col = threadIdx.x / 32 % 4;");
    code.line("const int lane_row = threadIdx.x % 32 / 4;");
    code.line("const int lane_col = threadIdx.x % 4;");
    code.line(format!("float acc[{down}][{across}][4] = {{}};"));
    let ty = p.ty;
    code.open(format!("for ({ty} k0 = begin; k0 < end; k0 += {})", WORDS * packed(p.precision)));
    a.fill(code, ty, p.precision);
    b.fill(code, ty, p.precision);
    code.line("__syncthreads();");
    code.line("#pragma unroll");
    code.open(format!("for (int step = 0; step < {WORDS}; step += 8)"));
    code.line("const int w = step + lane_col;");
    code.line(format!("unsigned int fa[{down}][4];"));
    code.line(format!("unsigned int fb[{across}][2];"));
    code.line("#pragma unroll");
    code.open(format!("for (int i = 0; i < {down}; ++i)"));
    code.line(format!("const int r = warp_row * {} + i * 16 + lane_row;", rows / 2));
    for (f, (row, word)) in [("r", "w"), ("r + 8", "w"), ("r", "w + 4"), ("r + 8", "w + 4")].into_iter().enumerate() {
        code.line(format!("fa[i][{f}] = {};", a.at(row, word)));
    }
    code.close();
    code.line("#pragma unroll");
    code.open(format!("for (int j = 0; j < {across}; ++j)"));
    code.line(format!("const int c = warp_col * {} + j * 8 + lane_row;", cols / 4));
    for (f, word) in ["w", "w + 4"].into_iter().enumerate() {
        code.line(format!("fb[j][{f}] = {};", b.at("c", word)));
    }
    code.close();
    code.line("#pragma unroll");
    code.open(format!("for (int i = 0; i < {down}; ++i)"));
    code.line("#pragma unroll");
    code.open(format!("for (int j = 0; j < {across}; ++j)"));
    code.line("multiply_add(acc[i][j], fa[i], fb[j]);");
    code.close();
    code.close();
    code.close();
    code.line("__syncthreads();");
    code.close();
    // Eight rows of every warp at a time go through shared memory, so that neighbours in a row store side by side.
    code.line("#pragma unroll");
    code.open(format!("for (int i = 0; i < {}; ++i)", 2 * down));
    code.line("#pragma unroll");
    code.open(format!("for (int j = 0; j < {across}; ++j)"));
    for e in ["", " + 1"] {
        let to = format!("out[warp_row * 8 + lane_row][warp_col * {} + j * 8 + lane_col * 2{e}]", cols / 4);
        code.line(format!("{to} = acc[i / 2][j][i % 2 * 2{e}];"));
    }
    code.close();
    code.line("__syncthreads();");
    let row = format!("t / {} * {} + i * 8 + t / {cols} % 8", 8 * cols, rows / 2);
    let work = |code: &mut Code<'_>| {
        code.line(format!("const float value = out[t / {cols}][t % {cols}];"));
        (p.store)(code, sharing);
    };
    each(p, code, tile, 16 * cols, &row, work);
    code.line("__syncthreads();");
    code.close();
}

/// Works on every element of the tile that lies in the result; `m`, `n` say which.
pub(super) fn each_of_tile(p: &Product<'_>, code: &mut Code<'_>, tile: [usize; 2], work: impl FnOnce(&mut Code<'_>)) {
    each(p, code, tile, tile[0] * tile[1], &format!("t / {}", tile[1]), work);
}

/// Shares `count` elements of a tile among the threads; element `t` lies in row `row` of the tile.
fn each(
    p: &Product<'_>,
    code: &mut Code<'_>,
    [rows, cols]: [usize; 2],
    count: usize,
    row: &str,
    work: impl FnOnce(&mut Code<'_>),
) {
    let ty = p.ty;
    code.line("#pragma unroll 1");
    code.open(format!("for (int t = threadIdx.x; t < {count}; t += {THREADS})"));
    code.line(format!("const {ty} m = row_block * {rows} + {row};"));
    code.line(format!("const {ty} n = col_block * {cols} + t % {cols};"));
    let inside: Vec<String> = [("m", p.rows, rows), ("n", p.cols, cols)]
        .iter()
        .filter(|(_, extent, tile)| !extent.is_multiple_of(*tile))
        .map(|(name, extent, _)| format!("{name} < {extent}"))
        .collect();
    if !inside.is_empty() {
        code.open(format!("if ({})", inside.join(" && ")));
    }
    work(code);
    if !inside.is_empty() {
        code.close();
    }
    code.close();
}

/// Device functions of a source file whose products are of this precision.
pub(super) fn prelude(precision: Precision) -> String {
    let (convert, terms, shape, format) = match precision {
        Precision::F32 => return String::new(),
        Precision::Tf32 => (TF32, 8, "m16n8k8", "tf32"),
        Precision::Bf16 => (BF16, 16, "m16n8k16", "bf16"),
    };
    format!(
        r#"{convert}
// c += a b of a warp: 16 rows, 8 columns, {terms} terms.
static __device__ __forceinline__ void multiply_add(
    float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {{
  asm("mma.sync.aligned.{shape}.row.col.f32.{format}.{format}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
"#
    )
}

const TF32: &str = r#"
// The nearest TF32, ties away from zero.
static __device__ __forceinline__ unsigned int tf32(float x) {
  unsigned int y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
"#;

const BF16: &str = r#"
// The nearest bf16 of two numbers, ties to even; the first in the lower half.
static __device__ __forceinline__ unsigned int bf16x2(float low, float high) {
  unsigned int y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_large_where_there_is_enough_to_do() {
        for (rows, cols, count, expected) in [
            // A convolution of ResNet-50's first stage, batch 64, and one of its last.
            (64 * 56 * 56, 64, 1, [128, 64]),
            (64 * 56 * 56, 256, 1, [128, 128]),
            (64 * 7 * 7, 512, 1, [64, 64]),
            // A weight gradient in 16 parts.
            (64, 576, 16, [64, 64]),
            (64, 64 * 56 * 56, 1, [64, 128]),
            (10, 128, 1, [64, 64]),
        ] {
            assert_eq!(tile(rows, cols, count), expected, "{rows} x {cols}, {count} times");
        }
    }
}
