//! Every place where the network could be cut, and why not elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::graph::{Graph, NodeId, VarKind};
use crate::ir::op::Op;
use crate::onnx::import::{Imported, ImportedNode};
use crate::partition::PartitionError;
use crate::partition::separation::{Inseparable, Separation, name_of, weight};

/// A place where the network can be cut: behind all that a value needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The value that crosses: what a local head reads.
    pub value: NodeId,
    /// ONNX node that makes it.
    pub node: String,
    /// Its ONNX name.
    pub name: String,
    /// Layers with weights before it.
    pub layers_before: usize,
    /// What else crosses, in data order: computed before, and needed behind.
    pub carried: Vec<Carried>,
}

/// A tensor that crosses a cut beside the value that the head reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The value.
    pub value: NodeId,
    /// Its ONNX name, or that of the node it is a part of.
    pub name: String,
}

impl Candidate {
    /// Everything that crosses, the value that the head reads first.
    pub fn values(&self) -> impl Iterator<Item = NodeId> {
        std::iter::once(self.value).chain(self.carried.iter().map(|c| c.value))
    }

    /// Names of everything that crosses.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.carried.iter().map(|c| c.name.as_str()))
    }
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
    /// If only tensors that cross beside it are in the way: how many.
    pub beside: Option<usize>,
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
                Some(reason) => {
                    self.rejected.push(Rejected { node: c.node, name: c.name, reason, possible: None, beside: None })
                }
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

/// Operators with a weight matrix.
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

/// Of every node, whether it is a layer: something with a weight matrix, be it one of the file or one that is computed
/// of weights alone, as exporters transpose it where they fold nothing.
fn layers(net: &Imported) -> Vec<bool> {
    let g = &net.graph;
    let of_weights = g.dependent(g.ids().filter(|&id| weight(g, id).is_some()));
    let of_data = g.dependent(g.ids().filter(|&id| matches!(g.node(id).op, Op::Input(_))));
    let made: BTreeMap<&str, NodeId> = net.nodes.iter().filter_map(|n| Some((n.output.as_str(), n.value?))).collect();
    let computed =
        |name: &String| made.get(name.as_str()).is_some_and(|v| of_weights[v.index()] && !of_data[v.index()]);
    let is_layer =
        |n: &ImportedNode| LAYERS.contains(&n.op.as_str()) && (n.weights > 0 || n.inputs.iter().any(computed));
    net.nodes.iter().map(is_layer).collect()
}

/// Looks at every ONNX value the network computes. At a cut, up to `skips` tensors may cross beside it.
pub fn candidates(net: &Imported, skips: usize) -> Candidates {
    let names: BTreeMap<NodeId, &ImportedNode> =
        net.nodes.iter().rev().filter_map(|n| n.value.map(|v| (v, n))).collect();
    let mut consumers: BTreeMap<&str, Vec<&ImportedNode>> = BTreeMap::new();
    for n in &net.nodes {
        for i in n.inputs.iter().map(String::as_str).collect::<BTreeSet<_>>() {
            consumers.entry(i).or_default().push(n);
        }
    }
    let is_layer = layers(net);
    let layers = is_layer.iter().filter(|&&is| is).count();
    let mut separation = Separation::new(net, &names);
    let mut out = Candidates::default();
    let mut seen = BTreeSet::new();
    let mut before = 0;
    for (n, &is) in net.nodes.iter().zip(&is_layer) {
        before += usize::from(is);
        let value = n.value.filter(|v| separation.live[v.index()] && *v != net.logits && seen.insert(*v));
        let Some(value) = value else {
            out.others.push((n.name.clone(), n.output.clone()));
            continue;
        };
        let mut reject = |reason: String, possible: Option<Candidate>, beside: Option<usize>| {
            out.rejected.push(Rejected { node: n.name.clone(), name: n.output.clone(), reason, possible, beside });
        };
        let beside = match separation.beside(value, skips) {
            Ok(beside) => beside,
            Err(Inseparable { reason, beside }) => {
                reject(reason, None, beside);
                continue;
            }
        };
        let carried =
            beside.into_iter().map(|value| Carried { value, name: name_of(&net.graph, value, &names) }).collect();
        let cut = Candidate { value, node: n.name.clone(), name: n.output.clone(), layers_before: before, carried };
        let follow = consumers.get(n.output.as_str()).map_or(&[][..], Vec::as_slice);
        if let &[only] = follow
            && CONTINUES.contains(&only.op.as_str())
        {
            reject(
                format!("{} \"{}\" alone follows and belongs to the same layer", only.op, only.name),
                Some(cut),
                None,
            );
        } else if before >= layers {
            reject("only the network's own classifier or nothing with weights follows".into(), Some(cut), None);
        } else if before + 1 >= layers && remaining_is_classifier(net, &is_layer, value) {
            reject("only the network's own classifier follows: a local head would repeat it".into(), Some(cut), None);
        } else if let Some(last) = out.cuts.last()
            && !follows(&net.graph, &cut, last)
        {
            let reason = format!(
                "it does not need \"{}\", where the network can be cut as well: cuts follow one path",
                last.name
            );
            reject(reason, Some(cut), None);
        } else {
            out.cuts.push(cut);
        }
    }
    out
}

