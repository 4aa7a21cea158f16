//! Where values that depend on weights go on without a gradient.

use std::collections::BTreeSet;

use onnx_protobuf::{NodeProto, TensorProto};

use crate::onnx::file::OnnxFile;
use crate::onnx::import::needed_nodes;
use crate::onnx::links::Links;
use crate::onnx::node::node_name;
use crate::onnx::tensor::{Elem, elem};

/// Nodes that no gradient passes although what they read depends on weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GradientEnds {
    /// Nodes whose result is whole numbers or flags: operator and node.
    pub discrete: Vec<(String, String)>,
    /// Nodes whose result is a step function of a float, with gradient zero: operator and node.
    pub steps: Vec<(String, String)>,
    /// Weights that reach the output only through such nodes.
    pub unreached: Vec<String>,
}

/// How an operator treats gradients.
enum Passes {
    /// To every operand that is a float.
    All,
    /// Not to operands from this slot on.
    Before(usize),
    /// Not to operands from this slot on, which are settings, not weights.
    Settings(usize),
    /// Not to this operand.
    AllBut(usize),
    /// The result says nothing of its operand's values.
    NotDependent,
    /// Whole numbers or flags.
    Discrete,
    /// A float, but with gradient zero wherever there is one.
    Step,
}

fn passes(n: &NodeProto) -> Passes {
    match n.op_type.as_str() {
        "Shape" | "Size" | "ConstantOfShape" | "EyeLike" | "RandomUniformLike" | "RandomNormalLike" => {
            Passes::NotDependent
        }
        "Cast" => {
            let to = n.attribute.iter().find(|a| a.name == "to").map_or(0, |a| a.i as i32);
            if elem(to) == Some(Elem::Float) { Passes::All } else { Passes::Discrete }
        }
        "Equal"
        | "Less"
        | "LessOrEqual"
        | "Greater"
        | "GreaterOrEqual"
        | "Not"
        | "And"
        | "Or"
        | "Xor"
        | "IsNaN"
        | "IsInf"
        | "ArgMax"
        | "ArgMin"
        | "NonZero"
        | "OneHot"
        | "Bernoulli"
        | "Multinomial"
        | "QuantizeLinear"
        | "DynamicQuantizeLinear"
        | "NonMaxSuppression"
        | "MatMulInteger"
        | "ConvInteger"
        | "QLinearMatMul"
        | "QLinearConv" => Passes::Discrete,
        "Round" | "Floor" | "Ceil" | "Sign" | "Hardmax" => Passes::Step,
        // A condition chooses; the chosen values have gradients.
        "Where" => Passes::AllBut(0),
        "Gather" | "GatherElements" | "GatherND" | "Reshape" | "Expand" | "Slice" | "Tile" | "Unsqueeze"
        | "Squeeze" | "Split" | "TopK" | "CumSum" | "CumProd" | "Trilu" | "Compress" | "Dropout" | "CastLike"
        | "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" => Passes::Before(1),
        "ScatterND" | "ScatterElements" => Passes::AllBut(1),
        "DequantizeLinear" => Passes::Settings(1),
        "Pad" => Passes::AllBut(1),
        // Running statistics follow the batch; they are not trained by gradients.
        "BatchNormalization" => Passes::Settings(3),
        "Resize" | "Upsample" => Passes::Settings(1),
        _ => Passes::All,
    }
}

impl Passes {
    fn to(&self, slot: usize) -> bool {
        match self {
            Passes::All => true,
            Passes::Before(end) | Passes::Settings(end) => slot < *end,
            Passes::AllBut(one) => slot != *one,
            Passes::NotDependent | Passes::Discrete | Passes::Step => false,
        }
    }

    fn depends_on(&self, slot: usize) -> bool {
        match self {
            Passes::NotDependent => false,
            Passes::Settings(end) => slot < *end,
            Passes::All | Passes::Before(_) | Passes::AllBut(_) | Passes::Discrete | Passes::Step => true,
        }
    }
}

/// A float tensor of more than one element, as weights are.
pub(crate) fn is_weight(t: &TensorProto) -> bool {
    elem(t.data_type) == Some(Elem::Float) && is_many(t)
}

fn is_many(t: &TensorProto) -> bool {
    !t.dims.is_empty() && t.dims.iter().fold(1i64, |a, &d| a.saturating_mul(d)) > 1
}

/// Operators that compute with rounded integers in place of floats, or make floats of them.
const QUANTIZED: &[&str] = &[
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearMatMul",
    "QLinearConv",
    "MatMulInteger",
    "ConvInteger",
];

