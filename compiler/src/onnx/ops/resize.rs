//! Resizing: every axis by a matrix of interpolation weights that is known at import, or by choosing elements.

use crate::ir::graph::NodeId;
use crate::ir::types::Type;
use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::index::{along, take};
use crate::onnx::ops::shape::any;
use crate::onnx::ops::{Entry, real};

pub(super) const OPS: &[Entry] = &[
    Entry { op: "Resize", note: "nearest, linear and cubic, scales or sizes known at import", convert: resize },
    Entry { op: "Upsample", note: "scales known at import", convert: upsample },
];

type R = Result<Vec<Out>, String>;

/// Most numbers of an axis' matrix.
const MOST_WEIGHTS: usize = 1 << 24;

/// How one axis is resized.
struct Axis {
    from: usize,
    to: usize,
    scale: f64,
    /// Begin and end of the region of `tf_crop_and_resize`.
    roi: [f64; 2],
}

/// What the attributes say.
struct Rule {
    mode: String,
    coordinates: String,
    nearest: String,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
}

impl Rule {
    fn of(cx: &Cx<'_, '_, '_>) -> Rule {
        let old = cx.opset < 11;
        Rule {
            mode: cx.string("mode", "nearest"),
            coordinates: cx.string("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" }),
            nearest: cx.string("nearest_mode", if old { "floor" } else { "round_prefer_floor" }),
            cubic: cx.float("cubic_coeff_a", -0.75),
            exclude_outside: cx.int("exclude_outside", 0) != 0,
            antialias: cx.int("antialias", 0) != 0,
        }
    }

    /// Where element `i` of the result lies among the operand's.
    fn source(&self, a: &Axis, i: usize) -> Result<f64, String> {
        let (i, from, to) = (i as f64, a.from as f64, a.scale * a.from as f64);
        Ok(match self.coordinates.as_str() {
            "asymmetric" => i / a.scale,
            "half_pixel" => (i + 0.5) / a.scale - 0.5,
            "pytorch_half_pixel" if a.to == 1 => -0.5,
            "pytorch_half_pixel" => (i + 0.5) / a.scale - 0.5,
            "half_pixel_symmetric" => {
                let offset = from / 2.0 * (1.0 - a.to as f64 / to);
                offset + (i + 0.5) / a.scale - 0.5
            }
            "align_corners" if a.to == 1 => 0.0,
            "align_corners" => i * (from - 1.0) / (to - 1.0),
            "tf_half_pixel_for_nn" => (i + 0.5) / a.scale,
            "tf_crop_and_resize" => {
                let [begin, end] = a.roi;
                let span = (end - begin) * (from - 1.0);
                begin * (from - 1.0) + if a.to > 1 { i * span / (a.to as f64 - 1.0) } else { span / 2.0 }
            }
            other => return Err(format!("coordinate_transformation_mode \"{other}\" does not exist")),
        })
    }

    fn nearest(&self, x: f64) -> Result<f64, String> {
        Ok(match self.nearest.as_str() {
            "round_prefer_floor" => (x - 0.5).ceil(),
            "round_prefer_ceil" => (x + 0.5).floor(),
            "floor" => x.floor(),
            "ceil" => x.ceil(),
            other => return Err(format!("nearest_mode \"{other}\" does not exist")),
        })
    }

    /// The weight of an element at a distance (Keys, 1981, for cubic).
    fn weight(&self, distance: f64) -> f64 {
        let (d, a) = (distance.abs(), self.cubic);
        match (self.mode.as_str(), d) {
            ("cubic", d) if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            ("cubic", d) if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            ("cubic", _) => 0.0,
            (_, d) => (1.0 - d).max(0.0),
        }
    }

    /// The operand's element nearest to element `i`.
    fn chosen(&self, a: &Axis, i: usize) -> Result<usize, String> {
        let x = self.source(a, i)?;
        Ok(self.nearest(x)?.clamp(0.0, a.from as f64 - 1.0) as usize)
    }

    /// Row `i` of the matrix: weights of the operand's elements.
    fn row(&self, a: &Axis, i: usize) -> Result<Vec<f64>, String> {
        let x = self.source(a, i)?;
        let mut row = vec![0.0; a.from];
        let last = a.from as i64 - 1;
        // Shrinking with antialias stretches the filter over what falls together.
        let squeeze = if self.antialias { a.scale.min(1.0) } else { 1.0 };
        let reach = if self.mode == "cubic" { 2.0 } else { 1.0 } / squeeze;
        let (first, end) = ((x - reach).floor() as i64, (x + reach).ceil() as i64);
        let inside = |k: i64| (0..=last).contains(&k);
        let taps: Vec<(i64, f64)> = (first..=end).map(|k| (k, self.weight((k as f64 - x) * squeeze))).collect();
        let counted = |k: i64| !self.exclude_outside || inside(k);
        let sum: f64 = taps.iter().filter(|(k, _)| counted(*k)).map(|t| t.1).sum();
        for (k, w) in taps.into_iter().filter(|(k, _)| counted(*k)) {
            row[k.clamp(0, last) as usize] += w / sum;
        }
        Ok(row)
    }
}

