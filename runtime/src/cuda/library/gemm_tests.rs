//! The library's description of a product, worked out column by column, against the plan's, worked out by views.

use std::collections::BTreeMap;

use slrc_plan::buffer::Live;
use slrc_plan::kernel::{ConvDirection, WindowGeometry};
use slrc_plan::{Buffer, DType, Dims, KernelOp, Region, Space, View};

use super::{Finish, Gemm, Matrix, gemm};

type Memory = BTreeMap<String, Vec<f32>>;

fn view(text: &str) -> View {
    text.parse().expect(text)
}

fn buffer(id: &str, dtype: DType, live: Live) -> Buffer {
    let (shape, bytes) = (Dims(vec![]), dtype.bytes(4096));
    Buffer { id: id.into(), space: Space::Arena, dtype, shape, order: None, offset: 0, bytes, live: Some(live) }
}

/// Buffers of f32 named by single letters, of 4096 elements; `c` is read by nobody else, `k` is.
fn buffers() -> Vec<Buffer> {
    let short = Live { first: 3, last: 3 };
    let mut all: Vec<Buffer> =
        ["a", "b", "c", "d", "e", "x", "w", "y"].iter().map(|id| buffer(id, DType::F32, short)).collect();
    all.push(buffer("k", DType::F32, Live { first: 3, last: 4 }));
    all.push(buffer("u", DType::U8, short));
    all
}

fn described(run: &KernelOp) -> Option<Gemm<'_>> {
    let all = buffers();
    gemm(run, &all.iter().map(|b| (b.id.as_str(), b)).collect())
}

fn matmul(batch: &[usize], [m, n, k]: [usize; 3], [a, b, c]: [&str; 3], epilogue: Option<Region>) -> KernelOp {
    let (a, b, c) = (view(a), view(b), view(c));
    let batch = Dims(batch.to_vec());
    let (a_prologue, b_prologue) = (None, None);
    KernelOp::Matmul(slrc_plan::kernel::Matmul {
        batch,
        m,
        n,
        k,
        a,
        b,
        c,
        a_prologue,
        b_prologue,
        b_sums: None,
        split: None,
        epilogue,
    })
}

fn region(space: &[usize], loads: &[&str], body: &[&str], stores: &[&str]) -> Option<Region> {
    Some(Region {
        space: Dims(space.to_vec()),
        reduce: vec![],
        loads: loads.iter().map(|s| s.parse().expect(s)).collect(),
        body: body.iter().map(|s| s.parse().expect(s)).collect(),
        stores: stores.iter().map(|s| s.parse().expect(s)).collect(),
        split: None,
    })
}

/// Small whole numbers, of both signs, so that sums are exact.
fn memory() -> Memory {
    let values = |seed: usize| (0..4096).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect();
    ["a", "b", "c", "d", "e", "x", "w", "y", "k"]
        .iter()
        .enumerate()
        .map(|(i, id)| (id.to_string(), values(i)))
        .collect()
}

/// What cuBLASLt does, as its documents say.
fn call(g: &Gemm<'_>, memory: &mut Memory) {
    let at = |m: &Matrix<'_>, z: usize, i: usize, j: usize| {
        assert!(i < m.rows && j < m.cols && m.leading >= m.rows);
        m.at.offset + z * m.step + j * m.leading + i
    };
    let factor = |m: &Matrix<'_>, z: usize, i: usize, j: usize, memory: &Memory| {
        memory[m.at.buffer][if m.transposed { at(m, z, j, i) } else { at(m, z, i, j) }]
    };
    let terms = if g.first.transposed { g.first.rows } else { g.first.cols };
    assert!(!g.result.transposed);
    for z in 0..g.count {
        for j in 0..g.result.cols {
            for i in 0..g.result.rows {
                let sum: f32 =
                    (0..terms).map(|l| factor(&g.first, z, i, l, memory) * factor(&g.second, z, l, j, memory)).sum();
                let value = match g.finish {
                    Finish::Nothing => sum,
                    Finish::Scaled(f) => f * sum,
                    Finish::Added(m) => sum + memory[m.at.buffer][at(&m, z, i, j)],
                    Finish::Biased(p) => sum + memory[p.buffer][p.offset + i],
                    Finish::BiasedRelu(p) => (sum + memory[p.buffer][p.offset + i]).max(0.0),
                };
                memory.get_mut(g.result.at.buffer).expect("a buffer")[at(&g.result, z, i, j)] = value;
            }
        }
    }
}

