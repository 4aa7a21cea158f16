//! `slrc train`

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use slrc_plan::plan::files;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::data::dataset::{Dataset, Part};
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::{ModuleReport, Session};
use slrc_runtime::trainer::checkpoint::Checkpoint;
use slrc_runtime::trainer::{Length, Progress, RunOptions, TrainError, create_run, metrics, read_constants, train};

use crate::args::{SpecArgs, TrainArgs};
use crate::compile::{Request, compile_to};
use crate::failure::Failure;
use crate::output;
use crate::report;
use crate::table::table;

pub(crate) fn run(a: &TrainArgs) -> Result<(), Failure> {
    let length = a.steps.map(Length::Steps).or(a.epochs.map(Length::Epochs));
    if a.resume {
        let checkpoint = load_checkpoint(a)?;
        let plan = read_plan(&a.out)?;
        let device = CpuDevice::load(&plan, a.threads)?;
        let mut tensors = checkpoint.parameters;
        tensors.extend(read_constants(&a.out)?);
        let mut session = Session::new(plan, Box::new(device), &tensors)?;
        session.set_optimizer_state(&checkpoint.optimizer)?;
        let options = RunOptions {
            length,
            shuffle: !a.no_shuffle,
            seed: a.seed.unwrap_or(checkpoint.state.seed),
            log_every: a.log_every,
            checkpoint_every: a.checkpoint_every,
        };
        return go(a, &mut session, &options, Some(&checkpoint.state));
    }
    let compiled;
    let folder = if a.plan.is_dir() {
        a.plan.as_path()
    } else {
        compiled = tempfile::tempdir().map_err(|e| Failure::Run(format!("cannot make a temporary folder: {e}")))?;
        let request = Request::new(Some(&a.plan), None, &SpecArgs::default())?;
        let c = compile_to(&request, &compiled.path().join("plan"))?;
        output::line(format!("{}", crate::plan::text(&c.plan)));
        &compiled.path().join("plan")
    };
    let plan = read_plan(folder)?;
    let data = Dataset::read(&a.data, Part::Train)?;
    data.check(&plan)?;
    let device = CpuDevice::load(&plan, a.threads)?;
    let seed = a.seed.unwrap_or(plan.settings.seed);
    let mut session = Session::new(plan, Box::new(device), &read_weights(folder)?)?;
    create_run(&a.out, folder)?;
    let options = RunOptions {
        length,
        shuffle: !a.no_shuffle,
        seed,
        log_every: a.log_every,
        checkpoint_every: a.checkpoint_every,
    };
    go_with(a, &data, &mut session, &options, None)
}

fn load_checkpoint(a: &TrainArgs) -> Result<Checkpoint, Failure> {
    if !Checkpoint::exists(&a.out) {
        let reason = if a.out.join(files::PLAN).is_file() {
            "it has no checkpoint yet; start it again in an empty folder"
        } else {
            "it is no run folder"
        };
        return Err(Failure::Run(format!("cannot resume {}: {reason}", a.out.display())));
    }
    Ok(Checkpoint::load(&a.out)?)
}

fn go(
    a: &TrainArgs,
    session: &mut Session,
    options: &RunOptions,
    resumed: Option<&slrc_runtime::trainer::checkpoint::RunState>,
) -> Result<(), Failure> {
    let data = Dataset::read(&a.data, Part::Train)?;
    go_with(a, &data, session, options, resumed)
}

fn go_with(
    a: &TrainArgs,
    data: &Dataset,
    session: &mut Session,
    options: &RunOptions,
    resumed: Option<&slrc_runtime::trainer::checkpoint::RunState>,
) -> Result<(), Failure> {
    let batch = session.plan().settings.batch;
    let mut display = Display::new(batch, resumed.map_or(0, |s| s.step));
    let result = train(session, data, &a.out, options, resumed, &mut |p| display.show(&p));
    display.finish();
    result.map_err(|e: TrainError| Failure::from(e))?;
    let lines = metrics::read(&a.out.join("metrics.jsonl"))?;
    let html = report::html(session.plan(), &lines);
    slrc_runtime::files::write_atomic(&a.out.join("report.html"), html.as_bytes())?;
    if let Some(last) = lines.last() {
        output::print(&summary(last));
    }
    output::line(format!("\nrun written to {}; open {}", a.out.display(), a.out.join("report.html").display()));
    Ok(())
}

/// The last logged numbers, by module.
fn summary(last: &metrics::Line) -> String {
    let rows = last
        .modules
        .iter()
        .enumerate()
        .map(|(i, m)| {
            let b = (i > 0).then(|| last.boundaries.get(i - 1)).flatten();
            let number = |x: Option<f32>| x.map_or(String::new(), |x| format!("{x:.3}"));
            vec![
                (i + 1).to_string(),
                format!("{:.4}", m.loss),
                format!("{:.1} %", 100.0 * m.accuracy),
                number(b.map(|b| b.cosine)),
                number(b.map(|b| b.ratio)),
            ]
        })
        .collect();
    let header = ["module", "loss", "accuracy", "cosine(g, e)", "|g| / |e|"];
    format!("after {} steps, last batch:\n\n{}", last.step, table(&header, &[0, 1, 2, 3, 4], rows))
}

/// A progress bar on a terminal, a line now and then elsewhere.
struct Display {
    bar: ProgressBar,
    batch: usize,
    first: u64,
    start: std::time::Instant,
    last_line: std::time::Instant,
}

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Display {
    fn new(batch: usize, first: u64) -> Display {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
        bar.set_style(style.expect("invariant: the template is well formed"));
        let now = std::time::Instant::now();
        Display { bar, batch, first, start: now, last_line: now }
    }

    fn show(&mut self, p: &Progress<'_>) {
        if p.done == self.first + 1 {
            self.bar.set_length(p.total);
            self.bar.set_position(self.first);
            self.bar.reset_eta();
        }
        let rate = (p.done - self.first) as f64 * self.batch as f64 / self.start.elapsed().as_secs_f64();
        let message = format!("{}  {rate:.0} samples/s", numbers(p.modules));
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = std::time::Instant::now();
            eprintln!("step {}/{}  {message}", p.done, p.total);
        }
        self.bar.set_message(message);
        self.bar.set_position(p.done);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Loss and accuracy of every module, in order.
fn numbers(modules: &[ModuleReport]) -> String {
    let join = |f: &dyn Fn(&ModuleReport) -> String| modules.iter().map(f).collect::<Vec<_>>().join(" ");
    format!("loss {}  acc {}", join(&|m| format!("{:.3}", m.loss)), join(&|m| format!("{:.0}%", 100.0 * m.accuracy)))
}
