//! Schedule: the order in which a program's items run.
//!
//! Work runs in the graph's own order (forward, then backward from the end), except for optimizer updates. One of a
//! large tensor runs as soon as its gradient exists and nothing later reads the old weight: gradients do not pile up.
//! Those of small tensors run last, together: their gradients take no room worth speaking of, and a device may run them
//! at once. Sums that are small beside what they are of, such as the gradient of a bias, run as soon as they can: in
//! the graph they may stand far behind, and would keep it alive until then.

use slrc_plan::kernel::Phase;

use crate::fuse::{Item, Items, Layouts, Region};
use crate::ir::graph::Graph;

/// Indices of the items in execution order.
pub fn schedule(g: &Graph, l: &Layouts, items: &Items) -> Vec<usize> {
    let keys = items.keys(g, l);
    let last = keys.iter().copied().filter(|&k| k != u64::MAX).max().unwrap_or(0);
    let key = |i: usize| match &items.items[i] {
        Some(Item::Region(r)) if r.sinks.iter().all(|s| g.node(s.node).phase == Phase::Update) => {
            let small = r.axes.is_empty() && r.space.iter().product::<usize>() <= SMALL_UPDATE;
            if small { last + 1 + keys[i] } else { 0 }
        }
        Some(Item::Region(r)) if sums_up(g, r) => 0,
        _ => keys[i],
    };
    items.topological(key)
}

/// Whether what a region stores is small beside what it walks.
fn sums_up(g: &Graph, r: &Region) -> bool {
    let stored: usize = r.sinks.iter().map(|s| g.ty(s.node).count()).sum();
    !r.axes.is_empty() && stored.saturating_mul(SMALLER) <= r.space.iter().product()
}

/// How much smaller than what it walks a region's results must be, together, to be small.
const SMALLER: usize = 256;

/// Most elements of a small tensor: biases, and what normalisation scales and shifts by.
const SMALL_UPDATE: usize = 1 << 14;
