//! Attention is found, its scores are never stored, and it computes what the f64 interpreter does: values, gradients
//! and gradients of gradients, in one program each.

#[path = "attention/rounded.rs"]
mod rounded;
mod support;

use slrc_compiler::autodiff::gradients;
use slrc_compiler::ir::graph::{Input, InputId, InputKind};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::{Builder, Graph, NodeId, Root, RootKind, Tensor, Type};
use slrc_compiler::lower::{Convolutions, Draft, Names, Products, Program};
use slrc_compiler::pipeline::program;
use slrc_compiler::simplify::{Mode, close, specialise};
use slrc_plan::Precision;
use slrc_plan::random::Sequence;
use slrc_runtime::cuda::{CudaDevice, Launching, Libraries, Residency};
use support::cuda_host::{Options, Order, Sanitizer, in_child, real};
use support::graph_plan::{GraphPlan, run_on_cpu};

/// f32 rounding of products of three sums of some hundred terms, softmax between them.
const TOLERANCE: f64 = 5e-6;

/// How scores become weights of values, and how the two are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `softmax(s Q K^T) V`.
    Plain,
    /// With a constant added to the scores, the same for every batch.
    Masked,
    /// Scores as `K Q^T`, turned.
    Turned,
    /// `(V^T softmax(..)^T)^T`.
    ValuesFirst,
    /// The maximum left in the derivative, and no normalisation: `exp(s - max s) V`.
    Unnormalised,
    /// The scores are a result too.
    Shown,
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    batch: [usize; 2],
    rows: usize,
    cols: usize,
    /// Extent of queries and keys, and of values.
    inner: usize,
    width: usize,
    form: Form,
}

const fn case(name: &'static str, batch: [usize; 2], extents: [usize; 4], form: Form) -> Case {
    let [rows, cols, inner, width] = extents;
    Case { name, batch, rows, cols, inner, width, form }
}

const FUSED: &[Case] = &[
    case("plain", [2, 3], [7, 7, 4, 5], Form::Plain),
    case("more columns than rows", [2, 1], [5, 19, 3, 6], Form::Plain),
    case("more rows than columns", [1, 2], [21, 2, 3, 6], Form::Plain),
    case("masked", [2, 2], [6, 8, 4, 4], Form::Masked),
    case("turned", [1, 3], [6, 9, 4, 2], Form::Turned),
    case("values first", [2, 2], [8, 5, 3, 7], Form::ValuesFirst),
    case("unnormalised", [2, 2], [8, 5, 3, 7], Form::Unnormalised),
    case("several strips", [1, 2], [290, 330, 8, 5], Form::Plain),
    case("several tiles", [1, 2], [40, 128, 36, 70], Form::Plain),
    case("a single batch", [1, 1], [9, 9, 4, 4], Form::Plain),
    // As many matrices as a large GPU has multiprocessors: a block has all columns of one, behind the rows.
    case("many matrices", [8, 16], [33, 34, 2, 3], Form::Masked),
];

const UNFUSED: &[Case] = &[
    case("scores are a result", [2, 2], [6, 8, 4, 4], Form::Shown),
    case("queries are long", [2, 1], [4, 4, 129, 3], Form::Plain),
    case("rows fit no strip", [1, 1], [2, 2721, 2, 2], Form::Plain),
];

impl Case {
    fn scores(&self) -> usize {
        self.batch.iter().product::<usize>() * self.rows * self.cols
    }

