//! ONNX in and out: the only folder that knows protobuf.
//!
//! [`file::OnnxFile`] opens a model behind the wire guard and reads its tensors; [`import::import`] turns its graph
//! into IR over a small closed op set; [`export`] writes trained weights back into the user's own graph.
//! Nothing here knows about modules, heads or plans, and nothing reads outside the model's folder.

mod beside;
mod branches;
mod chances;
mod cone;
pub mod diagnose;
pub mod export;
pub mod file;
mod folded;
mod folding;
pub mod forward;
mod habits;
pub mod import;
mod inline;
mod links;
mod loops;
mod narrow;
mod node;
pub mod ops;
pub mod place;
mod protos;
pub mod repair;
mod resolve;
mod scopes;
mod sequences;
pub mod tensor;
mod unique;
pub mod wire;

use std::path::PathBuf;

/// A model could not be read or imported. Every variant is the model's or the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not an ONNX model.
    #[error("{path} is not a valid ONNX model: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor's data is missing or does not fit its type.
    #[error("tensor \"{name}\": {reason}")]
    Tensor {
        /// Initializer name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A graph input's shape is not known.
    #[error("input \"{name}\": {reason}")]
    Input {
        /// Input name.
        name: String,
        /// What is wrong and what to pass.
        reason: String,
    },
    /// The graph as a whole cannot be used.
    #[error("{0}")]
    Graph(String),
    /// Nodes that cannot be imported, all at once.
    #[error("{}", list(.0))]
    Nodes(Vec<NodeError>),
}

/// One node that cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeError {
    /// Node name, or its first output where it has none.
    pub node: String,
    /// Operator, with its domain unless it is ONNX's own.
    pub op: String,
    /// Opset the model uses for that domain.
    pub opset: i64,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for NodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node \"{}\" ({}, opset {}): {}", self.node, self.op, self.opset, self.reason)
    }
}

fn list(nodes: &[NodeError]) -> String {
    let lines: Vec<String> = nodes.iter().map(|n| format!("  {n}")).collect();
    let count = if nodes.len() == 1 { "1 node".to_string() } else { format!("{} nodes", nodes.len()) };
    format!("{count} cannot be imported (`slrc ops` lists what can):\n{}", lines.join("\n"))
}
