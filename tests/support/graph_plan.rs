//! Plans of single graphs, to run any graph on a device.

use slrc_compiler::ir::graph::{Input, RootKind, VarKind};
use slrc_compiler::ir::{Builder, Graph, Root, Tensor};
use slrc_compiler::lower::{Convolutions, Names, Products, Program as Kind};
use slrc_compiler::pipeline::program;
use slrc_compiler::simplify::{Mode, close, specialise};
use slrc_plan::buffer::{Live, align};
use slrc_plan::plan::{
    EvalOutputs, FORMAT, LabelsDecl, Memory, Metrics, ModelInfo, ModulePlan, ParameterDecl, Plan, Program, Role,
    Settings,
};
use slrc_plan::{Buffer, DType, Dims, Precision, Space};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::device::{Device, ProgramKind, StepContext};
use slrc_runtime::reorder::{to_memory, to_row_major};

fn buffer(id: &str, space: Space, dtype: DType, shape: &[usize], order: Option<Vec<usize>>, end: &mut usize) -> Buffer {
    let bytes = dtype.bytes(shape.iter().product());
    let b = Buffer {
        id: id.into(),
        space,
        dtype,
        shape: Dims(shape.to_vec()),
        order: order.map(Dims),
        offset: *end,
        bytes,
        live: None,
    };
    *end += align(bytes);
    b
}

/// A graph's first root as a plan of one eval program, with everything to be written before it runs.
pub(crate) struct GraphPlan {
    pub(crate) plan: Plan,
    /// Source for a CUDA device.
    pub(crate) kernels: Option<String>,
    written: Vec<(Buffer, Vec<u8>)>,
    result: Buffer,
}

/// The first root's value, computed by the CPU device in one eval program; `inputs` and `variables` in table order.
pub(crate) fn run_on_cpu(g: &Graph, inputs: &[Tensor], variables: &[Tensor], threads: usize) -> Tensor {
    let planned = GraphPlan::new(g, inputs, variables, "cpu");
    let mut device = CpuDevice::load(&planned.plan, Some(threads)).expect("device");
    planned.run(&mut device)
}

