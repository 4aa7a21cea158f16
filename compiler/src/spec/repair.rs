//! Repairs, as they may be written.

use serde::{Deserialize, Serialize};

use crate::onnx::repair::{Rebn, Repairs};
use crate::spec::{SpecError, bad};

/// What of a network is put back that its export took away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RepairFile {
    /// BatchNormalization behind convolutions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebn: Option<RebnFile>,
}

/// Behind which convolutions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "write true, false or a list of convolutions")]
pub enum RebnFile {
    /// Those it seems to have been folded into, or none.
    Found(bool),
    /// These nodes.
    Named(Vec<String>),
}

impl RepairFile {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == RepairFile::default()
    }

    /// Makes every choice.
    pub fn resolve(&self) -> Result<Repairs, SpecError> {
        let rebn = match &self.rebn {
            None | Some(RebnFile::Found(false)) => None,
            Some(RebnFile::Found(true)) => Some(Rebn::Found),
            Some(RebnFile::Named(names)) if names.is_empty() => {
                return bad("repair.rebn", "name convolutions, or write true for those that are found");
            }
            Some(RebnFile::Named(names)) => Some(Rebn::Named(names.clone())),
        };
        Ok(Repairs { rebn })
    }
}
