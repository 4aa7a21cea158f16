//! The CUDA device: a plan's launches on one GPU, through NVIDIA's driver and runtime compiler.
//!
//! Both are libraries that are looked for when a device is asked for: the program builds and starts on any machine.
//! [`probe`] finds what is there; [`compile`] makes machine code of a plan's `kernels.cu`, which lies beside the plan
//! ([`cubin`]) or in a cache on disk; [`code`] finds it;
//! [`CudaDevice`] holds one allocation of the size the plan says and one stream on which programs run in order. A
//! program is recorded as a graph when it first runs and replayed from then on. Batches arrive on a stream of their own
//! (`uploads.rs`), and what a step reports is read when the next one is queued (`reports.rs`). Modules may take turns
//! on the device (`streaming.rs`), and libraries may compute products (`library/`).
//!
//! Unsafe code is allowed in this folder because every call of the driver is unsafe. Its contract: a plan passes
//! [`slrc_plan::validate`] before it is loaded, launches pass as many arguments as their functions take (`source.rs`),
//! and `kernels.cu` is the one that was written with the plan (`source.rs` compares hashes), so that functions stay
//! within their kernels' buffers.
#![allow(unsafe_code, reason = "the driver's interface is C's; see the contract above")]

pub mod architecture;
mod cache;
pub mod code;
pub mod compile;
pub mod cubin;
mod error;
mod images;
mod layout;
mod library;
mod memory;
pub mod probe;
mod program;
mod reports;
mod source;
mod staging;
mod streaming;
mod uploads;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nvrtc::Ptx;
use slrc_plan::launch::fault;
use slrc_plan::{Buffer, Kernel, Plan, Space};

use crate::cuda::code::Kernels;
use crate::cuda::error::Called;
use crate::cuda::layout::Layout;
use crate::cuda::library::Products;
pub use crate::cuda::library::{Libraries, Library};
use crate::cuda::memory::Memory;
use crate::cuda::program::{Place, Program};
use crate::cuda::reports::{Reports, SLOTS};
use crate::cuda::streaming::{Streaming, is_image};
use crate::cuda::uploads::Uploads;
use crate::device::{Device, DeviceError, LibraryUse, ProgramKind, StepContext};

/// How a device runs programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launching {
    /// Recorded as a graph, one call a program.
    Graphs,
    /// Launch by launch: an error is told nearer to where it happens.
    Eager,
}

impl Launching {
    /// What `SLRC_CUDA_GRAPHS` says: 1 (or unset) for graphs, 0 for launch by launch.
    pub fn from_environment() -> Result<Launching, DeviceError> {
        match std::env::var("SLRC_CUDA_GRAPHS").as_deref() {
            Err(_) | Ok("" | "1") => Ok(Launching::Graphs),
            Ok("0") => Ok(Launching::Eager),
            Ok(other) => Err(DeviceError::Unsupported(format!("SLRC_CUDA_GRAPHS is `{other}`; it can be 0 or 1"))),
        }
    }
}

/// Where weights and optimizer state are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All on the device.
    All,
    /// In pinned host memory; on the device are those of the module that runs and of the next.
    InTurn,
}

/// Bytes of device memory that a plan takes: its spaces, aligned, and a few for the runtime.
pub fn device_bytes(plan: &Plan, residency: Residency) -> usize {
    Layout::of(plan, residency).total()
}

/// A plan on a GPU.
pub struct CudaDevice {
    /// Of each module: training and evaluation. Fields are dropped in order, work before what it works on.
    programs: Vec<[Program; 2]>,
    /// What computes products in place of the plan's kernels.
    products: Products,
    uploads: RefCell<Uploads>,
    /// Where modules take turns.
    streaming: Option<RefCell<Streaming>>,
    /// Of steps not finished yet.
    reports: Reports,
    memory: Memory,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    launching: Launching,
    /// Seed and step in device memory.
    run: Option<StepContext>,
    /// Metrics and faults as of the last program; absent while they may have changed.
    report: RefCell<Option<Vec<u8>>>,
}

