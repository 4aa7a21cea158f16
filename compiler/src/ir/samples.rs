//! One small graph for every op: the cases from which tests derive gradients, interpreter against devices, and the
//! generated op table. A test fails when an op has no sample.

use slrc_plan::kernel::WindowGeometry;
use slrc_plan::{Dims, ScalarFn};

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputKind, NodeId, Root, RootKind};
use crate::ir::ops::contract::ConvShape;
use crate::ir::ops::keep::Keep;
use crate::ir::ops::mode::Near;
use crate::ir::ops::shape::{Pad, Slice};
use crate::ir::types::{DType, Type};

/// A graph that exercises one op (among helpers), with one root.
pub struct Sample {
    /// Op, and what is particular.
    pub name: String,
    /// Inputs are data; real ones are to be drawn from `range`, integers from `0..below`.
    pub graph: Graph,
    /// Bounds of real inputs, away from kinks and singularities.
    pub range: (f64, f64),
    /// Bound of integer inputs.
    pub below: usize,
}

struct Maker<'g> {
    b: Builder<'g>,
}

impl Maker<'_> {
    fn real(&mut self, shape: &[usize]) -> NodeId {
        self.leaf(Type::f32(shape))
    }

    fn leaf(&mut self, ty: Type) -> NodeId {
        let name = format!("x{}", self.b.graph().inputs.len());
        let id = self.b.graph_mut().add_input(Input { name, kind: InputKind::Data, ty });
        self.b.input(id)
    }
}

fn sample(name: &str, range: (f64, f64), make: impl FnOnce(&mut Maker<'_>) -> NodeId) -> Sample {
    let mut graph = Graph::new(name);
    let value = {
        let mut m = Maker { b: Builder::new(&mut graph) };
        let value = make(&mut m);
        assert_eq!(m.b.take_error(), None, "sample {name}");
        value
    };
    graph.roots.push(Root { kind: RootKind::Output("y".into()), value });
    Sample { name: name.to_string(), graph, range, below: 5 }
}

fn geometry(
    input: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 2],
    dilations: [usize; 2],
) -> WindowGeometry {
    let out = |d: usize| (input[d] + 2 * pads[d] - dilations[d] * (kernel[d] - 1) - 1) / strides[d] + 1;
    WindowGeometry {
        input: Dims(input.to_vec()),
        output: Dims(vec![out(0), out(1)]),
        kernel: Dims(kernel.to_vec()),
        strides: Dims(strides.to_vec()),
        pads: Dims(pads.to_vec()),
        dilations: Dims(dilations.to_vec()),
    }
}

