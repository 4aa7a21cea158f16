//! Convolutions by Winograd's algorithm on the CPU device against the f64 interpreter: all three products, alone and
//! with elementwise work on them, at extents that fill no tile, no panel and no chunk.

mod support;

use slrc_compiler::ir::graph::{Input, InputId, InputKind, NodeId};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::ops::contract::ConvShape;
use slrc_compiler::ir::{Builder, Graph, Root, RootKind, Tensor, Type};
use slrc_plan::kernel::{ConvAlgorithm, KernelOp, WindowGeometry};
use slrc_plan::random::Sequence;
use slrc_plan::{Dims, Precision};
use slrc_runtime::cpu::CpuDevice;
use support::graph_plan::GraphPlan;

/// f32 rounding of sums of some hundred to some thousand terms of order one, transformed and back: twice a direct
/// sum's.
const TOLERANCE: f64 = 4e-6;

struct Case {
    batch: usize,
    channels: [usize; 2],
    input: [usize; 2],
    pads: [usize; 2],
    output: [usize; 2],
}

const fn case(batch: usize, channels: [usize; 2], input: [usize; 2], pads: [usize; 2], output: [usize; 2]) -> Case {
    Case { batch, channels, input, pads, output }
}

const CASES: &[Case] = &[
    case(3, [16, 16], [12, 14], [1, 1], [12, 14]),
    // Odd extents: half of the last tiles is outside.
    case(4, [16, 48], [9, 11], [1, 1], [9, 11]),
    // More channels than a chunk, and than a block of columns.
    case(2, [80, 144], [12, 12], [1, 1], [12, 12]),
    case(1, [144, 80], [16, 18], [1, 1], [16, 18]),
    // No padding, and padding on one side only.
    case(2, [32, 16], [16, 15], [0, 0], [14, 13]),
    case(2, [16, 32], [12, 13], [2, 0], [12, 12]),
    // Rows of tiles longer than a task.
    case(1, [16, 16], [2, 256], [1, 1], [2, 256]),
    // A tile a picture.
    case(70, [32, 32], [2, 2], [1, 1], [2, 2]),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Forward,
    InputGrad,
    WeightGrad,
}

/// A product of a case from its two operands, then, where asked, elementwise work that is computed with it; of work on
/// its operands, but for weights, where they are made as they are read.
fn graph(c: &Case, wanted: Wanted, worked_on: bool, made: bool) -> Graph {
    let g = WindowGeometry {
        input: Dims(c.input.to_vec()),
        output: Dims(c.output.to_vec()),
        kernel: Dims(vec![3, 3]),
        strides: Dims(vec![1, 1]),
        pads: Dims(c.pads.to_vec()),
        dilations: Dims(vec![1, 1]),
    };
    let shape = ConvShape { groups: 1, geometry: g };
    let x = [c.batch, c.channels[0], c.input[0], c.input[1]];
    let w = [c.channels[1], c.channels[0], 3, 3];
    let y = [c.batch, c.channels[1], c.output[0], c.output[1]];
    let operands = match wanted {
        Wanted::Forward => [&x[..], &w],
        Wanted::InputGrad => [&w[..], &y],
        Wanted::WeightGrad => [&x[..], &y],
    };
    let mut graph = Graph::new("conv");
    for (i, s) in operands.into_iter().enumerate() {
        graph.add_input(Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(s) });
    }
    let mut b = Builder::new(&mut graph);
    let (mut first, mut second) = (b.input(InputId(0)), b.input(InputId(1)));
    let plain = first;
    let mut worked = |x: &mut NodeId| {
        // As kernels store images: the sums of windows of one pixel.
        let extents = Dims(b.shape(*x)[2..].to_vec());
        let ones = Dims(vec![1, 1]);
        let (kernel, strides, dilations) = (ones.clone(), ones.clone(), ones);
        let pads = Dims(vec![0, 0]);
        let pixels = WindowGeometry { input: extents.clone(), output: extents, kernel, strides, pads, dilations };
        *x = b.window_sum(*x, &pixels);
        let square = b.mul(*x, *x);
        let scaled = b.scale(square, 0.25);
        *x = b.add(*x, scaled);
    };
    if made && wanted != Wanted::InputGrad {
        worked(&mut first);
    }
    if made && wanted != Wanted::Forward {
        worked(&mut second);
    }
    let mut value = match wanted {
        Wanted::Forward => b.conv(first, second, &shape),
        Wanted::InputGrad => b.conv_input_grad(first, second, &shape),
        Wanted::WeightGrad => b.conv_weight_grad(first, second, &shape),
    };
    if worked_on {
        let square = b.mul(value, value);
        let scaled = b.scale(square, 0.01);
        value = b.add(value, scaled);
        // A result goes where the caller wants it; what another convolution reads stays in the product's order.
        let mut next = shape.clone();
        next.geometry.strides = Dims(vec![2, 2]);
        if wanted == Wanted::WeightGrad {
            next.geometry.output = Dims(c.output.map(|n| n.div_ceil(2)).to_vec());
            value = b.conv(plain, value, &next);
        } else {
            let extents = if wanted == Wanted::Forward { c.output } else { c.input };
            let channels = b.shape(value)[1];
            next.geometry.input = Dims(extents.to_vec());
            next.geometry.output = Dims(extents.map(|n| n.div_ceil(2)).to_vec());
            next.geometry.kernel = Dims(vec![1, 1]);
            next.geometry.pads = Dims(vec![0, 0]);
            let weights = (0..4 * channels).map(|i| f64::from(i as u8 % 7) - 3.0).collect();
            let weights = b.constant(Type::f32([4, channels, 1, 1]), weights);
            value = b.conv(value, weights, &next);
        }
    }
    graph.roots = vec![Root { kind: RootKind::Output("y".into()), value }];
    graph
}

