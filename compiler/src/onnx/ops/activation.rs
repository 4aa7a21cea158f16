//! Activations, as their definitions.

use slrc_plan::ScalarFn;

use crate::ir::graph::{Init, NodeId};
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Relu", note: "select(0 < x, x, 0)", convert: relu },
    Entry { op: "LeakyRelu", note: "select(0 < x, x, alpha x)", convert: leaky_relu },
    Entry { op: "Elu", note: "select(0 < x, x, alpha (e^x - 1))", convert: elu },
    Entry { op: "Clip", note: "", convert: clip },
    Entry { op: "HardSigmoid", note: "clip(alpha x + beta, 0, 1)", convert: hard_sigmoid },
    Entry { op: "HardSwish", note: "x clip(x / 6 + 1/2, 0, 1)", convert: hard_swish },
    Entry { op: "Softplus", note: "max(x, 0) + log(1 + e^-|x|)", convert: softplus },
    Entry { op: "Gelu", note: "exact (erf) and tanh forms", convert: gelu },
    Entry { op: "PRelu", note: "select(0 < x, x, slope x)", convert: prelu },
    Entry { op: "Selu", note: "gamma select(0 < x, x, alpha (e^x - 1))", convert: selu },
    Entry { op: "Celu", note: "select(0 < x, x, alpha (e^(x / alpha) - 1))", convert: celu },
    Entry { op: "ThresholdedRelu", note: "select(alpha < x, x, 0)", convert: thresholded_relu },
    Entry { op: "Shrink", note: "", convert: shrink },
    Entry { op: "Softsign", note: "x / (1 + |x|)", convert: softsign },
    Entry { op: "Mish", note: "x tanh(softplus(x))", convert: mish },
    Entry { op: "Swish", note: "x sigmoid(alpha x)", convert: swish },
    Entry { op: "SwiGLU", note: "swish(a) b", convert: swiglu },
];

type R = Result<Vec<Out>, String>;

/// `0 < x`.
fn positive(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let zero = cx.b.zeros_like(x);
    cx.b.map(ScalarFn::Lt, &[zero, x])
}

fn relu(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    real(crate::layers::relu(cx.b, x))
}

fn leaky_relu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 0.01);
    let x = cx.real(0)?;
    real(leaky(cx, x, alpha))
}

fn leaky(cx: &mut Cx<'_, '_, '_>, x: NodeId, alpha: f64) -> NodeId {
    let flag = positive(cx, x);
    let small = cx.b.scale(x, alpha);
    cx.b.select(flag, x, small)
}

/// `select(0 < x, x, alpha (e^(x / width) - 1))`.
fn exponential(cx: &mut Cx<'_, '_, '_>, x: NodeId, alpha: f64, width: f64) -> NodeId {
    let flag = positive(cx, x);
    // The exponential is taken of min(x, 0), so the branch not chosen stays finite.
    let zero = cx.b.zeros_like(x);
    let low = cx.b.select(flag, zero, x);
    let low = if width == 1.0 { low } else { cx.b.scale(low, 1.0 / width) };
    let e = cx.b.map(ScalarFn::Exp, &[low]);
    let shifted = cx.b.offset(e, -1.0);
    let curved = cx.b.scale(shifted, alpha);
    cx.b.select(flag, x, curved)
}

fn elu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 1.0);
    let x = cx.real(0)?;
    real(exponential(cx, x, alpha, 1.0))
}

fn celu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 1.0);
    let x = cx.real(0)?;
    real(exponential(cx, x, alpha, alpha))
}

/// Klambauer et al., 2017; the defaults are the paper's constants as f32.
fn selu(cx: &mut Cx<'_, '_, '_>) -> R {
    let (alpha, gamma) = (cx.float("alpha", 1.673_263_2), cx.float("gamma", 1.050_701));
    let x = cx.real(0)?;
    let y = exponential(cx, x, alpha, 1.0);
    real(cx.b.scale(y, gamma))
}

fn prelu(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let slope = cx.real_or_weight(1, Init::Constant(0.25))?;
    let full = cx.b.shape(x);
    let mut extents = cx.b.shape(slope);
    // Before it broadcast, it was one number a channel.
    if cx.opset < 7 && extents.len() == 1 && full.len() > 2 {
        extents.resize(full.len() - 1, 1);
    }
    let slope = cx.b.reshape(slope, &extents);
    let slope = cx.b.broadcast_to(slope, &full);
    let flag = positive(cx, x);
    let small = cx.b.mul(slope, x);
    real(cx.b.select(flag, x, small))
}

fn thresholded_relu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 1.0);
    let x = cx.real(0)?;
    real(above(cx, x, alpha))
}

/// `select(alpha < x, x, 0)`.
fn above(cx: &mut Cx<'_, '_, '_>, x: NodeId, alpha: f64) -> NodeId {
    let bound = cx.b.splat_like(x, alpha);
    let flag = cx.b.map(ScalarFn::Lt, &[bound, x]);
    let zero = cx.b.zeros_like(x);
    cx.b.select(flag, x, zero)
}

