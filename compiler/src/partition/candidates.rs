//! Every place where the network could be cut, and why not elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::graph::{Graph, NodeId, VarKind};
use crate::ir::op::Op;
use crate::onnx::import::{Imported, ImportedNode};
use crate::partition::separation::Separation;

/// A place where the network can be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The value that crosses.
    pub value: NodeId,
    /// ONNX node that makes it.
    pub node: String,
    /// Its ONNX name.
    pub name: String,
    /// Layers with weights before it.
    pub layers_before: usize,
}

/// A place where it is not cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// ONNX node.
    pub node: String,
    /// Name of its output.
    pub name: String,
    /// Why.
    pub reason: String,
    /// The value, if a cut there is possible though not wise: `--at` may still ask for it.
    pub possible: Option<Candidate>,
}

/// Result of [`candidates`].
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// In data order.
    pub cuts: Vec<Candidate>,
    /// In data order.
    pub rejected: Vec<Rejected>,
    /// Nodes, with their outputs, that no gradient passes on its way between modules.
    pub others: Vec<(String, String)>,
}

impl Candidates {
    /// Rejects the cuts that `why_not` has a reason for. `nodes` are the network's, for the order.
    pub fn rule_out(&mut self, nodes: &[ImportedNode], why_not: impl Fn(&Candidate) -> Option<String>) {
        let before = self.rejected.len();
        for c in std::mem::take(&mut self.cuts) {
            match why_not(&c) {
                None => self.cuts.push(c),
                Some(reason) => self.rejected.push(Rejected { node: c.node, name: c.name, reason, possible: None }),
            }
        }
        if self.rejected.len() > before {
            let places: BTreeMap<(&str, &str), usize> =
                nodes.iter().enumerate().rev().map(|(i, n)| ((n.name.as_str(), n.output.as_str()), i)).collect();
            self.rejected.sort_by_cached_key(|r| places.get(&(r.node.as_str(), r.name.as_str())).copied());
        }
    }
}

/// Marks nodes that `logits` needs and that depend on both weights and data: what carries gradients between modules.
pub(crate) fn differentiable(g: &Graph, logits: NodeId) -> Vec<bool> {
    let needed = g.needed([logits]);
    let leaves = |want: &dyn Fn(&Op) -> bool| -> Vec<NodeId> { g.ids().filter(|&id| want(&g.node(id).op)).collect() };
    let weights = leaves(&|op| matches!(op, Op::Variable(v) if g.variables[v.index()].kind == VarKind::Weight));
    let data = leaves(&|op| matches!(op, Op::Input(_)));
    let (by_weight, by_data) = (g.dependent(weights), g.dependent(data));
    (0..g.len()).map(|i| needed[i] && by_weight[i] && by_data[i]).collect()
}

/// Ops that belong to the layer before them: a boundary is not put in front of one that alone follows.
const CONTINUES: &[&str] = &[
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "LRN",
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Elu",
    "Selu",
    "Celu",
    "ThresholdedRelu",
    "Shrink",
    "Softsign",
    "Mish",
    "Swish",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Gelu",
    "Erf",
    "Softmax",
    "LogSoftmax",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Neg",
    "Exp",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Cast",
    "CastLike",
    "Dropout",
    "Concat",
    "Slice",
    "GlobalAveragePool",
    "ReduceMean",
];

/// Whether a node is a layer: something with a weight matrix.
fn is_layer(n: &ImportedNode) -> bool {
    const LAYERS: &[&str] = &[
        "CausalConvWithState",
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "GRU",
        "Gather",
        "Gemm",
        "LSTM",
        "MatMul",
        "RNN",
    ];
    n.weights > 0 && LAYERS.contains(&n.op.as_str())
}

/// Looks at every ONNX value the network computes.
pub fn candidates(net: &Imported) -> Candidates {
    let names: BTreeMap<NodeId, &ImportedNode> =
        net.nodes.iter().rev().filter_map(|n| n.value.map(|v| (v, n))).collect();
    let mut consumers: BTreeMap<&str, Vec<&ImportedNode>> = BTreeMap::new();
    for n in &net.nodes {
        for i in n.inputs.iter().map(String::as_str).collect::<BTreeSet<_>>() {
            consumers.entry(i).or_default().push(n);
        }
    }
    let layers = net.nodes.iter().filter(|n| is_layer(n)).count();
    let mut separation = Separation::new(net, &names);
    let mut out = Candidates::default();
    let mut seen = BTreeSet::new();
    let mut before = 0;
    for n in &net.nodes {
        before += usize::from(is_layer(n));
        let value = n.value.filter(|v| separation.live[v.index()] && *v != net.logits && seen.insert(*v));
        let Some(value) = value else {
            out.others.push((n.name.clone(), n.output.clone()));
            continue;
        };
        let mut reject = |reason: String, possible: Option<Candidate>| {
            out.rejected.push(Rejected { node: n.name.clone(), name: n.output.clone(), reason, possible });
        };
        if let Some(reason) = separation.why_not(value) {
            reject(reason, None);
            continue;
        }
        let cut = Candidate { value, node: n.name.clone(), name: n.output.clone(), layers_before: before };
        let follow = consumers.get(n.output.as_str()).map_or(&[][..], Vec::as_slice);
        if let &[only] = follow
            && CONTINUES.contains(&only.op.as_str())
        {
            reject(format!("{} \"{}\" alone follows and belongs to the same layer", only.op, only.name), Some(cut));
        } else if before >= layers {
            reject("only the network's own classifier or nothing with weights follows".into(), Some(cut));
        } else if before + 1 >= layers && remaining_is_classifier(net, value) {
            reject("only the network's own classifier follows: a local head would repeat it".into(), Some(cut));
        } else {
            out.cuts.push(cut);
        }
    }
    out
}

