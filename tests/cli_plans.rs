//! `slrc plan` diff, verify, explain, report and sweep, and `slrc partition --check`: plans judged and compared.

#[path = "support/cli.rs"]
mod cli;
#[path = "cli_plans/diff.rs"]
mod diff;
#[path = "cli_plans/explain.rs"]
mod explain;
#[path = "cli_plans/report.rs"]
mod report;
#[path = "cli_plans/sweep.rs"]
mod sweep;
#[path = "cli_plans/verify.rs"]
mod verify;

use std::path::Path;

use cli::Workspace;
use slrc_plan::Plan;
use slrc_plan::buffer::Live;

/// Compiles into a folder.
fn partition(work: &Workspace, model: &str, options: &str, out: &str) {
    work.ok(&format!("partition MODELS/{model}/model.onnx --batch 4 {options} -o {out}"));
}

fn read(folder: &Path) -> Plan {
    slrc_runtime::folder::read_plan(folder).expect("a plan")
}

/// Rewrites a plan, valid or not.
fn edit(work: &Workspace, folder: &str, change: impl FnOnce(&mut Plan)) {
    let path = work.path(&format!("{folder}/plan.yaml"));
    let text = std::fs::read_to_string(&path).expect("a plan");
    let mut plan: Plan = slrc_plan::yaml::from_str(&text).expect("a plan");
    change(&mut plan);
    std::fs::write(&path, slrc_plan::yaml::to_string(&plan).expect("text")).expect("a file");
}

/// Moves the epilogue of kernel `at` of module 1 into a kernel of its own behind it, for the ONNX node `node`.
fn split_epilogue(plan: &mut Plan, at: usize, node: &str) {
    let step = &mut plan.modules[0].step;
    let mut first = step.kernels[at].clone();
    let slrc_plan::kernel::KernelOp::Matmul(m) = &mut first.run else { panic!("no product") };
    let region = m.epilogue.take().expect("an epilogue");
    first.nodes.retain(|n| n != node);
    let second = slrc_plan::kernel::Kernel {
        id: format!("{}b", first.id),
        nodes: vec![node.to_string()],
        flops: 0,
        run: slrc_plan::kernel::KernelOp::Map(region),
        ..first.clone()
    };
    let stored: Vec<String> = second.run.operands().into_iter().map(|o| o.view.buffer.clone()).collect();
    step.kernels[at] = first;
    step.kernels.insert(at + 1, second);
    for b in &mut step.buffers {
        let live = b.live.expect("an arena buffer");
        let late = live.first > at || (live.first == at && stored.contains(&b.id));
        let first = live.first + usize::from(late);
        b.live = Some(Live { first, last: live.last + usize::from(live.last > at || late) });
    }
}
