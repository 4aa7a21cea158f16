//! Products whose columns are reduced tile by tile: sums and largest elements, and what needs the product afterwards,
//! in every precision, against the f64 interpreter.

use slrc_compiler::ir::graph::{Input, InputKind, RootKind};
use slrc_compiler::ir::op::Op;
use slrc_compiler::ir::ops::contract::ConvShape;
use slrc_compiler::ir::{Builder, Graph, Root, Type};
use slrc_plan::kernel::{TILE_GROUP, TILE_ROWS, WindowGeometry};
use slrc_plan::{Dims, KernelOp, Precision, ScalarFn};
use slrc_runtime::cuda::Libraries;

use crate::support::cuda_host::{Options, in_child};
use crate::{Case, TOLERANCE, expected, holds_in_every_order, planned, product, results, small, support};

/// What becomes of the columns of a product.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// `sum(relu(p)^2) / rows + max(p)`.
    Reduced,
    /// `p - sum(p) / rows`: the product stays.
    Centred,
}

fn with(c: Case, work: Work) -> Case {
    let Case { name, mut graph } = c;
    let p = graph.roots[0].value;
    let shape = graph.shape(p).to_vec();
    let axes: Vec<usize> = if shape.len() == 2 { vec![0] } else { vec![0, 2, 3] };
    let rows: usize = axes.iter().map(|&a| shape[a]).product();
    let mut b = Builder::new(&mut graph);
    let value = match work {
        Work::Reduced => {
            let zero = b.zeros_like(p);
            let positive = b.map(ScalarFn::Lt, &[zero, p]);
            let kept = b.select(positive, p, zero);
            let square = b.mul(kept, kept);
            let sum = b.sum(square, &axes);
            let sum = b.scale(sum, 1.0 / rows as f64);
            let largest = b.max(p, &axes);
            b.add(sum, largest)
        }
        Work::Centred => {
            let sum = b.sum(p, &axes);
            let mean = b.scale(sum, 1.0 / rows as f64);
            let wide = b.broadcast(mean, &shape);
            b.sub(p, wide)
        }
    };
    graph.roots[0].value = value;
    Case { name: format!("{work:?}: {name}"), graph }
}

/// Whether a graph's product is one whose rows a kernel computes tile by tile.
fn is_tiled(g: &Graph) -> bool {
    match &g.node(g.roots[0].value).op {
        Op::Conv(c) => c.0.groups == 1,
        Op::ConvInputGrad(c) => c.0.groups == 1 && c.0.geometry.strides[..] == [1, 1],
        Op::MatMul(_) => g.shape(g.roots[0].value).len() == 2,
        _ => false,
    }
}

fn few() -> Vec<Case> {
    let work = [Work::Reduced, Work::Centred];
    let tiled = || small().into_iter().filter(|c| is_tiled(&c.graph)).chain([product(70, 90, 50, false, true)]);
    work.into_iter().flat_map(|w| tiled().map(move |c| with(c, w))).collect()
}

/// A convolution of 3 x 3 with so many samples of 32 x 32 pixels.
fn convolution(samples: usize) -> Case {
    let pair = |n: usize| Dims(vec![n, n]);
    let (input, output, kernel, strides) = (pair(32), pair(32), pair(3), pair(1));
    let geometry = WindowGeometry { input, output, kernel, strides, pads: pair(1), dilations: pair(1) };
    let mut graph = Graph::new("convolution");
    let mut b = Builder::new(&mut graph);
    let [x, w] = [("x0", [samples, 2, 32, 32]), ("x1", [3, 2, 3, 3])].map(|(name, shape)| {
        let input = Input { name: name.into(), kind: InputKind::Data, ty: Type::f32(shape) };
        let id = b.graph_mut().add_input(input);
        b.input(id)
    });
    let value = b.conv(x, w, &ConvShape { groups: 1, geometry });
    graph.roots = vec![Root { kind: RootKind::Output("y".into()), value }];
    Case { name: format!("a convolution of {samples} samples"), graph }
}

fn cases() -> Vec<Case> {
    // More tiles than are combined at once, whole and not, of matrices and of pixels.
    let tiles = 2 * TILE_GROUP * TILE_ROWS;
    let many = [tiles + 1, 216 * 128].map(|m| product(m, 70, 12, false, true));
    let many = many.into_iter().chain([convolution(tiles / (32 * 32) + 1)]);
    few().into_iter().chain(many.map(|c| with(c, Work::Reduced))).collect()
}

fn on_cuda((precision, count): (Precision, usize)) -> Vec<Vec<f64>> {
    results(precision, Libraries::None, cases().into_iter().take(count).collect()).0
}

fn check(test: &str, precision: Precision) {
    let cases = cases();
    let everything = (precision, cases.len());
    let base = in_child(test, &Options::default(), everything, on_cuda).value;
    for (c, got) in cases.iter().zip(&base) {
        let kernels = &planned(c, precision).plan.modules[0].eval.kernels;
        let reduces = |op: &KernelOp| op.product().and_then(|p| p.epilogue).is_some_and(|r| !r.reduce.is_empty());
        assert!(kernels.iter().any(|k| reduces(&k.run)), "{}: the product does not reduce its columns", c.name);
        let r = support::relative(got, &expected(c, precision).data);
        assert!(r < TOLERANCE, "{}: {r:e}", c.name);
    }
    holds_in_every_order(test, &everything, &(precision, few().len()), &base, on_cuda);
}

#[test]
fn in_f32() {
    check("columns::in_f32", Precision::F32);
}

#[test]
fn in_tf32() {
    check("columns::in_tf32", Precision::Tf32);
}

#[test]
fn in_bf16() {
    check("columns::in_bf16", Precision::Bf16);
}
