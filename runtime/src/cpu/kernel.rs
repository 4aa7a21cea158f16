//! Prepared kernels: one variant a family, by exhaustive match.

use slrc_plan::kernel::{ConvAlgorithm, Kernel, KernelOp};

use crate::cpu::attention::Attention;
use crate::cpu::conv::Conv;
use crate::cpu::copy::{Copy, Fill};
use crate::cpu::depthwise::Depthwise;
use crate::cpu::gather::{Gather, ScatterAdd};
use crate::cpu::map::Map;
use crate::cpu::matmul::Matmul;
use crate::cpu::memory::Memory;
use crate::cpu::random::Random;
use crate::cpu::reduce::Reduce;
use crate::cpu::row::Row;
use crate::cpu::window::Window;
use crate::cpu::winograd::Winograd;
use crate::device::{DeviceError, StepContext};

/// A kernel with its operands resolved.
pub(super) enum Prepared {
    Map(Map),
    Row(Row),
    Reduce(Reduce),
    Attention(Attention),
    Matmul(Matmul),
    Conv(Conv),
    Depthwise(Depthwise),
    Winograd(Winograd),
    Window(Window),
    Gather(Gather),
    ScatterAdd(ScatterAdd),
    Copy(Copy),
    Fill(Fill),
    Random(Random),
}

pub(super) fn prepare(k: &Kernel, memory: &Memory) -> Result<Prepared, DeviceError> {
    Ok(match &k.run {
        KernelOp::Map(r) => Prepared::Map(Map::new(memory, r)),
        KernelOp::Row(r) => Prepared::Row(Row::new(memory, r)),
        KernelOp::Reduce(r) => Prepared::Reduce(Reduce::new(memory, r)),
        KernelOp::Attention(a) => Prepared::Attention(Attention::new(memory, a)),
        KernelOp::Matmul(m) => Prepared::Matmul(Matmul::new(memory, m)),
        KernelOp::Conv(c) if Depthwise::fits(c) => Prepared::Depthwise(Depthwise::new(memory, c)),
        KernelOp::Conv(c) if c.algorithm == ConvAlgorithm::Winograd => Prepared::Winograd(Winograd::new(memory, c)),
        KernelOp::Conv(c) => Prepared::Conv(Conv::new(memory, c)),
        KernelOp::Window(w) => Prepared::Window(Window::new(memory, w)),
        KernelOp::Gather(g) => Prepared::Gather(Gather::new(memory, g)),
        KernelOp::ScatterAdd(g) => Prepared::ScatterAdd(ScatterAdd::new(memory, g)),
        KernelOp::Copy(c) => Prepared::Copy(Copy::new(memory, c)),
        KernelOp::Fill(f) => Prepared::Fill(Fill::new(memory, f)),
        KernelOp::Random(r) => Prepared::Random(Random::new(memory, r)),
    })
}

impl Prepared {
    /// Runs the kernel; an error says what data it cannot work with.
    pub(super) fn run(&self, context: StepContext) -> Result<(), String> {
        match self {
            Prepared::Map(k) => k.run(),
            Prepared::Row(k) => k.run(),
            Prepared::Reduce(k) => k.run(),
            Prepared::Attention(k) => k.run(),
            Prepared::Matmul(k) => k.run(),
            Prepared::Conv(k) => k.run(),
            Prepared::Depthwise(k) => k.run(),
            Prepared::Winograd(k) => k.run(),
            Prepared::Window(k) => k.run(),
            Prepared::Gather(k) => return k.run(),
            Prepared::ScatterAdd(k) => return k.run(),
            Prepared::Copy(k) => k.run(),
            Prepared::Fill(k) => k.run(),
            Prepared::Random(k) => k.run(context),
        }
        Ok(())
    }
}