/// What the plan says of a product without an epilogue.
fn by_views(run: &KernelOp, memory: &mut Memory) {
    let KernelOp::Matmul(p) = run else { panic!("a matrix product") };
    let count: usize = p.batch.iter().product();
    for z in 0..count {
        let mut index = vec![0; p.batch.len()];
        let mut rest = z;
        for (at, extent) in index.iter_mut().zip(&p.batch[..]).rev() {
            *at = rest % extent;
            rest /= extent;
        }
        let at = |v: &View, i: usize, j: usize| {
            let all = index.iter().copied().chain([i, j]);
            v.offset + all.zip(&v.strides).map(|(i, s)| i * s).sum::<usize>()
        };
        for i in 0..p.m {
            for j in 0..p.n {
                let term = |l: usize| memory[&p.a.buffer][at(&p.a, i, l)] * memory[&p.b.buffer][at(&p.b, l, j)];
                let sum = (0..p.k).map(term).sum();
                memory.get_mut(&p.c.buffer).expect("a buffer")[at(&p.c, i, j)] = sum;
            }
        }
    }
}

/// Expects that the library computes a product without an epilogue, and the same.
fn same(run: &KernelOp) -> Gemm<'_> {
    let g = described(run).unwrap_or_else(|| panic!("the library computes {run:?}"));
    let (mut ours, mut theirs) = (memory(), memory());
    by_views(run, &mut ours);
    call(&g, &mut theirs);
    assert!(ours == theirs, "{run:?}\n{g:?}");
    g
}

#[test]
fn every_way_to_lie() {
    let (m, n, k) = (3, 4, 5);
    for bits in 0..8 {
        let lies = |bit: usize, buffer: &str, rows: usize, cols: usize| {
            // Rows or columns lie together, with two elements between one and the next.
            if bits >> bit & 1 == 0 {
                format!("{buffer}@6({},1)", cols + 2)
            } else {
                format!("{buffer}(1,{})", rows + 2)
            }
        };
        let (a, b, c) = (lies(0, "a", m, k), lies(1, "b", k, n), lies(2, "c", m, n));
        let run = matmul(&[], [m, n, k], [&a, &b, &c], None);
        let g = same(&run);
        // Rows of the plan are columns of the library.
        let swapped = bits >> 2 & 1 == 0;
        assert_eq!(g.first.at.buffer, if swapped { "b" } else { "a" });
        assert_eq!((g.result.rows, g.result.cols), if swapped { (n, m) } else { (m, n) });
        assert_eq!((g.count, g.first.step), (1, 0));
    }
}

#[test]
fn extents_of_one_lie_any_way() {
    for [m, n, k] in [[1, 4, 5], [3, 1, 5], [3, 4, 1], [1, 1, 5], [1, 4, 1], [1, 1, 1]] {
        let strides = |rows: usize, cols: usize, lost: usize| match (rows, cols) {
            // The stride of an extent of 1 may be any number.
            (1, 1) => format!("({lost},{lost})"),
            (1, _) => format!("({lost},1)"),
            (_, 1) => format!("(1,{lost})"),
            _ => format!("({cols},1)"),
        };
        for lost in [0, 1, 77] {
            let (a, b, c) = (strides(m, k, lost), strides(k, n, lost), strides(m, n, lost));
            same(&matmul(&[], [m, n, k], [&format!("a{a}"), &format!("b{b}"), &format!("c{c}")], None));
        }
    }
    // A column of a matrix is no column that lies together: it is a row of the transpose with a leading dimension.
    let column = matmul(&[], [3, 4, 1], ["a(9,1)", "b(4,1)", "c(4,1)"], None);
    assert_eq!(same(&column).second.leading, 9);
}

