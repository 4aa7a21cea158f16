//! Whole training steps on the CUDA device against the CPU device, which other tests prove right.
//!
//! The kernels run on the stand-in device (tests/cuda-host) from the very source a GPU would get, through the very
//! runtime; with `SLRC_CUDA=real` on a machine with a GPU, on that.

#[path = "cuda_training/ahead.rs"]
mod ahead;
#[path = "cuda_training/in_turn.rs"]
mod in_turn;
#[path = "cuda_training/libraries.rs"]
mod libraries;
#[path = "cuda_training/precision.rs"]
mod precision;
#[path = "cuda_training/sanitized.rs"]
mod sanitized;
mod support;
#[path = "cuda_training/together.rs"]
mod together;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_protobuf::{Message as _, ModelProto, NodeProto};
use serde::{Deserialize, Serialize};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::{Compiled, compile};
use slrc_compiler::spec::{ColumnSums, PartitionFile, SpecFile};
use slrc_compiler::weights::initial_weights;
use slrc_plan::plan::InputDecl;
use slrc_plan::random::{Sequence, stream_of};
use slrc_plan::{DType, Plan, Space};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::cuda::code::Kernels;
use slrc_runtime::cuda::{CudaDevice, Launching, Libraries, Residency};
use slrc_runtime::device::Device;
use slrc_runtime::session::{NamedTensor, Session};
use support::cuda_host::{Counts, Options, Order, Streams, in_child, real};
use support::relative;

/// Most that devices may differ by, relative to a tensor's largest element. Both compute in f32; they sum in another
/// order and differ in the last place of `exp` and its like.
#[derive(Clone, Copy)]
struct Limits {
    /// Losses of the first step: means of few numbers.
    loss: f64,
    /// Gradients of the first step and numbers at boundaries: long sums.
    gradient: f64,
    /// Whatever follows from the first step: weights, later losses, logits.
    later: f64,
}

const EXACT: Limits = Limits { loss: 2e-6, gradient: 1e-5, later: 1e-5 };
/// Finite differences take the difference of two gradients times lambda / s = 300: roundings of 1e-6 are up to 3e-4.
const DIFFERENCES: Limits = Limits { loss: 2e-6, gradient: 3e-4, later: 3e-5 };

/// What is trained, and how the device runs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    /// A folder of `models/`, or a golden network.
    model: String,
    /// A value of the model behind which a Dropout node is put.
    dropout: Option<String>,
    spec: String,
    steps: u64,
    graphs: bool,
    /// Whether modules take turns on the device.
    in_turn: bool,
    /// What `--libraries` is given.
    libraries: String,
}

impl Case {
    fn residency(&self) -> Residency {
        if self.in_turn { Residency::InTurn } else { Residency::All }
    }

    fn libraries(&self) -> Libraries {
        self.libraries.parse().expect("libraries")
    }

    fn launching(&self) -> Launching {
        if self.graphs { Launching::Graphs } else { Launching::Eager }
    }

    /// Loads a plan with its kernels as the case has it.
    fn load(&self, plan: &Plan, kernels: &Kernels) -> CudaDevice {
        let (residency, libraries) = (self.residency(), self.libraries());
        CudaDevice::load(plan, 0, kernels, self.launching(), residency, libraries).expect("device")
    }
}

/// Bits of tensors by name.
type Tensors = BTreeMap<String, Vec<u32>>;

/// What training yields. Numbers are compared by their bits where devices must agree exactly.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Trained {
    /// Of every step: losses by module.
    losses: Vec<Vec<u32>>,
    /// Of the first step: discord, cosine and ratio by boundary.
    boundaries: Vec<[u32; 3]>,
    /// Optimizer state after the first step: with momentum, the gradients.
    gradients: Tensors,
    /// After the last step.
    weights: Tensors,
    /// Logits of the batch after the last step.
    logits: Vec<u32>,
    /// Bytes of device memory; 0 for the CPU.
    allocated: usize,
}

/// The model with a Dropout node between `value` and those who read it.
fn with_dropout(model: &Path, value: &str, folder: &Path) -> PathBuf {
    let mut proto = ModelProto::parse_from_bytes(&std::fs::read(model).expect("model")).expect("a model");
    let graph = proto.graph.mut_or_insert_default();
    let at = graph.node.iter().position(|n| n.output.iter().any(|o| o == value)).expect("the value's node");
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == value) {
        *input = "dropped".into();
    }
    let node = NodeProto {
        name: "dropout".into(),
        op_type: "Dropout".into(),
        input: vec![value.into()],
        output: vec!["dropped".into()],
        ..NodeProto::default()
    };
    graph.node.insert(at + 1, node);
    let path = folder.join("model.onnx");
    std::fs::write(&path, proto.write_to_bytes().expect("bytes")).expect("a file");
    path
}

