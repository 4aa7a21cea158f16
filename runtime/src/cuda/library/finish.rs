//! Which epilogues of a product NVIDIA's libraries have, too.

use std::collections::BTreeMap;

use slrc_plan::kernel::Product;
use slrc_plan::region::Region;
use slrc_plan::scalar::ScalarFn;
use slrc_plan::statement::{Arg, Statement, StatementOp};
use slrc_plan::{Buffer, DType, View};

use crate::cuda::library::gemm::{Matrix, Place};

/// What the library does with a product before it stores it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Finish<'a> {
    /// Nothing.
    Nothing,
    /// Multiplies it by a constant.
    Scaled(f32),
    /// Adds a matrix that lies as the result does.
    Added(Matrix<'a>),
    /// Adds a vector to every column.
    Biased(Place<'a>),
    /// The same, and then replaces what is below zero by zero.
    BiasedRelu(Place<'a>),
}

/// What is done with a product, before it is known how the library sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Work<'a> {
    Nothing,
    Scaled(f32),
    /// The other summand lies at this place, densely.
    Added(Place<'a>),
    Biased(Place<'a>),
    BiasedRelu(Place<'a>),
}

/// An epilogue that the library has.
pub(super) struct Finished<'a> {
    pub(super) finish: Work<'a>,
    /// Where the result lies, densely; absent where it is the product's own place.
    pub(super) at: Option<Place<'a>>,
}

impl<'a> Work<'a> {
    /// Whether it is the same along rows and columns.
    pub(super) fn is_plain(self) -> bool {
        match self {
            Work::Nothing | Work::Scaled(_) => true,
            Work::Added(_) | Work::Biased(_) | Work::BiasedRelu(_) => false,
        }
    }

    /// For results whose columns have `rows` elements.
    pub(super) fn by_columns(self, rows: usize, cols: usize) -> Finish<'a> {
        match self {
            Work::Nothing => Finish::Nothing,
            Work::Scaled(factor) => Finish::Scaled(factor),
            Work::Added(at) => {
                Finish::Added(Matrix { at, rows, cols, leading: rows, step: rows * cols, transposed: false })
            }
            Work::Biased(at) => Finish::Biased(at),
            Work::BiasedRelu(at) => Finish::BiasedRelu(at),
        }
    }
}

/// The library's equivalent of a product's epilogue, if it has one.
pub(super) fn finish<'a>(p: &Product<'a>, buffers: &BTreeMap<&str, &Buffer>) -> Option<Finished<'a>> {
    let Some(r) = p.epilogue else { return Some(Finished { finish: Work::Nothing, at: None }) };
    let [store] = &r.stores[..] else { return None };
    if !r.reduce.is_empty() {
        return None;
    }
    let is_f32 = |v: &View| buffers.get(v.buffer.as_str()).is_some_and(|b| b.dtype == DType::F32);
    // A product that somebody reads later would have to be stored besides.
    let kept = store.view.buffer != p.to.buffer
        && buffers.get(p.to.buffer.as_str()).and_then(|b| b.live).is_none_or(|l| l.first < l.last);
    if kept || !is_f32(&store.view) || !store.view.is_dense(&r.space) {
        return None;
    }
    let product: Vec<&str> = r.loads.iter().filter(|l| l.view.buffer == p.to.buffer).map(|l| l.name.as_str()).collect();
    let [product] = product[..] else { return None };
    let others: Vec<_> = r.loads.iter().filter(|l| l.name != product).collect();
    if !others.iter().all(|l| is_f32(&l.view)) {
        return None;
    }
    let formula = formula(&r.body, &store.value, product)?;
    let other = |name: &str| others.iter().find(|l| l.name == name).map(|l| &l.view);
    let finish = match formula {
        Formula::Scaled(factor) => Work::Scaled(factor),
        Formula::Sum { with, relu } => {
            let view = other(with)?;
            let at = Place { buffer: &view.buffer, offset: view.offset };
            match (is_bias(r, view, p.cols), relu) {
                (true, false) => Work::Biased(at),
                (true, true) => Work::BiasedRelu(at),
                (false, false) if view.is_dense(&r.space) => Work::Added(at),
                (false, _) => return None,
            }
        }
    };
    Some(Finished { finish, at: Some(Place { buffer: &store.view.buffer, offset: store.view.offset }) })
}

/// Whether a view is a vector along the columns of a product, the same for all rows.
fn is_bias(r: &Region, view: &View, cols: usize) -> bool {
    let dims: Vec<(usize, usize)> =
        r.space.iter().copied().zip(view.strides.iter().copied()).filter(|d| d.0 > 1).collect();
    let rows: usize = r.space.iter().product::<usize>() / cols;
    match dims.split_last() {
        // One row, or one column: told from a matrix by nothing, and a matrix will do.
        _ if rows == 1 || cols == 1 => false,
        Some((&(extent, stride), outer)) => extent == cols && stride == 1 && outer.iter().all(|d| d.1 == 0),
        None => false,
    }
}

enum Formula<'a> {
    Scaled(f32),
    Sum { with: &'a str, relu: bool },
}

/// What `value` is, where the body is one of the few forms that the library has.
fn formula<'a>(body: &'a [Statement], value: &str, product: &str) -> Option<Formula<'a>> {
    match body {
        [s] if s.name == value => match (s.op, &s.args[..]) {
            (StatementOp::Scalar(ScalarFn::Mul), [Arg::Value(x), Arg::Number(f)] | [Arg::Number(f), Arg::Value(x)])
                if x == product && f.is_finite() =>
            {
                Some(Formula::Scaled(*f))
            }
            _ => Some(Formula::Sum { with: other_summand(s, product)?, relu: false }),
        },
        [s, positive, chosen] if chosen.name == value => {
            let with = other_summand(s, product)?;
            let is = |a: &Arg, name: &str| matches!(a, Arg::Value(v) if v == name);
            let zero = |a: &Arg| matches!(a, Arg::Number(x) if *x == 0.0);
            let compares = positive.op == StatementOp::Scalar(ScalarFn::Lt)
                && matches!(&positive.args[..], [a, b] if zero(a) && is(b, &s.name));
            let chooses = chosen.op == StatementOp::Scalar(ScalarFn::Select)
                && matches!(&chosen.args[..], [a, b, c] if is(a, &positive.name) && is(b, &s.name) && zero(c));
            (compares && chooses).then_some(Formula::Sum { with, relu: true })
        }
        _ => None,
    }
}

/// What a statement adds to the product.
fn other_summand<'a>(s: &'a Statement, product: &str) -> Option<&'a str> {
    match (s.op, &s.args[..]) {
        (StatementOp::Scalar(ScalarFn::Add), [Arg::Value(a), Arg::Value(b)]) if a != b => {
            (a == product).then_some(b.as_str()).or((b == product).then_some(a.as_str()))
        }
        _ => None,
    }
}
