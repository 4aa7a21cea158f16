//! Whether a `kernels.cu` is its plan's: its hash is the plan's, and every function that is launched takes the
//! arguments it is given.
//!
//! The hash finds files of two plans that were mixed and sources that were edited. The arguments are checked besides,
//! for a plan that was edited: the driver does not count them and would read past the end of too short a list.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use slrc_plan::Plan;
use slrc_plan::launch::LaunchArg;

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

/// Fails where a launch's function is missing or takes other arguments.
pub(super) fn check_arguments(plan: &Plan, source: &str) -> Result<(), DeviceError> {
    let functions = functions(source);
    for m in &plan.modules {
        for l in m.step.launches.iter().chain(&m.eval.launches) {
            let name = &l.function;
            let takes = |a: &LaunchArg| if a.is_number() { Takes::Number } else { Takes::Pointer };
            let given: Vec<Takes> = l.args.iter().map(takes).collect();
            let problem = match functions.get(name.as_str()) {
                None => "is missing".to_string(),
                Some(Some(takes)) if *takes == given => continue,
                Some(Some(takes)) if takes.len() != given.len() => {
                    format!("takes {} arguments, the plan gives it {}", takes.len(), given.len())
                }
                Some(_) => "takes other arguments than the plan gives it".to_string(),
            };
            return Err(DeviceError::Unsupported(format!(
                "plan.yaml and kernels.cu do not fit: function {name} {problem}; compile the plan again"
            )));
        }
    }
    Ok(())
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Pointer,
    /// 64 bits, not negative.
    Number,
}

/// Kernels by name with their parameters; absent where one is neither.
fn functions(source: &str) -> BTreeMap<&str, Option<Vec<Takes>>> {
    let mut found = BTreeMap::new();
    for declaration in source.split("__global__ ").skip(1) {
        // Launch bounds stand in parentheses of their own before the name.
        let rest = declaration.trim_start().strip_prefix("void").unwrap_or_default().trim_start();
        let bounds = rest.strip_prefix("__launch_bounds__(").and_then(|r| r.split_once(')'));
        let rest = bounds.map_or(rest, |(_, r)| r.trim_start());
        let Some((name, rest)) = rest.split_once('(') else { continue };
        let Some((parameters, _)) = rest.split_once(')') else { continue };
        let takes = |p: &str| match p {
            p if p.contains('*') => Some(Takes::Pointer),
            p if p.trim().starts_with("unsigned long long ") => Some(Takes::Number),
            _ => None,
        };
        let parameters: Vec<&str> = parameters.split(',').filter(|p| !p.trim().is_empty()).collect();
        found.insert(name.trim(), parameters.into_iter().map(takes).collect());
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
extern \"C\" __global__ void __launch_bounds__(256, 1) together_1(
    const float* __restrict__ q0,
    unsigned long long first) {
}
";
        let found: Vec<_> = functions(source).into_iter().collect();
        let pointers = |n| Some(vec![Takes::Pointer; n]);
        let together = Some(vec![Takes::Pointer, Takes::Number]);
        let expected = [("map_1", pointers(2)), ("none", pointers(0)), ("sized", None), ("together_1", together)];
        assert_eq!(found, expected);
    }
}
