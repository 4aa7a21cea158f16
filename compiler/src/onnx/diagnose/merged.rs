//! Initializers that several nodes use: merged by the exporter because they were equal, or shared by the network.

use std::collections::BTreeSet;

use crate::onnx::diagnose::gradient::is_weight;
use crate::onnx::file::OnnxFile;
use crate::onnx::links::{Links, Use};
use crate::onnx::node::node_name;
use crate::onnx::tensor::read_f32;

/// Why several nodes use one initializer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equality {
    /// Every number in it is the same, as in weights before training: equal tensors were merged.
    Constant,
    /// Its numbers differ, which separate layers do not have in common by chance.
    Shared,
    /// An embedding that is a matrix of a product too.
    Embedding,
    /// The file does not hold its values.
    Unknown,
}

/// An initializer with several uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Its name.
    pub name: String,
    /// Nodes that use it, in order.
    pub nodes: Vec<String>,
    /// Whether Identity nodes stand between.
    pub through_identity: bool,
    /// Why.
    pub equality: Equality,
}

/// Every weight with more than one use.
pub fn merged(file: &OnnxFile) -> Vec<Merged> {
    let graph = &file.proto.graph;
    let links = Links::new(graph);
    let mut out = Vec::new();
    for t in graph.initializer.iter().filter(|t| is_weight(t)) {
        let uses: Vec<Use> = links.real_uses(&t.name).into_iter().filter(|&u| is_weight_use(&links, u)).collect();
        if uses.len() < 2 {
            continue;
        }
        let equality = if is_embedding(&links, &uses) {
            Equality::Embedding
        } else {
            match read_f32(file, t) {
                Ok(values) if values.windows(2).all(|w| w[0].to_bits() == w[1].to_bits()) => Equality::Constant,
                Ok(_) => Equality::Shared,
                Err(_) => Equality::Unknown,
            }
        };
        let nodes = uses.iter().map(|&(n, _)| node_name(&graph.node[n])).collect();
        let through_identity = links.uses(&t.name).iter().any(|&(n, _)| graph.node[n].op_type == "Identity");
        out.push(Merged { name: t.name.clone(), nodes, through_identity, equality });
    }
    out
}

/// Whether a use reads the values: not those that only ask for the shape.
fn is_weight_use(links: &Links<'_>, (node, _): Use) -> bool {
    !matches!(links.nodes[node].op_type.as_str(), "Shape" | "Size")
}

/// Looked up in one place and multiplied by in another, perhaps transposed before.
fn is_embedding(links: &Links<'_>, uses: &[Use]) -> bool {
    let looked_up = uses.iter().any(|&(n, slot)| links.nodes[n].op_type == "Gather" && slot == 0);
    let mut left: Vec<usize> = uses.iter().map(|u| u.0).collect();
    let mut seen = BTreeSet::new();
    let mut multiplied = false;
    while let Some(n) = left.pop() {
        match links.nodes[n].op_type.as_str() {
            "MatMul" | "Gemm" => multiplied = true,
            "Transpose" | "Cast" if seen.insert(n) => {
                let outputs = links.nodes[n].output.iter();
                left.extend(outputs.flat_map(|o| links.real_uses(o)).map(|u| u.0));
            }
            _ => {}
        }
    }
    looked_up && multiplied
}
