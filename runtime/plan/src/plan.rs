//! The plan document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::buffer::{Buffer, DType, Live, Space};
use crate::dims::Dims;
use crate::kernel::Kernel;
use crate::launch::Launch;
use crate::precision::Precision;
use crate::schedule::StepScalar;

/// The format this crate reads and writes. A change that old readers would misread raises the number.
pub const FORMAT: &str = "slrc-plan/2";

/// File names inside a plan folder.
pub mod files {
    /// The plan itself.
    pub const PLAN: &str = "plan.yaml";
    /// Initial weights, running statistics and constants.
    pub const WEIGHTS: &str = "weights.safetensors";
    /// Source of the launches' functions (CUDA targets).
    pub const KERNELS: &str = "kernels.cu";
    /// The user's graph without its weights, for `slrc export`.
    pub const MODEL: &str = "model.onnx";
    /// Machine code of the functions, one file an architecture: what [`cubin`] names.
    pub const CUBINS: &str = "kernels.sm_*.cubin";

    /// Name of the file with machine code for an architecture such as `sm_80`.
    pub fn cubin(architecture: &str) -> String {
        format!("kernels.{architecture}.cubin")
    }

    /// What stands for the architecture in a name of [`cubin`]'s form.
    pub fn architecture_of(name: &str) -> Option<&str> {
        name.strip_prefix("kernels.")?.strip_suffix(".cubin")
    }
}

/// Everything a runtime needs to train and evaluate a partitioned network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: String,
    /// Where the network came from.
    pub model: ModelInfo,
    /// What was asked for, resolved: every choice is spelled out.
    pub settings: Settings,
    /// SHA-256 of `kernels.cu`, which the launches call; CUDA targets only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels_sha256: Option<String>,
    /// Bytes of every space.
    pub memory: Memory,
    /// The batch.
    pub inputs: Vec<InputDecl>,
    /// The targets.
    pub labels: LabelsDecl,
    /// Numbers that change from step to step.
    pub scalars: Vec<StepScalar>,
    /// Weights and running statistics, in checkpoint order.
    pub parameters: Vec<ParameterDecl>,
    /// Optimizer state, in checkpoint order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub optimizer_state: Vec<OptimizerDecl>,
    /// Fixed tensors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constants: Vec<ConstantDecl>,
    /// What is handed from module to module; entry `k - 1` is the output of module `k`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boundaries: Vec<BoundaryDecl>,
    /// Buffers outside the arenas.
    pub buffers: Vec<Buffer>,
    /// The modules in step order.
    pub modules: Vec<ModulePlan>,
}

/// Identity of the imported network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Name of the ONNX graph.
    pub name: String,
    /// SHA-256 of the ONNX file (external data not included).
    pub sha256: String,
    /// Name of the ONNX output that was trained.
    pub output: String,
}

/// The resolved choices behind a plan, for people and reports; a runtime needs only `batch` and `seed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// SHA-256 of the spec as asked for, defaults not filled in and paths left out.
    pub spec_sha256: String,
    /// `cpu`, or `cuda:` and an architecture such as `cuda:sm_80`.
    pub target: String,
    /// What the operands of products are rounded to; f32 where absent.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Samples a pass: a step's, unless it takes several.
    pub batch: usize,
    /// Passes a step takes, each over a micro-batch of `batch` samples; gradients add up to their mean. 1 where absent.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub micro_batches: usize,
    /// Seed of initial weights, shuffles and random kernels.
    pub seed: u64,
    /// What was put back into the network that its export had taken away, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<String>,
    /// How modules were chosen.
    pub partition: String,
    /// `off`, `exact`, `finite-difference`, `tangent` or `bp-free`.
    pub reconcile: String,
    /// `squared`, `relative` or `cosine`.
    pub distance: String,
    /// `sgd` or `adamw`, with its settings.
    pub optimizer: String,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

impl Settings {
    /// Samples a step.
    pub fn samples(&self) -> usize {
        self.batch * self.micro_batches
    }

    /// For people: the samples of a step, and how they are divided.
    pub fn batch_text(&self) -> String {
        match self.micro_batches {
            1 => self.batch.to_string(),
            n => format!("{} in {n} micro-batches of {}", self.samples(), self.batch),
        }
    }
}

