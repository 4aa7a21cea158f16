//! `slrc plan verify`: whether a plan folder holds, and whether its peak is within a limit.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use slrc_compiler::onnx::file::sha256_hex;
use slrc_compiler::size::Size;
use slrc_plan::buffer::Space;
use slrc_plan::plan::{Memory, Plan, files};
use slrc_plan::validate::validate;
use slrc_runtime::cuda::architecture::Architecture;
use slrc_runtime::cuda::cubin::Cubin;
use slrc_runtime::files::{FileError, read_text};
use slrc_runtime::folder::{read_source, read_weights};

use crate::args::VerifyArgs;
use crate::failure::Failure;
use crate::output;
use crate::plan::folder;
use crate::table::{bytes, count};

/// Largest peak allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    /// In bytes.
    Bytes(usize),
    /// In percent more than another plan's.
    More(f64),
}

impl FromStr for Limit {
    type Err = String;
    fn from_str(s: &str) -> Result<Limit, String> {
        let wrong = || format!("`{s}` is neither a size such as 2GiB or 500MB nor a percentage such as +2%");
        if let Some(percent) = s.strip_prefix('+').and_then(|s| s.strip_suffix('%')) {
            let percent = percent.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
            return percent.map(Limit::More).ok_or_else(wrong);
        }
        s.parse().map(|Size(bytes)| Limit::Bytes(bytes)).map_err(|_| wrong())
    }
}

pub(crate) fn run(a: &VerifyArgs) -> Result<(), Failure> {
    let at = folder(&a.plan);
    if matches!(a.max_peak, Some(Limit::More(_))) && a.against.is_none() {
        return Err(Failure::Usage("--max-peak +PERCENT% is relative: name the old plan with --against OLD".into()));
    }
    let plan = read_unchecked(&at)?;
    let mut violations = Vec::new();
    if let Err(e) = validate(&plan) {
        violations.push(format!("plan: {e}"));
    }
    weights(&at, &plan, &mut violations)?;
    kernels(&at, &plan, &mut violations)?;
    machine_code(&at, &plan, &a.cubin, &mut violations)?;
    // The bytes of a damaged plan may be any numbers.
    let peak = checked_peak(&plan.memory);
    match peak {
        None => violations.push("peak: the spaces' bytes overflow".into()),
        Some(peak) => {
            let old = a.against.as_deref().map(|p| read_unchecked(&folder(p))).transpose()?;
            violations.extend(over(peak, old.as_ref(), a.max_peak));
        }
    }
    if violations.is_empty() {
        let peak = bytes(peak.unwrap_or_default());
        output::line(format!("{} holds: {} modules, peak {peak}", a.plan.display(), plan.modules.len()));
        return Ok(());
    }
    violations.iter().for_each(output::line);
    let s = if violations.len() == 1 { "" } else { "s" };
    Err(Failure::Check(format!("{} does not hold: {} violation{s}", a.plan.display(), violations.len())))
}

/// Reads a plan as it is written, sound or not.
fn read_unchecked(folder: &Path) -> Result<Plan, Failure> {
    let path = folder.join(files::PLAN);
    let text = read_text(&path)?;
    let not_a_plan = |e| FileError::Malformed { path, reason: format!("not a plan: {e}") };
    Ok(slrc_plan::yaml::from_str(&text).map_err(not_a_plan)?)
}

/// The peak, if it is a number.
fn checked_peak(m: &Memory) -> Option<usize> {
    Space::ALL.iter().try_fold(0usize, |sum, &s| sum.checked_add(m.of(s)))
}