#[test]
fn agrees_with_the_interpreter() {
    for (i, c) in CASES.iter().enumerate() {
        for wanted in [Wanted::Forward, Wanted::InputGrad, Wanted::WeightGrad] {
            for (worked_on, made) in [(false, false), (true, false), (false, true), (true, true)] {
                let g = graph(c, wanted, worked_on, made);
                let mut rng = Sequence::new(5, i as u32, 0);
                let draw = |i: &Input| Tensor::from_fn(i.ty.shape.clone(), |_| f64::from(rng.normal()));
                let inputs: Vec<Tensor> = g.inputs.iter().map(draw).collect();
                let mut env = Env::default();
                env.inputs.extend(inputs.iter().enumerate().map(|(i, t)| (InputId(i as u32), t.clone())));
                let want = evaluate(&g, &env, &[g.roots[0].value]).remove(0);
                let planned = GraphPlan::making(&g, &inputs, &[], "cpu", Precision::F32, usize::from(made));
                let kernels = &planned.plan.modules[0].eval.kernels;
                let mut convs =
                    kernels.iter().filter_map(|k| if let KernelOp::Conv(c) = &k.run { Some(c) } else { None });
                let conv = convs.next().expect("a convolution");
                let what = format!("case {i}, {wanted:?}, worked on {worked_on}, made {made}");
                assert_eq!(conv.algorithm, ConvAlgorithm::Winograd, "{what}");
                // Where operands are made, the next convolution does the work; but not on its weights.
                let own = worked_on && (!made || wanted == Wanted::WeightGrad);
                assert_eq!(conv.epilogue.is_some(), own, "{what}");
                let operands = if wanted == Wanted::WeightGrad { 2 } else { 1 };
                assert_eq!(conv.made().count(), if made { operands } else { 0 }, "{what}");
                let mut first = None;
                for threads in [1, 2] {
                    let mut device = CpuDevice::load(&planned.plan, Some(threads)).expect("device");
                    let got = planned.run(&mut device);
                    let r = support::relative(&got.data, &want.data);
                    assert!(r < TOLERANCE, "{what}, {threads} threads: {r:e}");
                    assert_eq!(
                        first.get_or_insert_with(|| got.data.clone()),
                        &got.data,
                        "{what}: threads change results"
                    );
                }
            }
        }
    }
}
