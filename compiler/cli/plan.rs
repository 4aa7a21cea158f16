//! `slrc plan show`

use std::path::{Path, PathBuf};

use serde::Serialize;
use slrc_plan::Precision;
use slrc_plan::buffer::Space;
use slrc_plan::plan::{Plan, files};
use slrc_runtime::folder::read_plan;

use crate::args::ShowArgs;
use crate::device::{Footprint, footprint};
use crate::failure::Failure;
use crate::output;
use crate::roofline::{self, Estimate, Gpu};
use crate::table::{bytes, count, flops, table};

pub(crate) fn show(a: &ShowArgs) -> Result<(), Failure> {
    let plan = read_plan(&folder(&a.plan))?;
    let gpu = a
        .device
        .as_deref()
        .map(|name| roofline::gpu(name, plan.settings.precision).map_err(Failure::Usage))
        .transpose()?;
    if a.json {
        let mut summary = Summary::of(&plan);
        if let Some(gpu) = gpu {
            for (s, m) in summary.modules.iter_mut().zip(&plan.modules) {
                s.estimate = Some(roofline::estimate(&plan, m, gpu));
            }
        }
        let json = serde_json::to_string_pretty(&summary).map_err(|e| Failure::Run(e.to_string()))?;
        output::line(json);
    } else {
        output::print(&text(&plan));
        if let Some(gpu) = gpu {
            output::print(&estimates(&plan, gpu));
        }
    }
    Ok(())
}

/// The folder of a plan that is named by its folder or by its file.
pub(crate) fn folder(path: &Path) -> PathBuf {
    match path.file_name() {
        Some(name) if name == files::PLAN => path.parent().map_or(PathBuf::from("."), Path::to_path_buf),
        _ => path.to_path_buf(),
    }
}

/// A table of roofline estimates.
fn estimates(plan: &Plan, gpu: &Gpu) -> String {
    let ms = |s: f64| format!("{:.3} ms", s * 1e3);
    let row = |name: String, launches: usize, e: &Estimate| {
        vec![
            name,
            launches.to_string(),
            bytes(e.bytes_moved),
            ms(e.memory_seconds),
            ms(e.compute_seconds),
            ms(e.seconds()),
        ]
    };
    let mut total = (0, Estimate::default());
    let mut rows = Vec::new();
    for m in &plan.modules {
        let e = roofline::estimate(plan, m, gpu);
        let launches = if m.step.launches.is_empty() { m.step.kernels.len() } else { m.step.launches.len() };
        total.0 += launches;
        total.1.bytes_moved += e.bytes_moved;
        total.1.memory_seconds += e.memory_seconds;
        total.1.compute_seconds += e.compute_seconds;
        rows.push(row(m.index.to_string(), launches, &e));
    }
    rows.push(row("step".into(), total.0, &total.1));
    let header = ["module", "launches", "moved", "bound by memory", "bound by arithmetic", "at least"];
    let products = match plan.settings.precision {
        Precision::F32 => "f32, no tensor cores".to_string(),
        p @ (Precision::Tf32 | Precision::Bf16) => format!("products on tensor cores in {}", p.name()),
    };
    format!(
        "\nroofline estimate on {} ({products}; a bound from below, not a measurement)\n\n{}",
        gpu.title,
        table(&header, &[0, 1, 2, 3, 4, 5], rows)
    )
}

/// What `--json` prints; field names are part of the interface.
#[derive(Serialize)]
struct Summary<'a> {
    model: &'a str,
    batch: usize,
    micro_batches: usize,
    modules: Vec<ModuleSummary<'a>>,
    totals: Totals,
}

#[derive(Serialize)]
struct ModuleSummary<'a> {
    index: usize,
    name: String,
    first_node: &'a str,
    last_node: &'a str,
    parameters: usize,
    head: &'a str,
    head_parameters: usize,
    arena_bytes: usize,
    live_bytes: usize,
    eval_arena_bytes: usize,
    kernels: usize,
    flops: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
}

