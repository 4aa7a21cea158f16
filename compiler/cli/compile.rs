//! From model and spec to a plan folder; shared by `partition` and `train`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use slrc_compiler::onnx::export::skeleton;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::{CompileError, Compiled, Planner};
use slrc_compiler::spec::{PartitionFile, RebnFile, SpecFile};
use slrc_compiler::weights::{WeightTensor, initial_weights};
use slrc_plan::plan::files;
use slrc_runtime::files::{
    check_replaceable, read_safetensors, read_text, replace_folder, write_atomic, write_safetensors,
};
use slrc_runtime::session::NamedTensor;

use crate::args::{CutArgs, SpecArgs};
use crate::calibrate::calibrate;
use crate::failure::Failure;
use crate::plan_report::PAGE;

/// A spec with its options applied, and the paths it names.
pub(crate) struct Request {
    pub(crate) spec: SpecFile,
    pub(crate) model: PathBuf,
    pub(crate) init_from: Option<PathBuf>,
    /// Data for the statistics of BatchNormalization that is put back.
    pub(crate) calibrate: Option<PathBuf>,
}

impl Request {
    /// Reads a spec file, if given, and applies options. Paths in a spec are relative to it.
    pub(crate) fn new(
        spec_path: Option<&Path>,
        model: Option<&Path>,
        cuts: &CutArgs,
        options: &SpecArgs,
    ) -> Result<Request, Failure> {
        let mut spec = match spec_path {
            None => SpecFile::default(),
            Some(path) => {
                let text = read_text(path).map_err(|e| Failure::Usage(e.to_string()))?;
                slrc_plan::yaml::from_str(&text).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?
            }
        };
        let beside = |name: &str| spec_path.and_then(Path::parent).unwrap_or(Path::new("")).join(name);
        let init_from = options.init_from.clone().or_else(|| spec.init_from.as_deref().map(beside));
        let calibrate = options.calibrate.clone().or_else(|| spec.repair.calibrate.as_deref().map(beside));
        let model = model.map(Path::to_path_buf).or_else(|| spec.model.as_deref().map(beside));
        let model = model
            .ok_or_else(|| Failure::Usage("name a model: slrc partition MODEL.onnx, or model: in the spec".into()))?;
        let cuts = PartitionFile {
            modules: cuts.modules,
            per_layer: cuts.per_layer,
            at: cuts.at.clone(),
            memory_budget: cuts.memory_budget.map(|size| size.to_string()),
            allow_skips: None,
        };
        if cuts != PartitionFile::default() {
            spec.partition = PartitionFile { allow_skips: spec.partition.allow_skips, ..cuts };
        }
        apply(options, &mut spec)?;
        // Where it lies is in the request: the spec says that there is some.
        spec.repair.calibrate = calibrate.as_ref().map(|_| String::new());
        spec.init_from = init_from.as_ref().map(|_| String::new());
        Ok(Request { spec, model, init_from, calibrate })
    }
}

fn apply(o: &SpecArgs, spec: &mut SpecFile) -> Result<(), Failure> {
    fn set<T: Copy>(to: &mut Option<T>, from: Option<T>) {
        if from.is_some() {
            *to = from;
        }
    }
    set(&mut spec.partition.allow_skips, o.allow_skips);
    if !o.tie.is_empty() {
        spec.tie = o.tie.iter().cloned().collect();
    }
    match o.rebn.as_deref() {
        None => {}
        Some([]) => spec.repair.rebn = Some(RebnFile::Found(true)),
        Some(names) => spec.repair.rebn = Some(RebnFile::Named(names.to_vec())),
    }
    if o.dropout.is_some() {
        spec.repair.dropout.clone_from(&o.dropout);
    }
    set(&mut spec.head.kind, o.head);
    set(&mut spec.batch, o.batch);
    set(&mut spec.micro_batches, o.micro_batches);
    for s in &o.shape {
        let (name, shape) = s.split_once('=').ok_or_else(|| {
            Failure::Usage(format!("--shape {s}: write an input and its shape, such as input=Nx3x32x32"))
        })?;
        spec.shapes.insert(name.into(), shape.into());
    }
    set(&mut spec.reconcile.mode, o.reconcile);
    if o.distance.is_some() && o.distance != spec.reconcile.distance {
        spec.reconcile.distance = o.distance;
        spec.reconcile.lambda = None;
    }
    set(&mut spec.reconcile.lambda, o.lambda);
    set(&mut spec.recompute, o.recompute);
    set(&mut spec.convolution, o.convolution);
    set(&mut spec.column_sums, o.column_sums);
    set(&mut spec.prologues, o.prologues);
    if o.no_monitor {
        spec.reconcile.monitor = Some(false);
    }
    set(&mut spec.optimizer.kind, o.optimizer);
    set(&mut spec.optimizer.lr, o.lr);
    set(&mut spec.optimizer.momentum, o.momentum);
    set(&mut spec.optimizer.weight_decay, o.weight_decay);
    set(&mut spec.init, o.init);
    set(&mut spec.seed, o.seed);
    if o.target.is_some() {
        spec.target.clone_from(&o.target);
    }
    set(&mut spec.precision, o.precision);
    Ok(())
}

