//! What the integration tests share: golden files and models.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod cuda_host;
pub(crate) mod graph_plan;
pub(crate) mod rounding;
pub(crate) mod steps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use slrc_runtime::data::npz::{Array, read_npz};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// Golden arrays of a case, see tests/goldens/README.md.
pub(crate) struct Goldens {
    arrays: BTreeMap<String, Array>,
    /// Folder of the golden files.
    pub(crate) folder: PathBuf,
    /// `convnet`, `transformer` or `unet`.
    pub(crate) case: &'static str,
}

impl Goldens {
    pub(crate) fn load(case: &'static str) -> Goldens {
        let folder = root().join("tests/goldens");
        let arrays = read_npz(&folder.join(format!("{case}.goldens.npz"))).expect("goldens").into_iter().collect();
        Goldens { arrays, folder, case }
    }

    pub(crate) fn get(&self, name: &str) -> Vec<f64> {
        self.arrays.get(name).unwrap_or_else(|| panic!("golden {name}")).to_f64()
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.arrays[name].shape
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// Names below a prefix, the prefix removed.
    pub(crate) fn below(&self, prefix: &str) -> Vec<String> {
        self.arrays.keys().filter_map(|k| k.strip_prefix(prefix)).map(str::to_string).collect()
    }

    /// Nodes to cut at.
    pub(crate) fn cuts(&self) -> Vec<String> {
        match self.case {
            "convnet" => vec!["/block1/relu2/Relu".into(), "/block2/relu2/Relu".into()],
            "unet" => ["down", "bottom", "merge1"].map(|layer| format!("/{layer}/act/Mul")).to_vec(),
            _ => vec!["/block1/Add_1".into()],
        }
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.folder.join(format!("{}.onnx", self.case))
    }

    pub(crate) fn heads(&self) -> PathBuf {
        self.folder.join(format!("{}.heads.safetensors", self.case))
    }
}

/// Largest difference relative to the largest golden magnitude of the tensor; NaN if any element is.
pub(crate) fn relative(ours: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(ours.len(), golden.len());
    let scale = golden.iter().fold(0.0f64, |m, x| m.max(x.abs())).max(1e-12);
    let larger = |m: f64, d: f64| if d > m || d.is_nan() { d } else { m };
    ours.iter().zip(golden).fold(0.0, |m, (a, b)| larger(m, (a - b).abs())) / scale
}
