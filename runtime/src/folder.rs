//! Plan folders: `plan.yaml`, `weights.safetensors`, `model.onnx`, and `kernels.cu` of plans for CUDA.

use std::path::Path;

use slrc_plan::Plan;
use slrc_plan::plan::files;
use slrc_plan::validate::validate;

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

/// Reads the kernels of a plan or run folder, where the plan has launches of them.
pub fn read_kernels(folder: &Path, plan: &Plan) -> Result<Option<String>, FileError> {
    let launches = plan.modules.iter().any(|m| !m.step.launches.is_empty() || !m.eval.launches.is_empty());
    launches.then(|| read_text(&folder.join(files::KERNELS))).transpose()
}

/// Reads a plan folder's initial weights and constants.
pub fn read_weights(folder: &Path) -> Result<Vec<NamedTensor>, FileError> {
    read_safetensors(&folder.join(files::WEIGHTS))
}
