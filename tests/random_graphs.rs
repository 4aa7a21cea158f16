//! Fusion, lowering, memory planning and the CPU device keep meaning: random graphs and their gradients, compiled to
//! kernels and run in f32, against the f64 interpreter.

#[path = "../compiler/tests/common/recipe.rs"]
mod recipe;
mod support;

use proptest::prelude::*;
use recipe::{Recipe, config, recipes};
use slrc_compiler::autodiff::gradients;
use slrc_compiler::ir::graph::{Input, InputId, InputKind};
use slrc_compiler::ir::interp::evaluate;
use slrc_compiler::ir::{Builder, Graph, NodeId, Root, RootKind, Tensor, Type, text};
use support::graph_plan::run_on_cpu;

/// Values are a few units, and every op is continuous and enlarges an error at most some times; f32 rounds to 6e-8 of a
/// value. Chains of the longest recipes reach some thirty ops.
const VALUES: f64 = 2e-5;

/// Of the largest gradient: derivatives of chains may be large, and what cancels in them leaves their rounding.
const GRADIENTS: f64 = 1e-4;

/// Longest recipe.
const STEPS: usize = 32;

fn check(recipe: &Recipe, g: &Graph, tolerance: f64) -> Result<(), TestCaseError> {
    let (inputs, variables) = recipe.leaves(g);
    let want = evaluate(g, &recipe.env(g), &[g.roots[0].value]).remove(0);
    let got = run_on_cpu(g, &inputs, &variables, 2);
    prop_assert!(run_on_cpu(g, &inputs, &variables, 1) == got, "one thread gives other bits than two");
    prop_assert_eq!(&got.shape, &want.shape);
    let scale = want.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.data.iter().zip(&want.data).enumerate() {
        prop_assert!(
            (a - b).abs() <= tolerance * scale,
            "element {i}: {a} on the device, {b} by the interpreter\n{}",
            text::print(g)
        );
    }
    Ok(())
}

/// The gradients of a fixed projection of the root with respect to every real input, one after the other.
fn gradient_of(mut g: Graph) -> Graph {
    let real = (0..g.inputs.len()).filter(|&i| g.inputs[i].ty.is_real());
    let wrt: Vec<NodeId> = real.filter_map(|i| g.input_node(InputId(i as u32))).collect();
    let root = g.roots[0].value;
    let mut b = Builder::new(&mut g);
    let n = b.graph().ty(root).count();
    let weights = b.constant(Type::f32([n]), (0..n).map(|i| (i as f64).cos()).collect());
    let product = b.mul(root, weights);
    let f = b.sum_all(product);
    let grads = gradients(&mut b, f, &wrt);
    let flat: Vec<NodeId> = grads
        .into_iter()
        .map(|x| {
            let n = b.graph().ty(x).count();
            b.reshape(x, &[n])
        })
        .collect();
    g.roots[0].value = Builder::new(&mut g).concat(&flat, 0);
    g
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn compiled_graphs_mean_the_same(recipe in recipes(STEPS)) {
        check(&recipe, &recipe.graph(false), VALUES)?;
    }

    #[test]
    fn compiled_gradients_mean_the_same(recipe in recipes(STEPS)) {
        check(&recipe, &gradient_of(recipe.graph(false)), GRADIENTS)?;
    }
}

/// A softmax along a dimension that its operand was repeated along: a kernel that reduces holds such a value once, so
/// what is stored for every element is another kernel's work.
#[test]
fn values_repeated_along_a_reduced_dimension() {
    let mut g = Graph::new("repeated");
    let x = g.add_input(Input { name: "x0".into(), kind: InputKind::Data, ty: Type::f32([2, 3, 4, 4]) });
    let mut b = Builder::new(&mut g);
    let x = b.input(x);
    let most = b.max(x, &[2, 3]);
    let wide = b.broadcast(most, &[2, 3, 2, 2]);
    let softmax = b.softmax(wide, &[2]);
    let (softmax, x) = (b.reshape(softmax, &[24]), b.reshape(x, &[96]));
    let value = b.concat(&[softmax, x], 0);
    g.roots.push(Root { kind: RootKind::Output("y".into()), value });
    let input = Tensor::from_fn([2, 3, 4, 4], |i| (i[0] + 2 * i[1] + i[2] * i[3]) as f64);
    let want = [vec![0.5; 24], input.data.clone()].concat();
    assert_eq!(run_on_cpu(&g, &[input], &[], 1).data, want);
}