#[test]
fn batches_are_stepped_evenly() {
    let whole = ["a(60,15,5,1)", "b(80,20,4,1)", "c(48,12,4,1)"];
    let g = matmul(&[2, 4], [3, 4, 5], whole, None);
    let g = same(&g);
    assert_eq!((g.count, g.first.step, g.second.step, g.result.step), (8, 20, 15, 12));
    // One factor for all; a dimension of one in between; heads that lie inside rows, of one sample.
    assert_eq!(same(&matmul(&[6], [3, 4, 5], ["a(15,5,1)", "b(0,4,1)", "c(12,4,1)"], None)).first.step, 0);
    same(&matmul(&[2, 1, 3], [3, 4, 5], ["a(45,7,15,5,1)", "b(60,0,20,4,1)", "c(36,1,12,4,1)"], None));
    let heads = matmul(&[1, 4], [3, 3, 5], ["a(999,5,20,1)", "b(999,5,1,20)", "c(36,9,3,1)"], None);
    assert_eq!(same(&heads).second.leading, 20);
    // Heads inside rows of several samples, and a factor that only samples share, are stepped unevenly.
    for views in [["a(60,5,20,1)", "b(60,20,4,1)", "c(36,12,4,1)"], ["a(45,15,5,1)", "b(0,20,4,1)", "c(36,12,4,1)"]] {
        assert_eq!(described(&matmul(&[2, 3], [3, 4, 5], views, None)), None);
    }
}

#[test]
fn what_the_library_cannot_read_is_left() {
    let good = ["a(5,1)", "b(4,1)", "c(4,1)"];
    assert!(described(&matmul(&[], [3, 4, 5], good, None)).is_some());
    for (operand, bad) in [
        // No unit stride; rows that overlap; one element for all; rows that are one row.
        (0, "a(10,2)"),
        (0, "a(4,1)"),
        (1, "b(0,0)"),
        (1, "b(0,1)"),
        (2, "c(8,2)"),
    ] {
        let mut views = good;
        views[operand] = bad;
        assert_eq!(described(&matmul(&[], [3, 4, 5], views, None)), None, "{bad}");
    }
    let far = i32::MAX as usize + 1;
    assert_eq!(described(&matmul(&[], [far, 4, 5], ["a(5,1)", "b(4,1)", "c(4,1)"], None)), None);
}

const C: &str = "p = c(4,1)";

/// The finish of a product of 3 x 4 with this epilogue, where the library has it, and memory after the call.
fn finished(loads: &[&str], body: &[&str], stores: &[&str]) -> Option<(String, Memory)> {
    let run = matmul(&[], [3, 4, 5], ["a(5,1)", "b(4,1)", "c(4,1)"], region(&[3, 4], loads, body, stores));
    let g = described(&run)?;
    let mut after = memory();
    call(&g, &mut after);
    Some((format!("{:?}", g.finish), after))
}

