//! Weights that lost their names on the way.

use crate::onnx::diagnose::gradient::is_weight;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::is_additive_mask;
use crate::onnx::links::Links;
use crate::onnx::node::node_name;
use crate::onnx::tensor::read_numbers;

/// A weight with a name that an exporter made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The name.
    pub name: String,
    /// The first node that uses it.
    pub node: String,
    /// Whether it is the second operand of a product, where exporters put a linear layer's matrix transposed.
    pub transposed: bool,
}

/// Weights whose names say nothing.
pub fn renamed(file: &OnnxFile) -> Vec<Renamed> {
    let graph = &file.proto.graph;
    let links = Links::new(graph);
    let weights = graph.initializer.iter().filter(|t| is_weight(t) && is_made_up(&t.name));
    let used = weights.filter_map(|t| {
        let &(node, slot) = links.real_uses(&t.name).first()?;
        // Identity nodes may give the name back.
        if links.uses(&t.name).iter().all(|&(n, _)| graph.node[n].op_type == "Identity") {
            return None;
        }
        let n = &graph.node[node];
        if n.op_type == "Add" && read_numbers(file, t).is_ok_and(|c| is_additive_mask(&c.data)) {
            return None;
        }
        Some(Renamed { name: t.name.clone(), node: node_name(n), transposed: n.op_type == "MatMul" && slot == 1 })
    });
    used.collect()
}

/// `193`, `val_12`, `onnx::MatMul_123`, `_v_12`, `const_3`, `tensor_3`.
fn is_made_up(name: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = name.strip_prefix("onnx::") {
        return rest.rsplit_once('_').is_some_and(|(_, n)| digits(n));
    }
    let prefixes = ["", "val_", "_v_", "const_", "tensor_", "_val_"];
    prefixes.iter().any(|p| name.strip_prefix(p).is_some_and(digits))
}

#[cfg(test)]
mod tests {
    use super::is_made_up;

    #[test]
    fn made_up_names_are_told_from_given_ones() {
        for name in ["193", "val_12", "onnx::MatMul_123", "onnx::Conv_7", "_v_3"] {
            assert!(is_made_up(name), "{name}");
        }
        for name in ["conv1.weight", "val_loss", "fc.0", "onnx::weight", "", "layer_1"] {
            assert!(!is_made_up(name), "{name}");
        }
    }
}
