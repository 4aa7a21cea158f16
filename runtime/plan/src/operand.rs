//! What a kernel touches: its operands, with all that a device may rely on.

use crate::attention::Attention;
use crate::buffer::DType;
use crate::kernel::{ConvDirection, KernelOp, Product, WindowOp};
use crate::prologue::Made;
use crate::region::{Load, Region, Store};
use crate::view::View;

/// How a kernel uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Only written; every element of the index space.
    Write,
}

/// What an operand is to a kernel's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What the family is defined by.
    Own,
    /// Read by the elementwise work of this number.
    Load(usize),
    /// Read to make an element of an operand.
    Made,
    /// Written by it, each element after its loads of the same index.
    Store(usize),
    /// Written by the work on attention's rows.
    Row,
}

/// An operand of a kernel. Devices rely on `dtypes` and `dense`; [`crate::validate`] proves them.
#[derive(Clone, Debug)]
pub struct Operand<'a> {
    /// How it is used.
    pub access: Access,
    /// For what.
    pub role: Role,
    /// Which elements.
    pub view: &'a View,
    /// Index space of the view.
    pub space: Vec<usize>,
    /// Element types its buffer may have.
    pub dtypes: &'static [DType],
    /// Whether its elements lie one after the other in the order of the index space.
    pub dense: bool,
}

const NUMBERS: &[DType] = &[DType::F32];
const INDICES: &[DType] = &[DType::I32];
/// Positions in a window.
const POSITIONS: &[DType] = &[DType::U8, DType::I32];
/// What a region computes: numbers and flags.
const RESULTS: &[DType] = &[DType::F32, DType::U8, DType::Bit];
/// What a region reads.
const VALUES: &[DType] = &[DType::F32, DType::I32, DType::U8, DType::Bit];
/// Elements of whole bytes.
const ANY: &[DType] = &[DType::F32, DType::I32, DType::U8];

impl<'a> Operand<'a> {
    fn read(view: &'a View, space: &[usize]) -> Operand<'a> {
        Operand { access: Access::Read, role: Role::Own, view, space: space.to_vec(), dtypes: NUMBERS, dense: false }
    }

    fn write(view: &'a View, space: &[usize]) -> Operand<'a> {
        Operand::read(view, space).written()
    }

    fn written(self) -> Operand<'a> {
        Operand { access: Access::Write, ..self }
    }

    fn role(self, role: Role) -> Operand<'a> {
        Operand { role, ..self }
    }

    fn of(self, dtypes: &'static [DType]) -> Operand<'a> {
        Operand { dtypes, ..self }
    }

    fn dense(self) -> Operand<'a> {
        Operand { dense: true, ..self }
    }

    /// Whether another view of the same buffer takes the same element at every index.
    pub fn walks_with(&self, other: &View) -> bool {
        let strides = self.space.iter().zip(self.view.strides.iter().zip(&other.strides));
        self.view.offset == other.offset && strides.into_iter().all(|(&extent, (a, b))| extent == 1 || a == b)
    }
}