/// Bytes of every space: what a run allocates, before data and the runtime's own code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Weights and running statistics.
    pub parameter: usize,
    /// Optimizer state.
    pub optimizer: usize,
    /// Fixed tensors.
    pub constant: usize,
    /// The batch.
    pub input: usize,
    /// Step scalars.
    pub scalar: usize,
    /// Reported numbers.
    pub metric: usize,
    /// What the module that needs most works in while training, with the boundaries on both its sides.
    pub arena: usize,
    /// The same while evaluating.
    pub eval_arena: usize,
}

impl Memory {
    /// Bytes of one space; the arena holds whichever of training and evaluation needs more.
    pub fn of(&self, space: Space) -> usize {
        match space {
            Space::Parameter => self.parameter,
            Space::Optimizer => self.optimizer,
            Space::Constant => self.constant,
            Space::Input => self.input,
            Space::Scalar => self.scalar,
            Space::Metric => self.metric,
            Space::Arena => self.arena.max(self.eval_arena),
        }
    }

    /// Bytes of all spaces: what a run allocates.
    pub fn peak(&self) -> usize {
        Space::ALL.iter().map(|&s| self.of(s)).sum()
    }
}

/// A data input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputDecl {
    /// ONNX input name.
    pub name: String,
    /// Buffer filled before each step, row-major.
    pub buffer: String,
    /// Exclusive upper bound of legal values when they index a table (token ids); checked as data is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_below: Option<usize>,
}

/// The targets of the loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsDecl {
    /// `i32` buffer filled before each step.
    pub buffer: String,
    /// Legal labels are `0..classes`.
    pub classes: usize,
    /// And this one, below 0, which counts in no mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<i32>,
}

/// What a parameter tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Trained.
    Weight,
    /// BatchNorm's running mean or variance.
    RunningStatistic,
    /// Loaded and never changed.
    Frozen,
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterDecl {
    /// Tensor name in `weights.safetensors` and in checkpoints: the ONNX initializer's, or
    /// `head.<k>.<layer>.<weight|bias>`.
    pub name: String,
    /// Its buffer. Files hold the logical row-major tensor; the buffer may have another memory order.
    pub buffer: String,
    /// What it is for.
    pub role: Role,
    /// Owning module.
    pub module: usize,
}

/// A tensor of optimizer state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerDecl {
    /// `<parameter>.momentum_buffer`, `<parameter>.exp_avg` or `<parameter>.exp_avg_sq`.
    pub name: String,
    /// Its buffer; starts at zero.
    pub buffer: String,
    /// Owning module.
    pub module: usize,
}

/// A fixed tensor stored in `weights.safetensors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstantDecl {
    /// Tensor name.
    pub name: String,
    /// Its buffer.
    pub buffer: String,
}

/// What module `index` hands to module `index + 1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundaryDecl {
    /// Number of the producing module.
    pub index: usize,
    /// ONNX value that crosses.
    pub value: String,
    /// Buffer of the output `x`.
    pub x: String,
    /// Buffer of the output gradient `e`; absent when no later step reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Tensors that cross beside it, because later modules need them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<CarriedDecl>,
}

/// A tensor that crosses a boundary beside the module's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedDecl {
    /// ONNX value.
    pub value: String,
    /// Its buffer.
    pub x: String,
    /// Buffer of the gradient that the loss of the module it comes from has with respect to it; absent when no later
    /// step reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
}

impl BoundaryDecl {
    /// What crosses: ONNX value, buffer of `x`, buffer of `e` if there is one. The module's output comes first.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str, Option<&str>)> {
        let carried = self.carried.iter().map(|c| (c.value.as_str(), c.x.as_str(), c.e.as_deref()));
        std::iter::once((self.value.as_str(), self.x.as_str(), self.e.as_deref())).chain(carried)
    }

    /// Its buffers: every `x`, then every `e` there is.
    pub fn buffers(&self) -> impl Iterator<Item = &str> {
        self.tensors().map(|t| t.1).chain(self.tensors().filter_map(|t| t.2))
    }

    /// Whether a buffer is one of them.
    pub fn holds(&self, buffer: &str) -> bool {
        self.buffers().any(|id| id == buffer)
    }
}

