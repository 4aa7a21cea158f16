//! The spec: what the user asks for, as YAML or as command-line options, and its resolved form.
//!
//! [`SpecFile`] is what may be written, everything optional; [`Spec`] is what the compiler works from, every
//! choice made. Defaults are made in one place, [`SpecFile::resolve`], and echoed in the plan.

mod choices;
mod products;
mod repair;
mod target;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use slrc_plan::Precision;
use slrc_plan::schedule::{Decay, Schedule};

use crate::onnx::import::{Extent, ImportOptions};
use crate::size::{Size, written};
pub use choices::{
    ColumnSums, Convolution, Distance, HeadKind, InitMode, Kinks, OptimizerKind, Prologues, Recompute, ReconcileMode,
    ScheduleKind,
};
pub use repair::{RebnFile, RepairFile};
pub use target::Target;

/// A spec as written. Keys are in kebab case; an unknown key is an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SpecFile {
    /// The ONNX file, relative to the spec.
    pub model: Option<String>,
    /// Samples a step.
    pub batch: Option<usize>,
    /// Passes a step takes, each over as many of its samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batches: Option<usize>,
    /// Input shapes, such as `input: Nx3x32x32`.
    pub shapes: BTreeMap<String, String>,
    /// Output to train.
    pub output: Option<String>,
    /// A label that does not count, such as -100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_label: Option<i32>,
    /// Initializers whose uses share one weight.
    pub tie: BTreeSet<String>,
    /// Weights that are not trained: names, or prefixes that end in `*`.
    pub freeze: Vec<String>,
    /// What of the network is put back that its export took away.
    #[serde(skip_serializing_if = "RepairFile::is_empty")]
    pub repair: RepairFile,
    /// How to cut.
    pub partition: PartitionFile,
    /// Local heads.
    pub head: HeadFile,
    /// Reconciliation.
    pub reconcile: ReconcileFile,
    /// Optimizer and learning rate.
    pub optimizer: OptimizerFile,
    /// `keep` the model's weights or start from `random` ones.
    pub init: Option<InitMode>,
    /// A safetensors file whose tensors replace initial values by name, relative to the spec.
    pub init_from: Option<String>,
    /// Seed of initial weights, shuffles and dropout.
    pub seed: Option<u64>,
    /// What of a step is computed again rather than kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<Recompute>,
    /// How convolutions are computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convolution: Option<Convolution>,
    /// Where sums along the columns of a product are computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column_sums: Option<ColumnSums>,
    /// Where elementwise work on the operands of a product is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prologues: Option<Prologues>,
    /// What the plan runs on: `cpu`, `cuda` or an architecture such as `cuda:sm_90`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What the operands of products are rounded to; less than f32 on CUDA targets only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
}

/// How to cut; at most one of the first four.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PartitionFile {
    /// Number of modules.
    pub modules: Option<usize>,
    /// One module per layer with weights.
    pub per_layer: bool,
    /// ONNX nodes (or values) after which to cut.
    pub at: Vec<String>,
    /// As few modules as a step of this many bytes needs.
    #[serde(deserialize_with = "written", skip_serializing_if = "Option::is_none")]
    pub memory_budget: Option<String>,
    /// Most tensors that may cross a cut beside the one a head reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_skips: Option<usize>,
}

/// Local heads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct HeadFile {
    /// Which kind; by the boundary's shape where absent.
    pub kind: Option<HeadKind>,
}

/// Reconciliation of a module's input gradient with its predecessor's output gradient.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ReconcileFile {
    /// How its gradient is computed.
    pub mode: Option<ReconcileMode>,
    /// What is penalised.
    pub distance: Option<Distance>,
    /// Its weight; the distance's usual one where absent.
    pub lambda: Option<f64>,
    /// Weights of single modules, by module number; they replace `lambda` there.
    pub lambdas: BTreeMap<usize, f64>,
    /// Steps over which lambda rises from zero.
    pub warmup: Option<u64>,
    /// Relative step `s` of finite differences.
    pub step: Option<f64>,
    /// Whether the perturbed pass re-uses the first pass's kinks (ReLU masks, pooling winners).
    pub kinks: Option<Kinks>,
    /// Report discord, cosine and ratio at every boundary; costs an input gradient per module.
    pub monitor: Option<bool>,
}

