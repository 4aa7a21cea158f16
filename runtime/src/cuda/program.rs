//! A module's program on a device: its launches and calls of a library, run one by one or as a graph.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUevent_flags, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaStream, result};
use slrc_plan::launch::{Launch, LaunchArg, Part};
use slrc_plan::plan::Program as Plan;
use slrc_plan::{Buffer, Kernel, KernelOp};

use crate::cuda::error::Called;
use crate::cuda::library::{Library, Product, Products};
use crate::cuda::memory::Memory;
use crate::device::{DeviceError, ProgramKind};

/// A launch, or a part of one, with everything resolved.
#[derive(Clone)]
struct Prepared {
    function: CudaFunction,
    name: String,
    grid: (u32, u32, u32),
    block: u32,
    shared: u32,
    /// What the function's parameters are: addresses and numbers.
    arguments: Vec<CUdeviceptr>,
    /// Which of them is the number of the first block, and which says whether kernels run without those that follow.
    first: Option<usize>,
    alone: Option<usize>,
    /// Whether it may report a fault.
    faults: bool,
}

/// What is queued.
enum Work {
    Function(Prepared),
    Product(Product),
}

struct Queued {
    work: Work,
    /// The kernels whose work it does. A function that does that of several can do it one by one.
    kernels: Vec<(usize, Part)>,
}

/// Names a program in a plan, with where its launches' arguments lie.
pub(super) struct Place<'a> {
    pub(super) module: usize,
    pub(super) kind: ProgramKind,
    pub(super) memory: &'a Memory,
    pub(super) buffers: &'a BTreeMap<&'a str, &'a Buffer>,
    /// What may compute products in place of the plan's kernels.
    pub(super) products: &'a Products,
}

/// A prepared program.
pub(super) struct Program {
    kernels: Vec<Kernel>,
    launches: Vec<Queued>,
    /// Whether it has run.
    ran: bool,
    /// Recorded by the first run; by the second where a library takes part.
    graph: Option<CudaGraph>,
}

impl Program {
    /// Resolves a program's functions and arguments.
    pub(super) fn prepare(plan: &Plan, code: &Arc<CudaModule>, place: &Place<'_>) -> Result<Program, DeviceError> {
        let index: BTreeMap<&str, usize> = plan.kernels.iter().enumerate().map(|(i, k)| (k.id.as_str(), i)).collect();
        let mut products = products(plan, place)?;
        let by_library: BTreeSet<usize> = products.keys().copied().collect();
        let position = |id: &str| index.get(id).copied().unwrap_or(0);
        let mut launches = Vec::new();
        for l in &plan.launches {
            let each: Vec<(usize, Part)> = l.kernels.iter().map(|id| position(id)).zip(l.one_by_one()).collect();
            // A product takes the place of all its kernel's launches, or of its part of one.
            for &(kernel, ref part) in &each {
                if let Some(product) = products.remove(&kernel) {
                    let kernels = vec![(kernel, part.clone())];
                    launches.push(Queued { work: Work::Product(product), kernels });
                }
            }
            let parts = l.without(|id| by_library.contains(&position(id)));
            if parts.is_empty() {
                continue;
            }
            let function = prepare(l, code, place)?;
            for part in parts {
                let work = Work::Function(function.part(&part));
                launches.push(Queued { work, kernels: part.kernels.iter().map(|&i| each[i].clone()).collect() });
            }
        }
        Ok(Program { kernels: plan.kernels.clone(), launches, ran: false, graph: None })
    }

    /// Kernels that libraries compute, by id.
    pub(super) fn by_library(&self) -> BTreeMap<String, Library> {
        let library = |l: &Queued| match &l.work {
            Work::Function(_) => None,
            Work::Product(p) => l.kernels.first().map(|(k, _)| (self.kernels[*k].id.clone(), p.library())),
        };
        self.launches.iter().filter_map(library).collect()
    }