fn upsample(cx: &mut Cx<'_, '_, '_>) -> R {
    let s = cx.shape(0)?;
    let scales = match cx.floats("scales") {
        Some(v) => v,
        None => cx.known_floats(1, "the scales")?,
    };
    let rule = Rule {
        mode: cx.string("mode", "nearest"),
        coordinates: "asymmetric".into(),
        nearest: "floor".into(),
        cubic: 0.0,
        exclude_outside: false,
        antialias: false,
    };
    scaled(cx, &rule, &s, &scales, None, &[])
}

fn resize(cx: &mut Cx<'_, '_, '_>) -> R {
    let rule = Rule::of(cx);
    let s = cx.shape(0)?;
    let policy = cx.string("keep_aspect_ratio_policy", "stretch");
    let axes = match cx.ints("axes") {
        Some(a) => a.iter().map(|&a| cx.axis(a, s.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..s.len()).collect(),
    };
    let numbers = |cx: &Cx<'_, '_, '_>, i: usize, what: &str| -> Result<Option<Vec<f64>>, String> {
        if !cx.present(i) || cx.shape(i)? == [0] {
            return Ok(None);
        }
        cx.known_floats(i, what).map(Some)
    };
    let (scale_input, roi_input) = if cx.opset < 11 { (1, usize::MAX) } else { (2, 1) };
    let roi = if roi_input == usize::MAX { None } else { numbers(cx, roi_input, "the regions")? };
    let scales = numbers(cx, scale_input, "the scales")?;
    let sizes = if cx.opset < 11 { None } else { numbers(cx, 3, "the sizes")? };
    let spread = |given: &[f64], fill: &dyn Fn(usize) -> f64| -> Result<Vec<f64>, String> {
        if given.len() != axes.len() {
            return Err(format!("{} numbers for {} axes", given.len(), axes.len()));
        }
        let mut out: Vec<f64> = (0..s.len()).map(fill).collect();
        axes.iter().zip(given).for_each(|(&d, &x)| out[d] = x);
        Ok(out)
    };
    let mut regions = vec![[0.0, 1.0]; s.len()];
    if let Some(r) = roi.filter(|r| r.len() == 2 * axes.len()) {
        axes.iter().enumerate().for_each(|(i, &d)| regions[d] = [r[i], r[i + axes.len()]]);
    }
    match (scales, sizes) {
        (Some(scales), None) => {
            let scales = spread(&scales, &|_| 1.0)?;
            scaled(cx, &rule, &s, &scales, None, &regions)
        }
        (None, Some(sizes)) => {
            let mut sizes = spread(&sizes, &|d| s[d] as f64)?;
            let mut scales: Vec<f64> = sizes.iter().zip(&s).map(|(to, &from)| to / from as f64).collect();
            let of_axes = axes.iter().map(|&d| scales[d]);
            let common = match policy.as_str() {
                "stretch" => None,
                "not_larger" => of_axes.reduce(f64::min),
                "not_smaller" => of_axes.reduce(f64::max),
                other => return Err(format!("keep_aspect_ratio_policy \"{other}\" does not exist")),
            };
            if let Some(c) = common {
                for &d in &axes {
                    (scales[d], sizes[d]) = (c, (c * s[d] as f64 + 0.5).floor());
                }
            }
            scaled(cx, &rule, &s, &scales, Some(&sizes), &regions)
        }
        _ => Err("either scales or sizes must be given".into()),
    }
}