/// Every sample, in a fixed order.
pub fn all() -> Vec<Sample> {
    let mut out = Vec::new();
    for &f in ScalarFn::ALL {
        out.push(scalar_sample(f));
    }
    let wide = (-2.0, 2.0);
    out.push(sample("leaves", wide, |m| {
        use crate::ir::graph::{Init, StepScalar, VarKind, Variable};
        use slrc_plan::schedule::{Pass, Schedule};
        let x = m.real(&[2, 3]);
        let c = m.b.constant(Type::f32([2, 3]), vec![0.5, -1.0, 2.0, 3.0, -0.25, 1.5]);
        let s = m.b.graph_mut().add_scalar(StepScalar {
            name: "lr".into(),
            schedule: Schedule::constant(0.25),
            pass: Pass::Every,
        });
        let s = m.b.step_scalar(s);
        let s = m.b.broadcast_to(s, &[2, 3]);
        let v = m.b.graph_mut().add_variable(Variable {
            name: "w".into(),
            kind: VarKind::Weight,
            ty: Type::f32([2, 3]),
            init: Init::Normal(1.0),
        });
        let v = m.b.variable(v);
        let a = m.b.mul(x, c);
        let a = m.b.mul(a, v);
        let a = m.b.mul(a, s);
        m.b.offset(a, 0.75)
    }));
    out.push(sample("random: dropout", wide, |m| {
        let x = m.real(&[4, 6]);
        let r = m.b.random(3, &[4, 6]);
        let keep = m.b.splat(0.5, &[4, 6]);
        let flag = m.b.map(ScalarFn::Lt, &[r, keep]);
        let scaled = m.b.scale(x, 2.0);
        let zero = m.b.zeros_like(x);
        m.b.select(flag, scaled, zero)
    }));
    for (name, axes) in
        [("rows", vec![2]), ("columns", vec![0]), ("middle", vec![1]), ("ends", vec![0, 2]), ("all", vec![0, 1, 2])]
    {
        out.push(sample(&format!("reduce sum: {name}"), wide, |m| {
            let x = m.real(&[3, 4, 5]);
            let y = m.b.mul(x, x);
            m.b.sum(y, &axes)
        }));
        out.push(sample(&format!("reduce max: {name}"), wide, |m| {
            let x = m.real(&[3, 4, 5]);
            m.b.max(x, &axes)
        }));
        out.push(sample(&format!("log-sum-exp: {name}"), wide, |m| {
            let x = m.real(&[3, 4, 5]);
            m.b.log_sum_exp(x, &axes)
        }));
    }
    out.push(sample("softmax", wide, |m| {
        let x = m.real(&[3, 4, 5]);
        m.b.softmax(x, &[2])
    }));
    out.push(sample("layer norm", wide, |m| {
        let x = m.real(&[6, 8]);
        let mean = m.b.mean(x, &[1]);
        let mean = m.b.broadcast(mean, &[6, 8]);
        let d = m.b.sub(x, mean);
        let square = m.b.mul(d, d);
        let var = m.b.mean(square, &[1]);
        let var = m.b.offset(var, 1e-3);
        let r = m.b.map(ScalarFn::Rsqrt, &[var]);
        let r = m.b.broadcast(r, &[6, 8]);
        m.b.mul(d, r)
    }));
    out.push(sample("broadcast", wide, |m| {
        let x = m.real(&[1, 3, 1]);
        let y = m.b.broadcast(x, &[2, 3, 4]);
        m.b.mul(y, y)
    }));
    out.push(sample("reshape", wide, |m| {
        let x = m.real(&[2, 6]);
        let y = m.b.mul(x, x);
        m.b.reshape(y, &[3, 4])
    }));
    out.push(sample("transpose", wide, |m| {
        let x = m.real(&[2, 3, 4]);
        let y = m.b.mul(x, x);
        m.b.transpose(y, &[2, 0, 1])
    }));
    out.push(sample("slice", wide, |m| {
        let x = m.real(&[5, 7]);
        let y = m.b.mul(x, x);
        m.b.slice(y, Slice { starts: vec![1, 0], steps: vec![1, 3], shape: vec![3, 3] })
    }));
    out.push(sample("pad", wide, |m| {
        let x = m.real(&[2, 3]);
        let y = m.b.mul(x, x);
        m.b.pad(y, Pad { low: vec![1, 0], high: vec![0, 2], interior: vec![0, 1] })
    }));
    out.push(sample("concat", wide, |m| {
        let x = m.real(&[2, 3]);
        let y = m.real(&[2, 2]);
        let z = m.b.concat(&[x, y, x], 1);
        m.b.mul(z, z)
    }));
    out.push(sample("matmul", wide, |m| {
        let x = m.real(&[3, 4]);
        let y = m.real(&[4, 5]);
        m.b.matmul(x, y)
    }));
    out.push(sample("matmul: batched, transposed", wide, |m| {
        let x = m.real(&[2, 3, 4, 5]);
        let y = m.real(&[2, 3, 6, 5]);
        let yt = m.b.matrix_transpose(y);
        m.b.matmul(x, yt)
    }));
    let convs = [
        ("3x3", 1, geometry([5, 6], [3, 3], [1, 1], [1, 1], [1, 1])),
        ("strided", 1, geometry([7, 6], [3, 3], [2, 2], [1, 1], [1, 1])),
        ("1x1 strided", 1, geometry([6, 6], [1, 1], [2, 2], [0, 0], [1, 1])),
        ("dilated, no pad", 1, geometry([7, 7], [2, 3], [1, 2], [0, 0], [2, 1])),
        ("grouped", 2, geometry([5, 5], [3, 3], [1, 1], [1, 1], [1, 1])),
        ("depthwise", 4, geometry([6, 5], [3, 3], [2, 1], [1, 1], [1, 1])),
    ];
    for (name, groups, g) in convs {
        let shape = ConvShape { groups, geometry: g.clone() };
        let (x, w) = ([2, 4, g.input[0], g.input[1]], [4, 4 / groups, g.kernel[0], g.kernel[1]]);
        let y = [2, 4, g.output[0], g.output[1]];
        out.push(sample(&format!("conv: {name}"), wide, |m| {
            let (x, w) = (m.real(&x), m.real(&w));
            m.b.conv(x, w, &shape)
        }));
        out.push(sample(&format!("conv-input-grad: {name}"), wide, |m| {
            let (w, y) = (m.real(&w), m.real(&y));
            m.b.conv_input_grad(w, y, &shape)
        }));
        out.push(sample(&format!("conv-weight-grad: {name}"), wide, |m| {
            let (x, y) = (m.real(&x), m.real(&y));
            m.b.conv_weight_grad(x, y, &shape)
        }));
    }
    for (name, g) in [
        ("2x2", geometry([4, 6], [2, 2], [2, 2], [0, 0], [1, 1])),
        ("3x3 overlapping, padded", geometry([5, 5], [3, 3], [2, 2], [1, 1], [1, 1])),
    ] {
        let (x, y) = ([2, 3, g.input[0], g.input[1]], [2, 3, g.output[0], g.output[1]]);
        out.push(sample(&format!("window-select: max pool {name}"), wide, |m| {
            let x = m.real(&x);
            m.b.max_pool(x, &g)
        }));
        out.push(sample(&format!("window-unselect: {name}"), wide, |m| {
            let (x, dy) = (m.real(&x), m.real(&y));
            let index = m.b.emit(crate::ir::ops::window::WindowMaxIndex(g.clone()), &[x]);
            m.b.window_unselect(dy, index, &g)
        }));
        out.push(sample(&format!("window-sum: {name}"), wide, |m| {
            let x = m.real(&x);
            m.b.window_sum(x, &g)
        }));
        out.push(sample(&format!("window-spread: {name}"), wide, |m| {
            let y = m.real(&y);
            m.b.window_spread(y, &g)
        }));
    }
    out.push(sample("gather", wide, |m| {
        let table = m.real(&[5, 3]);
        let index = m.leaf(Type::new(DType::I32, [7]));
        m.b.gather(table, index)
    }));
    out.push(sample("scatter-add", wide, |m| {
        let rows = m.real(&[7, 3]);
        let index = m.leaf(Type::new(DType::I32, [7]));
        m.b.scatter_add(rows, index, 5)
    }));
    out.push(sample("keep", wide, |m| {
        let x = m.real(&[4]);
        let y = m.b.emit(Keep { later: true }, &[x]);
        m.b.mul(x, y)
    }));
    out.push(sample("detach", wide, |m| {
        let x = m.real(&[4]);
        let y = m.b.detach(x);
        m.b.mul(x, y)
    }));
    out.push(sample("mode-select", wide, |m| {
        let x = m.real(&[4]);
        let y = m.real(&[4]);
        m.b.mode_select(x, y)
    }));
    out.push(sample("near", wide, |m| {
        let x = m.real(&[4]);
        let y = m.real(&[4]);
        let near = m.b.emit(Near, &[x, y]);
        m.b.mul(near, y)
    }));
    out
}

