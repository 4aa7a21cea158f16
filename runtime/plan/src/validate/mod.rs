//! Proves a plan sound before anything runs: every name resolves, every view stays inside its buffer and is what its
//! kernel's family works on, live buffers do not overlap, and no module touches another module's memory.
//!
//! Devices read and write memory on the strength of this alone. What each family relies on of its operands is said by
//! [`crate::operand`]; what a runtime relies on of the buffers it reads and writes as a whole, in `references`.

mod kernels;
mod launches;
mod memory;
mod program;
mod references;
mod region;

use std::collections::BTreeMap;

use crate::buffer::{Buffer, Space};
use crate::plan::{FORMAT, Plan};

pub use kernels::MAX_GEOMETRY;
pub use launches::{MAX_BLOCK, MAX_GRID, MAX_SHARED};
pub use memory::in_place;

/// A plan is malformed. This is either a damaged file or a bug in the compiler that wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {reason}")]
pub struct InvalidPlan {
    /// Module, program and kernel, or the section of the plan.
    pub place: String,
    /// What does not hold.
    pub reason: String,
}

fn fail<T>(place: impl Into<String>, reason: impl Into<String>) -> Result<T, InvalidPlan> {
    Err(InvalidPlan { place: place.into(), reason: reason.into() })
}

/// Every buffer by id.
type Table<'a> = BTreeMap<&'a str, &'a Buffer>;

/// Checks a whole plan.
pub fn validate(plan: &Plan) -> Result<(), InvalidPlan> {
    if plan.format != FORMAT {
        return fail("format", format!("this slrc reads {FORMAT}, the plan says {}", plan.format));
    }
    if Space::ALL.iter().try_fold(0usize, |sum, &s| sum.checked_add(plan.memory.of(s))).is_none() {
        return fail("memory", "the spaces' bytes overflow");
    }
    let mut table = Table::new();
    for b in plan.all_buffers() {
        memory::check_buffer(b, plan.memory.of(b.space))?;
        if table.insert(&b.id, b).is_some() {
            return fail(format!("buffer {}", b.id), "defined twice");
        }
    }
    memory::check_disjoint(&plan.buffers)?;
    references::check_references(plan, &table)?;
    for (i, m) in plan.modules.iter().enumerate() {
        if m.index != i + 1 {
            return fail(format!("module {}", m.index), format!("stands at place {}", i + 1));
        }
        references::check_reports(plan, m, &table)?;
        for (name, p, arena) in [("step", &m.step, plan.memory.arena), ("eval", &m.eval, plan.memory.eval_arena)] {
            let place = format!("module {} {name}", m.index);
            program::check_program(plan, m, p, &table, &place)?;
            if p.arena_bytes > arena {
                return fail(place, format!("needs {} bytes of an arena of {arena}", p.arena_bytes));
            }
        }
    }
    references::check_handed_over(plan)
}