#[test]
fn epilogues_that_the_library_has() {
    let mut plain = memory();
    by_views(&matmul(&[], [3, 4, 5], ["a(5,1)", "b(4,1)", "c(4,1)"], None), &mut plain);
    let product = |i: usize, j: usize| plain["c"][4 * i + j];
    let start = memory();
    type Expected<'a> = Box<dyn Fn(usize, usize) -> f32 + 'a>;
    let relu = &["v = add p q", "f = lt 0.0 v", "r = select f v 0.0"][..];
    let bias = |i: usize, j: usize| product(i, j) + start["e"][2 + j];
    let cases: Vec<(&[&str], &[&str], &str, Expected<'_>)> = vec![
        (&[C], &["v = mul p 0.5"], "d(4,1) = v", Box::new(|i, j| product(i, j) * 0.5)),
        (&[C], &["v = mul -2.0 p"], "c(4,1) = v", Box::new(|i, j| product(i, j) * -2.0)),
        (&[C, "q = e@2(0,1)"], &["v = add p q"], "d@8(4,1) = v", Box::new(bias)),
        (&["q = e@2(0,1)", C], &["v = add q p"], "c(4,1) = v", Box::new(bias)),
        (&[C, "q = e@2(0,1)"], relu, "d(4,1) = r", Box::new(|i, j| bias(i, j).max(0.0))),
        (&[C, "q = e(4,1)"], &["v = add p q"], "d(4,1) = v", Box::new(|i, j| product(i, j) + start["e"][4 * i + j])),
        // In the place of what is added.
        (&[C, "q = e(4,1)"], &["v = add q p"], "e(4,1) = v", Box::new(|i, j| product(i, j) + start["e"][4 * i + j])),
    ];
    for (loads, body, store, expected) in cases {
        let (finish, after) = finished(loads, body, &[store]).unwrap_or_else(|| panic!("{body:?} to {store}"));
        let to: slrc_plan::region::Store = store.parse().expect(store);
        for (i, j) in (0..12).map(|at| (at / 4, at % 4)) {
            assert_eq!(after[&to.view.buffer][to.view.offset + 4 * i + j], expected(i, j), "{finish}: {i}, {j}");
        }
        let others = after.iter().filter(|(id, _)| **id != to.view.buffer);
        assert!(others.into_iter().all(|(id, values)| *values == start[id]), "{finish}: nothing else is written");
    }
}

#[test]
fn epilogues_that_the_library_lacks() {
    let bias = "q = e(0,1)";
    for (loads, body, stores) in [
        // More than one result, or a result that is no f32, or does not lie as the product does.
        (&[C, bias][..], &["v = add p q", "f = lt 0.0 v", "r = select f v 0.0"][..], &["u(4,1) = f", "d(4,1) = r"][..]),
        (&[C], &["f = lt 0.0 p"], &["u(4,1) = f"]),
        (&[C, bias], &["v = add p q"], &["d(8,1) = v"]),
        (&[C, bias], &["v = add p q"], &["d(1,3) = v"]),
        // A vector along rows, a matrix that lies otherwise, a flag, a number for all.
        (&[C, "q = e(1,0)"], &["v = add p q"], &["d(4,1) = v"]),
        (&[C, "q = e(1,3)"], &["v = add p q"], &["d(4,1) = v"]),
        (&[C, "q = u(4,1)"], &["v = add p q"], &["d(4,1) = v"]),
        (&[C, "q = e(0,0)"], &["v = add p q"], &["d(4,1) = v"]),
        // Other formulas: the exact GELU's is not the library's, which is the tanh approximation.
        (&[C], &["v = add p p"], &["d(4,1) = v"]),
        (&[C], &["v = add p 1.0"], &["d(4,1) = v"]),
        (&[C, bias], &["v = mul p q"], &["d(4,1) = v"]),
        (&[C, bias], &["v = sub p q"], &["d(4,1) = v"]),
        (&[C, bias], &["v = add q q"], &["d(4,1) = v"]),
        (&[C, bias], &["v = add p q", "w = tanh v"], &["d(4,1) = w"]),
        (&[C, bias], &["v = add p q", "w = mul v 0.70710677", "x = erf w"], &["d(4,1) = x"]),
        (&[C, bias], &["v = add p q", "f = lt 0.0 v", "r = select f v 0.1"], &["d(4,1) = r"]),
        (&[C, bias], &["v = add p q", "f = lt 0.5 v", "r = select f v 0.0"], &["d(4,1) = r"]),
        (&[C, bias], &["v = add p q", "f = lt 0.0 p", "r = select f v 0.0"], &["d(4,1) = r"]),
        (&[C, "q = e(4,1)"], &["v = add p q", "f = lt 0.0 v", "r = select f v 0.0"], &["d(4,1) = r"]),
        // The product itself is not used.
        (&["p = d(4,1)", bias], &["v = add p q"], &["d(4,1) = v"]),
    ] {
        assert!(finished(loads, body, stores).is_none(), "{loads:?} {body:?} {stores:?}");
    }
    // A product that is read later would have to be stored, too.
    let epilogue = |to: &str| region(&[3, 4], &["p = k(4,1)", bias], &["v = add p q"], &[to]);
    let run = |to: &str| matmul(&[], [3, 4, 5], ["a(5,1)", "b(4,1)", "k(4,1)"], epilogue(to));
    assert!(described(&run("d(4,1) = v")).is_none());
    assert!(described(&run("k(4,1) = v")).is_some());
}