/// Whether one cut can follow another: what a module hands on is what its head trains, so the later value needs the
/// earlier one. Where each separates the network alone, nothing else need hold.
fn follows(g: &Graph, later: &Candidate, earlier: &Candidate) -> bool {
    if later.carried.is_empty() && earlier.carried.is_empty() {
        return true;
    }
    let mut met = BTreeSet::new();
    let mut open = vec![later.value];
    while let Some(id) = open.pop() {
        if id == earlier.value {
            return true;
        }
        // What comes before it cannot need it.
        if id > earlier.value && met.insert(id) {
            open.extend(&g.node(id).operands);
        }
    }
    false
}

/// Checks that every cut follows the one before it.
pub fn check_path(g: &Graph, cuts: &[Candidate]) -> Result<(), PartitionError> {
    match cuts.windows(2).find(|w| !follows(g, &w[1], &w[0])) {
        None => Ok(()),
        Some(w) => Err(PartitionError::Beside { first: w[0].name.clone(), second: w[1].name.clone() }),
    }
}

/// Whether the one layer after `value` makes the logits themselves.
fn remaining_is_classifier(net: &Imported, is_layer: &[bool], value: NodeId) -> bool {
    let after = net.graph.dependent([value]);
    let layers = net.nodes.iter().zip(is_layer).rev().filter(|&(_, &is)| is).filter_map(|(n, _)| n.value);
    let Some(last) = layers.into_iter().find(|v| after[v.index()]) else { return true };
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
    use crate::partition::random::network;
    use slrc_plan::random::Sequence;

    /// What crosses beside `value`, by looking at everything before it; nothing where a weight is used on both sides.
    fn crossing(net: &Imported, value: NodeId) -> Option<Vec<NodeId>> {
        let g = &net.graph;
        let (live, before) = (differentiable(g, net.logits), g.needed([value]));
        let users = g.all_users(&g.needed([net.logits]));
        let of_weights = g.dependent(g.ids().filter(|&id| weight(g, id).is_some()));
        let mut out = Vec::new();
        for id in g.ids().filter(|&id| id != value && before[id.index()]) {
            let mut after = users[id.index()].iter().filter(|u| !before[u.index()]);
            if live[id.index()] {
                if after.any(|u| live[u.index()]) {
                    out.push(id);
                }
            } else if of_weights[id.index()] && after.next().is_some() {
                return None;
            }
        }
        Some(out)
    }

    fn separates(net: &Imported, value: NodeId) -> bool {
        crossing(net, value).is_some_and(|c| c.is_empty())
    }

    #[test]
    fn what_crosses_beside_a_cut_is_carried() {
        let mut rng = Sequence::new(10, 0, 0);
        let mut met = [0; 4];
        for _ in 0..800 {
            let net = network(&mut rng);
            let found = candidates(&net, 2);
            assert_eq!(check_path(&net.graph, &found.cuts), Ok(()));
            for c in found.cuts.iter().chain(found.rejected.iter().filter_map(|r| r.possible.as_ref())) {
                let carried: Vec<NodeId> = c.carried.iter().map(|c| c.value).collect();
                assert_eq!(Some(&carried), crossing(&net, c.value).as_ref(), "{} of {:?}", c.value, net.graph);
                assert!(carried.len() <= 2);
                met[carried.len()] += 1;
            }
            for r in found.rejected.iter().filter(|r| r.possible.is_none()) {
                let node = net.nodes.iter().find(|n| n.name == r.node).and_then(|n| n.value).expect("a node");
                let crossing = crossing(&net, node).map(|c| c.len());
                assert_eq!(r.beside, crossing, "{}: {}", r.node, r.reason);
                met[3] += usize::from(r.beside.is_some());
            }
        }
        assert!(met[..3].iter().all(|&n| n > 100) && met[3] > 5, "{met:?}");
    }

    #[test]
    fn what_separates_is_found_without_looking_behind_what_does() {
        let mut rng = Sequence::new(8, 0, 0);
        let (mut yes, mut no) = (0, 0);
        for _ in 0..100 {
            let net = network(&mut rng);
            let found = candidates(&net, 0);
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
                let (a, b) = (all.beside(id, 0), few.beside(id, 0));
                assert_eq!(a.is_ok(), b.is_ok(), "{id} of {:?}: {a:?} and {b:?}", net.graph);
            }
        }
    }
}
