//! Lays out everything outside the arenas and writes the plan down.

use std::collections::BTreeSet;

use slrc_plan::buffer::align;
use slrc_plan::plan::{
    BoundaryDecl, BoundaryMetrics, CarriedDecl, ConstantDecl, EvalOutputs, FORMAT, InputDecl, LabelsDecl, Memory,
    Metrics, ModelInfo, ModulePlan, OptimizerDecl, ParameterDecl, Plan, Program, Role, Settings,
};
use slrc_plan::schedule::StepScalar;
use slrc_plan::{Buffer, DType, Dims, Space};

use crate::fuse::layout::{boundary_order, variable_order};
use crate::ir::graph::{Graph, InputKind, RootKind, VarId, VarKind};
use crate::ir::op::Op;
use crate::ir::types::Type;
use crate::loss::class_dimension;
use crate::lower::{Draft, Names};
use crate::memory::Arena;
use crate::step::{parameter_counts, report};

/// A module ready to be written down.
#[derive(Clone, Debug)]
pub struct CompiledModule {
    /// Its training graph, closed.
    pub train: Graph,
    /// Its inference graph, closed.
    pub eval: Graph,
    /// Kind of its head.
    pub head: &'static str,
    /// Names of the variables the head brought.
    pub head_variables: BTreeSet<String>,
    /// First ONNX node.
    pub first: String,
    /// Last ONNX node.
    pub last: String,
    /// ONNX names of what it hands on, its output first; none of the last module.
    pub outputs: Vec<String>,
    /// Training kernels and their arena.
    pub step: (Draft, Arena),
    /// Inference kernels and their arena.
    pub inference: (Draft, Arena),
}

/// Gives consecutive places in one space.
struct SpaceLayout {
    space: Space,
    end: usize,
}

impl SpaceLayout {
    fn new(space: Space) -> SpaceLayout {
        SpaceLayout { space, end: 0 }
    }

    fn add(&mut self, id: String, ty: &Type, order: Vec<usize>) -> Buffer {
        let identity: Vec<usize> = (0..ty.rank()).collect();
        let offset = self.end;
        self.end += align(ty.bytes());
        Buffer {
            id,
            space: self.space,
            dtype: ty.dtype,
            shape: Dims(ty.shape.clone()),
            order: (order != identity).then(|| Dims(order.clone())),
            offset,
            bytes: ty.bytes(),
            live: None,
        }
    }
}

/// Writes the plan.
pub fn assemble(model: ModelInfo, settings: Settings, modules: &[CompiledModule], names: &Names) -> Plan {
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut memory = Memory::default();
    let (parameters, optimizer_state) = variables(modules, names, &mut buffers, &mut memory);
    let constants = constants(names, &mut buffers, &mut memory);
    let (inputs, labels) = inputs(modules, &mut buffers, &mut memory);
    let scalars = scalars(names, &mut buffers, &mut memory);
    for m in modules {
        memory.arena = memory.arena.max(m.step.1.bytes);
        memory.eval_arena = memory.eval_arena.max(m.inference.1.bytes);
    }
    let arena = memory.of(Space::Arena);
    let boundaries = boundaries(modules, &mut buffers, arena);
    let mut metric_space = SpaceLayout::new(Space::Metric);
    let mut plans = Vec::new();
    for (i, m) in modules.iter().enumerate() {
        let index = i + 1;
        let metrics = metrics(m, index, &mut buffers, &mut metric_space);
        let (all, head) = parameter_counts(&m.train, &m.head_variables);
        let eval_report = |name: &str| m.inference.0.reports[name].clone();
        plans.push(ModulePlan {
            index,
            first: m.first.clone(),
            last: m.last.clone(),
            parameters: all,
            head: m.head.to_string(),
            head_parameters: head,
            metrics,
            step: program(&m.step, index, arena),
            eval: program(&m.inference, index, arena),
            eval_outputs: EvalOutputs {
                logits: eval_report(report::LOGITS),
                loss: eval_report(report::SAMPLE_LOSS),
                correct: eval_report(report::SAMPLE_CORRECT),
            },
        });
    }
    memory.metric = metric_space.end;
    Plan {
        format: FORMAT.into(),
        model,
        settings,
        kernels_sha256: None,
        memory,
        inputs,
        labels,
        scalars,
        parameters,
        optimizer_state,
        constants,
        boundaries,
        buffers,
        modules: plans,
    }
}

