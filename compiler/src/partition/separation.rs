//! Which values of a network separate what comes before them from what comes after, alone or with a few others.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::graph::{Graph, NodeId, VarKind};
use crate::ir::op::Op;
use crate::onnx::import::{Imported, ImportedNode};
use crate::partition::candidates::differentiable;

/// Nodes that may be looked at for the reasons of a network, for each of its own: where nothing separates a long part
/// of it, every value there is asked about everything before it.
const LOOKS: usize = 64;
/// Nodes that a network is taken to have at least.
const FEWEST_LOOKS: usize = 1 << 14;

/// Which values separate the network. Asked in data order, it need not look behind the last one that does: whatever
/// crosses behind it, crosses there. What crosses is named until too much has been looked at; from there on
/// [`Spans`] tells where nothing does.
pub(super) struct Separation<'a> {
    g: &'a Graph,
    names: &'a BTreeMap<NodeId, &'a ImportedNode>,
    pub(super) live: Vec<bool>,
    of_weights: Vec<bool>,
    /// By node: who uses it of those that the logits need.
    users: Vec<Vec<NodeId>>,
    /// The last value that separates.
    last: Option<NodeId>,
    /// Of every node, the latest value asked about that needs it.
    met: Vec<Option<NodeId>>,
    /// Nodes that may still be looked at.
    pub(super) looks: usize,
    /// Once there are none left.
    spans: Option<Spans>,
}

impl<'a> Separation<'a> {
    pub(super) fn new(net: &'a Imported, names: &'a BTreeMap<NodeId, &'a ImportedNode>) -> Separation<'a> {
        let g = &net.graph;
        let of_weights = g.dependent(g.ids().filter(|&id| weight(g, id).is_some()));
        let users = g.all_users(&g.needed([net.logits]));
        let live = differentiable(g, net.logits);
        Separation {
            g,
            names,
            live,
            of_weights,
            users,
            last: None,
            met: vec![None; g.len()],
            looks: LOOKS * g.len().max(FEWEST_LOOKS),
            spans: None,
        }
    }

    /// What crosses beside `value`, ascending, where the network is cut behind what `value` needs; at most `most`.
    pub(super) fn beside(&mut self, value: NodeId, most: usize) -> Result<Vec<NodeId>, Inseparable> {
        let beside = self.crossing(value, most)?;
        if beside.is_empty() {
            self.last = Some(value);
        }
        Ok(beside)
    }

    fn crossing(&mut self, value: NodeId, most: usize) -> Result<Vec<NodeId>, Inseparable> {
        let g = self.g;
        if !g.ty(value).is_real() {
            return Err(Inseparable::because("it is not a float tensor"));
        }
        if self.looks == 0 {
            let spans = self.spans.take().unwrap_or_else(|| Spans::of(g, &self.live, &self.of_weights, &self.users));
            let reason = spans.why_not(value);
            self.spans = Some(spans);
            return reason.map_or(Ok(Vec::new()), |r| Err(Inseparable::because(r)));
        }
        let before = self.needed(value);
        self.looks = self.looks.saturating_sub(before.len());
        let (mut crossing, mut shared) = (Vec::new(), None);
        for id in before.into_iter().filter(|&id| id != value) {
            let after = |u: &NodeId| self.met[u.index()] != Some(value);
            let mut users = self.users[id.index()].iter();
            if self.live[id.index()] {
                if users.any(|u| after(u) && self.live[u.index()]) {
                    crossing.push(id);
                }
            } else if self.of_weights[id.index()] && users.any(after) {
                // The weight itself, or what is computed of it alone and used on both sides.
                let reason = format!("weight \"{}\" is used before and after it", weight_of(g, id).unwrap_or_default());
                if weight(g, id).is_some() {
                    return Err(Inseparable::because(reason));
                }
                shared = shared.or(Some(reason));
            }
        }
        match shared {
            Some(reason) if crossing.len() <= most => return Err(Inseparable::because(reason)),
            None if crossing.len() <= most => return Ok(crossing),
            _ => {}
        }
        let names: BTreeSet<String> = crossing.iter().map(|&id| describe(g, id, self.names)).collect();
        let list: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
        let more = if names.len() > 3 { ", .." } else { "" };
        let reason = format!("{} tensors are live here: itself and {}{more}", names.len() + 1, list.join(", "));
        Err(Inseparable { reason, beside: shared.is_none().then_some(crossing.len()) })
    }

    /// What a value needs, itself included, ascending. Of what the last value that separates needs, only what is met on
    /// the way to it: itself, data and constants.
    fn needed(&mut self, value: NodeId) -> Vec<NodeId> {
        let mut out = Vec::new();
        let mut open = vec![value];
        while let Some(id) = open.pop() {
            if self.met[id.index()].replace(value) == Some(value) {
                continue;
            }
            out.push(id);
            if self.last != Some(id) {
                open.extend(&self.g.node(id).operands);
            }
        }
        out.sort_unstable();
        out
    }
}

/// Why a value does not separate the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inseparable {
    /// For people.
    pub(super) reason: String,
    /// If it is only for what crosses beside it: how many tensors.
    pub(super) beside: Option<usize>,
}

