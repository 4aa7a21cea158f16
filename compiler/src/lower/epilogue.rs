//! Products with the elementwise work on their results.

use slrc_plan::kernel::KernelOp;
use slrc_plan::region::Region as PlanRegion;
use slrc_plan::{DType, View};

use crate::fuse::{Owner, Region};
use crate::ir::graph::NodeId;
use crate::lower::Lowering;

impl Lowering<'_> {
    /// Appends a product, with the item it belongs to and the work on its result.
    pub(super) fn push_product(
        &mut self,
        id: NodeId,
        flops: u64,
        mut run: KernelOp,
        epilogue: Option<(usize, &Region)>,
    ) {
        let Some((item, region)) = epilogue else { return self.push(&[id], flops, run) };
        let product = run.product().expect("invariant: products have epilogues");
        let (to, cols) = (product.to.buffer.clone(), product.cols);
        let mut plan = self.plan_region(item, region);
        by_rows(&mut plan, cols);
        if let Some(place) = self.shared_place(id, &run, &to, &plan) {
            // It was among the last to be added.
            let at = self.draft.buffers.iter().rposition(|b| b.id == to);
            at.map(|at| self.draft.buffers.remove(at));
            self.buffers.remove(&Owner::Node(id));
            run.rename_buffers(&mut |b| rename(b, &to, &place));
            plan.loads.iter_mut().for_each(|x| rename(&mut x.view.buffer, &to, &place));
        }
        let nodes: Vec<NodeId> = [id].into_iter().chain(region.sinks.iter().map(|s| s.node)).collect();
        let work = plan.space.iter().product::<usize>() * plan.body.len();
        match &mut run {
            KernelOp::Matmul(m) => m.epilogue = Some(plan),
            KernelOp::Conv(c) => c.epilogue = Some(plan),
            other => unreachable!("invariant: {} has no epilogue", other.family()),
        }
        self.push(&nodes, flops + work as u64, run);
    }

    /// A buffer the epilogue fills that can hold the product until then, if nothing else wants the product.
    fn shared_place(&self, id: NodeId, run: &KernelOp, to: &str, plan: &PlanRegion) -> Option<String> {
        if self.readers.contains_key(&Owner::Node(id)) || !self.roots_of(id).is_empty() {
            return None;
        }
        let operands = run.operands();
        let taken = |b: &str| {
            let loaded = plan.loads.iter().any(|x| x.view.buffer == b);
            loaded || operands.iter().any(|o| o.view.buffer == b && o.view.buffer != to)
        };
        let is_f32 = |id: &str| self.draft.buffers.iter().rfind(|b| b.id == id).is_none_or(|b| b.dtype == DType::F32);
        let whole = |v: &View| v.offset == 0 && v.is_dense(&plan.space);
        let fits = |v: &View| whole(v) && !taken(&v.buffer) && is_f32(&v.buffer);
        let once = |v: &View| plan.stores.iter().filter(|s| s.view.buffer == v.buffer).count() == 1;
        plan.stores.iter().map(|s| &s.view).find(|v| fits(v) && once(v)).map(|v| v.buffer.clone())
    }
}

fn rename(buffer: &mut String, from: &str, to: &str) {
    if buffer == from {
        to.clone_into(buffer);
    }
}

/// Makes the last dimension, which holds whole rows, one row.
fn by_rows(r: &mut PlanRegion, cols: usize) {
    let last = r.space.0.pop().expect("invariant: an epilogue has elements");
    if last != cols {
        r.space.0.push(last / cols);
    }
    r.space.0.push(cols);
    for v in r.loads.iter_mut().map(|x| &mut x.view).chain(r.stores.iter_mut().map(|s| &mut s.view)) {
        let step = v.strides.pop().expect("invariant: a stride a dimension");
        if last != cols {
            v.strides.push(step * cols);
        }
        v.strides.push(step);
    }
}