/// Optimizer and learning rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct OptimizerFile {
    /// Which one.
    pub kind: Option<OptimizerKind>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// SGD's momentum.
    pub momentum: Option<f64>,
    /// Nesterov's momentum.
    pub nesterov: Option<bool>,
    /// Weight decay: added to the gradient by SGD, decoupled in AdamW.
    pub weight_decay: Option<f64>,
    /// AdamW's decay rates of the two moments.
    pub betas: Option<[f64; 2]>,
    /// AdamW's denominator offset.
    pub eps: Option<f64>,
    /// Shape of the learning rate over the run.
    pub schedule: Option<ScheduleKind>,
    /// Steps over which the learning rate rises from zero.
    pub warmup: Option<u64>,
    /// Cosine: learning rate at the end.
    pub last: Option<f64>,
    /// Step: steps between drops.
    pub every: Option<u64>,
    /// Step: factor of each drop.
    pub gamma: Option<f64>,
}

/// How modules are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionSpec {
    /// This many, the largest one's training peak as small as possible.
    Modules(usize),
    /// One per layer with weights.
    PerLayer,
    /// After these ONNX nodes.
    At(Vec<String>),
    /// As few as the plan's peak allows that has to be within these bytes.
    Budget(usize),
}

/// Reconciliation, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ReconcileSpec {
    /// How its gradient is computed.
    pub mode: ReconcileMode,
    /// What is penalised.
    pub distance: Distance,
    /// Its weight.
    pub lambda: f64,
    /// Weights of single modules.
    pub lambdas: BTreeMap<usize, f64>,
    /// Steps over which lambda rises.
    pub warmup: u64,
    /// Relative step of finite differences.
    pub step: f64,
    /// Kinks of the perturbed pass.
    pub kinks: Kinks,
    /// Report boundary numbers.
    pub monitor: bool,
}

impl ReconcileSpec {
    /// Weight of module `k`.
    pub fn lambda_of(&self, k: usize) -> f64 {
        self.lambdas.get(&k).copied().unwrap_or(self.lambda)
    }
}

/// Optimizer, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerSpec {
    /// Update rule.
    pub rule: OptimizerRule,
    /// Weight decay.
    pub weight_decay: f64,
    /// Learning rate by step.
    pub lr: Schedule,
}

/// An update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OptimizerRule {
    /// `buf = momentum buf + grad; p -= lr buf` (Nesterov: `p -= lr (grad + momentum buf)`).
    Sgd {
        /// Zero for none.
        momentum: f64,
        /// Look ahead.
        nesterov: bool,
    },
    /// Loshchilov and Hutter's AdamW.
    AdamW {
        /// Decay rates of the moments.
        betas: [f64; 2],
        /// Denominator offset.
        eps: f64,
    },
}

/// A spec with every choice made.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// A label that does not count.
    pub ignore_label: Option<i32>,
    /// How modules are chosen.
    pub partition: PartitionSpec,
    /// Kind of the local heads.
    pub head: HeadKind,
    /// Reconciliation.
    pub reconcile: ReconcileSpec,
    /// Optimizer.
    pub optimizer: OptimizerSpec,
    /// Passes a step takes.
    pub micro_batches: usize,
    /// What is computed again.
    pub recompute: Recompute,
    /// How convolutions are computed.
    pub convolution: Convolution,
    /// Where sums along the columns of a product are computed.
    pub column_sums: ColumnSums,
    /// Where elementwise work on the operands of a product is done.
    pub prologues: Prologues,
    /// Where initial weights come from.
    pub init: InitMode,
    /// Seed.
    pub seed: u64,
    /// What the plan runs on.
    pub target: Target,
    /// What the operands of products are rounded to.
    pub precision: Precision,
}

/// A spec asks for something that makes no sense; the field is named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// Path of the field.
    pub field: String,
    /// What is wrong and what to write.
    pub reason: String,
}

fn bad<T>(field: &str, reason: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError { field: field.into(), reason: reason.into() })
}

fn at_least(field: &str, x: f64, low: f64) -> Result<f64, SpecError> {
    if x.is_finite() && x >= low { Ok(x) } else { bad(field, format!("{x} is not a number of at least {low}")) }
}

