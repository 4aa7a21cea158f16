//! Module tables and partition reports of real networks' exports in four modules.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{BATCH, Entry, exports, no_snapshots_but, programs};

#[test]
fn module_tables() {
    for e in exports() {
        insta::assert_snapshot!(e.name.clone(), table(e) + &report(e));
    }
    no_snapshots_but("exports", exports().iter().map(|e| e.name.clone()));
}

fn table(e: &Entry) -> String {
    let plan = &e.compiled.plan;
    let mut out = format!("batch {BATCH}, {}\n", plan.settings.partition);
    for m in &plan.modules {
        let _ = writeln!(
            out,
            "{} {} .. {}: {} parameters, head {} ({}), step {} B {} kernels {} flop, eval {} B {} kernels {} flop",
            m.index,
            m.first,
            m.last,
            m.parameters,
            m.head,
            m.head_parameters,
            m.step.arena_bytes,
            m.step.kernels.len(),
            m.step.flops,
            m.eval.arena_bytes,
            m.eval.kernels.len(),
            m.eval.flops,
        );
    }
    let families = programs(e).flat_map(|(_, _, p)| &p.kernels).fold(BTreeMap::new(), |mut n, k| {
        *n.entry(k.run.family()).or_insert(0) += 1;
        n
    });
    let _ =
        writeln!(out, "kernels: {}", families.iter().map(|(f, n)| format!("{n} {f}")).collect::<Vec<_>>().join(", "));
    let m = &plan.memory;
    let _ = writeln!(
        out,
        "memory: parameter {}, optimizer {}, constant {}, input {}, scalar {}, metric {}, arena {}, \
         eval arena {}; peak {}",
        m.parameter,
        m.optimizer,
        m.constant,
        m.input,
        m.scalar,
        m.metric,
        m.arena,
        m.eval_arena,
        m.peak()
    );
    out
}

/// Cuts taken, cuts possible, and why not elsewhere: reasons are counted without the names they mention, each with the
/// first place it applies to.
fn report(e: &Entry) -> String {
    let c = &e.compiled;
    let nodes = |cuts: &[slrc_compiler::partition::Candidate]| {
        cuts.iter().map(|c| c.node.as_str()).collect::<Vec<_>>().join(", ")
    };
    let mut out = format!("cut after {}\npossible cuts ({}): ", nodes(&c.cuts), c.candidates.cuts.len());
    let _ = writeln!(out, "{}", nodes(&c.candidates.cuts));
    let mut reasons: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for r in &c.candidates.rejected {
        let count = reasons.entry(without_names(&r.reason)).or_insert_with(|| (0, format!("{}: {}", r.node, r.reason)));
        count.0 += 1;
    }
    for (reason, (n, first)) in reasons {
        let _ = writeln!(out, "{n} x {reason}\n    first at {first}");
    }
    out
}

/// The text with every quoted name left out.
fn without_names(text: &str) -> String {
    text.split('"').enumerate().map(|(i, part)| if i % 2 == 0 { part } else { ".." }).collect()
}
