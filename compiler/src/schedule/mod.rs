//! Schedule: the order in which a program's items run.
//!
//! Work runs in the graph's own order (forward, then backward from the end), except that an optimizer update runs as
//! soon as its gradient exists and nothing later reads the old weight: gradients do not pile up.

use slrc_plan::kernel::Phase;

use crate::fuse::{Item, Items, Layouts};
use crate::ir::graph::Graph;

/// Indices of the items in execution order.
pub fn schedule(g: &Graph, l: &Layouts, items: &Items) -> Vec<usize> {
    let keys = items.keys(g, l);
    let is_update = |i: usize| match &items.items[i] {
        Some(Item::Region(r)) => r.sinks.iter().all(|s| g.node(s.node).phase == Phase::Update),
        _ => false,
    };
    items.topological(|i| if is_update(i) { 0 } else { keys[i] })
}