/// Modules where nothing is said.
pub const DEFAULT_MODULES: usize = 4;

impl SpecFile {
    /// Makes every choice that was left open.
    pub fn resolve(&self) -> Result<Spec, SpecError> {
        let p = &self.partition;
        let partition = match (p.modules, p.per_layer, p.at.is_empty(), &p.memory_budget) {
            (None, false, true, None) => PartitionSpec::Modules(DEFAULT_MODULES),
            (Some(0), false, true, None) => return bad("partition.modules", "at least 1"),
            (Some(k), false, true, None) => PartitionSpec::Modules(k),
            (None, true, true, None) => PartitionSpec::PerLayer,
            (None, false, false, None) => PartitionSpec::At(p.at.clone()),
            (None, false, true, Some(text)) => match text.parse::<Size>() {
                Ok(Size(0)) => return bad("partition.memory-budget", "at least 1 byte, such as 2GiB or 512MiB"),
                Ok(Size(bytes)) => PartitionSpec::Budget(bytes),
                Err(e) => return bad("partition.memory-budget", e.to_string()),
            },
            _ => return bad("partition", "give only one of modules, per-layer, at and memory-budget"),
        };
        self.repair.resolve()?;
        self.repair.check_weights(self.init == Some(InitMode::Random) || self.init_from.is_some())?;
        let target = Target::parse(self.target.as_deref().unwrap_or("cpu"))?;
        let precision = self.precision.unwrap_or(Precision::F32);
        target.check_precision(precision)?;
        if matches!(partition, PartitionSpec::Budget(_)) && !self.reconcile.lambdas.is_empty() {
            return bad(
                "reconcile.lambdas",
                "weights of single modules belong to one partition, and a memory budget chooses among several; leave them \
                 out, or give modules",
            );
        }
        Ok(Spec {
            partition,
            head: self.head.kind.unwrap_or(HeadKind::Auto),
            reconcile: self.reconcile.resolve(precision)?,
            optimizer: self.optimizer.resolve()?,
            ignore_label: match self.ignore_label {
                Some(0..) => return bad("ignore-label", "a number below 0, such as -100: others are classes"),
                other => other,
            },
            micro_batches: match self.micro_batches {
                Some(0) => return bad("micro-batches", "at least 1"),
                n => n.unwrap_or(1),
            },
            recompute: self.recompute.unwrap_or(Recompute::Elementwise),
            convolution: self.convolution.unwrap_or(Convolution::Auto),
            column_sums: self.column_sums.unwrap_or(ColumnSums::Auto),
            prologues: self.prologues.unwrap_or(Prologues::Kernels),
            init: self.init.unwrap_or(InitMode::Keep),
            seed: self.seed.unwrap_or(0),
            target,
            precision,
        })
    }

    /// What the importer needs of the spec.
    pub fn import_options(&self) -> Result<ImportOptions, SpecError> {
        if self.batch == Some(0) {
            return bad("batch", "at least 1");
        }
        let mut shapes = BTreeMap::new();
        for (name, text) in &self.shapes {
            let extents: Option<Vec<Extent>> = text
                .split('x')
                .map(|e| match e {
                    "N" => Some(Extent::Batch),
                    n => n.parse().ok().filter(|&n| n > 0).map(Extent::Fixed),
                })
                .collect();
            match extents {
                Some(e) => shapes.insert(name.clone(), e),
                None => return bad(&format!("shapes.{name}"), format!("`{text}` is not a shape such as Nx3x32x32")),
            };
        }
        Ok(ImportOptions {
            batch: self.batch,
            micro_batches: self.micro_batches.unwrap_or(1),
            shapes,
            output: self.output.clone(),
            tie: self.tie.clone(),
            freeze: self.freeze.clone(),
        })
    }
}

/// The relative step of finite differences that is best where products' operands are rounded so: a longer one is less
/// exact, a shorter one drowns in roundings (docs/method.md has the measurements).
fn usual_step(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-3,
        Precision::Tf32 => 1e-2,
        Precision::Bf16 => 3e-2,
    }
}

