//! The graph IR: a pure dataflow graph over a small closed set of ops.
//!
//! A node has one result. Nodes are only ever added, so an operand always has a smaller id than its user
//! and ids order the graph topologically; equal nodes are the same node. A pass builds a new graph.
//! Effects (weight updates, reported numbers, what crosses a boundary) are roots beside the nodes.
//!
//! Shapes are logical (an image is `N, C, H, W` as in ONNX); memory order is the business of lowering.
//! The IR knows no ONNX, no YAML and no device, and it is not serializable by design: the plan is.
//!
//! Begin with [`graph::Graph`], [`op::Op`] and [`builder::Builder`].

pub mod builder;
pub mod constants;
pub mod graph;
pub mod identities;
pub mod interp;
pub(crate) mod numbered;
pub mod op;
pub mod ops;
mod products;
pub mod rewrite;
pub mod samples;
mod sums;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use builder::Builder;
pub use graph::{Graph, Node, NodeId, Root, RootKind};
pub use op::Op;
pub use tensor::Tensor;
pub use types::Type;
