//! The command line: verbs, options and their help.

mod plan;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use slrc_compiler::size::Size;
use slrc_compiler::spec::{
    ColumnSums, Convolution, Distance, HeadKind, InitMode, OptimizerKind, Prologues, Recompute, ReconcileMode,
};
use slrc_plan::Precision;
use slrc_runtime::cuda::architecture::Architecture;
use slrc_runtime::cuda::{Libraries, Residency};
use slrc_runtime::devices::DeviceName;

pub(crate) use plan::{DiffArgs, DiffFormat, ExplainArgs, PlanVerb, ReportArgs, ShowArgs, SweepArgs, VerifyArgs};

/// Train an ONNX network locally: cut into gradient-isolated modules that reconcile their gradients.
#[derive(Debug, Parser)]
#[command(name = "slrc", version, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXAMPLES: &str = "\
Typical use:
  slrc check model.onnx                                       what the file is, and what it hides
  slrc partition model.onnx --modules 4 --batch 64 -o plan    compile a training plan
  slrc plan show plan                                         what it will need
  slrc train plan --data data.npz --epochs 10 -o run          train it
  slrc eval run --data test.npz                               score every head
  slrc export run -o trained.onnx                             your own graph, trained

Exit codes: 0 ok, 2 usage, 3 the model cannot be compiled, 4 data or run error,
5 a check does not hold (plan verify, partition --check).";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// What a model is, what its export did to it, and what stands in the way of training it.
    Check(CheckArgs),
    /// Cut a model into modules and compile a training plan.
    Partition(Box<PartitionArgs>),
    /// Compile a CUDA plan's kernels to machine code ahead of time; needs no GPU.
    Compile(CompileArgs),
    /// Train a plan (or a spec, compiled first).
    Train(TrainArgs),
    /// Accuracy and loss of every local head, and of the network.
    Eval(EvalArgs),
    /// Write the trained network as ONNX: the same graph, inputs and outputs, local heads left out.
    Export(ExportArgs),
    /// Look at plans.
    #[command(subcommand)]
    Plan(PlanVerb),
    /// Where a plan's training step spends its time, beside what the device would allow.
    #[command(after_help = PROFILE_HELP)]
    Profile(ProfileArgs),
    /// How long plans' training steps take, on random data: time, throughput, launches, bandwidth, memory.
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
    /// Devices of this machine that plans can run on.
    Devices,
    /// ONNX operators that can be imported.
    Ops,
}

const PROFILE_HELP: &str = "\
The step runs kernel by kernel, on random data. The roof is what the device does at most:
arithmetic in GFLOP/s, memory in GB/s. The CPU's is measured when the command starts, in a
second; a GPU's is its data sheet's, where the board is known. A kernel's roof time is the longer
of its work and of its operands' bytes, each once, by the roof (docs/performance.md).

  slrc profile plan --top 20                      families, and the slowest kernels
  slrc profile plan --trace step.json             for https://ui.perfetto.dev";

const BENCH_HELP: &str = "\
Steps follow each other as in training: a batch is copied to the device for each, and each
reports its losses. The time is the median of N steps, after three that do not count; the spread
is half the distance of their quartiles, in per cent of it. Planned bytes are those of every
kernel's operands, each once a kernel; the bandwidth is theirs by the time of a step. Allocated
is the device's memory, evaluation included; peak is what a training step needs with all modules
there; resident is the most main memory that the whole process had meanwhile, where the system
tells.

  slrc bench plan-bp plan-sgr                     two plans, a line each
  slrc bench plan --json                          for a script";

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The model; may be left out if the spec names one.
    pub(crate) model: Option<PathBuf>,
    /// A YAML spec (docs/spec.md): its output, ties, frozen weights and shapes count.
    #[arg(long, value_name = "S.yaml")]
    pub(crate) spec: Option<PathBuf>,
    /// Samples a step [default: the model's own if fixed above 1, else 32].
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
    /// Shape of an input whose extents the model leaves open, such as input=Nx3x32x32; N is the batch. Repeatable.
    #[arg(long, value_name = "IN=NxCxHxW")]
    pub(crate) shape: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Report on stderr how long it took to open, to import and to simplify the model.
    #[arg(long)]
    pub(crate) times: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PartitionArgs {
    /// The model; may be left out if the spec names one.
    pub(crate) model: Option<PathBuf>,
    /// A YAML spec; options below override it (docs/spec.md).
    #[arg(long, value_name = "S.yaml")]
    pub(crate) spec: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cuts: CutArgs,
    #[command(flatten)]
    pub(crate) options: SpecArgs,
    /// Write nothing: compile, and compare with the plan in this folder. Exit code 0 if it is the same byte for byte
    /// (plan.yaml, kernels.cu, model.onnx, and the values of weights that are not random), 5 with what changed if not.
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    pub(crate) check: Option<PathBuf>,
    /// Folder to write: plan.yaml, weights.safetensors, model.onnx, partition.txt.
    #[arg(short = 'o', long = "out", value_name = "DIR", default_value = "plan")]
    pub(crate) out: PathBuf,
    /// Report on stderr how long planning took, from the opened file to the plan.
    #[arg(long)]
    pub(crate) times: bool,
}

