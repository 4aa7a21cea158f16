//! Sums along the columns of a product's second operand, made as it is staged: a thread stages elements of one column,
//! and the blocks of the first row of tiles have every term of it. No sum is made of atomics: where the terms are cut
//! into ranges, the last block of a tile adds up the ranges in order.

use slrc_plan::region::{Region, Split};

use crate::emit::cuda::body::Body;
use crate::emit::cuda::code::Code;
use crate::emit::cuda::product::THREADS;
use crate::emit::cuda::reduce::Reductions;

/// The sums of an operand, and work on them.
pub(super) struct OperandSums<'a> {
    body: Body<'a>,
    reductions: Reductions,
    cols: usize,
    split: Option<&'a Split>,
}

impl<'a> OperandSums<'a> {
    pub(super) fn new(r: &'a Region) -> OperandSums<'a> {
        let body = Body::new(r);
        OperandSums { reductions: Reductions::of(&body), body, cols: r.space[1], split: r.split.as_ref() }
    }

    /// One past the largest position of any operand.
    pub(super) fn last(&self) -> usize {
        self.body.walk.end
    }

    /// The formula, for the head comment.
    pub(super) fn describe(&self, code: &mut Code<'_>) {
        code.formula("sums of b as it is read");
        self.body.describe(code);
    }

    /// Declares a thread's accumulator.
    pub(super) fn begin(&self, code: &mut Code<'_>) {
        code.line("float staged = 0.0f;");
    }

    /// Adds an element that is staged, `v`: zero outside of the operand.
    pub(super) fn add(&self, code: &mut Code<'_>) {
        code.line("staged += v;");
    }

    /// Sums up the columns of a tile `width` wide; then works on the sums, or leaves those of a range for `combine`.
    pub(super) fn end(&self, code: &mut Code<'_>, ty: &str, width: usize) {
        let turns = THREADS / width;
        code.shared("float", "sums", &[turns, width]);
        code.open("if (row_block == 0)");
        code.line(format!("sums[threadIdx.x / {width}][threadIdx.x % {width}] = staged;"));
        code.line("__syncthreads();");
        self.each_column(code, ty, width, |code| {
            code.line("float total = sums[0][threadIdx.x];");
            code.open(format!("for (int h = 1; h < {turns}; ++h)"));
            code.line("total += sums[h][threadIdx.x];");
            code.close();
            match self.split {
                Some(s) => {
                    let to = self.part(code, s, "z");
                    code.line(format!("{to} = total;"));
                }
                None => self.tail(code, ty),
            }
        });
        code.close();
    }

    /// Adds up what blocks found of the ranges of a tile's terms, in the last of them.
    pub(super) fn combine(&self, code: &mut Code<'_>, ty: &str, width: usize) {
        let Some(s) = self.split else { return };
        code.open("if (row_block == 0)");
        self.each_column(code, ty, width, |code| {
            let part = self.part(code, s, "range");
            code.line("float total = 0.0f;");
            code.line("#pragma unroll 4");
            code.open(format!("for (int range = 0; range < {}; ++range)", s.count));
            code.line(format!("total += {part};"));
            code.close();
            self.tail(code, ty);
        });
        code.close();
    }

    /// Lets one thread of each column go on; it knows the column as `position`.
    fn each_column(&self, code: &mut Code<'_>, ty: &str, width: usize, work: impl FnOnce(&mut Code<'_>)) {
        code.line(format!("const {ty} position = col_block * {width} + threadIdx.x;"));
        code.open(format!("if (threadIdx.x < {width} && position < {})", self.cols));
        work(code);
        code.close();
    }

    fn tail(&self, code: &mut Code<'_>, ty: &str) {
        for (v, ..) in &self.reductions.accumulated {
            code.line(format!("const float {} = total;", self.body.values[*v].name));
        }
        self.reductions.tail(code, &self.body, ty);
    }

    /// The sum of a range of terms in memory.
    fn part(&self, code: &mut Code<'_>, s: &Split, range: &str) -> String {
        let p = code.pointer(&s.partials.buffer, true);
        let each = self.reductions.accumulated.len() * self.cols;
        format!("{p}[{} + {range} * {each} + position]", s.partials.offset)
    }
}
