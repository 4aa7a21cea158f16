//! Branches of `If` and bodies of loops made part of the graph's own scope: every name in them is given once in the
//! whole model, and their initializers are the graph's. What they read from around them keeps its name, so that their
//! nodes can be put in the place of the `If` or the loop ([`crate::onnx::place`]), and weights in them are weights like
//! all others.

use std::collections::{BTreeMap, BTreeSet};

use onnx_protobuf::{GraphProto, NodeProto, TensorProto};

use crate::onnx::loops::is_loop;

/// Whether a node is an `If` with its two branches.
pub(crate) fn is_if(n: &NodeProto) -> bool {
    n.op_type == "If" && (n.domain.is_empty() || n.domain == "ai.onnx")
}

/// Whether the graphs of a node belong to the scope around it.
fn opens(n: &NodeProto) -> bool {
    is_if(n) || is_loop(n)
}

/// The graphs a node holds.
pub(crate) fn graphs(n: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// The same, to change them.
pub(crate) fn graphs_mut(n: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    n.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs))
}

/// Gives names and initializers of all branches and bodies to the graph. A name that is taken becomes
/// `first output/name`.
pub(crate) fn open_scopes(graph: &mut GraphProto) {
    if !graph.node.iter().any(opens) {
        return;
    }
    let values = graph.node.iter().flat_map(|n| &n.output);
    let inputs = graph.input.iter().map(|v| &v.name);
    let taken = values.chain(inputs).chain(graph.initializer.iter().map(|t| &t.name)).cloned().collect();
    let mut scopes = Scopes { taken, renamed: Vec::new(), initializers: Vec::new() };
    for n in graph.node.iter_mut().filter(|n| opens(n)) {
        scopes.node(n);
    }
    graph.initializer.append(&mut scopes.initializers);
}

struct Scopes {
    /// Names of the whole model.
    taken: BTreeSet<String>,
    /// New names of what each graph around makes, from the outermost to the innermost.
    renamed: Vec<BTreeMap<String, String>>,
    /// Initializers of branches and bodies.
    initializers: Vec<TensorProto>,
}

impl Scopes {
    /// Reads and writes of a node, and of the graphs it holds. Graphs are no deeper than the wire guard allows.
    fn node(&mut self, n: &mut NodeProto) {
        n.input.iter_mut().for_each(|name| self.rename(name));
        n.output.iter_mut().for_each(|name| self.rename(name));
        let is_open = opens(n);
        let prefix = n.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        for g in graphs_mut(n) {
            self.enter(g, is_open, &prefix);
            g.node.iter_mut().for_each(|n| self.node(n));
            g.output.iter_mut().for_each(|v| self.rename(&mut v.name));
            if is_open {
                g.input.iter_mut().for_each(|v| self.rename(&mut v.name));
                for mut t in std::mem::take(&mut g.initializer) {
                    self.rename(&mut t.name);
                    self.initializers.push(t);
                }
            }
            self.renamed.pop();
        }
    }

    /// What a graph makes itself: of an open one it gets names of the whole model, of any other graph it keeps its own.
    fn enter(&mut self, g: &GraphProto, is_open: bool, prefix: &str) {
        let makes = g.node.iter().flat_map(|n| &n.output).chain(g.initializer.iter().map(|t| &t.name));
        let makes = makes.chain(g.input.iter().map(|v| &v.name)).filter(|name| !name.is_empty());
        let mut names = BTreeMap::new();
        for name in makes {
            if names.contains_key(name) {
                continue;
            }
            let mut new = name.clone();
            if is_open && !self.taken.insert(new.clone()) {
                new = format!("{prefix}/{name}");
                while !self.taken.insert(new.clone()) {
                    new.push('_');
                }
            }
            names.insert(name.clone(), new);
        }
        self.renamed.push(names);
    }

    fn rename(&self, name: &mut String) {
        if let Some(new) = self.renamed.iter().rev().find_map(|names| names.get(name)) {
            name.clone_from(new);
        }
    }
}