/// Where a network is cut; overrides a spec.
#[derive(Debug, Default, Args)]
pub(crate) struct CutArgs {
    /// Number of modules, cut so that the plan's peak memory is smallest [default: 4; 1 is end-to-end
    /// backpropagation].
    #[arg(long, value_name = "K", conflicts_with_all = ["per_layer", "at", "memory_budget"], help_heading = "Partition")]
    pub(crate) modules: Option<usize>,
    /// One module per layer with weights.
    #[arg(long, conflicts_with_all = ["at", "memory_budget"], help_heading = "Partition")]
    pub(crate) per_layer: bool,
    /// Cut after these ONNX nodes (or values).
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        conflicts_with = "memory_budget",
        help_heading = "Partition"
    )]
    pub(crate) at: Vec<String>,
    /// As few modules as fit: the plan's peak, as slrc plan show states it, is at most this, such as 2GiB or 512MiB.
    /// Where several cuts fit, those of the least work.
    #[arg(long, value_name = "SIZE", help_heading = "Partition")]
    pub(crate) memory_budget: Option<Size>,
}

/// Other options that override a spec.
#[derive(Debug, Default, Args)]
pub(crate) struct SpecArgs {
    /// Cut also where up to N tensors cross beside the one that a head reads, such as the skips of a U-Net: they are
    /// detached and carried along to the modules that need them [default: 0].
    #[arg(long, value_name = "N", help_heading = "Partition")]
    pub(crate) allow_skips: Option<usize>,
    /// Kind of the local heads: auto, gap-linear, pool-linear, token, conv, mlp-sr, linear, pixel [default: auto, by
    /// the boundary's shape].
    #[arg(long, value_name = "KIND", help_heading = "Partition")]
    pub(crate) head: Option<HeadKind>,
    /// Samples a step [default: the model's own if fixed above 1, else 32].
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub(crate) batch: Option<usize>,
    /// Passes a step takes, each over as many of its samples; gradients add up. Memory is that of a pass. BatchNorm
    /// normalises by the samples of a pass [default: 1, or as many as a memory budget needs].
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub(crate) micro_batches: Option<usize>,
    /// Shape of an input whose extents the model leaves open, such as input=Nx3x32x32; N is the batch. Repeatable.
    #[arg(long, value_name = "IN=NxCxHxW", help_heading = "Input")]
    pub(crate) shape: Vec<String>,
    /// Initializers whose uses go on sharing one weight, such as an embedding that is the output layer, too. Every use
    /// of any other gets a weight of its own.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Weights")]
    pub(crate) tie: Vec<String>,
    /// Put BatchNormalization back behind the convolutions that exporting folded it into, or behind these
    /// (docs/repair.md). In inference the network computes what it did; in training it normalises by the batch.
    #[arg(
        long,
        value_name = "NODE,..",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        help_heading = "Repair"
    )]
    pub(crate) rebn: Option<Vec<String>>,
    /// Measure, on this data, what enters the BatchNormalization that --rebn puts in, and begin with these statistics:
    /// in training, too, the network then computes about what it did. An .npz file or a folder, as for slrc train.
    #[arg(long, value_name = "DATA", help_heading = "Repair")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Put dropout of this rate where networks of the model's kind usually have it, or behind these nodes: 0.1,
    /// 0.1@node_a,node_b. Random in training, nothing in inference and in exports.
    #[arg(long, value_name = "P[@NODE,..]", help_heading = "Repair")]
    pub(crate) dropout: Option<String>,
    /// How modules are reconciled: off, exact, finite-difference, tangent, bp-free [default: finite-difference].
    #[arg(long, value_name = "MODE", help_heading = "Reconciliation")]
    pub(crate) reconcile: Option<ReconcileMode>,
    /// Distance between neighbouring gradients: squared, relative, cosine [default: cosine].
    #[arg(long, value_name = "D", help_heading = "Reconciliation")]
    pub(crate) distance: Option<Distance>,
    /// Weight of the distance [default: 0.3 for cosine, 3 for squared, 0.02 for relative].
    #[arg(long, value_name = "F", help_heading = "Reconciliation")]
    pub(crate) lambda: Option<f64>,
    /// Do not report how gradients agree at boundaries; without reconciliation this saves memory and time.
    #[arg(long, help_heading = "Reconciliation")]
    pub(crate) no_monitor: bool,
    /// What of a step is computed again rather than kept: elementwise; products, which is that and products whose
    /// results are large for their work; none [default: elementwise].
    #[arg(long, value_name = "WHAT", help_heading = "Memory")]
    pub(crate) recompute: Option<Recompute>,
    /// sgd or adamw [default: sgd].
    #[arg(long, value_name = "KIND", help_heading = "Optimizer")]
    pub(crate) optimizer: Option<OptimizerKind>,
    /// Learning rate [default: 0.05 for sgd, 0.001 for adamw].
    #[arg(long, value_name = "F", help_heading = "Optimizer")]
    pub(crate) lr: Option<f64>,
    /// Momentum of sgd [default: 0.9].
    #[arg(long, value_name = "F", help_heading = "Optimizer")]
    pub(crate) momentum: Option<f64>,
    /// Weight decay: added to the gradient by sgd, decoupled in adamw [default: 0].
    #[arg(long, value_name = "F", help_heading = "Optimizer")]
    pub(crate) weight_decay: Option<f64>,
    /// Keep the model's weights or draw random ones [default: keep].
    #[arg(long, value_name = "keep|random", help_heading = "Weights")]
    pub(crate) init: Option<InitMode>,
    /// Tensors that replace initial weights (heads too) by name.
    #[arg(long, value_name = "F.safetensors", help_heading = "Weights")]
    pub(crate) init_from: Option<PathBuf>,
    /// What the plan runs on: cpu, cuda, or an architecture such as cuda:sm_90 [default: cpu].
    #[arg(long, value_name = "cpu|cuda[:sm_N]", help_heading = "Target")]
    pub(crate) target: Option<String>,
    /// What the operands of products are rounded to on a GPU's tensor cores: f32 (not at all), tf32, bf16. Weights and
    /// everything else stay f32 [default: f32].
    #[arg(long, value_name = "f32|tf32|bf16", help_heading = "Target")]
    pub(crate) precision: Option<Precision>,
    /// How convolutions are computed: auto (on the CPU Winograd's algorithm where it is faster) or direct [default:
    /// auto].
    #[arg(long, value_name = "auto|direct", help_heading = "Target")]
    pub(crate) convolution: Option<Convolution>,
    /// Where sums along the columns of a product are computed (BatchNorm's, those of biases): in the products' kernels,
    /// or in kernels of their own, which leaves the products to NVIDIA's libraries [default: auto: products on a GPU,
    /// kernels on a CPU].
    #[arg(long, value_name = "auto|products|kernels", help_heading = "Target")]
    pub(crate) column_sums: Option<ColumnSums>,
    /// Where elementwise work on the operands of a product is done (normalisation and activation before a convolution):
    /// in the product's kernel, as an operand is read, which stores less and computes more, or in kernels of their own
    /// [default: kernels].
    #[arg(long, value_name = "products|kernels", help_heading = "Target")]
    pub(crate) prologues: Option<Prologues>,
    /// Seed of random weights and dropout [default: 0].
    #[arg(long, value_name = "N", help_heading = "Weights")]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// A plan folder, or a run folder, for CUDA.
    #[arg(value_name = "PLAN_DIR")]
    pub(crate) plan: PathBuf,
    /// Write machine code, such as kernels.sm_80.cubin, into the folder.
    #[arg(long, required = true)]
    pub(crate) cubin: bool,
    /// Architectures, such as sm_80,sm_90: each runs on devices of its major number and a minor one not below its own
    /// [default: the plan's target].
    #[arg(long, value_name = "ARCH", value_delimiter = ',')]
    pub(crate) arch: Vec<Architecture>,
}

