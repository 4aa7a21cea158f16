//! Products whose operands are rounded to TF32 or bf16, on the CUDA device against the f64 interpreter.
//!
//! The oracle rounds the operands itself, by arithmetic rather than by bits, and then multiplies without rounding. So
//! what is left between the two is f32's rounding of sums, whatever the precision of the operands.

#[path = "tensor_cores/columns.rs"]
mod columns;
#[path = "tensor_cores/library.rs"]
mod library;
#[path = "tensor_cores/operand_sums.rs"]
mod operand_sums;
#[path = "tensor_cores/prologues.rs"]
mod prologues;
#[path = "tensor_cores/rows.rs"]
mod rows;
mod support;

use serde::Serialize;
use serde::de::DeserializeOwned;
use slrc_compiler::ir::graph::{Input, InputId, InputKind, RootKind};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::samples::all;
use slrc_compiler::ir::{Builder, Graph, Root, Tensor, Type};
use slrc_plan::random::{Sequence, stream_of};
use slrc_plan::{KernelOp, Precision};
use slrc_runtime::cuda::{CudaDevice, Launching, Libraries, Residency};
use slrc_runtime::device::Device as _;
use support::cuda_host::{Options, Order, Sanitizer, Streams, in_child, real};
use support::graph_plan::GraphPlan;
use support::rounding::rounded;

/// f32 rounding of sums of at most 17000 terms of order one.
const TOLERANCE: f64 = 5e-6;

struct Case {
    name: String,
    graph: Graph,
}

/// The product of matrices of `m x k` and `k x n`, either of them given transposed.
fn product(m: usize, n: usize, k: usize, a_transposed: bool, b_transposed: bool) -> Case {
    let mut graph = Graph::new("product");
    let mut b = Builder::new(&mut graph);
    let mut operand = |i: usize, [rows, cols]: [usize; 2], transposed: bool| {
        let shape = if transposed { [cols, rows] } else { [rows, cols] };
        let input = Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(shape) };
        let id = b.graph_mut().add_input(input);
        let x = b.input(id);
        if transposed { b.matrix_transpose(x) } else { x }
    };
    let (x, y) = (operand(0, [m, k], a_transposed), operand(1, [k, n], b_transposed));
    let value = b.matmul(x, y);
    graph.roots = vec![Root { kind: RootKind::Output("y".into()), value }];
    Case { name: format!("{m} x {n}, {k} terms, transposed {a_transposed} {b_transposed}"), graph }
}

/// Ops that are products, all small.
fn small() -> Vec<Case> {
    let is_product = |name: &str| name.starts_with("conv") || name.starts_with("matmul");
    let samples = all().into_iter().filter(|s| is_product(&s.name));
    samples.map(|s| Case { name: s.name, graph: s.graph }).collect()
}

/// Products that take every size of tile, both layouts of both operands, and sums in parts.
fn large() -> Vec<Case> {
    let mut cases = Vec::new();
    for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
        cases.push(product(70, 90, 50, a, b));
        cases.push(product(20, 30, 17000, a, b));
    }
    cases.push(product(216 * 128, 64, 12, false, true));
    cases.push(product(60, 216 * 128, 20, true, false));
    cases.push(product(2040, 1728, 5, false, false));
    cases
}

fn cases() -> Vec<Case> {
    small().into_iter().chain(large()).collect()
}

/// Inputs of a case: f32 numbers, which are none of the format's.
fn inputs(c: &Case) -> Vec<Tensor> {
    let mut rng = Sequence::new(5, stream_of(&c.name), 0);
    let mut draw = || f64::from(rng.normal());
    c.graph.inputs.iter().map(|i| Tensor::from_fn(i.ty.shape.clone(), |_| draw())).collect()
}

fn oracle(g: &Graph, inputs: impl Iterator<Item = Tensor>) -> Tensor {
    let mut env = Env::default();
    env.inputs.extend(inputs.enumerate().map(|(i, t)| (InputId(i as u32), t)));
    evaluate(g, &env, &[g.roots[0].value]).remove(0)
}

/// Whether a case's product stays off the tensor cores: filters that see one channel each do.
fn is_depthwise(planned: &GraphPlan) -> bool {
    let mut kernels = planned.plan.modules[0].eval.kernels.iter();
    kernels.any(|k| matches!(&k.run, KernelOp::Conv(c) if c.is_depthwise()))
}

