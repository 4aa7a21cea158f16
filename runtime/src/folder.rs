//! Plan folders: `plan.yaml`, `weights.safetensors`, `model.onnx`, and of plans for CUDA `kernels.cu` and
//! its machine code.

use std::path::Path;

use slrc_plan::Plan;
use slrc_plan::plan::files;
use slrc_plan::validate::validate;

use crate::cuda::code::Kernels;
use crate::cuda::cubin::Cubin;
use crate::files::{FileError, read_safetensors, read_text};
use crate::session::NamedTensor;

/// Reads and validates the plan of a folder.
pub fn read_plan(folder: &Path) -> Result<Plan, FileError> {
    let path = folder.join(files::PLAN);
    let text = read_text(&path)?;
    let bad = |reason: String| FileError::Malformed { path: path.clone(), reason };
    let plan: Plan = slrc_plan::yaml::from_str(&text).map_err(|e| bad(format!("not a plan: {e}")))?;
    validate(&plan).map_err(|e| bad(format!("the plan does not hold: {e}")))?;
    Ok(plan)
}

/// Reads `kernels.cu` of a plan or run folder, where the plan has launches of its functions.
pub fn read_source(folder: &Path, plan: &Plan) -> Result<Option<String>, FileError> {
    let launches = plan.modules.iter().any(|m| !m.step.launches.is_empty() || !m.eval.launches.is_empty());
    launches.then(|| read_text(&folder.join(files::KERNELS))).transpose()
}

/// Reads the same with the machine code beside it.
pub fn read_kernels(folder: &Path, plan: &Plan) -> Result<Option<Kernels>, FileError> {
    let Some(source) = read_source(folder, plan)? else { return Ok(None) };
    Ok(Some(Kernels { source, cubins: Cubin::read_all(folder)? }))
}

/// Reads a plan folder's initial weights and constants.
pub fn read_weights(folder: &Path) -> Result<Vec<NamedTensor>, FileError> {
    read_safetensors(&folder.join(files::WEIGHTS))
}