    /// Inputs are queries, keys and values.
    fn graph(&self) -> (Graph, Vec<NodeId>) {
        let mut g = Graph::new("attention");
        let with = |a: usize, b: usize| [&self.batch[..], &[a, b]].concat();
        let shapes = [with(self.rows, self.inner), with(self.cols, self.inner), with(self.cols, self.width)];
        for (i, s) in shapes.iter().enumerate() {
            g.add_input(Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(s.clone()) });
        }
        let mut b = Builder::new(&mut g);
        let [q, k, v] = [0, 1, 2].map(|i| b.input(InputId(i)));
        let scores = if self.form == Form::Turned {
            let turned = b.matrix_transpose(q);
            let s = b.matmul(k, turned);
            b.matrix_transpose(s)
        } else {
            let turned = b.matrix_transpose(k);
            b.matmul(q, turned)
        };
        let mut s = b.scale(scores, 0.7);
        if self.form == Form::Masked {
            let mask = (0..self.rows * self.cols).map(|i| if i % 3 == 1 { -4.0 } else { 0.25 }).collect();
            let mask = b.constant(Type::f32([1, 1, self.rows, self.cols]), mask);
            let full = b.shape(s);
            let mask = b.broadcast(mask, &full);
            s = b.add(s, mask);
        }
        let weights = if self.form == Form::Unnormalised {
            let m = b.max(s, &[3]);
            let full = b.shape(s);
            let m = b.broadcast(m, &full);
            let d = b.sub(s, m);
            b.map(slrc_plan::ScalarFn::Exp, &[d])
        } else {
            b.softmax(s, &[3])
        };
        let y = if self.form == Form::ValuesFirst {
            let (v, w) = (b.matrix_transpose(v), b.matrix_transpose(weights));
            let y = b.matmul(v, w);
            b.matrix_transpose(y)
        } else {
            b.matmul(weights, v)
        };
        let mut roots = vec![y];
        if self.form == Form::Shown {
            roots.push(scores);
        }
        (g, roots)
    }
}

/// Makes the only root a tensor of all elements of `values`.
fn joined(g: &mut Graph, values: &[NodeId]) {
    let mut b = Builder::new(g);
    let flat: Vec<NodeId> = values
        .iter()
        .map(|&v| {
            let n = b.shape(v).iter().product();
            b.reshape(v, &[n])
        })
        .collect();
    let value = if let [only] = flat[..] { only } else { b.concat(&flat, 0) };
    g.roots = vec![Root { kind: RootKind::Report("y".into()), value }];
}

fn project(b: &mut Builder<'_>, value: NodeId, rng: &mut Sequence) -> NodeId {
    let ty = Type::f32(b.shape(value));
    let data: Vec<f64> = (0..ty.count()).map(|_| f64::from(rng.normal())).collect();
    let weights = b.constant(ty, data);
    let product = b.mul(value, weights);
    b.sum_all(product)
}

/// The values alone, with their gradients, and with the gradients of a projection of those.
fn orders(case: &Case) -> Vec<Graph> {
    let mut rng = Sequence::new(5, 0, 0);
    let (mut g, mut values) = case.graph();
    let inputs: Vec<NodeId> = (0..3).filter_map(|i| g.input_node(InputId(i))).collect();
    let mut out = Vec::new();
    let mut last = values.clone();
    for order in 0..3 {
        if order > 0 {
            let mut b = Builder::new(&mut g);
            let terms: Vec<NodeId> = last.iter().map(|&v| project(&mut b, v, &mut rng)).collect();
            let sum = terms.into_iter().reduce(|x, y| b.add(x, y)).expect("values");
            last = gradients(&mut b, sum, &inputs);
            values.extend(&last);
        }
        let mut whole = g.clone();
        joined(&mut whole, &values);
        out.push(whole);
    }
    out
}

fn lowered(g: &Graph) -> Draft {
    let g = close(&specialise(g, Mode::Train));
    program(
        &g,
        1,
        Program::Eval,
        Products { convolutions: Convolutions::Fastest, columns: false, made_of: 0 },
        &mut Names::default(),
    )
    .0
}

fn attention_kernels(d: &Draft) -> usize {
    d.kernels.iter().filter(|k| k.run.family() == "attention").count()
}

fn inputs(case: &Case) -> Vec<Tensor> {
    let mut rng = Sequence::new(3, 1, 0);
    let (g, _) = case.graph();
    g.inputs.iter().map(|i| Tensor::from_fn(i.ty.shape.clone(), |_| f64::from(rng.normal()))).collect()
}

fn compare(what: &str, g: &Graph, inputs: &[Tensor], got: &[f64]) {
    let mut env = Env::default();
    env.inputs.extend(inputs.iter().enumerate().map(|(i, t)| (InputId(i as u32), t.clone())));
    let want = evaluate(g, &env, &[g.roots[0].value]).remove(0);
    let r = support::relative(got, &want.data);
    assert!(r < TOLERANCE, "{what}: {r:e}");
}

