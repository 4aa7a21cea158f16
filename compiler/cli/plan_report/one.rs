//! The same network as one module, compiled again from what a plan folder holds: end-to-end backpropagation, for
//! comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::{
    ColumnSums, Convolution, OptimizerFile, OptimizerKind, PartitionFile, Prologues, Recompute, SpecFile,
};
use slrc_plan::kernel::{ConvAlgorithm, KernelOp};
use slrc_plan::plan::{Plan, Role, files};

use crate::compile::compile_shown;

/// Plans of one module, or why there are none.
pub(super) enum One {
    /// The plan is one itself.
    Itself,
    /// With nothing computed again, and with elementwise work computed again.
    Compiled { plain: Box<Plan>, recomputing: Box<Plan> },
    /// Why it cannot be compiled.
    Unknown(String),
}

impl One {
    pub(super) fn of(plan: &Plan, folder: &Path) -> One {
        if plan.modules.len() == 1 {
            return One::Itself;
        }
        let both = compiled(plan, folder, Recompute::None)
            .and_then(|plain| Ok((plain, compiled(plan, folder, Recompute::Elementwise)?)));
        match both {
            Ok((plain, recomputing)) => One::Compiled { plain: Box::new(plain), recomputing: Box::new(recomputing) },
            Err(why) => One::Unknown(why),
        }
    }
}

fn compiled(plan: &Plan, folder: &Path, recompute: Recompute) -> Result<Plan, String> {
    let path = folder.join(files::MODEL);
    if !path.exists() {
        return Err(format!("{} is not in the plan's folder", files::MODEL));
    }
    // Paths of this machine are no part of a page.
    let plain = |text: String| text.replace(&path.display().to_string(), files::MODEL);
    let file = OnnxFile::open(&path).map_err(|e| plain(e.to_string()))?;
    let spec = spec(plan, recompute)?;
    let mut planner = Planner::new(&file, &spec).map_err(|e| plain(e.to_string()))?;
    let one = compile_shown(&mut planner, &spec.partition, "1 module").map_err(|e| plain(e.to_string()))?.plan;
    if tensors(&one, false) == tensors(plan, true) {
        return Ok(one);
    }
    Err(format!("{} has other weights than the plan, or weights were tied that it does not say of", files::MODEL))
}

/// What of a spec a plan's memory as one module depends on.
fn spec(plan: &Plan, recompute: Recompute) -> Result<SpecFile, String> {
    let batch = plan.settings.batch;
    let mut shapes = BTreeMap::new();
    for input in &plan.inputs {
        let b = plan.buffers.iter().find(|b| b.id == input.buffer);
        let extents = b.map(|b| b.shape.to_vec()).unwrap_or_default();
        if extents.first() != Some(&batch) {
            return Err(format!("input \"{}\" does not begin with the batch", input.name));
        }
        let rest: String = extents[1..].iter().map(|n| format!("x{n}")).collect();
        shapes.insert(input.name.clone(), format!("N{rest}"));
    }
    let frozen = plan.parameters.iter().filter(|p| p.role == Role::Frozen);
    Ok(SpecFile {
        batch: Some(plan.settings.samples()),
        micro_batches: Some(plan.settings.micro_batches),
        shapes,
        output: Some(plan.model.output.clone()),
        freeze: frozen.map(|p| p.name.clone()).collect(),
        partition: PartitionFile { modules: Some(1), ..PartitionFile::default() },
        optimizer: optimizer(&plan.settings.optimizer)?,
        recompute: Some(recompute),
        prologues: Some(if makes(plan) { Prologues::Products } else { Prologues::Kernels }),
        column_sums: Some(if reduces(plan) { ColumnSums::Products } else { ColumnSums::Kernels }),
        convolution: Some(if transforms(plan) { Convolution::Auto } else { Convolution::Direct }),
        target: Some(plan.settings.target.clone()),
        precision: Some(plan.settings.precision),
        ..SpecFile::default()
    })
}

/// Whether a plan computes a convolution otherwise than directly.
fn transforms(plan: &Plan) -> bool {
    let kernels = plan.modules.iter().flat_map(|m| m.step.kernels.iter().chain(&m.eval.kernels));
    kernels.into_iter().any(|k| matches!(&k.run, KernelOp::Conv(c) if c.algorithm != ConvAlgorithm::Direct))
}

/// Whether a plan reduces columns of products in their kernels.
fn reduces(plan: &Plan) -> bool {
    let mut kernels = plan.modules.iter().flat_map(|m| &m.step.kernels);
    kernels.any(|k| k.run.product().and_then(|p| p.epilogue).is_some_and(|r| !r.reduce.is_empty()))
}

/// Whether products of a plan make operands as they read them.
fn makes(plan: &Plan) -> bool {
    plan.modules.iter().flat_map(|m| &m.step.kernels).any(|k| !k.run.made().is_empty())
}

/// The optimizer as a plan's settings state it.
fn optimizer(text: &str) -> Result<OptimizerFile, String> {
    let unknown = || format!("the plan's optimizer \"{text}\" is not one of this slrc's");
    let mut out = OptimizerFile::default();
    for word in text.split(' ') {
        let number = |s: &str| s.parse::<f64>().map_err(|_| unknown());
        match word.split_once('=') {
            None => match word {
                "sgd" => out.kind = Some(OptimizerKind::Sgd),
                "adamw" => out.kind = Some(OptimizerKind::AdamW),
                "nesterov" => out.nesterov = Some(true),
                _ => return Err(unknown()),
            },
            Some(("lr", x)) => out.lr = Some(number(x)?),
            Some(("momentum", x)) => out.momentum = Some(number(x)?),
            Some(("weight-decay", x)) => out.weight_decay = Some(number(x)?),
            Some(("eps", x)) => out.eps = Some(number(x)?),
            Some(("betas", x)) => {
                let (a, b) = x.split_once(',').ok_or_else(unknown)?;
                out.betas = Some([number(a)?, number(b)?]);
            }
            Some(_) => return Err(unknown()),
        }
    }
    if out.kind.is_some() { Ok(out) } else { Err(unknown()) }
}

/// Names and shapes of the network's own tensors.
fn tensors(plan: &Plan, with_heads: bool) -> BTreeSet<(&str, Vec<usize>)> {
    let local = |name: &str| {
        let head = name.strip_prefix("head.").and_then(|rest| rest.split('.').next());
        head.and_then(|k| k.parse().ok()).is_some_and(|k: usize| with_heads && (1..plan.modules.len()).contains(&k))
    };
    let own = plan.parameters.iter().filter(|p| !local(&p.name));
    own.filter_map(|p| {
        let b = plan.buffers.iter().find(|b| b.id == p.buffer)?;
        Some((p.name.as_str(), b.shape.to_vec()))
    })
    .collect()
}