/// Whether a module takes the arena upside down: what it receives lies where the module before has put it.
fn turned(module: usize) -> bool {
    module.is_multiple_of(2)
}

/// A program of a module, in an arena that ends at `end`.
fn program((draft, arena): &(Draft, Arena), module: usize, end: usize) -> Program {
    let mut buffers = arena.buffers.clone();
    for (b, &at_top) in buffers.iter_mut().zip(&arena.at_top) {
        if at_top {
            b.offset += end - arena.bytes;
        }
        if turned(module) {
            b.offset = end - b.offset - align(b.bytes);
        }
    }
    Program {
        arena_bytes: arena.bytes,
        live_bytes: arena.live_bytes,
        flops: draft.kernels.iter().map(|k| k.flops).sum(),
        buffers,
        kernels: draft.kernels.clone(),
        launches: Vec::new(),
    }
}

fn variables(
    modules: &[CompiledModule],
    names: &Names,
    buffers: &mut Vec<Buffer>,
    memory: &mut Memory,
) -> (Vec<ParameterDecl>, Vec<OptimizerDecl>) {
    let mut parameter_space = SpaceLayout::new(Space::Parameter);
    let mut optimizer_space = SpaceLayout::new(Space::Optimizer);
    let (mut parameters, mut optimizer): (Vec<ParameterDecl>, Vec<OptimizerDecl>) = (Vec::new(), Vec::new());
    for (i, m) in modules.iter().enumerate() {
        for g in [&m.train, &m.eval] {
            for (v, var) in g.variables.iter().enumerate() {
                let Some(id) = names.variables.get(&var.name) else { continue };
                if parameters.iter().any(|p| p.name == var.name) || optimizer.iter().any(|o| o.name == var.name) {
                    continue;
                }
                let order = variable_order(g, VarId(v as u32));
                let role = match var.kind {
                    VarKind::Weight => Role::Weight,
                    VarKind::RunningStatistic => Role::RunningStatistic,
                    VarKind::Frozen => Role::Frozen,
                    VarKind::Optimizer => {
                        buffers.push(optimizer_space.add(id.clone(), &var.ty, order));
                        optimizer.push(OptimizerDecl { name: var.name.clone(), buffer: id.clone(), module: i + 1 });
                        continue;
                    }
                };
                buffers.push(parameter_space.add(id.clone(), &var.ty, order));
                parameters.push(ParameterDecl { name: var.name.clone(), buffer: id.clone(), role, module: i + 1 });
            }
        }
    }
    memory.parameter = parameter_space.end;
    memory.optimizer = optimizer_space.end;
    (parameters, optimizer)
}

fn constants(names: &Names, buffers: &mut Vec<Buffer>, memory: &mut Memory) -> Vec<ConstantDecl> {
    let mut space = SpaceLayout::new(Space::Constant);
    let mut out = Vec::new();
    for (c, id) in names.constants() {
        buffers.push(space.add(id.clone(), &c.ty, (0..c.ty.rank()).collect()));
        out.push(ConstantDecl { name: id.clone(), buffer: id });
    }
    memory.constant = space.end;
    out
}

fn inputs(modules: &[CompiledModule], buffers: &mut Vec<Buffer>, memory: &mut Memory) -> (Vec<InputDecl>, LabelsDecl) {
    let mut space = SpaceLayout::new(Space::Input);
    let mut out: Vec<InputDecl> = Vec::new();
    for m in modules {
        for g in [&m.train, &m.eval] {
            for input in g.inputs.iter().filter(|i| i.kind == InputKind::Data) {
                let bound = index_bound(g, &input.name);
                if let Some(seen) = out.iter_mut().find(|i| i.name == input.name) {
                    seen.index_below = seen.index_below.into_iter().chain(bound).min();
                    continue;
                }
                let id = Names::data(&input.name);
                buffers.push(space.add(id.clone(), &input.ty, (0..input.ty.rank()).collect()));
                out.push(InputDecl { name: input.name.clone(), buffer: id, index_below: bound });
            }
        }
    }
    let labels = modules.iter().find_map(|m| m.train.input_of(InputKind::Labels).map(|i| &m.train.inputs[i.index()]));
    let ty = labels.map_or(Type::new(DType::I32, []), |l| l.ty.clone());
    let classes = modules.last().and_then(|m| {
        let logits = m.eval.ty(m.eval.root(|k| *k == RootKind::Report(report::LOGITS.into()))?);
        Some(logits.shape[class_dimension(logits)])
    });
    buffers.push(space.add(Names::labels(), &ty, (0..ty.rank()).collect()));
    memory.input = space.end;
    (out, LabelsDecl { buffer: Names::labels(), classes: classes.unwrap_or(1), ignored: None })
}

