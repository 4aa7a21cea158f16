//! Memory that is not live is never read: with every byte of the arena that holds nothing turned into NaN, a run gives
//! the same bits.
//!
//! Two ways at once. Before each program the arena is overwritten, but for what the module before hands over. And the
//! plan itself is rewritten: after the last kernel that uses a buffer, a kernel fills it with NaN, unless that kernel
//! has already written another buffer there.

mod support;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Compiled;
use slrc_plan::buffer::Live;
use slrc_plan::kernel::{Access, Fill, Kernel, KernelOp, Phase};
use slrc_plan::plan::{BoundaryDecl, Program};
use slrc_plan::{Buffer, DType, Dims, Plan, Space, View};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::device::{Device, DeviceError, LibraryUse, ProgramKind, StepContext};
use support::steps::{Batch, compile_spec, session, weights};

const BATCH: usize = 8;

/// NaN, or a number that no index and no flag has.
fn poison(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => f32::NAN,
        DType::I32 => -(2f32.powi(31)),
        DType::U8 | DType::Bit => 255.0,
    }
}

/// A CPU device whose arena is full of NaN whenever a program begins, but for the boundary it is given.
struct Poisoned {
    device: CpuDevice,
    arena: Buffer,
    /// By module, from 1: what it is given.
    received: Vec<Vec<Buffer>>,
}

impl Poisoned {
    fn load(plan: &Plan) -> Poisoned {
        let bytes = plan.memory.of(Space::Arena) / 4 * 4;
        let arena = Buffer {
            id: "arena".into(),
            space: Space::Arena,
            dtype: DType::F32,
            shape: Dims(vec![bytes / 4]),
            order: None,
            offset: 0,
            bytes,
            live: None,
        };
        let boundary = |id: &str| plan.buffers.iter().find(|b| b.id == id).expect("a buffer").clone();
        let of = |d: &BoundaryDecl| d.buffers().map(boundary).collect();
        let received = std::iter::once(Vec::new()).chain(plan.boundaries.iter().map(of)).collect();
        Poisoned { device: CpuDevice::load(plan, None).expect("device"), arena, received }
    }
}

impl Device for Poisoned {
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.write(buffer, bytes)
    }

    fn read(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        self.device.read(buffer)
    }

    fn run(&mut self, module: usize, program: ProgramKind, context: StepContext) -> Result<(), DeviceError> {
        let mut bytes = f32::NAN.to_le_bytes().repeat(self.arena.bytes / 4);
        for b in &self.received[module - 1] {
            bytes[b.offset..b.offset + b.bytes].copy_from_slice(&self.device.read(b)?);
        }
        self.device.write(&self.arena, &bytes)?;
        self.device.run(module, program, context)
    }

    fn queue_report(&mut self) -> Result<(), DeviceError> {
        self.device.queue_report()
    }

    fn report(&mut self) -> Result<Vec<u8>, DeviceError> {
        self.device.report()
    }

    fn passes_ahead(&self) -> usize {
        self.device.passes_ahead()
    }

    fn allocated(&self) -> usize {
        self.device.allocated()
    }

    fn library(&self) -> LibraryUse {
        self.device.library()
    }

    fn profile(
        &mut self,
        module: usize,
        program: ProgramKind,
        context: StepContext,
        after: &mut (dyn FnMut(&Kernel, f64) + Send),
    ) -> Result<(), DeviceError> {
        self.device.profile(module, program, context, after)
    }
}

/// Fills every buffer of a program after its last use; returns how many. `handed` are the boundaries it touches.
fn poison_dead_buffers(p: &mut Program, handed: &[(Buffer, Live)], kept: &[&String]) -> usize {
    let live = |b: &Buffer| b.live.expect("an arena buffer");
    let (mut kernels, mut bytes) = (Vec::new(), Vec::new());
    // Where each old kernel stands, and where each buffer's life ends.
    let mut at = Vec::new();
    let mut ends: Vec<Option<usize>> = vec![None; p.buffers.len()];
    for (i, k) in p.kernels.iter().enumerate() {
        at.push(kernels.len());
        kernels.push(k.clone());
        for (n, b) in p.buffers.iter().enumerate().filter(|(_, b)| live(b).last == i && !kept.contains(&&b.id)) {
            let meets = |o: &Buffer| o.offset < b.offset + b.bytes && b.offset < o.offset + o.bytes;
            let own = p.buffers.iter().map(|o| (o, live(o)));
            let mut all = own.chain(handed.iter().map(|(o, live)| (o, *live)));
            if all.any(|(o, live)| o.id != b.id && live.first == i && meets(o)) {
                continue;
            }
            // Bits are filled as the bytes that they lie in.
            let target = match b.dtype {
                DType::Bit => {
                    let (id, shape, at) = (format!("{}.bytes", b.id), Dims(vec![b.bytes]), kernels.len());
                    let live = Some(Live { first: at, last: at });
                    bytes.push(Buffer { id, dtype: DType::U8, shape, order: None, live, ..b.clone() });
                    &bytes[bytes.len() - 1]
                }
                DType::F32 | DType::I32 | DType::U8 => {
                    ends[n] = Some(kernels.len());
                    b
                }
            };
            let (space, to) = (Dims(vec![target.count()]), View::new(target.id.clone(), vec![1]));
            let run = KernelOp::Fill(Fill { space, value: poison(target.dtype), to });
            kernels.push(Kernel { id: format!("poison{n}"), phase: Phase::Update, nodes: vec![], flops: 0, run });
        }
    }
    for (n, b) in p.buffers.iter_mut().enumerate() {
        let l = live(b);
        let last = if kept.contains(&&b.id) { kernels.len() - 1 } else { at[l.last] };
        b.live = Some(Live { first: at[l.first], last: ends[n].unwrap_or(last) });
    }
    p.kernels = kernels;
    let filled = ends.iter().flatten().count() + bytes.len();
    p.buffers.extend(bytes);
    filled
}