    /// Queues the program's launches, one by one.
    pub(super) fn run(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        self.launches.iter().try_for_each(|l| l.launch(stream))
    }

    /// Queues the program as a graph; the first run records it. Where a library takes part, the second does, and the
    /// first goes launch by launch: the library loads its code then, which may not happen while a graph is recorded.
    pub(super) fn run_graph(&mut self, stream: &Arc<CudaStream>) -> Result<(), DeviceError> {
        let first = !std::mem::replace(&mut self.ran, true);
        if first && self.launches.iter().any(|l| matches!(l.work, Work::Product(_))) {
            return self.run(stream);
        }
        if self.graph.is_none() {
            self.graph = self.record(stream)?;
        }
        // A program without launches leaves no graph.
        self.graph.as_ref().map_or(Ok(()), |g| g.launch().called("cuGraphLaunch"))
    }

    fn record(&self, stream: &Arc<CudaStream>) -> Result<Option<CudaGraph>, DeviceError> {
        if self.launches.is_empty() {
            return Ok(None);
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).called("cuStreamBeginCapture")?;
        let launched = self.run(stream);
        // Recording ends whatever happened in it; the first error is the one to tell.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).called("cuStreamEndCapture");
        launched.and(graph)
    }

    /// Runs the launches one by one, those of several kernels kernel by kernel, waits, and tells each kernel's seconds.
    pub(super) fn profile(
        &self,
        stream: &CudaStream,
        after: &mut (dyn FnMut(&Kernel, f64) + Send),
    ) -> Result<(), DeviceError> {
        let mark = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).called("cuEventRecord");
        let mut marks: Vec<CudaEvent> = vec![mark()?];
        let mut timed = Vec::new();
        for l in &self.launches {
            match &l.work {
                Work::Function(f) if l.kernels.len() > 1 => {
                    for (kernel, part) in &l.kernels {
                        f.part(part).launch(stream)?;
                        marks.push(mark()?);
                        timed.push(*kernel);
                    }
                }
                _ => {
                    l.launch(stream)?;
                    marks.push(mark()?);
                    timed.push(l.kernels.first().map_or(0, |k| k.0));
                }
            }
        }
        let mut seconds: BTreeMap<usize, f64> = BTreeMap::new();
        for (kernel, pair) in timed.into_iter().zip(marks.windows(2)) {
            let ms = pair[0].elapsed_ms(&pair[1]).called("cuEventElapsedTime")?;
            *seconds.entry(kernel).or_default() += f64::from(ms) / 1e3;
        }
        for (kernel, s) in seconds {
            after(&self.kernels[kernel], s);
        }
        Ok(())
    }

    /// Kernels that may report a fault, by id, and the nodes whose work they do.
    pub(super) fn suspects(&self) -> (String, String) {
        let launches = self.launches.iter().filter(|l| l.may_fault()).flat_map(|l| &l.kernels);
        let mut kernels: Vec<&Kernel> =
            launches.map(|k| &self.kernels[k.0]).filter(|k| matches!(k.run, KernelOp::Gather(_))).collect();
        kernels.dedup_by_key(|k| &k.id);
        let ids: Vec<&str> = kernels.iter().map(|k| k.id.as_str()).collect();
        let nodes: Vec<&str> = kernels.iter().flat_map(|k| &k.nodes).map(String::as_str).collect();
        (ids.join(" or "), nodes.join(", "))
    }
}

/// Kernels that a library computes, by position.
fn products(plan: &Plan, place: &Place<'_>) -> Result<BTreeMap<usize, Product>, DeviceError> {
    let address = |b: &Buffer| place.memory.address(place.memory.layout().buffer(b).start);
    let mut found = BTreeMap::new();
    for (i, k) in plan.kernels.iter().enumerate() {
        if let Some(product) = place.products.prepare(k, place.buffers, &address)? {
            found.insert(i, product);
        }
    }
    Ok(found)
}

