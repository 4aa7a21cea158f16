//! What a file tells of itself before and apart from an import: sizes, names, operators, and what an exporter did to
//! the network. Nothing here can fail: what cannot be read is left out.

mod gradient;
mod inventory;
mod merged;
mod missing;
mod names;

pub(crate) use gradient::quantized;
pub use gradient::{GradientEnds, gradient_ends};
pub use inventory::{Contents, Opset, Port, Tensors, contents};
pub use merged::{Equality, Merged, merged};
pub use missing::{Missing, grouped, missing};
pub use names::{Renamed, renamed};

use crate::onnx::file::OnnxFile;
use crate::onnx::folded::{Sign, folded};
use crate::onnx::habits::dropout_habits;
use crate::onnx::node::node_name;

/// Convolutions that may have had a BatchNormalization.
#[derive(Clone, Debug)]
pub struct FoldedConvolutions {
    /// Their names.
    pub nodes: Vec<String>,
    /// Whether the file holds names that only folding gives; otherwise only the network's form speaks for it.
    pub by_names: bool,
}

/// See [`FoldedConvolutions`].
pub fn folded_convolutions(file: &OnnxFile) -> Option<FoldedConvolutions> {
    let found = folded(&file.proto.graph)?;
    let nodes = found.nodes.iter().map(|&i| node_name(&file.proto.graph.node[i])).collect();
    Some(FoldedConvolutions { nodes, by_names: found.sign == Sign::Names })
}

/// Dropout that a file has, or usually would have had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropoutPlaces {
    /// Dropout nodes it has.
    pub present: usize,
    /// Blocks of attention.
    pub blocks: usize,
    /// Nodes in front of which networks of this kind have it.
    pub places: Vec<String>,
}

/// See [`DropoutPlaces`].
pub fn dropout_places(file: &OnnxFile, output: &str) -> DropoutPlaces {
    let graph = &file.proto.graph;
    let habits = dropout_habits(graph, output);
    DropoutPlaces {
        present: graph.node.iter().filter(|n| n.op_type == "Dropout").count(),
        blocks: habits.attention,
        places: habits.places.iter().map(|&(n, _)| node_name(&graph.node[n])).collect(),
    }
}
