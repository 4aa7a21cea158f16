//! `slrc plan`: its verbs, their options and their help.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use slrc_runtime::cuda::architecture::Architecture;

use crate::args::SpecArgs;
use crate::sweep::Counts;
use crate::verify::Limit;

#[derive(Debug, Subcommand)]
pub(crate) enum PlanVerb {
    /// Modules and memory of a plan.
    Show(ShowArgs),
    /// What changed from one plan to another: settings, cuts, memory, work, kernels fused or split.
    #[command(after_help = DIFF_HELP)]
    Diff(DiffArgs),
    /// Check that a plan is sound, that its files belong together, and that its peak is within a limit.
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// What is live where a plan needs most memory, by ONNX node, and what would lower it.
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// A plan as a page: modules, memory during a step beside one module's, boundaries, what is live at the peak.
    #[command(after_help = REPORT_HELP)]
    Report(ReportArgs),
    /// Plans of a model for several numbers of modules, side by side: memory, work, what local heads train.
    #[command(after_help = SWEEP_HELP)]
    Sweep(Box<SweepArgs>),
}

const EXPLAIN_HELP: &str = "\
Modules run one after the other in one arena, so the module with the largest arena makes the peak. Kernels are counted
from 0 in its training step. A size is what is allocated, a multiple of 64 bytes.

--csv prints every buffer of the module's arena for solvers of the allocation problem: id,lower,upper,size. A buffer is
needed from kernel lower to the one before upper. Buffers that follow each other in one place, written by the kernel that
reads the one before, are one row, under the id of the first.

  slrc plan explain plan                          the module that makes the peak
  slrc plan explain plan --module 2               another module
  slrc plan explain plan --csv > buffers.csv      its buffers, for a solver";

const VERIFY_HELP: &str = "\
Checked: no live buffers overlap, no module touches another's memory (and whatever else a runtime relies on);
weights.safetensors has the plan's tensors in its shapes; for CUDA, kernels.cu is the plan's, by its
SHA-256, and so is machine code, if there is any; the peak.
A line a violation; exit code 0 if the plan holds, 5 if it does not, 4 if a file cannot be read.

  slrc plan verify plan --max-peak 2GiB                   at most this
  slrc plan verify plan --against old --max-peak +2%      at most 2 % more than the old plan's peak";

const DIFF_HELP: &str = "\
Exits with 0 whether or not the plans differ: it reports. To judge, in a script or in CI, use slrc plan verify.

  slrc plan diff old new                                          on the terminal
  slrc plan diff old new --format markdown > comment.md           for a pull request
  slrc plan diff old new --format json | jq .equal                for a script";

const REPORT_HELP: &str = "\
The page is one file that loads nothing. For the comparison the network is compiled again as one
module, from the folder's model.onnx; without it the page says so.

  slrc plan report plan                           writes plan/plan.html";

const SWEEP_HELP: &str = "\
One module is always there, with nothing computed again and with elementwise work computed
again; shares are of the former. Nothing is written but the SVG. docs/plans.md says what each
column is.

  slrc plan sweep model.onnx --batch 64 --reconcile off
  slrc plan sweep model.onnx --modules 2,4,8 --device a100
  slrc plan sweep model.onnx --modules 1..6 --svg sweep.svg --json > sweep.json";

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A plan folder, a run folder, or a plan.yaml.
    pub(crate) plan: PathBuf,
    /// Add a roofline estimate of a step on a GPU: t4, l4, rtx3090, rtx4090, a100, h100, h200.
    #[arg(long, value_name = "GPU")]
    pub(crate) device: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The old plan: a plan folder, a run folder, or a plan.yaml.
    pub(crate) old: PathBuf,
    /// The new plan.
    pub(crate) new: PathBuf,
    /// How to say it: on a terminal, to a program, or in a comment on a pull request.
    #[arg(long, value_enum, default_value_t = DiffFormat::Text)]
    pub(crate) format: DiffFormat,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A plan folder, a run folder, or a plan.yaml.
    #[arg(value_name = "DIR")]
    pub(crate) plan: PathBuf,
    /// The module to look at [default: the one with the largest arena].
    #[arg(long, value_name = "K")]
    pub(crate) module: Option<usize>,
    /// Largest buffers to list.
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "csv")]
    pub(crate) top: usize,
    /// Print the arena's buffers as CSV.
    #[arg(long)]
    pub(crate) csv: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A plan folder.
    #[arg(value_name = "DIR")]
    pub(crate) plan: PathBuf,
    /// Largest peak allowed: a size such as 2GiB or 500MB, or +PERCENT% over the plan of --against.
    #[arg(long, value_name = "SIZE|+PERCENT%")]
    pub(crate) max_peak: Option<Limit>,
    /// Architectures, such as sm_80,sm_90, that the folder must hold machine code for.
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    pub(crate) cubin: Vec<Architecture>,
    /// A plan whose peak must not be exceeded, or by no more than --max-peak says.
    #[arg(long, value_name = "OLD")]
    pub(crate) against: Option<PathBuf>,
}

/// Form of a comparison.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum DiffFormat {
    Text,
    Json,
    Markdown,
}

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// The model; may be left out if the spec names one.
    pub(crate) model: Option<PathBuf>,
    /// A YAML spec; options below override it (docs/spec.md).
    #[arg(long, value_name = "S.yaml")]
    pub(crate) spec: Option<PathBuf>,
    /// Numbers of modules: from A to B, both included, or a list [default: 1 to as many as there can be, at most 8].
    #[arg(long, value_name = "A..B|K,K", help_heading = "Partition")]
    pub(crate) modules: Option<Counts>,
    #[command(flatten)]
    pub(crate) options: SpecArgs,
    /// Add a roofline estimate of a step on a GPU: t4, l4, rtx3090, rtx4090, a100, h100, h200.
    #[arg(long, value_name = "GPU")]
    pub(crate) device: Option<String>,
    /// Draw memory and work of every plan.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// A plan folder, or a run folder.
    #[arg(value_name = "DIR")]
    pub(crate) plan: PathBuf,
    /// Page to write [default: plan.html in the folder].
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}
