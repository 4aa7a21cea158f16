//! Who makes and who uses each value of an ONNX graph, as the file says it.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto, TensorProto};

/// A use of a value: node index and input slot.
pub(crate) type Use = (usize, usize);

/// The values of a graph, by name.
pub(crate) struct Links<'a> {
    /// The graph's nodes.
    pub(crate) nodes: &'a [NodeProto],
    makers: BTreeMap<&'a str, usize>,
    uses: BTreeMap<&'a str, Vec<Use>>,
    initializers: BTreeMap<&'a str, &'a TensorProto>,
}

impl<'a> Links<'a> {
    pub(crate) fn new(graph: &'a GraphProto) -> Links<'a> {
        let mut makers = BTreeMap::new();
        let mut uses: BTreeMap<&str, Vec<Use>> = BTreeMap::new();
        for (i, n) in graph.node.iter().enumerate() {
            for o in n.output.iter().filter(|o| !o.is_empty()) {
                makers.insert(o.as_str(), i);
            }
            for (slot, name) in n.input.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                uses.entry(name).or_default().push((i, slot));
            }
        }
        let initializers = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        Links { nodes: &graph.node, makers, uses, initializers }
    }

    /// The node that makes a value.
    pub(crate) fn maker(&self, name: &str) -> Option<usize> {
        self.makers.get(name).copied()
    }

    /// Every use of a value.
    pub(crate) fn uses(&self, name: &str) -> &[Use] {
        self.uses.get(name).map_or(&[], Vec::as_slice)
    }

    /// Uses of a value by anything but an Identity, those of its Identities included.
    pub(crate) fn real_uses(&self, name: &'a str) -> Vec<Use> {
        let mut out = BTreeSet::new();
        let (mut left, mut seen) = (vec![name], BTreeSet::new());
        while let Some(name) = left.pop() {
            // A damaged file may hold a circle.
            if !seen.insert(name) {
                continue;
            }
            for &(node, slot) in self.uses(name) {
                match self.nodes[node].op_type.as_str() {
                    "Identity" => left.extend(self.nodes[node].output.iter().map(String::as_str)),
                    _ => {
                        out.insert((node, slot));
                    }
                }
            }
        }
        out.into_iter().collect()
    }

    /// The initializer that a value is, directly or through Identities.
    pub(crate) fn initializer(&self, name: &str) -> Option<&'a TensorProto> {
        let mut name = name;
        for _ in 0..=self.nodes.len() {
            if let Some(t) = self.initializers.get(name) {
                return Some(t);
            }
            let maker = &self.nodes[self.maker(name)?];
            name = maker.input.first().filter(|_| maker.op_type == "Identity")?;
        }
        None
    }
}
