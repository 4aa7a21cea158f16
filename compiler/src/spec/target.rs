//! What a plan runs on.

use slrc_plan::Precision;

use crate::spec::{SpecError, bad};

/// What a plan runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The embedded device.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Its architecture, such as `sm_80`.
        arch: String,
    },
}

/// Architecture where a CUDA target names none: A100's; later ones are compiled for their own as the plan is loaded.
const DEFAULT_ARCH: &str = "sm_80";
/// Oldest architecture: Turing, the oldest that current NVRTC compiles for.
const OLDEST_ARCH: u32 = 75;
/// Oldest architecture whose tensor cores multiply TF32 and bf16: Ampere.
const OLDEST_TENSOR_ARCH: u32 = 80;

impl Target {
    pub(super) fn parse(text: &str) -> Result<Target, SpecError> {
        let arch = match text {
            "cpu" => return Ok(Target::Cpu),
            "cuda" => DEFAULT_ARCH,
            _ => text.strip_prefix("cuda:").unwrap_or_default(),
        };
        let digits = arch.strip_prefix("sm_").unwrap_or_default();
        match digits.parse::<u32>() {
            Ok(n) if (OLDEST_ARCH..1000).contains(&n) => Ok(Target::Cuda { arch: arch.into() }),
            Ok(n) if n < OLDEST_ARCH => {
                bad("target", format!("sm_{n} is older than sm_{OLDEST_ARCH}, the oldest supported"))
            }
            _ => bad("target", format!("`{text}` is not cpu, cuda or an architecture such as cuda:sm_80")),
        }
    }

    pub(super) fn check_precision(&self, precision: Precision) -> Result<(), SpecError> {
        if precision.is_f32() {
            return Ok(());
        }
        let name = precision.name();
        match self {
            Target::Cpu => bad("precision", format!("{name} is for GPUs: add target cuda, or leave f32")),
            Target::Cuda { arch } => {
                let number = arch.strip_prefix("sm_").and_then(|n| n.parse().ok()).unwrap_or(0);
                if number < OLDEST_TENSOR_ARCH {
                    let text =
                        format!("{arch} has no {name}: name a target from sm_{OLDEST_TENSOR_ARCH} on, or leave f32");
                    return bad("precision", text);
                }
                Ok(())
            }
        }
    }

    /// As plans name it.
    pub fn name(&self) -> String {
        match self {
            Target::Cpu => "cpu".into(),
            Target::Cuda { arch } => format!("cuda:{arch}"),
        }
    }
}
