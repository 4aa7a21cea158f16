//! Failures and their exit codes, which scripts may rely on: 2 usage, 3 the model cannot be compiled, 4 data or run,
//! 5 a check does not hold.

use std::path::Path;

use slrc_compiler::onnx::OnnxError;
use slrc_compiler::pipeline::CompileError;
use slrc_compiler::spec::SpecError;
use slrc_compiler::weights::WeightError;
use slrc_runtime::data::DataError;
use slrc_runtime::device::DeviceError;
use slrc_runtime::files::FileError;
use slrc_runtime::session::StateError;
use slrc_runtime::trainer::TrainError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The model cannot be compiled.
    #[error("{0}")]
    Model(String),
    /// Data, files or the run itself.
    #[error("{0}")]
    Run(String),
    /// What was to be checked does not hold.
    #[error("{0}")]
    Check(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> std::process::ExitCode {
        std::process::ExitCode::from(match self {
            Failure::Usage(_) => 2,
            Failure::Model(_) => 3,
            Failure::Run(_) => 4,
            Failure::Check(_) => 5,
        })
    }
}

impl From<CompileError> for Failure {
    fn from(e: CompileError) -> Failure {
        match e {
            CompileError::Spec(_) => Failure::Usage(e.to_string()),
            CompileError::Onnx(_)
            | CompileError::Partition(_)
            | CompileError::Budget(_)
            | CompileError::Step(_)
            | CompileError::Network(_)
            | CompileError::Verify(_)
            | CompileError::Isolation(_)
            | CompileError::Plan(_) => Failure::Model(e.to_string()),
        }
    }
}

/// A failure of tensors that do not fit a plan, with the file they come from.
pub(crate) fn in_file(path: &Path) -> impl FnOnce(StateError) -> Failure {
    let path = path.display().to_string();
    move |e| match e {
        StateError::Device(e) => e.into(),
        e => Failure::Run(format!("{path}: {e}; the file is damaged or belongs to another plan")),
    }
}

macro_rules! failures {
    ($($error:ty => $variant:ident),* $(,)?) => { $(
        impl From<$error> for Failure {
            fn from(e: $error) -> Failure {
                Failure::$variant(e.to_string())
            }
        }
    )* };
}

failures! {
    SpecError => Usage,
    OnnxError => Model,
    WeightError => Model,
    DataError => Run,
    DeviceError => Run,
    FileError => Run,
    StateError => Run,
    TrainError => Run,
}
