//! Shapes of graph inputs: declared extents, the batch, and what the user passes.

use std::collections::BTreeMap;

use onnx_protobuf::ValueInfoProto;

use crate::onnx::OnnxError;
use crate::onnx::tensor::{Elem, MAX_RANK, elem, type_name};

/// An extent in a `--shape` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// `N`: the batch.
    Batch,
    /// A number.
    Fixed(usize),
}

/// Batch size where neither the model nor the user says.
pub const DEFAULT_BATCH: usize = 32;

pub(crate) struct ResolvedInput {
    pub(crate) name: String,
    pub(crate) elem: Elem,
    pub(crate) shape: Vec<usize>,
}

pub(crate) struct Resolved {
    pub(crate) inputs: Vec<ResolvedInput>,
    pub(crate) batch: usize,
    /// `(declared, samples a pass)` where the file fixes another batch.
    pub(crate) rebatch: Option<(usize, usize)>,
}

enum Dim {
    Fixed(usize),
    Named(String),
    Unknown,
}

fn declared(v: &ValueInfoProto) -> Result<(Elem, Vec<Dim>), OnnxError> {
    let bad = |reason: String| OnnxError::Input { name: v.name.clone(), reason };
    let ty = v.type_.as_ref().filter(|t| t.has_tensor_type()).ok_or_else(|| bad("it is not a tensor".into()))?;
    let tensor = ty.tensor_type();
    let elem =
        elem(tensor.elem_type).ok_or_else(|| bad(format!("{} data is not supported", type_name(tensor.elem_type))))?;
    let shape = tensor
        .shape
        .as_ref()
        .ok_or_else(|| bad(format!("its shape is not declared; pass --shape {}=Nx...", v.name)))?;
    let dims = shape
        .dim
        .iter()
        .map(|d| {
            if d.has_dim_value() {
                let n = d.dim_value();
                // Some exporters write 0 or -1 for "any".
                Ok(usize::try_from(n).ok().filter(|&n| n > 0).map_or(Dim::Unknown, Dim::Fixed))
            } else if d.has_dim_param() && !d.dim_param().is_empty() {
                Ok(Dim::Named(d.dim_param().to_string()))
            } else {
                Ok(Dim::Unknown)
            }
        })
        .collect::<Result<Vec<_>, OnnxError>>()?;
    Ok((elem, dims))
}

/// Gives every input its extents. The first dimension of the first input is the batch, divided into `micro_batches`.
pub(crate) fn resolve(
    inputs: &[&ValueInfoProto],
    batch: Option<usize>,
    micro_batches: usize,
    shapes: &BTreeMap<String, Vec<Extent>>,
) -> Result<Resolved, OnnxError> {
    if let Some(name) = shapes.keys().find(|n| !inputs.iter().any(|i| i.name == **n)) {
        let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(OnnxError::Input {
            name: name.clone(),
            reason: format!("--shape names an input the model does not have; it has {}", names.join(", ")),
        });
    }
    let mut all = Vec::new();
    for v in inputs {
        // A given shape stands in for a missing declaration.
        let d = match declared(v) {
            Err(e) if !shapes.contains_key(&v.name) || v.type_.as_ref().is_none_or(|t| !t.has_tensor_type()) => {
                return Err(e);
            }
            Err(_) => (elem(v.type_.tensor_type().elem_type).unwrap_or(Elem::Float), Vec::new()),
            Ok(d) => d,
        };
        all.push(d);
    }
    let first = all.first().ok_or_else(|| OnnxError::Graph("the model has no inputs".into()))?;
    let fixed = match first.1.first() {
        Some(Dim::Fixed(n)) => Some(*n),
        _ => None,
    };
    let given = shapes.get(&inputs[0].name).and_then(|s| match s.first() {
        Some(Extent::Fixed(n)) => Some(*n),
        _ => None,
    });
    let whole = batch.or(given).or(fixed.filter(|&n| n > 1)).unwrap_or(DEFAULT_BATCH);
    if !whole.is_multiple_of(micro_batches) {
        let reason = format!("a batch of {whole} is no multiple of {micro_batches} micro-batches");
        return Err(OnnxError::Input { name: inputs[0].name.clone(), reason });
    }
    let wanted = whole / micro_batches;
    let rebatch = fixed.filter(|&n| n != wanted).map(|n| (n, wanted));
    let batch_name = match first.1.first() {
        Some(Dim::Named(n)) => Some(n.clone()),
        _ => None,
    };
    let mut out = Vec::new();
    for (v, (elem, dims)) in inputs.iter().zip(all) {
        let shape = match shapes.get(&v.name) {
            Some(given) => {
                if !dims.is_empty() && dims.len() != given.len() {
                    let reason = format!("it has {} dimensions, --shape gives {}", dims.len(), given.len());
                    return Err(OnnxError::Input { name: v.name.clone(), reason });
                }
                let extent = |(d, e): (usize, &Extent)| match e {
                    // What is given is the step's batch.
                    Extent::Fixed(n) if d == 0 && *n == whole => wanted,
                    Extent::Fixed(n) => *n,
                    Extent::Batch => wanted,
                };
                given.iter().enumerate().map(extent).collect()
            }
            None => {
                let extents = dims.iter().enumerate().map(|(d, dim)| match dim {
                    Dim::Fixed(n) if d == 0 && Some(*n) == rebatch.map(|r| r.0) => Some(wanted),
                    Dim::Fixed(n) => Some(*n),
                    Dim::Named(n) if Some(n) == batch_name.as_ref() => Some(wanted),
                    Dim::Named(_) | Dim::Unknown => (d == 0).then_some(wanted),
                });
                extents.collect::<Option<Vec<usize>>>().ok_or_else(|| {
                    let text: Vec<String> = dims
                        .iter()
                        .enumerate()
                        .map(|(d, dim)| match dim {
                            Dim::Fixed(n) if d > 0 => n.to_string(),
                            _ if d == 0 => "N".into(),
                            _ => "?".into(),
                        })
                        .collect();
                    OnnxError::Input {
                        name: v.name.clone(),
                        reason: format!(
                            "its shape is {}; pass the unknown extents with --shape {}={}",
                            text.join("x"),
                            v.name,
                            text.join("x")
                        ),
                    }
                })?
            }
        };
        if shape.first() != Some(&wanted) {
            let first = shape.first().map_or("missing".to_string(), usize::to_string);
            let reason =
                format!("its first extent is {first}, but the batch is {wanted}; write N for the batch in --shape");
            return Err(OnnxError::Input { name: v.name.clone(), reason });
        }
        if shape.len() > MAX_RANK {
            let reason = format!("it has {} dimensions, more than {MAX_RANK}", shape.len());
            return Err(OnnxError::Input { name: v.name.clone(), reason });
        }
        if shape.contains(&0) || shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).is_none_or(|n| n > 1 << 32) {
            return Err(OnnxError::Input {
                name: v.name.clone(),
                reason: format!("shape {shape:?} is empty or too large"),
            });
        }
        out.push(ResolvedInput { name: v.name.clone(), elem, shape });
    }
    Ok(Resolved { inputs: out, batch: wanted, rebatch })
}