fn pointwise(direction: ConvDirection) -> slrc_plan::kernel::Conv {
    let two = |a: usize, b: usize| Dims(vec![a, b]);
    slrc_plan::kernel::Conv {
        direction,
        algorithm: slrc_plan::kernel::ConvAlgorithm::Direct,
        batch: 2,
        in_channels: 3,
        out_channels: 4,
        groups: 1,
        geometry: WindowGeometry {
            input: two(2, 5),
            output: two(2, 5),
            kernel: two(1, 1),
            strides: two(1, 1),
            pads: two(0, 0),
            dilations: two(1, 1),
        },
        x: view("x@2(30,15,3,1)"),
        w: view("w(3,3,3,1)"),
        y: view("y(40,20,4,1)"),
        x_prologue: None,
        y_prologue: None,
        split: None,
        packed: None,
        epilogue: None,
    }
}

#[test]
fn convolutions_of_single_pixels() {
    for direction in [ConvDirection::Forward, ConvDirection::InputGrad, ConvDirection::WeightGrad] {
        let run = KernelOp::Conv(pointwise(direction));
        let g = described(&run).expect("a product");
        let mut after = memory();
        call(&g, &mut after);
        let mut expected = memory();
        let (x, w, y) = (expected["x"].clone(), expected["w"].clone(), expected["y"].clone());
        let mut set = |id: &str, at: usize, value: f32| expected.get_mut(id).expect("a buffer")[at] = value;
        let at_x = |p: usize, c: usize| 2 + 3 * p + c;
        let at_w = |o: usize, c: usize| 3 * o + c;
        let at_y = |p: usize, o: usize| 4 * p + o;
        match direction {
            ConvDirection::Forward => {
                for (p, o) in (0..20).flat_map(|p| (0..4).map(move |o| (p, o))) {
                    set("y", at_y(p, o), (0..3).map(|c| x[at_x(p, c)] * w[at_w(o, c)]).sum());
                }
            }
            ConvDirection::InputGrad => {
                for (p, c) in (0..20).flat_map(|p| (0..3).map(move |c| (p, c))) {
                    set("x", at_x(p, c), (0..4).map(|o| y[at_y(p, o)] * w[at_w(o, c)]).sum());
                }
            }
            ConvDirection::WeightGrad => {
                for (o, c) in (0..4).flat_map(|o| (0..3).map(move |c| (o, c))) {
                    set("w", at_w(o, c), (0..20).map(|p| y[at_y(p, o)] * x[at_x(p, c)]).sum());
                }
            }
        }
        assert!(after == expected, "{direction:?}: {g:?}");
    }
}

#[test]
fn other_convolutions_are_left() {
    let conv = |change: &dyn Fn(&mut slrc_plan::kernel::Conv)| {
        let mut c = pointwise(ConvDirection::Forward);
        change(&mut c);
        KernelOp::Conv(c)
    };
    assert!(described(&conv(&|_| {})).is_some());
    for other in [
        conv(&|c| c.groups = 3),
        conv(&|c| c.geometry.kernel = Dims(vec![3, 3])),
        conv(&|c| c.geometry.strides = Dims(vec![2, 2])),
        conv(&|c| c.geometry.pads = Dims(vec![1, 1])),
        conv(&|c| c.geometry.output = Dims(vec![1, 5])),
    ] {
        assert_eq!(described(&other), None);
    }
}