fn is_quantized(n: &NodeProto) -> bool {
    n.domain.is_empty() && QUANTIZED.contains(&n.op_type.as_str())
}

/// The operands of such an operator that are quantized, or are to be; the others say how.
fn quantized_operands(n: &NodeProto) -> impl Iterator<Item = &str> {
    let slots: &[usize] = match n.op_type.as_str() {
        "QLinearMatMul" | "QLinearConv" => &[0, 3],
        "MatMulInteger" | "ConvInteger" => &[0, 1],
        _ => &[0],
    };
    slots.iter().filter_map(|&s| n.input.get(s)).map(String::as_str)
}

/// Nodes that `output` needs and that quantize what depends on weights, or hold weights as integers: operator and node.
pub(crate) fn quantized(file: &OnnxFile, output: &str) -> Vec<(String, String)> {
    let graph = &file.proto.graph;
    if !graph.node.iter().any(is_quantized) {
        return Vec::new();
    }
    let needed = needed_nodes(&graph.node, output);
    let mut dependent = weights(file, &needed);
    let mut out = Vec::new();
    for &i in &needed {
        let n = &graph.node[i];
        let rule = passes(n);
        let depends = if is_quantized(n) {
            quantized_operands(n).any(|v| dependent.contains(v))
        } else {
            n.input.iter().enumerate().any(|(s, v)| rule.depends_on(s) && dependent.contains(v.as_str()))
        };
        if depends {
            if is_quantized(n) {
                out.push((n.op_type.clone(), node_name(n)));
            }
            dependent.extend(n.output.iter().map(String::as_str));
        }
    }
    out
}

/// Initializers that are weights, as floats or quantized.
fn weights<'a>(file: &'a OnnxFile, needed: &[usize]) -> BTreeSet<&'a str> {
    let graph = &file.proto.graph;
    let quantized = needed.iter().map(|&i| &graph.node[i]).filter(|n| is_quantized(n)).flat_map(quantized_operands);
    let quantized: BTreeSet<&str> = quantized.collect();
    let all = graph.initializer.iter().filter(|t| is_weight(t) || is_many(t) && quantized.contains(t.name.as_str()));
    all.map(|t| t.name.as_str()).collect()
}

/// Looks at everything `output` needs.
pub fn gradient_ends(file: &OnnxFile, output: &str) -> GradientEnds {
    let graph = &file.proto.graph;
    let needed = needed_nodes(&graph.node, output);
    let weights = weights(file, &needed);
    let mut out = GradientEnds::default();
    // Forwards: what depends on a weight.
    let mut dependent = weights.clone();
    for &i in &needed {
        let n = &graph.node[i];
        let rule = passes(n);
        let any = n.input.iter().enumerate().any(|(s, v)| rule.depends_on(s) && dependent.contains(v.as_str()));
        if !any {
            continue;
        }
        match rule {
            // What reads flags and indices is behind an end already.
            Passes::Discrete if reads_flags(n) => {}
            Passes::Discrete => out.discrete.push((n.op_type.clone(), node_name(n))),
            Passes::Step => out.steps.push((n.op_type.clone(), node_name(n))),
            Passes::All | Passes::Before(_) | Passes::Settings(_) | Passes::AllBut(_) | Passes::NotDependent => {}
        }
        dependent.extend(n.output.iter().map(String::as_str));
    }
    // Backwards: what a gradient reaches, and what it would reach if every operator passed one.
    let reached = |strict: bool| {
        let mut reached: BTreeSet<&str> = BTreeSet::from([output]);
        for &i in needed.iter().rev() {
            let n = &graph.node[i];
            let rule = passes(n);
            if n.output.iter().any(|o| reached.contains(o.as_str())) {
                let slots = n.input.iter().enumerate();
                let taken = slots.filter(|&(s, _)| if strict { rule.to(s) } else { rule.depends_on(s) });
                reached.extend(taken.map(|(_, v)| v.as_str()));
            }
        }
        reached
    };
    let (with, without) = (reached(true), reached(false));
    let links = Links::new(graph);
    let used = |name: &str| !links.real_uses(name).is_empty();
    let lost = weights.iter().filter(|w| without.contains(**w) && !with.contains(**w) && used(w));
    out.unreached = lost.map(|w| w.to_string()).collect();
    out
}

/// Whether a node that makes flags reads flags itself.
fn reads_flags(n: &NodeProto) -> bool {
    matches!(n.op_type.as_str(), "Not" | "And" | "Or" | "Xor")
}
