//! Schedule: the order in which a program's items run.
//!
//! Work runs in the graph's own order (forward, then backward from the end), except for optimizer updates. One of a
//! large tensor runs as soon as its gradient exists and nothing later reads the old weight: gradients do not pile up.
//! Those of small tensors run last, together: their gradients take no room worth speaking of, and a device may run them
//! at once.

use slrc_plan::kernel::Phase;

use crate::fuse::{Item, Items, Layouts};
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
        _ => keys[i],
    };
    items.topological(key)
}

/// Most elements of a small tensor: biases, and what normalisation scales and shifts by.
const SMALL_UPDATE: usize = 1 << 14;
