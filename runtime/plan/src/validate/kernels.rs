//! Kernels by family: extents, geometries and splits that a device can work with, and types that go together.

use crate::attention::Attention;
use crate::buffer::DType;
use crate::kernel::{
    Conv, ConvAlgorithm, ConvDirection, Kernel, KernelOp, Matmul, MatmulSplit, WINOGRAD_CHANNELS, WindowGeometry,
    WindowOp,
};
use crate::validate::region::{
    check_attention_region, check_epilogue, check_operand_sums, check_prologue, check_region, check_stores,
};

/// Most elements of an index space, and most multiplications of a product: far more than any device does in a kernel,
/// few enough that no count overflows.
const MAX_ELEMENTS: usize = 1 << 60;
/// Largest number in a geometry: sums of two products of such numbers do not overflow.
pub const MAX_GEOMETRY: usize = 1 << 30;

/// What must hold before [`KernelOp::operands`] can be asked for.
pub(super) fn check_kernel(k: &Kernel) -> Result<(), String> {
    match &k.run {
        KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => {
            elements(&r.space)?;
            check_region(&k.run, r)
        }
        KernelOp::Attention(a) => check_attention(a),
        KernelOp::Matmul(m) => check_matmul(m),
        KernelOp::Conv(c) => check_conv(c),
        KernelOp::Window(w) => {
            check_geometry(&w.geometry)?;
            present(&[w.batch, w.channels])?;
            elements(&[w.batch, w.geometry.input[0], w.geometry.input[1], w.channels])?;
            elements(&[w.batch, w.geometry.output[0], w.geometry.output[1], w.channels])?;
            let needs_index = matches!(w.op, WindowOp::Select | WindowOp::Unselect);
            if needs_index != w.index.is_some() {
                return Err("an index operand is for select and unselect".into());
            }
            Ok(())
        }
        KernelOp::Gather(g) | KernelOp::ScatterAdd(g) => {
            elements(&[g.table_rows, g.width])?;
            elements(&[g.count, g.width])
        }
        KernelOp::Copy(c) => elements(&c.space),
        KernelOp::Fill(f) => elements(&f.space),
        KernelOp::Random(r) => elements(&[r.count]),
    }
}

/// What must hold of the types of operands, each of which its family allows.
pub(super) fn check_types(k: &Kernel, dtype: impl Fn(&str) -> DType) -> Result<(), String> {
    match &k.run {
        KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => check_stores(r, &[], dtype),
        KernelOp::Attention(a) => check_stores(&a.region, &a.given(), dtype),
        KernelOp::Matmul(m) => m.epilogue.iter().chain(&m.b_sums).try_for_each(|r| check_stores(r, &[], &dtype)),
        KernelOp::Conv(Conv { epilogue: Some(r), .. }) => check_stores(r, &[], dtype),
        KernelOp::Window(w) => {
            let positions = if w.op == WindowOp::MaxIndex { Some(&w.small) } else { w.index.as_ref() };
            let taps = w.geometry.kernel[0] * w.geometry.kernel[1];
            if taps > 256 && positions.is_some_and(|v| dtype(&v.buffer) == DType::U8) {
                return Err(format!("{taps} window positions do not fit in a byte"));
            }
            Ok(())
        }
        KernelOp::Copy(c) if dtype(&c.from.buffer) != dtype(&c.to.buffer) => Err("a copy keeps the dtype".into()),
        _ => Ok(()),
    }
}

/// The product of extents is a number to work with.
fn elements(extents: &[usize]) -> Result<(), String> {
    let count = extents.iter().try_fold(1usize, |n, &e| n.checked_mul(e.max(1)));
    if count.is_none_or(|n| n > MAX_ELEMENTS) {
        return Err(format!("extents {extents:?} are too large"));
    }
    Ok(())
}

fn present(extents: &[usize]) -> Result<(), String> {
    if extents.contains(&0) { Err("an extent is 0".into()) } else { Ok(()) }
}

fn check_split(split: Option<&MatmulSplit>, of: usize) -> Result<(), String> {
    match split {
        Some(s) if s.count < 2 || s.count > of => Err(format!("{of} terms cannot be summed in {} groups", s.count)),
        _ => Ok(()),
    }
}

