//! `slrc eval`

use indicatif::{ProgressBar, ProgressStyle};
use slrc_plan::Plan;
use slrc_runtime::data::dataset::{Dataset, Part};
use slrc_runtime::data::npz::write_npz;
use slrc_runtime::device::ProgramKind;
use slrc_runtime::files::{FileError, write_atomic};
use slrc_runtime::folder::read_plan;
use slrc_runtime::session::Session;
use slrc_runtime::trainer::checkpoint::Checkpoint;
use slrc_runtime::trainer::{evaluate, read_constants};

use crate::args::EvalArgs;
use crate::device;
use crate::failure::Failure;
use crate::output;
use crate::table::table;

pub(crate) fn run(a: &EvalArgs) -> Result<(), Failure> {
    let plan = read_plan(&a.run)?;
    let checkpoint = Checkpoint::load(&a.run)?;
    checkpoint.check(&a.run, &plan)?;
    let mut tensors = checkpoint.parameters;
    tensors.extend(read_constants(&a.run)?);
    let data = Dataset::read(&a.data, Part::Test)?;
    data.check(&plan)?;
    let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), a.library.choice(), &a.run)?;
    let mut session = Session::new(plan, device, &tensors)?;
    // The device has them.
    drop((tensors, checkpoint.optimizer));
    let bar = ProgressBar::new(data.count as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} samples  {per_sec}  {eta} left");
    bar.set_style(style.expect("invariant: the template is well formed"));
    let e = evaluate(&mut session, &data, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    if let Some(path) = &a.save_logits {
        let shape = logits_shape(session.plan(), data.count);
        let mut bytes = std::io::Cursor::new(Vec::new());
        write_npz(&mut bytes, &[("logits", &shape, &e.logits)])
            .map_err(|source| FileError::Write { path: path.clone(), source })?;
        write_atomic(path, &bytes.into_inner())?;
    }
    let modules = &session.plan().modules;
    if a.json {
        let heads: Vec<serde_json::Value> = modules
            .iter()
            .zip(&e.heads)
            .map(
                |(m, h)| serde_json::json!({"module": m.index, "head": m.head, "loss": h.loss, "accuracy": h.accuracy}),
            )
            .collect();
        output::line(format!("{}", serde_json::json!({"samples": data.count, "heads": heads})));
        return Ok(());
    }
    let rows = modules
        .iter()
        .zip(&e.heads)
        .map(|(m, h)| {
            vec![m.index.to_string(), m.head.clone(), format!("{:.4}", h.loss), format!("{:.2} %", 100.0 * h.accuracy)]
        })
        .collect();
    if let Some(line) = device::products(session.plan(), &session.library(), ProgramKind::Eval) {
        output::line(line);
    }
    output::line(format!("{} samples of {}\n", data.count, a.data.display()));
    output::print(&table(&["module", "head", "loss", "accuracy"], &[0, 2, 3], rows));
    Ok(())
}

/// The shape of the network's logits for so many samples: that of their labels, with the classes last, or before the
/// rows and columns of an image.
fn logits_shape(plan: &Plan, samples: usize) -> Vec<usize> {
    let labels = plan.buffers.iter().find(|b| b.id == plan.labels.buffer).expect("invariant: plans are validated");
    let mut shape = [&[samples], &labels.shape[1..]].concat();
    shape.insert(if shape.len() == 3 { 1 } else { shape.len() }, plan.labels.classes);
    shape
}
