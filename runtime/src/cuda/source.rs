//! Whether a `kernels.cu` is its plan's: its hash is the plan's, and every function that is launched takes the
//! arguments it is given.
//!
//! The hash finds files of two plans that were mixed and sources that were edited. The arguments are checked besides,
//! for a plan that was edited: the driver does not count them and would read past the end of too short a list.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use slrc_plan::Plan;

use crate::device::DeviceError;

/// Lower-case hexadecimal SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Fails where the source's hash is not the plan's.
pub(super) fn check_hash(plan: &Plan, source: &str) -> Result<(), DeviceError> {
    let found = sha256(source.as_bytes());
    match &plan.kernels_sha256 {
        Some(expected) if *expected == found => Ok(()),
        expected => {
            let expected = expected.clone().unwrap_or_else(|| "none (kernels_sha256 is missing)".into());
            Err(DeviceError::OtherKernels { expected, found })
        }
    }
}

/// Fails where a launch's function is missing or takes another number of arguments.
pub(super) fn check_arguments(plan: &Plan, source: &str) -> Result<(), DeviceError> {
    let functions = functions(source);
    for m in &plan.modules {
        for l in m.step.launches.iter().chain(&m.eval.launches) {
            let (name, given) = (&l.function, l.args.len());
            let problem = match functions.get(name.as_str()) {
                None => "is missing".to_string(),
                Some(&Some(takes)) if takes == given => continue,
                Some(Some(takes)) => format!("takes {takes} pointers, the plan gives it {given}"),
                Some(None) => "takes other arguments than pointers".to_string(),
            };
            return Err(DeviceError::Unsupported(format!(
                "plan.yaml and kernels.cu do not fit: function {name} {problem}; compile the plan again"
            )));
        }
    }
    Ok(())
}

/// Kernels by name with their number of pointer parameters; absent where one is no pointer.
fn functions(source: &str) -> BTreeMap<&str, Option<usize>> {
    let mut found = BTreeMap::new();
    for declaration in source.split("__global__ ").skip(1) {
        // Launch bounds stand in parentheses of their own before the name.
        let rest = declaration.trim_start().strip_prefix("void").unwrap_or_default().trim_start();
        let bounds = rest.strip_prefix("__launch_bounds__(").and_then(|r| r.split_once(')'));
        let rest = bounds.map_or(rest, |(_, r)| r.trim_start());
        let Some((name, rest)) = rest.split_once('(') else { continue };
        let Some((parameters, _)) = rest.split_once(')') else { continue };
        let count = match parameters.trim() {
            "" => Some(0),
            list => list.split(',').all(|p| p.contains('*')).then(|| list.split(',').count()),
        };
        found.insert(name.trim(), count);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_with_their_arguments() {
        let source = "
// A comment on matmul(a, b).
static __device__ float helper(float x, float y) { return x; }
extern \"C\" __global__ void __launch_bounds__(256) map_1(
    const float* __restrict__ p0,
    float* p1) {
  const float x = helper(p0[0], 1.0f);
}
extern \"C\" __global__ void none() {}
extern \"C\" __global__ void sized(float* x, int n) {}
";
        let found: Vec<_> = functions(source).into_iter().collect();
        assert_eq!(found, [("map_1", Some(2)), ("none", Some(0)), ("sized", None)]);
    }
}
