//! Initial values of everything a plan loads: the model's own, random ones, and replacements by name.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::random::{Sequence, stream_of};

use crate::ir::graph::{Init, Variable};
use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::read_weight;
use crate::pipeline::Compiled;
use crate::spec::InitMode;

/// A row-major f32 tensor by name.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightTensor {
    /// Tensor name in the plan.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: Vec<f32>,
}

/// Initial weights could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The model's own cannot be read.
    #[error("{0}; start from random weights with --init random, or give them with --init-from")]
    Model(#[from] OnnxError),
    /// A weight is not finite: nothing can be learned from there.
    #[error(
        "weight \"{name}\" holds {value}; mend the file it comes from, or start from random weights with --init random"
    )]
    NotFinite {
        /// Its name.
        name: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// A replacement has the wrong shape.
    #[error("--init-from: tensor \"{name}\" has shape {found:?}, the network needs {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// In the network.
        wanted: Vec<usize>,
    },
}

/// Every tensor of `weights.safetensors`: parameters in plan order, then constants. `replacements` win over the model's
/// and over random values; names the plan does not have are returned.
pub fn initial_weights(
    c: &Compiled,
    file: &OnnxFile,
    replacements: &[WeightTensor],
) -> Result<(Vec<WeightTensor>, Vec<String>), WeightError> {
    let given: BTreeMap<&str, &WeightTensor> = replacements.iter().map(|t| (t.name.as_str(), t)).collect();
    let variables: BTreeMap<&str, &Variable> = c
        .modules
        .iter()
        .flat_map(|m| m.train.variables.iter().chain(&m.eval.variables))
        .map(|v| (v.name.as_str(), v))
        .collect();
    let mut out = Vec::new();
    for p in &c.plan.parameters {
        let v = variables[p.name.as_str()];
        let data = match (given.get(p.name.as_str()), c.network.sources.get(&p.name)) {
            (Some(t), _) if t.shape == v.ty.shape => t.data.clone(),
            (Some(t), _) => {
                let (found, wanted) = (t.shape.clone(), v.ty.shape.clone());
                return Err(WeightError::Shape { name: p.name.clone(), found, wanted });
            }
            (None, Some(s)) if c.spec.init == InitMode::Keep => read_weight(file, &s.source)?,
            _ => random(v, c.spec.seed),
        };
        if let Some(&value) = data.iter().find(|x| !x.is_finite()) {
            return Err(WeightError::NotFinite { name: p.name.clone(), value });
        }
        out.push(WeightTensor { name: p.name.clone(), shape: v.ty.shape.clone(), data });
    }
    for (constant, id) in c.names.constants() {
        let data = constant.data.iter().map(|&x| x as f32).collect();
        out.push(WeightTensor { name: id, shape: constant.ty.shape.clone(), data });
    }
    let known: BTreeSet<&str> = c.plan.parameters.iter().map(|p| p.name.as_str()).collect();
    let unused = replacements.iter().filter(|t| !known.contains(t.name.as_str())).map(|t| t.name.clone()).collect();
    Ok((out, unused))
}

/// A variable's random initial values: a function of the seed, its name and its shape.
fn random(v: &Variable, seed: u64) -> Vec<f32> {
    let mut s = Sequence::new(seed, stream_of(&v.name), u64::MAX);
    let n = v.ty.count();
    match v.init {
        Init::Constant(x) => vec![x as f32; n],
        Init::Uniform(bound) => (0..n).map(|_| s.symmetric(bound as f32)).collect(),
        Init::Normal(deviation) => (0..n).map(|_| s.normal() * deviation as f32).collect(),
    }
}
