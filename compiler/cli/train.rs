//! `slrc train`

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use slrc_compiler::pipeline::spec_sha256;
use slrc_plan::Plan;
use slrc_plan::plan::files;
use slrc_runtime::cuda::Libraries;
use slrc_runtime::data::dataset::{Dataset, Part};
use slrc_runtime::device::ProgramKind;
use slrc_runtime::devices::DeviceName;
use slrc_runtime::files::read;
use slrc_runtime::folder::{read_plan, read_weights};
use slrc_runtime::session::{ModuleReport, Session};
use slrc_runtime::trainer::checkpoint::Checkpoint;
use slrc_runtime::trainer::{
    Length, Progress, RunOptions, TrainError, check_new, create_run, metrics, read_constants, steps_per_epoch, train,
};

use crate::args::{CutArgs, SpecArgs, TrainArgs};
use crate::compile::{Request, compile_to};
use crate::device;
use crate::failure::{Failure, in_file};
use crate::output;
use crate::report;
use crate::table::{bytes, table};

pub(crate) fn run(a: &TrainArgs) -> Result<(), Failure> {
    let length = a.steps.map(Length::Steps).or(a.epochs.map(Length::Epochs));
    if a.resume {
        let checkpoint = load_checkpoint(a)?;
        let plan = read_plan(&a.out)?;
        check_same_plan(a, &plan)?;
        checkpoint.check(&a.out, &plan)?;
        let libraries = a.library.libraries.unwrap_or(match &checkpoint.state.library {
            Some(names) => Libraries::named_in(names),
            None => Libraries::None,
        });
        let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), libraries, &a.out)?;
        let mut tensors = checkpoint.parameters;
        tensors.extend(read_constants(&a.out)?);
        let mut session = Session::new(plan, device, &tensors)?;
        session.set_optimizer_state(&checkpoint.optimizer)?;
        // The device has them.
        drop((tensors, checkpoint.optimizer));
        let options = RunOptions {
            length,
            shuffle: !a.no_shuffle,
            seed: a.seed.unwrap_or(checkpoint.state.seed),
            log_every: a.log_every,
            checkpoint_every: a.checkpoint_every,
        };
        return go(a, &mut session, &options, Some(&checkpoint.state));
    }
    check_new(&a.out)?;
    let compiled;
    let folder = if let Some(folder) = plan_folder(&a.plan) {
        folder
    } else {
        if a.plan.extension().is_some_and(|e| e == "onnx") {
            let model = a.plan.display();
            return Err(Failure::Usage(format!("{model} is a model: slrc partition {model} -o PLAN; slrc train PLAN")));
        }
        compiled = tempfile::tempdir().map_err(|e| Failure::Run(format!("cannot make a temporary folder: {e}")))?;
        let request = Request::new(Some(&a.plan), None, &CutArgs::default(), &SpecArgs::default())?;
        let (c, _) = compile_to(&request, &compiled.path().join("plan"))?;
        output::line(crate::plan::text(&c.plan));
        &compiled.path().join("plan")
    };
    let plan = read_plan(folder)?;
    let data = Dataset::read(&a.data, Part::Train)?;
    data.check(&plan)?;
    steps_per_epoch(&data, plan.settings.samples())?;
    let libraries = a.library.choice();
    let device = device::open(&plan, a.device, a.threads, a.streaming.residency(), libraries, folder)?;
    let seed = a.seed.unwrap_or(plan.settings.seed);
    let weights = read_weights(folder)?;
    let mut session = Session::new(plan, device, &weights).map_err(in_file(&folder.join(files::WEIGHTS)))?;
    // The device has them.
    drop(weights);
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

/// The plan folder a path names, itself or by its plan.yaml.
fn plan_folder(path: &Path) -> Option<&Path> {
    if path.file_name().is_some_and(|n| n == files::PLAN) {
        return Some(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    }
    path.is_dir().then_some(path)
}

/// A run goes on with its own plan; a plan or spec that has changed since would be passed over in silence.
fn check_same_plan(a: &TrainArgs, plan: &Plan) -> Result<(), Failure> {
    let same = if let Some(folder) = plan_folder(&a.plan) {
        read(&folder.join(files::PLAN))? == read(&a.out.join(files::PLAN))?
    } else if a.plan.exists() {
        let request = Request::new(Some(&a.plan), None, &CutArgs::default(), &SpecArgs::default())?;
        spec_sha256(&request.spec) == plan.settings.spec_sha256
    } else {
        true
    };
    if same {
        return Ok(());
    }
    Err(Failure::Run(format!(
        "{}: the run was started with another plan than {}; resume it with its own, or start another with -o",
        a.out.display(),
        a.plan.display()
    )))
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
    let library = session.library();
    if let Some(line) = device::products(session.plan(), &library, ProgramKind::Step) {
        output::line(line);
    }
    if let Some(was) = resumed.map(|s| &s.library).filter(|was| **was != library.name()) {
        let name = |l: &Option<String>| l.clone().unwrap_or("the plan's own kernels".into());
        let (was, now) = (name(was), name(&library.name()));
        output::line(format!(
            "products: up to the checkpoint by {was}, from here on by {now}: last places differ from those of a run by one \
             of them"
        ));
    }
    if let Some(f) = device::footprint(session.plan()) {
        let name = a.device.unwrap_or_else(|| DeviceName::of(session.plan()));
        let used = if a.streaming.stream_modules { "modules in turn" } else { "all modules" };
        let (all, in_turn) = (bytes(f.device_bytes), bytes(f.streamed_device_bytes));
        output::line(format!("{name}, {used}: {all} with all modules there, {in_turn} with --stream-modules"));
    }
    let samples = session.plan().settings.samples();
    let mut display = Display::new(samples, resumed.map_or(0, |s| s.step));
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
