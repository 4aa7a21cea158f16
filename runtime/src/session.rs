//! A plan with its state on a device: load weights, feed batches, step, evaluate, read state back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use slrc_plan::{Buffer, DType, Kernel, Plan};

use crate::device::{Device, DeviceError, LibraryUse, ProgramKind, StepContext};
use crate::files::{FileError, Outline, write_tensors};
use crate::reorder::{to_memory, to_row_major};

/// A named tensor of a checkpoint or a weights file: row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
}

/// State does not fit the plan.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A tensor the plan needs is missing.
    #[error("tensor \"{0}\" is missing")]
    Missing(String),
    /// A tensor has another shape than the plan's.
    #[error("tensor \"{name}\" has shape {found:?}, the plan needs {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape in the plan.
        wanted: Vec<usize>,
    },
    /// The device could not take it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Numbers a module reports of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModuleReport {
    /// Mean loss of the batch.
    pub loss: f32,
    /// Fraction of labels that are the arg-max.
    pub accuracy: f32,
    /// At its input, where monitored.
    pub boundary: Option<BoundaryReport>,
}

/// How the gradients on the two sides of a boundary agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundaryReport {
    /// `R = B sum((g - e)^2)`.
    pub discord: f32,
    /// Cosine of the angle between g and e.
    pub cosine: f32,
    /// `|g| / |e|`.
    pub ratio: f32,
}

/// What inference of a batch yields at one head.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalReport {
    /// Loss of each sample.
    pub loss: Vec<f32>,
    /// Fraction of each sample's labels that are the arg-max.
    pub correct: Vec<f32>,
}

/// A plan on a device.
pub struct Session {
    plan: Plan,
    device: Box<dyn Device>,
    buffers: BTreeMap<String, Buffer>,
}

impl Session {
    /// Puts a plan's state on a device that has loaded the plan. Every parameter and constant must be given.
    pub fn new(plan: Plan, device: Box<dyn Device>, tensors: &[NamedTensor]) -> Result<Session, StateError> {
        let buffers = plan.all_buffers().map(|b| (b.id.clone(), b.clone())).collect();
        let mut session = Session { plan, device, buffers };
        let wanted: Vec<(String, String)> = session
            .plan
            .parameters
            .iter()
            .map(|p| (p.name.clone(), p.buffer.clone()))
            .chain(session.plan.constants.iter().map(|c| (c.name.clone(), c.buffer.clone())))
            .collect();
        session.write_all(&wanted, tensors)?;
        Ok(session)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write_all(&mut self, wanted: &[(String, String)], tensors: &[NamedTensor]) -> Result<(), StateError> {
        let given: BTreeMap<&str, &NamedTensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        for (name, id) in wanted {
            let t = given.get(name.as_str()).ok_or_else(|| StateError::Missing(name.clone()))?;
            let b = self.buffers[id].clone();
            if t.shape != b.shape.0 || t.data.len() != b.count() {
                let (found, wanted) = (t.shape.clone(), b.shape.0.clone());
                return Err(StateError::Shape { name: name.clone(), found, wanted });
            }
            let bytes: Cow<'_, [u8]> = match b.dtype {
                DType::F32 => Cow::Borrowed(bytemuck::cast_slice(&t.data)),
                DType::I32 => t.data.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
                DType::U8 => t.data.iter().map(|&x| x as u8).collect(),
                DType::Bit => unreachable!("invariant: state is of whole bytes"),
            };
            self.device.write(&b, &to_memory(&b, &bytes))?;
        }
        Ok(())
    }

    /// Sets optimizer state; every tensor of it must be given.
    pub fn set_optimizer_state(&mut self, tensors: &[NamedTensor]) -> Result<(), StateError> {
        let wanted: Vec<(String, String)> =
            self.plan.optimizer_state.iter().map(|o| (o.name.clone(), o.buffer.clone())).collect();
        self.write_all(&wanted, tensors)
    }

    fn tensor(&self, name: &str, id: &str) -> Result<NamedTensor, DeviceError> {
        Ok(NamedTensor { name: name.to_string(), shape: self.buffers[id].shape.0.clone(), data: self.floats(id)? })
    }

    /// Weights and running statistics, in plan order.
    pub fn parameters(&self) -> Result<Vec<NamedTensor>, DeviceError> {
        self.plan.parameters.iter().map(|p| self.tensor(&p.name, &p.buffer)).collect()
    }

    /// Optimizer state, in plan order.
    pub fn optimizer_state(&self) -> Result<Vec<NamedTensor>, DeviceError> {
        self.plan.optimizer_state.iter().map(|o| self.tensor(&o.name, &o.buffer)).collect()
    }

    /// Writes weights and running statistics to a safetensors file, entirely or not at all, tensor by tensor.
    pub fn save_parameters<E: From<FileError> + From<DeviceError>>(&self, path: &Path) -> Result<(), E> {
        self.save(path, self.plan.parameters.iter().map(|p| (p.name.as_str(), p.buffer.as_str())).collect())
    }

    /// Writes optimizer state likewise.
    pub fn save_optimizer_state<E: From<FileError> + From<DeviceError>>(&self, path: &Path) -> Result<(), E> {
        self.save(path, self.plan.optimizer_state.iter().map(|o| (o.name.as_str(), o.buffer.as_str())).collect())
    }

    fn save<E: From<FileError> + From<DeviceError>>(&self, path: &Path, tensors: Vec<(&str, &str)>) -> Result<(), E> {
        let outlines: Vec<Outline<'_>> =
            tensors.iter().map(|&(name, id)| Outline { name, shape: &self.buffers[id].shape }).collect();
        write_tensors(path, &outlines, |i| Ok(Cow::Owned(self.floats(tensors[i].1)?)))
    }

