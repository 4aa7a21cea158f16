//! `slrc partition`

use std::fmt::Write as _;

use slrc_compiler::pipeline::Compiled;
use slrc_compiler::spec::PartitionSpec;

use crate::args::PartitionArgs;
use crate::compile::{PARTITION, Request, compile_to};
use crate::failure::Failure;
use crate::output;
use crate::table::{bytes, table};

pub(crate) fn run(a: &PartitionArgs) -> Result<(), Failure> {
    let request = Request::new(a.spec.as_deref(), a.model.as_deref(), &a.cuts, &a.options)?;
    if let Some(folder) = &a.check {
        return crate::check::run(&request, folder);
    }
    let (compiled, planning) = compile_to(&request, &a.out)?;
    if a.times {
        eprintln!("planned in {:.3} s", planning.as_secs_f64());
    }
    output::print(&crate::plan::text(&compiled.plan));
    output::print(&budget(&compiled));
    output::line(format!(
        "\n{} cuts possible, {} rejected: {}",
        compiled.candidates.cuts.len(),
        compiled.candidates.rejected.len(),
        a.out.join(PARTITION).display()
    ));
    output::line(format!("plan written to {}", a.out.display()));
    Ok(())
}

/// What was made of a memory budget, if there is one.
fn budget(c: &Compiled) -> String {
    let PartitionSpec::Budget(allowed) = c.spec.partition else { return String::new() };
    let (peak, modules) = (c.plan.memory.peak(), c.plan.modules.len());
    let s = if modules == 1 { "" } else { "s" };
    let spare = bytes(allowed.saturating_sub(peak));
    let settings = &c.plan.settings;
    let divided = match settings.micro_batches {
        1 => String::new(),
        n => format!(" and {n} micro-batches of {}", settings.batch),
    };
    let (allowed, peak) = (bytes(allowed), bytes(peak));
    let mut out = format!("\nmemory budget {allowed}: {modules} module{s}{divided}, peak {peak}, {spare} to spare\n");
    let norms = c.network.nodes.iter().any(|n| n.op == "BatchNormalization");
    if settings.micro_batches > 1 && norms {
        out.push_str("BatchNorm normalises by the samples of a micro-batch; --micro-batches 1 keeps the batch whole\n");
    }
    out
}

/// Where the network was cut, where it could be, and why not elsewhere.
pub(crate) fn report(c: &Compiled) -> String {
    let mut out = String::from("Cuts\n\n");
    let rows = c
        .candidates
        .cuts
        .iter()
        .map(|k| {
            let taken = c.cuts.iter().position(|x| x.value == k.value).map(|i| format!("module {} ends here", i + 1));
            let mut boundary = slrc_plan::Dims(c.network.graph.shape(k.value).to_vec()).to_string();
            for carried in &k.carried {
                let shape = slrc_plan::Dims(c.network.graph.shape(carried.value).to_vec());
                let _ = write!(boundary, " + {shape} of {}", carried.name);
            }
            vec![k.node.clone(), boundary, taken.unwrap_or_default()]
        })
        .collect();
    out.push_str(&table(&["after node", "boundary", ""], &[], rows));
    for k in c.cuts.iter().filter(|k| !c.candidates.cuts.iter().any(|x| x.value == k.value)) {
        let _ = writeln!(out, "{}  asked for with --at", k.node);
    }
    out.push_str("\nNot cut, and why\n\n");
    let rows = c.candidates.rejected.iter().map(|r| vec![r.node.clone(), r.reason.clone()]).collect();
    out.push_str(&table(&["after node", "reason"], &[], rows));
    out
}