/// Whether the one layer after `value` makes the logits themselves.
fn remaining_is_classifier(net: &Imported, value: NodeId) -> bool {
    let after = net.graph.dependent([value]);
    let last = net.nodes.iter().rev().find(|n| is_layer(n) && n.value.is_some_and(|v| after[v.index()]));
    let Some(last) = last.and_then(|n| n.value) else { return true };
    // Nothing but a bias and a reshape between the layer and the logits.
    let mut at = net.logits;
    for _ in 0..6 {
        if at == last {
            return true;
        }
        let n = net.graph.node(at);
        let real = n.operands.iter().filter(|o| net.graph.dependent([value])[o.index()]).copied().collect::<Vec<_>>();
        match real[..] {
            [only] => at = only,
            _ => return false,
        }
    }
    at == last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::builder::Builder;
    use crate::ir::graph::{Init, Input, InputKind, Root, RootKind, Variable};
    use crate::ir::types::Type;
    use crate::partition::separation::weight;
    use slrc_plan::random::Sequence;

    /// A network that adds up and multiplies: mostly what was last, some earlier values, and weights of which some are
    /// used twice.
    fn network(rng: &mut Sequence) -> Imported {
        let mut draw = |below: usize| rng.word() as usize % below;
        let ty = Type::f32([2, 3]);
        let mut graph = Graph::new("random");
        let input = graph.add_input(Input { name: "x".into(), kind: InputKind::Data, ty: ty.clone() });
        let weights: Vec<_> = (0..12)
            .map(|i| {
                let (name, kind, init) = (format!("w{i}"), VarKind::Weight, Init::Constant(0.0));
                graph.add_variable(Variable { name, kind, ty: ty.clone(), init })
            })
            .collect();
        let mut b = Builder::new(&mut graph);
        let mut values = vec![b.input(input)];
        for i in 0..12 {
            let before = values.len();
            let last = values[before - 1];
            let with = match draw(4) {
                0 => values[before - 1 - draw(before.min(4))],
                _ => b.variable(weights[if draw(8) == 0 { draw(i + 1) } else { i }]),
            };
            values.push(if draw(2) == 0 { b.add(last, with) } else { b.mul(last, with) });
        }
        let logits = values[values.len() - 1];
        graph.roots = vec![Root { kind: RootKind::Output("y".into()), value: logits }];
        let node = |(i, &value): (usize, &NodeId)| ImportedNode {
            name: format!("n{i}"),
            op: "Conv".into(),
            inputs: Vec::new(),
            output: format!("v{i}"),
            weights: 1,
            value: Some(value),
        };
        let nodes = values.iter().enumerate().skip(1).map(node).collect();
        let (output, sources, notes) = ("y".into(), BTreeMap::new(), Vec::new());
        Imported { graph, logits, output, batch: 2, nodes, sources, notes }
    }

    /// Whether nothing but `value` crosses, by looking at everything before it.
    fn separates(net: &Imported, value: NodeId) -> bool {
        let g = &net.graph;
        let (live, before) = (differentiable(g, net.logits), g.needed([value]));
        let users = g.all_users(&g.needed([net.logits]));
        let of_weights = g.dependent(g.ids().filter(|&id| weight(g, id).is_some()));
        g.ids().filter(|&id| id != value && before[id.index()]).all(|id| {
            let mut after = users[id.index()].iter().filter(|u| !before[u.index()]);
            if live[id.index()] {
                !after.any(|u| live[u.index()])
            } else {
                !of_weights[id.index()] || after.next().is_none()
            }
        })
    }

    #[test]
    fn what_separates_is_found_without_looking_behind_what_does() {
        let mut rng = Sequence::new(8, 0, 0);
        let (mut yes, mut no) = (0, 0);
        for _ in 0..100 {
            let net = network(&mut rng);
            let found = candidates(&net);
            let cuts = found.cuts.iter().map(|c| c.value);
            let possible = found.rejected.iter().filter_map(|r| r.possible.as_ref()).map(|c| c.value);
            let separating: BTreeSet<NodeId> = cuts.chain(possible).collect();
            let live = differentiable(&net.graph, net.logits);
            for n in &net.nodes {
                let value = n.value.expect("every node has one");
                if live[value.index()] && value != net.logits {
                    assert_eq!(separating.contains(&value), separates(&net, value), "{value} of {:?}", net.graph);
                    *if separating.contains(&value) { &mut yes } else { &mut no } += 1;
                }
            }
        }
        assert!(yes > 100 && no > 100, "{yes} {no}");
    }

    #[test]
    fn ids_alone_tell_the_same_of_a_chain() {
        let mut rng = Sequence::new(9, 0, 0);
        for _ in 0..100 {
            let net = network(&mut rng);
            let names = BTreeMap::new();
            let (mut all, mut few) = (Separation::new(&net, &names), Separation::new(&net, &names));
            few.looks = 0;
            for id in net.graph.ids().filter(|&id| all.live[id.index()] && id != net.logits).collect::<Vec<_>>() {
                let (a, b) = (all.why_not(id), few.why_not(id));
                assert_eq!(a.is_none(), b.is_none(), "{id} of {:?}: {a:?} and {b:?}", net.graph);
            }
        }
    }
}