fn check_attention(a: &Attention) -> Result<(), String> {
    check_attention_region(a)?;
    let (rows, cols) = (a.rows(), a.cols());
    present(&a.region.space)?;
    elements(&a.region.space)?;
    if a.products.is_empty() {
        return Err("attention works on a product at least".into());
    }
    for p in &a.products {
        present(&[p.k])?;
        elements(&a.with([rows, p.k]))?;
        elements(&a.with([p.k, cols]))?;
        elements(&[&a.region.space[..], &[p.k]].concat())?;
    }
    for r in &a.results {
        present(&[r.width])?;
        elements(&[&a.region.space[..], &[r.width]].concat())?;
    }
    if a.strip == 0 || a.strip > rows {
        return Err(format!("{rows} rows cannot be worked on {} at a time", a.strip));
    }
    Ok(())
}

fn check_matmul(m: &Matmul) -> Result<(), String> {
    let extents = [&m.batch[..], &[m.m, m.n, m.k]].concat();
    present(&extents)?;
    elements(&extents)?;
    if m.split.is_some() && !m.batch.is_empty() {
        return Err("a product with batch dimensions is not split".into());
    }
    if m.epilogue.is_some() && !m.c.is_dense(&[&m.batch[..], &[m.m, m.n]].concat()) {
        return Err(format!("a product with an epilogue is dense, {} is not", m.c));
    }
    m.made().try_for_each(|p| check_prologue(&p))?;
    check_epilogue(&m.product())?;
    check_split(m.split.as_ref(), m.k)?;
    m.b_sums.as_ref().map_or(Ok(()), |r| check_operand_sums(m, r))
}

fn check_geometry(g: &WindowGeometry) -> Result<(), String> {
    let all = [&g.input, &g.output, &g.kernel, &g.strides, &g.pads, &g.dilations];
    if all.iter().any(|d| d.len() != 2) {
        return Err("windows have two spatial dimensions".into());
    }
    if all.iter().any(|d| d.iter().any(|&n| n > MAX_GEOMETRY)) {
        return Err(format!("a number of the geometry is larger than {MAX_GEOMETRY}"));
    }
    if all.iter().any(|d| !std::ptr::eq(*d, &g.pads) && d.contains(&0)) {
        return Err("extents, strides and dilations of windows are at least 1".into());
    }
    Ok(())
}

fn check_conv(c: &Conv) -> Result<(), String> {
    let g = &c.geometry;
    check_geometry(g)?;
    present(&[c.batch, c.in_channels, c.out_channels])?;
    if c.groups == 0 || [c.in_channels, c.out_channels].iter().any(|n| !n.is_multiple_of(c.groups)) {
        return Err(format!("{} groups do not divide {} and {} channels", c.groups, c.in_channels, c.out_channels));
    }
    elements(&[c.batch, g.input[0], g.input[1], c.in_channels])?;
    elements(&[c.batch, g.output[0], g.output[1], c.out_channels])?;
    elements(&[c.out_channels, g.kernel[0], g.kernel[1], c.in_channels / c.groups])?;
    if c.algorithm == ConvAlgorithm::Winograd && !c.fits_winograd() {
        return Err(format!(
            "Winograd's algorithm is for 3x3 kernels of stride 1 without groups, at most 2 rows of padding and channels in \
             multiples of {WINOGRAD_CHANNELS}"
        ));
    }
    if c.workspace().is_some() != c.packed.is_some() {
        return Err(
            "an input gradient whose windows are not single elements, and whatever transforms its weights, packs \
                    its weights; nothing else does"
                .into(),
        );
    }
    if c.epilogue.is_some() && c.groups > 1 {
        return Err("a convolution in groups has no epilogue".into());
    }
    let reads = c.reads();
    for (prologue, read) in [&c.x_prologue, &c.y_prologue].into_iter().zip(reads) {
        if prologue.is_some() && (c.groups > 1 || !read) {
            return Err("a prologue is for what a convolution in one group reads, and not for its weights".into());
        }
    }
    c.made().try_for_each(|p| check_prologue(&p))?;
    check_epilogue(&c.product())?;
    if c.split.is_some() && c.direction != ConvDirection::WeightGrad {
        return Err("only a weight gradient is split".into());
    }
    check_split(c.split.as_ref(), c.batch)
}
