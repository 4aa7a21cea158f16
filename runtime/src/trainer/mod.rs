//! Training: batches in order, steps, logged numbers, checkpoints.
//!
//! A run is a folder: `plan.yaml` (for CUDA its kernels and their machine code), `model.onnx`, `constants.safetensors`,
//! `metrics.jsonl` and `checkpoint/`. What a run computes is a function of the plan, the weights, the data and the
//! seed; stopping it at any moment and resuming changes nothing.

mod average;
pub mod checkpoint;
pub mod metrics;

use std::path::{Path, PathBuf};

use slrc_plan::plan::files;

use crate::data::DataError;
use crate::data::dataset::{Dataset, Order};
use crate::device::DeviceError;
use crate::files::{
    FileError, check_replaceable, read_safetensors, read_tensors, replace_folder, write_atomic, write_safetensors,
};
use crate::session::{BoundaryReport, ModuleReport, NamedTensor, Session, StateError};
use crate::trainer::average::Average;
use crate::trainer::checkpoint::{Checkpoint, RunState};
use crate::trainer::metrics::MetricsLog;

/// A run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data's fault.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file's fault.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint does not fit the plan.
    #[error("{0}")]
    State(#[from] StateError),
    /// The device's or a kernel's fault.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A kernel met data it cannot work with.
    #[error("at step {step}, {source}; the last checkpoint is intact")]
    Kernel {
        /// From 0.
        step: u64,
        /// Which kernel, and why.
        source: DeviceError,
    },
    /// The run folder cannot be used so.
    #[error("{path}: {reason}")]
    Run {
        /// The run folder.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Training diverged: the loss tells.
    #[error(
        "the loss of module {module} is {loss} at step {step}; lower the learning rate (--lr) or lambda (--lambda), or add warm-up; \
         the last checkpoint is intact"
    )]
    Diverged {
        /// Module number.
        module: usize,
        /// Its loss.
        loss: f32,
        /// From 0.
        step: u64,
    },
    /// Training diverged: the gradients tell.
    #[error(
        "the gradients at the input of module {module} overflow at step {step}; lower the learning rate (--lr) or lambda (--lambda), \
         or add warm-up; the last checkpoint is intact"
    )]
    Gradients {
        /// Module number.
        module: usize,
        /// From 0.
        step: u64,
    },
    /// Training diverged: the weights tell, before any loss does.
    #[error(
        "tensor \"{name}\" is no longer finite after step {step}; lower the learning rate (--lr) or lambda (--lambda), or add warm-up; \
         the last checkpoint is intact"
    )]
    Overflow {
        /// A parameter.
        name: String,
        /// Steps done.
        step: u64,
    },
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the data.
    Epochs(u64),
}

/// What a run needs to know besides plan and data.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// How long; a resumed run keeps its length where absent.
    pub length: Option<Length>,
    /// Permute samples every epoch.
    pub shuffle: bool,
    /// Seed of the permutations.
    pub seed: u64,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between checkpoints; an epoch where absent. The end of the run always makes one.
    pub checkpoint_every: Option<u64>,
}

/// Steps between lines of `metrics.jsonl` where nothing is said.
pub const DEFAULT_LOG_EVERY: u64 = 10;

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
    /// Steps an epoch takes.
    pub steps_per_epoch: u64,
    /// Numbers of the last step, by module: means over its passes.
    pub modules: &'a [ModuleReport],
}

/// Fails where no run can be begun: in a folder that holds anything.
pub fn check_new(run: &Path) -> Result<(), TrainError> {
    if std::fs::read_dir(run).is_ok_and(|mut d| d.next().is_some()) {
        let reason = "the folder exists and is not empty; go on with --resume, or choose another with -o".into();
        return Err(TrainError::Run { path: run.to_path_buf(), reason });
    }
    check_replaceable(run, &[])?;
    Ok(())
}

