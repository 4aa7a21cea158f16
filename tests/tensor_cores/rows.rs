//! Work on the rows of a product in the product's launch: softmax and LayerNorm behind tiles of every size, in every
//! precision, against the f64 interpreter.

use slrc_compiler::ir::Builder;
use slrc_compiler::onnx::file::sha256_hex;
use slrc_plan::Precision;
use slrc_plan::launch::Launch;
use slrc_runtime::cuda::Libraries;

use crate::support::cuda_host::{Options, in_child, real};
use crate::support::graph_plan::GraphPlan;
use crate::{Case, TOLERANCE, expected, holds_in_every_order, planned, product, results, run, support};

/// What becomes of the rows of a product.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// `softmax(p)`: two reductions, one after the other.
    Softmax,
    /// `(p - mean p)^2 + p`, and the product besides.
    Centred,
}

fn with(Case { name, mut graph }: Case, work: Work) -> Case {
    let p = graph.roots[0].value;
    let shape = graph.shape(p).to_vec();
    let mut b = Builder::new(&mut graph);
    let value = match work {
        Work::Softmax => b.softmax(p, &[1]),
        Work::Centred => {
            let sum = b.sum(p, &[1]);
            let mean = b.scale(sum, 1.0 / shape[1] as f64);
            let wide = b.broadcast(mean, &shape);
            let d = b.sub(p, wide);
            let square = b.mul(d, d);
            let y = b.add(square, p);
            b.concat(&[y, p], 1)
        }
    };
    graph.roots[0].value = value;
    Case { name: format!("{work:?}: {name}"), graph }
}

/// Products of several tiles along each side, whole and not.
fn cases() -> Vec<Case> {
    let extents = [(70, 90, 50), (128, 256, 20), (300, 197, 33), (64, 1000, 9), (200, 40, 17), (1000, 520, 3)];
    let one = |work| move |(m, n, k)| with(product(m, n, k, false, true), work);
    let large = [(16384, 130, 5)].map(one(Work::Softmax));
    let small = [Work::Softmax, Work::Centred].into_iter().flat_map(|w| extents.map(one(w)));
    small.chain(large).collect()
}

/// The launch in which rows are worked on behind their product.
fn following(planned: &GraphPlan) -> &Launch {
    let launches = &planned.plan.modules[0].eval.launches;
    launches.iter().find(|l| !l.follows.is_empty()).expect("work on rows follows the product")
}

fn on_cuda((precision, count): (Precision, usize)) -> Vec<Vec<f64>> {
    results(precision, Libraries::None, cases().into_iter().take(count).collect()).0
}

fn check(test: &str, precision: Precision) {
    let cases = cases();
    let everything = (precision, cases.len());
    let base = in_child(test, &Options::default(), everything, on_cuda).value;
    for (c, got) in cases.iter().zip(&base) {
        following(&planned(c, precision));
        let r = support::relative(got, &expected(c, precision).data);
        assert!(r < TOLERANCE, "{}: {r:e}", c.name);
    }
    holds_in_every_order(test, &everything, &(precision, 6), &base, on_cuda);
}

#[test]
fn in_f32() {
    check("rows::in_f32", Precision::F32);
}

#[test]
fn in_tf32() {
    check("rows::in_tf32", Precision::Tf32);
}

#[test]
fn in_bf16() {
    check("rows::in_bf16", Precision::Bf16);
}

/// The bits of the result of a case whose kernel text has been changed.
fn changed((from, to): (String, String)) -> Vec<u64> {
    let mut planned = planned(&cases()[2], Precision::F32);
    let source = planned.kernels.take().expect("kernels");
    let other = source.replace(&from, &to);
    assert!(from.is_empty() || other != source, "no {from}");
    planned.plan.kernels_sha256 = Some(sha256_hex(other.as_bytes()));
    planned.kernels = Some(other);
    run(&planned, Libraries::None).0.into_iter().map(f64::to_bits).collect()
}

/// A block that goes on before the tiles of its rows are there, and one that leaves rows out, change the result.
#[test]
fn each_row_waits_for_all_its_tiles() {
    if real() {
        return; // What races do is undefined there.
    }
    let test = "rows::each_row_waits_for_all_its_tiles";
    let of =
        |from: &str, to: &str| in_child(test, &Options::default(), (from.to_string(), to.to_string()), changed).value;
    let base = of("", "");
    // 197 columns are four tiles.
    assert!(of("[tile], 1u) == 3;", "[tile], 1u) == 0;") != base, "the first tile goes on");
    assert!(of("(tile + 1u) * 8u", "(tile + 1u) * 8u - 1u") != base, "rows are left out");
}
