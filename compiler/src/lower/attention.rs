//! Passes over scores as `attention` kernels.

use std::collections::BTreeSet;

use slrc_plan::attention::{Attention as Plan, Contraction, Over, Score};
use slrc_plan::kernel::KernelOp;
use slrc_plan::statement::Arg;
use slrc_plan::{Dims, View};

use crate::fuse::Layout;
use crate::fuse::attention::{Attention, Ending};
use crate::fuse::expression::Map;
use crate::ir::graph::NodeId;
use crate::lower::Lowering;
use crate::lower::kernels::collapse_batch;

/// Bytes of a strip's matrices: they should stay in a core's own cache.
const STRIP_BYTES: usize = 256 << 10;

impl Lowering<'_> {
    pub(super) fn attention(&mut self, item: usize, a: &Attention) {
        let values: Vec<(NodeId, Map)> = a.exits.iter().map(|e| e.value.clone()).collect();
        let over: Vec<Over> = a.exits.iter().map(over).collect();
        let by_rows: BTreeSet<usize> = (0..values.len()).filter(|&i| over[i] == Over::Rows).collect();
        let (region, found) = self.region_with(item, &a.region, &a.products, &values, &by_rows);
        let mut plan = Plan { products: Vec::new(), region, results: Vec::new(), strip: 0 };
        for (i, (node, map)) in a.products.iter().enumerate() {
            plan.products.push(self.score(format!("score{i}"), *node, map, a.region.space.len()));
        }
        for ((e, over), value) in a.exits.iter().zip(over).zip(found) {
            let Arg::Value(value) = value else { unreachable!("invariant: scores vary from element to element") };
            plan.results.push(self.contraction(e, over, value));
        }
        // A product that nothing uses would be of another pass.
        plan.products.retain(|p| is_used(&plan.region, &plan.results, &p.name));
        let (rows, cols) = (plan.rows(), plan.cols());
        join_batch(&mut plan);
        let most = (STRIP_BYTES / (4 * plan.held() * cols)).max(1);
        plan.strip = rows.div_ceil(rows.div_ceil(most));
        let terms: usize = plan.products.iter().map(|p| p.k).chain(plan.results.iter().map(|r| r.width)).sum();
        let elements: usize = plan.region.space.iter().product();
        let flops = elements * (2 * terms + plan.region.body.len());
        let mut nodes: Vec<NodeId> = a.exits.iter().map(|e| e.exit.node).collect();
        nodes.extend(a.region.sinks.iter().map(|s| s.node));
        nodes.sort_unstable();
        nodes.extend(a.products.iter().map(|(n, _)| *n));
        self.push(&nodes, flops as u64, KernelOp::Attention(plan));
    }

    /// A view of an operand over batch extents and two more dimensions, exchanged or not.
    fn matrix(&mut self, layout: &Layout, shape: &[usize], exchanged: bool) -> View {
        let rank = layout.strides.len();
        let mut strides: Vec<usize> = (0..rank - 2).filter(|&d| shape[d] != 1).map(|d| layout.strides[d]).collect();
        let [first, second] = if exchanged { [rank - 1, rank - 2] } else { [rank - 2, rank - 1] };
        strides.extend([layout.strides[first], layout.strides[second]]);
        View { strides, ..self.view(layout) }
    }

    fn score(&mut self, name: String, node: NodeId, map: &Map, dims: usize) -> Score {
        let n = self.g.node(node);
        let (shape, operands) = (n.ty.shape.clone(), n.operands.clone());
        let rank = shape.len();
        let k = self.g.shape(operands[0])[rank - 1];
        let straight = map[rank - 2] == Some(dims - 2);
        let (first, second) = (self.l.operands[&(node, 0)].clone(), self.l.operands[&(node, 1)].clone());
        let (a, b) = if straight {
            (self.matrix(&first, &shape, false), self.matrix(&second, &shape, false))
        } else {
            (self.matrix(&second, &shape, true), self.matrix(&first, &shape, true))
        };
        Score { name, k, a, b }
    }

    fn contraction(&mut self, e: &Ending, over: Over, value: String) -> Contraction {
        let node = e.exit.node;
        let shape = self.g.shape(node).to_vec();
        let rank = shape.len();
        let second = e.exit.slot == 1;
        let other = self.l.operands[&(node, 1 - e.exit.slot)].clone();
        let to = self.l.memory(node).expect("invariant: products are stored").clone();
        Contraction {
            value,
            over,
            width: if second { shape[rank - 2] } else { shape[rank - 1] },
            by: self.matrix(&other, &shape, second),
            to: self.matrix(&to, &shape, second),
        }
    }
}

/// What a product sums over.
fn over(e: &Ending) -> Over {
    // The last dimension of a first operand is summed over, the one before it of a second.
    if (e.exit.slot == 0) == e.exit.flipped { Over::Rows } else { Over::Cols }
}

fn is_used(region: &slrc_plan::Region, results: &[Contraction], name: &str) -> bool {
    let argument = |a: &Arg| matches!(a, Arg::Value(v) if v == name);
    region.body.iter().any(|s| s.args.iter().any(argument)) || results.iter().any(|r| r.value == name)
}

/// Joins batch dimensions that every operand walks as one.
fn join_batch(plan: &mut Plan) {
    let batch = plan.batch().to_vec();
    let tail = [plan.rows(), plan.cols()];
    let region = &mut plan.region;
    let mut views: Vec<&mut View> = plan.products.iter_mut().flat_map(|p| [&mut p.a, &mut p.b]).collect();
    views.extend(plan.results.iter_mut().flat_map(|r| [&mut r.by, &mut r.to]));
    views.extend(region.loads.iter_mut().map(|l| &mut l.view));
    views.extend(region.stores.iter_mut().map(|s| &mut s.view));
    let joined = collapse_batch(batch, &mut views);
    region.space = Dims([&joined[..], &tail].concat());
    region.reduce = vec![region.space.len() - 1];
}
