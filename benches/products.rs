//! How fast the CPU device multiplies and convolves at shapes of the networks that docs/performance.md measures, beside
//! the `gemm` crate's product of the same extents (of a convolution: of its patches, which the crate is given).
//!
//!     cargo bench --bench products                       all shapes, one thread
//!     cargo bench --bench products -- --threads 2 ViT    with two threads, of names that contain ViT
//!
//! Figures are GFLOP/s of the definition's multiply-adds, by the lower quartile of the times of many runs in turns.
#![allow(unsafe_code, reason = "the crate takes pointers")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

#[path = "../tests/support/graph_plan.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod graph_plan;

use std::time::Instant;

use graph_plan::GraphPlan;
use slrc_compiler::ir::graph::{Input, InputId, InputKind};
use slrc_compiler::ir::ops::contract::ConvShape;
use slrc_compiler::ir::{Builder, Graph, Root, RootKind, Tensor, Type};
use slrc_plan::Dims;
use slrc_plan::kernel::{KernelOp, WindowGeometry};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::device::{Device, ProgramKind, StepContext};

/// Which operand of a product lies with its terms along the other dimension.
#[derive(Clone, Copy, PartialEq)]
enum Turned {
    Left,
    Right,
    None,
}

/// What is computed of a layer.
#[derive(Clone, Copy)]
enum Wanted {
    Forward,
    InputGrad,
    WeightGrad,
}

enum Work {
    /// Rows, columns and terms.
    Product(usize, usize, usize, Turned),
    /// Batch, channels in and out, side of the image, kernel, stride.
    Convolution(usize, [usize; 2], usize, usize, usize, Wanted),
}

use Turned::{Left, Right};
use Wanted::{Forward, InputGrad, WeightGrad};
use Work::{Convolution, Product};

const CASES: &[(&str, Work)] = &[
    ("square", Product(1024, 1024, 1024, Turned::None)),
    ("ViT-S, attention in", Product(1576, 1152, 384, Right)),
    ("ViT-S, attention out", Product(1576, 384, 384, Right)),
    ("ViT-S, feed-forward in", Product(1576, 1536, 384, Right)),
    ("ViT-S, feed-forward out", Product(1576, 384, 1536, Right)),
    ("ViT-S, feed-forward in, input gradient", Product(1576, 384, 1536, Turned::None)),
    ("ViT-S, feed-forward out, input gradient", Product(1576, 1536, 384, Turned::None)),
    ("ViT-S, feed-forward in, weight gradient", Product(1536, 384, 1576, Left)),
    ("ViT-S, feed-forward out, weight gradient", Product(384, 1536, 1576, Left)),
    ("ViT-S, scores", Product(197, 197, 64, Right)),
    ("ViT-S, values", Product(197, 64, 197, Turned::None)),
    ("ResNet-50, 1x1, 64 to 256 at 56", Convolution(8, [64, 256], 56, 1, 1, Forward)),
    ("ResNet-50, 1x1, 256 to 64 at 56", Convolution(8, [256, 64], 56, 1, 1, Forward)),
    ("ResNet-50, 1x1, 64 to 256 at 56, input gradient", Convolution(8, [64, 256], 56, 1, 1, InputGrad)),
    ("ResNet-50, 1x1, 64 to 256 at 56, weight gradient", Convolution(8, [64, 256], 56, 1, 1, WeightGrad)),
    ("ResNet-50, 1x1, 512 to 2048 at 7", Convolution(8, [512, 2048], 7, 1, 1, Forward)),
    ("ResNet-50, 1x1, 512 to 2048 at 7, weight gradient", Convolution(8, [512, 2048], 7, 1, 1, WeightGrad)),
    ("ResNet-50, 7x7, stride 2", Convolution(8, [3, 64], 224, 7, 2, Forward)),
    ("ResNet-50, 7x7, stride 2, weight gradient", Convolution(8, [3, 64], 224, 7, 2, WeightGrad)),
    ("ResNet-50, 3x3, stride 2, 128 at 56", Convolution(8, [128, 128], 56, 3, 2, Forward)),
    ("ResNet-50, 3x3, stride 2, 128 at 56, input gradient", Convolution(8, [128, 128], 56, 3, 2, InputGrad)),
    ("ResNet-50, 3x3, stride 2, 128 at 56, weight gradient", Convolution(8, [128, 128], 56, 3, 2, WeightGrad)),
    ("ResNet-18, 3x3, 64 at 32", Convolution(64, [64, 64], 32, 3, 1, Forward)),
    ("ResNet-18, 3x3, 64 at 32, weight gradient", Convolution(64, [64, 64], 32, 3, 1, WeightGrad)),
    ("ResNet-18, 3x3, 256 at 8", Convolution(64, [256, 256], 8, 3, 1, Forward)),
    ("ResNet-18, 3x3, 512 at 4", Convolution(64, [512, 512], 4, 3, 1, Forward)),
    ("ResNet-18, 3x3, 512 at 4, input gradient", Convolution(64, [512, 512], 4, 3, 1, InputGrad)),
    ("ResNet-18, 3x3, 512 at 4, weight gradient", Convolution(64, [512, 512], 4, 3, 1, WeightGrad)),
    ("ViT-S, patches", Convolution(8, [3, 384], 224, 16, 16, Forward)),
    ("ViT-S, patches, weight gradient", Convolution(8, [3, 384], 224, 16, 16, WeightGrad)),
];

