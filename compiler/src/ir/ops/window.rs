//! Pooling windows over `[N, C, H, W]`. Maximum pooling is two ops, the position of the winner (no gradient) and the
//! selection (linear), so that a second pass can keep the first one's winners.

use slrc_plan::kernel::WindowGeometry;

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::contract::{check_geometry, geometry_attributes, parse_geometry};
use crate::ir::ops::{arity, dtype};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::{DType, Type};

/// `index[n, c, p] = position k = ky * kw + kx of the first largest x[n, c, p * stride + k * dilation - pad]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowMaxIndex(pub WindowGeometry);

/// `y[n, c, p] = x[n, c, p * stride + index[n, c, p] * dilation - pad]`, operands `x, index`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowSelect(pub WindowGeometry);

/// Gradient of [`WindowSelect`] with respect to x, operands `dy, index`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowUnselect(pub WindowGeometry);

/// `y[n, c, p] = sum over k of x[n, c, p * stride + k * dilation - pad]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowSum(pub WindowGeometry);

/// Gradient of [`WindowSum`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowSpread(pub WindowGeometry);

macro_rules! parse {
    ($($t:ident),*) => { $(
        impl $t {
            pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<$t, String> {
                parse_geometry(a).map($t)
            }
        }
    )* };
}
parse!(WindowMaxIndex, WindowSelect, WindowUnselect, WindowSum, WindowSpread);

/// Type of the tensor with the output extents for a tensor with the input extents.
fn small(g: &WindowGeometry, large: &Type, dt: DType) -> Result<Type, String> {
    check_geometry(g)?;
    if large.rank() != 4 || large.shape[2..] != g.input[..] {
        return Err(format!("windows over {}x{} do not fit {large}", g.input[0], g.input[1]));
    }
    Ok(Type::new(dt, vec![large.shape[0], large.shape[1], g.output[0], g.output[1]]))
}

/// Type of the tensor with the input extents for a tensor with the output extents.
fn large(g: &WindowGeometry, small: &Type) -> Result<Type, String> {
    check_geometry(g)?;
    if small.rank() != 4 || small.shape[2..] != g.output[..] {
        return Err(format!("windows of {}x{} do not fit {small}", g.output[0], g.output[1]));
    }
    Ok(Type::f32(vec![small.shape[0], small.shape[1], g.input[0], g.input[1]]))
}

/// Dtype of window positions: a byte where it is enough.
pub(crate) fn index_dtype(g: &WindowGeometry) -> DType {
    if g.kernel[0] * g.kernel[1] <= 256 { DType::U8 } else { DType::I32 }
}

/// Source multi-index of tap `k` of the window at `i`, `None` in the padding.
fn source(g: &WindowGeometry, i: &[usize], k: usize) -> Option<[usize; 4]> {
    let y = g.source(0, i[2], k / g.kernel[1])?;
    let x = g.source(1, i[3], k % g.kernel[1])?;
    Some([i[0], i[1], y, x])
}

impl Rule for WindowMaxIndex {
    fn name(&self) -> &'static str {
        "window-max-index"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        geometry_attributes(&self.0)
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        dtype(operands[0], DType::F32)?;
        small(&self.0, operands[0], index_dtype(&self.0))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let taps = self.0.kernel[0] * self.0.kernel[1];
        Tensor::from_fn(ty.shape.clone(), |i| {
            let mut best: Option<(usize, f64)> = None;
            for k in 0..taps {
                let Some(at) = source(&self.0, i, k) else { continue };
                let x = operands[0].at(&at);
                if best.is_none_or(|(_, b)| x > b || (x.is_nan() && !b.is_nan())) {
                    best = Some((k, x));
                }
            }
            best.map_or(0.0, |(k, _)| k as f64)
        })
    }
    fn vjp(&self, _: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![None]
    }
    fn jvp(&self, _: &mut Jvp<'_, '_>) -> Option<NodeId> {
        None
    }
}

fn with_index(g: &WindowGeometry, operands: &[&Type]) -> Result<(), String> {
    arity(operands, 2)?;
    dtype(operands[0], DType::F32)?;
    dtype(operands[1], index_dtype(g))
}

impl Rule for WindowSelect {
    fn name(&self) -> &'static str {
        "window-select"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        geometry_attributes(&self.0)
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        with_index(&self.0, operands)?;
        let ty = small(&self.0, operands[0], DType::F32)?;
        if ty.shape != operands[1].shape {
            return Err(format!("window positions {} do not fit {ty}", operands[1]));
        }
        Ok(ty)
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        Tensor::from_fn(ty.shape.clone(), |i| {
            source(&self.0, i, operands[1].at(i) as usize).map_or(0.0, |at| operands[0].at(&at))
        })
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let index = cx.operands[1];
        vec![Some(cx.b.window_unselect(cx.upstream, index, &self.0)), None]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        let index = cx.operands[1];
        Some(cx.b.window_select(t, index, &self.0))
    }
}

impl Rule for WindowUnselect {
    fn name(&self) -> &'static str {
        "window-unselect"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        geometry_attributes(&self.0)
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        with_index(&self.0, operands)?;
        if operands[0].shape != operands[1].shape {
            return Err(format!("window positions {} do not fit {}", operands[1], operands[0]));
        }
        large(&self.0, operands[0])
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let mut out = Tensor::full(ty.shape.clone(), 0.0);
        for_each_index(&operands[0].shape, |i| {
            if let Some(at) = source(&self.0, i, operands[1].at(i) as usize) {
                let p = out.position(&at);
                out.data[p] += operands[0].at(i);
            }
        });
        out
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let index = cx.operands[1];
        vec![Some(cx.b.window_select(cx.upstream, index, &self.0)), None]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        let index = cx.operands[1];
        Some(cx.b.window_unselect(t, index, &self.0))
    }
}

impl Rule for WindowSum {
    fn name(&self) -> &'static str {
        "window-sum"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        geometry_attributes(&self.0)
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        dtype(operands[0], DType::F32)?;
        small(&self.0, operands[0], DType::F32)
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let taps = self.0.kernel[0] * self.0.kernel[1];
        Tensor::from_fn(ty.shape.clone(), |i| {
            (0..taps).filter_map(|k| source(&self.0, i, k)).map(|at| operands[0].at(&at)).sum()
        })
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![Some(cx.b.window_spread(cx.upstream, &self.0))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.window_sum(t, &self.0))
    }
}

impl Rule for WindowSpread {
    fn name(&self) -> &'static str {
        "window-spread"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        geometry_attributes(&self.0)
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 1)?;
        dtype(operands[0], DType::F32)?;
        large(&self.0, operands[0])
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let taps = self.0.kernel[0] * self.0.kernel[1];
        let mut out = Tensor::full(ty.shape.clone(), 0.0);
        for_each_index(&operands[0].shape, |i| {
            for at in (0..taps).filter_map(|k| source(&self.0, i, k)) {
                let p = out.position(&at);
                out.data[p] += operands[0].at(i);
            }
        });
        out
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        vec![Some(cx.b.window_sum(cx.upstream, &self.0))]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let t = cx.tangents[0]?;
        Some(cx.b.window_spread(t, &self.0))
    }
}
