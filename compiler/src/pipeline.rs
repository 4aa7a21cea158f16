//! The pipeline: every stage in order, verified after each.

use slrc_plan::plan::{ModelInfo, Plan, Settings};
use slrc_plan::validate::{InvalidPlan, validate};

use crate::budget::{self, OverBudget};
use crate::costs::{Costs, Known, pieces};
use crate::emit::{CompiledModule, assemble, cuda};
use crate::fuse::epilogues::attach;
use crate::fuse::items::{Items, collect};
use crate::fuse::layout::{Layouts, layout};
use crate::fuse::merge::merge;
use crate::fuse::store::store;
use crate::fuse::sums;
use crate::heads;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;
use crate::ir::verify::{Spec as VerifySpec, VerifyError, verify};
use crate::loss::class_dimension;
use crate::lower::{Draft, Names, Products, Program, Purpose, lower};
use crate::memory::{Arena, Ends, bring_near, place};
use crate::onnx::OnnxError;
use crate::onnx::diagnose::quantized;
use crate::onnx::file::{OnnxFile, sha256_hex};
use crate::onnx::import::{Imported, import};
use crate::onnx::place::put_in_place;
use crate::onnx::repair::{Repaired, repair};
use crate::parallel;
use crate::partition::{
    Candidate, Candidates, IsolationError, PartitionError, Partitioned, apply, candidates, check_path, choose,
    module_graph, verify_isolation,
};
use crate::schedule::schedule;
use crate::size::Size;
use crate::spec::{OptimizerRule, PartitionFile, PartitionSpec, Spec, SpecError, SpecFile, Target};
use crate::step::{self, ModuleGraphs, Place, StepError};

/// A model could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The model's fault, or something slrc does not support yet.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The spec's fault.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The cuts asked for cannot be made.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// No partition fits the memory budget.
    #[error(transparent)]
    Budget(#[from] Box<OverBudget>),
    /// A head or a reconciliation mode does not fit.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The network cannot be trained as a classifier.
    #[error("{0}")]
    Network(String),
    /// slrc's fault.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// slrc's fault.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// slrc's fault.
    #[error("internal error: the plan does not hold: {0}; please report this with the model")]
    Plan(#[from] InvalidPlan),
}

/// Result of a compilation.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// `kernels.cu`, for a CUDA target.
    pub kernels: Option<String>,
    /// The imported network.
    pub network: Imported,
    /// Every place where the network could be cut, and why not elsewhere.
    pub candidates: Candidates,
    /// The cuts taken.
    pub cuts: Vec<Candidate>,
    /// Modules, with their graphs.
    pub modules: Vec<CompiledModule>,
    /// Buffer names of variables and constants.
    pub names: Names,
    /// The resolved spec.
    pub spec: Spec,
}

/// Compiles a model. `progress` is told how many segments have been costed, and how many there are; most of them need
/// not be.
pub fn compile(
    file: &OnnxFile,
    spec_file: &SpecFile,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Compiled, CompileError> {
    Planner::new(file, spec_file)?.compile(&spec_file.partition, progress)
}

/// A model and a spec, ready to be cut in any way. What segments cost is found out once for all partitions.
pub struct Planner<'a> {
    /// As it was given, before nodes were put in place and repairs made.
    pub(crate) original: &'a OnnxFile,
    repaired: Repaired<'a>,
    spec_file: SpecFile,
    pub(crate) network: Imported,
    pub(crate) found: Candidates,
    pub(crate) known: Known,
}

