//! Products with the elementwise work on their results.

use slrc_plan::kernel::{ConvAlgorithm, KernelOp, TILE_GROUP, TILE_ROWS};
use slrc_plan::region::Region as PlanRegion;
use slrc_plan::{DType, View};

use crate::fuse::{Owner, Region};
use crate::ir::graph::NodeId;
use crate::lower::{Convolutions, Lowering};

/// Most rows of a group on a CPU: of patches that fit a core's cache, of tiles of Winograd's algorithm, and of others.
const PATCH_ELEMENTS: usize = 1 << 18;
const PATCH_ROWS: [usize; 2] = [256, 1024];
const WINOGRAD_ROWS: usize = 320;
/// Fewest rows of a group there, where it makes no more groups than this.
const FEWEST_ROWS: usize = 64;
const GROUPS: usize = 16;

impl Lowering<'_> {
    /// Appends a product, with the item it belongs to and the work on its result; `sums` is what it does besides.
    pub(super) fn push_product(
        &mut self,
        id: NodeId,
        flops: u64,
        mut run: KernelOp,
        epilogue: Option<(usize, &Region)>,
        sums: Option<&Region>,
    ) {
        let summed = sums.into_iter().flat_map(|r| &r.sinks).map(|s| s.node);
        let Some((item, region)) = epilogue else {
            let nodes: Vec<NodeId> = [id].into_iter().chain(summed).collect();
            return self.push(&nodes, flops, run);
        };
        let product = run.product().expect("invariant: products have epilogues");
        let (to, cols) = (product.to.buffer.clone(), product.cols);
        let mut plan = self.plan_region(item, region);
        by_rows(&mut plan, cols);
        if !plan.reduce.is_empty() {
            let count = groups(&run, self.convolutions);
            self.cut(&mut plan, region.sinks[0].node, count);
        }
        if let Some(place) = self.shared_place(id, &run, &to, &plan) {
            // It was among the last to be added.
            let at = self.draft.buffers.iter().rposition(|b| b.id == to);
            at.map(|at| self.draft.buffers.remove(at));
            self.buffers.remove(&Owner::Node(id));
            run.rename_buffers(&mut |b| rename(b, &to, &place));
            plan.loads.iter_mut().for_each(|x| rename(&mut x.view.buffer, &to, &place));
        }
        let nodes: Vec<NodeId> = [id].into_iter().chain(region.sinks.iter().map(|s| s.node)).chain(summed).collect();
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

/// Groups of rows whose columns are reduced where they are computed.
fn groups(run: &KernelOp, convolutions: Convolutions) -> usize {
    let rows = run.product().expect("invariant: products have epilogues").rows;
    let most = match run {
        _ if convolutions == Convolutions::Tiled => {
            let tiles = rows.div_ceil(TILE_ROWS);
            return tiles + tiles.div_ceil(TILE_GROUP);
        }
        KernelOp::Conv(c) if c.algorithm == ConvAlgorithm::Winograd => WINOGRAD_ROWS,
        KernelOp::Conv(c) if !c.geometry.is_pointwise() => {
            let terms = c.geometry.kernel.iter().product::<usize>() * c.in_channels.max(c.out_channels);
            (PATCH_ELEMENTS / terms.max(1)).clamp(PATCH_ROWS[0], PATCH_ROWS[1])
        }
        _ => PATCH_ROWS[1],
    };
    rows.div_ceil(most).max((rows / FEWEST_ROWS).clamp(1, GROUPS))
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