impl CudaDevice {
    /// Finds or compiles machine code of a validated plan's kernels, and allocates its memory on device `ordinal`.
    pub fn load(
        plan: &Plan,
        ordinal: usize,
        kernels: &Kernels,
        launching: Launching,
        residency: Residency,
        libraries: Libraries,
    ) -> Result<CudaDevice, DeviceError> {
        kernels.check(plan)?;
        let info = probe::device_info(ordinal)?;
        let code = kernels.machine_code(plan, &info)?;
        let context = CudaContext::new(ordinal).called("cuDevicePrimaryCtxRetain")?;
        // SAFETY: what streams must wait for is said here; a graph could not be recorded with waits for events in it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().called("cuStreamCreate")?;
        let code = context.load_module(Ptx::from_binary(code)).called("cuModuleLoadData")?;
        let products = Products::start(libraries, plan.settings.precision, stream.cu_stream())?;
        let name = format!("cuda:{ordinal} ({})", info.name);
        let memory = Memory::allocate(plan, &stream, residency, &name)?;
        let buffers: BTreeMap<&str, &Buffer> = plan.all_buffers().map(|b| (b.id.as_str(), b)).collect();
        let prepare = |module: usize, kind: ProgramKind, p: &slrc_plan::plan::Program| {
            let place = Place { module, kind, memory: &memory, buffers: &buffers, products: &products };
            Program::prepare(p, &code, &place)
        };
        let programs = plan
            .modules
            .iter()
            .map(|m| Ok([prepare(m.index, ProgramKind::Step, &m.step)?, prepare(m.index, ProgramKind::Eval, &m.eval)?]))
            .collect::<Result<_, DeviceError>>()?;
        products.allocate(&name)?;
        let uploads = RefCell::new(Uploads::new(plan, &stream)?);
        let images = memory.layout().images();
        let streaming = images.map(|i| Streaming::new(plan, i, &stream).map(RefCell::new)).transpose()?;
        let reports = Reports::allocate(&stream, memory.layout().status().len())?;
        let report = RefCell::new(None);
        Ok(CudaDevice {
            programs,
            products,
            uploads,
            streaming,
            reports,
            memory,
            stream,
            context,
            launching,
            run: None,
            report,
        })
    }

    /// Device address of a buffer's first byte while its module runs, for tools that watch memory.
    pub fn address(&self, buffer: &Buffer) -> u64 {
        self.memory.address(self.memory.layout().buffer(buffer).start)
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().called("cuCtxSetCurrent")
    }

    /// Puts seed and step where kernels read them.
    fn set_run(&mut self, context: StepContext) -> Result<(), DeviceError> {
        if self.run == Some(context) {
            return Ok(());
        }
        let mut bytes = context.seed.to_le_bytes().to_vec();
        bytes.extend_from_slice(&context.pass.to_le_bytes());
        self.memory.write(self.memory.layout().run(), &bytes)?;
        self.run = Some(context);
        Ok(())
    }

    /// Waits for all work; an error if a kernel met data it cannot work with.
    fn settle(&self) -> Result<(), DeviceError> {
        if self.report.borrow().is_some() {
            return Ok(());
        }
        let report = self.memory.read_report()?;
        self.check(&report)?;
        *self.report.borrow_mut() = Some(report);
        Ok(())
    }

    /// An error if a report has a fault. It is told once, as another device would: later work is judged on its own.
    fn check(&self, report: &[u8]) -> Result<(), DeviceError> {
        let layout = self.memory.layout();
        for (i, programs) in self.programs.iter().enumerate() {
            for (program, kind) in programs.iter().zip([ProgramKind::Step, ProgramKind::Eval]) {
                let at = layout.fault(i + 1, kind) - layout.status().start;
                let number = i32::from_le_bytes([report[at], report[at + 1], report[at + 2], report[at + 3]]);
                if number != fault::NONE {
                    self.memory.fill(layout.faults(), 0)?;
                    return Err(fault_error(i + 1, program, number));
                }
            }
        }
        Ok(())
    }

    /// What a program must wait for before it is queued.
    fn before(&mut self, module: usize, context: StepContext) -> Result<(), DeviceError> {
        self.bind()?;
        self.set_run(context)?;
        *self.report.get_mut() = None;
        if let Some(streaming) = &mut self.streaming {
            streaming.get_mut().before(&self.memory, &self.stream, module)?;
        }
        self.uploads.get_mut().join(&self.stream)
    }

