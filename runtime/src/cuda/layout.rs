//! Where everything lies in the one allocation of a device: the plan's spaces, and what the runtime adds. Where modules
//! take turns on the device, two slots stand in for the spaces of weights and optimizer state.

use std::collections::BTreeMap;
use std::ops::Range;

use slrc_plan::launch::LaunchArg;
use slrc_plan::{Buffer, Plan, Space};

use crate::cuda::Residency;
use crate::cuda::images::{Images, SLOTS, slot_of};
use crate::device::ProgramKind;

/// Alignment of every space: that of a device's own allocations.
const ALIGNMENT: usize = 256;
/// Bytes of seed and step.
const RUN: usize = 16;
/// Bytes of one fault number.
const FAULT: usize = 4;

/// Bytes of a counter of blocks.
const TURN: usize = 4;

/// Most counters that a launch needs; launches follow each other, so that all use the same.
fn most_turns(plan: &Plan) -> usize {
    let programs = plan.modules.iter().flat_map(|m| [&m.step, &m.eval]);
    let launches = programs.flat_map(|p| &p.launches).filter(|l| l.args.contains(&LaunchArg::Turns));
    launches.map(|l| l.grid[0]).max().unwrap_or(0)
}

/// Byte offsets within the allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    spaces: BTreeMap<Space, usize>,
    run: usize,
    faults: Range<usize>,
    status: usize,
    turns: Range<usize>,
    /// Where modules take turns: their images, and the slots for them.
    images: Option<Images>,
    slots: [Range<usize>; SLOTS],
    total: usize,
}

impl Layout {
    /// Lays a plan out. Sizes that no memory could hold saturate.
    pub(super) fn of(plan: &Plan, residency: Residency) -> Layout {
        let images = match residency {
            Residency::All => None,
            Residency::InTurn => Some(Images::of(plan)),
        };
        let mut end = 0usize;
        let mut place = |bytes: usize| {
            let start = end;
            end = end.saturating_add(bytes.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
            start
        };
        let mut spaces = BTreeMap::new();
        let (mut run, mut faults) = (0, 0..0);
        let mut slots = [0..0, 0..0];
        if let Some(images) = &images {
            slots = std::array::from_fn(|slot| {
                let (bytes, start) = (images.slot(slot), place(images.slot(slot)));
                start..start.saturating_add(bytes)
            });
        }
        for &space in Space::ALL {
            // Between what a step is given and what it reports; numbers and faults are fetched in one copy.
            if space == Space::Metric {
                run = place(RUN);
            }
            let in_slots = images.is_some() && matches!(space, Space::Parameter | Space::Optimizer);
            if !in_slots {
                spaces.insert(space, place(plan.memory.of(space)));
            }
            if space == Space::Metric {
                let bytes = 2 * plan.modules.len() * FAULT;
                let start = place(bytes);
                faults = start..start.saturating_add(bytes);
            }
        }
        let bytes = most_turns(plan).saturating_mul(TURN);
        let start = place(bytes);
        let turns = start..start.saturating_add(bytes);
        Layout { run, status: spaces[&Space::Metric], faults, turns, images, slots, spaces, total: end }
    }

    /// Bytes of the allocation.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The modules' images, where they take turns.
    pub(super) fn images(&self) -> Option<&Images> {
        self.images.as_ref()
    }

    /// Bytes of a slot for modules that take turns.
    pub(super) fn slot(&self, slot: usize) -> Range<usize> {
        self.slots[slot].clone()
    }

    /// First byte of a space that is not in slots.
    pub(super) fn space(&self, space: Space) -> usize {
        self.spaces[&space]
    }

    /// Bytes of a buffer.
    pub(super) fn buffer(&self, b: &Buffer) -> Range<usize> {
        let start = match (&self.images, b.space) {
            (Some(images), Space::Parameter | Space::Optimizer) => {
                let (module, place) = images.place(b);
                self.slots[slot_of(module)].start + place.start
            }
            _ => self.space(b.space) + b.offset,
        };
        start..start + b.bytes
    }

    /// First byte of seed and step.
    pub(super) fn run(&self) -> usize {
        self.run
    }

    /// First byte of a program's fault number; modules count from 1.
    pub(super) fn fault(&self, module: usize, program: ProgramKind) -> usize {
        self.faults.start + FAULT * (2 * (module - 1) + program as usize)
    }

    /// Bytes of every program's fault number.
    pub(super) fn faults(&self) -> Range<usize> {
        self.faults.clone()
    }

    /// Bytes of the counters by which blocks take turns.
    pub(super) fn turns(&self) -> Range<usize> {
        self.turns.clone()
    }

    /// Bytes of all that a step reports: metrics, then faults.
    pub(super) fn status(&self) -> Range<usize> {
        self.status..self.faults.end
    }
}

#[cfg(test)]
mod tests {
    use slrc_plan::plan::{LabelsDecl, Memory, ModelInfo, Settings};

