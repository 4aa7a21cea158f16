//! The library's description of a convolution, computed as its documents say, against the plan's, worked out by views.

use std::collections::BTreeMap;

use slrc_plan::buffer::Live;
use slrc_plan::kernel::{Conv, ConvAlgorithm, ConvDirection, WindowGeometry};
use slrc_plan::{Buffer, DType, Dims, KernelOp, Region, Space, View};

use super::{Convolution, Finish, convolution};

const SIZE: usize = 4096;
const DIRECTIONS: [ConvDirection; 3] = [ConvDirection::Forward, ConvDirection::InputGrad, ConvDirection::WeightGrad];

type Memory = BTreeMap<&'static str, Vec<f32>>;

fn buffers() -> Vec<Buffer> {
    let buffer = |id: &str| Buffer {
        id: id.into(),
        space: Space::Arena,
        dtype: DType::F32,
        shape: Dims(vec![]),
        order: None,
        offset: 0,
        bytes: 4 * SIZE,
        live: Some(Live { first: 3, last: 3 }),
    };
    ["x", "w", "y", "d", "e"].map(buffer).to_vec()
}

/// Small whole numbers of both signs, so that sums are exact.
fn memory() -> Memory {
    let values = |seed: usize| (0..SIZE).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect();
    ["x", "w", "y", "d", "e"].into_iter().enumerate().map(|(i, id)| (id, values(i))).collect()
}

/// A window's numbers along both extents: input, output, kernel, stride, padding before, dilation.
type Window = [usize; 6];

fn conv(direction: ConvDirection, [ins, outs, groups]: [usize; 3], [h, w]: [Window; 2]) -> Conv {
    let pair = |i: usize| Dims(vec![h[i], w[i]]);
    let dense = |buffer: &str, offset: usize, shape: [usize; 4]| {
        let strides = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1];
        View { offset, ..View::new(buffer, strides.to_vec()) }
    };
    Conv {
        direction,
        algorithm: ConvAlgorithm::Direct,
        batch: 2,
        in_channels: ins,
        out_channels: outs,
        groups,
        geometry: WindowGeometry {
            input: pair(0),
            output: pair(1),
            kernel: pair(2),
            strides: pair(3),
            pads: pair(4),
            dilations: pair(5),
        },
        x: dense("x", 3, [2, h[0], w[0], ins]),
        w: dense("w", 5, [outs, h[2], w[2], ins / groups]),
        y: dense("y", 7, [2, h[1], w[1], outs]),
        x_prologue: None,
        y_prologue: None,
        split: None,
        packed: None,
        epilogue: None,
    }
}

fn described(run: &KernelOp) -> Option<Convolution<'_>> {
    let all = buffers();
    convolution(run, &all.iter().map(|b| (b.id.as_str(), b)).collect())
}

/// Calls `meet` with the coordinates of x, w and y that meet, by the plan's geometry.
fn by_geometry(c: &Conv, mut meet: impl FnMut([usize; 4], [usize; 4], [usize; 4])) {
    let (g, depth, outs) = (&c.geometry, c.in_channels / c.groups, c.out_channels / c.groups);
    for (n, o, i) in
        (0..c.batch).flat_map(|n| (0..c.out_channels).flat_map(move |o| (0..depth).map(move |i| (n, o, i))))
    {
        for (p, q) in (0..g.output[0]).flat_map(|p| (0..g.output[1]).map(move |q| (p, q))) {
            for (r, s) in (0..g.kernel[0]).flat_map(|r| (0..g.kernel[1]).map(move |s| (r, s))) {
                let Some((h, w)) = g.source(0, p, r).zip(g.source(1, q, s)) else { continue };
                if h < g.input[0] && w < g.input[1] {
                    meet([n, h, w, o / outs * depth + i], [o, r, s, i], [n, p, q, o]);
                }
            }
        }
    }
}

/// The plan's convolution without its epilogue.
fn ours(c: &Conv) -> Memory {
    let start = memory();
    let mut after = start.clone();
    let at = |v: &View, i: [usize; 4]| v.offset + i.iter().zip(&v.strides).map(|(i, s)| i * s).sum::<usize>();
    let (to, id) = match c.direction {
        ConvDirection::Forward => (&c.y, "y"),
        ConvDirection::InputGrad => (&c.x, "x"),
        ConvDirection::WeightGrad => (&c.w, "w"),
    };
    let shape = |v: &View, outer: usize| outer * v.strides[0];
    let count = match id {
        "w" => shape(&c.w, c.out_channels),
        _ => shape(to, c.batch),
    };
    after.get_mut(id).expect("a buffer")[to.offset..to.offset + count].fill(0.0);
    by_geometry(c, |x, w, y| {
        let (x, w, y) = (at(&c.x, x), at(&c.w, w), at(&c.y, y));
        let out = after.get_mut(id).expect("a buffer");
        match c.direction {
            ConvDirection::Forward => out[y] += start["x"][x] * start["w"][w],
            ConvDirection::InputGrad => out[x] += start["w"][w] * start["y"][y],
            ConvDirection::WeightGrad => out[w] += start["x"][x] * start["y"][y],
        }
    });
    after
}

