//! CUDA: one source file for a plan, and the launches that run it.
//!
//! [`emit`] reads a finished plan: every kernel's family has a generator here under the family's name, reached by an
//! exhaustive match, and yields one or more functions with their geometry. Functions of equal text are one. Neighbours
//! that do not depend on each other share a launch (`together.rs`). Sources are compiled without contraction of
//! products and sums (`--fmad=false`): where one rounding is wanted, `fmaf` says so.

mod attention;
mod body;
mod code;
mod columns;
mod conv;
mod depthwise;
mod epilogue;
mod map;
mod matmul;
mod memory_ops;
mod operand_sums;
mod product;
mod prologue;
mod reduce;
mod row;
mod scalar;
mod source;
mod strip;
mod strip_tensor;
mod tensor;
mod together;
mod walk;
mod window;

use slrc_plan::kernel::{Kernel, KernelOp};
use slrc_plan::{Plan, Precision};

use crate::emit::cuda::code::{Call, Table};
use crate::emit::cuda::source::Source;
use crate::emit::cuda::together::{Work, grouped};
use crate::onnx::file::sha256_hex;

/// Writes the plan's launches and the hash of their source, and returns it: `kernels.cu`.
pub fn emit(plan: &mut Plan) -> String {
    let mut source = Source::default();
    let precision = plan.settings.precision;
    let shared = plan.clone();
    let table: Table<'_> = shared.all_buffers().map(|b| (b.id.as_str(), b)).collect();
    for m in &mut plan.modules {
        for (name, program) in [("", &mut m.step), (".eval", &mut m.eval)] {
            let work = program.kernels.iter().flat_map(|kernel| {
                let user = format!("m{}{name}.{} {}", m.index, kernel.id, kernel.nodes.join(" "));
                let calls = calls(&table, kernel, precision);
                let whole = calls.len() == 1;
                let work = move |call| Work { kernel, user: user.trim_end().into(), call, whole, follows: None };
                calls.into_iter().map(work)
            });
            let groups = grouped(work.collect(), &table);
            program.launches = groups.into_iter().map(|work| source.launch(work)).collect();
        }
    }
    let text = source.text(plan);
    plan.kernels_sha256 = Some(sha256_hex(text.as_bytes()));
    text
}

/// The functions that do a kernel's work.
fn calls(table: &Table<'_>, k: &Kernel, precision: Precision) -> Vec<Call> {
    match &k.run {
        KernelOp::Map(r) => map::emit(table, r),
        KernelOp::Row(r) => row::emit(table, r),
        KernelOp::Reduce(r) => reduce::emit(table, r),
        KernelOp::Attention(a) => attention::emit(table, a, precision),
        KernelOp::Matmul(m) => matmul::emit(table, m, precision),
        KernelOp::Conv(c) => conv::emit(table, c, precision),
        KernelOp::Window(w) => window::emit(table, w),
        KernelOp::Gather(g) => memory_ops::gather(table, g),
        KernelOp::ScatterAdd(g) => memory_ops::scatter_add(table, g),
        KernelOp::Copy(c) => memory_ops::copy(table, c),
        KernelOp::Fill(f) => memory_ops::fill(table, f),
        KernelOp::Random(r) => memory_ops::random(table, r),
    }
}
