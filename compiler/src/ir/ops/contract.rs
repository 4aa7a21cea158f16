//! Contractions: matrix product, convolution and convolution's two gradients. All are bilinear, and the three
//! convolution ops close among themselves under differentiation.

use slrc_plan::Dims;
use slrc_plan::kernel::WindowGeometry;

use crate::ir::graph::NodeId;
use crate::ir::op::{AttributeReader, Attributes, Class, Jvp, Rule, Vjp};
use crate::ir::ops::{arity, dtype};
use crate::ir::tensor::Tensor;
use crate::ir::types::{DType, Type};

/// `c[.., i, j] = sum over l of a[.., i, l] * b[.., l, j]`; leading dimensions agree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatMul;

impl MatMul {
    pub(crate) fn parse(_: &AttributeReader<'_>) -> Result<MatMul, String> {
        Ok(MatMul)
    }
}

impl Rule for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        Vec::new()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 2)?;
        let (a, b) = (operands[0], operands[1]);
        dtype(a, DType::F32)?;
        dtype(b, DType::F32)?;
        let r = a.rank();
        if r < 2 || b.rank() != r || a.shape[..r - 2] != b.shape[..r - 2] || a.shape[r - 1] != b.shape[r - 2] {
            return Err(format!("{a} and {b} cannot be multiplied as matrices"));
        }
        let mut shape = a.shape.clone();
        shape[r - 1] = b.shape[r - 1];
        Ok(Type::f32(shape))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let (a, b) = (operands[0], operands[1]);
        let r = ty.rank();
        let (m, n, k) = (a.shape[r - 2], b.shape[r - 1], a.shape[r - 1]);
        let mut out = vec![0.0; ty.count()];
        for batch in 0..ty.shape[..r - 2].iter().product() {
            for i in 0..m {
                for l in 0..k {
                    let x = a.data[(batch * m + i) * k + l];
                    for j in 0..n {
                        out[(batch * m + i) * n + j] += x * b.data[(batch * k + l) * n + j];
                    }
                }
            }
        }
        Tensor::new(ty.shape.clone(), out)
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let (a, b) = (cx.operands[0], cx.operands[1]);
        let bt = cx.b.matrix_transpose(b);
        let at = cx.b.matrix_transpose(a);
        let mut parts = [None; 2];
        for i in smaller_first(cx) {
            let (x, y) = [(cx.upstream, bt), (at, cx.upstream)][i];
            parts[i] = Some(cx.b.matmul(x, y));
        }
        parts.to_vec()
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let (a, b) = (cx.operands[0], cx.operands[1]);
        let left = cx.tangents[0].map(|t| cx.b.matmul(t, b));
        let right = cx.tangents[1].map(|t| cx.b.matmul(a, t));
        cx.sum(vec![left, right])
    }
}

/// The operands of a product in the order in which their gradients are computed: the smaller one's first. That one
/// reads the larger operand, mostly for the last time, whose room the other gradient can take; and of large weights,
/// the gradient comes last, since they may be updated as it is computed, after the other one has read them.
fn smaller_first(cx: &Vjp<'_, '_>) -> [usize; 2] {
    let count = |i: usize| cx.b.graph().ty(cx.operands[i]).count();
    if count(1) < count(0) { [1, 0] } else { [0, 1] }
}

/// Settings the three convolution ops share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Channel groups.
    pub groups: usize,
    /// Spatial extents, strides, pads and dilations.
    pub geometry: WindowGeometry,
}

pub(crate) fn geometry_attributes(g: &WindowGeometry) -> Attributes {
    vec![
        ("input", g.input.to_string()),
        ("output", g.output.to_string()),
        ("kernel", g.kernel.to_string()),
        ("strides", g.strides.to_string()),
        ("pads", g.pads.to_string()),
        ("dilations", g.dilations.to_string()),
    ]
}

pub(crate) fn parse_geometry(a: &AttributeReader<'_>) -> Result<WindowGeometry, String> {
    let get = |name: &str| -> Result<Dims, String> {
        let d: Dims = a.get(name)?;
        if d.len() == 2 { Ok(d) } else { Err(format!("attribute `{name}` needs two numbers")) }
    };
    Ok(WindowGeometry {
        input: get("input")?,
        output: get("output")?,
        kernel: get("kernel")?,
        strides: get("strides")?,
        pads: get("pads")?,
        dilations: get("dilations")?,
    })
}