impl GraphPlan {
    /// Runs the plan on a device that has loaded it.
    pub(crate) fn run(&self, device: &mut dyn Device) -> Tensor {
        for (b, bytes) in &self.written {
            device.write(b, &to_memory(b, bytes)).expect("write");
        }
        device.run(1, ProgramKind::Eval, StepContext { seed: 0, pass: 0 }).expect("run");
        let b = &self.result;
        let data = to_row_major(b, &device.read(b).expect("read"))
            .chunks_exact(4)
            .map(|x| f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]])))
            .collect();
        Tensor::new(b.shape.0.clone(), data)
    }

    /// Plans for a target, such as `cpu` or `cuda:sm_80`.
    pub(crate) fn new(g: &Graph, inputs: &[Tensor], variables: &[Tensor], target: &str) -> GraphPlan {
        Self::making(g, inputs, variables, target, Precision::F32, 0)
    }

    /// As [`GraphPlan::new`], with operands of products rounded, and made of `made_of` tensors of their size at most,
    /// as they are read.
    pub(crate) fn making(
        g: &Graph,
        inputs: &[Tensor],
        variables: &[Tensor],
        target: &str,
        precision: Precision,
        made_of: usize,
    ) -> GraphPlan {
        let cpu = target == "cpu";
        let convolutions = if cpu { Convolutions::Fastest } else { Convolutions::Tiled };
        let products = Products { convolutions, columns: !cpu, made_of };
        Self::of(g, inputs, variables, target, precision, products)
    }

    /// As [`GraphPlan::making`], with all that is to be said of products.
    pub(crate) fn of(
        g: &Graph,
        inputs: &[Tensor],
        variables: &[Tensor],
        target: &str,
        precision: Precision,
        products: Products,
    ) -> GraphPlan {
        let given = g;
        let mut g = specialise(g, Mode::Train);
        let value = g.roots[0].value;
        let value = Builder::new(&mut g).number(value);
        g.roots = vec![Root { kind: RootKind::Report("y".into()), value }];
        let g = close(&g);
        let mut names = Names::default();
        let (draft, arena) = program(&g, 1, Kind::Eval, products, &mut names);
        let y = draft.reports["y"].clone();
        let mut buffers = Vec::new();
        let mut memory = Memory { eval_arena: arena.bytes, ..Memory::default() };
        // Written straight to the device: they are no batch of samples.
        for i in &g.inputs {
            buffers.push(buffer(&Names::input(i, 1), Space::Input, i.ty.dtype, &i.ty.shape, None, &mut memory.input));
        }
        buffers.push(buffer("labels", Space::Input, DType::I32, &[1], None, &mut memory.input));
        let mut parameters = Vec::new();
        for (i, v) in g.variables.iter().enumerate() {
            let id = names.variable(&v.name);
            let order = slrc_compiler::fuse::layout::variable_order(&g, slrc_compiler::ir::graph::VarId(i as u32));
            assert_eq!(v.kind, VarKind::Weight);
            buffers.push(buffer(&id, Space::Parameter, v.ty.dtype, &v.ty.shape, Some(order), &mut memory.parameter));
            parameters.push(ParameterDecl { name: v.name.clone(), buffer: id, role: Role::Weight, module: 1 });
        }
        for (c, id) in names.constants() {
            buffers.push(buffer(&id, Space::Constant, c.ty.dtype, &c.ty.shape, None, &mut memory.constant));
        }
        for (_, id) in &names.scalars {
            buffers.push(buffer(id, Space::Scalar, DType::F32, &[], None, &mut memory.scalar));
        }
        for id in ["m1.loss", "m1.accuracy"] {
            buffers.push(buffer(id, Space::Metric, DType::F32, &[], None, &mut memory.metric));
        }
        let empty =
            Program { arena_bytes: 0, live_bytes: 0, flops: 0, buffers: vec![], kernels: vec![], launches: vec![] };
        // What a session would read, and nothing writes: the value itself is read from the device.
        let live = Some(Live { first: 0, last: draft.kernels.len() - 1 });
        let reports = ["logits", "loss", "correct"]
            .map(|id| Buffer { live, ..buffer(id, Space::Arena, DType::F32, &[1], None, &mut memory.eval_arena) });
        let eval = Program {
            arena_bytes: memory.eval_arena,
            live_bytes: arena.live_bytes,
            flops: 0,
            buffers: [arena.buffers, reports.to_vec()].concat(),
            kernels: draft.kernels,
            launches: vec![],
        };
        let mut plan = Plan {
            format: FORMAT.into(),
            model: ModelInfo { name: "graph".into(), sha256: String::new(), output: "y".into() },
            settings: Settings {
                micro_batches: 1,
                spec_sha256: String::new(),
                target: target.into(),
                precision,
                batch: 1,
                seed: 0,
                repairs: Vec::new(),
                partition: String::new(),
                reconcile: String::new(),
                distance: String::new(),
                optimizer: String::new(),
            },
            kernels_sha256: None,
            memory,
            inputs: vec![],
            labels: LabelsDecl { buffer: "labels".into(), classes: 1, ignored: None },
            scalars: vec![],
            parameters,
            optimizer_state: vec![],
            constants: vec![],
            boundaries: vec![],
            buffers: buffers.clone(),
            modules: vec![ModulePlan {
                index: 1,
                first: String::new(),
                last: String::new(),
                parameters: 0,
                head: "network".into(),
                head_parameters: 0,
                metrics: Metrics { loss: "m1.loss".into(), accuracy: "m1.accuracy".into(), boundary: None },
                step: empty,
                eval,
                eval_outputs: EvalOutputs { logits: "logits".into(), loss: "loss".into(), correct: "correct".into() },
            }],
        };
        let kernels = target.starts_with("cuda").then(|| slrc_compiler::emit::cuda::emit(&mut plan));
        slrc_plan::validate::validate(&plan)
            .unwrap_or_else(|e| panic!("{e}\n{}", slrc_plan::yaml::to_string(&plan).expect("yaml")));
        let mut written = Vec::new();
        let mut put = |id: &str, t: &[f64]| {
            let b = buffers.iter().find(|b| b.id == id).expect("buffer");
            let bytes: Vec<u8> = match b.dtype {
                DType::F32 => t.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
                DType::I32 => t.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
                DType::U8 => t.iter().map(|&x| x as u8).collect(),
                DType::Bit => unreachable!("bits live within a program"),
            };
            written.push((b.clone(), bytes));
        };
        for (i, t) in g.inputs.iter().zip(inputs_for(&g, inputs)) {
            put(&Names::input(i, 1), &t.data);
        }
        for v in &g.variables {
            let t = &variables[given.variable(&v.name).expect("variables keep their names").index()];
            put(&names.variable(&v.name), &t.data);
        }
        for (c, id) in names.constants() {
            put(&id, &c.data);
        }
        for (s, id) in &names.scalars {
            put(id, &[s.schedule.at(0, 1)]);
        }
        let result = plan.modules[0].eval.buffers.iter().find(|b| b.id == y).expect("result").clone();
        GraphPlan { plan, kernels, written, result }
    }
}

/// Closing a graph may drop inputs: those left, matched by name `x<i>`.
fn inputs_for<'a>(g: &'a Graph, inputs: &'a [Tensor]) -> impl Iterator<Item = &'a Tensor> {
    g.inputs.iter().map(move |i: &Input| {
        let at: usize = i.name.strip_prefix('x').and_then(|n| n.parse().ok()).expect("inputs are named x0, x1, ..");
        &inputs[at]
    })
}
