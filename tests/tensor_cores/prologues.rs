//! Operands of products that are made as they are read: all products, on both devices, against the f64 interpreter and
//! against the same products of operands that are stored.

use slrc_compiler::ir::graph::{Input, InputKind, NodeId};
use slrc_compiler::ir::op::Op;
use slrc_compiler::ir::{Builder, Graph, Root, Type};
use slrc_plan::kernel::WindowGeometry;
use slrc_plan::{Dims, Precision, ScalarFn};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::cuda::Libraries;

use crate::support::cuda_host::{Options, Order, Sanitizer, Streams, in_child, real};
use crate::support::graph_plan::GraphPlan;
use crate::{Case, TOLERANCE, inputs, large, oracle, product, run, small, support};

/// Operands that a product's kernel can make.
fn slots(op: &Op) -> &'static [usize] {
    match op {
        Op::MatMul(_) => &[0, 1],
        Op::Conv(c) if c.0.groups == 1 => &[0],
        Op::ConvInputGrad(c) if c.0.groups == 1 => &[1],
        Op::ConvWeightGrad(c) if c.0.groups == 1 => &[0, 1],
        _ => &[],
    }
}

/// The input behind views.
fn behind(g: &Graph, mut id: NodeId) -> NodeId {
    while let Some(&o) = g.node(id).operands.first() {
        id = o;
    }
    id
}

/// `relu(x s + t)` with a number a channel each, or `relu(x s + u)` with another tensor `u`.
fn worked(b: &mut Builder<'_>, x: NodeId, tensors: usize) -> NodeId {
    let shape = b.shape(x).to_vec();
    let x = channels_last(b, x);
    let channel = if shape.len() == 4 { 1 } else { shape.len() - 1 };
    let mut along = |first: f64| {
        let mut extents = vec![1; shape.len()];
        extents[channel] = shape[channel];
        let data = (0..shape[channel]).map(|i| first + 0.125 * (i % 5) as f64).collect();
        let vector = b.constant(Type::f32(extents), data);
        b.broadcast(vector, &shape)
    };
    let (scale, shift) = (along(0.5), along(-0.25));
    let other = if tensors == 1 {
        shift
    } else {
        let name = format!("x{}", b.graph().inputs.len());
        let id = b.graph_mut().add_input(Input { name, kind: InputKind::Data, ty: Type::f32(shape.clone()) });
        let other = b.input(id);
        channels_last(b, other)
    };
    let scaled = b.mul(x, scale);
    let sum = b.add(scaled, other);
    let zero = b.zeros_like(sum);
    let positive = b.map(ScalarFn::Lt, &[zero, sum]);
    b.select(positive, sum, zero)
}

/// An image as kernels store images: the sums of windows of one pixel.
fn channels_last(b: &mut Builder<'_>, x: NodeId) -> NodeId {
    let [_, _, height, width] = b.shape(x)[..] else { return x };
    let (extents, ones) = (Dims(vec![height, width]), Dims(vec![1, 1]));
    let g = WindowGeometry {
        input: extents.clone(),
        output: extents,
        kernel: ones.clone(),
        strides: ones.clone(),
        pads: Dims(vec![0, 0]),
        dilations: ones,
    };
    b.window_sum(x, &g)
}

/// A case whose product reads work on its inputs; and how many of its operands are made.
fn made(c: &Case, tensors: usize) -> (Case, usize) {
    let old = &c.graph;
    let last = old.node(old.roots[0].value);
    let made: Vec<NodeId> = slots(&last.op).iter().map(|&slot| behind(old, last.operands[slot])).collect();
    let mut graph = Graph::new("made");
    graph.inputs = old.inputs.clone();
    let mut b = Builder::new(&mut graph);
    let mut new: Vec<NodeId> = Vec::new();
    for id in old.ids() {
        let n = old.node(id);
        let operands: Vec<NodeId> = n.operands.iter().map(|o| new[o.index()]).collect();
        let mut value = match &n.op {
            Op::Input(i) => b.input(*i),
            op => b.replay(op, &operands),
        };
        if made.contains(&id) {
            value = worked(&mut b, value, tensors);
        }
        new.push(value);
    }
    let value = new[old.roots[0].value.index()];
    graph.roots = vec![Root { kind: old.roots[0].kind.clone(), value }];
    (Case { name: format!("{tensors} tensors: {}", c.name), graph }, made.len())
}