/// The boundaries that a program touches.
fn handed(plan: &Plan, module: usize, p: &Program) -> Vec<(Buffer, Live)> {
    plan.handed(module, p).into_iter().map(|(b, live)| (b.clone(), live)).collect()
}

fn poisoned_plan(plan: &Plan) -> Plan {
    let old = plan;
    let mut plan = plan.clone();
    for m in &mut plan.modules {
        let o = &m.eval_outputs;
        let (step, eval) = (handed(old, m.index, &m.step), handed(old, m.index, &m.eval));
        let filled = poison_dead_buffers(&mut m.step, &step, &[])
            + poison_dead_buffers(&mut m.eval, &eval, &[&o.logits, &o.loss, &o.correct]);
        assert!(filled > 10, "module {}: {filled} buffers filled", m.index);
    }
    slrc_plan::validate::validate(&plan).expect("sound");
    plan
}

/// Bits of everything two steps and an inference leave and report.
fn run(c: &Compiled, file: &OnnxFile, device: Box<dyn Device>) -> Vec<u32> {
    let mut session = session(c, device, &weights(c, file), &Batch::random(c, 4));
    let mut numbers: Vec<f32> = Vec::new();
    for s in 0..2 {
        for m in session.pass(s, 2).expect("step") {
            numbers.extend([m.loss, m.accuracy]);
            numbers.extend(m.boundary.iter().flat_map(|b| [b.discord, b.cosine, b.ratio]));
        }
    }
    let state = [session.parameters().expect("read"), session.optimizer_state().expect("read")].concat();
    numbers.extend(state.into_iter().flat_map(|t| t.data));
    let (reports, logits) = session.eval().expect("inference");
    numbers.extend(reports.into_iter().flat_map(|r| [r.loss, r.correct].concat()).chain(logits));
    numbers.into_iter().map(f32::to_bits).collect()
}

fn open(model: &str) -> OnnxFile {
    OnnxFile::open(&support::root().join("models").join(model).join("model.onnx")).expect("model")
}

#[test]
fn memory_that_is_not_live_is_never_read() {
    for (model, spec) in [
        ("mnist_cnn", "partition: {modules: 3}\nhead: {kind: conv}"),
        ("mnist_cnn", "partition: {modules: 2}\nreconcile: {mode: exact}\nhead: {kind: mlp-sr}"),
        ("mnist_deep8", "partition: {per-layer: true}\nreconcile: {mode: bp-free, distance: squared}"),
        ("mnist_mlp", "partition: {modules: 1}\noptimizer: {kind: adamw}"),
        ("mnist_vit", "partition: {modules: 2}\nreconcile: {mode: tangent}"),
        ("tokens_bert", "partition: {modules: 3}"),
    ] {
        let file = open(model);
        let c = compile_spec(&file, spec, BATCH);
        let plain = run(&c, &file, Box::new(CpuDevice::load(&c.plan, None).expect("device")));
        assert!(plain.iter().all(|&x| f32::from_bits(x).is_finite()), "{model}: the run itself is not finite");
        let before = run(&c, &file, Box::new(Poisoned::load(&c.plan)));
        assert!(before == plain, "{model} {spec}: what the arena held before a program matters");
        let doctored = Compiled { plan: poisoned_plan(&c.plan), ..c };
        let within = run(&doctored, &file, Box::new(Poisoned::load(&doctored.plan)));
        assert!(within == plain, "{model} {spec}: what a dead buffer holds matters");
    }
}

/// The check sees a buffer that is given up too early: each of a module's buffers that several kernels read, its life
/// ended before the last of them.
#[test]
fn a_life_that_ends_too_early_is_noticed() {
    let file = open("mnist_mlp");
    let c = compile_spec(&file, "partition: {modules: 2}", BATCH);
    let plain = run(&c, &file, Box::new(CpuDevice::load(&c.plan, None).expect("device")));
    let mut tried = 0;
    for n in 0..c.plan.modules[1].step.buffers.len() {
        let mut plan = c.plan.clone();
        let boundaries = handed(&plan, 2, &plan.modules[1].step);
        let p = &mut plan.modules[1].step;
        let (id, live) = (p.buffers[n].id.clone(), p.buffers[n].live.expect("an arena buffer"));
        let reads = |k: &Kernel| k.run.operands().iter().any(|o| o.access == Access::Read && o.view.buffer == id);
        if live.last == live.first || !reads(&p.kernels[live.last]) {
            continue;
        }
        p.buffers[n].live = Some(Live { first: live.first, last: live.last - 1 });
        poison_dead_buffers(p, &boundaries, &[]);
        let doctored = Compiled { plan, ..c.clone() };
        let device = Box::new(CpuDevice::load(&doctored.plan, None).expect("device"));
        assert!(run(&doctored, &file, device) != plain, "{id} is not needed by its last reader");
        tried += 1;
    }
    assert!(tried > 10, "{tried} buffers tried");
}
