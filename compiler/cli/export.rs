//! `slrc export`

use slrc_compiler::onnx::export::{Norms, Trained, export};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_plan::plan::files;
use slrc_runtime::files::write_atomic;
use slrc_runtime::folder::read_plan;
use slrc_runtime::trainer::checkpoint::Checkpoint;

use crate::args::ExportArgs;
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(a: &ExportArgs) -> Result<(), Failure> {
    let checkpoint = Checkpoint::load(&a.run)?;
    checkpoint.check(&a.run, &read_plan(&a.run)?)?;
    let skeleton = OnnxFile::open(&a.run.join(files::MODEL)).map_err(|e| Failure::Run(e.to_string()))?;
    let trained: Vec<Trained<'_>> =
        checkpoint.parameters.iter().map(|t| Trained { name: &t.name, shape: &t.shape, data: &t.data }).collect();
    let norms = if a.fold { Norms::Folded } else { Norms::Kept };
    let bytes = export(&skeleton, &trained, norms).map_err(|e| Failure::Run(e.to_string()))?;
    write_atomic(&a.out, &bytes)?;
    output::line(format!("{} written, {}", a.out.display(), crate::table::bytes(bytes.len())));
    Ok(())
}
