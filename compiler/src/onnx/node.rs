//! What a conversion sees of its node: attributes, operands in the form it asks for, and where to build.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};

use crate::ir::builder::Builder;
use crate::ir::graph::{Init, NodeId, VarKind, Variable};
use crate::ir::types::{DType, Type};
use crate::onnx::file::OnnxFile;
use crate::onnx::folding::{Allowance, constant_of};
use crate::onnx::tensor::{self, Const, Elem};

/// A float initializer (or weight-like constant) not yet used as a variable.
#[derive(Clone, Debug)]
pub(crate) struct WeightRef {
    /// Where its values are.
    pub(crate) source: WeightSource,
    /// The name a variable made from it gets.
    pub(crate) name: String,
    /// Extents.
    pub(crate) shape: Vec<usize>,
}

/// Where a variable's initial values come from.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightSource {
    /// An initializer of the model.
    Initializer(String),
    /// A constant node's values.
    Values(std::sync::Arc<Vec<f32>>),
}

/// An operand of an ONNX node.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// An optional input left out.
    Absent,
    /// Known now.
    Const(Const),
    /// A float initializer.
    Weight(WeightRef),
    /// Computed.
    Node(NodeId, Elem),
}

/// What a conversion yields for one output.
pub(crate) enum Out {
    /// A computed value.
    Node(NodeId, Elem),
    /// A value known now.
    Const(Const),
    /// Another name for an operand.
    Alias(Operand),
    /// An output slrc does not compute; using it is an error.
    Unavailable(&'static str),
}

/// A variable the import made, and how it stands in the user's graph.
#[derive(Clone, Debug, PartialEq)]
pub struct VariableSource {
    /// Where its values are.
    pub source: WeightSource,
    /// Uses of it: node index in the ONNX graph and input slot.
    pub uses: Vec<(usize, usize)>,
}

/// What import accumulates besides the graph.
pub(crate) struct State<'a> {
    pub(crate) file: &'a OnnxFile,
    /// Initializers whose uses share one variable.
    pub(crate) tie: &'a BTreeSet<String>,
    /// Variables that are not trained: exact names, or prefixes that end in `*`.
    pub(crate) freeze: &'a [String],
    /// `(declared, wanted)` batch where the file has a fixed one that differs.
    pub(crate) rebatch: Option<(usize, usize)>,
    /// By variable name.
    pub(crate) sources: BTreeMap<String, VariableSource>,
    /// Things the user should know, in order, each once.
    pub(crate) notes: Vec<String>,
    /// Random streams handed out.
    pub(crate) streams: u32,
    /// Running-statistic updates: variable name and its new value.
    pub(crate) updates: Vec<(crate::ir::graph::VarId, NodeId)>,
    /// What constants may still cost.
    pub(crate) allowance: Allowance,
    /// Element types, as ONNX codes, of values for which the file declares one.
    pub(crate) types: BTreeMap<&'a str, i32>,
    /// What nodes make, once it was asked for.
    made: Option<BTreeSet<&'a str>>,
}

impl<'a> State<'a> {
    pub(crate) fn new(
        file: &'a OnnxFile,
        tie: &'a BTreeSet<String>,
        freeze: &'a [String],
        rebatch: Option<(usize, usize)>,
    ) -> State<'a> {
        let (sources, notes, updates) = (BTreeMap::new(), Vec::new(), Vec::new());
        let graph = &file.proto.graph;
        let values = graph.input.iter().chain(&graph.value_info).chain(&graph.output);
        let declared = values.filter_map(|v| Some((v.name.as_str(), v.type_.as_ref()?.tensor_type().elem_type)));
        // A cast says it itself.
        let cast = |n: &'a NodeProto| {
            let to = n.attribute.iter().find(|a| n.op_type == "Cast" && a.name == "to")?;
            Some((n.output.first()?.as_str(), i32::try_from(to.i).ok()?))
        };
        let declared = graph.node.iter().filter_map(cast).chain(declared);
        let types = declared.chain(graph.initializer.iter().map(|t| (t.name.as_str(), t.data_type))).collect();
        let allowance = Allowance::default();
        State { file, tie, freeze, rebatch, sources, notes, streams: 0, updates, allowance, types, made: None }
    }

    /// Whether a node of the file's makes a value.
    pub(crate) fn makes(&mut self, name: &str) -> bool {
        let nodes = &self.file.proto.graph.node;
        let made = self.made.get_or_insert_with(|| nodes.iter().flat_map(|n| &n.output).map(String::as_str).collect());
        made.contains(name)
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }
}

