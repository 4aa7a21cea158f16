//! `slrc partition --check`: whether compiling again gives the plan that is there.

use std::collections::BTreeMap;
use std::path::Path;

use slrc_compiler::spec::InitMode;
use slrc_plan::plan::files;
use slrc_runtime::files::{FileError, read};
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::NamedTensor;

use crate::compile::{Built, Request, build};
use crate::diff::Diff;
use crate::failure::Failure;
use crate::output;
use crate::plan::folder;

pub(crate) fn run(request: &Request, given: &Path) -> Result<(), Failure> {
    let at = folder(given);
    // What cannot be read is said before the work is done.
    let text = read(&at.join(files::PLAN))?;
    let built = build(request)?;
    let mut drift = Vec::new();
    if text != built.text.as_bytes() {
        drift.push(format!("{} differs", files::PLAN));
    }
    drift.extend(bytes_differ(&at, files::MODEL, Some(&built.model))?);
    drift.extend(bytes_differ(&at, files::KERNELS, built.compiled.kernels.as_deref().map(str::as_bytes))?);
    drift.extend(weights_differ(&read_weights(&at)?, &built));
    if drift.is_empty() {
        output::line(format!("{} is what the model and the spec compile to", given.display()));
        return Ok(());
    }
    drift.iter().for_each(output::line);
    if text != built.text.as_bytes() {
        output::line("");
        match read_plan(&at) {
            Ok(old) if old == built.compiled.plan => output::line("the plans are equal, their texts are not"),
            Ok(old) => output::print(&Diff::of(&old, &built.compiled.plan).document().text()),
            Err(e) => output::line(e),
        }
    }
    Err(Failure::Check(format!(
        "{} has drifted from its model, spec or compiler; if the change is meant, write it again with -o",
        given.display()
    )))
}

/// What is said of a file that is not as it would be written; some plans have no such file.
fn bytes_differ(folder: &Path, name: &str, wanted: Option<&[u8]>) -> Result<Option<String>, Failure> {
    let found = match read(&folder.join(name)) {
        Ok(found) => Some(found),
        Err(FileError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e.into()),
    };
    Ok(match (found, wanted) {
        (None, Some(_)) => Some(format!("{name} is missing")),
        (Some(_), None) => Some(format!("{name} belongs to no such plan")),
        (Some(found), Some(wanted)) if found != wanted => Some(format!("{name} differs")),
        _ => None,
    })
}

/// Names and shapes, and of weights that are not random the values, bit by bit.
fn weights_differ(found: &[NamedTensor], built: &Built) -> Option<String> {
    let random = built.compiled.spec.init == InitMode::Random;
    let by_name = |all: &[NamedTensor]| -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
        let bits = |t: &NamedTensor| if random { Vec::new() } else { t.data.iter().map(|x| x.to_bits()).collect() };
        all.iter().map(|t| (t.name.clone(), (t.shape.clone(), bits(t)))).collect()
    };
    let (found, wanted) = (by_name(found), by_name(&built.weights));
    let mut names: Vec<&String> =
        found.keys().chain(wanted.keys()).filter(|n| found.get(*n) != wanted.get(*n)).collect();
    names.sort();
    names.dedup();
    let first = names.first()?;
    Some(format!("{} differs in {} of {} tensors, such as \"{first}\"", files::WEIGHTS, names.len(), wanted.len()))
}
