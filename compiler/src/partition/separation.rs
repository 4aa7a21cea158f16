//! Which values of a network separate what comes before them from what comes after.

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

    /// Why `value` does not separate the network, or nothing if it does.
    pub(super) fn why_not(&mut self, value: NodeId) -> Option<String> {
        let reason = self.reason(value);
        if reason.is_none() {
            self.last = Some(value);
        }
        reason
    }

    fn reason(&mut self, value: NodeId) -> Option<String> {
        let g = self.g;
        if !g.ty(value).is_real() {
            return Some("it is not a float tensor".into());
        }
        if self.looks == 0 {
            let spans = self.spans.take().unwrap_or_else(|| Spans::of(g, &self.live, &self.of_weights, &self.users));
            let reason = spans.why_not(value);
            self.spans = Some(spans);
            return reason.map(str::to_string);
        }
        let before = self.needed(value);
        self.looks = self.looks.saturating_sub(before.len());
        let (mut crossing, mut shared) = (BTreeSet::new(), None);
        for id in before.into_iter().filter(|&id| id != value) {
            let after = |u: &NodeId| self.met[u.index()] != Some(value);
            let mut users = self.users[id.index()].iter();
            if self.live[id.index()] {
                if users.any(|u| after(u) && self.live[u.index()]) {
                    crossing.insert(describe(g, id, self.names));
                }
            } else if self.of_weights[id.index()] && users.any(after) {
                // The weight itself, or what is computed of it alone and used on both sides.
                let reason = format!("weight \"{}\" is used before and after it", weight_of(g, id).unwrap_or_default());
                if weight(g, id).is_some() {
                    return Some(reason);
                }
                shared = shared.or(Some(reason));
            }
        }
        if crossing.is_empty() {
            return shared;
        }
        let list: Vec<&str> = crossing.iter().take(3).map(String::as_str).collect();
        let more = if crossing.len() > 3 { ", .." } else { "" };
        Some(format!("{} tensors are live here: itself and {}{more}", crossing.len() + 1, list.join(", ")))
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

/// The ONNX value a node belongs to: its own, or the node that made it.
fn describe(g: &Graph, id: NodeId, names: &BTreeMap<NodeId, &ImportedNode>) -> String {
    match names.get(&id) {
        Some(n) => format!("\"{}\"", n.output),
        None => format!("a part of \"{}\"", g.origin(id)),
    }
}
