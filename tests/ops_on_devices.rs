//! Every op, and its first and second derivatives, on the CPU device against the f64 interpreter.

mod support;

use slrc_compiler::autodiff::gradients;
use slrc_compiler::ir::graph::{InputId, VarId};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::samples::{Sample, all};
use slrc_compiler::ir::{Builder, Graph, NodeId, Root, RootKind, Tensor};
use slrc_plan::random::Sequence;
use support::graph_plan::run_on_cpu;

/// f32 rounding of sums of at most a few hundred terms of order one.
const TOLERANCE: f64 = 3e-6;

fn draw(s: &Sample, rng: &mut Sequence) -> (Vec<Tensor>, Vec<Tensor>) {
    let (lo, hi) = s.range;
    // What the device is given is f32.
    let inputs = s
        .graph
        .inputs
        .iter()
        .map(|i| {
            Tensor::from_fn(i.ty.shape.clone(), |_| {
                let u = f64::from(rng.unit());
                if i.ty.is_real() { f64::from((lo + (hi - lo) * u) as f32) } else { (u * s.below as f64).floor() }
            })
        })
        .collect();
    let variables =
        s.graph.variables.iter().map(|v| Tensor::from_fn(v.ty.shape.clone(), |_| f64::from(rng.normal()))).collect();
    (inputs, variables)
}

fn oracle(g: &Graph, inputs: &[Tensor], variables: &[Tensor]) -> Tensor {
    let mut env = Env::default();
    env.inputs.extend(inputs.iter().enumerate().map(|(i, t)| (InputId(i as u32), t.clone())));
    env.variables.extend(variables.iter().enumerate().map(|(i, t)| (VarId(i as u32), t.clone())));
    evaluate(g, &env, &[g.roots[0].value]).remove(0)
}

fn compare(what: &str, g: &Graph, inputs: &[Tensor], variables: &[Tensor]) {
    let want = oracle(g, inputs, variables);
    for threads in [1, 2] {
        let got = run_on_cpu(g, inputs, variables, threads);
        assert_eq!(got.shape, want.shape, "{what}");
        let r = support::relative(&got.data, &want.data);
        let scale = want.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(
            r < TOLERANCE || scale < 1e-12,
            "{what}, {threads} threads: {r:e}\n got {:?}\nwant {:?}",
            got.data,
            want.data
        );
    }
}

#[test]
fn values_and_derivatives() {
    for s in all() {
        let mut rng = Sequence::new(21, slrc_plan::random::stream_of(&s.name), 0);
        let (inputs, variables) = draw(&s, &mut rng);
        compare(&s.name, &s.graph, &inputs, &variables);
        // The gradient of a random projection, then of a random projection of that.
        let mut g = s.graph.clone();
        let wrt: Vec<NodeId> = (0..g.inputs.len() as u32)
            .filter(|&i| g.inputs[i as usize].ty.is_real())
            .filter_map(|i| g.input_node(InputId(i)))
            .collect();
        let mut value = g.roots[0].value;
        for order in 1..=2 {
            let mut b = Builder::new(&mut g);
            let f = project(&mut b, value, &mut rng);
            let grads = gradients(&mut b, f, &wrt);
            for (i, &grad) in grads.iter().enumerate() {
                g.roots = vec![Root { kind: RootKind::Output("y".into()), value: grad }];
                compare(&format!("{} derivative {order} of input {i}", s.name), &g, &inputs, &variables);
            }
            value = grads[0];
        }
    }
}

fn project(b: &mut Builder<'_>, value: NodeId, rng: &mut Sequence) -> NodeId {
    let ty = slrc_compiler::ir::Type::f32(b.shape(value));
    let data: Vec<f64> = (0..ty.count()).map(|_| f64::from(rng.normal())).collect();
    let weights = b.constant(ty, data);
    let value = b.number(value);
    let product = b.mul(value, weights);
    b.sum_all(product)
}
