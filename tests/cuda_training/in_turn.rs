//! Modules that take turns on the device (`--stream-modules`): the same bits as with all of them there, in every order
//! that streams allow, in as much memory as was said; and what keeps the copies in order is needed.

use serde::{Deserialize, Serialize};
use slrc_runtime::cuda::{Residency, device_bytes};
use slrc_runtime::session::Session;

use super::ahead::{self, WAYS};
use super::support::cuda_host::{Counts, Options, Ran, Streams, in_child, real};
use super::{Case, Tensors, bits, case, compiled, feed_seeded, named, session_on_cuda};

/// Everything a run yields, in bits.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Yield {
    /// Of every step: losses by module.
    losses: Vec<Vec<u32>>,
    /// In the middle and at the end: weights and optimizer state.
    state: Vec<Tensors>,
    /// Of the last batch, after the last step.
    logits: Vec<u32>,
}

fn state(session: &Session) -> Tensors {
    let mut all = named(session.parameters().expect("parameters"));
    all.extend(named(session.optimizer_state().expect("state")));
    all
}

/// Trains with a look at the state in the middle, evaluates, goes on from the middle's optimizer state, and evaluates.
fn on_cuda(case: Case) -> Yield {
    let mut session = session_on_cuda(&case);
    let (mut losses, mut states, mut middle) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..case.steps {
        feed_seeded(&mut session, 100 + step);
        let report = session.pass(step, case.steps).expect("a step");
        losses.push(bits(&report.iter().map(|r| r.loss).collect::<Vec<f32>>()));
        if step == case.steps / 2 {
            states.push(state(&session));
            middle = session.optimizer_state().expect("state");
        }
        if step == case.steps / 2 + 1 {
            session.eval().expect("an evaluation");
            session.set_optimizer_state(&middle).expect("state");
        }
    }
    states.push(state(&session));
    let (_, logits) = session.eval().expect("an evaluation");
    Yield { losses, state: states, logits: bits(&logits) }
}

fn check_memory(case: &Case, counts: &Counts) {
    let (c, _) = compiled(case, "cuda");
    let bytes = |residency| device_bytes(&c.plan, residency);
    assert_eq!(counts.peak_bytes, bytes(case.residency()) as u64, "what was said is allocated");
    assert_eq!(counts.calls("cuMemAlloc_v2"), 1);
    // What is saved: all weights and state, less the largest modules' of either slot, but for alignment.
    let image = |m: usize| -> usize {
        let mine = c.plan.parameters.iter().filter(|p| p.module == m).map(|p| &p.buffer);
        let all = mine.chain(c.plan.optimizer_state.iter().filter(|o| o.module == m).map(|o| &o.buffer));
        all.map(|id| c.plan.buffers.iter().find(|b| b.id == *id).expect("a buffer").bytes).sum()
    };
    let largest = |odd: usize| (1..=c.plan.modules.len()).filter(|m| m % 2 == odd).map(image).max().unwrap_or(0);
    let saved = (c.plan.memory.parameter + c.plan.memory.optimizer) as i64 - (largest(0) + largest(1)) as i64;
    let found = bytes(Residency::All) as i64 - bytes(Residency::InTurn) as i64;
    let count = (c.plan.parameters.len() + c.plan.optimizer_state.len() + 4) as i64;
    assert!((found - saved).abs() <= 256 + 64 * count, "{found} bytes are saved, not {saved}");
}

#[test]
fn modules_in_turn_learn_the_same() {
    let adam = "optimizer: {kind: adamw, lr: 0.001, eps: 0.001}";
    for (model, dropout, modules, more, graphs) in [
        ("mnist_cnn", None, "3", "reconcile: {mode: exact}", true),
        ("mnist_vit", None, "4", adam, true),
        ("tokens_bert", None, "2", "reconcile: {mode: tangent}", true),
        ("tokens_bert", None, "1", adam, true),
        ("mnist_cnn", None, "3", adam, false),
        ("unet", None, "4, allow-skips: 2", "reconcile: {mode: exact}", true),
    ] {
        let spec = format!("{{batch: 2, partition: {{modules: {modules}}}, {more}}}");
        let base = Case { dropout, graphs, ..case(model, &spec, 5) };
        let in_turn = Case { in_turn: true, ..base.clone() };
        let go = |case: &Case, (order, streams)| -> Ran<Yield> {
            let options = Options { order, streams, ..Options::default() };
            in_child("in_turn::modules_in_turn_learn_the_same", &options, case.clone(), on_cuda)
        };
        let expected = go(&base, WAYS[0]);
        // Every way once; for the others, the ways that have the streams furthest apart.
        let ways = if model == "mnist_cnn" && graphs { &WAYS[..] } else { &WAYS[1..4] };
        for &way in ways {
            let ran = go(&in_turn, way);
            assert_eq!(ran.value, expected.value, "{model} of {modules} modules: {way:?}");
            if real() {
                break; // A real device has no options.
            }
            check_memory(&base, &expected.counts);
            check_memory(&in_turn, &ran.counts);
        }
    }
}

/// Steps ahead, in which one call of a function does nothing.
fn without(skip: String, streams: Streams) -> Ran<ahead::Yield> {
    let case = Case { in_turn: true, ..case("mnist_cnn", "{batch: 2, partition: {modules: 3}}", 2) };
    let options = Options { skip, streams, ..Options::default() };
    in_child("in_turn::every_wait_is_needed", &options, ahead::Run { case, ahead: true }, ahead::on_cuda)
}

#[test]
fn every_wait_is_needed() {
    if real() {
        return; // A real device leaves nothing out.
    }
    let whole = without(String::new(), Streams::Eager);
    let (modules, steps) = (3, 2);
    // Programs wait for their module, every step; but the second of three, alone in its slot, stays there.
    let arrivals = modules * steps - (steps - 1);
    // The first and the third wait for each other's programs to leave the slot. Nothing is there at first.
    let departures = 2 * steps - 1;
    // Programs wait for each batch, and each but the first for the last readers of images and labels.
    let batches = steps + 2 * (steps - 1);
    // In the end weights are read, when the device has done all its work: that these wait, too, changes nothing.
    let reads = 2;
    let waits = arrivals + departures + batches;
    assert_eq!(whole.counts.calls("cuStreamWaitEvent"), waits + reads);
    for call in 1..=waits {
        // Programs are late, or the batch, or the modules, or all but these.
        let mut ways = (1..=3).flat_map(|stream| [Streams::Late(stream), Streams::Early(stream)]);
        let noticed = ways.any(|way| without(format!("cuStreamWaitEvent:{call}"), way).value != whole.value);
        assert!(noticed, "nothing depends on wait {call} between streams");
    }
}
