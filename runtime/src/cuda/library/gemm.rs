//! Which kernels of a plan are matrix products that cuBLASLt computes, and how it is told of them.
//!
//! The plan's matrices have any strides; the library's lie column by column, or so transposed. A product of which every
//! matrix has one unit stride, whose batch is stepped evenly, and whose epilogue (`finish.rs`) the library has, too, is
//! one call. Everything else stays with the plan's own kernel.

use std::collections::BTreeMap;

use slrc_plan::kernel::{Conv, ConvDirection, Matmul};
use slrc_plan::{Buffer, KernelOp, View};

use crate::cuda::library::finish::{Finish, Finished, finish};

/// Largest extent and number of products that the library takes.
const MOST: usize = i32::MAX as usize;

/// An element of a buffer of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) buffer: &'a str,
    /// In elements.
    pub(crate) offset: usize,
}

/// A matrix of each product, as it lies: columns of `rows` elements, `leading` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrix<'a> {
    /// Its first element, in the first product.
    pub(crate) at: Place<'a>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) leading: usize,
    /// Elements from one product's to the next one's; 0 where they share it.
    pub(crate) step: usize,
    /// Whether its transpose is multiplied.
    pub(crate) transposed: bool,
}

/// `result = finish(first second)`, `count` times. `result` is not transposed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gemm<'a> {
    pub(crate) count: usize,
    pub(crate) first: Matrix<'a>,
    pub(crate) second: Matrix<'a>,
    pub(crate) result: Matrix<'a>,
    pub(crate) finish: Finish<'a>,
}

/// How the library computes a kernel of a validated plan; `None` where it does not. `buffers` are the plan's, by id.
pub(crate) fn gemm<'a>(run: &'a KernelOp, buffers: &BTreeMap<&str, &Buffer>) -> Option<Gemm<'a>> {
    let problem = match run {
        KernelOp::Matmul(m) if m.b_sums.is_some() => return None,
        KernelOp::Matmul(m) => of_matmul(m),
        KernelOp::Conv(c) => of_pointwise(c)?,
        KernelOp::Map(_)
        | KernelOp::Row(_)
        | KernelOp::Reduce(_)
        | KernelOp::Attention(_)
        | KernelOp::Window(_)
        | KernelOp::Gather(_)
        | KernelOp::ScatterAdd(_)
        | KernelOp::Copy(_)
        | KernelOp::Fill(_)
        | KernelOp::Random(_) => return None,
    };
    if !run.made().is_empty() {
        return None;
    }
    problem.solve(finish(&run.product()?, buffers)?)
}

/// Elements `offset + row r + col c` of a buffer, with a stride for every dimension of the batch.
#[derive(Clone)]
struct Strided<'a> {
    at: Place<'a>,
    batch: Vec<usize>,
    row: usize,
    col: usize,
}

/// `c[m, n] = sum over k of a[m, k] b[k, n]`, for each element of the batch.
struct Problem<'a> {
    batch: &'a [usize],
    m: usize,
    n: usize,
    k: usize,
    a: Strided<'a>,
    b: Strided<'a>,
    c: Strided<'a>,
}

fn of_matmul(p: &Matmul) -> Problem<'_> {
    let strided = |v| Strided::new(v, p.batch.len());
    Problem { batch: &p.batch, m: p.m, n: p.n, k: p.k, a: strided(&p.a), b: strided(&p.b), c: strided(&p.c) }
}

/// A convolution whose windows are single pixels: a row a pixel, a column a channel.
fn of_pointwise(p: &Conv) -> Option<Problem<'_>> {
    if p.groups != 1 || !p.geometry.is_pointwise() {
        return None;
    }
    let pixels = p.batch * p.geometry.input[0] * p.geometry.input[1];
    let (ins, outs) = (p.in_channels, p.out_channels);
    let (x, w, y) = (Strided::rows(&p.x, ins), Strided::rows(&p.w, ins), Strided::rows(&p.y, outs));
    let (m, n, k, a, b, c) = match p.direction {
        ConvDirection::Forward => (pixels, outs, ins, x, w.transposed(), y),
        ConvDirection::InputGrad => (pixels, ins, outs, y, w, x),
        ConvDirection::WeightGrad => (outs, ins, pixels, y.transposed(), x, w),
    };
    Some(Problem { batch: &[], m, n, k, a, b, c })
}