fn compiled(case: &Case, target: &str) -> (Compiled, Vec<NamedTensor>) {
    let own = support::root().join("models").join(&case.model).join("model.onnx");
    let golden = support::root().join("tests/goldens").join(format!("{}.onnx", case.model));
    let path = if own.exists() { own } else { golden };
    let folder = tempfile::tempdir().expect("a folder");
    let path = match &case.dropout {
        Some(value) => with_dropout(&path, value, folder.path()),
        None => path,
    };
    let file = OnnxFile::open(&path).expect("model");
    let mut spec: SpecFile = slrc_plan::yaml::from_str(&case.spec).expect("spec");
    spec.target = Some(target.into());
    if target == "cpu" {
        // Which rounds nothing: the reference of all precisions.
        spec.precision = None;
    }
    if case.libraries != "none" {
        // They lack sums along columns.
        spec.column_sums = Some(ColumnSums::Kernels);
    }
    let c = compile(&file, &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    let (weights, _) = initial_weights(&c, &file, &[]).expect("weights");
    let tensors = weights.into_iter().map(|w| NamedTensor { name: w.name, shape: w.shape, data: w.data }).collect();
    (c, tensors)
}

/// Seeded values of an input, legal ones where they are indices.
fn values(input: &InputDecl, dtype: DType, count: usize, seed: u64) -> Vec<u8> {
    let mut random = Sequence::new(seed, stream_of(&input.name), 0);
    let mut whole = || (random.unit() * input.index_below.unwrap_or(2) as f32) as i32;
    match dtype {
        DType::I32 => (0..count).flat_map(|_| whole().to_le_bytes()).collect(),
        DType::U8 => (0..count).map(|_| whole() as u8).collect(),
        DType::Bit => unreachable!("inputs are of whole bytes"),
        DType::F32 => {
            let mut random = Sequence::new(seed, stream_of(&input.name), 0);
            (0..count).flat_map(|_| random.normal().to_le_bytes()).collect()
        }
    }
}

fn feed(session: &mut Session) {
    feed_seeded(session, 7);
}

fn feed_seeded(session: &mut Session, seed: u64) {
    for input in session.plan().inputs.clone() {
        let b = session.input_buffer(&input.name).expect("input").clone();
        session.set_input(&input.name, &values(&input, b.dtype, b.count(), seed)).expect("input");
    }
    let mut random = Sequence::new(seed, stream_of("labels"), 0);
    let classes = session.plan().labels.classes as f32;
    let labels: Vec<i32> = (0..session.labels_buffer().count()).map(|_| (random.unit() * classes) as i32).collect();
    session.set_labels(&labels).expect("labels");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn named(tensors: Vec<NamedTensor>) -> Tensors {
    tensors.into_iter().map(|t| (t.name, bits(&t.data))).collect()
}

fn train(case: &Case, plan: Plan, device: Box<dyn Device>, allocated: usize, tensors: &[NamedTensor]) -> Trained {
    let mut session = Session::new(plan, device, tensors).expect("session");
    feed(&mut session);
    let (mut losses, mut boundaries, mut gradients) = (Vec::new(), Vec::new(), BTreeMap::new());
    for step in 0..case.steps {
        let report = session.pass(step, case.steps).expect("step");
        losses.push(bits(&report.iter().map(|r| r.loss).collect::<Vec<f32>>()));
        if step == 0 {
            boundaries = report
                .iter()
                .filter_map(|r| r.boundary)
                .map(|b| [b.discord, b.cosine, b.ratio].map(f32::to_bits))
                .collect();
            gradients = named(session.optimizer_state().expect("state"));
        }
    }
    let weights = named(session.parameters().expect("parameters"));
    let (_, logits) = session.eval().expect("eval");
    Trained { losses, boundaries, gradients, weights, logits: bits(&logits), allocated }
}

fn on_cuda(case: Case) -> Trained {
    let (c, tensors) = compiled(&case, "cuda");
    let device = case.load(&c.plan, &c.kernels.expect("kernels").into());
    let allocated = device.allocated();
    train(&case, c.plan, Box::new(device), allocated, &tensors)
}

/// A case's plan on the device, with its weights.
fn session_on_cuda(case: &Case) -> Session {
    let (c, tensors) = compiled(case, "cuda");
    let device = case.load(&c.plan, &c.kernels.expect("kernels").into());
    Session::new(c.plan, Box::new(device), &tensors).expect("session")
}

/// The same modules on the CPU, for which others may take the least.
fn on_cpu(case: &Case) -> Trained {
    let cuts = compiled(case, "cuda").0.cuts;
    let mut spec: SpecFile = slrc_plan::yaml::from_str(&case.spec).expect("spec");
    if !cuts.is_empty() {
        let allow_skips = spec.partition.allow_skips;
        let at = cuts.into_iter().map(|c| c.name).collect();
        spec.partition = PartitionFile { at, allow_skips, ..PartitionFile::default() };
    }
    let spec = slrc_plan::yaml::to_string(&spec).expect("text");
    let (c, tensors) = compiled(&Case { spec, ..case.clone() }, "cpu");
    let device = CpuDevice::load(&c.plan, None).expect("device");
    train(case, c.plan, Box::new(device), 0, &tensors)
}

fn numbers(bits: &[u32]) -> Vec<f64> {
    bits.iter().map(|&b| f64::from(f32::from_bits(b))).collect()
}

/// Zero but for rounding, such as the gradient of a key's bias, which does not reach the softmax.
fn vanishes(bits: &[u32]) -> bool {
    numbers(bits).iter().all(|x| x.abs() < 1e-6)
}

/// Largest relative difference of tensors by name, and where it is.
fn worst<'a>(tensors: impl Iterator<Item = (&'a String, &'a Vec<u32>, &'a Vec<u32>)>) -> (f64, String) {
    let mut worst = (0.0, String::new());
    for (name, ours, reference) in tensors {
        let r = relative(&numbers(ours), &numbers(reference));
        if r.is_nan() || r > worst.0 {
            worst = (r, name.clone());
        }
    }
    worst
}