impl Inseparable {
    fn because(reason: impl Into<String>) -> Inseparable {
        Inseparable { reason: reason.into(), beside: None }
    }
}

/// What spans each node, by ids alone: a value separates if no edge of what carries gradients begins before and ends
/// behind it, and no weight is used on both sides. Of two branches side by side it lets no value of either pass.
struct Spans {
    edges: Vec<u32>,
    weights: Vec<u32>,
}

impl Spans {
    fn of(g: &Graph, live: &[bool], of_weights: &[bool], users: &[Vec<NodeId>]) -> Spans {
        // How many begin less how many end at each node; summed up below.
        let (mut edges, mut weights) = (vec![0u32; g.len() + 1], vec![0u32; g.len() + 1]);
        let span = |of: &mut Vec<u32>, first: usize, end: usize| {
            if first < end {
                of[first] = of[first].wrapping_add(1);
                of[end] = of[end].wrapping_sub(1);
            }
        };
        // Where what is computed of weights alone first meets data.
        let mut first: Vec<Option<usize>> = vec![None; g.len()];
        for id in g.ids().rev() {
            let i = id.index();
            if live[i] {
                if let Some(end) = users[i].iter().map(|u| u.index()).filter(|&u| live[u]).max() {
                    span(&mut edges, i + 1, end);
                }
                first[i] = Some(i);
            } else if of_weights[i] {
                let met = || users[i].iter().filter_map(|u| first[u.index()]);
                if let (Some(least), Some(most)) = (met().min(), met().max()) {
                    span(&mut weights, least, most);
                    first[i] = Some(least);
                }
            }
        }
        for of in [&mut edges, &mut weights] {
            let mut sum = 0u32;
            for x in of {
                sum = sum.wrapping_add(*x);
                *x = sum;
            }
        }
        Spans { edges, weights }
    }

    fn why_not(&self, value: NodeId) -> Option<&'static str> {
        if self.edges[value.index()] > 0 {
            return Some("other tensors are live here");
        }
        (self.weights[value.index()] > 0).then_some("a weight is used before and after it")
    }
}

/// The name of the first weight that a value is computed of.
fn weight_of(g: &Graph, id: NodeId) -> Option<&str> {
    let mut of = BTreeSet::new();
    let mut open = vec![id];
    while let Some(id) = open.pop() {
        if of.insert(id) {
            open.extend(&g.node(id).operands);
        }
    }
    of.into_iter().find_map(|w| weight(g, w))
}

/// The name of a weight that a node reads.
pub(super) fn weight(g: &Graph, id: NodeId) -> Option<&str> {
    match &g.node(id).op {
        Op::Variable(v) => {
            let v = &g.variables[v.index()];
            (v.kind == VarKind::Weight).then_some(v.name.as_str())
        }
        _ => None,
    }
}

/// The ONNX value a node belongs to, for messages: its own, or the node that made it.
fn describe(g: &Graph, id: NodeId, names: &BTreeMap<NodeId, &ImportedNode>) -> String {
    let name = name_of(g, id, names);
    if names.contains_key(&id) { format!("\"{name}\"") } else { format!("a part of \"{name}\"") }
}

/// The name of the ONNX value that a node is, or of the node that made it.
pub(super) fn name_of(g: &Graph, id: NodeId, names: &BTreeMap<NodeId, &ImportedNode>) -> String {
    names.get(&id).map_or(g.origin(id), |n| n.output.as_str()).to_string()
}