impl<'a> Strided<'a> {
    /// A view whose first `batch` dimensions are the batch's and whose last two are the matrix's.
    fn new(v: &'a View, batch: usize) -> Strided<'a> {
        let at = Place { buffer: &v.buffer, offset: v.offset };
        Strided { at, batch: v.strides[..batch].to_vec(), row: v.strides[batch], col: v.strides[batch + 1] }
    }

    /// A dense view, as rows of `cols` elements.
    fn rows(v: &'a View, cols: usize) -> Strided<'a> {
        Strided { at: Place { buffer: &v.buffer, offset: v.offset }, batch: vec![], row: cols, col: 1 }
    }

    fn transposed(&self) -> Strided<'a> {
        Strided { row: self.col, col: self.row, ..self.clone() }
    }

    /// As columns, of this matrix or of its transpose.
    fn columns(&self, rows: usize, cols: usize, batch: &[usize]) -> Option<Matrix<'a>> {
        let step = even_step(batch, &self.batch)?;
        let lies = |rows: usize, cols: usize, row: usize, col: usize, transposed: bool| {
            // The stride of an extent of 1 says nothing.
            let leading = if cols == 1 { rows } else { col };
            let fits = (rows == 1 || row == 1) && leading >= rows;
            fits.then_some(Matrix { at: self.at, rows, cols, leading, step, transposed })
        };
        lies(rows, cols, self.row, self.col, false).or_else(|| lies(cols, rows, self.col, self.row, true))
    }
}

/// Elements from one product to the next, where all dimensions of the batch together are stepped evenly.
fn even_step(batch: &[usize], strides: &[usize]) -> Option<usize> {
    let dims: Vec<(usize, usize)> = batch.iter().copied().zip(strides.iter().copied()).filter(|d| d.0 > 1).collect();
    let even = dims.windows(2).all(|w| Some(w[0].1) == w[1].0.checked_mul(w[1].1));
    even.then(|| dims.last().map_or(0, |d| d.1))
}

impl<'a> Problem<'a> {
    fn solve(self, finished: Finished<'a>) -> Option<Gemm<'a>> {
        let Problem { batch, m, n, k, a, b, mut c } = self;
        let count = batch.iter().product();
        if [count, m, n, k].into_iter().any(|e| e == 0 || e > MOST) {
            return None;
        }
        if let Some(at) = finished.at {
            // An epilogue walks its product densely, and so what it stores.
            c = Strided { at, batch: dense_strides(batch, m * n), row: n, col: 1 };
        }
        // Rows of the plan are columns of the library: it multiplies the transposes in the other order.
        let by_rows = || -> Option<Gemm<'a>> {
            let first = b.transposed().columns(n, k, batch)?;
            let second = a.transposed().columns(k, m, batch)?;
            let result = c.transposed().columns(n, m, batch)?;
            Some(Gemm { count, first, second, result, finish: finished.finish.by_columns(n, m) })
        };
        let by_columns = || -> Option<Gemm<'a>> {
            let first = a.columns(m, k, batch)?;
            let second = b.columns(k, n, batch)?;
            let result = c.columns(m, n, batch)?;
            // Epilogues are along rows of the plan.
            let plain = finished.finish.is_plain();
            plain.then(|| Gemm { count, first, second, result, finish: finished.finish.by_columns(m, n) })
        };
        let sound = |g: &Gemm<'a>| !g.result.transposed && (count == 1 || g.result.step > 0);
        by_rows().filter(sound).or_else(|| by_columns().filter(sound))
    }
}

/// Strides of a batch of products of `size` elements each, one after the other.
fn dense_strides(batch: &[usize], size: usize) -> Vec<usize> {
    let mut strides = vec![0; batch.len()];
    let mut step = size;
    for (stride, extent) in strides.iter_mut().zip(batch).rev() {
        *stride = step;
        step *= extent;
    }
    strides
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
