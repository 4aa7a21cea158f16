//! Random networks that tests cut.

use std::collections::BTreeMap;

use slrc_plan::random::Sequence;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Init, Input, InputKind, NodeId, Root, RootKind, VarKind, Variable};
use crate::ir::types::Type;
use crate::onnx::import::{Imported, ImportedNode};

/// A network that adds up and multiplies: mostly what was last, some earlier values, and weights of which some are
/// used twice.
pub(super) fn network(rng: &mut Sequence) -> Imported {
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
