//! `slrc compile`: a plan's kernels to machine code, ahead of time, on a machine that needs no GPU and no driver.

use slrc_runtime::cuda::code::target;
use slrc_runtime::cuda::cubin::Cubin;
use slrc_runtime::files::write_atomic;
use slrc_runtime::folder::{read_plan, read_source};

use crate::args::CompileArgs;
use crate::failure::Failure;
use crate::output;
use crate::table::{bytes, table};

pub(crate) fn run(a: &CompileArgs) -> Result<(), Failure> {
    debug_assert!(a.cubin, "the only product there is, and required");
    let plan = read_plan(&a.plan)?;
    let own = target(&plan)?;
    let mut architectures = if a.arch.is_empty() { vec![own] } else { a.arch.clone() };
    architectures.sort_unstable();
    architectures.dedup();
    let source = read_source(&a.plan, &plan)?.unwrap_or_default();
    // Nothing is written unless everything compiles.
    let cubins: Vec<Cubin> =
        architectures.into_iter().map(|arch| Cubin::compile(&plan, &source, arch)).collect::<Result<_, _>>()?;
    cubins.iter().try_for_each(|c| write_atomic(&a.plan.join(c.file()), c.bytes()))?;
    let rows = cubins
        .iter()
        .map(|c| {
            let (major, minor) = c.compiler();
            vec![c.file(), bytes(c.image().len()), format!("NVRTC {major}.{minor}")]
        })
        .collect();
    output::print(&table(&["file", "size", "compiler"], &[1], rows));
    Ok(())
}