pub(crate) fn check_geometry(g: &WindowGeometry) -> Result<(), String> {
    if g.strides.contains(&0) || g.dilations.contains(&0) || g.kernel.contains(&0) {
        return Err("kernel extents, strides and dilations are at least 1".into());
    }
    Ok(())
}

impl ConvShape {
    fn attributes(&self) -> Attributes {
        let mut out = vec![("groups", self.groups.to_string())];
        out.extend(geometry_attributes(&self.geometry));
        out
    }

    fn parse(a: &AttributeReader<'_>) -> Result<ConvShape, String> {
        Ok(ConvShape { groups: a.get("groups")?, geometry: parse_geometry(a)? })
    }

    /// Checks that x `[N, C, H, W]`, w `[O, C/g, kh, kw]` and y `[N, O, OH, OW]` belong together.
    fn check(&self, x: &[usize], w: &[usize], y: &[usize]) -> Result<(), String> {
        let g = &self.geometry;
        check_geometry(g)?;
        let fits = x.len() == 4
            && w.len() == 4
            && y.len() == 4
            && x[2..] == g.input[..]
            && w[2..] == g.kernel[..]
            && y[2..] == g.output[..]
            && x[0] == y[0]
            && w[0] == y[1]
            && self.groups > 0
            && x[1] == w[1] * self.groups
            && w[0].is_multiple_of(self.groups);
        if fits { Ok(()) } else { Err(format!("convolution in {} groups over x {x:?}, w {w:?}, y {y:?}", self.groups)) }
    }