    use super::*;

    /// A plan of these sizes without modules.
    fn plan(memory: Memory) -> Plan {
        Plan {
            format: String::new(),
            model: ModelInfo { name: String::new(), sha256: String::new(), output: String::new() },
            settings: Settings {
                micro_batches: 1,
                spec_sha256: String::new(),
                target: "cuda:sm_80".into(),
                precision: slrc_plan::Precision::F32,
                batch: 1,
                seed: 0,
                repairs: Vec::new(),
                partition: String::new(),
                reconcile: String::new(),
                distance: String::new(),
                optimizer: String::new(),
            },
            kernels_sha256: None,
            memory,
            inputs: vec![],
            labels: LabelsDecl { buffer: String::new(), classes: 1, ignored: None },
            scalars: vec![],
            parameters: vec![],
            optimizer_state: vec![],
            constants: vec![],
            boundaries: vec![],
            buffers: vec![],
            modules: vec![],
        }
    }

    #[test]
    fn spaces_are_aligned_and_disjoint_and_nothing_else_takes_room() {
        let memory = Memory {
            parameter: 1000,
            optimizer: 0,
            constant: 4,
            input: 256,
            scalar: 64,
            metric: 65,
            arena: 300,
            eval_arena: 700,
        };
        let p = plan(memory);
        let l = Layout::of(&p, Residency::All);
        let mut ranges: Vec<Range<usize>> =
            Space::ALL.iter().map(|&s| l.space(s)..l.space(s) + p.memory.of(s)).collect();
        ranges.push(l.run()..l.run() + RUN);
        ranges.push(l.faults());
        ranges.retain(|r| !r.is_empty());
        ranges.sort_by_key(|r| r.start);
        let mut end = 0;
        for r in &ranges {
            assert_eq!(r.start % ALIGNMENT, 0, "{r:?}");
            // Each begins right after the one before it: no overlap, and no gap but that of the alignment.
            assert!(r.start >= end && r.start - end < ALIGNMENT, "{r:?} after {end}");
            end = r.end;
        }
        assert_eq!(l.total(), end.next_multiple_of(ALIGNMENT));
        assert_eq!(l.total(), 1024 + 256 + 256 + 256 + 256 + 256 + 768);
    }

    #[test]
    fn a_step_reports_in_one_range() {
        let l = Layout::of(&plan(Memory { metric: 64, arena: 64, ..Memory::default() }), Residency::All);
        assert_eq!(l.status().start, l.space(Space::Metric));
        assert_eq!(l.status().end, l.faults().end);
        assert!(l.status().end <= l.space(Space::Arena));
        assert_eq!(l.fault(1, ProgramKind::Eval), l.faults().start + 4);
        assert_eq!(l.fault(2, ProgramKind::Step), l.faults().start + 8);
    }

    #[test]
    fn absurd_sizes_saturate() {
        let l =
            Layout::of(&plan(Memory { parameter: usize::MAX, arena: usize::MAX, ..Memory::default() }), Residency::All);
        assert!(l.total() > usize::MAX / 2);
    }
}
