//! Modules as images: the weights and the optimizer state of one module side by side, so that one copy moves them.
//!
//! A plan lays all weights out in one space and all optimizer state in another. Where modules take turns on the device
//! there are two slots instead, each as large as the largest image that it is for: module k is always in slot k mod 2,
//! so that what a launch points to does not change.

use std::collections::BTreeMap;
use std::ops::Range;

use slrc_plan::buffer::align;
use slrc_plan::{Buffer, Plan};

/// How many images the device holds at once.
pub(super) const SLOTS: usize = 2;

/// The slot of a module (from 1).
pub(super) fn slot_of(module: usize) -> usize {
    module % SLOTS
}

/// Where everything lies in the modules' images, and where those lie in host memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Images {
    /// By module: its image's place in host memory.
    host: BTreeMap<usize, Range<usize>>,
    /// By buffer: the module it belongs to, and its place in the image.
    places: BTreeMap<String, (usize, Range<usize>)>,
    /// Modules that run.
    modules: usize,
}

impl Images {
    /// Sizes that no memory could hold saturate.
    pub(super) fn of(plan: &Plan) -> Images {
        let sizes: BTreeMap<&str, usize> = plan.buffers.iter().map(|b| (b.id.as_str(), b.bytes)).collect();
        let parameters = plan.parameters.iter().map(|p| (&p.buffer, p.module));
        let state = plan.optimizer_state.iter().map(|o| (&o.buffer, o.module));
        let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (id, module) in parameters.chain(state) {
            let bytes = sizes.get(id.as_str()).copied().unwrap_or(0);
            let end = ends.entry(module).or_default();
            places.insert(id.clone(), (module, *end..end.saturating_add(bytes)));
            *end = end.saturating_add(align(bytes));
        }
        let mut start = 0usize;
        let image = |(module, bytes): (usize, usize)| {
            let range = start..start.saturating_add(bytes);
            start = range.end;
            (module, range)
        };
        Images { host: ends.into_iter().map(image).collect(), places, modules: plan.modules.len() }
    }

    /// Bytes of all images.
    pub(super) fn total(&self) -> usize {
        self.host.values().map(|r| r.end).max().unwrap_or(0)
    }

    /// Bytes of a slot: those of the largest image that it is for.
    pub(super) fn slot(&self, slot: usize) -> usize {
        let own = self.host.iter().filter(|(m, _)| (1..=self.modules).contains(*m) && slot_of(**m) == slot);
        own.map(|(_, r)| r.len()).max().unwrap_or(0)
    }

    /// Where a module's image lies in host memory; empty where it has no weights.
    pub(super) fn host(&self, module: usize) -> Range<usize> {
        self.host.get(&module).cloned().unwrap_or(0..0)
    }

    /// The module of a buffer of weights or optimizer state, and its place in the image.
    pub(super) fn place(&self, buffer: &Buffer) -> (usize, Range<usize>) {
        self.places.get(&buffer.id).cloned().expect("invariant: weights and optimizer state belong to a module")
    }
}
