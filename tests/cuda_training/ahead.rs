//! Steps queued ahead: batches on a stream of their own and reports a step late give what one step after the other
//! gives, in every order that streams allow; and what keeps the streams in order is needed.

use serde::{Deserialize, Serialize};
use slrc_runtime::cuda::Launching;
use slrc_runtime::session::Session;

use super::support::cuda_host::{Options, Order, Ran, Streams, in_child, real};
use super::{Case, Tensors, bits, case, feed_seeded, named, session_on_cuda, values};

/// How a run goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) case: Case,
    /// Whether steps are queued ahead.
    pub(super) ahead: bool,
}

/// Everything a run yields, in bits.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Yield {
    /// Of every step: loss and accuracy by module.
    pub(super) reports: Vec<Vec<u32>>,
    /// After the last step.
    pub(super) weights: Tensors,
}

/// Trains on another batch every step.
fn train(run: &Run, session: &mut Session) -> Yield {
    let steps = run.case.steps;
    let ahead = if run.ahead { session.passes_ahead() as u64 } else { 0 };
    let (mut queued, mut reports) = (0, Vec::new());
    for done in 0..steps {
        while queued < steps && queued - done <= ahead {
            feed_seeded(session, 100 + queued);
            session.queue_pass(queued, steps).expect("a step is queued");
            queued += 1;
        }
        let report = session.finish_pass().expect("a step is finished");
        reports.push(bits(&report.iter().flat_map(|r| [r.loss, r.accuracy]).collect::<Vec<f32>>()));
    }
    Yield { reports, weights: named(session.parameters().expect("parameters")) }
}

pub(super) fn on_cuda(run: Run) -> Yield {
    let mut session = session_on_cuda(&run.case);
    train(&run, &mut session)
}

fn runs(case: Case) -> [Run; 2] {
    [false, true].map(|ahead| Run { case: case.clone(), ahead })
}

/// Every way in which streams and threads may run.
pub(super) const WAYS: [(Order, Streams); 6] = [
    (Order::Forward, Streams::Eager),
    (Order::Reverse, Streams::Lazy),
    // The first stream is that of the programs.
    (Order::Forward, Streams::Late(1)),
    (Order::Random(1), Streams::Random(1)),
    (Order::Forward, Streams::Random(2)),
    (Order::Forward, Streams::Random(3)),
];

#[test]
fn steps_ahead_are_the_same_steps() {
    for (model, modules, graphs) in [("mnist_cnn", 3, true), ("tokens_bert", 2, true), ("mnist_mlp", 2, false)] {
        let spec = format!("{{batch: 4, partition: {{modules: {modules}}}, reconcile: {{mode: exact}}}}");
        let [base, ahead] = runs(Case { graphs, ..case(model, &spec, 5) });
        let go = |run: &Run, (order, streams)| {
            let options = Options { order, streams, ..Options::default() };
            in_child("ahead::steps_ahead_are_the_same_steps", &options, run.clone(), on_cuda)
        };
        let expected = go(&base, WAYS[0]).value;
        let other = |a: &Vec<u32>| expected.reports.iter().filter(|b| *b == a).count() == 1;
        assert!(expected.reports.iter().all(other), "steps that are alike could be taken for each other");
        for way in WAYS {
            assert_eq!(go(&ahead, way).value, expected, "{model}: {way:?}");
            if real() {
                break; // A real device has no options.
            }
        }
    }
}

fn small() -> Case {
    case("mnist_mlp", "{batch: 4, partition: {modules: 2}, reconcile: {mode: exact}}", 4)
}

/// A run in which one call of a function does nothing.
fn without(skip: String, streams: Streams) -> Ran<Yield> {
    let [_, ahead] = runs(small());
    let options = Options { skip, streams, ..Options::default() };
    in_child("ahead::every_wait_is_needed", &options, ahead, on_cuda)
}

#[test]
fn every_wait_is_needed() {
    if real() {
        return; // A real device leaves nothing out.
    }
    let whole = without(String::new(), Streams::Eager);
    // The first batch waits for nothing: each of the others for the last readers of its inputs and of its labels. All
    // steps wait for their batch.
    let waits = whole.counts.calls("cuStreamWaitEvent");
    assert_eq!(waits, 4 + 3 * 2);
    // What overtakes programs or is overtaken by them.
    let ways = || [Streams::Late(1), Streams::Late(2), Streams::Lazy].into_iter();
    for call in 1..=waits {
        let noticed = |streams| without(format!("cuStreamWaitEvent:{call}"), streams).value != whole.value;
        assert!(ways().any(noticed), "nothing depends on wait {call} between streams");
    }
    // The host's own: the last is for the last report.
    let last = whole.counts.calls("cuEventSynchronize");
    let early = without(format!("cuEventSynchronize:{last}"), Streams::Lazy);
    assert_ne!(early.value.reports, whole.value.reports, "nothing depends on the host's wait for a report");
    assert_eq!(early.value.weights, whole.value.weights);
}

/// What the steps of a run say, one with an index outside its table among them.
fn faulty(case: Case) -> Vec<String> {
    let mut session = session_on_cuda(&case);
    let input = session.plan().inputs.iter().find(|i| i.index_below.is_some()).expect("token ids").clone();
    let b = session.input_buffer(&input.name).expect("input").clone();
    let legal = values(&input, b.dtype, b.count(), 7);
    let mut wrong = legal.clone();
    wrong[..4].copy_from_slice(&(input.index_below.expect("a bound") as i32).to_le_bytes());
    feed_seeded(&mut session, 7);
    let mut said = Vec::new();
    let queue = |session: &mut Session, step: u64, bytes: &[u8]| {
        session.set_input(&input.name, bytes).expect("input");
        session.queue_pass(step, 5).expect("a step is queued");
    };
    let say = |finished: Result<Vec<_>, _>| {
        finished.map_or_else(|e: slrc_runtime::device::DeviceError| e.to_string(), |_| "fine".into())
    };
    queue(&mut session, 0, &legal);
    queue(&mut session, 1, &wrong);
    said.push(say(session.finish_pass()));
    queue(&mut session, 2, &legal);
    said.push(say(session.finish_pass()));
    // After an error no step is unfinished, and what follows is judged on its own.
    queue(&mut session, 3, &legal);
    said.push(say(session.finish_pass()));
    said
}

/// A fault is told by the step that met it, neither by the one before nor by the one after.
#[test]
fn a_fault_is_its_own_steps() {
    for launching in [Launching::Graphs, Launching::Eager] {
        let graphs = launching == Launching::Graphs;
        for streams in [Streams::Eager, Streams::Lazy, Streams::Random(1)] {
            let case = Case { graphs, ..case("tokens_bert", "{batch: 2, partition: {modules: 2}}", 5) };
            let options = Options { streams, ..Options::default() };
            let ran = in_child("ahead::a_fault_is_its_own_steps", &options, case, faulty);
            let [before, fault, after] = &ran.value[..] else { panic!("three answers") };
            assert_eq!((&before[..], &after[..]), ("fine", "fine"), "{streams:?}");
            assert!(fault.contains("node_embedding") && fault.ends_with("lies outside its table"), "{fault}");
        }
    }
}
