//! `metrics.jsonl`: one JSON object a line, for people's own plots.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, writing};
use crate::session::ModuleReport;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Epoch of the last of them, from 0.
    pub epoch: u64,
    /// Loss and accuracy of the last batch, by module.
    pub modules: Vec<ModuleLine>,
    /// Entry `k - 1` is the boundary between modules `k` and `k + 1`; empty where not monitored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boundaries: Vec<BoundaryLine>,
}

/// One module's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleLine {
    /// Mean loss of the batch at its head.
    pub loss: f32,
    /// Fraction correct at its head.
    pub accuracy: f32,
}

/// One boundary's numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundaryLine {
    /// `R = B sum((g - e)^2)`.
    pub discord: f32,
    /// Cosine of the angle between g and e.
    pub cosine: f32,
    /// `|g| / |e|`.
    pub ratio: f32,
}

/// The log of a run, open for appending.
pub struct MetricsLog {
    path: PathBuf,
    file: std::fs::File,
}

impl MetricsLog {
    /// Opens a log and drops lines after `step`: those a resumed run will write again.
    pub fn open(path: &Path, step: u64) -> Result<MetricsLog, FileError> {
        let attempt = || -> std::io::Result<std::fs::File> {
            let mut file =
                std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            let keep = kept_bytes(&std::fs::read(path)?, step);
            file.set_len(keep)?;
            file.seek(std::io::SeekFrom::End(0))?;
            Ok(file)
        };
        Ok(MetricsLog { path: path.to_path_buf(), file: writing(path, attempt())? })
    }

    /// Appends a line.
    pub fn write(&mut self, step: u64, epoch: u64, modules: &[ModuleReport]) -> Result<(), FileError> {
        let line = Line {
            step,
            epoch,
            modules: modules.iter().map(|m| ModuleLine { loss: m.loss, accuracy: m.accuracy }).collect(),
            boundaries: modules
                .iter()
                .filter_map(|m| m.boundary)
                .map(|b| BoundaryLine { discord: b.discord, cosine: b.cosine, ratio: b.ratio })
                .collect(),
        };
        let mut text = serde_json::to_string(&line).expect("invariant: a line holds finite numbers and integers");
        text.push('\n');
        writing(&self.path, self.file.write_all(text.as_bytes()))
    }

    /// Makes what was written durable.
    pub fn sync(&mut self) -> Result<(), FileError> {
        writing(&self.path, self.file.sync_data())
    }
}

/// Length of the whole lines up to a step.
fn kept_bytes(bytes: &[u8], step: u64) -> u64 {
    let mut end = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let parsed: Result<Line, _> = serde_json::from_slice(line);
        match parsed {
            Ok(l) if l.step <= step && line.ends_with(b"\n") => end += line.len(),
            _ => break,
        }
    }
    end as u64
}

/// Reads a log.
pub fn read(path: &Path) -> Result<Vec<Line>, FileError> {
    let text = crate::files::read_text(path)?;
    text.lines()
        .map(|l| {
            serde_json::from_str(l)
                .map_err(|e| FileError::Malformed { path: path.to_path_buf(), reason: e.to_string() })
        })
        .collect()
}
