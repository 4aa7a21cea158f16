//! Local heads: logits from a module's output, freshly initialised. Sources of the kinds are in docs/method.md.

mod windows;

use std::fmt;

use slrc_plan::Dims;
use slrc_plan::kernel::WindowGeometry;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Init, NodeId, Root, RootKind, VarKind};
use crate::ir::op::Op;
use crate::ir::ops::contract::ConvShape;
use crate::ir::types::Type;
use crate::layers::{self, BatchNorm, fan_in};
use crate::loss::class_dimension;
use crate::spec::HeadKind;
pub use windows::{gather, spread, windows};

/// BatchNorm in heads: PyTorch's defaults, momentum in ONNX's convention.
const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.9;
/// Hidden width of the conv head's classifier.
const CONV_HIDDEN: usize = 128;
/// Side to which the linear head pools larger images.
const LINEAR_SIDE: usize = 4;

/// A head that does not fit its boundary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The kind asked for takes another form of boundary.
    #[error("head {kind} needs {needs}, but boundary {boundary} has shape {shape}; use --head auto")]
    Boundary {
        /// The kind asked for.
        kind: &'static str,
        /// What it needs.
        needs: &'static str,
        /// Module number.
        boundary: usize,
        /// The boundary's shape.
        shape: Dims,
    },
    /// The boundary's first extent counts something else than samples.
    #[error(
        "the network classifies {samples} samples, but boundary {boundary}, after \"{after}\", has shape {shape}: a local head \
         needs as many, [{samples}, ..], there; cut elsewhere (--at), or use --modules 1"
    )]
    Samples {
        /// Samples the network classifies.
        samples: usize,
        /// Module number.
        boundary: usize,
        /// ONNX node that makes the boundary.
        after: String,
        /// The boundary's shape.
        shape: Dims,
    },
    /// The network classifies every token, and the boundary has no such tokens.
    #[error(
        "the network classifies {tokens} tokens a sample, but boundary {boundary}, after \"{after}\", has shape {shape}: a \
         local head needs the same tokens, [N, {tokens}, D], there; cut elsewhere (--at), or use --modules 1"
    )]
    Tokens {
        /// Tokens the network classifies.
        tokens: usize,
        /// Module number.
        boundary: usize,
        /// ONNX node that makes the boundary.
        after: String,
        /// The boundary's shape.
        shape: Dims,
    },
    /// The network classifies every pixel, and the boundary's image does not lead to those.
    #[error(
        "the network classifies {h}x{w} pixels a sample, but boundary {boundary}, after \"{after}\", has shape {shape}: a \
         local head needs an image of as many, or more or fewer by a whole factor, there; cut elsewhere (--at), or use \
         --modules 1"
    )]
    Pixels {
        /// Height of the logits.
        h: usize,
        /// Their width.
        w: usize,
        /// Module number.
        boundary: usize,
        /// ONNX node that makes the boundary.
        after: String,
        /// The boundary's shape.
        shape: Dims,
    },
    /// The head classifies pixels, and the network does not, or the other way round.
    #[error(
        "head {kind} is {} networks that classify every pixel of an image; use --head auto",
        if *pixels { "not for" } else { "for" }
    )]
    Pixel {
        /// The kind asked for.
        kind: &'static str,
        /// Whether the network classifies pixels.
        pixels: bool,
    },
}

/// What every head must classify and needs, if a boundary of this shape does not have it: samples, and where the
/// network classifies each token of a sequence, or each pixel of an image, those.
pub fn missing(boundary: &[usize], logits: &Type) -> Option<Missing> {
    if let (Some(&samples), Some(&first)) = (logits.shape.first(), boundary.first())
        && samples != first
    {
        return Some(Missing::Samples(samples));
    }
    match (&logits.shape[..], boundary) {
        (&[_, tokens, _], &[_, t, _]) if t == tokens => None,
        (&[_, tokens, _], _) => Some(Missing::Tokens(tokens)),
        (&[_, _, height, width], &[_, _, h, w]) if scale(h, height).is_some() && scale(w, width).is_some() => None,
        (&[_, _, height, width], _) => Some(Missing::Pixels(height, width)),
        _ => None,
    }
}

