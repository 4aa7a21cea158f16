//! Sums along the columns of an operand, made by the product's kernel as it reads it: on both devices, in every
//! precision, of whole products and of those whose terms are cut into ranges, against the f64 interpreter. What is
//! summed is not rounded, though what is multiplied is.

use slrc_compiler::ir::{Builder, Graph, Root};
use slrc_compiler::lower::{Convolutions, Products};
use slrc_plan::{KernelOp, Precision};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::cuda::Libraries;

use crate::support::cuda_host::{Options, in_child};
use crate::support::graph_plan::GraphPlan;
use crate::{Case, TOLERANCE, expected, holds_in_every_order, inputs, planned, product, results, support};

/// The product's rows and, below, `sum(b) / 2 + 1` of its second operand.
fn with_sums(c: Case) -> Case {
    let mut graph: Graph = c.graph;
    let product = graph.roots[0].value;
    let operand = graph.node(product).operands[1];
    let mut b = Builder::new(&mut graph);
    let sums = b.sum(operand, &[0]);
    let halved = b.scale(sums, 0.5);
    let worked = b.offset(halved, 1.0);
    let value = b.concat(&[product, worked], 0);
    graph.roots = vec![Root { kind: graph.roots[0].kind.clone(), value }];
    Case { name: format!("with sums: {}", c.name), graph }
}

/// Tiles of every width, whole and not; operands that several rows of tiles stage; terms in ranges.
fn cases() -> Vec<Case> {
    let sizes = [(8, 12, 20), (70, 90, 50), (20, 30, 17000), (130, 257, 9), (128, 64, 33), (60, 216 * 128, 20)];
    sizes.into_iter().map(|(m, n, k)| with_sums(product(m, n, k, true, false))).collect()
}

fn few() -> usize {
    cases().iter().take_while(|c| c.graph.ty(c.graph.roots[0].value).count() < 10000).count()
}

/// Products of rounded numbers, sums of numbers as they are.
fn wanted(c: &Case, precision: Precision) -> Vec<f64> {
    let (rounded, whole) = (expected(c, precision), expected(c, Precision::F32));
    let columns = rounded.shape[1];
    let rows = rounded.data.len() - columns;
    [&rounded.data[..rows], &whole.data[rows..]].concat()
}

fn sums_of(p: &GraphPlan) -> usize {
    let kernels = p.plan.modules[0].eval.kernels.iter();
    kernels.filter(|k| matches!(&k.run, KernelOp::Matmul(m) if m.b_sums.is_some())).count()
}

fn on_cuda((precision, count): (Precision, usize)) -> Vec<Vec<f64>> {
    results(precision, Libraries::None, cases().into_iter().take(count).collect()).0
}

/// Rows and sums each by what is largest among them: sums of many terms would hide the product.
fn close(c: &Case, got: &[f64], want: &[f64]) {
    let rows = c.graph.shape(c.graph.roots[0].value)[0];
    let at = got.len() - got.len() / rows;
    for (what, got, want) in [("product", &got[..at], &want[..at]), ("sums", &got[at..], &want[at..])] {
        let r = support::relative(got, want);
        assert!(r < TOLERANCE, "{}, {what}: {r:e}", c.name);
    }
}

fn check(test: &str, precision: Precision) {
    let cases = cases();
    let everything = (precision, cases.len());
    let base = in_child(test, &Options::default(), everything, on_cuda).value;
    for (c, got) in cases.iter().zip(&base) {
        assert_eq!(sums_of(&planned(c, precision)), 1, "{}: the product does not sum its operand", c.name);
        close(c, got, &wanted(c, precision));
    }
    holds_in_every_order(test, &everything, &(precision, few()), &base, on_cuda);
}

#[test]
fn in_f32() {
    check("operand_sums::in_f32", Precision::F32);
}

#[test]
fn in_tf32() {
    check("operand_sums::in_tf32", Precision::Tf32);
}

#[test]
fn in_bf16() {
    check("operand_sums::in_bf16", Precision::Bf16);
}

#[test]
fn terms_are_cut_into_ranges_and_not() {
    let split = |c: &Case| {
        let kernels = planned(c, Precision::F32).plan.modules.swap_remove(0).eval.kernels;
        kernels.iter().any(|k| matches!(&k.run, KernelOp::Matmul(m) if m.split.is_some() && m.b_sums.is_some()))
    };
    let cut = cases().iter().filter(|c| split(c)).count();
    assert!(cut > 0 && cut < cases().len(), "{cut} of {}", cases().len());
}

#[test]
fn on_the_cpu() {
    let products = Products { convolutions: Convolutions::Fastest, columns: true, made_of: 0 };
    for c in cases() {
        let planned = GraphPlan::of(&c.graph, &inputs(&c), &[], "cpu", Precision::F32, products);
        assert_eq!(sums_of(&planned), 1, "{}", c.name);
        let mut first = None;
        for threads in [1, 2] {
            let mut device = CpuDevice::load(&planned.plan, Some(threads)).expect("device");
            let got = planned.run(&mut device).data;
            close(&c, &got, &wanted(&c, Precision::F32));
            assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{}: threads change results", c.name);
        }
    }
}
