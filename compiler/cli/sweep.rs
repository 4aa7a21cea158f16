//! `slrc plan sweep`: one model's plans for several numbers of modules, side by side.

mod plot;
mod row;

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::Serialize;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::{PartitionFile, Recompute, SpecFile};
use slrc_runtime::files::write_atomic;

use crate::args::{CutArgs, SweepArgs};
use crate::compile::{Request, compile_shown};
use crate::failure::Failure;
use crate::output;
use crate::roofline::{self, Gpu};
use crate::table::{bytes, flops, table};
use row::Row;

/// Most modules where none are asked for.
const MOST_BY_DEFAULT: usize = 8;

/// Numbers of modules, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counts(BTreeSet<usize>);

impl FromStr for Counts {
    type Err = String;
    fn from_str(s: &str) -> Result<Counts, String> {
        let wrong = || format!("`{s}` is neither a range such as 1..8 nor a list such as 1,2,4,8 of numbers from 1 on");
        let number = |s: &str| s.trim().parse().ok().filter(|&n: &usize| n > 0).ok_or_else(wrong);
        let all = match s.split_once("..") {
            None => s.split(',').map(number).collect::<Result<BTreeSet<usize>, _>>()?,
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                // A network with more places to cut would take days.
                if to > 1000 {
                    return Err(wrong());
                }
                (from..=to).collect()
            }
        };
        if all.is_empty() { Err(wrong()) } else { Ok(Counts(all)) }
    }
}

/// What `--json` prints; field names are part of the interface.
#[derive(Serialize)]
struct Sweep<'a> {
    model: String,
    batch: usize,
    micro_batches: usize,
    target: String,
    reconcile: &'static str,
    /// Most modules there can be.
    most_modules: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a str>,
    plans: Vec<Row>,
}

pub(crate) fn run(a: &SweepArgs) -> Result<(), Failure> {
    let request = Request::new(a.spec.as_deref(), a.model.as_deref(), &CutArgs::default(), &a.options)?;
    let spec = request.spec;
    let precision = spec.precision.unwrap_or_default();
    let gpu = a.device.as_deref().map(|name| roofline::gpu(name, precision).map_err(Failure::Usage)).transpose()?;
    if !spec.reconcile.lambdas.is_empty() {
        let why = "weights of single modules belong to one partition, and a sweep makes several; leave them out";
        return Err(Failure::Usage(format!("reconcile.lambdas: {why}")));
    }
    let file = OnnxFile::open(&request.model)?;
    let sweep = plans(&file, &spec, a.modules.as_ref(), gpu)?;
    if let Some(path) = &a.svg {
        let svg =
            plot::svg(&sweep.model, sweep.batch, &sweep.plans).map_err(|e| Failure::Run(format!("--svg: {e}")))?;
        write_atomic(path, svg.as_bytes())?;
    }
    if a.json {
        let json = serde_json::to_string_pretty(&sweep).map_err(|e| Failure::Run(e.to_string()))?;
        output::line(json);
    } else {
        output::print(&text(&sweep, gpu));
    }
    Ok(())
}

/// Compiles every plan.
fn plans<'a>(
    file: &OnnxFile,
    spec: &SpecFile,
    wanted: Option<&Counts>,
    gpu: Option<&'a Gpu>,
) -> Result<Sweep<'a>, Failure> {
    let compiled = |planner: &mut Planner<'_>, modules: usize, what: &str| {
        let allow_skips = spec.partition.allow_skips;
        let partition = PartitionFile { modules: Some(modules), allow_skips, ..PartitionFile::default() };
        compile_shown(planner, &partition, what).map_err(|e| match Failure::from(e) {
            Failure::Model(text) => Failure::Model(format!("with {modules} modules: {text}")),
            other => other,
        })
    };
    let planner = |recompute: Option<Recompute>| {
        let partition = PartitionFile { allow_skips: spec.partition.allow_skips, ..PartitionFile::default() };
        let spec = SpecFile { recompute, partition, ..spec.clone() };
        Planner::new(file, &spec)
    };
    let first = compiled(&mut planner(Some(Recompute::None))?, 1, "1 module")?;
    for note in &first.network.notes {
        eprintln!("note: {note}");
    }
    let most = first.candidates.cuts.len() + 1;
    let counts: Vec<usize> = match wanted {
        None => (2..=most.min(MOST_BY_DEFAULT)).collect(),
        Some(c) => c.0.iter().copied().filter(|&k| k > 1).collect(),
    };
    // Too many are refused before any work on the others.
    if let Some(&k) = counts.iter().find(|&&k| k > most) {
        let why = format!("with {k} modules: the network can be cut into {most} at most; slrc partition says where");
        return Err(Failure::Model(why));
    }
    let again = compiled(&mut planner(Some(Recompute::Elementwise))?, 1, "1 module")?;
    // What segments cost is found out once for all numbers of modules.
    let mut planner = planner(spec.recompute)?;
    let reconcile = first.spec.reconcile.mode.name();
    let mut rows = vec![Row::new(&first, None, gpu)];
    rows.push(Row::new(&again, rows.first(), gpu));
    for (i, &k) in counts.iter().enumerate() {
        let what = format!("{k} modules, plan {} of {}:", i + 3, counts.len() + 2);
        rows.push(Row::new(&compiled(&mut planner, k, &what)?, rows.first(), gpu));
    }
    row::mark_front(&mut rows);
    Ok(Sweep {
        model: first.plan.model.name,
        batch: first.plan.settings.samples(),
        micro_batches: first.plan.settings.micro_batches,
        target: first.plan.settings.target,
        reconcile,
        most_modules: most,
        device: gpu.map(|g| g.name),
        plans: rows,
    })
}