/// One gradient-isolated module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModulePlan {
    /// From 1, in data order.
    pub index: usize,
    /// First ONNX node.
    pub first: String,
    /// Last ONNX node.
    pub last: String,
    /// Trained numbers, head included.
    pub parameters: usize,
    /// The local head's kind, or `network` for the last module, whose head is the network's own output.
    pub head: String,
    /// Trained numbers of the head.
    pub head_parameters: usize,
    /// Buffers of the numbers a step reports.
    pub metrics: Metrics,
    /// The training step.
    pub step: Program,
    /// Inference of the module and its head.
    pub eval: Program,
    /// What inference yields.
    pub eval_outputs: EvalOutputs,
}

/// Buffers of a module's reported numbers, one f32 each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Mean loss of the batch.
    pub loss: String,
    /// Fraction of labels that are the arg-max.
    pub accuracy: String,
    /// At the module's input; absent for the first module and where monitoring is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<BoundaryMetrics>,
}

/// Reported numbers of the boundary between module `k - 1` and `k`, computed by module `k`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoundaryMetrics {
    /// `R = B * sum((g - e)^2)`.
    pub discord: String,
    /// Cosine of the angle between g and e.
    pub cosine: String,
    /// `|g| / |e|`.
    pub ratio: String,
}

/// Buffers of what inference yields, valid when the module's program has run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalOutputs {
    /// Logits of the head.
    pub logits: String,
    /// Loss of each sample.
    pub loss: String,
    /// Fraction of each sample's labels that are the arg-max.
    pub correct: String,
}

/// Kernels in order, and the arena they work in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Bytes of arena it needs, with the boundaries on both sides.
    pub arena_bytes: usize,
    /// Most bytes live at once, boundaries included: no arena can be smaller.
    pub live_bytes: usize,
    /// Floating-point operations.
    pub flops: u64,
    /// Its own arena buffers.
    pub buffers: Vec<Buffer>,
    /// The work, in order.
    pub kernels: Vec<Kernel>,
    /// How a CUDA device does it; empty for other targets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub launches: Vec<Launch>,
}

impl Plan {
    /// Every buffer: those of the plan and those of every program.
    pub fn all_buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter().chain(self.modules.iter().flat_map(|m| m.step.buffers.iter().chain(m.eval.buffers.iter())))
    }

    /// The boundary buffers that a program of a module touches, and between which of its kernels they hold something:
    /// what the module before hands over from the first kernel to the last that reads it, what is handed on from the
    /// first kernel that writes it to the end.
    pub fn handed<'a>(&'a self, module: usize, p: &Program) -> Vec<(&'a Buffer, Live)> {
        let ids = |k: usize| self.boundaries.iter().filter(move |d| d.index == k).flat_map(BoundaryDecl::buffers);
        let mut touched: BTreeMap<&str, Live> = BTreeMap::new();
        for (i, k) in p.kernels.iter().enumerate() {
            for o in k.run.operands() {
                touched.entry(o.view.buffer.as_str()).or_insert(Live { first: i, last: i }).last = i;
            }
        }
        let received = ids(module.wrapping_sub(1)).filter_map(|id| Some((id, Live { first: 0, ..*touched.get(id)? })));
        let end = p.kernels.len().saturating_sub(1);
        let passed_on = ids(module).filter_map(|id| Some((id, Live { last: end, ..*touched.get(id)? })));
        let all = received.chain(passed_on);
        all.filter_map(|(id, live)| Some((self.buffers.iter().find(|b| b.id == id)?, live))).collect()
    }

    /// Trained numbers of the whole network and its heads.
    pub fn parameter_count(&self) -> usize {
        self.modules.iter().fold(0, |sum, m| m.parameters.saturating_add(sum))
    }
}

/// A dtype and a shape, written `f32[64x10]`, for tables and messages.
pub fn describe(dtype: DType, shape: &Dims) -> String {
    format!("{dtype}[{shape}]")
}
