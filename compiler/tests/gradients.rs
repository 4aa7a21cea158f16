//! Gradients of every op, to second order, by random projection in f64: `<v, d>` against the central difference of the
//! projected function along `d`. The cost does not grow with the tensor.

use std::collections::BTreeSet;

use slrc_compiler::autodiff::{gradients, pullback, pushforward};
use slrc_compiler::ir::graph::{InputId, VarId};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::samples::{Sample, all};
use slrc_compiler::ir::verify::{Spec, verify};
use slrc_compiler::ir::{Builder, Graph, NodeId, Op, Tensor, text};
use slrc_plan::random::Sequence;

/// Central differences with step 1e-4 in f64: truncation about 1e-8, rounding about 1e-12, relative to third
/// derivatives of order 100 near the ranges' ends.
const STEP: f64 = 1e-4;
const TOLERANCE: f64 = 2e-6;

fn draw(g: &Graph, id: InputId, sample: &Sample, rng: &mut Sequence) -> Tensor {
    let ty = &g.inputs[id.index()].ty;
    let (lo, hi) = sample.range;
    Tensor::from_fn(ty.shape.clone(), |_| {
        let u = f64::from(rng.unit());
        if ty.is_real() { lo + (hi - lo) * u } else { (u * sample.below as f64).floor() }
    })
}

fn env(sample: &Sample, rng: &mut Sequence) -> Env {
    let g = &sample.graph;
    let mut env = Env::default();
    for i in 0..g.inputs.len() {
        let id = InputId(i as u32);
        env.inputs.insert(id, draw(g, id, sample, rng));
    }
    for (i, v) in g.variables.iter().enumerate() {
        let t = Tensor::from_fn(v.ty.shape.clone(), |_| f64::from(rng.normal()));
        env.variables.insert(VarId(i as u32), t);
    }
    env
}

fn real_inputs(g: &Graph) -> Vec<(InputId, NodeId)> {
    (0..g.inputs.len() as u32)
        .map(InputId)
        .filter(|i| g.inputs[i.index()].ty.is_real())
        .filter_map(|i| g.input_node(i).map(|n| (i, n)))
        .collect()
}

/// `sum(value * random constant)`.
fn project(b: &mut Builder<'_>, value: NodeId, rng: &mut Sequence) -> NodeId {
    let ty = slrc_compiler::ir::Type::f32(b.shape(value));
    let data: Vec<f64> = (0..ty.count()).map(|_| f64::from(rng.normal())).collect();
    let weights = b.constant(ty, data);
    let value = b.number(value);
    let product = b.mul(value, weights);
    b.sum_all(product)
}

fn moved(env: &Env, directions: &[(InputId, Tensor)], t: f64) -> Env {
    let mut env = env.clone();
    for (i, d) in directions {
        let x = env.inputs.get_mut(i).expect("input");
        x.data.iter_mut().zip(&d.data).for_each(|(x, d)| *x += t * d);
    }
    env
}

/// Compares the IR gradient of scalar `f` with differences of `f` along a random direction.
fn check(g: &Graph, what: &str, f: NodeId, grads: &[NodeId], env: &Env, rng: &mut Sequence) {
    let inputs = real_inputs(g);
    let directions: Vec<(InputId, Tensor)> =
        inputs.iter().map(|(i, n)| (*i, Tensor::from_fn(g.shape(*n).to_vec(), |_| f64::from(rng.normal())))).collect();
    let values = evaluate(g, env, grads);
    let analytic: f64 = values.iter().zip(&directions).map(|(v, (_, d))| v.dot(d)).sum();
    let at = |t: f64| evaluate(g, &moved(env, &directions, t), &[f])[0].data[0];
    let numeric = (at(STEP) - at(-STEP)) / (2.0 * STEP);
    let scale = 1.0 + analytic.abs().max(numeric.abs());
    assert!((analytic - numeric).abs() / scale < TOLERANCE, "{what}: analytic {analytic}, numeric {numeric}");
}

