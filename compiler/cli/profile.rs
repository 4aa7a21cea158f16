//! `slrc profile`: a plan's training step, timed kernel by kernel on random data and held against the device's roof.

mod numbers;
mod text;
mod trace;

use slrc_plan::{Kernel, Plan};
use slrc_runtime::cuda::Library;
use slrc_runtime::device::ProgramKind;
use slrc_runtime::devices::DeviceName;
use slrc_runtime::files::write_atomic;
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::Session;

use crate::args::ProfileArgs;
use crate::batch::Batch;
use crate::device;
use crate::failure::Failure;
use crate::output;
use crate::roof;
use crate::table::bytes;
use numbers::Profile;

/// Seconds of one kernel, step after step.
struct Timed {
    module: usize,
    kernel: Kernel,
    /// Whether a library computes it.
    by_library: Option<Library>,
    seconds: Vec<f64>,
}

/// Every kernel in the order of the step, and seconds of each step.
struct Steps {
    kernels: Vec<Timed>,
    totals: Vec<f64>,
}

pub(crate) fn run(a: &ProfileArgs) -> Result<(), Failure> {
    let plan = read_plan(&a.plan)?;
    let name = a.device.unwrap_or_else(|| DeviceName::of(&plan));
    let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), a.library.choice(), &a.plan)?;
    let mut session = Session::new(plan, device, &read_weights(&a.plan)?)?;
    let roof = roof::of(name, a.threads, session.plan().settings.precision);
    let steps = measure(&mut session, a.steps.max(1))?;
    let plan = session.plan();
    let profile = Profile::of(plan, name, &steps, roof.as_ref().map(|r| r.peaks).ok());
    let written = a.trace.as_ref().map(|path| {
        let text = trace::text(plan, &steps, &profile);
        write_atomic(path, text.as_bytes()).map(|()| format!("{} written, {}", path.display(), bytes(text.len())))
    });
    let written = written.transpose()?;
    if a.json {
        let json = serde_json::to_string_pretty(&profile).map_err(|e| Failure::Run(e.to_string()))?;
        output::line(json);
        return Ok(());
    }
    if let Some(line) = device::products(plan, &session.library(), ProgramKind::Step) {
        output::line(line);
    }
    let roof_line = roof.map_or_else(|unknown| unknown, |r| r.line);
    output::print(&text::text(&profile, &roof_line, a.top));
    written.iter().for_each(|line| output::line(format!("\n{line}")));
    Ok(())
}

/// Runs one pass of the step after another.
fn measure(session: &mut Session, steps: u64) -> Result<Steps, Failure> {
    Batch::random(session).feed(session)?;
    let library = session.library();
    let by_library = |module: usize, id: &str| library.kernels.get(module - 1).and_then(|k| k[0].get(id)).copied();
    let (mut kernels, mut totals) = (Vec::<Timed>::new(), Vec::new());
    // The first step touches memory for the first time.
    for step in 0..=steps {
        let (mut at, mut total) = (0, 0.0);
        session.profile_pass(step, &mut |module, kernel, seconds| {
            total += seconds;
            if step == 0 {
                let by_library = by_library(module, &kernel.id);
                kernels.push(Timed { module, kernel: kernel.clone(), by_library, seconds: Vec::new() });
            } else {
                kernels[at].seconds.push(seconds);
            }
            at += 1;
        })?;
        if step > 0 {
            totals.push(total);
        }
    }
    Ok(Steps { kernels, totals })
}

/// What passes are called that a profile runs.
fn pass_name(plan: &Plan) -> &'static str {
    if plan.settings.micro_batches == 1 { "step" } else { "pass over a micro-batch" }
}