impl<'a> Planner<'a> {
    /// Imports a model and finds where it can be cut.
    pub fn new(file: &'a OnnxFile, spec_file: &SpecFile) -> Result<Planner<'a>, CompileError> {
        spec_file.resolve()?;
        let options = spec_file.import_options()?;
        let placed = put_in_place(file, &options)?;
        refuse_quantized(&placed.file, spec_file.output.as_deref())?;
        let repaired = repair(placed.file, &spec_file.repair.resolve()?, spec_file.output.as_deref())?;
        let mut network = import(&repaired.file, &options)?;
        network.notes.extend(placed.notes);
        verify(&network.graph, VerifySpec::open("import"))?;
        check_network(&network)?;
        let found = cuts(&network, spec_file.partition.allow_skips.unwrap_or(0));
        Ok(Planner { original: file, repaired, spec_file: spec_file.clone(), network, found, known: Known::default() })
    }

    /// The model after repairs, with branches and steps in place: what weights are read from, and exported into.
    pub fn file(&self) -> &OnnxFile {
        &self.repaired.file
    }

    /// What was repaired, a line each.
    pub fn repairs(&self) -> &[String] {
        &self.repaired.done
    }

    /// The imported network.
    pub fn network(&self) -> &Imported {
        &self.network
    }

    /// Where it can be cut.
    pub fn candidates(&self) -> &Candidates {
        &self.found
    }

    /// How many places there are if up to 1, 2, .. `most` tensors may cross beside the one that a head reads.
    pub(crate) fn cuts_with_skips(&self, most: usize) -> Vec<usize> {
        let all = cuts(&self.network, most).cuts;
        (1..=most).map(|n| all.iter().filter(|c| c.carried.len() <= n).count()).collect()
    }

    /// Compiles with a partition, whatever the spec says of it, but for where the network can be cut. `progress` is
    /// that of [`compile`].
    pub fn compile(
        &mut self,
        partition: &PartitionFile,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Compiled, CompileError> {
        let spec_file = SpecFile { partition: partition.clone(), ..self.spec_file.clone() };
        let spec = spec_file.resolve()?;
        let Planner { network, found, known, .. } = self;
        let mut costs = Costs { network, found, spec: &spec, known, progress };
        let cuts = match spec.partition {
            PartitionSpec::Budget(bytes) => return budget::within(self, bytes, &spec_file, progress),
            _ => choose(found, &spec.partition, || pieces(network, found), &mut costs)?,
        };
        self.compile_at(cuts, &spec_file)
    }

    /// Compiles with cuts that were chosen.
    pub(crate) fn compile_at(&self, cuts: Vec<Candidate>, spec_file: &SpecFile) -> Result<Compiled, CompileError> {
        let spec = spec_file.resolve()?;
        let network = self.network.clone();
        check_lambdas(&spec, cuts.len() + 1)?;
        check_path(&network.graph, &cuts)?;
        let parts = apply(&network, &cuts);
        verify(&parts.graph, VerifySpec::open("partition"))?;
        verify_isolation(&parts)?;
        let (modules, names) = compile_modules(&network, &parts, &cuts, &spec)?;
        check_head_names(&network, &modules)?;
        let model = ModelInfo {
            name: network.graph.name.clone(),
            sha256: self.original.sha256.clone(),
            output: network.output.clone(),
        };
        let settings = settings(spec_file, &spec, network.batch, &self.repaired.done);
        let mut plan = assemble(model, settings, &modules, &names);
        plan.labels.ignored = spec.ignore_label;
        let kernels = match spec.target {
            Target::Cpu => None,
            Target::Cuda { .. } => Some(cuda::emit(&mut plan)),
        };
        validate(&plan)?;
        Ok(Compiled { plan, kernels, network, candidates: self.found.clone(), cuts, modules, names, spec })
    }
}

/// Where a network can be cut and a head can be put.
fn cuts(network: &Imported, skips: usize) -> Candidates {
    let mut found = candidates(network, skips);
    found.rule_out(&network.nodes, |c| {
        heads::missing(network.graph.shape(c.value), network.graph.ty(network.logits)).map(|m| m.to_string())
    });
    found
}

/// A network of rounded integers would be imported, and not learn.
fn refuse_quantized(file: &OnnxFile, output: Option<&str>) -> Result<(), CompileError> {
    let Some(output) = output.or_else(|| file.first_output()) else { return Ok(()) };
    let found = quantized(file, output);
    let Some((op, node)) = found.first() else { return Ok(()) };
    let more = if found.len() > 1 { format!(" and {} more", found.len() - 1) } else { String::new() };
    Err(CompileError::Network(format!(
        "the network is quantized, by \"{node}\" ({op}){more}: weights are whole numbers, or what depends on them is rounded, \
         and no gradient passes; train the network that it was made from, and quantize what slrc exports"
    )))
}

fn check_network(n: &Imported) -> Result<(), CompileError> {
    let ty = n.graph.ty(n.logits);
    if ty.shape.first().is_some_and(|&d| d != n.batch) {
        return Err(CompileError::Network(format!(
            "output \"{}\" has type {ty}, whose first extent is not the batch of {}: the shape of an input (--shape) does \
             not fit the network",
            n.output, n.batch
        )));
    }
    if !(2..=4).contains(&ty.rank()) || ty.shape[class_dimension(ty)] < 2 {
        return Err(CompileError::Network(format!(
            "output \"{}\" has type {ty}; slrc trains classifiers, whose output is [N, classes], [N, tokens, classes] or \
             [N, classes, height, width], with two classes or more; choose another with output: in the spec",
            n.output
        )));
    }
    if n.sources.is_empty() {
        return Err(CompileError::Network("the network has no weights to train".into()));
    }
    Ok(())
}

/// Weights are known by their names, so a local head's must not be one of the model's.
fn check_head_names(network: &Imported, modules: &[CompiledModule]) -> Result<(), CompileError> {
    let mut names = modules.iter().flat_map(|m| &m.head_variables);
    match names.find(|n| network.sources.contains_key(*n)) {
        None => Ok(()),
        Some(name) => Err(CompileError::Network(format!(
            "the model has a weight \"{name}\", which is the name of a weight of a local head; choose another kind of head \
             (--head) or other cuts, or rename it in the model"
        ))),
    }
}

/// Weights of single modules must be of modules that have one.
fn check_lambdas(spec: &Spec, modules: usize) -> Result<(), SpecError> {
    match spec.reconcile.lambdas.keys().find(|&&k| !(2..=modules).contains(&k)) {
        None => Ok(()),
        Some(k) => Err(SpecError {
            field: format!("reconcile.lambdas.{k}"),
            reason: match modules {
                1 => "there is only one module, and nothing to reconcile".into(),
                _ => format!("there are {modules} modules, of which 2 and later are reconciled"),
            },
        }),
    }
}

/// Fuses, schedules, lowers and places one program.
pub fn program(g: &Graph, k: usize, kind: Program, products: Products, names: &mut Names) -> (Draft, Arena) {
    let purpose = Purpose { module: k, program: kind, convolutions: products.convolutions };
    let mut draft = Fused::of(g, products).lower(g, purpose, names);
    let ends = Ends::of(g, k);
    bring_near(&mut draft, &ends);
    let arena = place(&draft, &ends);
    (draft, arena)
}

/// A program as items in their order.
struct Fused {
    layouts: Layouts,
    items: Items,
    order: Vec<usize>,
}

impl Fused {
    fn of(g: &Graph, products: Products) -> Fused {
        let mut layouts = layout(g, products.made_of);
        let mut items = collect(g, &layouts);
        merge(g, &layouts, &mut items);
        store(g, &mut layouts, &mut items);
        // What is read from memory now no longer ties regions together.
        merge(g, &layouts, &mut items);
        attach(g, &layouts, &mut items, products.columns);
        if products.columns {
            sums::attach(g, &layouts, &mut items);
        }
        let order = schedule(g, &layouts, &items);
        Fused { layouts, items, order }
    }

    fn lower(&self, g: &Graph, purpose: Purpose, names: &mut Names) -> Draft {
        lower(g, &self.layouts, &self.items, &self.order, purpose, names)
    }
}

/// A module before its buffers have names.
struct Unnamed {
    graphs: ModuleGraphs,
    /// Names of its ONNX nodes.
    nodes: Vec<String>,
    step: Fused,
    inference: Fused,
}

/// All modules, each by itself but for the names that they share.
fn compile_modules(
    network: &Imported,
    parts: &Partitioned,
    cuts: &[Candidate],
    spec: &Spec,
) -> Result<(Vec<CompiledModule>, Names), CompileError> {
    let all: Vec<usize> = (1..=cuts.len() + 1).collect();
    let fused = parallel::map(&all, |&k| fuse_module(network, parts, k, spec));
    let fused = fused.into_iter().collect::<Result<Vec<Unnamed>, _>>()?;
    let mut names = Names::default();
    let mut drafts: Vec<(Draft, Ends)> = Vec::new();
    for (&k, m) in all.iter().zip(&fused) {
        let programs = [(&m.graphs.train, &m.step, Program::Step), (&m.graphs.eval, &m.inference, Program::Eval)];
        for (g, fused, program) in programs {
            let purpose = Purpose { module: k, program, convolutions: spec.products().convolutions };
            let (mut draft, ends) = (fused.lower(g, purpose, &mut names), Ends::of(g, k));
            bring_near(&mut draft, &ends);
            drafts.push((draft, ends));
        }
    }
    let arenas = parallel::map(&drafts, |(draft, ends)| place(draft, ends));
    let mut programs = drafts.into_iter().map(|(draft, _)| draft).zip(arenas);
    let mut modules = Vec::new();
    for (k, Unnamed { graphs: ModuleGraphs { train, eval, head, head_variables }, nodes, .. }) in
        all.into_iter().zip(fused)
    {
        let (Some(step), Some(inference)) = (programs.next(), programs.next()) else {
            unreachable!("invariant: a module has two programs")
        };
        modules.push(CompiledModule {
            train,
            eval,
            head,
            head_variables,
            first: nodes.first().cloned().unwrap_or_default(),
            last: nodes.last().cloned().unwrap_or_default(),
            outputs: cuts.get(k - 1).map_or_else(Vec::new, |c| c.names().map(str::to_string).collect()),
            step,
            inference,
        });
    }
    Ok((modules, names))
}

fn fuse_module(network: &Imported, parts: &Partitioned, k: usize, spec: &Spec) -> Result<Unnamed, CompileError> {
    let module = module_graph(parts, k);
    verify(&module, VerifySpec::open("split"))?;
    let nodes = nodes_of(network, parts, k);
    let last = k == parts.boundaries.len() + 1;
    let place = Place { index: k, last, logits: parts.graph.ty(parts.logits).clone() };
    let graphs = step::build(module, &place, spec)?;
    verify(&graphs.train, VerifySpec::closed("train"))?;
    verify(&graphs.eval, VerifySpec::closed("eval"))?;
    let (step, inference) = (Fused::of(&graphs.train, spec.products()), Fused::of(&graphs.eval, spec.products()));
    Ok(Unnamed { graphs, nodes, step, inference })
}

/// Names of the ONNX nodes of module `k`, in the model's order.
fn nodes_of(network: &Imported, parts: &Partitioned, k: usize) -> Vec<String> {
    // What is only carried on was made in another module.
    let made = |id: &NodeId| parts.module[id.index()] == Some(k) && !matches!(parts.graph.node(*id).op, Op::Detach(_));
    let present: std::collections::BTreeSet<&str> =
        parts.graph.ids().filter(made).map(|id| parts.graph.origin(id)).collect();
    network.nodes.iter().filter(|n| present.contains(n.name.as_str())).map(|n| n.name.clone()).collect()
}

/// Hash of a spec: it covers what is asked for, not where files lie.
pub fn spec_sha256(file: &SpecFile) -> String {
    let mut anonymous = SpecFile { model: None, init_from: None, ..file.clone() };
    anonymous.repair.calibrate = anonymous.repair.calibrate.map(|_| String::new());
    sha256_hex(slrc_plan::yaml::to_string(&anonymous).unwrap_or_default().as_bytes())
}

fn partition_text(partition: &PartitionSpec, skips: usize) -> String {
    let how = match partition {
        PartitionSpec::Modules(k) => format!("modules {k}"),
        PartitionSpec::PerLayer => "per-layer".into(),
        PartitionSpec::At(names) => format!("at {}", names.join(", ")),
        PartitionSpec::Budget(bytes) => format!("memory-budget {}", Size(*bytes)),
    };
    if skips == 0 { how } else { format!("{how}, allow-skips {skips}") }
}

fn settings(file: &SpecFile, spec: &Spec, batch: usize, repairs: &[String]) -> Settings {
    let optimizer = match spec.optimizer.rule {
        OptimizerRule::Sgd { momentum, nesterov } => {
            let kind = if nesterov { "sgd nesterov" } else { "sgd" };
            format!(
                "{kind} lr={} momentum={momentum} weight-decay={}",
                spec.optimizer.lr.base, spec.optimizer.weight_decay
            )
        }
        OptimizerRule::AdamW { betas, eps } => format!(
            "adamw lr={} betas={},{} eps={eps} weight-decay={}",
            spec.optimizer.lr.base, betas[0], betas[1], spec.optimizer.weight_decay
        ),
    };
    Settings {
        spec_sha256: spec_sha256(file),
        target: spec.target.name(),
        precision: spec.precision,
        batch,
        micro_batches: spec.micro_batches,
        seed: spec.seed,
        repairs: repairs.to_vec(),
        partition: partition_text(&spec.partition, file.partition.allow_skips.unwrap_or(0)),
        reconcile: spec.reconcile.mode.name().into(),
        distance: spec.reconcile.distance.name().into(),
        optimizer,
    }
}