fn compare(case: &Case, ours: &Trained, reference: &Trained, limits: Limits) {
    let loss = |t: &Trained, step: usize| numbers(&t.losses[step]);
    let last = case.steps as usize - 1;
    let boundary = |t: &Trained| -> Vec<f64> {
        // A cosine near zero has no accuracy of its own: judge it by its distance from -2.
        let shifted = |b: &[u32; 3]| [numbers(b)[0], numbers(b)[1] + 2.0, numbers(b)[2]];
        t.boundaries.iter().flat_map(shifted).collect()
    };
    let mut found: Vec<(&str, f64, f64, String)> = vec![
        ("loss", relative(&loss(ours, 0), &loss(reference, 0)), limits.loss, String::new()),
        ("later loss", relative(&loss(ours, last), &loss(reference, last)), limits.later, String::new()),
        ("logits", relative(&numbers(&ours.logits), &numbers(&reference.logits)), limits.later, String::new()),
    ];
    for (o, r) in boundary(ours).iter().zip(boundary(reference)) {
        found.push(("boundary", (o - r).abs() / r.abs(), limits.gradient, String::new()));
    }
    assert!(ours.gradients.keys().eq(reference.gradients.keys()), "the devices have other optimizer state");
    assert!(ours.weights.keys().eq(reference.weights.keys()), "the devices have other weights");
    let pairs =
        |ours, reference| std::iter::zip::<&Tensors, &Tensors>(ours, reference).map(|((n, o), (_, r))| (n, o, r));
    let gradients = pairs(&ours.gradients, &reference.gradients);
    for (name, ours, _) in gradients.clone().filter(|(_, _, r)| vanishes(r)) {
        assert!(vanishes(ours), "{name}");
    }
    let (r, name) = worst(gradients.filter(|(_, _, r)| !vanishes(r)));
    found.push(("gradient", r, limits.gradient, name));
    let (r, name) = worst(pairs(&ours.weights, &reference.weights));
    found.push(("weight", r, limits.later, name));
    #[allow(clippy::print_stdout, reason = "the measured differences, for --nocapture")]
    {
        println!("{}: {found:?}", case.model);
    }
    for (what, r, limit, name) in found {
        assert!(r < limit, "{} {what} {name}: {r:e} is not below {limit:e}", case.model);
    }
}