impl KernelOp {
    /// Every operand, reads before writes. The kernel must be well formed (see [`crate::validate`]): geometries have
    /// two dimensions, reduced dimensions exist.
    pub fn operands(&self) -> Vec<Operand<'_>> {
        match self {
            KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => {
                work(r, 0, r.loads.iter(), r.stores.iter()).concat()
            }
            KernelOp::Attention(a) => attention_operands(a),
            KernelOp::Matmul(m) => {
                let with = |tail: [usize; 2]| [&m.batch[..], &tail].concat();
                let mut out = vec![Operand::read(&m.a, &with([m.m, m.k])), Operand::read(&m.b, &with([m.k, m.n]))];
                let [loads, stores] = epilogue_operands(&m.product());
                out.extend(loads);
                out.extend(m.made().flat_map(made_operands));
                let sums = m.b_sums.as_ref().map(|r| work(r, 1, m.other_sum_loads(), r.stores.iter()));
                let [loads, sums] = sums.unwrap_or_default();
                out.extend(loads);
                if let Some(s) = &m.split {
                    out.push(Operand::write(&s.partials, &[s.count, m.m, m.n]).dense());
                }
                out.push(Operand::write(&m.c, &with([m.m, m.n])));
                out.extend(stores);
                out.extend(sums);
                out
            }
            KernelOp::Conv(c) => {
                let g = &c.geometry;
                let x = [c.batch, g.input[0], g.input[1], c.in_channels];
                let y = [c.batch, g.output[0], g.output[1], c.out_channels];
                let w = [c.out_channels, g.kernel[0], g.kernel[1], c.in_channels / c.groups.max(1)];
                let weights: usize = w.iter().product();
                let (x, w, y) = (Operand::read(&c.x, &x), Operand::read(&c.w, &w), Operand::read(&c.y, &y));
                let (a, b, result) = match c.direction {
                    ConvDirection::Forward => (x, w, y.written()),
                    ConvDirection::InputGrad => (w, y, x.written()),
                    ConvDirection::WeightGrad => (x, y, w.written()),
                };
                let [loads, stores] = epilogue_operands(&c.product());
                let mut out = vec![a.dense(), b.dense()];
                out.extend(loads);
                out.extend(c.made().flat_map(made_operands));
                out.push(result.dense());
                if let Some(s) = &c.split {
                    out.push(Operand::write(&s.partials, &[s.count, weights]).dense());
                }
                if let Some(p) = &c.packed {
                    out.push(Operand::write(p, &[c.workspace().unwrap_or(0)]).dense());
                }
                out.extend(stores);
                out
            }
            KernelOp::Window(w) => {
                let g = &w.geometry;
                let large = Operand::read(&w.large, &[w.batch, g.input[0], g.input[1], w.channels]);
                let extents = [w.batch, g.output[0], g.output[1], w.channels];
                let small = Operand::read(&w.small, &extents);
                let mut out = Vec::new();
                if let Some(i) = &w.index {
                    out.push(Operand::read(i, &extents).of(POSITIONS));
                }
                match w.op {
                    WindowOp::MaxIndex => out.extend([large, small.written().of(POSITIONS)]),
                    WindowOp::Select | WindowOp::Sum => out.extend([large, small.written()]),
                    WindowOp::Unselect | WindowOp::Spread => {
                        out.extend([small, large.written()]);
                    }
                }
                out.into_iter().map(Operand::dense).collect()
            }
            KernelOp::Gather(g) => vec![
                Operand::read(&g.table, &[g.table_rows, g.width]),
                Operand::read(&g.index, &[g.count]).of(INDICES),
                Operand::write(&g.rows, &[g.count, g.width]),
            ],
            KernelOp::ScatterAdd(g) => vec![
                Operand::read(&g.index, &[g.count]).of(INDICES),
                Operand::read(&g.rows, &[g.count, g.width]),
                Operand::write(&g.table, &[g.table_rows, g.width]),
            ],
            KernelOp::Copy(c) => {
                vec![Operand::read(&c.from, &c.space).of(ANY), Operand::write(&c.to, &c.space).of(ANY)]
            }
            KernelOp::Fill(f) => vec![Operand::write(&f.to, &f.space).of(ANY)],
            KernelOp::Random(r) => vec![Operand::write(&r.to, &[r.count])],
        }
    }

    /// Applies `f` to the buffer id of every operand.
    pub fn rename_buffers(&mut self, f: &mut dyn FnMut(&mut String)) {
        for p in self.prologues_mut() {
            p.loads.iter_mut().for_each(|l| f(&mut l.view.buffer));
        }
        let mut views: Vec<&mut View> = Vec::new();
        match self {
            KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => views.extend(region_views(r)),
            KernelOp::Attention(a) => {
                views.extend(a.products.iter_mut().flat_map(|p| [&mut p.a, &mut p.b]));
                views.extend(a.results.iter_mut().flat_map(|r| [&mut r.by, &mut r.to]));
                views.extend(region_views(&mut a.region));
            }
            KernelOp::Matmul(m) => {
                views.extend([&mut m.a, &mut m.b, &mut m.c]);
                views.extend(m.split.iter_mut().map(|s| &mut s.partials));
                views.extend(m.epilogue.iter_mut().chain(&mut m.b_sums).flat_map(region_views));
            }
            KernelOp::Conv(c) => {
                views.extend([&mut c.x, &mut c.w, &mut c.y]);
                views.extend(c.split.iter_mut().map(|s| &mut s.partials));
                views.extend(c.packed.iter_mut());
                views.extend(c.epilogue.iter_mut().flat_map(region_views));
            }
            KernelOp::Window(w) => {
                views.extend([&mut w.large, &mut w.small]);
                views.extend(w.index.iter_mut());
            }
            KernelOp::Gather(g) | KernelOp::ScatterAdd(g) => views.extend([&mut g.table, &mut g.index, &mut g.rows]),
            KernelOp::Copy(c) => views.extend([&mut c.from, &mut c.to]),
            KernelOp::Fill(c) => views.push(&mut c.to),
            KernelOp::Random(r) => views.push(&mut r.to),
        }
        for v in views {
            f(&mut v.buffer);
        }
    }
}

