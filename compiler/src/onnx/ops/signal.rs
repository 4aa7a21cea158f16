//! Fourier transforms, as products with matrices of sines and cosines.

use std::f64::consts::TAU;

use crate::ir::graph::NodeId;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::index::{along, take};
use crate::onnx::ops::shape::part;
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "DFT", note: "length and axis known at import; at most 4096 elements", convert: dft },
    Entry { op: "STFT", note: "step and length known at import; at most 4096 elements", convert: stft },
];

type R = Result<Vec<Out>, String>;

/// Longest transform: its matrices have the square of this many elements.
const LONGEST: usize = 4096;

/// A transform along one axis of numbers whose last dimension is real and imaginary part, or the real part alone.
#[derive(Clone, Copy)]
struct Transform {
    axis: usize,
    length: usize,
    inverse: bool,
    /// Half of the frequencies, of which the other half follows where what is transformed is real.
    half: bool,
}

impl Transform {
    fn apply(self, cx: &mut Cx<'_, '_, '_>, x: NodeId) -> Result<NodeId, String> {
        let Transform { axis, length, inverse, half } = self;
        let s = cx.b.shape(x);
        let (last, n) = (s.len() - 1, length as f64);
        let to = if half && !inverse { length / 2 + 1 } else { length };
        // Of a half, every frequency but the first and the middle one stands for two.
        let twice = |j: usize| if half && inverse && j != 0 && 2 * j != length { 2.0 } else { 1.0 };
        let scale = if inverse { 1.0 / n } else { 1.0 };
        let element = |i: usize, f: &dyn Fn(f64) -> f64| {
            let (j, k) = (i / to, i % to);
            if j < length { scale * twice(j) * f(TAU * ((j * k) % length) as f64 / n) } else { 0.0 }
        };
        let sign = if inverse { -1.0 } else { 1.0 };
        let (cosines, sines) = (|i| element(i, &f64::cos), |i| element(i, &|a| sign * a.sin()));
        let x_re = part(cx, x, last, 0, 1);
        let mut re = along(cx, x_re, axis, to, cosines)?;
        let im = along(cx, x_re, axis, to, sines)?;
        let mut im = cx.b.neg(im);
        if s[last] == 2 {
            let x_im = part(cx, x, last, 1, 1);
            let (more_re, more_im) = (along(cx, x_im, axis, to, sines)?, along(cx, x_im, axis, to, cosines)?);
            re = cx.b.add(re, more_re);
            im = cx.b.add(im, more_im);
        }
        Ok(if half && inverse { re } else { cx.b.concat(&[re, im], last) })
    }
}

fn length(n: i64) -> Result<usize, String> {
    let fits = usize::try_from(n).ok().filter(|n| (1..=LONGEST).contains(n));
    fits.ok_or(format!("a length of {n} is not from 1 to {LONGEST}"))
}

/// The last dimension of complex numbers, or of real ones.
fn check_parts(s: &[usize]) -> Result<(), String> {
    match s {
        [_, .., 1 | 2] => Ok(()),
        _ => Err(format!("the last dimension of {s:?} is not of real and imaginary parts")),
    }
}

fn dft(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    check_parts(&s)?;
    let (inverse, half) = (cx.int("inverse", 0) != 0, cx.int("onesided", 0) != 0);
    let axis = match cx.opset {
        ..20 => cx.int("axis", 1),
        _ if cx.present(2) => cx.known_number(2, "the axis")? as i64,
        _ => -2,
    };
    let axis = cx.axis(axis, s.len())?;
    if axis == s.len() - 1 {
        return Err("its axis is the one of real and imaginary parts".into());
    }
    let all = if inverse && half { 2 * s[axis].saturating_sub(1) } else { s[axis] };
    let said = if cx.present(1) { cx.known_number(1, "the length")? as i64 } else { all as i64 };
    let transform = Transform { axis, length: length(said)?, inverse, half };
    let x = cx.real(0)?;
    real(transform.apply(cx, x)?)
}

/// Transforms of overlapping frames of a signal `[N, length, 1 or 2]`.
fn stft(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    check_parts(&s)?;
    let &[n, whole, parts] = &s[..] else { return Err(format!("{s:?} is no signal")) };
    let half = cx.int("onesided", 1) != 0;
    let step = cx.known_number(1, "the step")?;
    let frame = match (cx.present(3), cx.present(2)) {
        (true, _) => cx.known_number(3, "the length")? as i64,
        (false, true) => cx.shape(2)?.iter().product::<usize>() as i64,
        (false, false) => return Err("neither a length nor a window is given".into()),
    };
    let frame = length(frame)?;
    if !(1.0..=f64::from(1 << 30)).contains(&step) || whole < frame {
        return Err(format!("frames of {frame}, each {step} further, do not fit a signal of {whole}"));
    }
    let step = step as usize;
    let frames = (whole - frame) / step + 1;
    cx.state.allowance.copy(frames.saturating_mul(frame))?;
    let at: Vec<usize> = (0..frames).flat_map(|f| (0..frame).map(move |i| f * step + i)).collect();
    let x = cx.real(0)?;
    let x = take(cx, x, 1, &at);
    let mut x = cx.b.reshape(x, &[n, frames, frame, parts]);
    if cx.present(2) {
        let window = cx.fixed(2)?;
        let full = cx.b.shape(x);
        if cx.b.shape(window) != [frame] {
            return Err(format!("a window of {:?} does not fit frames of {frame}", cx.b.shape(window)));
        }
        let window = cx.b.reshape(window, &[1, 1, frame, 1]);
        let window = cx.b.broadcast(window, &full);
        x = cx.b.mul(x, window);
    }
    real(Transform { axis: 2, length: frame, inverse: false, half }.apply(cx, x)?)
}