impl Work {
    /// The extents of its product, a convolution's over patches, and which operand is turned.
    fn extents(&self) -> ([usize; 3], Turned) {
        match *self {
            Product(m, n, k, turned) => ([m, n, k], turned),
            Convolution(batch, [from, to], side, kernel, stride, wanted) => {
                let pixels = batch * side.div_ceil(stride).pow(2);
                let taps = kernel * kernel;
                match wanted {
                    Forward => ([pixels, to, taps * from], Right),
                    // Of as many products as the definition has, whatever the stride.
                    InputGrad => ([pixels, taps * from, to], Turned::None),
                    WeightGrad => ([to, taps * from, pixels], Left),
                }
            }
        }
    }

    /// The product as a graph of its operands.
    fn graph(&self) -> Graph {
        let mut graph = Graph::new("product");
        let ([m, n, k], turned) = self.extents();
        let shape = |side: usize, kernel: usize, stride: usize| ConvShape {
            groups: 1,
            geometry: WindowGeometry {
                input: Dims(vec![side, side]),
                output: Dims(vec![side.div_ceil(stride); 2]),
                kernel: Dims(vec![kernel, kernel]),
                strides: Dims(vec![stride, stride]),
                pads: Dims(vec![(kernel - 1) / 2 * usize::from(kernel != stride); 2]),
                dilations: Dims(vec![1, 1]),
            },
        };
        let shapes: [Vec<usize>; 2] = match *self {
            Product(..) => [
                if turned == Left { vec![k, m] } else { vec![m, k] },
                if turned == Right { vec![n, k] } else { vec![k, n] },
            ],
            Convolution(batch, [from, to], side, kernel, stride, wanted) => {
                let x = vec![batch, from, side, side];
                let w = vec![to, from, kernel, kernel];
                let y = vec![batch, to, side.div_ceil(stride), side.div_ceil(stride)];
                match wanted {
                    Forward => [x, w],
                    InputGrad => [w, y],
                    WeightGrad => [x, y],
                }
            }
        };
        for (i, s) in shapes.into_iter().enumerate() {
            graph.add_input(Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(s) });
        }
        let mut b = Builder::new(&mut graph);
        let (first, second) = (b.input(InputId(0)), b.input(InputId(1)));
        let value = match *self {
            Product(..) => {
                let first = if turned == Left { b.matrix_transpose(first) } else { first };
                let second = if turned == Right { b.matrix_transpose(second) } else { second };
                b.matmul(first, second)
            }
            Convolution(_, _, side, kernel, stride, wanted) => match wanted {
                Forward => b.conv(first, second, &shape(side, kernel, stride)),
                InputGrad => b.conv_input_grad(first, second, &shape(side, kernel, stride)),
                WeightGrad => b.conv_weight_grad(first, second, &shape(side, kernel, stride)),
            },
        };
        graph.roots = vec![Root { kind: RootKind::Output("y".into()), value }];
        graph
    }
}