fn prepare(l: &Launch, code: &Arc<CudaModule>, place: &Place<'_>) -> Result<Prepared, DeviceError> {
    let wrong = |reason: &str| {
        let (module, function) = (place.module, &l.function);
        DeviceError::Unsupported(format!("module {module}, launch of {function}: {reason}; compile the plan again"))
    };
    if l.function.contains('\0') {
        return Err(wrong("the name is not one of C"));
    }
    let function = match code.load_function(&l.function) {
        Err(e) if e.0 == CUresult::CUDA_ERROR_NOT_FOUND => return Err(wrong("kernels.cu has no such function")),
        other => other.called("cuModuleGetFunction")?,
    };
    let small = |n: usize| u32::try_from(n).map_err(|_| wrong("an extent is too large"));
    let [x, y, z] = l.grid.0[..] else { return Err(wrong("the grid does not have three extents")) };
    let layout = place.memory.layout();
    let address = |a: &LaunchArg| match a {
        LaunchArg::Buffer(id) => place
            .buffers
            .get(id.as_str())
            .map(|b| place.memory.address(layout.buffer(b).start))
            .ok_or_else(|| wrong("an argument is no buffer of the plan")),
        LaunchArg::Run => Ok(place.memory.address(layout.run())),
        LaunchArg::Fault => Ok(place.memory.address(layout.fault(place.module, place.kind))),
        LaunchArg::Turns => Ok(place.memory.address(layout.turns().start)),
        LaunchArg::First | LaunchArg::Alone => Ok(0),
    };
    Ok(Prepared {
        function,
        name: l.function.clone(),
        grid: (small(x)?, small(y)?, small(z)?),
        block: small(l.block)?,
        shared: small(l.shared)?,
        arguments: l.args.iter().map(address).collect::<Result<_, _>>()?,
        first: l.args.iter().position(|a| *a == LaunchArg::First),
        alone: l.args.iter().position(|a| *a == LaunchArg::Alone),
        faults: l.args.contains(&LaunchArg::Fault),
    })
}

impl Queued {
    fn launch(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        match &self.work {
            Work::Function(f) => f.launch(stream),
            Work::Product(p) => p.launch(stream.cu_stream()),
        }
    }

    fn may_fault(&self) -> bool {
        match &self.work {
            Work::Function(f) => f.faults,
            Work::Product(_) => false,
        }
    }
}

impl Prepared {
    /// A part of the launch that this is.
    fn part(&self, part: &Part) -> Prepared {
        let extent = |n: &usize| u32::try_from(*n).expect("invariant: a part's grid is no larger than the launch's");
        let [x, y, z] = &part.grid[..] else { unreachable!("invariant: a prepared launch has three extents") };
        let mut prepared = Prepared { grid: (extent(x), extent(y), extent(z)), ..self.clone() };
        if let Some(first) = self.first {
            prepared.arguments[first] = part.first as CUdeviceptr;
        }
        if let Some(alone) = self.alone {
            prepared.arguments[alone] = CUdeviceptr::from(part.alone);
        }
        prepared
    }

    fn launch(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        let mut parameters: Vec<*mut std::ffi::c_void> =
            self.arguments.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast()).collect();
        // SAFETY: the driver copies the parameters during the call and writes none. They are what the function of the
        // same name in the plan's own source takes, and by the plan's validation its kernels stay in their buffers.
        let launched = unsafe {
            let (grid, block) = (self.grid, (self.block, 1, 1));
            let function = self.function.cu_function();
            result::launch_kernel(function, grid, block, self.shared, stream.cu_stream(), &mut parameters)
        };
        launched.called("cuLaunchKernel").map_err(|e| match e {
            DeviceError::Call { call, reason } => {
                DeviceError::Call { call, reason: format!("{reason}, of function {}", self.name) }
            }
            DeviceError::Lost { call, reason } => {
                DeviceError::Lost { call, reason: format!("{reason}, at function {}", self.name) }
            }
            other => other,
        })
    }
}
