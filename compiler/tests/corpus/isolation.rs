//! Isolation of modules, on the graph and on the plan: module k's kernels use nothing that another module computes or
//! owns, except what module k - 1 hands over.

use std::collections::BTreeMap;

use slrc_compiler::ir::graph::{Graph, Node};
use slrc_compiler::ir::{NodeId, Op};
use slrc_compiler::onnx::import::import;
use slrc_compiler::partition::{Candidate, Partitioned, apply, candidates, verify_isolation};
use slrc_compiler::spec::SpecFile;
use slrc_plan::kernel::Access;
use slrc_plan::{Buffer, Plan, Space};

use crate::{common, corpus, small};

/// Bytes of a space, from and to.
type Range = (Space, usize, usize);

/// What one module's kernels do to buffers that are not their program's own.
#[derive(Default)]
struct Traffic {
    reads: Vec<(Range, String)>,
    writes: Vec<(Range, String)>,
}

fn traffic(plan: &Plan, index: usize) -> Traffic {
    let buffers: BTreeMap<&str, &Buffer> = plan.buffers.iter().map(|b| (b.id.as_str(), b)).collect();
    let m = &plan.modules[index - 1];
    let mut out = Traffic::default();
    for p in [&m.step, &m.eval] {
        for o in p.kernels.iter().flat_map(|k| k.run.operands()) {
            let id = &o.view.buffer;
            if p.buffers.iter().any(|b| b.id == *id) {
                continue;
            }
            let b = buffers.get(id.as_str()).unwrap_or_else(|| panic!("{id} belongs to another program"));
            let list = if o.access == Access::Read { &mut out.reads } else { &mut out.writes };
            list.push(((b.space, b.offset, b.offset + b.bytes), id.clone()));
        }
    }
    for list in [&mut out.reads, &mut out.writes] {
        list.sort();
        list.dedup();
    }
    out
}

/// Bytes that one module writes and another reads or writes, other than a boundary handed to the next module.
fn fault(plan: &Plan) -> Option<String> {
    let all: Vec<Traffic> = (1..=plan.modules.len()).map(|k| traffic(plan, k)).collect();
    // In the arena, places are given to others in the course of a step: there it is buffers that must not be shared.
    let meet = |(a, id): &(Range, String), (b, other): &(Range, String)| match (a.0, b.0) {
        (Space::Arena, Space::Arena) => id == other,
        _ => a.0 == b.0 && a.1 < b.2 && b.1 < a.2,
    };
    for (j, writer) in all.iter().enumerate() {
        for write in &writer.writes {
            let (range, id) = write;
            if matches!(range.0, Space::Input | Space::Constant | Space::Scalar) {
                return Some(format!("module {} writes {id}", j + 1));
            }
            for (k, other) in all.iter().enumerate().filter(|(k, _)| *k != j) {
                if let Some((_, theirs)) = other.writes.iter().find(|w| meet(w, write)) {
                    return Some(format!("modules {} and {} write {id} and {theirs}", j + 1, k + 1));
                }
                for (_, theirs) in other.reads.iter().filter(|r| meet(r, write)) {
                    let handed_over = range.0 == Space::Arena && k == j + 1;
                    if !handed_over {
                        return Some(format!("module {} reads {theirs}, which module {} writes as {id}", k + 1, j + 1));
                    }
                }
            }
        }
    }
    // Parameters belong to one module, whether or not it writes them.
    for (k, t) in all.iter().enumerate() {
        for (range, id) in
            t.reads.iter().chain(&t.writes).filter(|r| matches!(r.0.0, Space::Parameter | Space::Optimizer))
        {
            let parameters = plan.parameters.iter().map(|p| (&p.buffer, p.module));
            let owner =
                parameters.chain(plan.optimizer_state.iter().map(|o| (&o.buffer, o.module))).find(|p| p.0 == id);
            if owner.is_none_or(|(_, module)| module != k + 1) {
                return Some(format!("module {} uses {id} ({:?}) of {owner:?}", k + 1, range.0));
            }
        }
    }
    None
}

#[test]
fn no_kernel_uses_what_another_module_owns() {
    for e in corpus() {
        assert_eq!(fault(&e.compiled.plan), None, "{}", e.name);
    }
}

