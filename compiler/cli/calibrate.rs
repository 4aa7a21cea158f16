//! Statistics for BatchNormalization that a repair put in, measured on data (docs/repair.md).

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use slrc_compiler::onnx::repair::Measured;
use slrc_compiler::pipeline::{Compiled, Planner, compile};
use slrc_compiler::spec::{PartitionFile, SpecFile};
use slrc_compiler::weights::{WeightTensor, initial_weights};
use slrc_runtime::cuda::{Libraries, Residency};
use slrc_runtime::data::dataset::{Dataset, Part};
use slrc_runtime::devices::{self, DeviceName};
use slrc_runtime::session::{NamedTensor, Session};
use slrc_runtime::trainer::feed;

use crate::failure::Failure;

/// Most samples that are looked at, evenly from the whole data set.
const MOST_SAMPLES: usize = 1024;

/// Measures what enters each BatchNormalization that was put in, on the CPU, and changes their tensors among a plan's
/// weights. Returns what was done, a line for people.
pub(crate) fn calibrate(
    planner: &Planner<'_>,
    spec: &SpecFile,
    compiled: &Compiled,
    data: &Path,
    weights: &mut [WeightTensor],
) -> Result<String, Failure> {
    let measured = Measured::of(planner.file())?
        .ok_or_else(|| Failure::Usage("repair.calibrate: no BatchNormalization was put in".into()))?;
    // The same network by its statistics, of which nothing is trained.
    let spec = SpecFile {
        batch: Some(compiled.network.batch),
        shapes: spec.shapes.clone(),
        output: Some(measured.output.clone()),
        tie: spec.tie.clone(),
        freeze: vec!["*".into()],
        partition: PartitionFile { modules: Some(1), ..PartitionFile::default() },
        ..SpecFile::default()
    };
    let network = compile(&measured.file, &spec, &mut |_, _| {})?;
    let (tensors, _) = initial_weights(&network, &measured.file, &[])?;
    let tensors: Vec<NamedTensor> =
        tensors.into_iter().map(|w| NamedTensor { name: w.name, shape: w.shape, data: w.data }).collect();
    let mut data = Dataset::read(data, Part::Train)?;
    // Labels are of no use here.
    data.labels = vec![0; data.count];
    data.check(&network.plan)?;
    let device = devices::open(&network.plan, DeviceName::Cpu, None, None, Residency::All, Libraries::None)?;
    let batch = network.plan.settings.batch;
    let mut session = Session::new(network.plan, device, &tensors)?;
    drop(tensors);
    let count = data.count.min(MOST_SAMPLES);
    let chosen: Vec<u32> = (0..count).map(|i| (i * data.count / count) as u32).collect();
    let bar = ProgressBar::new(count as u64);
    let style = ProgressStyle::with_template("calibrate {bar:30} {pos}/{len} samples  {eta} left");
    bar.set_style(style.expect("invariant: the template is well formed"));
    let mut statistics = measured.statistics();
    for some in chosen.chunks(batch) {
        // What is missing at the end is filled up, and not counted.
        let samples: Vec<u32> = (0..batch).map(|i| some[if i < some.len() { i } else { 0 }]).collect();
        feed(&mut session, &data, &samples)?;
        let (_, rows) = session.eval()?;
        let width = rows.len() / batch;
        rows.chunks(width).take(some.len()).for_each(|row| statistics.add(row));
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    if !statistics.are_finite() {
        return Err(Failure::Run("calibrate: on this data the network computes numbers that are not finite".into()));
    }
    let norms = measured.calibrate(&compiled.network, &statistics, weights)?;
    let s = if count == 1 { "" } else { "s" };
    Ok(format!("calibrate: statistics of {count} sample{s} in {norms} BatchNormalizations that rebn put in"))
}