/// The plan's counts against the device's.
fn check_counts(case: &Case, counts: &Counts, allocated: usize) {
    let (c, _) = compiled(case, "cuda");
    let steps = case.steps;
    let launches =
        |f: &dyn Fn(&slrc_plan::plan::ModulePlan) -> usize| c.plan.modules.iter().map(f).sum::<usize>() as u64;
    let expected = steps * launches(&|m| m.step.launches.len()) + launches(&|m| m.eval.launches.len());
    assert_eq!(counts.launches.values().sum::<u64>(), expected, "every launch of the plan, and no other, runs");
    let programs = c.plan.modules.len() as u64;
    if case.graphs {
        assert_eq!(counts.graphs_captured, 2 * programs, "a program is recorded once");
        assert_eq!(counts.graph_launches, (steps + 1) * programs);
        assert_eq!(counts.graph_nodes_executed, expected);
    } else {
        assert_eq!((counts.graphs_captured, counts.graph_launches), (0, 0));
    }
    // Planned is allocated: nothing but the alignment of spaces to 256 bytes and the runtime's few bytes is added.
    let planned: usize = Space::ALL.iter().map(|&s| c.plan.memory.of(s)).sum();
    assert_eq!(counts.peak_bytes, allocated as u64);
    assert!((planned..planned + 256 * (Space::ALL.len() + 2)).contains(&allocated), "{planned} {allocated}");
    assert_eq!((counts.calls("cuMemAlloc_v2"), counts.calls("cuMemFree_v2")), (1, 1));
}

/// A case of a model as it is, in graphs.
fn case(model: &str, spec: &str, steps: u64) -> Case {
    Case {
        model: model.into(),
        dropout: None,
        spec: spec.into(),
        steps,
        graphs: true,
        in_turn: false,
        libraries: "none".into(),
    }
}

/// One training, run in every way the device may run it, against the CPU.
fn check(test: &str, case: Case, limits: Limits) {
    let base = in_child(test, &Options::default(), case.clone(), on_cuda);
    compare(&case, &base.value, &on_cpu(&case), limits);
    let eager = Case { graphs: false, ..case.clone() };
    if real() {
        assert_eq!(in_child(test, &Options::default(), eager, on_cuda).value, base.value, "launch by launch");
        return;
    }
    check_counts(&case, &base.counts, base.value.allocated);
    for (order, streams, case) in [
        (Order::Reverse, Streams::Lazy, &case),
        (Order::Random(1), Streams::Random(1), &case),
        (Order::Random(2), Streams::Lazy, &eager),
        (Order::Forward, Streams::Eager, &eager),
    ] {
        let ran = in_child(test, &Options { order, streams, ..Options::default() }, case.clone(), on_cuda);
        assert_eq!(ran.value, base.value, "{}: {order:?}, {streams:?}, graphs {}: other bits", case.model, case.graphs);
        check_counts(case, &ran.counts, ran.value.allocated);
    }
}

#[test]
fn convolutional() {
    let spec = "{batch: 4, partition: {modules: 2}, reconcile: {mode: exact}}";
    check("convolutional", case("mnist_cnn", spec, 3), EXACT);
}

/// Products that make operands as they read them, and products that are computed again.
#[test]
fn operands_made_as_they_are_read() {
    let more = "prologues: products, recompute: products";
    for (model, batch) in [("mnist_cnn", 4), ("mnist_vit", 2)] {
        let spec = format!("{{batch: {batch}, partition: {{modules: 2}}, reconcile: {{mode: exact}}, {more}}}");
        check("operands_made_as_they_are_read", case(model, &spec, 2), EXACT);
    }
}

#[test]
fn convolutional_by_finite_differences() {
    let spec = "{batch: 4, partition: {modules: 3}}";
    check("convolutional_by_finite_differences", case("mnist_cnn", spec, 2), DIFFERENCES);
}

#[test]
fn perceptron() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: exact, distance: squared, lambda: 1.0}}";
    check("perceptron", case("mnist_mlp", spec, 3), EXACT);
}

/// Six passes: two steps.
#[test]
fn micro_batches() {
    let spec = "{batch: 12, micro-batches: 3, partition: {modules: 2}, reconcile: {mode: exact}, \
                optimizer: {momentum: 0.9, nesterov: true}}";
    check("micro_batches", case("mnist_cnn", spec, 6), EXACT);
}

#[test]
fn vision_transformer() {
    let spec = "{batch: 2, partition: {modules: 2}, reconcile: {mode: exact, distance: relative, lambda: 0.1}}";
    check("vision_transformer", case("mnist_vit", spec, 2), EXACT);
}

#[test]
fn token_classifier() {
    let spec = "{batch: 3, partition: {modules: 2}, reconcile: {mode: tangent}}";
    check("token_classifier", case("tokens_bert", spec, 2), EXACT);
}