/// The crate's product of the same extents.
struct Crate {
    extents: [usize; 3],
    turned: Turned,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    threads: usize,
}

impl Crate {
    fn new(work: &Work, threads: usize) -> Crate {
        let (extents, turned) = work.extents();
        let [m, n, k] = extents;
        let filled = |count: usize| (0..count).map(|i| (i % 13) as f32 - 6.0).collect();
        Crate { extents, turned, a: filled(m * k), b: filled(k * n), c: vec![0.0; m * n], threads }
    }

    fn run(&mut self) -> f64 {
        let [m, n, k] = self.extents;
        let strides = |turned: bool, rows: usize, cols: usize| if turned { (rows, 1) } else { (1, cols) };
        let (a_col, a_row) = strides(self.turned == Left, m, k);
        let (b_col, b_row) = strides(self.turned == Right, k, n);
        let parallel = match self.threads {
            1 => gemm::Parallelism::None,
            n => gemm::Parallelism::Rayon(n),
        };
        let start = Instant::now();
        // SAFETY: the vectors have as many elements as the extents say.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.c.as_mut_ptr(),
                1,
                n as isize,
                false,
                self.a.as_ptr(),
                a_col as isize,
                a_row as isize,
                self.b.as_ptr(),
                b_col as isize,
                b_row as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                parallel,
            );
        }
        start.elapsed().as_secs_f64()
    }
}

/// Seconds of the kernels that multiply, in one run of a plan.
fn run(device: &mut CpuDevice) -> f64 {
    let mut seconds = 0.0;
    let context = StepContext { seed: 0, pass: 0 };
    device
        .profile(1, ProgramKind::Eval, context, &mut |k, time| {
            if matches!(k.run, KernelOp::Matmul(_) | KernelOp::Conv(_)) {
                seconds += time;
            }
        })
        .expect("kernels of products always run");
    seconds
}

fn lower_quartile(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 4]
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut threads, mut names) = (1, Vec::new());
    while let Some(a) = arguments.next() {
        match a.as_str() {
            "--threads" => threads = arguments.next().and_then(|n| n.parse().ok()).expect("--threads takes a number"),
            _ => names.push(a),
        }
    }
    println!("| {:52} | m x n x k | `gemm` | slrc |\n|---|---|---|---|", format!("GFLOP/s, threads: {threads}"));
    for (name, work) in CASES {
        if !names.is_empty() && !names.iter().any(|n| name.contains(n.as_str())) {
            continue;
        }
        let graph = work.graph();
        let inputs: Vec<Tensor> =
            graph.inputs.iter().map(|i| Tensor::from_fn(i.ty.shape.clone(), |at| (at[0] % 7) as f64 - 3.0)).collect();
        let planned = GraphPlan::new(&graph, &inputs, &[], "cpu");
        let mut device = CpuDevice::load(&planned.plan, Some(threads)).expect("memory enough");
        planned.run(&mut device);
        let mut other = Crate::new(work, threads);
        other.run();
        let (begin, mut times) = (Instant::now(), [Vec::new(), Vec::new()]);
        while times[0].len() < 8 || (times[0].len() < 200 && begin.elapsed().as_secs_f64() < 0.7) {
            times[0].push(other.run());
            times[1].push(run(&mut device));
        }
        let [m, n, k] = work.extents().0;
        let rates = times.map(|t| 2.0 * (m * n * k) as f64 / lower_quartile(t) / 1e9);
        println!("| {name:52} | {m} x {n} x {k} | {:.0} | {:.0} |", rates[0], rates[1]);
    }
}
