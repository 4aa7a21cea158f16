//! `slrc bench`: how long plans' training steps take, on random data.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use slrc_plan::{ModulePlan, Plan};
use slrc_runtime::cuda::Library;
use slrc_runtime::device::ProgramKind;
use slrc_runtime::devices::DeviceName;
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::Session;

use crate::args::BenchArgs;
use crate::batch::Batch;
use crate::device;
use crate::failure::Failure;
use crate::output;
use crate::resident::Resident;
use crate::roofline::bytes_moved;
use crate::table::{bytes, table};

/// Steps before those that count: they touch memory, record graphs and fill caches. At least one, as a step begins
/// where the one before it ends.
const WARM_UP: u64 = 3;

/// What `--json` prints of a plan; field names are part of the interface.
#[derive(Serialize)]
struct Row {
    plan: String,
    model: String,
    modules: usize,
    batch: usize,
    device: String,
    /// Whether modules took turns on the device.
    stream_modules: bool,
    /// The library that computes products, if one does, and how many of a step's kernels.
    library: Option<String>,
    library_kernels: usize,
    /// Steps that count.
    steps: u64,
    /// Median.
    step_seconds: f64,
    /// First and third quartile.
    step_seconds_quartiles: [f64; 2],
    samples_per_second: f64,
    /// Kernels started; none where kernels are not started one by one.
    launches_per_step: Option<usize>,
    /// Of every kernel, each operand once.
    planned_bytes_per_step: usize,
    /// Planned bytes by the time of a step.
    bytes_per_second: f64,
    /// Of the device's own memory.
    allocated_bytes: usize,
    /// What a training step needs of it with all modules there.
    peak_bytes: usize,
    /// Most main memory that the process had while the steps ran, where the system tells.
    resident_bytes: Option<usize>,
    /// Who computes products, where a library was asked for, as a line for people.
    #[serde(skip)]
    products: Option<String>,
}

pub(crate) fn run(a: &BenchArgs) -> Result<(), Failure> {
    let rows = a.plans.iter().map(|folder| bench(a, folder)).collect::<Result<Vec<Row>, Failure>>()?;
    if a.json {
        let json = serde_json::to_string_pretty(&rows).map_err(|e| Failure::Run(e.to_string()))?;
        output::line(json);
    } else {
        for row in &rows {
            row.products.iter().for_each(|line| output::line(format!("{}: {line}", row.plan)));
        }
        output::print(&text(&rows));
    }
    Ok(())
}

fn bench(a: &BenchArgs, folder: &Path) -> Result<Row, Failure> {
    let folder = &crate::plan::folder(folder);
    let plan = read_plan(folder)?;
    let name = a.device.unwrap_or_else(|| DeviceName::of(&plan));
    let libraries = a.library.choice();
    let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), libraries, folder)?;
    let mut session = Session::new(plan, device, &read_weights(folder)?)?;
    let watch = Resident::watch();
    let all = measure(&mut session, a.steps)?;
    let resident_bytes = watch.most();
    let seconds = median(&all);
    let (plan, library) = (session.plan(), session.library());
    let passes = plan.settings.micro_batches;
    let moved = passes * planned_bytes(plan);
    Ok(Row {
        plan: folder.display().to_string(),
        model: plan.model.name.clone(),
        modules: plan.modules.len(),
        batch: plan.settings.samples(),
        device: name.to_string(),
        stream_modules: a.streaming.stream_modules,
        library_kernels: library.kernels.iter().map(|[step, _]| step.len()).sum(),
        steps: a.steps,
        step_seconds: seconds,
        step_seconds_quartiles: quartiles(&all),
        samples_per_second: plan.settings.samples() as f64 / seconds,
        launches_per_step: match name {
            DeviceName::Cpu => None,
            DeviceName::Cuda(_) => {
                let of_a_pass = plan.modules.iter().zip(&library.kernels).map(|(m, k)| launches(m, &k[0]));
                Some(passes * of_a_pass.sum::<usize>())
            }
        },
        planned_bytes_per_step: moved,
        bytes_per_second: moved as f64 / seconds,
        allocated_bytes: session.allocated(),
        peak_bytes: plan.memory.peak(),
        resident_bytes,
        products: device::products(plan, &library, ProgramKind::Step),
        library: library.name(),
    })
}

