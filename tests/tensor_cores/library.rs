//! The same products by cuBLASLt and cuDNN: of every layout, in batches, with every epilogue that a library has.

use slrc_compiler::ir::graph::{Input, InputKind, RootKind};
use slrc_compiler::ir::ops::contract::ConvShape;
use slrc_compiler::ir::{Builder, Graph, NodeId, Root, Tensor, Type};
use slrc_compiler::layers::relu;
use slrc_plan::kernel::WindowGeometry;
use slrc_plan::{Dims, Precision};
use slrc_runtime::cuda::{Libraries, Library};

use crate::support::cuda_host::{Options, Sanitizer, in_child, in_child_failing, real};
use crate::support::relative;
use crate::{Case, TOLERANCE, inputs, is_depthwise, oracle, planned, product, results, rounded, small};

/// Convolutions of single pixels, which are plain products: forward and both gradients.
fn pointwise() -> Vec<Case> {
    let two = |a, b| Dims(vec![a, b]);
    let geometry = WindowGeometry {
        input: two(5, 7),
        output: two(5, 7),
        kernel: two(1, 1),
        strides: two(1, 1),
        pads: two(0, 0),
        dilations: two(1, 1),
    };
    let shape = ConvShape { groups: 1, geometry };
    let (x, w, y) = ([3, 12, 5, 7], [20, 12, 1, 1], [3, 20, 5, 7]);
    vec![
        case("1 x 1 convolution", &[&x, &w], |b, i| b.conv(i[0], i[1], &shape)),
        case("1 x 1 input gradient", &[&w, &y], |b, i| b.conv_input_grad(i[0], i[1], &shape)),
        case("1 x 1 weight gradient", &[&x, &y], |b, i| b.conv_weight_grad(i[0], i[1], &shape)),
        case("1 x 1 convolution plus a bias", &[&x, &w, &[20, 1, 1]], |b, i| {
            let y = b.conv(i[0], i[1], &shape);
            let (y, bias) = b.align(y, i[2]);
            b.add(y, bias)
        }),
    ]
}

/// Products with every epilogue that the library has.
fn epilogues() -> Vec<Case> {
    let (m, n, k) = (18, 27, 35);
    let (x, w, c, bias) = ([m, k], [k, n], [m, n], [n]);
    let plus = |b: &mut Builder<'_>, i: &[NodeId]| {
        let product = b.matmul(i[0], i[1]);
        let (product, other) = b.align(product, i[2]);
        b.add(product, other)
    };
    vec![
        case("a product times a number", &[&x, &w], |b, i| {
            let product = b.matmul(i[0], i[1]);
            b.scale(product, -0.375)
        }),
        case("products times a number", &[&[3, m, k], &[3, k, n]], |b, i| {
            let product = b.matmul(i[0], i[1]);
            b.scale(product, 0.125)
        }),
        case("a product plus a matrix", &[&x, &w, &c], plus),
        case("products plus matrices", &[&[3, m, k], &[3, k, n], &[3, m, n]], plus),
        case("a product plus a bias", &[&x, &w, &bias], plus),
        case("products plus a bias", &[&[3, m, k], &[3, k, n], &bias], plus),
        case("a product plus a bias, and ReLU", &[&x, &w, &bias], |b, i| {
            let sum = plus(b, i);
            relu(b, sum)
        }),
    ]
}

/// A graph of inputs of these shapes.
fn case(name: &str, shapes: &[&[usize]], op: impl Fn(&mut Builder<'_>, &[NodeId]) -> NodeId) -> Case {
    let mut graph = Graph::new("product");
    let mut b = Builder::new(&mut graph);
    let operands = shapes.iter().enumerate().map(|(i, shape)| {
        let input = Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(shape.to_vec()) };
        let id = b.graph_mut().add_input(input);
        b.input(id)
    });
    let operands: Vec<NodeId> = operands.collect();
    let value = op(&mut b, &operands);
    graph.roots = vec![Root { kind: RootKind::Output("y".into()), value }];
    Case { name: name.into(), graph }
}

/// What a library computes: products of every layout, in batches, in parts, of single pixels, with epilogues.
fn for_library() -> Vec<Case> {
    let samples = small().into_iter().filter(|c| c.name.starts_with("matmul"));
    let sides = [(false, false), (false, true), (true, false), (true, true)];
    let products = sides.map(|(a, b)| product(21, 34, 55, a, b));
    samples.chain(products).chain([product(20, 30, 17000, true, false)]).chain(pointwise()).chain(epilogues()).collect()
}

fn with_library(precision: Precision) -> (Vec<Vec<f64>>, usize) {
    results(precision, Libraries::One(Library::Cublaslt), for_library())
}

