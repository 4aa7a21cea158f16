//! Convolutions that may have had a BatchNormalization behind them before an exporter folded it away.
//!
//! A file does not say so. Two things tell: names that only folding gives, and, where no such name is there, a network
//! of convolutions and activations without any normalisation, which is also what VGG or SqueezeNet look like.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto};

use crate::onnx::links::Links;
use crate::onnx::tensor::is_weight_type;

/// What the judgement rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Names that an exporter gives when it folds.
    Names,
    /// Nothing but the form of the network.
    Form,
}

/// Convolutions, by node index, and why they.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folded {
    pub(crate) nodes: Vec<usize>,
    pub(crate) sign: Sign,
}

/// Fewest convolutions of a network that is judged by its form: a patch embedding is one convolution.
const FEWEST: usize = 3;

/// Operators that stand behind a convolution and its BatchNormalization.
const FOLLOW: &[&str] = &[
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "Clip",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Softplus",
    "Mish",
    "Gelu",
    "Tanh",
    "Add",
    "Mul",
    "Concat",
    "Conv",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
];

/// Which convolutions of a graph look as if a BatchNormalization had been folded into them.
pub(crate) fn folded(graph: &GraphProto) -> Option<Folded> {
    let links = Links::new(graph);
    let is_open = |i: &usize| is_convolution(&graph.node[*i]) && !is_normalised(&links, *i);
    let open: Vec<usize> = (0..graph.node.len()).filter(is_open).collect();
    let named: Vec<usize> = open.iter().copied().filter(|&i| is_named_by_folding(&links, &graph.node[i])).collect();
    if !named.is_empty() {
        return Some(Folded { nodes: named, sign: Sign::Names });
    }
    let outputs: BTreeSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut pooled = Pooled(BTreeMap::new());
    let formed: Vec<usize> = open.into_iter().filter(|&i| has_the_form(&links, &outputs, &mut pooled, i)).collect();
    let other_norms = graph.node.iter().any(|n| n.op_type.ends_with("Normalization"));
    (formed.len() >= FEWEST && !other_norms).then_some(Folded { nodes: formed, sign: Sign::Form })
}

/// A convolution that makes something.
pub(crate) fn is_convolution(n: &NodeProto) -> bool {
    n.op_type == "Conv" && n.output.first().is_some_and(|o| !o.is_empty())
}

/// Whether a normalisation follows.
pub(crate) fn is_normalised(links: &Links<'_>, conv: usize) -> bool {
    let Some(output) = links.nodes[conv].output.first() else { return false };
    links.real_uses(output).iter().any(|&(n, _)| links.nodes[n].op_type.ends_with("Normalization"))
}

/// Whether a convolution's weight is a tensor of the file, in a type that weights may be of.
pub(crate) fn has_own_weight(links: &Links<'_>, n: &NodeProto) -> bool {
    let weight = n.input.get(1).and_then(|w| links.initializer(w));
    weight.is_some_and(|t| is_weight_type(t.data_type))
}

/// PyTorch's TorchScript exporter calls what it computed `onnx::Conv_193`. Its newer exporter calls a bias that it made
/// `<weight>_bias`, and the convolution has the name of BatchNorm's result, an element of a tuple: `getitem_3`.
fn is_named_by_folding(links: &Links<'_>, n: &NodeProto) -> bool {
    let input = |i: usize| n.input.get(i).map_or("", String::as_str);
    let numbered = |name: &str, prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    };
    let output = n.output.first().map_or("", String::as_str);
    let by_torchscript = numbered(input(1), "onnx::Conv_");
    let by_dynamo = (!input(2).is_empty() && input(2).strip_suffix("_bias") == Some(input(1)))
        || output == "getitem"
        || numbered(output, "getitem_");
    has_own_weight(links, n) && (by_torchscript || by_dynamo)
}

fn has_the_form(links: &Links<'_>, outputs: &BTreeSet<&str>, pooled: &mut Pooled, conv: usize) -> bool {
    let n = &links.nodes[conv];
    let Some(output) = n.output.first() else { return false };
    let follow = links.real_uses(output);
    has_own_weight(links, n)
        && !outputs.contains(output.as_str())
        && !follow.is_empty()
        && follow.iter().all(|&(f, _)| FOLLOW.contains(&links.nodes[f].op_type.as_str()))
        && !pooled.gates_channels(links, conv)
}

/// Of nodes that were looked at, whether what they make is a pooled image, one number a channel, or made of one alone.
struct Pooled(BTreeMap<usize, bool>);

impl Pooled {
    /// Whether what a convolution reads is pooled, as in squeeze-and-excitation: those convolutions have biases of
    /// their own.
    fn gates_channels(&mut self, links: &Links<'_>, conv: usize) -> bool {
        let (mut at, mut way) = (maker_of(links, links.nodes[conv].input.first()), Vec::new());
        let found = loop {
            let Some(node) = at else { break false };
            if let Some(&known) = self.0.get(&node) {
                break known;
            }
            // Until it is known: a damaged file may hold a circle.
            self.0.insert(node, false);
            way.push(node);
            let n = &links.nodes[node];
            at = match n.op_type.as_str() {
                "GlobalAveragePool" | "ReduceMean" => break true,
                "Conv" | "Relu" | "Clip" | "HardSwish" | "Sigmoid" | "LeakyRelu" | "Identity" => {
                    maker_of(links, n.input.first())
                }
                // A swish: x * sigmoid(x).
                "Mul" => match (n.input.first(), n.input.get(1)) {
                    (Some(a), Some(b)) if is_sigmoid_of(links, b, a) => maker_of(links, Some(a)),
                    (Some(a), Some(b)) if is_sigmoid_of(links, a, b) => maker_of(links, Some(b)),
                    _ => None,
                },
                _ => None,
            };
        };
        self.0.extend(way.into_iter().map(|node| (node, found)));
        found
    }
}

fn maker_of(links: &Links<'_>, value: Option<&String>) -> Option<usize> {
    links.maker(value?)
}

fn is_sigmoid_of(links: &Links<'_>, value: &str, operand: &str) -> bool {
    links.maker(value).is_some_and(|m| {
        let n = &links.nodes[m];
        n.op_type == "Sigmoid" && n.input.first().is_some_and(|x| x == operand)
    })
}