/// A plan in which one operand of a module is another module's is refused, here and by the plan's own validation.
#[test]
fn a_plan_that_mixes_modules_is_refused() {
    let e = small().iter().find(|e| e.name == "mnist_cnn.conv-heads").expect("compiled");
    let refused = |what: &str, doctor: &dyn Fn(&mut Plan) -> (String, String)| {
        let mut plan = e.compiled.plan.clone();
        let (from, to) = doctor(&mut plan);
        let kernels = plan.modules[2].step.kernels.iter_mut();
        let mut renamed = 0;
        kernels.for_each(|k| {
            k.run.rename_buffers(&mut |id| {
                if *id == from {
                    id.clone_from(&to);
                    renamed += 1;
                }
            });
        });
        assert!(renamed > 0, "{what}: {from} is not used");
        let found = fault(&plan);
        assert!(found.is_some(), "{what}: {from} replaced by {to} went unnoticed");
        let refusal = slrc_plan::validate::validate(&plan).expect_err(what).to_string();
        assert!(refusal.contains("isolation"), "{what}: {refusal}");
    };
    let buffer = |plan: &Plan, name: &str| {
        let p = plan.parameters.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("parameter {name}"));
        p.buffer.clone()
    };
    refused("another module's head", &|p| (buffer(p, "head.3.fc2.bias"), buffer(p, "head.2.fc2.bias")));
    refused("the boundary before last", &|p| (p.boundaries[1].x.clone(), p.boundaries[0].x.clone()));
    refused("another module's metric", &|p| (p.modules[2].metrics.loss.clone(), p.modules[1].metrics.loss.clone()));
}

fn parts() -> Partitioned {
    let file = common::small("mnist_cnn");
    let net = import(&file, &SpecFile::default().import_options().expect("options")).expect("import");
    let cuts = candidates(&net, 0).cuts;
    apply(&net, &cuts[..3])
}

/// The same network, cut where shortcuts are carried along.
fn parts_with_skips() -> Partitioned {
    let file = common::small("mnist_cnn");
    let net = import(&file, &SpecFile::default().import_options().expect("options")).expect("import");
    let cuts: Vec<Candidate> = candidates(&net, 1).cuts.into_iter().filter(|c| !c.carried.is_empty()).collect();
    apply(&net, &cuts)
}

#[test]
fn a_sound_partition_is_accepted() {
    let p = parts();
    assert_eq!(verify_isolation(&p), Ok(()));
    let sizes: Vec<usize> = (1..=4).map(|k| p.module.iter().filter(|m| **m == Some(k)).count()).collect();
    assert!(sizes.iter().all(|n| *n > 0) && sizes.len() == 4, "{sizes:?}");
}

/// Every node that carries gradients, put into another module, is found.
#[test]
fn a_node_of_another_module_is_found() {
    let p = parts();
    let live: Vec<NodeId> = p.graph.ids().filter(|id| p.module[id.index()].is_some()).collect();
    let mut found = 0;
    for &id in &live {
        let k = p.module[id.index()].expect("filtered");
        let mut doctored = p.clone();
        doctored.module[id.index()] = Some(if k == 1 { 3 } else { k - 1 });
        // A node between two boundaries has a neighbour in its own module on one side at least, unless nothing of the
        // module precedes or follows it.
        let neighbours = p.graph.users(id).into_iter().chain(p.graph.node(id).operands.iter().copied());
        if neighbours.into_iter().any(|n| p.module[n.index()] == Some(k)) {
            assert!(verify_isolation(&doctored).is_err(), "{id} moved out of module {k} went unnoticed");
            found += 1;
        }
    }
    assert!(found > 100 && found + 4 >= live.len(), "{found} of {} nodes tried", live.len());
}

/// A boundary whose users read the value before the `detach` is found, at each boundary.
#[test]
fn a_removed_detach_is_found() {
    for p in [parts(), parts_with_skips()] {
        assert_eq!(verify_isolation(&p), Ok(()));
        for (k, boundary) in p.boundaries.iter().enumerate() {
            boundary.iter().for_each(|&detached| without_detach(&p, k + 1, detached));
        }
    }
}

fn without_detach(p: &Partitioned, k: usize, boundary: NodeId) {
    assert!(matches!(p.graph.node(boundary).op, Op::Detach(_)));
    let before = p.graph.node(boundary).operands[0];
    let mut graph = Graph::like(&p.graph);
    graph.roots.clone_from(&p.graph.roots);
    for id in p.graph.ids() {
        let mut node: Node = p.graph.node(id).clone();
        node.operands.iter_mut().filter(|o| **o == boundary).for_each(|o| *o = before);
        assert_eq!(graph.add(node), id, "numbers stay");
    }
    let doctored = Partitioned { graph, ..p.clone() };
    let e = verify_isolation(&doctored).expect_err("a missing detach").to_string();
    assert!(e.contains(&format!("of module {k} reaches")) && e.contains("without a detach"), "{e}");
}