    /// The first parameter that holds a number that is not finite.
    pub fn overflown(&self) -> Result<Option<&str>, DeviceError> {
        for p in &self.plan.parameters {
            if self.floats(&p.buffer)?.iter().any(|x| !x.is_finite()) {
                return Ok(Some(&p.name));
            }
        }
        Ok(None)
    }

    /// The buffer of a data input.
    pub fn input_buffer(&self, name: &str) -> Option<&Buffer> {
        let decl = self.plan.inputs.iter().find(|i| i.name == name)?;
        self.buffers.get(&decl.buffer)
    }

    /// The buffer of the labels.
    pub fn labels_buffer(&self) -> &Buffer {
        &self.buffers[&self.plan.labels.buffer]
    }

    /// Fills a data input with a batch in row-major order, in the input's type.
    pub fn set_input(&mut self, name: &str, bytes: &[u8]) -> Result<(), DeviceError> {
        let b = self.input_buffer(name).expect("invariant: callers use the plan's input names").clone();
        self.device.write(&b, bytes)
    }

    /// Fills the labels.
    pub fn set_labels(&mut self, labels: &[i32]) -> Result<(), DeviceError> {
        let b = self.labels_buffer().clone();
        self.device.write(&b, bytemuck::cast_slice(labels))
    }

    /// Queues one pass of training over the batch that was set: every module in turn. Passes are counted from the
    /// run's first; a step takes [`slrc_plan::plan::Settings::micro_batches`] of them, and weights change in its last.
    /// `run_steps` is the length of the run, which schedules may depend on. At most [`Session::passes_ahead`] + 1
    /// passes may be unfinished.
    pub fn queue_pass(&mut self, pass: u64, run_steps: u64) -> Result<(), DeviceError> {
        self.set_scalars(pass, run_steps)?;
        let context = StepContext { seed: self.plan.settings.seed, pass };
        for m in &self.plan.modules {
            self.device.run(m.index, ProgramKind::Step, context)?;
        }
        self.device.queue_report()
    }

    /// What the oldest unfinished pass reports, when it is done. After an error, no pass is unfinished.
    pub fn finish_pass(&mut self) -> Result<Vec<ModuleReport>, DeviceError> {
        let bytes = self.device.report()?;
        let number = |id: &str| {
            let at = self.buffers[id].offset;
            f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let boundary = |b: &slrc_plan::plan::BoundaryMetrics| BoundaryReport {
            discord: number(&b.discord),
            cosine: number(&b.cosine),
            ratio: number(&b.ratio),
        };
        let report = |m: &slrc_plan::plan::Metrics| ModuleReport {
            loss: number(&m.loss),
            accuracy: number(&m.accuracy),
            boundary: m.boundary.as_ref().map(boundary),
        };
        Ok(self.plan.modules.iter().map(|m| report(&m.metrics)).collect())
    }

    /// How many steps are worth queueing behind an unfinished one.
    pub fn passes_ahead(&self) -> usize {
        self.device.passes_ahead()
    }

    /// Bytes of the device's own memory that are allocated.
    pub fn allocated(&self) -> usize {
        self.device.allocated()
    }

    /// Which library computes products in place of the plan's own kernels, and which ones.
    pub fn library(&self) -> LibraryUse {
        self.device.library()
    }

    /// Trains one pass and waits for it. No pass may be unfinished.
    pub fn pass(&mut self, pass: u64, run_steps: u64) -> Result<Vec<ModuleReport>, DeviceError> {
        self.queue_pass(pass, run_steps)?;
        self.finish_pass()
    }

    /// Trains one pass kernel by kernel; `after` is told the module, the kernel and the seconds it took.
    pub fn profile_pass(
        &mut self,
        pass: u64,
        after: &mut (dyn FnMut(usize, &Kernel, f64) + Send),
    ) -> Result<(), DeviceError> {
        self.set_scalars(pass, pass + 1)?;
        let context = StepContext { seed: self.plan.settings.seed, pass };
        for m in &self.plan.modules {
            self.device.profile(m.index, ProgramKind::Step, context, &mut |k, seconds| after(m.index, k, seconds))?;
        }
        Ok(())
    }

    fn set_scalars(&mut self, pass: u64, run_steps: u64) -> Result<(), DeviceError> {
        let micro_batches = self.plan.settings.micro_batches as u64;
        for s in &self.plan.scalars {
            let value = s.at(pass, micro_batches, run_steps) as f32;
            self.device.write(&self.buffers[&s.buffer], &value.to_le_bytes())?;
        }
        Ok(())
    }

    fn floats(&self, id: &str) -> Result<Vec<f32>, DeviceError> {
        let b = &self.buffers[id];
        Ok(bytemuck::pod_collect_to_vec::<u8, f32>(&to_row_major(b, &self.device.read(b)?)))
    }

    /// Inference of the batch: what every head yields, in module order, and the network's logits, row-major.
    pub fn eval(&mut self) -> Result<(Vec<EvalReport>, Vec<f32>), DeviceError> {
        let context = StepContext { seed: self.plan.settings.seed, pass: 0 };
        let mut reports = Vec::new();
        let mut logits = Vec::new();
        for m in &self.plan.modules {
            self.device.run(m.index, ProgramKind::Eval, context)?;
            // The next module's program reuses the arena.
            let o = &m.eval_outputs;
            reports.push(EvalReport { loss: self.floats(&o.loss)?, correct: self.floats(&o.correct)? });
            if m.index == self.plan.modules.len() {
                logits = self.floats(&o.logits)?;
            }
        }
        Ok((reports, logits))
    }
}