/// What a boundary does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// So many samples.
    Samples(usize),
    /// So many tokens.
    Tokens(usize),
    /// An image of this height and width, or one that is larger or smaller by whole numbers.
    Pixels(usize, usize),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Samples(samples) => write!(
                f,
                "the network classifies {samples} samples, and a local head needs as many, [{samples}, ..], here"
            ),
            Missing::Tokens(tokens) => write!(
                f,
                "the network classifies {tokens} tokens, and a local head needs the same, [N, {tokens}, D], here"
            ),
            Missing::Pixels(h, w) => write!(
                f,
                "the network classifies {h}x{w} pixels, and a local head needs an image of as many, or more or fewer by a \
                 whole factor, here"
            ),
        }
    }
}

/// How an extent becomes another by a whole factor.
enum Scale {
    Repeated,
    Averaged(usize),
}

fn scale(from: usize, to: usize) -> Option<Scale> {
    if from > 0 && to.is_multiple_of(from) {
        Some(Scale::Repeated)
    } else if to > 0 && from.is_multiple_of(to) {
        Some(Scale::Averaged(from / to))
    } else {
        None
    }
}

/// The kind `auto` stands for at a boundary of this rank, in a network whose logits have that one.
pub fn resolve(kind: HeadKind, rank: usize, logits: usize) -> HeadKind {
    match (kind, rank) {
        (HeadKind::Auto, 4) if logits == 4 => HeadKind::Pixel,
        (HeadKind::Auto, 4) => HeadKind::PoolLinear,
        (HeadKind::Auto, 3) => HeadKind::Token,
        (HeadKind::Auto, _) => HeadKind::Linear,
        (kind, _) => kind,
    }
}

/// To which side a head of this kind pools an image of `h x w` before anything else, if it does.
fn first_pool(kind: HeadKind, h: usize, w: usize) -> Option<usize> {
    match kind {
        HeadKind::GapLinear => Some(1),
        HeadKind::PoolLinear => Some(2),
        HeadKind::MlpSr => Some((h.min(w) / 4).max(2)),
        HeadKind::Linear => (h * w > LINEAR_SIDE * LINEAR_SIDE).then_some(LINEAR_SIDE),
        HeadKind::Auto | HeadKind::Token | HeadKind::Conv | HeadKind::Pixel => None,
    }
}

/// Adds head `k` on `x` and returns its logits, shaped as the network's: `[N, classes]`, `[N, T, classes]` or
/// `[N, classes, H, W]`. BatchNorm in the head adds updates of its running statistics to the graph's roots.
pub fn attach(graph: &mut Graph, x: NodeId, kind: HeadKind, k: usize, logits: &Type) -> Result<NodeId, HeadError> {
    let shape = graph.shape(x).to_vec();
    let classes = logits.shape[class_dimension(logits)];
    let kind = resolve(kind, shape.len(), logits.rank());
    let after = || graph.origin(x).to_string();
    match missing(&shape, logits) {
        Some(Missing::Samples(samples)) => {
            return Err(HeadError::Samples { samples, boundary: k, after: after(), shape: Dims(shape) });
        }
        Some(Missing::Tokens(tokens)) => {
            return Err(HeadError::Tokens { tokens, boundary: k, after: after(), shape: Dims(shape) });
        }
        Some(Missing::Pixels(h, w)) => {
            return Err(HeadError::Pixels { h, w, boundary: k, after: after(), shape: Dims(shape) });
        }
        None => {}
    }
    if (kind == HeadKind::Pixel) != (logits.rank() == 4) {
        return Err(HeadError::Pixel { kind: kind.name(), pixels: logits.rank() == 4 });
    }
    let fail = |needs| HeadError::Boundary { kind: kind.name(), needs, boundary: k, shape: Dims(shape.clone()) };
    let mut h = Head { b: Builder::new(graph), k, updates: Vec::new() };
    h.b.phase = slrc_plan::kernel::Phase::Head;
    let image = shape.len() == 4;
    let first = if image { first_pool(kind, shape[2], shape[3]) } else { None };
    let per_token = logits.rank() == 3;
    let out = match (kind, first) {
        (HeadKind::GapLinear | HeadKind::PoolLinear | HeadKind::Linear | HeadKind::Auto, Some(side)) => {
            let v = h.pool(x, side);
            h.linear("linear", v, classes)
        }
        (HeadKind::Pixel, _) => h.pixel(x, classes, &logits.shape[2..]),
        (HeadKind::MlpSr, Some(side)) => h.mlp_sr(x, side, classes),
        (HeadKind::Conv, _) if image => h.conv_head(x, classes),
        (HeadKind::GapLinear | HeadKind::PoolLinear | HeadKind::Conv | HeadKind::MlpSr, _) => {
            return Err(fail("an image boundary [N, C, H, W]"));
        }
        (HeadKind::Token, _) if shape.len() == 3 => h.token(x, classes, per_token),
        (HeadKind::Token, _) => return Err(fail("a sequence boundary [N, T, D]")),
        (HeadKind::Linear | HeadKind::Auto, None) if per_token && shape.len() == 3 => h.linear("linear", x, classes),
        (HeadKind::Linear | HeadKind::Auto, None) => {
            let flat = h.b.reshape(x, &[shape[0], shape[1..].iter().product()]);
            h.linear("linear", flat, classes)
        }
    };
    let updates = std::mem::take(&mut h.updates);
    for (running, value) in updates {
        if let Op::Variable(v) = graph.node(running).op {
            graph.roots.push(Root { kind: RootKind::Update(v), value });
        }
    }
    Ok(out)
}

