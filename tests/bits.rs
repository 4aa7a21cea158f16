//! Flags that are stored as bits: written by elementwise work and by reductions of outer and of all dimensions, whole
//! and in groups, read by all that follows; on both devices against the f64 interpreter.

mod support;

use slrc_compiler::ir::graph::{Input, InputId, InputKind};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::{Builder, Graph, Root, RootKind, Tensor, Type};
use slrc_plan::kernel::{Access, Kernel};
use slrc_plan::random::Sequence;
use slrc_plan::{DType, ScalarFn};
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::cuda::{CudaDevice, Launching, Libraries, Residency};
use support::cuda_host::{Options, Order, Sanitizer, in_child, real};
use support::graph_plan::GraphPlan;

/// f32 rounding of sums of some thousand terms of order one.
const TOLERANCE: f64 = 5e-6;

#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    /// Rows, and the innermost dimension.
    shape: [usize; 2],
    /// Dimensions that the kernel which stores the flags reduces; none: it is elementwise.
    reduced: &'static [usize],
    /// Who stores bits: on a CPU, on a GPU.
    bits: [bool; 2],
}

const fn case(name: &'static str, shape: [usize; 2], reduced: &'static [usize], bits: [bool; 2]) -> Case {
    Case { name, shape, reduced, bits }
}

const CASES: &[Case] = &[
    case("elementwise", [6, 64], &[], [true, true]),
    case("elementwise, long rows", [3, 2080], &[], [true, true]),
    case("elementwise, bytes on a GPU", [5, 24], &[], [true, false]),
    case("elementwise, neither", [5, 27], &[], [false, false]),
    case("columns", [7, 32], &[0], [true, true]),
    case("columns in groups", [3000, 96], &[0], [true, true]),
    case("columns, bytes on a GPU", [40, 24], &[0], [true, false]),
    case("columns, neither", [40, 27], &[0], [false, false]),
    case("rows", [40, 64], &[1], [false, false]),
    // One long row: a CPU's parts end anywhere.
    case("everything", [64, 64], &[0, 1], [false, true]),
    case("everything in groups", [2048, 96], &[0, 1], [false, true]),
    case("everything, in bytes", [33, 40], &[0, 1], [false, false]),
];

impl Case {
    /// Where a slow function of `x` is positive, `x` less a sum of what is there.
    fn graph(&self) -> Graph {
        let mut graph = Graph::new("bits");
        let shape = self.shape.to_vec();
        graph.add_input(Input { name: "x0".into(), kind: InputKind::Data, ty: Type::f32(shape.clone()) });
        let mut b = Builder::new(&mut graph);
        let x = b.input(InputId(0));
        let mut y = x;
        // Dearer than to keep a byte.
        for _ in 0..12 {
            y = b.map(ScalarFn::Tanh, &[y]);
        }
        let zero = b.zeros_like(x);
        let flag = b.map(ScalarFn::Lt, &[zero, y]);
        let chosen = b.select(flag, x, zero);
        let less = if self.reduced.is_empty() {
            // A product reads all of what the first kernel stores.
            let turned = b.matrix_transpose(chosen);
            b.matmul(chosen, turned)
        } else {
            b.sum(chosen, self.reduced)
        };
        let less = b.sum(less, &[0, 1]);
        let less = b.scale(less, 1e-3);
        let less = b.broadcast(less, &shape);
        let difference = b.sub(x, less);
        let value = b.select(flag, difference, zero);
        graph.roots = vec![Root { kind: RootKind::Report("y".into()), value }];
        graph
    }

    fn input(&self) -> Tensor {
        let mut rng = Sequence::new(7, 0, 0);
        Tensor::from_fn(self.shape.to_vec(), |_| f64::from(rng.normal()))
    }

    fn expected(&self) -> Tensor {
        let g = self.graph();
        let mut env = Env::default();
        env.inputs.insert(InputId(0), self.input());
        evaluate(&g, &env, &[g.roots[0].value]).remove(0)
    }

    fn planned(&self, target: &str) -> GraphPlan {
        GraphPlan::new(&self.graph(), &[self.input()], &[], target)
    }
}

/// The kernels that store flags, and how.
fn flags(planned: &GraphPlan) -> Vec<(&Kernel, DType)> {
    let program = &planned.plan.modules[0].eval;
    let dtype = |id: &str| program.buffers.iter().find(|b| b.id == id).map_or(DType::F32, |b| b.dtype);
    let mut found = Vec::new();
    for k in &program.kernels {
        let writes = k.run.operands().into_iter().filter(|o| o.access == Access::Write);
        found.extend(writes.map(|o| (k, dtype(&o.view.buffer))).filter(|(_, d)| *d != DType::F32));
    }
    found
}

fn on_cuda(all: bool) -> Vec<Vec<f64>> {
    let run = |c: &Case| {
        let planned = c.planned("cuda:sm_80");
        let kernels = planned.kernels.clone().expect("kernels").into();
        let (launching, residency) = (Launching::Eager, Residency::All);
        let device = CudaDevice::load(&planned.plan, 0, &kernels, launching, residency, Libraries::None);
        planned.run(&mut device.expect("device")).data
    };
    let few = |c: &&Case| all || c.shape.iter().product::<usize>() < 10_000;
    CASES.iter().filter(few).map(run).collect()
}

#[test]
fn flags_are_bits_where_kernels_write_neighbours_together() {
    for c in CASES {
        for (target, bits) in ["cpu", "cuda:sm_80"].into_iter().zip(c.bits) {
            let planned = c.planned(target);
            let [(kernel, dtype)] = flags(&planned)[..] else { panic!("{} on {target}: no flags are stored", c.name) };
            let family = match c.reduced {
                [] => "map",
                [1] => "row",
                _ => "reduce",
            };
            assert_eq!(kernel.run.family(), family, "{} on {target}", c.name);
            assert_eq!(dtype, if bits { DType::Bit } else { DType::U8 }, "{} on {target}", c.name);
        }
    }
}

#[test]
fn the_cpu_agrees() {
    for c in CASES {
        let planned = c.planned("cpu");
        let run = |threads| planned.run(&mut CpuDevice::load(&planned.plan, Some(threads)).expect("device")).data;
        let got = run(1);
        let r = support::relative(&got, &c.expected().data);
        assert!(r < TOLERANCE, "{}: {r:e}", c.name);
        assert_eq!(run(3), got, "{}: threads matter", c.name);
    }
}

#[test]
fn the_cuda_device_agrees() {
    let test = "the_cuda_device_agrees";
    let base = in_child(test, &Options::default(), true, on_cuda).value;
    for (c, got) in CASES.iter().zip(&base) {
        let r = support::relative(got, &c.expected().data);
        assert!(r < TOLERANCE, "{}, on CUDA: {r:e}", c.name);
    }
    if real() {
        return;
    }
    for order in [Order::Reverse, Order::Random(1)] {
        let options = Options { order, ..Options::default() };
        assert!(in_child(test, &options, true, on_cuda).value == base, "{order:?}: other bits");
    }
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        in_child(test, &Options { sanitizer, ..Options::default() }, false, on_cuda);
    }
}
