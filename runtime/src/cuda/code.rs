//! A plan's kernels, and where a device's machine code of them comes from: from beside the plan, from the cache, or
//! from the compiler.

use slrc_plan::Plan;

use crate::cuda::architecture::Architecture;
use crate::cuda::cache::{self, Cache};
use crate::cuda::cubin::Cubin;
use crate::cuda::probe::{self, DeviceInfo};
use crate::cuda::{compile, source};
use crate::device::DeviceError;

/// What lies beside a plan for CUDA.
#[derive(Clone, Debug, Default)]
pub struct Kernels {
    /// Text of `kernels.cu`.
    pub source: String,
    /// Machine code compiled ahead of time.
    pub cubins: Vec<Cubin>,
}

impl From<String> for Kernels {
    fn from(source: String) -> Kernels {
        Kernels { source, cubins: Vec::new() }
    }
}

impl Kernels {
    /// Fails where source or machine code are not the plan's.
    pub(super) fn check(&self, plan: &Plan) -> Result<(), DeviceError> {
        source::check_hash(plan, &self.source)?;
        source::check_arguments(plan, &self.source)?;
        self.cubins.iter().try_for_each(|c| c.check(plan))
    }

    /// Machine code for a device; `self` has been checked.
    pub(super) fn machine_code(&self, plan: &Plan, info: &DeviceInfo) -> Result<Vec<u8>, DeviceError> {
        let (wanted, own) = (target(plan)?, info.architecture);
        if own < wanted {
            return Err(DeviceError::Unsupported(format!(
                "the plan is for {wanted} or later, cuda:{} ({}) is {own}; compile it with --target cuda:{own}",
                info.ordinal, info.name
            )));
        }
        let driver = probe::driver_version()?;
        let there: Vec<Architecture> = self.cubins.iter().map(Cubin::architecture).collect();
        if let Some(best) = own.best_of(&there)
            && let Some(cubin) = self.cubins.iter().find(|c| c.architecture() == best)
        {
            probe::check_pair(driver, cubin.compiler(), &format!("the compiler of {}", cubin.file()))?;
            return Ok(cubin.image().to_vec());
        }
        let compiler = probe::compiler_version().map_err(|e| match e {
            DeviceError::Unavailable(reason) => DeviceError::Unavailable(format!(
                "{reason}; or compile the plan where there is one: slrc compile PLAN --cubin --arch {own}"
            )),
            other => other,
        })?;
        probe::check_pair(driver, compiler, "the CUDA compiler (libnvrtc)")?;
        let known = compile::known_architectures()?;
        let architecture = own.best_of(&known).ok_or_else(|| {
            let newest = known.iter().max().map_or("nothing".to_string(), Architecture::to_string);
            DeviceError::Unavailable(format!(
                "the CUDA compiler (libnvrtc {}.{}) cannot compile for {own}, the newest it knows is {newest}; install a newer one",
                compiler.0, compiler.1
            ))
        })?;
        let key = cache::key(&self.source, &compile::options(architecture), architecture, compiler);
        Cache::from_environment().get(&key, || compile::compile_cubin(&self.source, architecture))
    }
}

/// The oldest architecture that a plan is for.
pub fn target(plan: &Plan) -> Result<Architecture, DeviceError> {
    let target = &plan.settings.target;
    target.strip_prefix("cuda:").unwrap_or_default().parse().map_err(|_| {
        DeviceError::Unsupported(format!("the plan is for {target}; compile it with --target cuda for a CUDA device"))
    })
}
