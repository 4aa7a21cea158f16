//! First and second derivatives of a case, by random projection in f64 against central differences along a random
//! direction, at the case's inputs moved a little: exact halves and ties are where many cases have their data. Where
//! there is a kink all the same, or a derivative is no number, they are moved further.

use slrc_compiler::autodiff::gradients;
use slrc_compiler::ir::graph::InputId;
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::{Builder, Graph, NodeId, Tensor, Type};
use slrc_compiler::onnx::forward::Value;
use slrc_compiler::onnx::tensor::Elem;
use slrc_plan::random::Sequence;

use crate::case::Run;

/// Central differences in f64; where two steps do not agree to it, the function has no derivative there.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-4;
/// How far inputs are moved, of one more than their size: the next where differences do not converge.
const MOVES: [f64; 3] = [1e-3, 0.05, 0.5];

/// `grad`, or why there is nothing to compare.
pub(crate) fn check(run: &Run) -> String {
    let mut g = run.forward.graph.clone();
    let inputs: Vec<(InputId, NodeId)> = run
        .forward
        .inputs
        .values()
        .filter(|i| g.inputs[i.index()].ty.is_real())
        .filter_map(|&i| g.input_node(i).map(|n| (i, n)))
        .collect();
    let outputs: Vec<NodeId> = run
        .forward
        .outputs
        .iter()
        .filter_map(|o| match o {
            Value::Node(id, Elem::Float) => Some(*id),
            Value::Node(..) | Value::Known(_) => None,
        })
        .collect();
    if inputs.is_empty() || outputs.is_empty() {
        return "none".into();
    }
    let mut rng = Sequence::new(5, 1, 0);
    let wrt: Vec<NodeId> = inputs.iter().map(|i| i.1).collect();
    let mut b = Builder::new(&mut g);
    let f = project(&mut b, &outputs, &mut rng);
    let first = gradients(&mut b, f, &wrt);
    let h = project(&mut b, &first, &mut rng);
    let second = gradients(&mut b, h, &wrt);
    if let Some(e) = b.take_error() {
        return format!("WRONG: {e}");
    }
    let orders = [(f, &first[..]), (h, &second[..])];
    let mut found = String::new();
    for far in MOVES {
        let mut env = run.env.clone();
        for (i, _) in &inputs {
            let x = env.inputs.get_mut(i).expect("an input");
            x.data.iter_mut().for_each(|x| *x += far * (f64::from(rng.unit()) - 0.5) * (1.0 + x.abs()));
        }
        let here = both(&g, &orders, &inputs, &env, &mut rng);
        let told = here != "kink" && here != "nan";
        if told || found.is_empty() {
            found = here;
        }
        if told {
            break;
        }
    }
    found
}

/// What comes of both derivatives at a place.
fn both(
    g: &Graph,
    orders: &[(NodeId, &[NodeId]); 2],
    inputs: &[(InputId, NodeId)],
    env: &Env,
    rng: &mut Sequence,
) -> String {
    for (order, (f, grads)) in orders.iter().enumerate() {
        match compare(g, *f, grads, inputs, env, rng) {
            None => {}
            Some(Difference::Kink) => return "kink".into(),
            Some(Difference::Numbers(a, _)) if !a.is_finite() => return "nan".into(),
            Some(Difference::Numbers(a, n)) => {
                return format!("WRONG: derivative {} is {a}, by differences {n}", order + 1);
            }
        }
    }
    "grad".into()
}

/// `sum(values * random constants)`.
fn project(b: &mut Builder<'_>, values: &[NodeId], rng: &mut Sequence) -> NodeId {
    let mut sum = b.splat(0.0, &[]);
    for &value in values {
        let ty = Type::f32(b.shape(value));
        let data: Vec<f64> = (0..ty.count()).map(|_| f64::from(rng.normal())).collect();
        let weights = b.constant(ty, data);
        let value = b.number(value);
        let product = b.mul(value, weights);
        let all = b.sum_all(product);
        sum = b.add(sum, all);
    }
    sum
}

enum Difference {
    Kink,
    Numbers(f64, f64),
}

fn compare(
    g: &Graph,
    f: NodeId,
    grads: &[NodeId],
    inputs: &[(InputId, NodeId)],
    env: &Env,
    rng: &mut Sequence,
) -> Option<Difference> {
    let directions: Vec<(InputId, Tensor)> =
        inputs.iter().map(|(i, n)| (*i, Tensor::from_fn(g.shape(*n).to_vec(), |_| f64::from(rng.normal())))).collect();
    let values = evaluate(g, env, grads);
    let analytic: f64 = values.iter().zip(&directions).map(|(v, (_, d))| v.dot(d)).sum();
    let at = |t: f64| {
        let mut env = env.clone();
        for (i, d) in &directions {
            let x = env.inputs.get_mut(i).expect("an input");
            x.data.iter_mut().zip(&d.data).for_each(|(x, d)| *x += t * d);
        }
        evaluate(g, &env, &[f])[0].data[0]
    };
    let by = |step: f64| (at(step) - at(-step)) / (2.0 * step);
    let (numeric, half) = (by(STEP), by(STEP / 2.0));
    // Differences of large numbers lose digits.
    let noise = 1e-15 * at(0.0).abs() / STEP;
    let scale = 1.0 + analytic.abs().max(numeric.abs());
    let agree = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * scale + 10.0 * noise;
    if agree(analytic, numeric) {
        return None;
    }
    Some(if agree(numeric, half) { Difference::Numbers(analytic, numeric) } else { Difference::Kink })
}