/// Launches of a step: one for each kernel of a library, and those of the others, which it may part.
fn launches(m: &ModulePlan, library: &BTreeMap<String, Library>) -> usize {
    let own = m.step.launches.iter().map(|l| l.without(|k| library.contains_key(k)).len());
    own.sum::<usize>() + library.len()
}

/// Seconds of each step that counts. Steps follow each other as they do in training: a batch is fed and its step queued
/// while the one before may still run, and a step ends when its report is there.
fn measure(session: &mut Session, steps: u64) -> Result<Vec<f64>, Failure> {
    let batch = Batch::random(session);
    let steps = WARM_UP.saturating_add(steps);
    let passes = session.plan().settings.micro_batches as u64;
    let total = steps.saturating_mul(passes);
    let (mut queued, mut seconds) = (0, Vec::new());
    let mut start = Instant::now();
    for done in 0..total {
        while queued < total && queued - done <= session.passes_ahead() as u64 {
            batch.feed(session)?;
            session.queue_pass(queued, steps)?;
            queued += 1;
        }
        session.finish_pass()?;
        if !(done + 1).is_multiple_of(passes) {
            continue;
        }
        let end = Instant::now();
        if done / passes >= WARM_UP {
            seconds.push((end - start).as_secs_f64());
        }
        start = end;
    }
    Ok(seconds)
}

/// Bytes that the kernels of a pass read and write, each operand once a kernel.
fn planned_bytes(plan: &Plan) -> usize {
    plan.modules.iter().flat_map(|m| &m.step.kernels).map(|k| bytes_moved(plan, k)).sum()
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let middle = &v[v.len().saturating_sub(1) / 2..v.len() / 2 + usize::from(!v.is_empty())];
    middle.iter().sum::<f64>() / middle.len().max(1) as f64
}

/// Medians of the lower and of the upper half, the middle value in neither; the values themselves where there are
/// fewer than two.
fn quartiles(values: &[f64]) -> [f64; 2] {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let half = if v.len() == 1 { 1 } else { v.len() / 2 };
    [median(&v[..half]), median(&v[v.len() - half..])]
}

/// Half of the distance of the quartiles, by the median.
fn spread(r: &Row) -> String {
    let [low, high] = r.step_seconds_quartiles;
    format!("±{:.1} %", 50.0 * (high - low) / r.step_seconds)
}

/// The device, and how it is used where not as by default.
fn device_cell(r: &Row) -> String {
    let in_turn = r.stream_modules.then(|| "in turn".to_string());
    [Some(r.device.clone()), in_turn, r.library.clone()].into_iter().flatten().collect::<Vec<String>>().join(", ")
}

/// A line a plan.
fn text(rows: &[Row]) -> String {
    let lines = rows
        .iter()
        .map(|r| {
            vec![
                r.plan.clone(),
                device_cell(r),
                r.modules.to_string(),
                r.batch.to_string(),
                format!("{:.3} ms", r.step_seconds * 1e3),
                spread(r),
                format!("{:.1}", r.samples_per_second),
                r.launches_per_step.map_or(String::new(), |n| n.to_string()),
                bytes(r.planned_bytes_per_step),
                format!("{}/s", bytes(r.bytes_per_second as usize)),
                bytes(r.allocated_bytes),
                bytes(r.peak_bytes),
                r.resident_bytes.map_or(String::new(), bytes),
            ]
        })
        .collect();
    let header = [
        "plan",
        "device",
        "modules",
        "batch",
        "step",
        "spread",
        "samples/s",
        "launches",
        "planned",
        "bandwidth",
        "allocated",
        "peak",
        "resident",
    ];
    table(&header, &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(quartiles(&[5.0, 1.0, 4.0, 2.0, 3.0]), [1.5, 4.5]);
        assert_eq!(quartiles(&[4.0, 1.0, 2.0, 3.0]), [1.5, 3.5]);
        assert_eq!((quartiles(&[7.0]), quartiles(&[])), ([7.0, 7.0], [0.0, 0.0]));
    }
}
