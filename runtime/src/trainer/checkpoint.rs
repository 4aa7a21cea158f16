//! Checkpoints: `RUN/checkpoint` is a link to a complete one, exchanged in one atomic step; a crash at any moment
//! leaves the old one or the new one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use slrc_plan::Plan;
use slrc_plan::plan::files;

use crate::files::{FileError, TEMPORARY, read_safetensors, read_text, sync_folder, write_atomic, writing};
use crate::session::{NamedTensor, Session, StateError};
use crate::trainer::TrainError;

/// Names inside a checkpoint.
pub const PARAMETERS: &str = "params.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// The link to the current checkpoint, and the folder they lie in.
const LINK: &str = "checkpoint";
const FOLDER: &str = "checkpoints";

/// Where a run stands, and what it depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Seed of the order of samples.
    pub seed: u64,
    /// Whether samples are permuted.
    pub shuffle: bool,
    /// Samples in the data set.
    pub samples: u64,
    /// Hash of the data set.
    pub data_sha256: String,
    /// The library that computed products, with its version; absent where the plan's own kernels did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
}

impl RunState {
    /// Fails unless a run with the settings of `now` continues this one.
    pub(crate) fn check(&self, now: &RunState, run: &Path) -> Result<(), TrainError> {
        let differ = |what: &str, was: String, is: String| {
            let reason =
                format!("the run was started with {what} {was}, not {is}; resume it with the same, or start another");
            Err(TrainError::Run { path: run.to_path_buf(), reason })
        };
        if self.samples != now.samples {
            return differ("a data set of", format!("{} samples", self.samples), format!("{}", now.samples));
        }
        if self.data_sha256 != now.data_sha256 {
            let (was, is) = (&self.data_sha256, &now.data_sha256);
            return differ("data of SHA-256", format!("{was:.12}.."), format!("{is:.12}.."));
        }
        if self.seed != now.seed {
            return differ("seed", self.seed.to_string(), now.seed.to_string());
        }
        if self.shuffle != now.shuffle {
            return differ("shuffling", self.shuffle.to_string(), now.shuffle.to_string());
        }
        Ok(())
    }
}

/// A checkpoint on disk.
pub struct Checkpoint {
    /// Weights and running statistics.
    pub parameters: Vec<NamedTensor>,
    /// Optimizer state.
    pub optimizer: Vec<NamedTensor>,
    /// Where the run stood.
    pub state: RunState,
}

impl Checkpoint {
    /// Whether a run has a checkpoint.
    pub fn exists(run: &Path) -> bool {
        run.join(LINK).join(STATE).is_file()
    }

    /// Where a run's current weights are.
    pub fn parameters_path(run: &Path) -> PathBuf {
        run.join(LINK).join(PARAMETERS)
    }

    /// Reads a run's checkpoint.
    pub fn load(run: &Path) -> Result<Checkpoint, FileError> {
        if !Checkpoint::exists(run) {
            let reason = if run.join(files::PLAN).is_file() {
                "it has no checkpoint; train the plan first: slrc train PLAN_DIR --data PATH -o RUN"
            } else {
                "it is no run folder: slrc train makes one"
            };
            return Err(FileError::Malformed { path: run.to_path_buf(), reason: reason.into() });
        }
        let folder = run.join(LINK);
        let path = folder.join(STATE);
        let state = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| FileError::Malformed { path: path.clone(), reason: e.to_string() })?;
        Ok(Checkpoint {
            parameters: read_safetensors(&folder.join(PARAMETERS))?,
            optimizer: read_safetensors(&folder.join(OPTIMIZER))?,
            state,
        })
    }

    /// Checks that it holds every tensor of the run's plan, in the plan's shape.
    pub fn check(&self, run: &Path, plan: &Plan) -> Result<(), FileError> {
        let parameters = plan.parameters.iter().map(|p| (&p.name, &p.buffer, &self.parameters, PARAMETERS));
        let optimizer = plan.optimizer_state.iter().map(|o| (&o.name, &o.buffer, &self.optimizer, OPTIMIZER));
        for (name, buffer, tensors, file) in parameters.chain(optimizer) {
            let wanted = plan.buffers.iter().find(|b| b.id == *buffer).map(|b| b.shape.0.clone()).unwrap_or_default();
            let problem = match tensors.iter().find(|t| t.name == *name) {
                Some(t) if t.shape == wanted => continue,
                Some(t) => StateError::Shape { name: name.clone(), found: t.shape.clone(), wanted },
                None => StateError::Missing(name.clone()),
            };
            let reason = format!("{problem}; the file is damaged or belongs to another plan");
            return Err(FileError::Malformed { path: run.join(LINK).join(file), reason });
        }
        Ok(())
    }

    /// Writes a session's state as the run's checkpoint.
    pub fn save(run: &Path, session: &Session, state: &RunState) -> Result<(), TrainError> {
        let folder = run.join(FOLDER);
        writing(&folder, std::fs::create_dir_all(&folder))?;
        let name = format!("step-{:09}", state.step);
        let new = folder.join(&name);
        // What a crashed run left half-written.
        if new.exists() && !is_current(run, &name) {
            writing(&new, std::fs::remove_dir_all(&new))?;
        }
        if is_current(run, &name) {
            return Ok(());
        }
        writing(&new, std::fs::create_dir(&new))?;
        session.save_parameters::<TrainError>(&new.join(PARAMETERS))?;
        session.save_optimizer_state::<TrainError>(&new.join(OPTIMIZER))?;
        let text = serde_json::to_string_pretty(state).expect("invariant: the state is plain data");
        write_atomic(&new.join(STATE), text.as_bytes())?;
        writing(&new, sync_folder(&new))?;
        writing(&folder, sync_folder(&folder))?;
        link(run, &name)?;
        Ok(Checkpoint::sweep(run)?)
    }

    /// Removes what is not the current checkpoint: older ones, and what killed runs left half-written.
    pub fn sweep(run: &Path) -> Result<(), FileError> {
        let folder = run.join(FOLDER);
        for entry in writing(&folder, std::fs::read_dir(&folder))?.flatten() {
            if !entry.file_name().to_str().is_some_and(|n| is_current(run, n)) {
                writing(&entry.path(), std::fs::remove_dir_all(entry.path()))?;
            }
        }
        for entry in writing(run, std::fs::read_dir(run))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                writing(&entry.path(), std::fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }
}

fn is_current(run: &Path, name: &str) -> bool {
    std::fs::read_link(run.join(LINK)).is_ok_and(|to| to.file_name().is_some_and(|n| n == name))
}

/// Makes `checkpoint` point to a checkpoint: a new link is renamed over the old one.
#[cfg(unix)]
fn link(run: &Path, name: &str) -> Result<(), FileError> {
    let new = run.join(".checkpoint-new");
    let _ = std::fs::remove_file(&new);
    writing(&new, std::os::unix::fs::symlink(Path::new(FOLDER).join(name), &new))?;
    let at = run.join(LINK);
    writing(&at, std::fs::rename(&new, &at))?;
    writing(run, sync_folder(run))
}

#[cfg(not(unix))]
fn link(run: &Path, _: &str) -> Result<(), FileError> {
    let unsupported = std::io::Error::other("checkpoints need symbolic links, which this system does not have");
    writing(&run.join(LINK), Err(unsupported))
}
