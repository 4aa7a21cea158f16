//! Attention with operands of products rounded to TF32 or bf16, on the CUDA device against the f64 interpreter, which
//! rounds the operands of every product of the same graph.

use slrc_compiler::ir::graph::InputId;
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::op::Op;
use slrc_compiler::ir::{Graph, Tensor};
use slrc_compiler::simplify::{Mode, close, specialise};
use slrc_plan::Precision;

use crate::support::cuda_host::{Options, Order, Sanitizer, in_child, real};
use crate::support::rounding::rounded;
use crate::{FUSED, inputs, on_cuda_at, orders, support};

/// The root's value with operands of every product rounded.
fn oracle(g: &Graph, inputs: &[Tensor], precision: Precision) -> Tensor {
    let g = close(&specialise(g, Mode::Train));
    let root = g.roots[0].value;
    let needed = g.needed([root]);
    let mut env = Env::default();
    env.inputs.extend(inputs.iter().enumerate().map(|(i, t)| (InputId(i as u32), t.clone())));
    let mut values: Vec<Option<Tensor>> = Vec::new();
    for id in g.ids() {
        let node = g.node(id);
        let value = needed[id.index()].then(|| {
            let operand = |o: &slrc_compiler::ir::NodeId| values[o.index()].clone().expect("operands come first");
            let mut operands: Vec<Tensor> = node.operands.iter().map(operand).collect();
            if operands.is_empty() {
                return evaluate(&g, &env, &[id]).remove(0);
            }
            if matches!(node.op, Op::MatMul(_)) {
                let round = |x: &mut f64| *x = rounded(f64::from(*x as f32), precision);
                operands.iter_mut().flat_map(|t| &mut t.data).for_each(round);
            }
            node.op.rule().eval(&operands.iter().collect::<Vec<_>>(), &node.ty)
        });
        values.push(value);
    }
    values[root.index()].clone().expect("the root is needed")
}

/// Scores of a case where hardly an operand lies so close to the middle between two rounded numbers that f32's own
/// rounding decides which it becomes: of TF32's, one of some thousands.
const FEW: usize = 1000;
/// f32 rounding, as of products that are not rounded.
const TOLERANCE: f64 = 5e-6;
/// Largest case the sanitizers and the orders of threads see, for time.
const SMALL: usize = 20_000;

fn check(test: &str, precision: Precision) {
    for order in 0..3 {
        let base = in_child(test, &Options::default(), (precision, order, usize::MAX), on_cuda_at).value;
        for (case, got) in FUSED.iter().zip(&base) {
            let (g, inputs) = (&orders(case)[order], inputs(case));
            let [want, unrounded] = [precision, Precision::F32].map(|p| oracle(g, &inputs, p));
            let (r, u) = (support::relative(got, &want.data), support::relative(got, &unrounded.data));
            // An operand on the other side of such a middle moves a result by one of its many roundings.
            let most = if case.scores() < FEW { TOLERANCE } else { u / 4.0 };
            let what = format!("{}, derivatives to order {order}", case.name);
            assert!(r < most, "{what}: {r:e} from products of rounded numbers");
            assert!(u > 2e-4, "{what}: {u:e} from products of numbers as they are: nothing is rounded");
        }
        if real() {
            continue;
        }
        let small = |options: &Options| in_child(test, options, (precision, order, SMALL), on_cuda_at).value;
        let few: Vec<&Vec<f64>> =
            FUSED.iter().zip(&base).filter(|(c, _)| c.scores() <= SMALL).map(|(_, b)| b).collect();
        let options = Options { order: Order::Random(1), ..Options::default() };
        assert!(small(&options).iter().eq(few), "another order of threads: other bits");
        for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
            small(&Options { sanitizer, ..Options::default() });
        }
    }
}

#[test]
fn tf32() {
    check("rounded::tf32", Precision::Tf32);
}

#[test]
fn bf16() {
    check("rounded::bf16", Precision::Bf16);
}
