//! Repairs, as they may be written.

use serde::{Deserialize, Serialize};

use crate::onnx::repair::{Dropout, Places, Rebn, Repairs};
use crate::size::written;
use crate::spec::{SpecError, bad};

/// What of a network is put back that its export took away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RepairFile {
    /// BatchNormalization behind convolutions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebn: Option<RebnFile>,
    /// Data, relative to the spec, on which statistics are measured for what `rebn` puts in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrate: Option<String>,
    /// Dropout: a rate, or a rate and nodes, as in `0.1@node_a,node_b`.
    #[serde(deserialize_with = "written", skip_serializing_if = "Option::is_none")]
    pub dropout: Option<String>,
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

    /// Whether weights that are not the model's own are refused.
    pub(super) fn check_weights(&self, are_others: bool) -> Result<(), SpecError> {
        if self.calibrate.is_some() && are_others {
            return bad(
                "repair.calibrate",
                "statistics are of the model's own weights, and init or init-from puts others in their place",
            );
        }
        Ok(())
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
        if rebn.is_none() && self.calibrate.is_some() {
            return bad("repair.calibrate", "only BatchNormalization that rebn puts in is calibrated: add it");
        }
        let dropout = self.dropout.as_deref().map(dropout).transpose()?;
        Ok(Repairs { rebn, dropout })
    }
}

fn dropout(text: &str) -> Result<Dropout, SpecError> {
    let (rate, names) = text.split_once('@').map_or((text, None), |(rate, names)| (rate, Some(names)));
    let rate = match rate.trim().parse::<f64>() {
        Ok(rate) if (0.0..1.0).contains(&rate) => rate,
        Ok(rate) => return bad("repair.dropout", format!("{rate} is not in [0, 1)")),
        Err(_) => {
            return bad(
                "repair.dropout",
                format!("`{text}` is not a rate such as 0.1, or a rate and nodes, 0.1@NODE,.."),
            );
        }
    };
    let places = match names {
        None => Places::Usual,
        Some(names) => {
            let names: Vec<String> =
                names.split(',').map(str::trim).filter(|n| !n.is_empty()).map(String::from).collect();
            if names.is_empty() {
                return bad("repair.dropout", format!("`{text}` names no node after @"));
            }
            Places::Behind(names)
        }
    };
    Ok(Dropout { rate, places })
}