/// Convolutions of every geometry, and every epilogue that cuDNN has.
fn for_cudnn() -> Vec<Case> {
    let samples = small().into_iter().filter(|c| c.name.starts_with("conv"));
    let two = |a, b| Dims(vec![a, b]);
    let geometry = WindowGeometry {
        input: two(9, 8),
        output: two(5, 8),
        kernel: two(3, 3),
        strides: two(2, 1),
        pads: two(1, 1),
        dilations: two(1, 1),
    };
    let shape = ConvShape { groups: 1, geometry };
    let (x, w, bias, y): ([usize; 4], _, _, _) = ([2, 6, 9, 8], [10, 6, 3, 3], [10, 1, 1], [2, 10, 5, 8]);
    let biased = |b: &mut Builder<'_>, i: &[NodeId]| {
        let y = b.conv(i[0], i[1], &shape);
        let (y, bias) = b.align(y, i[2]);
        b.add(y, bias)
    };
    let epilogues = [
        case("conv times a number", &[&x, &w], |b, i| {
            let y = b.conv(i[0], i[1], &shape);
            b.scale(y, -0.375)
        }),
        case("conv plus a bias", &[&x, &w, &bias], biased),
        case("conv plus a bias, and ReLU", &[&x, &w, &bias], |b, i| {
            let y = biased(b, i);
            relu(b, y)
        }),
        case("conv-weight-grad times a number", &[&x, &y], |b, i| {
            let w = b.conv_weight_grad(i[0], i[1], &shape);
            b.scale(w, 0.125)
        }),
    ];
    samples.chain(pointwise()).chain(epilogues).collect()
}

fn with_cudnn(precision: Precision) -> (Vec<Vec<f64>>, usize) {
    results(precision, Libraries::One(Library::Cudnn), for_cudnn())
}

/// The same products by cuBLASLt, told to round its operands likewise.
#[test]
fn products_by_a_library() {
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        check(precision, &for_library(), for_library().len(), |options| {
            in_child("library::products_by_a_library", &options, precision, with_library).value
        });
    }
}

/// Of these, the filters that see one channel each are left to the plan's own kernels.
#[test]
fn convolutions_by_a_library() {
    for precision in [Precision::F32, Precision::Tf32] {
        let cases = for_cudnn();
        let left = cases.iter().filter(|c| is_depthwise(&planned(c, precision))).count();
        check(precision, &cases, cases.len() - left, |options| {
            in_child("library::convolutions_by_a_library", &options, precision, with_cudnn).value
        });
    }
}

/// Compares what `go` finds with the interpreter's numbers, and how many cases a library computes.
fn check(precision: Precision, cases: &[Case], expected: usize, go: impl Fn(Options) -> (Vec<Vec<f64>>, usize)) {
    for sanitizer in [Sanitizer::None, Sanitizer::Address] {
        let options = Options { cublaslt: true, cudnn: true, sanitizer, ..Options::default() };
        let (results, by_library) = go(options);
        for (s, got) in cases.iter().zip(&results) {
            let rounds = precision != Precision::F32 && !is_depthwise(&planned(s, precision));
            let off = |p: Precision| {
                // Of a product's inputs, only the first two are factors.
                let round = |(i, t): (usize, Tensor)| match i {
                    0 | 1 => Tensor::new(t.shape.clone(), t.data.iter().map(|&x| rounded(x, p)).collect()),
                    _ => t,
                };
                relative(got, &oracle(&s.graph, inputs(s).into_iter().enumerate().map(round)).data)
            };
            let as_asked = off(if rounds { precision } else { Precision::F32 });
            // How a real library rounds operands, it does not say.
            let limit = if real() && rounds { 2e-2 } else { TOLERANCE };
            assert!(as_asked < limit, "{}, {precision:?}: {as_asked:e}", s.name);
            assert!(!rounds || off(Precision::F32) > 1e-5, "{}: nothing is rounded", s.name);
        }
        if real() {
            break; // A real library may have no algorithm for one of them, and a real device no options.
        }
        assert_eq!(by_library, expected);
    }
}

/// The one call of the library that only batches of products need; `tests/cuda_command/libraries.rs` has the others.
#[test]
fn a_failing_call_for_batches_is_named() {
    if real() {
        return; // A real library does not fail when told to.
    }
    let call = "cublasLtMatrixLayoutSetAttribute";
    let options = Options { cublaslt: true, fail: format!("{call}:1:14"), ..Options::default() };
    let text = in_child_failing("library::a_failing_call_for_batches_is_named", &options, Precision::F32, with_library);
    assert!(text.contains(&format!("device: Call {{ call: \"{call}\"")), "{text}");
}