    /// Calls `f` with the positions of x, w and y of every product in the convolution.
    fn for_each_product(&self, x: &[usize], w: &[usize], mut f: impl FnMut(usize, usize, usize)) {
        let g = &self.geometry;
        let (out_per_group, in_per_group) = (w[0] / self.groups, w[1]);
        for n in 0..x[0] {
            for o in 0..w[0] {
                for c in 0..in_per_group {
                    let channel = o / out_per_group * in_per_group + c;
                    for oy in 0..g.output[0] {
                        for ky in 0..g.kernel[0] {
                            let Some(iy) = g.source(0, oy, ky) else { continue };
                            for ox in 0..g.output[1] {
                                for kx in 0..g.kernel[1] {
                                    let Some(ix) = g.source(1, ox, kx) else { continue };
                                    let xi = ((n * x[1] + channel) * x[2] + iy) * x[3] + ix;
                                    let wi = ((o * w[1] + c) * w[2] + ky) * w[3] + kx;
                                    let yi = ((n * w[0] + o) * g.output[0] + oy) * g.output[1] + ox;
                                    f(xi, wi, yi);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `y[n, o, p] = sum over c, k of x[n, c, p * stride + k * dilation - pad] * w[o, c, k]`, operands `x, w`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv(pub ConvShape);

/// Gradient of [`Conv`] with respect to x, operands `w, dy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvInputGrad(pub ConvShape);

/// Gradient of [`Conv`] with respect to w, operands `x, dy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvWeightGrad(pub ConvShape);

impl Conv {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<Conv, String> {
        ConvShape::parse(a).map(Conv)
    }
}

impl ConvInputGrad {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<ConvInputGrad, String> {
        ConvShape::parse(a).map(ConvInputGrad)
    }
}

impl ConvWeightGrad {
    pub(crate) fn parse(a: &AttributeReader<'_>) -> Result<ConvWeightGrad, String> {
        ConvShape::parse(a).map(ConvWeightGrad)
    }
}

impl Rule for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        self.0.attributes()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 2)?;
        let (x, w) = (operands[0], operands[1]);
        dtype(x, DType::F32)?;
        dtype(w, DType::F32)?;
        if x.rank() != 4 || w.rank() != 4 {
            return Err(format!("convolution of {x} by {w}: both have 4 dimensions"));
        }
        let y = vec![x.shape[0], w.shape[0], self.0.geometry.output[0], self.0.geometry.output[1]];
        self.0.check(&x.shape, &w.shape, &y)?;
        Ok(Type::f32(y))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let (x, w) = (operands[0], operands[1]);
        let mut y = vec![0.0; ty.count()];
        self.0.for_each_product(&x.shape, &w.shape, |xi, wi, yi| y[yi] += x.data[xi] * w.data[wi]);
        Tensor::new(ty.shape.clone(), y)
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let (x, w) = (cx.operands[0], cx.operands[1]);
        let mut parts = [None; 2];
        for i in smaller_first(cx) {
            parts[i] = Some(match i {
                0 => cx.b.conv_input_grad(w, cx.upstream, &self.0),
                _ => cx.b.conv_weight_grad(x, cx.upstream, &self.0),
            });
        }
        parts.to_vec()
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let (x, w) = (cx.operands[0], cx.operands[1]);
        let left = cx.tangents[0].map(|t| cx.b.conv(t, w, &self.0));
        let right = cx.tangents[1].map(|t| cx.b.conv(x, t, &self.0));
        cx.sum(vec![left, right])
    }
}

impl Rule for ConvInputGrad {
    fn name(&self) -> &'static str {
        "conv-input-grad"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        self.0.attributes()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 2)?;
        let (w, dy) = (operands[0], operands[1]);
        dtype(w, DType::F32)?;
        dtype(dy, DType::F32)?;
        if w.rank() != 4 || dy.rank() != 4 {
            return Err(format!("convolution gradient of {dy} by {w}: both have 4 dimensions"));
        }
        let g = &self.0.geometry;
        let x = vec![dy.shape[0], w.shape[1] * self.0.groups, g.input[0], g.input[1]];
        self.0.check(&x, &w.shape, &dy.shape)?;
        Ok(Type::f32(x))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let (w, dy) = (operands[0], operands[1]);
        let mut dx = vec![0.0; ty.count()];
        self.0.for_each_product(&ty.shape, &w.shape, |xi, wi, yi| dx[xi] += w.data[wi] * dy.data[yi]);
        Tensor::new(ty.shape.clone(), dx)
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let (w, dy) = (cx.operands[0], cx.operands[1]);
        let dw = cx.b.conv_weight_grad(cx.upstream, dy, &self.0);
        let ddy = cx.b.conv(cx.upstream, w, &self.0);
        vec![Some(dw), Some(ddy)]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let (w, dy) = (cx.operands[0], cx.operands[1]);
        let left = cx.tangents[0].map(|t| cx.b.conv_input_grad(t, dy, &self.0));
        let right = cx.tangents[1].map(|t| cx.b.conv_input_grad(w, t, &self.0));
        cx.sum(vec![left, right])
    }
}

impl Rule for ConvWeightGrad {
    fn name(&self) -> &'static str {
        "conv-weight-grad"
    }
    fn class(&self) -> Class {
        Class::Kernel
    }
    fn attributes(&self) -> Attributes {
        self.0.attributes()
    }
    fn infer(&self, operands: &[&Type]) -> Result<Type, String> {
        arity(operands, 2)?;
        let (x, dy) = (operands[0], operands[1]);
        dtype(x, DType::F32)?;
        dtype(dy, DType::F32)?;
        if x.rank() != 4 || dy.rank() != 4 || self.0.groups == 0 {
            return Err(format!("convolution gradient of {dy} by {x}: both have 4 dimensions"));
        }
        let g = &self.0.geometry;
        let w = vec![dy.shape[1], x.shape[1] / self.0.groups, g.kernel[0], g.kernel[1]];
        self.0.check(&x.shape, &w, &dy.shape)?;
        Ok(Type::f32(w))
    }
    fn eval(&self, operands: &[&Tensor], ty: &Type) -> Tensor {
        let (x, dy) = (operands[0], operands[1]);
        let mut dw = vec![0.0; ty.count()];
        self.0.for_each_product(&x.shape, &ty.shape, |xi, wi, yi| dw[wi] += x.data[xi] * dy.data[yi]);
        Tensor::new(ty.shape.clone(), dw)
    }
    fn vjp(&self, cx: &mut Vjp<'_, '_>) -> Vec<Option<NodeId>> {
        let (x, dy) = (cx.operands[0], cx.operands[1]);
        let dx = cx.b.conv_input_grad(cx.upstream, dy, &self.0);
        let ddy = cx.b.conv(x, cx.upstream, &self.0);
        vec![Some(dx), Some(ddy)]
    }
    fn jvp(&self, cx: &mut Jvp<'_, '_>) -> Option<NodeId> {
        let (x, dy) = (cx.operands[0], cx.operands[1]);
        let left = cx.tangents[0].map(|t| cx.b.conv_weight_grad(t, dy, &self.0));
        let right = cx.tangents[1].map(|t| cx.b.conv_weight_grad(x, t, &self.0));
        cx.sum(vec![left, right])
    }
}