fn scalar_sample(f: ScalarFn) -> Sample {
    let range = match f {
        ScalarFn::Log | ScalarFn::Sqrt | ScalarFn::Rsqrt | ScalarFn::Recip | ScalarFn::Div | ScalarFn::Pow => {
            (0.4, 2.0)
        }
        ScalarFn::Copy
        | ScalarFn::Neg
        | ScalarFn::Abs
        | ScalarFn::Sign
        | ScalarFn::Floor
        | ScalarFn::Exp
        | ScalarFn::Tanh
        | ScalarFn::Sigmoid
        | ScalarFn::Erf
        | ScalarFn::Sin
        | ScalarFn::Atan
        | ScalarFn::Cos
        | ScalarFn::Not
        | ScalarFn::Add
        | ScalarFn::Sub
        | ScalarFn::Mul
        | ScalarFn::Lt
        | ScalarFn::Le
        | ScalarFn::Eq
        | ScalarFn::And
        | ScalarFn::Or
        | ScalarFn::Select => (-2.0, 2.0),
    };
    sample(&format!("map {f}"), range, |m| {
        let shape = [3, 5];
        let x = m.real(&shape);
        let zero = m.b.zeros_like(x);
        let positive = m.b.map(ScalarFn::Lt, &[zero, x]);
        match f {
            ScalarFn::Copy => m.b.map(f, &[positive]),
            ScalarFn::Not => m.b.map(f, &[positive]),
            ScalarFn::And | ScalarFn::Or => {
                let y = m.real(&shape);
                let other = m.b.map(ScalarFn::Lt, &[y, zero]);
                m.b.map(f, &[positive, other])
            }
            ScalarFn::Select => {
                let (y, z) = (m.real(&shape), m.real(&shape));
                m.b.map(f, &[positive, y, z])
            }
            _ if f.arity() == 1 => m.b.map(f, &[x]),
            _ => {
                let y = m.real(&shape);
                m.b.map(f, &[x, y])
            }
        }
    })
}