fn text(s: &Sweep<'_>, gpu: Option<&Gpu>) -> String {
    let mut header = vec![
        "modules",
        "recompute",
        "peak",
        "weights + optimizer",
        "working",
        "of K = 1",
        "work a step",
        "of K = 1",
        if s.plans[0].launches.is_some() { "launches" } else { "kernels" },
    ];
    header.extend(gpu.map(|_| "at least"));
    header.extend(["local heads", "weights they train", "work for them", "front"]);
    let percent = |x: f64| match 100.0 * x {
        p if p > 0.0 && p < 1.0 => "< 1 %".to_string(),
        p => format!("{p:.0} %"),
    };
    let row = |r: &Row| {
        let mut cells = vec![
            r.modules.to_string(),
            r.recompute.to_string(),
            bytes(r.peak_bytes),
            bytes(r.resident_bytes),
            bytes(r.working_bytes),
            percent(r.working_of_one),
            flops(r.flops),
            format!("{:.2}", r.work_of_one),
            r.launches.unwrap_or(r.kernels).to_string(),
        ];
        cells.extend(r.estimate_seconds.map(|s| format!("{:.2} ms", s * 1e3)));
        cells.extend([
            r.local_heads.to_string(),
            percent(r.locally_trained_parameters),
            percent(r.locally_trained_work),
            if r.front { "*" } else { "" }.to_string(),
        ]);
        cells
    };
    let rows = s.plans.iter().map(row).collect();
    let right: Vec<usize> = (0..header.len() - 1).filter(|&i| i != 1).collect();
    let mut out = format!(
        "{}, batch {}, {}, reconcile {}; at most {} modules\n\n{}",
        s.model,
        match s.micro_batches {
            1 => s.batch.to_string(),
            n => format!("{} in {n} micro-batches", s.batch),
        },
        s.target,
        s.reconcile,
        s.most_modules,
        table(&header, &right, rows)
    );
    if s.plans.iter().any(|r| !r.cuts.is_empty()) {
        out.push('\n');
        let cuts = |r: &Row| vec![r.modules.to_string(), r.short_cuts.join("  ")];
        let rows = s.plans.iter().filter(|r| !r.cuts.is_empty()).map(cuts).collect();
        out.push_str(&table(&["modules", "cut after"], &[0], rows));
    }
    out.push_str(&format!(
        "\npeak = weights + optimizer, working memory (arena, local heads), and {} of batch and constants\n\
         *: no plan here has both less peak and no more work, or less work and no more peak\n",
        bytes(s.plans[0].other_bytes)
    ));
    if let Some(gpu) = gpu {
        out.push_str(&format!(
            "at least: a roofline estimate on {} (f32, no tensor cores; a bound from below, not a measurement)\n",
            gpu.title
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_parse() {
        let counts = |all: &[usize]| Ok(Counts(all.iter().copied().collect()));
        assert_eq!("1..4".parse(), counts(&[1, 2, 3, 4]));
        assert_eq!("3..3".parse(), counts(&[3]));
        assert_eq!("8,2,2,4".parse(), counts(&[2, 4, 8]));
        assert_eq!("5".parse(), counts(&[5]));
        for text in ["", "0", "0..3", "4..2", "1..", "..3", "1,,2", "two", "1..2..3", "-1", "1..99999999"] {
            assert!(text.parse::<Counts>().is_err(), "{text}");
        }
    }
}