#[derive(Debug, Args)]
pub(crate) struct StreamingArgs {
    /// Keep weights and optimizer state in host memory, and on the GPU only those of the module that runs and of the
    /// next (docs/cuda.md). Results do not depend on it.
    #[arg(long)]
    pub(crate) stream_modules: bool,
}

impl StreamingArgs {
    /// Where weights and optimizer state are to be.
    pub(crate) fn residency(&self) -> Residency {
        if self.stream_modules { Residency::InTurn } else { Residency::All }
    }
}

#[derive(Debug, Args)]
pub(crate) struct LibraryArgs {
    /// What computes products on a GPU: none (the plan's own kernels), cublaslt (matrix products), cudnn
    /// (convolutions), both with a comma between, or auto (those that this machine has; docs/cuda.md). A library's
    /// results differ in their last places, from version to version too [default: none; a resumed run's own].
    #[arg(long, value_name = "none|cublaslt|cudnn|auto")]
    pub(crate) libraries: Option<Libraries>,
}

impl LibraryArgs {
    /// What computes products, where nothing was begun before.
    pub(crate) fn choice(&self) -> Libraries {
        self.libraries.unwrap_or(Libraries::None)
    }
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// A plan folder, or a spec to compile first.
    #[arg(value_name = "PLAN_DIR|SPEC.yaml")]
    pub(crate) plan: PathBuf,
    /// An .npz file with arrays x and y (or one per input, by name), a folder with train.npz, or MNIST's idx files.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Optimizer steps.
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub(crate) steps: Option<u64>,
    /// Passes over the data [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<u64>,
    /// Take samples in file order.
    #[arg(long)]
    pub(crate) no_shuffle: bool,
    /// Seed of the order of samples [default: the plan's].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Where to run [default: what the plan was compiled for].
    #[arg(long, value_name = "cpu|cuda[:N]")]
    pub(crate) device: Option<DeviceName>,
    #[command(flatten)]
    pub(crate) streaming: StreamingArgs,
    #[command(flatten)]
    pub(crate) library: LibraryArgs,
    /// Threads of the CPU device [default: all cores]. Results do not depend on it.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Steps between lines of metrics.jsonl.
    #[arg(long, value_name = "N", default_value_t = slrc_runtime::trainer::DEFAULT_LOG_EVERY)]
    pub(crate) log_every: u64,
    /// Steps between checkpoints [default: an epoch].
    #[arg(long, value_name = "N")]
    pub(crate) checkpoint_every: Option<u64>,
    /// Run folder: plan, metrics.jsonl, checkpoint, report.html.
    #[arg(short = 'o', long = "out", value_name = "RUN", default_value = "run")]
    pub(crate) out: PathBuf,
    /// Go on from the run's checkpoint.
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A run folder.
    pub(crate) run: PathBuf,
    /// As for train; of a folder the test part is taken.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Write the network's logits here, an .npz file with one array.
    #[arg(long, value_name = "F.npz")]
    pub(crate) save_logits: Option<PathBuf>,
    /// Where to run [default: what the plan was compiled for].
    #[arg(long, value_name = "cpu|cuda[:N]")]
    pub(crate) device: Option<DeviceName>,
    #[command(flatten)]
    pub(crate) streaming: StreamingArgs,
    #[command(flatten)]
    pub(crate) library: LibraryArgs,
    /// Threads of the CPU device [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A run folder.
    pub(crate) run: PathBuf,
    /// The ONNX file to write.
    #[arg(short = 'o', long = "out", value_name = "OUT.onnx")]
    pub(crate) out: PathBuf,
    /// Fold the BatchNormalization that --rebn put in back into the convolutions: the file has the model's own nodes.
    #[arg(long)]
    pub(crate) fold: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// A plan folder.
    pub(crate) plan: PathBuf,
    /// Steps; medians are shown.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) steps: u64,
    /// Slowest kernels to list.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) top: usize,
    /// Write the last step as a trace for Perfetto or Chrome's chrome://tracing: a row a module, an event a kernel.
    #[arg(long, value_name = "F.json")]
    pub(crate) trace: Option<PathBuf>,
    /// Where to run [default: what the plan was compiled for].
    #[arg(long, value_name = "cpu|cuda[:N]")]
    pub(crate) device: Option<DeviceName>,
    #[command(flatten)]
    pub(crate) streaming: StreamingArgs,
    #[command(flatten)]
    pub(crate) library: LibraryArgs,
    /// Threads of the CPU device [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print JSON, of every kernel.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Plan folders.
    #[arg(value_name = "PLAN", required = true)]
    pub(crate) plans: Vec<PathBuf>,
    /// Steps that count.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
    /// Where to run [default: what each plan was compiled for].
    #[arg(long, value_name = "cpu|cuda[:N]")]
    pub(crate) device: Option<DeviceName>,
    #[command(flatten)]
    pub(crate) streaming: StreamingArgs,
    #[command(flatten)]
    pub(crate) library: LibraryArgs,
    /// Threads of the CPU device [default: all cores].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
