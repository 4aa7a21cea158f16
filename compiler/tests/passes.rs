//! Passes keep meaning: random graphs mean the same to the f64 interpreter before and after, and survive their text
//! form.

#[path = "common/recipe.rs"]
mod recipe;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use recipe::{Recipe, config, ops_in, recipes};
use slrc_compiler::autodiff::gradients;
use slrc_compiler::ir::graph::InputId;
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::rewrite::{extract, rebuild, substitute};
use slrc_compiler::ir::verify::{Spec, verify};
use slrc_compiler::ir::{Builder, Graph, NodeId, Op, Root, RootKind, Tensor, text};
use slrc_compiler::simplify::{Mode, close, specialise};

/// Reordered f64 arithmetic over at most some dozen ops on values of a few units; gradients may be some orders larger,
/// and are compared relative to their largest element.
const TOLERANCE: f64 = 1e-10;

/// Longest recipe; with helpers, graphs of up to some two hundred nodes.
const STEPS: usize = 24;

/// Values of the roots, leaves matched by name: a pass may drop table entries.
fn roots(g: &Graph, like: &Graph, env: &Env) -> Vec<Tensor> {
    let mut own = Env { scalars: env.scalars.clone(), ..Env::default() };
    for (i, input) in g.inputs.iter().enumerate() {
        let at = like.inputs.iter().position(|x| x.name == input.name).expect("inputs keep their names");
        own.inputs.insert(InputId(i as u32), env.inputs[&InputId(at as u32)].clone());
    }
    for (i, v) in g.variables.iter().enumerate() {
        let at = like.variable(&v.name).expect("variables keep their names");
        own.variables.insert(slrc_compiler::ir::graph::VarId(i as u32), env.variables[&at].clone());
    }
    evaluate(g, &own, &g.roots.iter().map(|r| r.value).collect::<Vec<_>>())
}

fn agree(what: &str, before: &[Tensor], after: &[Tensor]) -> Result<(), TestCaseError> {
    prop_assert_eq!(before.len(), after.len());
    for (b, a) in before.iter().zip(after) {
        prop_assert_eq!(&b.shape, &a.shape, "{}", what);
        let scale = b.data.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (x, y) in b.data.iter().zip(&a.data) {
            prop_assert!((x - y).abs() <= TOLERANCE * scale, "{}: {} became {} (scale {})", what, x, y, scale);
        }
    }
    Ok(())
}

fn well_formed(what: &str, g: &Graph, spec: Spec) -> Result<(), TestCaseError> {
    verify(g, spec).map_err(|e| TestCaseError::fail(format!("{what}: {e}\n{}", text::print(g))))
}

/// Adds the gradients of a fixed projection of the root, with respect to every real input, as more roots.
fn with_gradients(mut g: Graph) -> Graph {
    let wrt: Vec<NodeId> = (0..g.inputs.len())
        .filter(|&i| g.inputs[i].ty.is_real())
        .filter_map(|i| g.input_node(InputId(i as u32)))
        .collect();
    let root = g.roots[0].value;
    let mut b = Builder::new(&mut g);
    let n = b.graph().ty(root).count();
    let weights = b.constant(slrc_compiler::ir::Type::f32([n]), (0..n).map(|i| (i as f64).cos()).collect());
    let product = b.mul(root, weights);
    let f = b.sum_all(product);
    let grads = gradients(&mut b, f, &wrt);
    g.roots.extend(grads.into_iter().map(|value| Root { kind: RootKind::Report(format!("{value}")), value }));
    g
}

fn graphs(recipe: &Recipe) -> [(&'static str, Graph); 2] {
    let g = recipe.graph(false);
    [("values", g.clone()), ("gradients", with_gradients(g))]
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn text_round_trips(recipe in recipes(STEPS)) {
        for (what, g) in graphs(&recipe) {
            let printed = text::print(&g);
            let parsed = text::parse(&printed).map_err(|e| TestCaseError::fail(format!("{e}\n{printed}")))?;
            prop_assert_eq!(&text::print(&parsed), &printed);
            well_formed("parsed", &parsed, Spec::open("parse"))?;
            let env = recipe.env(&g);
            prop_assert_eq!(roots(&parsed, &g, &env), roots(&g, &g, &env), "{}", what);
        }
    }

    /// Replaying every node through the builder applies its laws.
    #[test]
    fn rebuilding_keeps_meaning(recipe in recipes(STEPS)) {
        for (what, g) in graphs(&recipe) {
            let rebuilt = rebuild(&g, |_, _, _| None);
            well_formed("rebuilt", &rebuilt, Spec::open("rebuild"))?;
            let env = recipe.env(&g);
            agree(what, &roots(&g, &g, &env), &roots(&rebuilt, &g, &env))?;
            let extracted = extract(&g, &g.roots, &BTreeMap::new(), Graph::new("extracted"));
            well_formed("extracted", &extracted, Spec::open("extract"))?;
            agree(what, &roots(&g, &g, &env), &roots(&extracted, &g, &env))?;
        }
    }

    #[test]
    fn simplifying_keeps_meaning(recipe in recipes(STEPS)) {
        for (what, g) in graphs(&recipe) {
            let env = recipe.env(&g);
            let train = specialise(&g, Mode::Train);
            well_formed("specialised", &train, Spec::one_mode("specialise"))?;
            agree(what, &roots(&g, &g, &env), &roots(&train, &g, &env))?;
            let closed = close(&train);
            well_formed("closed", &closed, Spec::closed("close"))?;
            agree(what, &roots(&g, &g, &env), &roots(&closed, &g, &env))?;
        }
        // What inference computes is what training would with the sides of every selection exchanged.
        let (g, swapped) = (recipe.graph(false), recipe.graph(true));
        let env = recipe.env(&g);
        agree("inference", &roots(&swapped, &g, &env), &roots(&close(&specialise(&g, Mode::Eval)), &g, &env))?;
    }

    /// Two inputs of one type exchanged by substitution, or by their values.
    #[test]
    fn substitution_is_evaluation_elsewhere(recipe in recipes(STEPS)) {
        let mut g = recipe.graph(false);
        let (a, b) = (InputId(0), InputId(3));
        let (Some(from), Some(to)) = (g.input_node(a), g.input_node(b)) else { return Ok(()) };
        let root = g.roots[0].value;
        let mut env = recipe.env(&g);
        let moved = substitute(&mut Builder::new(&mut g), &[root], &BTreeMap::from([(from, to)]), |_, _| false);
        let substituted = evaluate(&g, &env, &moved);
        let value = env.inputs[&b].clone();
        env.inputs.insert(a, value);
        agree("substituted", &evaluate(&g, &env, &[root]), &substituted)?;
    }
}

/// The generator reaches every op that graphs can hold, but for those whose result jumps (a rounding error would
/// matter) and those that only gradients make.
#[test]
fn recipes_reach_every_op() {
    let mut runner = TestRunner::new(config(256));
    let mut seen = BTreeSet::new();
    for _ in 0..256 {
        let recipe = recipes(STEPS).new_tree(&mut runner).expect("a recipe").current();
        seen.extend(graphs(&recipe).iter().flat_map(|(_, g)| ops_in(g).collect::<Vec<_>>()));
    }
    let all = Op::NAMES.iter().copied().chain(slrc_plan::ScalarFn::ALL.iter().map(|f| f.name()));
    let missing: Vec<&str> = all.filter(|name| !seen.contains(name)).collect();
    // A scalar function's name stands for `map`; BatchNorm makes `near`.
    assert_eq!(missing, ["step-scalar", "map", "near", "floor"]);
}