/// Sets a new run folder up, entirely or not at all, with copies of the plan and the model from the plan folder.
pub fn create_run(run: &Path, plan_folder: &Path) -> Result<(), TrainError> {
    check_new(run)?;
    let plan = crate::folder::read_plan(plan_folder)?;
    let constant = |name: &str| plan.constants.iter().any(|c| c.name == name);
    let constants = read_tensors(&plan_folder.join(files::WEIGHTS), constant)?;
    let kernels = crate::folder::read_kernels(plan_folder, &plan)?;
    replace_folder(run, &[], |folder| {
        write_safetensors(&folder.join(CONSTANTS), &constants)?;
        if let Some(kernels) = &kernels {
            write_atomic(&folder.join(files::KERNELS), kernels.source.as_bytes())?;
            kernels.cubins.iter().try_for_each(|c| write_atomic(&folder.join(c.file()), c.bytes()))?;
        }
        [files::MODEL, files::PLAN]
            .iter()
            .try_for_each(|name| write_atomic(&folder.join(name), &crate::files::read(&plan_folder.join(name))?))
    })?;
    Ok(())
}

/// The plan's constants in a run folder: what a checkpoint does not hold.
const CONSTANTS: &str = "constants.safetensors";

/// Reads a run's constants.
pub fn read_constants(run: &Path) -> Result<Vec<NamedTensor>, FileError> {
    read_safetensors(&run.join(CONSTANTS))
}

/// Steps an epoch takes; an error where the data does not fill one batch.
pub fn steps_per_epoch(data: &Dataset, batch: usize) -> Result<u64, DataError> {
    let steps = (data.count / batch) as u64;
    if steps == 0 {
        let reason =
            format!("{} samples are fewer than a batch of {batch}; compile with a smaller --batch", data.count);
        return Err(DataError::Malformed { path: data.path.clone(), reason });
    }
    Ok(steps)
}

/// Trains to the run's end. The session holds the state to start from: fresh, or of the checkpoint `resumed`.
pub fn train(
    session: &mut Session,
    data: &Dataset,
    run: &Path,
    options: &RunOptions,
    resumed: Option<&RunState>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), TrainError> {
    data.check(session.plan())?;
    let settings = &session.plan().settings;
    let (batch, passes, samples) = (settings.batch, settings.micro_batches as u64, settings.samples());
    let order = Order { seed: options.seed, shuffle: options.shuffle, batch: samples, count: data.count };
    let per_epoch = steps_per_epoch(data, samples)?;
    let total = match (options.length, resumed) {
        (Some(Length::Steps(n)), _) => n,
        (Some(Length::Epochs(n)), _) => n.saturating_mul(per_epoch),
        (None, Some(state)) => state.total_steps,
        (None, None) => per_epoch,
    };
    let mut state = RunState {
        step: 0,
        total_steps: total,
        seed: options.seed,
        shuffle: options.shuffle,
        samples: data.count as u64,
        data_sha256: data.sha256(),
        library: session.library().name(),
    };
    if let Some(old) = resumed {
        old.check(&state, run)?;
        Checkpoint::sweep(run)?;
        state.step = old.step;
    }
    let mut log = MetricsLog::open(&run.join("metrics.jsonl"), state.step)?;
    // A run can be resumed, evaluated and exported from its first moment on.
    if !Checkpoint::exists(run) {
        Checkpoint::save(run, session, &state)?;
    }
    let every = options.checkpoint_every.unwrap_or(per_epoch).max(1);
    let mut epoch_order: Option<(u64, Vec<u32>)> = None;
    let mut done = state.step * passes;
    // Passes queued: those done, and on a device that works on its own some ahead of them.
    let mut queued = done;
    let mut average = Average::default();
    while state.step < total {
        // A checkpoint is what its step left: none is queued behind that step before it is written.
        let stop = (state.step / every + 1).saturating_mul(every).min(total);
        while queued < stop.saturating_mul(passes) && queued - done <= session.passes_ahead() as u64 {
            let (step, pass) = (queued / passes, (queued % passes) as usize);
            let (epoch, within) = (step / per_epoch, (step % per_epoch) as usize);
            if epoch_order.as_ref().map(|o| o.0) != Some(epoch) {
                epoch_order = Some((epoch, order.epoch(epoch)));
            }
            let first = within * samples + pass * batch;
            feed(session, data, &epoch_order.as_ref().expect("set above").1[first..first + batch])?;
            session.queue_pass(queued, total).map_err(at_step(step))?;
            queued += 1;
        }
        let modules = session.finish_pass().map_err(at_step(state.step))?;
        check_finite(state.step, &modules)?;
        done += 1;
        average.add(&modules);
        if !done.is_multiple_of(passes) {
            continue;
        }
        let modules = average.take();
        let epoch = state.step / per_epoch;
        state.step += 1;
        if state.step.is_multiple_of(options.log_every.max(1)) || state.step == total || state.step == 1 {
            log.write(state.step, epoch, &modules)?;
        }
        if state.step.is_multiple_of(every) || state.step == total {
            log.sync()?;
            if let Some(name) = session.overflown()? {
                return Err(TrainError::Overflow { name: name.to_string(), step: state.step });
            }
            Checkpoint::save(run, session, &state)?;
        }
        progress(Progress { done: state.step, total, steps_per_epoch: per_epoch, modules: &modules });
    }
    Ok(())
}