    /// What waits for a program that was queued.
    fn after(&mut self, module: usize, kind: ProgramKind) -> Result<(), DeviceError> {
        self.uploads.get_mut().ran(&self.stream, module, kind)?;
        match &mut self.streaming {
            Some(streaming) => streaming.get_mut().after(&self.memory, &self.stream, module, kind),
            None => Ok(()),
        }
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Code, graphs and memory are given back when nothing uses them; what failed was told by the calls before.
        let _ = self.bind();
        let _ = self.uploads.get_mut().finish();
        let _ = self.streaming.as_mut().map(|s| s.get_mut().finish());
        let _ = self.stream.synchronize();
    }
}

fn fault_error(module: usize, program: &Program, number: i32) -> DeviceError {
    let (kernel, nodes) = program.suspects();
    let reason = match number {
        fault::INDEX => "an index lies outside its table".to_string(),
        other => format!("fault {other}"),
    };
    DeviceError::Kernel { module, kernel, nodes, reason }
}

impl Device for CudaDevice {
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(buffer.bytes, bytes.len(), "invariant: callers give the buffer's bytes");
        self.bind()?;
        if buffer.space == Space::Metric {
            self.settle()?;
            *self.report.borrow_mut() = None;
        }
        if let (Some(streaming), true) = (&mut self.streaming, is_image(buffer)) {
            return streaming.get_mut().write(&self.memory, buffer, bytes);
        }
        let at = self.memory.layout().buffer(buffer).start;
        if buffer.space == Space::Input {
            return self.uploads.get_mut().write(buffer, self.memory.address(at), bytes);
        }
        self.memory.write(at, bytes)
    }

    fn read(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        self.bind()?;
        self.settle()?;
        if let (Some(streaming), true) = (&self.streaming, is_image(buffer)) {
            return streaming.borrow_mut().read(&self.memory, buffer);
        }
        if buffer.space == Space::Input {
            self.uploads.borrow_mut().join(&self.stream)?;
        }
        let range = self.memory.layout().buffer(buffer);
        if buffer.space != Space::Metric {
            return self.memory.read(range);
        }
        let start = self.memory.layout().status().start;
        let report = self.report.borrow();
        let report = report.as_ref().expect("invariant: settled above");
        Ok(report[range.start - start..range.end - start].to_vec())
    }

    fn run(&mut self, module: usize, program: ProgramKind, context: StepContext) -> Result<(), DeviceError> {
        self.before(module, context)?;
        let prepared = &mut self.programs[module - 1][program as usize];
        match self.launching {
            Launching::Graphs => prepared.run_graph(&self.stream)?,
            Launching::Eager => prepared.run(&self.stream)?,
        }
        self.after(module, program)
    }

    fn queue_report(&mut self) -> Result<(), DeviceError> {
        self.bind()?;
        let from = self.memory.address(self.memory.layout().status().start);
        self.reports.queue(&self.stream, from)
    }

    fn report(&mut self) -> Result<Vec<u8>, DeviceError> {
        self.bind()?;
        let taken = self.reports.take().and_then(|report| self.check(&report).map(|()| report));
        if taken.is_err() {
            self.reports.forget();
        }
        taken
    }

    fn passes_ahead(&self) -> usize {
        SLOTS - 1
    }

    fn allocated(&self) -> usize {
        self.memory.layout().total() + self.products.workspace()
    }

    fn library(&self) -> LibraryUse {
        LibraryUse {
            names: self.products.names(),
            missing: self.products.missing().to_vec(),
            workspace: self.products.workspace(),
            kernels: self.programs.iter().map(|both| [both[0].by_library(), both[1].by_library()]).collect(),
        }
    }

    fn profile(
        &mut self,
        module: usize,
        program: ProgramKind,
        context: StepContext,
        after: &mut (dyn FnMut(&Kernel, f64) + Send),
    ) -> Result<(), DeviceError> {
        self.before(module, context)?;
        self.programs[module - 1][program as usize].profile(&self.stream, after)?;
        self.after(module, program)?;
        self.settle()
    }
}