fn check(case: &Case) {
    let inputs = inputs(case);
    for (order, g) in orders(case).iter().enumerate() {
        let once = run_on_cpu(g, &inputs, &[], 1);
        compare(&format!("{}, derivatives to order {order}", case.name), g, &inputs, &once.data);
        assert!(run_on_cpu(g, &inputs, &[], 2).data == once.data, "{}: threads matter", case.name);
    }
}

/// All fused cases with derivatives to order `order`, on the CUDA device.
fn on_cuda(order: usize) -> Vec<Vec<f64>> {
    on_cuda_at((Precision::F32, order, usize::MAX))
}

/// The same with operands of products rounded, of cases with at most so many scores.
fn on_cuda_at((precision, order, scores): (Precision, usize, usize)) -> Vec<Vec<f64>> {
    let run = |case: &Case| {
        let planned = GraphPlan::making(&orders(case)[order], &inputs(case), &[], "cuda:sm_80", precision, 0);
        let kernels = planned.kernels.clone().expect("kernels").into();
        let mut device =
            CudaDevice::load(&planned.plan, 0, &kernels, Launching::Eager, Residency::All, Libraries::None)
                .expect("device");
        planned.run(&mut device).data
    };
    FUSED.iter().filter(|c| c.scores() <= scores).map(run).collect()
}

#[test]
fn passes_over_scores_agree_with_the_interpreter() {
    FUSED.iter().for_each(check);
}

#[test]
fn what_is_not_fused_agrees_too() {
    UNFUSED.iter().for_each(check);
}

/// Whatever the order in which threads run, and under both sanitizers, which see what a block does to shared memory.
#[test]
fn the_cuda_device_agrees() {
    let test = "the_cuda_device_agrees";
    for order in 0..3 {
        let base = in_child(test, &Options::default(), order, on_cuda).value;
        for (case, got) in FUSED.iter().zip(&base) {
            let what = format!("{}, derivatives to order {order}, on CUDA", case.name);
            compare(&what, &orders(case)[order], &inputs(case), got);
        }
        if real() {
            continue;
        }
        for threads in [Order::Reverse, Order::Random(1)] {
            let options = Options { order: threads, ..Options::default() };
            assert!(in_child(test, &options, order, on_cuda).value == base, "{threads:?}: other bits");
        }
        for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
            in_child(test, &Options { sanitizer, ..Options::default() }, order, on_cuda);
        }
    }
}

/// Gradients over rows and over columns take two launches, but one where there are many matrices.
#[test]
fn columns_of_many_matrices_share_a_launch_with_rows() {
    for case in FUSED {
        let planned = GraphPlan::new(&orders(case)[1], &inputs(case), &[], "cuda:sm_80");
        let program = &planned.plan.modules[0].eval;
        let kernels = program.kernels.iter().filter(|k| k.run.family() == "attention").count();
        let functions = program.launches.iter().filter(|l| l.function.starts_with("attention_")).count();
        let many = case.batch.iter().product::<usize>() >= 128;
        assert_eq!(functions, kernels + usize::from(!many), "{}", case.name);
    }
}

/// At most one pass for what a projection does not separate: softmax and its product, then both their gradients, and
/// the same again for gradients of gradients.
#[test]
fn scores_are_never_stored() {
    for case in FUSED {
        for (order, g) in orders(case).iter().enumerate() {
            let d = lowered(g);
            let passes = attention_kernels(&d);
            assert!((1..=1 + 2 * order).contains(&passes), "{}, order {order}: {passes}", case.name);
            let pairs = case.scores();
            // Nothing else here has these extents.
            let stored: Vec<&String> = d
                .buffers
                .iter()
                .filter(|b| b.shape.len() == 4 && b.shape.iter().product::<usize>() == pairs)
                .filter(|b| b.shape[2..] == [case.rows, case.cols] || b.shape[2..] == [case.cols, case.rows])
                .map(|b| &b.id)
                .collect();
            assert!(stored.is_empty(), "{}, order {order}: {stored:?}", case.name);
        }
    }
}

#[test]
fn values_needed_elsewhere_and_large_strips_are_left_alone() {
    for case in UNFUSED {
        assert_eq!(attention_kernels(&lowered(&orders(case)[0])), 0, "{}", case.name);
    }
}