/// What cuDNN does with the description, tensors `NHWC` and filters `KRSC`, as its documents say.
fn theirs(c: &Convolution<'_>) -> Memory {
    let start = memory();
    let mut after = start.clone();
    let size = |n: i32| usize::try_from(n).expect("an extent");
    let dense = |i: [i32; 4], extents: [i32; 3]| {
        let [a, b, d] = extents;
        size(((i[0] * a + i[1]) * b + i[2]) * d + i[3])
    };
    let (depth, outs) = (c.in_channels / c.groups, c.out_channels / c.groups);
    let (to, count) = match c.direction {
        ConvDirection::Forward => (c.y, c.batch * c.output[0] * c.output[1] * c.out_channels),
        ConvDirection::InputGrad => (c.x, c.batch * c.input[0] * c.input[1] * c.in_channels),
        ConvDirection::WeightGrad => (c.w, c.out_channels * c.kernel[0] * c.kernel[1] * depth),
    };
    let mut sums = vec![0.0; size(count)];
    for d in 0..2 {
        let span = c.dilations[d] * (c.kernel[d] - 1) + 1;
        assert_eq!((c.input[d] + 2 * c.pads[d] - span) / c.strides[d] + 1, c.output[d], "the library's own number");
    }
    for (n, o, i) in
        (0..c.batch).flat_map(|n| (0..c.out_channels).flat_map(move |o| (0..depth).map(move |i| (n, o, i))))
    {
        for (p, q) in (0..c.output[0]).flat_map(|p| (0..c.output[1]).map(move |q| (p, q))) {
            for (r, s) in (0..c.kernel[0]).flat_map(|r| (0..c.kernel[1]).map(move |s| (r, s))) {
                let h = p * c.strides[0] + r * c.dilations[0] - c.pads[0];
                let w = q * c.strides[1] + s * c.dilations[1] - c.pads[1];
                if !(0..c.input[0]).contains(&h) || !(0..c.input[1]).contains(&w) {
                    continue;
                }
                let x = dense([n, h, w, o / outs * depth + i], [c.input[0], c.input[1], c.in_channels]);
                let f = dense([o, r, s, i], [c.kernel[0], c.kernel[1], depth]);
                let y = dense([n, p, q, o], [c.output[0], c.output[1], c.out_channels]);
                let value = |p: crate::cuda::library::gemm::Place<'_>, at: usize| start[p.buffer][p.offset + at];
                match c.direction {
                    ConvDirection::Forward => sums[y] += value(c.x, x) * value(c.w, f),
                    ConvDirection::InputGrad => sums[x] += value(c.w, f) * value(c.y, y),
                    ConvDirection::WeightGrad => sums[f] += value(c.x, x) * value(c.y, y),
                }
            }
        }
    }
    let out = after.get_mut(to.buffer).expect("a buffer");
    for (i, &sum) in sums.iter().enumerate() {
        let channel =
            |at: crate::cuda::library::gemm::Place<'_>| start[at.buffer][at.offset + i % size(c.out_channels)];
        out[to.offset + i] = match c.finish {
            Finish::Scaled(factor) => factor * sum,
            Finish::Added => sum + out[to.offset + i],
            Finish::Biased(at) => sum + channel(at),
            Finish::BiasedRelu(at) => (sum + channel(at)).max(0.0),
        };
    }
    after
}

#[test]
fn every_direction_and_geometry() {
    let plain: Window = [5, 5, 3, 1, 1, 1];
    for (channels, windows) in [
        ([3, 4, 1], [plain, plain]),
        // Without padding, with a step that leaves the last row out, of a window that is not square.
        ([3, 4, 1], [[6, 2, 3, 2, 0, 1], [7, 3, 2, 2, 0, 1]]),
        // A step that leaves nothing out; more padding than the window needs.
        ([2, 3, 1], [[7, 4, 3, 2, 1, 1], [4, 7, 2, 1, 2, 1]]),
        // Apart; in groups; a single pixel with a step.
        ([2, 3, 1], [[7, 5, 3, 1, 1, 2], [10, 3, 2, 3, 0, 3]]),
        ([6, 4, 2], [plain, plain]),
        ([3, 5, 1], [[5, 3, 1, 2, 0, 1], [6, 3, 1, 2, 0, 1]]),
    ] {
        for direction in DIRECTIONS {
            let c = conv(direction, channels, windows);
            let run = KernelOp::Conv(c.clone());
            let theirs = theirs(&described(&run).unwrap_or_else(|| panic!("the library computes {c:?}")));
            assert!(ours(&c) == theirs, "{c:?}");
        }
    }
}

