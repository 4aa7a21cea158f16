//! Uniform random numbers, a pure function of seed, step, stream and position.

use slrc_plan::kernel::Random as Plan;
use slrc_plan::random::{block, unit};

use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, tasks_for};
use crate::device::StepContext;

/// A prepared `random` kernel.
pub(super) struct Random {
    stream: u32,
    count: usize,
    to: Operand,
}

impl Random {
    pub(super) fn new(memory: &Memory, r: &Plan) -> Random {
        Random { stream: r.stream, count: r.count, to: memory.operand(&r.to) }
    }

    pub(super) fn run(&self, context: StepContext) {
        let blocks = self.count.div_ceil(4);
        let tasks = tasks_for(blocks, 32);
        for_each(tasks, |t| {
            for b in part(blocks, tasks, t) {
                let words = block(context.seed, context.pass, self.stream, b as u32);
                for (i, &w) in words.iter().enumerate().take(self.count - 4 * b) {
                    // SAFETY: views lie in their buffers; tasks write disjoint elements.
                    unsafe { *self.to.f32((4 * b + i) * self.to.strides[0]) = unit(w) };
                }
            }
        });
    }
}