fn scaled(
    cx: &mut Cx<'_, '_, '_>,
    rule: &Rule,
    s: &[usize],
    scales: &[f64],
    sizes: Option<&[f64]>,
    regions: &[[f64; 2]],
) -> R {
    if !matches!(rule.mode.as_str(), "nearest" | "linear" | "bilinear" | "cubic") {
        return Err(format!("mode \"{}\" does not exist", rule.mode));
    }
    if scales.len() != s.len() {
        return Err(format!("{} scales for {} dimensions", scales.len(), s.len()));
    }
    let outside = cx.float("extrapolation_value", 0.0);
    let crops = rule.coordinates == "tf_crop_and_resize";
    let (x, elem) = any(cx, 0)?;
    let mut x = cx.b.number(x);
    for (d, &from) in s.iter().enumerate() {
        let to = sizes.map_or((from as f64 * scales[d]).floor(), |z| z[d]);
        let fits = |x: f64| x.is_finite() && (1.0..=f64::from(1 << 20)).contains(&x);
        if from == 0 || !(fits(to) && scales[d].is_finite() && scales[d] > 0.0) {
            return Err(format!("dimension {d} cannot be resized from {from} to {to}"));
        }
        let a = Axis { from, to: to as usize, scale: scales[d], roi: regions.get(d).copied().unwrap_or([0.0, 1.0]) };
        if a.to == from && scales[d] == 1.0 && !crops {
            continue;
        }
        x = if rule.mode == "nearest" {
            cx.state.allowance.copy(a.to)?;
            let at = (0..a.to).map(|i| rule.chosen(&a, i)).collect::<Result<Vec<_>, _>>()?;
            repeated(cx, x, d, &at).unwrap_or_else(|| take(cx, x, d, &at))
        } else if a.to.saturating_mul(from) > MOST_WEIGHTS {
            return Err(format!("resizing {from} elements to {} is not supported", a.to));
        } else {
            cx.state.allowance.copy(a.to * from)?;
            let rows = (0..a.to).map(|i| rule.row(&a, i)).collect::<Result<Vec<_>, _>>()?;
            along(cx, x, d, a.to, |i| rows[i % a.to][i / a.to])?
        };
        if crops {
            let beyond = |i: usize| rule.source(&a, i).is_ok_and(|x| x < 0.0 || x > from as f64 - 1.0);
            x = replaced(cx, x, d, &(0..a.to).map(beyond).collect::<Vec<_>>(), outside);
        }
    }
    if elem != crate::onnx::tensor::Elem::Float && rule.mode != "nearest" {
        return Err("integers are resized by the nearest element only".into());
    }
    if elem == crate::onnx::tensor::Elem::Float { real(x) } else { Ok(vec![Out::Node(x, elem)]) }
}

/// Every element as often as any other, one after the other: a broadcast.
fn repeated(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, at: &[usize]) -> Option<NodeId> {
    let s = cx.b.shape(x);
    let times = at.len() / s[axis];
    if times == 0 || at.len() != times * s[axis] || at.iter().enumerate().any(|(i, &k)| k != i / times) {
        return None;
    }
    let mut apart = s.clone();
    apart.insert(axis + 1, 1);
    let x = cx.b.reshape(x, &apart);
    apart[axis + 1] = times;
    let x = cx.b.broadcast(x, &apart);
    let mut shape = s;
    shape[axis] *= times;
    Some(cx.b.reshape(x, &shape))
}

/// A number where `places` of an axis say so.
fn replaced(cx: &mut Cx<'_, '_, '_>, x: NodeId, axis: usize, places: &[bool], value: f64) -> NodeId {
    if !places.contains(&true) {
        return x;
    }
    let s = cx.b.shape(x);
    let mut along = vec![1; s.len()];
    along[axis] = s[axis];
    let data = places.iter().map(|&p| f64::from(u8::from(p))).collect();
    let flags = cx.b.constant(Type::new(crate::ir::types::DType::U8, along), data);
    let flags = cx.b.broadcast(flags, &s);
    let number = cx.b.splat(value, &s);
    cx.b.select(flags, number, x)
}