#[test]
fn what_the_library_cannot_do_is_left() {
    for direction in DIRECTIONS {
        let left = |channels, windows| described(&KernelOp::Conv(conv(direction, channels, windows))).is_none();
        let plain: Window = [5, 5, 3, 1, 1, 1];
        assert!(!left([3, 4, 1], [plain, plain]));
        // Padding before, but not behind; behind, but not before; twice as much behind.
        assert!(left([3, 4, 1], [[5, 4, 3, 1, 1, 1], plain]));
        assert!(left([3, 4, 1], [plain, [5, 4, 3, 1, 0, 1]]));
        assert!(left([3, 4, 1], [plain, [5, 6, 3, 1, 1, 1]]));
        // A filter a channel.
        assert!(left([4, 4, 4], [plain, plain]));
        let mut far = conv(direction, [3, 4, 1], [plain, plain]);
        far.batch = i32::MAX as usize;
        assert_eq!(described(&KernelOp::Conv(far)), None);
    }
}

/// An epilogue over the 2 x 5 x 5 x 4 results (or the 4 x 3 x 3 x 3 ones of weights).
fn region(space: &[usize], loads: &[&str], body: &[&str], store: &str) -> Option<Region> {
    Some(Region {
        space: Dims(space.to_vec()),
        reduce: vec![],
        loads: loads.iter().map(|s| s.parse().expect(s)).collect(),
        body: body.iter().map(|s| s.parse().expect(s)).collect(),
        stores: vec![store.parse().expect(store)],
        split: None,
    })
}

#[test]
fn epilogues() {
    let plain: Window = [5, 5, 3, 1, 1, 1];
    let go = |direction: ConvDirection, loads: &[&str], body: &[&str], store: &str| {
        let space: &[usize] = match direction {
            ConvDirection::Forward => &[2, 5, 5, 4],
            ConvDirection::InputGrad => &[2, 5, 5, 3],
            ConvDirection::WeightGrad => &[4, 3, 3, 3],
        };
        let c = Conv { epilogue: region(space, loads, body, store), ..conv(direction, [3, 4, 1], [plain, plain]) };
        let (plain, run) = (ours(&c), KernelOp::Conv(c));
        described(&run).map(|d| (plain, theirs(&d)))
    };
    let (y, bias) = ("p = y@7(100,20,4,1)", "q = e@2(0,0,0,1)");
    let relu = &["v = add p q", "f = lt 0.0 v", "r = select f v 0.0"][..];
    let start = memory();
    let biased = |i: usize, p: f32| p + start["e"][2 + i % 4];
    type Expected<'a> = Box<dyn Fn(usize, f32) -> f32 + 'a>;
    let forward: [(&[&str], &[&str], &str, Expected<'_>); 4] = [
        (&[y], &["v = mul p -2.0"], "d(100,20,4,1) = v", Box::new(|_, p| -2.0 * p)),
        (&[y, bias], &["v = add p q"], "d@9(100,20,4,1) = v", Box::new(biased)),
        (&[y, bias], relu, "y@7(100,20,4,1) = r", Box::new(|i, p| biased(i, p).max(0.0))),
        // In the place of what is added.
        (&[y, "q = e(100,20,4,1)"], &["v = add p q"], "e(100,20,4,1) = v", Box::new(|i, p| p + start["e"][i])),
    ];
    for (loads, body, store, expected) in forward {
        let (plain, theirs) = go(ConvDirection::Forward, loads, body, store).unwrap_or_else(|| panic!("{store}"));
        let to: slrc_plan::region::Store = store.parse().expect(store);
        for i in 0..200 {
            let (got, product) = (theirs[to.view.buffer.as_str()][to.view.offset + i], plain["y"][7 + i]);
            assert_eq!(got, expected(i, product), "{store}: {i}");
        }
    }
    let (x, w) = ("p = x@3(75,15,3,1)", "p = w@5(27,9,3,1)");
    let (sum, e) = (&["v = add q p"][..], "q = e(75,15,3,1)");
    let (plain, theirs) = go(ConvDirection::InputGrad, &[x, e], sum, "e(75,15,3,1) = v").expect("in its place");
    assert!((0..150).all(|i| theirs["e"][i] == plain["x"][3 + i] + start["e"][i]));
    let (plain, theirs) =
        go(ConvDirection::WeightGrad, &[w, "q = e(27,9,3,1)"], sum, "e(27,9,3,1) = v").expect("in its place");
    assert!((0..108).all(|i| theirs["e"][i] == plain["w"][5 + i] + start["e"][i]));

    // The library adds in place only, and has a bias in forward direction only.
    assert!(go(ConvDirection::Forward, &[y, "q = e(100,20,4,1)"], &["v = add p q"], "d(100,20,4,1) = v").is_none());
    assert!(go(ConvDirection::InputGrad, &[x, e], sum, "d(75,15,3,1) = v").is_none());
    assert!(go(ConvDirection::InputGrad, &[x, "q = e(0,0,0,1)"], sum, "d(75,15,3,1) = v").is_none());
}