/// What went wrong in a step; what concerns the device as a whole is no step's.
fn at_step(step: u64) -> impl FnOnce(DeviceError) -> TrainError {
    move |e| match e {
        source @ DeviceError::Kernel { .. } => TrainError::Kernel { step, source },
        e => TrainError::Device(e),
    }
}

/// Fails where a step's numbers tell that training diverged.
fn check_finite(step: u64, modules: &[ModuleReport]) -> Result<(), TrainError> {
    if let Some((i, m)) = modules.iter().enumerate().find(|(_, m)| !m.loss.is_finite()) {
        return Err(TrainError::Diverged { module: i + 1, loss: m.loss, step });
    }
    let overflow = |b: &BoundaryReport| ![b.discord, b.cosine, b.ratio].iter().all(|x| x.is_finite());
    if let Some(i) = modules.iter().position(|m| m.boundary.as_ref().is_some_and(overflow)) {
        return Err(TrainError::Gradients { module: i + 1, step });
    }
    Ok(())
}

/// Puts a batch of a data set that was checked on the device.
pub fn feed(session: &mut Session, data: &Dataset, samples: &[u32]) -> Result<(), DeviceError> {
    let inputs = session.plan().inputs.clone();
    for input in &inputs {
        let bytes = data.input_batch(session.plan(), input, samples);
        session.set_input(&input.name, &bytes)?;
    }
    session.set_labels(&data.label_batch(samples))
}

/// Mean loss and accuracy of one head over a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadScore {
    /// Mean loss of the samples.
    pub loss: f64,
    /// Fraction correct.
    pub accuracy: f64,
}

/// What evaluation yields.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// By module; the last is the network's own output.
    pub heads: Vec<HeadScore>,
    /// The network's logits, sample after sample.
    pub logits: Vec<f32>,
}

/// Evaluates every head on a data set. The last batch is filled up with its first sample, whose repetitions do not
/// count.
pub fn evaluate(
    session: &mut Session,
    data: &Dataset,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation, TrainError> {
    data.check(session.plan())?;
    let batch = session.plan().settings.batch;
    let mut sums = vec![(0.0f64, 0.0f64); session.plan().modules.len()];
    let mut logits = Vec::new();
    let mut done = 0;
    while done < data.count {
        let take = batch.min(data.count - done);
        let samples: Vec<u32> = (0..batch).map(|i| (done + if i < take { i } else { 0 }) as u32).collect();
        feed(session, data, &samples)?;
        let (reports, batch_logits) = session.eval()?;
        for (sum, r) in sums.iter_mut().zip(&reports) {
            sum.0 += r.loss[..take].iter().map(|&x| f64::from(x)).sum::<f64>();
            sum.1 += r.correct[..take].iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        let width = batch_logits.len() / batch;
        logits.extend_from_slice(&batch_logits[..take * width]);
        done += take;
        progress(done, data.count);
    }
    let n = data.count as f64;
    Ok(Evaluation { heads: sums.iter().map(|s| HeadScore { loss: s.0 / n, accuracy: s.1 / n }).collect(), logits })
}