fn planned(s: &Case, precision: Precision) -> GraphPlan {
    GraphPlan::making(&s.graph, &inputs(s), &[], "cuda:sm_80", precision, 0)
}

/// The results of the cases from `first` on, so many of them.
fn on_cuda((precision, first, count): (Precision, usize, usize)) -> Vec<Vec<f64>> {
    results(precision, Libraries::None, cases().into_iter().skip(first).take(count).collect()).0
}

/// Results of cases, and how many of the cases a library computes.
fn results(precision: Precision, libraries: Libraries, cases: Vec<Case>) -> (Vec<Vec<f64>>, usize) {
    let mut by_library = 0;
    let mut run = |s: Case| {
        let (data, library) = run(&planned(&s, precision), libraries);
        by_library += usize::from(library);
        data
    };
    let data = cases.into_iter().map(&mut run).collect();
    (data, by_library)
}

/// What a case's graph yields of inputs rounded to a precision.
fn expected(c: &Case, precision: Precision) -> Tensor {
    let round = |x: &f64| if precision == Precision::F32 { *x } else { rounded(*x, precision) };
    oracle(&c.graph, inputs(c).into_iter().map(|t| Tensor::new(t.shape, t.data.iter().map(round).collect())))
}

/// Whatever the order of threads and the kind of stream, the bits are `base`; of `few`, since a sanitizer takes ten
/// times as long, neither sanitizer has anything to report.
fn holds_in_every_order<T>(test: &str, everything: &T, few: &T, base: &[Vec<f64>], body: fn(T) -> Vec<Vec<f64>>)
where
    T: Clone + Serialize + DeserializeOwned,
{
    if real() {
        return;
    }
    for (order, streams) in [(Order::Reverse, Streams::Lazy), (Order::Random(1), Streams::Eager)] {
        let options = Options { order, streams, ..Options::default() };
        assert!(in_child(test, &options, everything.clone(), body).value == base, "{order:?}: other bits");
    }
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        in_child(test, &Options { sanitizer, ..Options::default() }, few.clone(), body);
    }
}

/// The result of a plan on the CUDA device, and whether a library computes any of it.
fn run(planned: &GraphPlan, libraries: Libraries) -> (Vec<f64>, bool) {
    let kernels = planned.kernels.clone().expect("kernels").into();
    let mut device =
        CudaDevice::load(&planned.plan, 0, &kernels, Launching::Eager, Residency::All, libraries).expect("device");
    let library = !device.library().kernels[0][1].is_empty();
    (planned.run(&mut device).data, library)
}

fn check(test: &str, precision: Precision) {
    let cases = cases();
    let everything = (precision, 0, cases.len());
    let base = in_child(test, &Options::default(), everything, on_cuda).value;
    for (s, got) in cases.iter().zip(&base) {
        let want = expected(s, precision);
        let unrounded = oracle(&s.graph, inputs(s).into_iter());
        let (r, u) = (support::relative(got, &want.data), support::relative(got, &unrounded.data));
        if is_depthwise(&planned(s, precision)) {
            assert!(u < TOLERANCE, "{}: {u:e} from the product in f32", s.name);
        } else {
            assert!(r < TOLERANCE, "{}: {r:e} from the product of rounded numbers", s.name);
            assert!(u > 1e-5, "{}: {u:e} from the product of numbers as they are: nothing is rounded", s.name);
        }
    }
    holds_in_every_order(test, &everything, &(precision, 0, small().len()), &base, on_cuda);
}

#[test]
fn tf32() {
    check("tf32", Precision::Tf32);
}

#[test]
fn bf16() {
    check("bf16", Precision::Bf16);
}

/// A change of heuristics may leave a form of the kernels untried.
#[test]
fn every_form_of_a_product_is_tried() {
    let source: String = large().iter().map(|c| planned(c, Precision::Tf32).kernels.expect("kernels")).collect();
    let tried = |form: String| assert!(source.contains(&form), "no {form}");
    for (rows, cols) in [(128, 128), (128, 64), (64, 128), (64, 64)] {
        tried(format!("float acc[{}][{}][4]", rows / 32, cols / 32));
    }
    for operand in ["as", "bs"] {
        tried(format!("{operand}[t / 16][t % 16] = "));
        tried(format!("{operand}[t / 64][t % 64] = "));
    }
    tried("atomicAdd".into());
}