fn region_views(r: &mut Region) -> impl Iterator<Item = &mut View> {
    let loads = r.loads.iter_mut().map(|l| &mut l.view);
    loads.chain(r.stores.iter_mut().map(|s| &mut s.view)).chain(r.split.iter_mut().map(|s| &mut s.partials))
}

fn attention_operands(a: &Attention) -> Vec<Operand<'_>> {
    let (rows, cols) = (a.rows(), a.cols());
    let mut out = Vec::new();
    for p in &a.products {
        out.push(Operand::read(&p.a, &a.with([rows, p.k])));
        out.push(Operand::read(&p.b, &a.with([p.k, cols])));
    }
    out.extend(a.region.loads.iter().map(|l| Operand::read(&l.view, &a.region.space).of(ANY)));
    out.extend(a.results.iter().map(|r| Operand::read(&r.by, &a.with(r.extents(rows, cols).0))));
    out.extend(a.results.iter().map(|r| Operand::write(&r.to, &a.with(r.extents(rows, cols).1))));
    let stores = a.region.stores.iter().map(|s| Operand::write(&s.view, &a.region.space).of(RESULTS));
    out.extend(stores.map(|o| o.role(Role::Row)));
    out
}

/// What a prologue reads besides the operand's own place.
fn made_operands(made: Made<'_>) -> impl Iterator<Item = Operand<'_>> {
    let Made { view, space, by, .. } = made;
    let others = by.loads.iter().filter(move |l| l.view != *view);
    others.map(move |l| Operand::read(&l.view, &space).of(VALUES).role(Role::Made))
}

/// What work on the elements of a kernel reads; then what it writes. Of the region's operands those of `loads` and
/// `stores`; `number` tells it from other work of the kernel.
fn work<'a>(
    r: &'a Region,
    number: usize,
    loads: impl Iterator<Item = &'a Load>,
    stores: impl Iterator<Item = &'a Store>,
) -> [Vec<Operand<'a>>; 2] {
    let loads = loads.map(|l| Operand::read(&l.view, &r.space).of(VALUES).role(Role::Load(number)));
    let stores = stores.map(|s| Operand::write(&s.view, &r.space).of(RESULTS).role(Role::Store(number)));
    let partials = r.split.iter().map(|s| Operand::write(&s.partials, &[s.count, r.reductions(), r.kept_count()]));
    [loads.collect(), partials.map(Operand::dense).chain(stores).collect()]
}

/// What an epilogue reads besides the product, and what it writes besides.
fn epilogue_operands<'a>(p: &Product<'a>) -> [Vec<Operand<'a>>; 2] {
    p.epilogue.map_or_else(Default::default, |r| work(r, 0, p.other_loads(), p.other_stores()))
}