struct Head<'g> {
    b: Builder<'g>,
    k: usize,
    updates: Vec<(NodeId, NodeId)>,
}

impl Head<'_> {
    fn variable(&mut self, layer: &str, name: &str, kind: VarKind, shape: &[usize], init: Init) -> NodeId {
        layers::variable(&mut self.b, format!("head.{}.{layer}.{name}", self.k), kind, shape, init)
    }

    fn linear(&mut self, layer: &str, x: NodeId, out: usize) -> NodeId {
        let width = *self.b.shape(x).last().unwrap_or(&1);
        let weight = self.variable(layer, "weight", VarKind::Weight, &[out, width], fan_in(width));
        let bias = self.variable(layer, "bias", VarKind::Weight, &[out], fan_in(width));
        layers::linear(&mut self.b, x, weight, bias)
    }

    fn batch_norm(&mut self, layer: &str, x: NodeId) -> NodeId {
        let c = self.b.shape(x)[1];
        let scale = self.variable(layer, "weight", VarKind::Weight, &[c], Init::Constant(1.0));
        let shift = self.variable(layer, "bias", VarKind::Weight, &[c], Init::Constant(0.0));
        let running_mean = self.variable(layer, "running_mean", VarKind::RunningStatistic, &[c], Init::Constant(0.0));
        let running_var = self.variable(layer, "running_var", VarKind::RunningStatistic, &[c], Init::Constant(1.0));
        let n = BatchNorm { scale, shift, running_mean, running_var, epsilon: EPSILON, momentum: MOMENTUM };
        let out = layers::batch_norm(&mut self.b, x, n);
        self.updates.push((running_mean, out.new_mean));
        self.updates.push((running_var, out.new_var));
        out.y
    }

    fn conv(&mut self, layer: &str, x: NodeId, out: usize, kernel: usize, stride: usize) -> NodeId {
        let s = self.b.shape(x);
        let weight = self.variable(
            layer,
            "weight",
            VarKind::Weight,
            &[out, s[1], kernel, kernel],
            fan_in(s[1] * kernel * kernel),
        );
        let pad = kernel / 2;
        let extent = |n: usize| (n + 2 * pad - kernel) / stride + 1;
        let geometry = WindowGeometry {
            input: Dims(vec![s[2], s[3]]),
            output: Dims(vec![extent(s[2]), extent(s[3])]),
            kernel: Dims(vec![kernel; 2]),
            strides: Dims(vec![stride; 2]),
            pads: Dims(vec![pad; 2]),
            dilations: Dims(vec![1; 2]),
        };
        self.b.conv(x, weight, &ConvShape { groups: 1, geometry })
    }

    /// Average pool of an image to at most `side x side`, flattened to `[N, C * side * side]`.
    fn pool(&mut self, x: NodeId, side: usize) -> NodeId {
        let pooled = adaptive_average_pool(&mut self.b, x, side);
        let s = self.b.shape(pooled);
        self.b.reshape(pooled, &[s[0], s[1] * s[2] * s[3]])
    }

    fn token(&mut self, x: NodeId, classes: usize, per_token: bool) -> NodeId {
        let s = self.b.shape(x);
        let scale = self.variable("norm", "weight", VarKind::Weight, &[s[2]], Init::Constant(1.0));
        let shift = self.variable("norm", "bias", VarKind::Weight, &[s[2]], Init::Constant(0.0));
        let normed = layers::layer_norm(&mut self.b, x, &[2], EPSILON, scale, Some(shift));
        if per_token {
            return self.linear("linear", normed, classes);
        }
        let mean = self.b.mean(normed, &[1]);
        let mean = self.b.reshape(mean, &[s[0], s[2]]);
        self.linear("linear", mean, classes)
    }

    /// A class for each of `[height, width]` pixels. Where the boundary has fewer, all that come of one get its logits;
    /// where it has more, those of one are averaged first.
    fn pixel(&mut self, x: NodeId, classes: usize, image: &[usize]) -> NodeId {
        let s = self.b.shape(x);
        let scales =
            [0, 1].map(|d| scale(s[2 + d], image[d]).expect("invariant: boundaries without the pixels are refused"));
        let [rows, cols] = scales.each_ref().map(|s| if let Scale::Averaged(n) = s { *n } else { 1 });
        let (h, w) = (s[2] / rows, s[3] / cols);
        let apart = self.b.reshape(x, &[s[0], s[1], h, rows, w, cols]);
        let mean = self.b.mean(apart, &[3, 5]);
        let image_of_means = self.b.reshape(mean, &[s[0], s[1], h, w]);
        let y = self.conv("conv", image_of_means, classes, 1, 1);
        let bias = self.variable("conv", "bias", VarKind::Weight, &[classes], fan_in(s[1]));
        let bias = self.b.reshape(bias, &[1, classes, 1, 1]);
        let bias = self.b.broadcast(bias, &[s[0], classes, h, w]);
        let y = self.b.add(y, bias);
        spread(&mut self.b, y, &[s[0], classes, image[0], image[1]])
    }

    fn conv_head(&mut self, x: NodeId, classes: usize) -> NodeId {
        let s = self.b.shape(x);
        let stride = if s[2].min(s[3]) >= 8 { 2 } else { 1 };
        let y = self.conv("conv", x, s[1], 3, stride);
        let y = self.batch_norm("bn", y);
        let y = layers::relu(&mut self.b, y);
        let v = self.pool(y, 1);
        let h = self.linear("fc1", v, CONV_HIDDEN);
        let h = layers::relu(&mut self.b, h);
        self.linear("fc2", h, classes)
    }

    fn mlp_sr(&mut self, x: NodeId, side: usize, classes: usize) -> NodeId {
        let s = self.b.shape(x);
        let mut y = adaptive_average_pool(&mut self.b, x, side);
        for i in 1..=3 {
            y = self.conv(&format!("conv{i}"), y, s[1], 1, 1);
            y = self.batch_norm(&format!("bn{i}"), y);
            y = layers::relu(&mut self.b, y);
        }
        let mut v = self.pool(y, 2);
        let width = self.b.shape(v)[1];
        for i in 1..=3 {
            v = self.linear(&format!("fc{i}"), v, width);
            v = self.batch_norm(&format!("bn{}", i + 3), v);
            v = layers::relu(&mut self.b, v);
        }
        self.linear("fc4", v, classes)
    }
}