impl ReconcileFile {
    fn resolve(&self, precision: Precision) -> Result<ReconcileSpec, SpecError> {
        let distance = self.distance.unwrap_or(Distance::Cosine);
        let lambda = at_least("reconcile.lambda", self.lambda.unwrap_or(distance.usual_lambda()), 0.0)?;
        for (k, &l) in &self.lambdas {
            at_least(&format!("reconcile.lambdas.{k}"), l, 0.0)?;
        }
        let step = at_least("reconcile.step", self.step.unwrap_or(usual_step(precision)), 1e-8)?;
        Ok(ReconcileSpec {
            mode: self.mode.unwrap_or(ReconcileMode::FiniteDifference),
            distance,
            lambda,
            lambdas: self.lambdas.clone(),
            warmup: self.warmup.unwrap_or(0),
            step,
            kinks: self.kinks.unwrap_or(Kinks::Frozen),
            monitor: self.monitor.unwrap_or(true),
        })
    }
}

impl OptimizerFile {
    fn resolve(&self) -> Result<OptimizerSpec, SpecError> {
        let kind = self.kind.unwrap_or(OptimizerKind::Sgd);
        let only = |field: &str, given: bool, of: OptimizerKind| {
            if given && kind != of {
                return bad(&format!("optimizer.{field}"), format!("belongs to {}, not {}", of.name(), kind.name()));
            }
            Ok(())
        };
        only("momentum", self.momentum.is_some(), OptimizerKind::Sgd)?;
        only("nesterov", self.nesterov.is_some(), OptimizerKind::Sgd)?;
        only("betas", self.betas.is_some(), OptimizerKind::AdamW)?;
        only("eps", self.eps.is_some(), OptimizerKind::AdamW)?;
        let rule = match kind {
            OptimizerKind::Sgd => {
                let momentum = at_least("optimizer.momentum", self.momentum.unwrap_or(0.9), 0.0)?;
                let nesterov = self.nesterov.unwrap_or(false);
                if nesterov && momentum == 0.0 {
                    return bad("optimizer.nesterov", "needs a momentum");
                }
                OptimizerRule::Sgd { momentum, nesterov }
            }
            OptimizerKind::AdamW => {
                let betas = self.betas.unwrap_or([0.9, 0.999]);
                if betas.iter().any(|b| !(0.0..1.0).contains(b)) {
                    return bad("optimizer.betas", format!("{betas:?} are not in [0, 1)"));
                }
                OptimizerRule::AdamW { betas, eps: at_least("optimizer.eps", self.eps.unwrap_or(1e-8), 0.0)? }
            }
        };
        let default_lr = match kind {
            OptimizerKind::Sgd => 0.05,
            OptimizerKind::AdamW => 1e-3,
        };
        let base = at_least("optimizer.lr", self.lr.unwrap_or(default_lr), 0.0)?;
        let schedule = self.schedule.unwrap_or(ScheduleKind::Constant);
        let belongs = |field: &str, given: bool, of: ScheduleKind| {
            if given && schedule != of {
                return bad(
                    &format!("optimizer.{field}"),
                    format!("belongs to schedule {}, not {}", of.name(), schedule.name()),
                );
            }
            Ok(())
        };
        belongs("last", self.last.is_some(), ScheduleKind::Cosine)?;
        belongs("every", self.every.is_some(), ScheduleKind::Step)?;
        belongs("gamma", self.gamma.is_some(), ScheduleKind::Step)?;
        let decay = match schedule {
            ScheduleKind::Constant => Decay::Constant,
            ScheduleKind::Cosine => {
                Decay::Cosine { last: at_least("optimizer.last", self.last.unwrap_or(0.0), 0.0)?, steps: None }
            }
            ScheduleKind::Step => match self.every {
                Some(every) if every > 0 => {
                    Decay::Step { every, gamma: at_least("optimizer.gamma", self.gamma.unwrap_or(0.1), 0.0)? }
                }
                _ => return bad("optimizer.every", "schedule step needs the number of steps between drops"),
            },
        };
        Ok(OptimizerSpec {
            rule,
            weight_decay: at_least("optimizer.weight-decay", self.weight_decay.unwrap_or(0.0), 0.0)?,
            lr: Schedule { base, warmup: self.warmup.unwrap_or(0), decay },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Spec, String> {
        let file: SpecFile = slrc_plan::yaml::from_str(text).map_err(|e| e.to_string())?;
        file.resolve().map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_docs() {
        let s = resolve("{}").expect("empty spec");
        assert_eq!(s.partition, PartitionSpec::Modules(4));
        assert_eq!(s.reconcile.mode, ReconcileMode::FiniteDifference);
        assert_eq!((s.reconcile.distance, s.reconcile.lambda), (Distance::Cosine, 0.3));
        assert_eq!(s.optimizer.rule, OptimizerRule::Sgd { momentum: 0.9, nesterov: false });
    }

    #[test]
    fn mistakes_name_the_field() {
        for (text, field) in [
            ("partition: {modules: 0}", "partition.modules"),
            ("partition: {modules: 2, per-layer: true}", "partition:"),
            ("partition: {modules: 2, memory-budget: 2GiB}", "partition:"),
            ("partition: {at: [a], memory-budget: 2GiB}", "memory-budget"),
            ("partition: {per-layer: true, memory-budget: 0}", "partition:"),
            ("partition: {memory-budget: 0}", "partition.memory-budget: at least 1 byte"),
            ("partition: {memory-budget: 0MiB}", "partition.memory-budget: at least 1 byte"),
            ("partition: {memory-budget: -5}", "partition.memory-budget: `-5` is not a size"),
            ("partition: {memory-budget: 2 parsecs}", "partition.memory-budget: `2 parsecs` is not a size"),
            ("partition: {memory-budget: 99999999TiB}", "partition.memory-budget: `99999999TiB` is more"),
            ("{partition: {memory-budget: 2GiB}, reconcile: {lambdas: {2: 0.5}}}", "reconcile.lambdas"),
            ("optimizer: {kind: adamw, momentum: 0.9}", "optimizer.momentum"),
            ("optimizer: {schedule: step}", "optimizer.every"),
            ("optimizer: {lr: -1}", "optimizer.lr"),
            ("reconcile: {lambda: .nan}", "reconcile.lambda"),
            ("reconcile: {distance: euclid}", "euclid"),
            ("modul: 3", "modul"),
            ("repair: {rebn: maybe}", "true, false or a list of convolutions"),
            ("repair: {rebn: []}", "repair.rebn"),
            ("repair: {calibrate: train.npz}", "repair.calibrate: only BatchNormalization that rebn puts in"),
            ("repair: {rebn: false, calibrate: train.npz}", "add it"),
            ("repair: {rebn: true, calibrate: train.npz}\ninit: random", "repair.calibrate"),
            ("repair: {rebn: true, calibrate: a.npz}\ninit-from: w.safetensors", "repair.calibrate"),
            ("repair: {dropout: 1}", "repair.dropout: 1 is not in [0, 1)"),
            ("repair: {dropout: -0.5}", "repair.dropout"),
            ("repair: {dropout: .nan}", "repair.dropout"),
            ("repair: {dropout: '0.1@ ,'}", "names no node"),
            ("target: gpu", "target"),
            ("target: 'cuda:sm_60'", "sm_75"),
            ("precision: tf32", "add target cuda"),
            ("{target: 'cuda:sm_75', precision: bf16}", "from sm_80 on"),
            ("{target: cuda, precision: fp8}", "bf16"),
        ] {
            let e = resolve(text).expect_err(text);
            assert!(e.contains(field), "{text}: {e}");
        }
    }

    #[test]
    fn a_budget_is_a_size() {
        for text in ["2GiB", "2 gib", "2147483648", "'2147483648'", "2048MiB"] {
            let s = resolve(&format!("partition: {{memory-budget: {text}}}")).expect(text);
            assert_eq!(s.partition, PartitionSpec::Budget(2 << 30), "{text}");
        }
    }

    #[test]
    fn shapes_are_read() {
        let file: SpecFile = slrc_plan::yaml::from_str("shapes: {input: Nx3x32x32}").expect("spec");
        let o = file.import_options().expect("options");
        assert_eq!(o.shapes["input"], [Extent::Batch, Extent::Fixed(3), Extent::Fixed(32), Extent::Fixed(32)]);
    }
}