/// One conversion under way.
pub(crate) struct Cx<'a, 'g, 's> {
    pub(crate) proto: &'a NodeProto,
    /// Index in the ONNX graph.
    pub(crate) index: usize,
    pub(crate) opset: i64,
    pub(crate) operands: &'a [Operand],
    pub(crate) b: &'a mut Builder<'g>,
    pub(crate) state: &'a mut State<'s>,
    /// Whether all operands are known and the graph is a scratch one: nothing becomes a weight.
    pub(crate) folding: bool,
    /// What the conversion has looked at.
    pub(crate) looked: RefCell<Looked>,
}

/// Attributes and inputs a conversion has asked for.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    attributes: BTreeSet<String>,
    inputs: BTreeSet<usize>,
}

/// Attributes without a bearing on what is computed here: hints of the first opsets, the precision of intermediate
/// results (f32 throughout), layouts of outputs that are not computed, seeds (a plan has its own), and modes that slrc
/// chooses itself.
const WITHOUT_BEARING: &[&str] = &[
    "consumed_inputs",
    "is_test",
    "round_mode",
    "saturate",
    "seed",
    "softmax_precision",
    "stash_type",
    "storage_order",
    "training_mode",
];

impl Cx<'_, '_, '_> {
    /// Fails where the node says something that the conversion has not looked at: what a later opset added is not
    /// passed over in silence.
    pub(crate) fn check_all_looked_at(&self) -> Result<(), String> {
        let looked = self.looked.borrow();
        let known = |name: &str| looked.attributes.contains(name) || WITHOUT_BEARING.contains(&name);
        if let Some(a) = self.proto.attribute.iter().find(|a| !known(&a.name)) {
            return Err(format!("attribute {} is not supported", a.name));
        }
        let unseen = |i: &usize| !matches!(self.operands[*i], Operand::Absent) && !looked.inputs.contains(i);
        match (0..self.operands.len()).find(unseen) {
            Some(i) => Err(format!("input {i} is not supported")),
            None => Ok(()),
        }
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.looked.borrow_mut().attributes.insert(name.to_string());
        self.proto.attribute.iter().find(|a| a.name == name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> f64 {
        shortest(self.attribute(name).map_or(default, |a| a.f))
    }

    pub(crate) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.attribute(name).map(|a| a.ints.clone())
    }

    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f64>> {
        self.attribute(name).map(|a| a.floats.iter().map(|&x| f64::from(x)).collect())
    }

    pub(crate) fn string(&self, name: &str, default: &str) -> String {
        self.attribute(name).map_or(default.to_string(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }

    pub(crate) fn strings(&self, name: &str) -> Option<Vec<String>> {
        let text = |s: &Vec<u8>| String::from_utf8_lossy(s).into_owned();
        self.attribute(name).map(|a| a.strings.iter().map(text).collect())
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name).and_then(|a| a.t.as_ref())
    }

    pub(crate) fn attribute_type(&self, name: &str) -> Option<AttributeType> {
        self.attribute(name).map(|a| a.type_.enum_value_or_default())
    }

    /// Name for messages: the node's, or its first output.
    pub(crate) fn name(&self) -> String {
        node_name(self.proto)
    }

    pub(crate) fn operand(&self, i: usize) -> &Operand {
        self.looked.borrow_mut().inputs.insert(i);
        self.operands.get(i).unwrap_or(&Operand::Absent)
    }

    pub(crate) fn present(&self, i: usize) -> bool {
        !matches!(self.operand(i), Operand::Absent)
    }

    /// Whether output `i` is named, that is, may be used.
    pub(crate) fn wants(&self, i: usize) -> bool {
        self.proto.output.get(i).is_some_and(|o| !o.is_empty())
    }

    fn missing(&self, i: usize) -> String {
        format!("input {i} is missing")
    }

    pub(crate) fn shape(&self, i: usize) -> Result<Vec<usize>, String> {
        match self.operand(i) {
            Operand::Absent => Err(self.missing(i)),
            Operand::Const(c) => Ok(c.shape.clone()),
            Operand::Weight(w) => Ok(w.shape.clone()),
            Operand::Node(id, _) => Ok(self.b.shape(*id)),
        }
    }

    pub(crate) fn elem(&self, i: usize) -> Result<Elem, String> {
        match self.operand(i) {
            Operand::Absent => Err(self.missing(i)),
            Operand::Const(c) => Ok(c.elem),
            Operand::Weight(_) => Ok(Elem::Float),
            Operand::Node(_, e) => Ok(*e),
        }
    }

    /// Operand `i` where its values are known now.
    pub(crate) fn known(&self, i: usize) -> Result<Option<Const>, String> {
        match self.operand(i) {
            Operand::Const(c) => Ok(Some(c.clone())),
            Operand::Weight(w) if w.shape.iter().product::<usize>() == 1 => self.values(w).map(Some),
            _ => Ok(None),
        }
    }

    fn values(&self, w: &WeightRef) -> Result<Const, String> {
        let data = match &w.source {
            WeightSource::Values(v) => v.iter().map(|&x| f64::from(x)).collect(),
            WeightSource::Initializer(name) => {
                let t = self.state.file.initializer(name).ok_or("its initializer does not exist")?;
                tensor::read_numbers(self.state.file, t).map_err(|e| e.to_string())?.data
            }
        };
        Ok(Const { elem: Elem::Float, shape: w.shape.clone(), data })
    }

    /// Operand `i` where its values are known now, in a place that is not for weights.
    pub(crate) fn fixed_values(&self, i: usize) -> Result<Option<Const>, String> {
        match self.operand(i) {
            Operand::Weight(w) => self.values(w).map(Some),
            _ => self.known(i),
        }
    }

    /// Integers that must be known at import, such as a shape or axes.
    pub(crate) fn known_ints(&self, i: usize, what: &str) -> Result<Vec<i64>, String> {
        match self.known(i)? {
            Some(c) => Ok(c.integers()),
            None if self.present(i) => Err(format!("{what} depends on the data; slrc needs it known at import")),
            None => Err(self.missing(i)),
        }
    }

    /// Numbers that must be known at import, such as scales: an initializer there is no weight.
    pub(crate) fn known_floats(&self, i: usize, what: &str) -> Result<Vec<f64>, String> {
        match self.operand(i) {
            Operand::Const(c) => Ok(c.data.clone()),
            Operand::Weight(w) => self.values(w).map(|c| c.data),
            Operand::Node(..) => Err(format!("{what} depend on the data; slrc needs them known at import")),
            Operand::Absent => Err(self.missing(i)),
        }
    }

    /// The element type that the file declares for operand `i`, an ONNX code: its own conversions keep only its kind.
    pub(crate) fn declared(&self, i: usize) -> Option<i32> {
        let name = self.proto.input.get(i)?;
        self.state.types.get(name.as_str()).copied()
    }

    /// The same of an output.
    pub(crate) fn declared_output(&self, i: usize) -> Option<i32> {
        let name = self.proto.output.get(i)?;
        self.state.types.get(name.as_str()).copied()
    }

    /// A single number that must be known at import.
    pub(crate) fn known_number(&self, i: usize, what: &str) -> Result<f64, String> {
        match self.known(i)? {
            Some(c) => c.single().ok_or_else(|| format!("{what} must be a single number")),
            None => Err(format!("{what} depends on the data; slrc needs it known at import")),
        }
    }

    /// Operand `i` as real numbers; a float initializer becomes a weight that starts as `init` says unless it is
    /// loaded.
    pub(crate) fn real_or_weight(&mut self, i: usize, init: Init) -> Result<NodeId, String> {
        match self.operand(i).clone() {
            Operand::Absent => Err(self.missing(i)),
            Operand::Const(c) => self.constant(DType::F32, &c),
            Operand::Weight(w) if w.shape.iter().product::<usize>() == 1 => {
                let c = self.values(&w)?;
                self.constant(DType::F32, &c)
            }
            Operand::Weight(w) => Ok(self.variable(&w, i, init, VarKind::Weight)),
            Operand::Node(id, _) => Ok(self.b.number(id)),
        }
    }

    /// Operand `i` as real numbers.
    pub(crate) fn real(&mut self, i: usize) -> Result<NodeId, String> {
        self.real_or_weight(i, Init::Normal(0.02))
    }

    /// Operand `i` as numbers that are not trained, whatever they are: angles, masks, class weights.
    pub(crate) fn fixed(&mut self, i: usize) -> Result<NodeId, String> {
        match self.operand(i).clone() {
            Operand::Weight(w) => {
                let c = self.values(&w)?;
                self.constant(DType::F32, &c)
            }
            Operand::Absent | Operand::Const(_) | Operand::Node(..) => self.real(i),
        }
    }

    /// Operand `i` in a place that ONNX gives to weights: constants there are weights too.
    pub(crate) fn weight(&mut self, i: usize, init: Init, kind: VarKind) -> Result<NodeId, String> {
        match self.operand(i).clone() {
            Operand::Weight(w) => Ok(self.variable(&w, i, init, kind)),
            Operand::Const(c) if c.elem == Elem::Float && !self.folding => {
                let name = self.proto.input.get(i).cloned().unwrap_or_default();
                let values = c.data.iter().map(|&x| x as f32).collect();
                let source = WeightSource::Values(std::sync::Arc::new(values));
                Ok(self.variable(&WeightRef { source, name, shape: c.shape }, i, init, kind))
            }
            _ => self.real(i),
        }
    }

    /// Whether operand `i` is a float initializer.
    pub(crate) fn is_weight(&self, i: usize) -> bool {
        matches!(self.operand(i), Operand::Weight(_))
    }

    /// Operand `i` of a product: an initializer there is a weight, whatever its size.
    pub(crate) fn weight_or_real(&mut self, i: usize) -> Result<NodeId, String> {
        if self.is_weight(i) { self.weight(i, Init::Normal(0.02), VarKind::Weight) } else { self.real(i) }
    }

    /// A constant of the graph, by what its elements are: of sizes that the file names, so it is paid for before it is
    /// made. One that the graph has already costs an eighth.
    pub(crate) fn table(
        &mut self,
        dtype: DType,
        shape: &[usize],
        at: impl FnMut(usize) -> f64,
    ) -> Result<NodeId, String> {
        let count = constant_of(shape)?;
        self.state.allowance.copy(count / 8)?;
        let before = self.b.graph().constants.len();
        let id = self.b.constant(Type::new(dtype, shape), (0..count).map(at).collect());
        if self.b.graph().constants.len() > before {
            self.state.allowance.copy(count)?;
        }
        Ok(id)
    }

    fn constant(&mut self, dtype: DType, c: &Const) -> Result<NodeId, String> {
        self.state.allowance.copy(c.data.len())?;
        Ok(self.b.constant(Type::new(dtype, c.shape.clone()), c.data.clone()))
    }

    /// The variable for a weight used by this node. Exporters merge equal initializers, so each use gets a variable
    /// of its own unless the user ties the initializer.
    fn variable(&mut self, w: &WeightRef, slot: usize, init: Init, kind: VarKind) -> NodeId {
        let usage = (self.index, slot);
        let tied = match &w.source {
            WeightSource::Initializer(s) => self.state.tie.contains(s) || self.state.tie.contains(&w.name),
            WeightSource::Values(_) => false,
        };
        let shared = &self.state.file.placed.shared;
        let tied =
            tied || shared.contains(&w.name) || matches!(&w.source, WeightSource::Initializer(s) if shared.contains(s));
        let mut name = w.name.clone();
        if tied && let Some(id) = self.b.graph().variable(&name) {
            if let Some(s) = self.state.sources.get_mut(&name) {
                s.uses.push(usage);
            }
            return self.b.variable(id);
        }
        if self.state.sources.contains_key(&name) {
            name = format!("{}@{}", w.name, self.name());
            let mut n = 1;
            while self.state.sources.contains_key(&name) {
                n += 1;
                name = format!("{}@{}#{n}", w.name, self.name());
            }
        }
        let frozen = self.state.freeze.iter().any(|p| match p.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *p == name,
        });
        let kind = if frozen { VarKind::Frozen } else { kind };
        self.state.sources.insert(name.clone(), VariableSource { source: w.source.clone(), uses: vec![usage] });
        let id = self.b.graph_mut().add_variable(Variable { name, kind, ty: Type::f32(w.shape.clone()), init });
        self.b.variable(id)
    }

    /// Operand `i` as a flag.
    pub(crate) fn flag(&mut self, i: usize) -> Result<NodeId, String> {
        use slrc_plan::ScalarFn;
        match self.operand(i).clone() {
            Operand::Const(c) => self.constant(DType::U8, &c),
            Operand::Node(id, _) if self.b.graph().ty(id).dtype == DType::U8 => Ok(id),
            _ => {
                let x = self.real(i)?;
                let zero = self.b.zeros_like(x);
                let is_zero = self.b.map(ScalarFn::Eq, &[x, zero]);
                Ok(self.b.map(ScalarFn::Not, &[is_zero]))
            }
        }
    }

    /// Operand `i` as table indices.
    pub(crate) fn index_values(&mut self, i: usize) -> Result<NodeId, String> {
        match self.operand(i).clone() {
            Operand::Const(c) => self.constant(DType::I32, &c),
            Operand::Node(id, _) if self.b.graph().ty(id).dtype == DType::I32 => Ok(id),
            Operand::Absent => Err(self.missing(i)),
            Operand::Weight(_) | Operand::Node(..) => Err("indices must be an integer input or known at import".into()),
        }
    }

    /// A dimension index that may count from the end.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Result<usize, String> {
        let at = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(at)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| format!("axis {axis} does not exist in {rank} dimensions"))
    }

    pub(crate) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
        let mut out: Vec<usize> = axes.iter().map(|&a| self.axis(a, rank)).collect::<Result<_, _>>()?;
        out.sort_unstable();
        out.dedup();
        if out.len() == axes.len() { Ok(out) } else { Err(format!("axes {axes:?} repeat a dimension")) }
    }
}

/// The number that was meant: an attribute of 0.9 is stored as the nearest f32, and 1 - 0.9 should be 0.1.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The node's name, or its first output where it has none.
pub(crate) fn node_name(n: &NodeProto) -> String {
    if n.name.is_empty() { n.output.first().cloned().unwrap_or_default() } else { n.name.clone() }
}