/// PyTorch's AdaptiveAvgPool2d: window `i` of `side` covers `floor(i n / side) .. ceil((i + 1) n / side)`. Images
/// smaller than `side` stay as they are.
fn adaptive_average_pool(b: &mut Builder<'_>, x: NodeId, side: usize) -> NodeId {
    let s = b.shape(x);
    let (n, c, h, w) = (s[0], s[1], s[2], s[3]);
    let (sh, sw) = (side.min(h), side.min(w));
    if (sh, sw) == (h, w) {
        return x;
    }
    if h % sh == 0 && w % sw == 0 {
        let split = b.reshape(x, &[n, c, sh, h / sh, sw, w / sw]);
        let mean = b.mean(split, &[3, 5]);
        return b.reshape(mean, &[n, c, sh, sw]);
    }
    // Overlapping windows: a product with a constant matrix of weights.
    let weight = |i: usize, side: usize, n: usize, at: usize| {
        let (from, to) = (i * n / side, ((i + 1) * n).div_ceil(side));
        if (from..to).contains(&at) { 1.0 / (to - from) as f64 } else { 0.0 }
    };
    let mut data = Vec::with_capacity(h * w * sh * sw);
    for p in 0..h * w {
        for q in 0..sh * sw {
            data.push(weight(q / sw, sh, h, p / w) * weight(q % sw, sw, w, p % w));
        }
    }
    let matrix = b.constant(Type::f32([h * w, sh * sw]), data);
    let flat = b.reshape(x, &[n, c, h * w]);
    let matrix = b.reshape(matrix, &[1, h * w, sh * sw]);
    let matrix = b.broadcast(matrix, &[n, h * w, sh * sw]);
    let y = b.matmul(flat, matrix);
    b.reshape(y, &[n, c, sh, sw])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::graph::{Input, InputKind};

    /// The logits' shape, or why there are none, of a head on a boundary.
    fn logits(kind: HeadKind, boundary: &[usize], network: &[usize]) -> Result<Vec<usize>, HeadError> {
        let mut g = Graph::new("head");
        let input = g.add_input(Input { name: "x".into(), kind: InputKind::Data, ty: Type::f32(boundary.to_vec()) });
        let origin = g.add_origin("/stem/Conv");
        let mut b = Builder::new(&mut g);
        b.origin = origin;
        let x = b.input(input);
        attach(&mut g, x, kind, 3, &Type::f32(network.to_vec())).map(|y| g.shape(y).to_vec())
    }

    #[test]
    fn heads_yield_logits_like_the_networks() {
        assert_eq!(logits(HeadKind::Auto, &[2, 8, 4, 4], &[2, 10]), Ok(vec![2, 10]));
        assert_eq!(logits(HeadKind::Auto, &[2, 5, 8], &[2, 10]), Ok(vec![2, 10]));
        assert_eq!(logits(HeadKind::Auto, &[2, 5, 8], &[2, 5, 10]), Ok(vec![2, 5, 10]));
        assert_eq!(logits(HeadKind::Linear, &[2, 5, 8], &[2, 5, 10]), Ok(vec![2, 5, 10]));
    }

    #[test]
    fn a_boundary_without_the_tokens_is_named() {
        // An image, a sequence with a class token more, a vector: whatever the head.
        for (kind, boundary) in [
            (HeadKind::Auto, &[2, 8, 4, 4][..]),
            (HeadKind::Linear, &[2, 8, 4, 4]),
            (HeadKind::Conv, &[2, 8, 4, 4]),
            (HeadKind::Token, &[2, 17, 8]),
            (HeadKind::Auto, &[2, 128]),
        ] {
            let e = logits(kind, boundary, &[2, 16, 10]).expect_err("no head");
            let text = e.to_string();
            assert!(matches!(e, HeadError::Tokens { tokens: 16, boundary: 3, .. }), "{text}");
            assert!(text.contains("boundary 3, after \"/stem/Conv\"") && text.contains("--at"), "{text}");
        }
        let e = logits(HeadKind::Token, &[2, 8, 4, 4], &[2, 10]).expect_err("no sequence");
        assert!(matches!(e, HeadError::Boundary { .. }), "{e}");
    }
}
