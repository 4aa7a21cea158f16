//! The `slrc` command: one verb a file. Results go to stdout, progress and errors to stderr.
#![allow(clippy::print_stderr, reason = "this is the command line")]

mod allocator;
mod args;
mod batch;
mod bench;
mod calibrate;
mod check;
mod check_model;
mod compile;
mod cubin;
mod device;
mod devices;
mod diff;
mod document;
mod eval;
mod explain;
mod export;
mod failure;
mod html;
mod ops;
mod output;
mod partition;
mod plan;
mod plan_report;
mod profile;
mod report;
mod resident;
mod roof;
mod roofline;
mod sweep;
mod table;
mod train;
mod verify;

use clap::Parser;

use crate::args::{Cli, PlanVerb, Verb};

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Check(a) => check_model::run(&a),
        Verb::Partition(a) => partition::run(&a),
        Verb::Compile(a) => cubin::run(&a),
        Verb::Train(a) => train::run(&a),
        Verb::Eval(a) => eval::run(&a),
        Verb::Export(a) => export::run(&a),
        Verb::Plan(PlanVerb::Show(a)) => plan::show(&a),
        Verb::Plan(PlanVerb::Diff(a)) => diff::run(&a),
        Verb::Plan(PlanVerb::Explain(a)) => explain::run(&a),
        Verb::Plan(PlanVerb::Report(a)) => plan_report::run(&a),
        Verb::Plan(PlanVerb::Sweep(a)) => sweep::run(&a),
        Verb::Plan(PlanVerb::Verify(a)) => verify::run(&a),
        Verb::Profile(a) => profile::run(&a),
        Verb::Bench(a) => bench::run(&a),
        Verb::Devices => devices::run(),
        Verb::Ops => ops::run(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(f) => {
            eprintln!("error: {f}");
            f.exit_code()
        }
    }
}