#[derive(Serialize)]
struct Totals {
    parameters: usize,
    parameter_bytes: usize,
    optimizer_bytes: usize,
    arena_bytes: usize,
    input_bytes: usize,
    constant_bytes: usize,
    peak_bytes: usize,
    #[serde(flatten)]
    footprint: Option<Footprint>,
    flops: u64,
}

impl Summary<'_> {
    fn of(plan: &Plan) -> Summary<'_> {
        let modules = plan
            .modules
            .iter()
            .map(|m| ModuleSummary {
                index: m.index,
                name: format!("m{}", m.index),
                first_node: &m.first,
                last_node: &m.last,
                parameters: m.parameters,
                head: &m.head,
                head_parameters: m.head_parameters,
                arena_bytes: m.step.arena_bytes,
                live_bytes: m.step.live_bytes,
                eval_arena_bytes: m.eval.arena_bytes,
                kernels: m.step.kernels.len(),
                flops: m.step.flops.saturating_mul(plan.settings.micro_batches as u64),
                estimate: None,
            })
            .collect();
        Summary {
            model: &plan.model.name,
            batch: plan.settings.samples(),
            micro_batches: plan.settings.micro_batches,
            modules,
            totals: Totals {
                parameters: plan.parameter_count(),
                parameter_bytes: plan.memory.parameter,
                optimizer_bytes: plan.memory.optimizer,
                arena_bytes: plan.memory.of(Space::Arena),
                input_bytes: plan.memory.input,
                constant_bytes: plan.memory.constant,
                peak_bytes: plan.memory.peak(),
                footprint: footprint(plan),
                flops: plan
                    .modules
                    .iter()
                    .fold(0, |sum, m| m.step.flops.saturating_add(sum))
                    .saturating_mul(plan.settings.micro_batches as u64),
            },
        }
    }
}

/// The module table and the totals.
pub(crate) fn text(plan: &Plan) -> String {
    let s = Summary::of(plan);
    let mut out = format!(
        "{}, batch {}, {}, reconcile {}{}, {}{}\n",
        s.model,
        plan.settings.batch_text(),
        plan.settings.partition,
        plan.settings.reconcile,
        if plan.settings.reconcile == "off" { String::new() } else { format!(" ({})", plan.settings.distance) },
        plan.settings.optimizer,
        match plan.settings.precision {
            Precision::F32 => String::new(),
            p @ (Precision::Tf32 | Precision::Bf16) => format!(", products in {}", p.name()),
        }
    );
    plan.settings.repairs.iter().for_each(|r| out.push_str(&format!("{r}\n")));
    out.push('\n');
    let rows = s
        .modules
        .iter()
        .map(|m| {
            vec![
                m.index.to_string(),
                m.first_node.to_string(),
                m.last_node.to_string(),
                count(m.parameters),
                m.head.to_string(),
                bytes(m.arena_bytes),
                m.kernels.to_string(),
                flops(m.flops),
            ]
        })
        .collect();
    let header = ["module", "first node", "last node", "parameters", "head", "arena", "kernels", "work a step"];
    out.push_str(&table(&header, &[0, 3, 5, 6, 7], rows));
    let t = &s.totals;
    let mut rows = vec![
        vec!["parameters".into(), bytes(t.parameter_bytes), format!("{} trained", count(t.parameters))],
        vec!["optimizer".into(), bytes(t.optimizer_bytes), String::new()],
        vec!["arena".into(), bytes(t.arena_bytes), "largest module's transients, boundaries included".into()],
        vec![
            "input".into(),
            bytes(t.input_bytes),
            if s.micro_batches == 1 { "one batch" } else { "one micro-batch" }.into(),
        ],
        vec!["peak".into(), bytes(t.peak_bytes), "all of the above".into()],
    ];
    if let Some(f) = t.footprint {
        let what = "allocated on the GPU: the peak, aligned";
        rows.push(vec!["device".into(), bytes(f.device_bytes), what.into()]);
        let what = "with --stream-modules: parameters and optimizer of two modules there, the rest on the host";
        rows.push(vec!["streamed".into(), bytes(f.streamed_device_bytes), what.into()]);
    }
    out.push('\n');
    out.push_str(&table(&["memory", "", ""], &[1], rows));
    out
}