/// Name of the partition report in a plan folder.
pub(crate) const PARTITION: &str = "partition.txt";

/// Files of a plan folder; a folder that holds anything else is not overwritten.
const NAMES: &[&str] = &[files::PLAN, files::WEIGHTS, files::MODEL, files::KERNELS, files::CUBINS, PARTITION, PAGE];

/// A plan with the files that go with it.
pub(crate) struct Built {
    pub(crate) compiled: Compiled,
    /// `plan.yaml`.
    pub(crate) text: String,
    pub(crate) weights: Vec<NamedTensor>,
    /// `model.onnx`.
    pub(crate) model: Vec<u8>,
    /// From the opened file to the plan.
    pub(crate) planning: Duration,
}

/// Compiles with a partition, with a progress bar that says `what` is done.
pub(crate) fn compile_shown(
    planner: &mut Planner<'_>,
    partition: &PartitionFile,
    what: &str,
) -> Result<Compiled, CompileError> {
    let bar = ProgressBar::new(0).with_prefix(what.to_string());
    let style = ProgressStyle::with_template("{prefix} {spinner} {pos} segments costed of at most {len}, {elapsed}");
    bar.set_style(style.expect("invariant: the template is well formed"));
    let compiled = planner.compile(partition, &mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    compiled
}

/// Compiles; writes nothing.
pub(crate) fn build(request: &Request) -> Result<Built, Failure> {
    let file = OnnxFile::open(&request.model)?;
    let opened = Instant::now();
    let mut planner = Planner::new(&file, &request.spec)?;
    let mut compiled = compile_shown(&mut planner, &request.spec.partition, "partition")?;
    let planning = opened.elapsed();
    for note in &compiled.network.notes {
        eprintln!("note: {note}");
    }
    let replacements: Vec<WeightTensor> = match &request.init_from {
        None => Vec::new(),
        Some(path) => read_safetensors(path)?
            .into_iter()
            .map(|t| WeightTensor { name: t.name, shape: t.shape, data: t.data })
            .collect(),
    };
    let (mut weights, unused) = initial_weights(&compiled, planner.file(), &replacements)?;
    if !unused.is_empty() {
        let some: Vec<&str> = unused.iter().take(4).map(String::as_str).collect();
        let more = if unused.len() > 4 { ", .." } else { "" };
        eprintln!("note: {} tensors of --init-from are not in the plan: {}{more}", unused.len(), some.join(", "));
    }
    if let Some(data) = &request.calibrate {
        compiled.plan.settings.repairs.push(calibrate(&planner, &request.spec, &compiled, data, &mut weights)?);
    }
    let weights = weights.into_iter().map(|w| NamedTensor { name: w.name, shape: w.shape, data: w.data }).collect();
    let model = skeleton(planner.file(), &compiled.network.sources)?;
    let text = slrc_plan::yaml::to_string(&compiled.plan).map_err(|e| Failure::Run(e.to_string()))?;
    Ok(Built { compiled, text, weights, model, planning })
}

/// Compiles and writes a plan folder, entirely or not at all. Returns how long planning took.
pub(crate) fn compile_to(request: &Request, out: &Path) -> Result<(Compiled, Duration), Failure> {
    check_replaceable(out, NAMES)?;
    let built = build(request)?;
    replace_folder(out, NAMES, |folder| {
        write_safetensors(&folder.join(files::WEIGHTS), &built.weights)?;
        write_atomic(&folder.join(files::MODEL), &built.model)?;
        if let Some(kernels) = &built.compiled.kernels {
            write_atomic(&folder.join(files::KERNELS), kernels.as_bytes())?;
        }
        write_atomic(&folder.join(PARTITION), crate::partition::report(&built.compiled).as_bytes())?;
        write_atomic(&folder.join(files::PLAN), built.text.as_bytes())
    })?;
    Ok((built.compiled, built.planning))
}
