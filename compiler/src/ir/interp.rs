//! The oracle: evaluates a graph naively in f64, sharing no code with any device.

use std::collections::BTreeMap;

use crate::ir::graph::{Graph, InputId, NodeId, ScalarId, VarId};
use crate::ir::op::Op;
use crate::ir::tensor::Tensor;

/// Values of a graph's leaves.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// By input.
    pub inputs: BTreeMap<InputId, Tensor>,
    /// By variable.
    pub variables: BTreeMap<VarId, Tensor>,
    /// By step scalar; a scalar not listed has its schedule's value at step 0 of a 1-step run.
    pub scalars: BTreeMap<ScalarId, f64>,
}

/// Values of `targets`. Panics if a leaf they need has no value: the oracle is for tests and tools.
pub fn evaluate(graph: &Graph, env: &Env, targets: &[NodeId]) -> Vec<Tensor> {
    let needed = graph.needed(targets.iter().copied());
    let mut values: Vec<Option<Tensor>> = vec![None; graph.len()];
    for id in graph.ids().filter(|id| needed[id.index()]) {
        let node = graph.node(id);
        let value = match &node.op {
            Op::Input(i) => env.inputs[i].clone(),
            Op::Variable(v) => env.variables[v].clone(),
            Op::Constant(c) => {
                let c = &graph.constants[c.index()];
                Tensor::new(c.ty.shape.clone(), c.data.clone())
            }
            Op::StepScalar(s) => {
                let value = env.scalars.get(s).copied();
                Tensor::full([], value.unwrap_or_else(|| graph.scalars[s.index()].schedule.at(0, 1)))
            }
            op => {
                let operands: Vec<&Tensor> =
                    node.operands.iter().map(|o| values[o.index()].as_ref().expect("operands come first")).collect();
                op.rule().eval(&operands, &node.ty)
            }
        };
        assert_eq!(value.shape, node.ty.shape, "{id} = {}", node.op);
        values[id.index()] = Some(value);
    }
    targets.iter().map(|t| values[t.index()].clone().expect("targets are needed")).collect()
}
