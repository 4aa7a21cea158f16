//! The graph: nodes, the tensors they refer to, and roots. The only file that names petgraph.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use slrc_plan::kernel::Phase;
use slrc_plan::schedule::{Pass, Schedule};

use crate::ir::constants::Constants;
use crate::ir::numbered::{number_of, numbered};
use crate::ir::op::Op;
use crate::ir::sums::Sums;
use crate::ir::types::{DType, Type};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A node and the value it yields.
    NodeId,
    "%"
);
id!(
    /// A graph input.
    InputId,
    "in"
);
id!(
    /// A weight, statistic or optimizer tensor.
    VarId,
    "var"
);
id!(
    /// A constant tensor.
    ConstId,
    "const"
);
id!(
    /// A number that changes from step to step.
    ScalarId,
    "scalar"
);
id!(
    /// The ONNX node some work came from.
    OriginId,
    "from"
);

/// One operation and its result.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// From what, in order.
    pub operands: Vec<NodeId>,
    /// Type of the result.
    pub ty: Type,
    /// Where it came from.
    pub origin: OriginId,
    /// Part of the step.
    pub phase: Phase,
}

/// What an input carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// An ONNX graph input.
    Data,
    /// Targets of the loss.
    Labels,
    /// What the previous module hands on, detached: tensor 0 is its output, others are carried along.
    Boundary(usize),
    /// Its loss's gradient with respect to that tensor, detached.
    BoundaryGradient(usize),
}

impl InputKind {
    /// The form in IR text: `boundary` is tensor 0 of a boundary, `boundary.2` its tensor 2.
    pub fn text(self) -> String {
        match self {
            InputKind::Data => "data".into(),
            InputKind::Labels => "labels".into(),
            InputKind::Boundary(i) => numbered("boundary", i),
            InputKind::BoundaryGradient(i) => numbered("boundary-gradient", i),
        }
    }

    /// From its form in IR text.
    pub fn parse(text: &str) -> Option<InputKind> {
        Some(match text {
            "data" => InputKind::Data,
            "labels" => InputKind::Labels,
            _ => match number_of("boundary", text) {
                Some(i) => InputKind::Boundary(i),
                None => InputKind::BoundaryGradient(number_of("boundary-gradient", text)?),
            },
        })
    }
}

/// A graph input.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Unique among the inputs.
    pub name: String,
    /// What it carries.
    pub kind: InputKind,
    /// Its type.
    pub ty: Type,
}

/// What a variable is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VarKind {
    /// Trained.
    Weight,
    /// BatchNorm's running mean or variance.
    RunningStatistic,
    /// Loaded, never changed.
    Frozen,
    /// Momentum or moment; starts at zero.
    Optimizer,
}

impl VarKind {
    /// Every kind.
    pub const ALL: &'static [VarKind] =
        &[VarKind::Weight, VarKind::RunningStatistic, VarKind::Frozen, VarKind::Optimizer];

    /// The name in IR text.
    pub fn name(self) -> &'static str {
        match self {
            VarKind::Weight => "weight",
            VarKind::RunningStatistic => "running-statistic",
            VarKind::Frozen => "frozen",
            VarKind::Optimizer => "optimizer",
        }
    }
}

/// How a variable starts when it is not loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element this.
    Constant(f64),
    /// Uniform in `[-bound, bound)`.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
}

/// A tensor that outlives a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Checkpoint name; unique.
    pub name: String,
    /// What it is for.
    pub kind: VarKind,
    /// Its type.
    pub ty: Type,
    /// Initial values where none are loaded.
    pub init: Init,
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Its type.
    pub ty: Type,
    /// Row-major elements.
    pub data: Vec<f64>,
}

/// A number the runtime sets before each pass of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepScalar {
    /// `lr`, `lambda` ...
    pub name: String,
    /// Its value by step.
    pub schedule: Schedule,
    /// In which passes it has that value.
    pub pass: Pass,
}

/// What a root does with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootKind {
    /// The network's result, or logits.
    Output(String),
    /// What a module hands on: tensor 0 is its output `x`, others are carried along.
    Boundary(usize),
    /// The gradient of its loss with respect to that tensor: of tensor 0, the output gradient `e`.
    OutputGradient(usize),
    /// Becomes the new content of a variable, after every read of it.
    Update(VarId),
    /// A number or tensor the step reports under this name.
    Report(String),
}

/// An effect of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// What is done.
    pub kind: RootKind,
    /// With which value.
    pub value: NodeId,
}

/// FNV-1a, word by word: no input chooses what a graph's nodes are told apart by, and this is asked for every one.
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, x: u8) {
        self.write_u64(u64::from(x));
    }

    fn write_u32(&mut self, x: u32) {
        self.write_u64(u64::from(x));
    }

    fn write_u64(&mut self, x: u64) {
        self.0 = (self.0 ^ x).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    fn write_usize(&mut self, x: usize) {
        self.write_u64(x as u64);
    }

    fn write_isize(&mut self, x: isize) {
        self.write_u64(x as u64);
    }
}