/// `x + bias` below `-lambd`, `x - bias` above `lambd`, 0 between.
fn shrink(cx: &mut Cx<'_, '_, '_>) -> R {
    let (bias, lambd) = (cx.float("bias", 0.0), cx.float("lambd", 0.5));
    let x = cx.real(0)?;
    let (low, high) = (cx.b.splat_like(x, -lambd), cx.b.splat_like(x, lambd));
    let (below, above) = (cx.b.map(ScalarFn::Lt, &[x, low]), cx.b.map(ScalarFn::Lt, &[high, x]));
    let (raised, lowered) = (cx.b.offset(x, bias), cx.b.offset(x, -bias));
    let zero = cx.b.zeros_like(x);
    let y = cx.b.select(above, lowered, zero);
    real(cx.b.select(below, raised, y))
}

fn softsign(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    real(soft_sign(cx, x))
}

fn soft_sign(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    let divisor = cx.b.offset(abs, 1.0);
    cx.b.div(x, divisor)
}

fn mish(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let s = log_one_plus_exp(cx, x);
    let t = cx.b.map(ScalarFn::Tanh, &[s]);
    real(cx.b.mul(x, t))
}

fn gated(cx: &mut Cx<'_, '_, '_>, x: NodeId, alpha: f64) -> NodeId {
    let scaled = cx.b.scale(x, alpha);
    let gate = cx.b.map(ScalarFn::Sigmoid, &[scaled]);
    cx.b.mul(x, gate)
}

fn swish(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 1.0);
    let x = cx.real(0)?;
    real(gated(cx, x, alpha))
}

fn swiglu(cx: &mut Cx<'_, '_, '_>) -> R {
    let alpha = cx.float("alpha", 1.0);
    let (a, b) = (cx.real(0)?, cx.real(1)?);
    let a = gated(cx, a, alpha);
    real(cx.b.binary(ScalarFn::Mul, a, b))
}

/// `min(max(x, low), high)`.
pub(super) fn clamp(cx: &mut Cx<'_, '_, '_>, x: NodeId, low: Option<f64>, high: Option<f64>) -> NodeId {
    let mut y = x;
    if let Some(low) = low {
        let bound = cx.b.splat_like(y, low);
        let flag = cx.b.map(ScalarFn::Lt, &[bound, y]);
        y = cx.b.select(flag, y, bound);
    }
    if let Some(high) = high {
        let bound = cx.b.splat_like(y, high);
        let flag = cx.b.map(ScalarFn::Lt, &[y, bound]);
        y = cx.b.select(flag, y, bound);
    }
    y
}

fn clip(cx: &mut Cx<'_, '_, '_>) -> R {
    let elem = cx.elem(0)?;
    let mut y = cx.real(0)?;
    for (i, name, low) in [(1, "min", true), (2, "max", false)] {
        let known = match cx.known(i)? {
            Some(c) => Some(c.single().ok_or("a bound must be a single number")?),
            None if cx.has(name) && !cx.present(i) => Some(cx.float(name, 0.0)),
            None => None,
        };
        y = match known {
            // Exporters write the largest f32 for none.
            Some(x) if x.abs() >= f64::from(f32::MAX) && (x < 0.0) == low => y,
            Some(x) if low => clamp(cx, y, Some(x), None),
            Some(x) => clamp(cx, y, None, Some(x)),
            None if cx.present(i) => {
                let bound = cx.real(i)?;
                let full = cx.b.shape(y);
                let bound = cx.b.broadcast_to(bound, &full);
                let inside = if low { [bound, y] } else { [y, bound] };
                let flag = cx.b.map(ScalarFn::Lt, &inside);
                cx.b.select(flag, y, bound)
            }
            None => y,
        };
    }
    Ok(vec![Out::Node(y, elem)])
}

fn hard_sigmoid(cx: &mut Cx<'_, '_, '_>) -> R {
    let (alpha, beta) = (cx.float("alpha", 0.2), cx.float("beta", 0.5));
    let x = cx.real(0)?;
    real(hard_gate(cx, x, alpha, beta))
}

/// `clip(alpha x + beta, 0, 1)`.
fn hard_gate(cx: &mut Cx<'_, '_, '_>, x: NodeId, alpha: f64, beta: f64) -> NodeId {
    let scaled = cx.b.scale(x, alpha);
    let line = cx.b.offset(scaled, beta);
    clamp(cx, line, Some(0.0), Some(1.0))
}

fn hard_swish(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    let gate = hard_gate(cx, x, 1.0 / 6.0, 0.5);
    real(cx.b.mul(x, gate))
}

fn softplus(cx: &mut Cx<'_, '_, '_>) -> R {
    let x = cx.real(0)?;
    real(log_one_plus_exp(cx, x))
}

