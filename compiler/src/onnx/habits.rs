//! Where networks of a file's kind usually have dropout, which exports for inference leave out.
//!
//! Transformers have it at the end of every branch of a block, before the residual addition: behind the projection of
//! the attention and behind the second layer of the MLP. Convolutional networks have it in front of their classifier.

use onnx_protobuf::GraphProto;

use crate::onnx::links::{Links, Use};

/// Usual places in a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Habits {
    /// Blocks of attention.
    pub(crate) attention: usize,
    /// Uses of values that dropout would come before.
    pub(crate) places: Vec<Use>,
}

/// Longest way from an addition back to the layer whose result it adds, and from an output to its classifier.
const STEPS: usize = 8;

/// The usual places for dropout on the way to `output`.
pub(crate) fn dropout_habits(graph: &GraphProto, output: &str) -> Habits {
    let links = Links::new(graph);
    let attention = (0..graph.node.len()).filter(|&i| is_attention(&links, i)).count();
    let places = if attention > 0 {
        let branches = (0..graph.node.len()).filter(|&i| graph.node[i].op_type == "Add");
        branches.filter_map(|i| residual_branch(&links, i)).collect()
    } else {
        let behind = |c: &Use| depends_on_convolution(&links, &graph.node[c.0].input[c.1]);
        classifier(&links, output).filter(behind).into_iter().collect()
    };
    Habits { attention, places }
}

/// An Attention node, or a softmax by whose result something is multiplied.
fn is_attention(links: &Links<'_>, i: usize) -> bool {
    let n = &links.nodes[i];
    match n.op_type.as_str() {
        "Attention" => true,
        "Softmax" => n.output.iter().any(|o| {
            let mut uses = links.real_uses(o).into_iter();
            uses.any(|(u, slot)| links.nodes[u].op_type == "MatMul" && slot == 0)
        }),
        _ => false,
    }
}

/// Of an addition of two computed values the operand, if it is one alone, that comes from a linear layer.
fn residual_branch(links: &Links<'_>, add: usize) -> Option<Use> {
    let inputs = &links.nodes[add].input;
    if inputs.len() != 2 || inputs.iter().any(|i| links.initializer(i).is_some()) {
        return None;
    }
    let linear: Vec<usize> = (0..2).filter(|&slot| is_linear(links, &inputs[slot])).collect();
    match linear[..] {
        [slot] => Some((add, slot)),
        _ => None,
    }
}

/// Whether a value is the result of a layer with a weight matrix, its bias included.
fn is_linear(links: &Links<'_>, value: &str) -> bool {
    layer_of(links, value).is_some()
}

/// The layer with a weight matrix that makes a value, behind a bias and changes of shape.
fn layer_of(links: &Links<'_>, value: &str) -> Option<usize> {
    let mut value = value;
    for _ in 0..STEPS {
        let at = links.maker(value)?;
        let n = &links.nodes[at];
        let is_weight = |slot: usize| n.input.get(slot).is_some_and(|i| links.initializer(i).is_some());
        value = match n.op_type.as_str() {
            "MatMul" | "Gemm" if is_weight(1) => return Some(at),
            "Add" if is_weight(1) => &n.input[0],
            "Add" if is_weight(0) => n.input.get(1)?,
            "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => n.input.first()?,
            _ => return None,
        };
    }
    None
}

/// What the layer that makes the output reads.
fn classifier(links: &Links<'_>, output: &str) -> Option<Use> {
    let mut value = output;
    for _ in 0..STEPS {
        if let Some(layer) = layer_of(links, value) {
            return Some((layer, 0));
        }
        let n = &links.nodes[links.maker(value)?];
        value = n.input.first().filter(|_| matches!(n.op_type.as_str(), "Softmax" | "LogSoftmax"))?;
    }
    None
}

fn depends_on_convolution(links: &Links<'_>, value: &str) -> bool {
    let (mut left, mut seen) = (vec![value], vec![false; links.nodes.len()]);
    while let Some(value) = left.pop() {
        let Some(at) = links.maker(value).filter(|&at| !seen[at]) else { continue };
        seen[at] = true;
        if links.nodes[at].op_type == "Conv" {
            return true;
        }
        left.extend(links.nodes[at].input.iter().map(String::as_str));
    }
    false
}