/// What is said of a peak above its limit.
fn over(peak: usize, old: Option<&Plan>, limit: Option<Limit>) -> Option<String> {
    let old_peak = old.map(|p| checked_peak(&p.memory).unwrap_or(usize::MAX));
    let (most, why) = match (limit, old_peak) {
        (Some(Limit::Bytes(n)), _) => (n, String::new()),
        (Some(Limit::More(percent)), Some(old)) => (
            (old as f64 * (1.0 + percent / 100.0)) as usize,
            format!(" ({} of the old plan and {percent} %)", bytes(old)),
        ),
        (None, Some(old)) => (old, " (that of the old plan)".into()),
        (_, None) => return None,
    };
    (peak > most).then(|| {
        let more = peak - most;
        let percent = if most == 0 { String::new() } else { format!(", {:.1} %", 100.0 * more as f64 / most as f64) };
        format!(
            "peak: {} is {} ({} bytes{percent}) more than the {} allowed{why}",
            bytes(peak),
            bytes(more),
            count(more),
            bytes(most)
        )
    })
}

/// Tensors are those the plan loads, in its shapes.
fn weights(folder: &Path, plan: &Plan, violations: &mut Vec<String>) -> Result<(), Failure> {
    let tensors = read_weights(folder)?;
    let found: BTreeMap<&str, &[usize]> = tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect();
    let shapes: BTreeMap<&str, &[usize]> = plan.all_buffers().map(|b| (b.id.as_str(), &b.shape[..])).collect();
    let parameters = plan.parameters.iter().map(|p| (p.name.as_str(), p.buffer.as_str()));
    let wanted: BTreeMap<&str, &str> =
        parameters.chain(plan.constants.iter().map(|c| (c.name.as_str(), c.buffer.as_str()))).collect();
    for (name, buffer) in &wanted {
        match (found.get(name), shapes.get(buffer)) {
            (None, _) => violations.push(format!("{}: tensor \"{name}\" is missing", files::WEIGHTS)),
            (Some(&f), Some(&w)) if f != w => {
                violations.push(format!("{}: tensor \"{name}\" has shape {f:?}, the plan needs {w:?}", files::WEIGHTS));
            }
            _ => {}
        }
    }
    for name in found.keys().filter(|n| !wanted.contains_key(*n)) {
        violations.push(format!("{}: tensor \"{name}\" is not in the plan", files::WEIGHTS));
    }
    Ok(())
}

/// The source is the one the plan was compiled with.
fn kernels(folder: &Path, plan: &Plan, violations: &mut Vec<String>) -> Result<(), Failure> {
    let Some(source) = read_source(folder, plan)? else { return Ok(()) };
    let (found, wanted) = (sha256_hex(source.as_bytes()), plan.kernels_sha256.as_deref().unwrap_or("none"));
    if found != wanted {
        violations.push(format!("{}: its SHA-256 is {found}, the plan's is {wanted}", files::KERNELS));
    }
    Ok(())
}

/// Machine code is whole and of the plan's kernels, and there is some for every architecture that is `wanted`.
fn machine_code(
    folder: &Path,
    plan: &Plan,
    wanted: &[Architecture],
    violations: &mut Vec<String>,
) -> Result<(), Failure> {
    let mut found = Vec::new();
    for cubin in Cubin::read_each(folder)? {
        match cubin {
            Ok(cubin) => {
                found.push(cubin.architecture());
                violations.extend(cubin.check(plan).err().map(|e| e.to_string()));
            }
            Err(e @ FileError::Malformed { .. }) => violations.push(e.to_string()),
            Err(e) => return Err(e.into()),
        }
    }
    for a in wanted.iter().filter(|a| !found.contains(a)) {
        violations.push(format!(
            "{} is missing, or damaged: make it with slrc compile --cubin --arch {a}",
            files::cubin(&a.to_string())
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_parse() {
        for (text, limit) in [
            ("2GiB", Limit::Bytes(2 << 30)),
            ("500MB", Limit::Bytes(500_000_000)),
            ("1.5KiB", Limit::Bytes(1536)),
            ("77", Limit::Bytes(77)),
            ("+2%", Limit::More(2.0)),
            ("+0.5%", Limit::More(0.5)),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
        }
        for text in ["", "2%", "+2", "-1MB", "2 parsecs", "GiB", "+-2%", "NaN", "infMB", "1e999"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
    }
}