/// `max(x, 0) + log(1 + e^-|x|)`.
fn log_one_plus_exp(cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
    let flag = positive(cx, x);
    let zero = cx.b.zeros_like(x);
    let top = cx.b.select(flag, x, zero);
    let abs = cx.b.map(ScalarFn::Abs, &[x]);
    let minus = cx.b.neg(abs);
    let e = cx.b.map(ScalarFn::Exp, &[minus]);
    let one_more = cx.b.offset(e, 1.0);
    let log = cx.b.map(ScalarFn::Log, &[one_more]);
    cx.b.add(top, log)
}

/// `x Phi(x)`, with Phi by erf or by `tanh(sqrt(2/pi) (x + 0.044715 x^3))` (Hendrycks and Gimpel, 2016).
fn gelu(cx: &mut Cx<'_, '_, '_>) -> R {
    let form = cx.string("approximate", "none");
    let x = cx.real(0)?;
    let inner = match form.as_str() {
        "none" => {
            let scaled = cx.b.scale(x, std::f64::consts::FRAC_1_SQRT_2);
            cx.b.map(ScalarFn::Erf, &[scaled])
        }
        "tanh" => {
            let square = cx.b.mul(x, x);
            let cube = cx.b.mul(square, x);
            let bend = cx.b.scale(cube, 0.044_715);
            let sum = cx.b.add(x, bend);
            let scaled = cx.b.scale(sum, (2.0 / std::f64::consts::PI).sqrt());
            cx.b.map(ScalarFn::Tanh, &[scaled])
        }
        other => return Err(format!("approximate = \"{other}\" does not exist")),
    };
    let one_more = cx.b.offset(inner, 1.0);
    let half = cx.b.scale(x, 0.5);
    real(cx.b.mul(half, one_more))
}

/// An activation of a recurrent layer, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shaped {
    Plain(ScalarFn),
    Relu,
    Softsign,
    Softplus,
    Affine { alpha: f64, beta: f64 },
    ScaledTanh { alpha: f64, beta: f64 },
    HardSigmoid { alpha: f64, beta: f64 },
    LeakyRelu { alpha: f64 },
    ThresholdedRelu { alpha: f64 },
    Elu { alpha: f64 },
}

impl Shaped {
    /// The activation of a name, in any case; numbers that it has are taken from `alphas` and `betas`.
    pub(super) fn by_name(
        name: &str,
        alphas: &mut impl Iterator<Item = f64>,
        betas: &mut impl Iterator<Item = f64>,
    ) -> Result<Shaped, String> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "tanh" => Shaped::Plain(ScalarFn::Tanh),
            "sigmoid" => Shaped::Plain(ScalarFn::Sigmoid),
            "relu" => Shaped::Relu,
            "softsign" => Shaped::Softsign,
            "softplus" => Shaped::Softplus,
            "affine" => Shaped::Affine { alpha: alphas.next().unwrap_or(1.0), beta: betas.next().unwrap_or(0.0) },
            "scaledtanh" => {
                Shaped::ScaledTanh { alpha: alphas.next().unwrap_or(1.0), beta: betas.next().unwrap_or(1.0) }
            }
            "hardsigmoid" => {
                Shaped::HardSigmoid { alpha: alphas.next().unwrap_or(0.2), beta: betas.next().unwrap_or(0.5) }
            }
            "leakyrelu" => Shaped::LeakyRelu { alpha: alphas.next().unwrap_or(0.01) },
            "thresholdedrelu" => Shaped::ThresholdedRelu { alpha: alphas.next().unwrap_or(1.0) },
            "elu" => Shaped::Elu { alpha: alphas.next().unwrap_or(1.0) },
            _ => return Err(format!("activation \"{name}\" is not supported")),
        })
    }

    pub(super) fn apply(self, cx: &mut Cx<'_, '_, '_>, x: NodeId) -> NodeId {
        match self {
            Shaped::Plain(f) => cx.b.map(f, &[x]),
            Shaped::Relu => crate::layers::relu(cx.b, x),
            Shaped::Softsign => soft_sign(cx, x),
            Shaped::Softplus => log_one_plus_exp(cx, x),
            Shaped::Affine { alpha, beta } => {
                let scaled = cx.b.scale(x, alpha);
                cx.b.offset(scaled, beta)
            }
            Shaped::ScaledTanh { alpha, beta } => {
                let scaled = cx.b.scale(x, beta);
                let tanh = cx.b.map(ScalarFn::Tanh, &[scaled]);
                cx.b.scale(tanh, alpha)
            }
            Shaped::HardSigmoid { alpha, beta } => hard_gate(cx, x, alpha, beta),
            Shaped::LeakyRelu { alpha } => leaky(cx, x, alpha),
            Shaped::ThresholdedRelu { alpha } => above(cx, x, alpha),
            Shaped::Elu { alpha } => exponential(cx, x, alpha, 1.0),
        }
    }
}