/// The hash of what is a hash.
#[derive(Clone, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("invariant: only hashes are hashed");
    }

    fn write_u64(&mut self, x: u64) {
        self.0 = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

fn hash_of(op: &Op, operands: &[NodeId]) -> u64 {
    let mut hasher = Fnv::default();
    op.hash(&mut hasher);
    operands.hash(&mut hasher);
    hasher.finish()
}

/// A dataflow graph with its inputs, variables, constants and roots.
#[derive(Clone, Debug)]
pub struct Graph {
    /// For people.
    pub name: String,
    /// Inputs, by [`InputId`].
    pub inputs: Vec<Input>,
    /// Variables, by [`VarId`].
    pub variables: Vec<Variable>,
    /// Constants, by [`ConstId`].
    pub constants: Constants,
    /// Step scalars, by [`ScalarId`].
    pub scalars: Vec<StepScalar>,
    /// Names of ONNX nodes, by [`OriginId`]; entry 0 is empty: work slrc added.
    pub origins: Vec<String>,
    /// Effects, in order.
    pub roots: Vec<Root>,
    dag: DiGraph<Node, u32>,
    /// Of every hash of an op and its operands, the latest node that has it.
    index: HashMap<u64, NodeId, BuildHasherDefault<AsItIs>>,
    /// Of every node, an earlier one of the same hash.
    earlier: Vec<Option<NodeId>>,
    /// Of every name, the first variable that was added under it.
    named: HashMap<String, VarId>,
    /// Of every name, the latest origin that was added under it.
    origin_named: HashMap<String, OriginId>,
    /// What was found of sums of several terms.
    pub(super) sums: Sums,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph {
            name: name.into(),
            inputs: Vec::new(),
            variables: Vec::new(),
            constants: Constants::default(),
            scalars: Vec::new(),
            origins: vec![String::new()],
            roots: Vec::new(),
            dag: DiGraph::new(),
            index: HashMap::default(),
            earlier: Vec::new(),
            named: HashMap::new(),
            origin_named: HashMap::from([(String::new(), OriginId(0))]),
            sums: Sums::default(),
        }
    }

    /// A graph with the same inputs, variables, constants, scalars and origins, and no nodes or roots.
    pub fn like(other: &Graph) -> Graph {
        Graph {
            name: other.name.clone(),
            inputs: other.inputs.clone(),
            variables: other.variables.clone(),
            constants: other.constants.clone(),
            scalars: other.scalars.clone(),
            origins: other.origins.clone(),
            named: other.named.clone(),
            origin_named: other.origin_named.clone(),
            ..Graph::new("")
        }
    }

    /// Makes room for so many more nodes.
    pub fn reserve(&mut self, nodes: usize) {
        self.dag.reserve_nodes(nodes);
        self.dag.reserve_edges(2 * nodes);
        self.index.reserve(nodes);
        self.earlier.reserve(nodes);
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every node id, operands before users.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + ExactSizeIterator + use<> {
        (0..self.len() as u32).map(NodeId)
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[NodeIndex::new(id.index())]
    }

    /// A node's type.
    pub fn ty(&self, id: NodeId) -> &Type {
        &self.node(id).ty
    }

    /// A node's shape.
    pub fn shape(&self, id: NodeId) -> &[usize] {
        &self.node(id).ty.shape
    }

    /// Name of the ONNX node a node came from; empty for work slrc added.
    pub fn origin(&self, id: NodeId) -> &str {
        &self.origins[self.node(id).origin.index()]
    }

    /// Nodes that use a node's value, ascending, each once.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut users: Vec<NodeId> = self
            .dag
            .neighbors_directed(NodeIndex::new(id.index()), Direction::Outgoing)
            .map(|n| NodeId(n.index() as u32))
            .collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Adds a node, or returns the equal one that exists. The type must be what the op's shape rule gives;
    /// [`crate::ir::Builder`] is the usual way in.
    pub fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.find(&node.op, &node.operands) {
            return id;
        }
        let id = NodeId(self.len() as u32);
        self.earlier.push(self.index.insert(hash_of(&node.op, &node.operands), id));
        let at = self.dag.add_node(node);
        for slot in 0..self.dag[at].operands.len() {
            let operand = self.dag[at].operands[slot];
            self.dag.add_edge(NodeIndex::new(operand.index()), at, slot as u32);
        }
        id
    }

    /// The node of this op and these operands.
    fn find(&self, op: &Op, operands: &[NodeId]) -> Option<NodeId> {
        let mut at = self.index.get(&hash_of(op, operands)).copied();
        while let Some(id) = at {
            let node = self.node(id);
            if node.operands == operands && node.op == *op {
                return Some(id);
            }
            at = self.earlier[id.index()];
        }
        None
    }

    /// Whether the edges agree with the operand lists; part of verification.
    pub fn edges_agree(&self) -> bool {
        self.ids().all(|id| {
            let mut edges: Vec<(u32, u32)> = self
                .dag
                .edges_directed(NodeIndex::new(id.index()), Direction::Incoming)
                .map(|e| (*e.weight(), petgraph::visit::EdgeRef::source(&e).index() as u32))
                .collect();
            edges.sort_unstable();
            edges.iter().map(|e| e.1).eq(self.node(id).operands.iter().map(|o| o.0))
        })
    }

    /// Registers an input.
    pub fn add_input(&mut self, input: Input) -> InputId {
        self.inputs.push(input);
        InputId(self.inputs.len() as u32 - 1)
    }

    /// Registers a variable.
    pub fn add_variable(&mut self, variable: Variable) -> VarId {
        let id = VarId(self.variables.len() as u32);
        self.named.entry(variable.name.clone()).or_insert(id);
        self.variables.push(variable);
        id
    }

    /// Registers a constant, or returns the equal one that exists.
    pub fn add_constant(&mut self, constant: Constant) -> ConstId {
        self.constants.add(constant)
    }

    /// Registers a step scalar, or returns the one of the same name.
    pub fn add_scalar(&mut self, scalar: StepScalar) -> ScalarId {
        if let Some(i) = self.scalars.iter().position(|s| s.name == scalar.name) {
            return ScalarId(i as u32);
        }
        self.scalars.push(scalar);
        ScalarId(self.scalars.len() as u32 - 1)
    }

    /// Registers an origin, or returns the one of the same name.
    pub fn add_origin(&mut self, name: &str) -> OriginId {
        if let Some(&known) = self.origin_named.get(name) {
            return known;
        }
        let id = OriginId(self.origins.len() as u32);
        self.origins.push(name.to_string());
        self.origin_named.insert(name.to_string(), id);
        id
    }

    /// The variable of this name.
    pub fn variable(&self, name: &str) -> Option<VarId> {
        let of_that_name = |&id: &VarId| self.variables.get(id.index()).is_some_and(|v| v.name == name);
        match self.named.get(name).copied().filter(of_that_name) {
            Some(id) => Some(id),
            // Whoever writes into the table itself is found too.
            None if self.named.len() == self.variables.len() => None,
            None => self.variables.iter().position(|v| v.name == name).map(|i| VarId(i as u32)),
        }
    }

    /// The input of this kind.
    pub fn input_of(&self, kind: InputKind) -> Option<InputId> {
        self.inputs.iter().position(|i| i.kind == kind).map(|i| InputId(i as u32))
    }

    /// The node that reads an input, if any.
    pub fn input_node(&self, id: InputId) -> Option<NodeId> {
        self.find(&Op::Input(id), &[])
    }

    /// The node that reads a variable, if any.
    pub fn variable_node(&self, id: VarId) -> Option<NodeId> {
        self.find(&Op::Variable(id), &[])
    }

    /// The value of the first root that satisfies `wanted`.
    pub fn root(&self, wanted: impl Fn(&RootKind) -> bool) -> Option<NodeId> {
        self.roots.iter().find(|r| wanted(&r.kind)).map(|r| r.value)
    }

    /// The users of every node that are needed, ascending: one pass, for who asks of many nodes.
    pub fn all_users(&self, needed: &[bool]) -> Vec<Vec<NodeId>> {
        let mut out: Vec<Vec<NodeId>> = vec![Vec::new(); self.len()];
        for id in self.ids().filter(|id| needed[id.index()]) {
            for o in &self.node(id).operands {
                if out[o.index()].last() != Some(&id) {
                    out[o.index()].push(id);
                }
            }
        }
        out
    }

    /// Marks every node that some of `targets` needs, the targets included.
    pub fn needed(&self, targets: impl IntoIterator<Item = NodeId>) -> Vec<bool> {
        let mut needed = vec![false; self.len()];
        for t in targets {
            needed[t.index()] = true;
        }
        for id in self.ids().rev() {
            if needed[id.index()] {
                for o in &self.node(id).operands {
                    needed[o.index()] = true;
                }
            }
        }
        needed
    }

    /// Marks every node whose value depends on one of `sources`, the sources included.
    pub fn dependent(&self, sources: impl IntoIterator<Item = NodeId>) -> Vec<bool> {
        let mut dependent = vec![false; self.len()];
        for s in sources {
            dependent[s.index()] = true;
        }
        for id in self.ids() {
            if self.node(id).operands.iter().any(|o| dependent[o.index()]) {
                dependent[id.index()] = true;
            }
        }
        dependent
    }

    /// Whether a node's dtype is a flag or an integer: constant between kinks, hence without gradient.
    pub fn is_discrete(&self, id: NodeId) -> bool {
        self.ty(id).dtype != DType::F32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::builder::Builder;
    use crate::ir::verify::{Spec, verify};

    /// Only this file can make edges and operand lists differ.
    #[test]
    fn the_verifier_compares_edges_with_operands() {
        let mut g = Graph::new("edges");
        let mut b = Builder::new(&mut g);
        let (x, y) = (b.splat(1.0, &[2]), b.random(0, &[2]));
        let z = b.sub(x, y);
        assert_eq!(verify(&g, Spec::open("test")), Ok(()));
        let at = |id: NodeId| NodeIndex::new(id.index());
        g.dag.add_edge(at(x), at(z), 2);
        let e = verify(&g, Spec::open("test")).expect_err("an edge too many");
        assert_eq!((e.place.as_str(), e.reason.as_str()), ("graph", "edges and operand lists differ"));
    }
}