/// Products of rows that are dimensions of their own where they are made: what LayerNorm's result becomes.
fn joined() -> Case {
    let mut case = product(36, 20, 24, false, false);
    let mut graph = Graph::new("joined");
    let mut b = Builder::new(&mut graph);
    let mut operand = |i: usize, shape: &[usize]| {
        let input = Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(shape.to_vec()) };
        let id = b.graph_mut().add_input(input);
        b.input(id)
    };
    let (x, w) = (operand(0, &[4, 9, 24]), operand(1, &[24, 20]));
    let rows = b.reshape(x, &[36, 24]);
    let value = b.matmul(rows, w);
    graph.roots = vec![Root { kind: case.graph.roots[0].kind.clone(), value }];
    case.graph = graph;
    Case { name: "rows of two dimensions".into(), ..case }
}

fn cases() -> Vec<(Case, usize)> {
    let plain = || small().into_iter().filter(is_plain).chain(large()).chain([joined()]);
    [1, 2].into_iter().flat_map(|tensors| plain().map(move |c| made(&c, tensors))).collect()
}

/// Whether a sample is a product, and nothing else.
fn is_plain(c: &Case) -> bool {
    !slots(&c.graph.node(c.graph.roots[0].value).op).is_empty()
}

fn planned(c: &Case, target: &str, precision: Precision, made_of: usize) -> GraphPlan {
    GraphPlan::making(&c.graph, &inputs(c), &[], target, precision, made_of)
}

fn made_operands(p: &GraphPlan) -> usize {
    p.plan.modules[0].eval.kernels.iter().map(|k| k.run.made().len()).sum()
}

/// Results with operands made of as many tensors of their size, at most.
fn on_cuda((precision, made_of, count): (Precision, usize, usize)) -> Vec<Vec<f64>> {
    let planned = cases().into_iter().take(count).map(|(c, _)| planned(&c, "cuda:sm_80", precision, made_of));
    planned.map(|p| run(&p, Libraries::None).0).collect()
}

#[test]
fn on_the_cpu() {
    for (c, operands) in cases() {
        let planned = planned(&c, "cpu", Precision::F32, 2);
        assert_eq!(made_operands(&planned), operands, "{}", c.name);
        let want = oracle(&c.graph, inputs(&c).into_iter());
        let mut first = None;
        for threads in [1, 2] {
            let mut device = CpuDevice::load(&planned.plan, Some(threads)).expect("device");
            let got = planned.run(&mut device).data;
            let r = support::relative(&got, &want.data);
            assert!(r < TOLERANCE, "{}: {r:e}", c.name);
            assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{}: threads change results", c.name);
        }
    }
}

/// The same numbers in the same order as if they were stored: the same bits.
fn check(test: &str, precision: Precision) {
    let cases = cases();
    let made = in_child(test, &Options::default(), (precision, 2, cases.len()), on_cuda).value;
    let stored = in_child(test, &Options::default(), (precision, 0, cases.len()), on_cuda).value;
    for (((c, operands), made), stored) in cases.iter().zip(&made).zip(&stored) {
        assert_eq!(made_operands(&planned(c, "cuda:sm_80", precision, 2)), *operands, "{}", c.name);
        assert!(made == stored, "{}: {:e} apart", c.name, support::relative(made, stored));
        if precision == Precision::F32 {
            let r = support::relative(made, &oracle(&c.graph, inputs(c).into_iter()).data);
            assert!(r < TOLERANCE, "{}: {r:e}", c.name);
        }
    }
    if real() {
        return;
    }
    let options = Options { order: Order::Reverse, streams: Streams::Lazy, ..Options::default() };
    assert!(in_child(test, &options, (precision, 2, cases.len()), on_cuda).value == made, "other bits");
    // The small ones: a sanitizer takes ten times as long.
    let few = small().into_iter().filter(is_plain).count();
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        in_child(test, &Options { sanitizer, ..Options::default() }, (precision, 2, few), on_cuda);
    }
}

#[test]
fn in_f32() {
    check("prologues::in_f32", Precision::F32);
}

#[test]
fn in_bf16() {
    check("prologues::in_bf16", Precision::Bf16);
}