/// Two skips across three cuts: copied from one boundary to the next.
#[test]
fn skips() {
    let spec = "{batch: 4, partition: {modules: 4, allow-skips: 2}, reconcile: {mode: exact}}";
    check("skips", case("unet", spec, 2), EXACT);
}

/// End-to-end backpropagation, and the other optimizer. It divides a gradient by its size: without a large `eps`, the
/// step where a gradient is but rounding would be as large as any.
#[test]
fn one_module() {
    let optimizer = "{kind: adamw, lr: 0.001, weight-decay: 0.01, eps: 0.001}";
    let spec = &format!("{{batch: 3, partition: {{modules: 1}}, optimizer: {optimizer}}}");
    check("one_module", case("tokens_bert", spec, 2), EXACT);
}

/// Random numbers are functions of the seed and the step: the same on both devices.
#[test]
fn with_random_numbers() {
    let spec = "{batch: 8, partition: {modules: 2}, reconcile: {mode: exact}, seed: 12345678901}";
    let plain = case("mnist_mlp", spec, 3);
    check("with_random_numbers", Case { dropout: Some("relu".into()), ..plain }, EXACT);
}

fn out_of_range(case: Case) -> Vec<String> {
    let mut session = session_on_cuda(&case);
    feed(&mut session);
    let input = session.plan().inputs.iter().find(|i| i.index_below.is_some()).expect("token ids").clone();
    let b = session.input_buffer(&input.name).expect("input").clone();
    let legal = values(&input, b.dtype, b.count(), 7);
    let mut wrong = legal.clone();
    wrong[..4].copy_from_slice(&(input.index_below.expect("a bound") as i32).to_le_bytes());
    session.set_input(&input.name, &wrong).expect("input");
    let error = session.pass(0, 2).expect_err("an index outside its table").to_string();
    // Told once: what follows is judged on its own.
    session.set_input(&input.name, &legal).expect("input");
    let then = session.pass(1, 2).map_or_else(|e| e.to_string(), |_| "fine".into());
    vec![error, then]
}

/// A kernel that meets data it cannot work with says so, with the module and the node.
#[test]
fn index_out_of_range() {
    let case = case("tokens_bert", "{batch: 2, partition: {modules: 2}}", 2);
    for graphs in [true, false] {
        let options = Options { streams: Streams::Lazy, ..Options::default() };
        let ran = in_child("index_out_of_range", &options, Case { graphs, ..case.clone() }, out_of_range);
        let [error, then] = &ran.value[..] else { panic!("two answers") };
        assert!(
            error.starts_with("module 1, kernel ") && error.ends_with("an index lies outside its table"),
            "{error}"
        );
        assert!(error.contains("node_embedding"), "the node is not named: {error}");
        assert_eq!(then, "fine");
    }
}

/// Writes more than pinned memory holds, without waiting in between; returns what the first and the last write left.
fn many_writes(case: Case) -> (Vec<u8>, Vec<u8>) {
    let (c, _) = compiled(&case, "cuda");
    let mut device = case.load(&c.plan, &c.kernels.expect("kernels").into());
    let buffer = |id: &str| c.plan.buffers.iter().find(|b| b.id == id).expect("a buffer").clone();
    let (input, labels) = (buffer(&c.plan.inputs[0].buffer), buffer(&c.plan.labels.buffer));
    device.write(&input, &first_write(input.bytes)).expect("input");
    for i in 0..WRITES {
        device.write(&labels, &vec![i as u8; labels.bytes]).expect("labels");
    }
    (device.read(&input).expect("input"), device.read(&labels).expect("labels"))
}

/// Three times what is written per step: both halves of the pinned memory are used, and the first again.
const WRITES: usize = 3 * 28 * 28 * 8 * 4 / 64;

fn first_write(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Pinned memory is not filled again before the device has read it, even where the device is late.
#[test]
fn writes_arrive_whole_and_in_order() {
    let case = case("mnist_mlp", "{batch: 8, partition: {modules: 1}}", 0);
    for streams in [Streams::Eager, Streams::Lazy, Streams::Random(3)] {
        let options = Options { streams, ..Options::default() };
        let ran = in_child("writes_arrive_whole_and_in_order", &options, case.clone(), many_writes);
        let (input, labels) = ran.value;
        assert!(input == first_write(input.len()), "{streams:?}: the first write's bytes were overwritten on the way");
        assert!(labels.iter().all(|&b| b == (WRITES - 1) as u8), "{streams:?}");
        if !real() {
            assert_eq!(ran.counts.calls("cuMemcpyHtoDAsync_v2"), WRITES as u64 + 1);
        }
    }
}
