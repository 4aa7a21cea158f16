//! Operands that products make as they read them.

use slrc_plan::region::Load;
use slrc_plan::statement::Arg;
use slrc_plan::{Prologue, View};

use crate::fuse::Region;
use crate::fuse::expression::{identity_map, item_space};
use crate::ir::graph::NodeId;
use crate::lower::Lowering;

impl Lowering<'_> {
    /// How a product makes an operand, over all the operand's dimensions; and the view of that of which it is made
    /// whose elements lie as the operand's would.
    pub(super) fn prologue(&mut self, id: NodeId, slot: usize) -> (View, Prologue) {
        let (g, l) = (self.g, self.l);
        let operand = g.node(id).operands[slot];
        let (base, leaves) = l.made_of(g, operand);
        let place = leaves.iter().find(|x| l.stands_for(g, id, operand, x));
        let place = place.expect("invariant: an operand is made of a tensor of its size");
        let view = View { buffer: self.buffer(place.owner), offset: place.offset, strides: place.strides.clone() };
        let space = item_space(g, base);
        let order = (0..space.len()).collect();
        let region = Region { space, order, axes: Vec::new(), sinks: Vec::new(), leaves: Vec::new() };
        let values = [(base, identity_map(g.shape(base)))];
        let (loads, body, found) = self.values_with(&region, &values);
        let [Arg::Value(value)] = &found[..] else { unreachable!("invariant: an operand is computed") };
        let load = |(leaf, name)| {
            let seen = l.seen(g, operand, &leaf);
            Load { name, view: View { buffer: self.buffer(seen.owner), offset: seen.offset, strides: seen.strides } }
        };
        let loads: Vec<Load> = loads.into_iter().map(load).collect();
        (view, Prologue { loads, body, value: value.clone() })
    }
}