/// Rows of the smallest table a data input indexes.
fn index_bound(g: &Graph, input: &str) -> Option<usize> {
    g.ids()
        .filter_map(|id| {
            let n = g.node(id);
            let rows = match &n.op {
                Op::Gather(_) => g.shape(n.operands[0])[0],
                Op::ScatterAdd(s) => s.rows,
                _ => return None,
            };
            let mut at = n.operands[1];
            while let Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) = g.node(at).op {
                at = g.node(at).operands[0];
            }
            matches!(g.node(at).op, Op::Input(i) if g.inputs[i.index()].name == input).then_some(rows)
        })
        .min()
}

fn scalars(names: &Names, buffers: &mut Vec<Buffer>, memory: &mut Memory) -> Vec<StepScalar> {
    let mut space = SpaceLayout::new(Space::Scalar);
    let mut out = Vec::new();
    for (s, id) in &names.scalars {
        buffers.push(space.add(id.clone(), &Type::f32([]), Vec::new()));
        let (name, schedule) = (s.name.clone(), s.schedule.clone());
        out.push(StepScalar { name, buffer: id.clone(), schedule, pass: s.pass });
    }
    memory.scalar = space.end;
    out
}

/// What modules hand on lies at the upper end of their arena, which is the lower one where it is turned: `x` outermost.
fn boundaries(modules: &[CompiledModule], buffers: &mut Vec<Buffer>, arena: usize) -> Vec<BoundaryDecl> {
    let mut out = Vec::new();
    for (i, m) in modules.iter().enumerate() {
        if m.outputs.is_empty() {
            continue;
        }
        let index = i + 1;
        let mut end = SpaceLayout::new(Space::Arena);
        let mut add = |id: String, ty: &Type| {
            let mut b = end.add(id.clone(), ty, boundary_order(ty.rank()));
            if !turned(index) {
                b.offset = arena - b.offset - align(b.bytes);
            }
            buffers.push(b);
            id
        };
        let mut all = |id: &dyn Fn(usize, usize) -> String, kind: &dyn Fn(usize) -> RootKind| -> Vec<Option<String>> {
            let root = |i| m.train.root(|k| *k == kind(i)).map(|r| m.train.ty(r).clone());
            (0..m.outputs.len()).map(|i| root(i).map(|ty| add(id(index, i), &ty))).collect()
        };
        let x = all(&Names::boundary, &RootKind::Boundary);
        let e = all(&Names::boundary_gradient, &RootKind::OutputGradient);
        let mut tensors = m.outputs.iter().zip(x).zip(e).map(|((value, x), e)| {
            let x = x.expect("invariant: a module hands on all its outputs");
            CarriedDecl { value: value.clone(), x, e }
        });
        let CarriedDecl { value, x, e } = tensors.next().expect("invariant: it has one");
        out.push(BoundaryDecl { index, value, x, e, carried: tensors.collect() });
    }
    out
}

fn metrics(m: &CompiledModule, index: usize, buffers: &mut Vec<Buffer>, space: &mut SpaceLayout) -> Metrics {
    let mut metric = |name: &str| {
        let id = m.step.0.reports.get(name)?.clone();
        buffers.push(space.add(id.clone(), &Type::f32([]), Vec::new()));
        Some(id)
    };
    let own = |name: &str| Names::metric(index, name);
    let loss = metric(report::LOSS).unwrap_or_else(|| own(report::LOSS));
    let accuracy = metric(report::ACCURACY).unwrap_or_else(|| own(report::ACCURACY));
    let boundary = (|| {
        Some(BoundaryMetrics {
            discord: metric(report::DISCORD)?,
            cosine: metric(report::COSINE)?,
            ratio: metric(report::RATIO)?,
        })
    })();
    Metrics { loss, accuracy, boundary }
}