#[test]
fn every_op_has_a_sample() {
    let mut seen = BTreeSet::new();
    for s in all() {
        for id in s.graph.ids() {
            seen.insert(s.graph.node(id).op.rule().name());
        }
    }
    let missing: Vec<_> = Op::NAMES.iter().filter(|n| !seen.contains(*n)).collect();
    assert!(missing.is_empty(), "ops without a sample: {missing:?}");
}

#[test]
fn first_and_second_order() {
    for s in all() {
        if s.name.starts_with("detach") {
            continue; // Its gradient differs from its difference quotient on purpose; see `detach_blocks_gradients`.
        }
        let mut rng = Sequence::new(11, slrc_plan::random::stream_of(&s.name), 0);
        let env = env(&s, &mut rng);
        let mut g = s.graph.clone();
        let wrt: Vec<NodeId> = real_inputs(&g).iter().map(|i| i.1).collect();
        let root = g.roots[0].value;
        let mut b = Builder::new(&mut g);
        let f = project(&mut b, root, &mut rng);
        let first = gradients(&mut b, f, &wrt);
        let mut h = b.splat(0.0, &[]);
        for &x in &first {
            let p = project(&mut b, x, &mut rng);
            h = b.add(h, p);
        }
        let second = gradients(&mut b, h, &wrt);
        assert_eq!(b.take_error(), None, "{}", s.name);
        verify(&g, Spec::open("gradient")).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        check(&g, &format!("{} first order", s.name), f, &first, &env, &mut rng);
        check(&g, &format!("{} second order", s.name), h, &second, &env, &mut rng);
    }
}

/// `<u, J v>` from the directional derivative equals `<J^T u, v>` from the gradient.
#[test]
fn forward_and_reverse_agree() {
    for s in all() {
        let mut rng = Sequence::new(12, slrc_plan::random::stream_of(&s.name), 0);
        let env = env(&s, &mut rng);
        let mut g = s.graph.clone();
        let root = g.roots[0].value;
        let wrt: Vec<NodeId> = real_inputs(&g).iter().map(|i| i.1).collect();
        let mut b = Builder::new(&mut g);
        let mut random = |b: &mut Builder<'_>, like: NodeId| {
            let ty = slrc_compiler::ir::Type::f32(b.shape(like));
            let data = (0..ty.count()).map(|_| f64::from(rng.normal())).collect();
            b.constant(ty, data)
        };
        let u = random(&mut b, root);
        let v: Vec<NodeId> = wrt.iter().map(|&w| random(&mut b, w)).collect();
        let back = pullback(&mut b, &[(root, u)], &wrt);
        let moves: Vec<_> = wrt.iter().copied().zip(v.iter().copied()).collect();
        let forward = pushforward(&mut b, &moves, &[root]);
        assert_eq!(b.take_error(), None, "{}", s.name);
        let values = evaluate(&g, &env, &[vec![u], forward, back.clone(), v.clone()].concat());
        let left = values[0].dot(&values[1]);
        let n = wrt.len();
        let right: f64 = (0..n).map(|i| values[2 + i].dot(&values[2 + n + i])).sum();
        assert!((left - right).abs() <= 1e-12 * (1.0 + left.abs()), "{}: {left} against {right}", s.name);
    }
}

#[test]
fn detach_blocks_gradients() {
    let s = all().into_iter().find(|s| s.name == "detach").expect("sample");
    let mut g = s.graph.clone();
    let (x, y) = (real_inputs(&g)[0].1, g.roots[0].value);
    let mut b = Builder::new(&mut g);
    let f = b.sum_all(y);
    let grad = gradients(&mut b, f, &[x])[0];
    // d(x * sg(x))/dx = x, not 2x.
    let mut rng = Sequence::new(1, 2, 3);
    let env = env(&s, &mut rng);
    let values = evaluate(&g, &env, &[grad, x]);
    assert_eq!(values[0], values[1]);
}

#[test]
fn text_round_trips() {
    for s in all() {
        let printed = text::print(&s.graph);
        let parsed = text::parse(&printed).unwrap_or_else(|e| panic!("{}: {e}\n{printed}", s.name));
        assert_eq!(text::print(&parsed), printed, "{}", s.name);
        verify(&parsed, Spec::open("parse")).unwrap_or_else(|e| panic!("{}: {e}", s.name));
    }
}
