//! A data set in memory, checked against a plan, and its batches.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use slrc_plan::plan::InputDecl;
use slrc_plan::random::Sequence;
use slrc_plan::{Buffer, DType, Plan};

use crate::data::npz::{Array, Elements, read_npz};
use crate::data::{DataError, idx};

/// Values of one array, sample after sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Real numbers.
    Real(Vec<f32>),
    /// Integers.
    Whole(Vec<i32>),
}

/// One array of samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name in the file.
    pub name: String,
    /// Extents of a sample.
    pub sample_shape: Vec<usize>,
    /// Its elements.
    pub values: Values,
}

/// Samples and their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// Where it was read from.
    pub path: PathBuf,
    /// Arrays by name.
    pub columns: Vec<Column>,
    /// Labels, sample after sample.
    pub labels: Vec<i32>,
    /// Number of samples.
    pub count: usize,
}

/// Which part of a data set with several is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// For training.
    Train,
    /// For evaluation.
    Test,
}

impl Dataset {
    /// Reads a data set: an `.npz` file with arrays `x` and `y` (or one array per input, by name), a folder with
    /// `train.npz` and `test.npz`, or a folder with MNIST's idx files.
    pub fn read(path: &Path, part: Part) -> Result<Dataset, DataError> {
        let test = part == Part::Test;
        if path.is_dir() {
            if idx::has_part(path, test) {
                return idx::read_part(path, test);
            }
            let file = path.join(if test { "test.npz" } else { "train.npz" });
            if file.is_file() {
                return from_npz(&file);
            }
            let reason = format!(
                "it holds neither MNIST's idx files (such as {}-images-idx3-ubyte.gz) nor {}",
                if test { "t10k" } else { "train" },
                if test { "test.npz" } else { "train.npz" }
            );
            return Err(DataError::Malformed { path: path.to_path_buf(), reason });
        }
        from_npz(path)
    }

    /// The column that feeds a plan's input: of the same name, or `x` where there is only one input.
    fn column(&self, plan: &Plan, input: &InputDecl) -> Result<&Column, DataError> {
        let by_name = self.columns.iter().find(|c| c.name == input.name);
        let only = (plan.inputs.len() == 1).then(|| self.columns.iter().find(|c| c.name == "x")).flatten();
        by_name.or(only).ok_or_else(|| {
            let names: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).chain(["y"]).collect();
            let other = if plan.inputs.len() == 1 { " (or \"x\")" } else { "" };
            self.bad(format!("the network needs an array \"{}\"{other}; the file has {}", input.name, names.join(", ")))
        })
    }

    fn bad(&self, reason: String) -> DataError {
        DataError::Malformed { path: self.path.clone(), reason }
    }

    /// Checks everything a plan relies on, so that no batch can fail: shapes, types, ranges, finite numbers.
    pub fn check(&self, plan: &Plan) -> Result<(), DataError> {
        if self.count == 0 {
            return Err(self.bad("it holds no samples".into()));
        }
        for input in &plan.inputs {
            let b = buffer(plan, &input.buffer);
            let c = self.column(plan, input)?;
            let (want, have) = (b.count() / plan.settings.batch, c.sample_shape.iter().product::<usize>());
            if want != have {
                return Err(self.bad(format!(
                    "array \"{}\" has samples of shape {:?} ({have} values), input \"{}\" takes {:?} ({want})",
                    c.name,
                    c.sample_shape,
                    input.name,
                    &b.shape[1..]
                )));
            }
            match (&c.values, b.dtype) {
                (Values::Real(v), DType::F32) => {
                    if let Some(i) = v.iter().position(|x| !x.is_finite()) {
                        return Err(self.bad(format!("sample {} of array \"{}\" holds {}", i / have, c.name, v[i])));
                    }
                }
                (Values::Whole(_), DType::F32) => {}
                (Values::Real(_), _) => {
                    return Err(self.bad(format!(
                        "array \"{}\" holds real numbers, input \"{}\" takes integers",
                        c.name, input.name
                    )));
                }
                (Values::Whole(v), _) => {
                    let bad = input
                        .index_below
                        .and_then(|n| v.iter().position(|&x| x < 0 || x as usize >= n).map(|i| (i, n)));
                    if let Some((i, n)) = bad {
                        return Err(self.bad(format!(
                            "sample {} of array \"{}\" holds {}, which is outside 0..{n}",
                            i / have,
                            c.name,
                            v[i]
                        )));
                    }
                }
            }
        }
        let per_sample = buffer(plan, &plan.labels.buffer).count() / plan.settings.batch;
        if self.labels.len() != self.count * per_sample {
            return Err(self.bad(format!(
                "{} labels for {} samples; the network needs {per_sample} a sample",
                self.labels.len(),
                self.count
            )));
        }
        let classes = plan.labels.classes;
        let ignored = plan.labels.ignored;
        let illegal = |l: i32| (l < 0 || l as usize >= classes) && Some(l) != ignored;
        if let Some(i) = self.labels.iter().position(|&l| illegal(l)) {
            let or = ignored.map_or(String::new(), |l| format!(", and not {l}, which is ignored"));
            return Err(self.bad(format!(
                "label {} of sample {} is outside 0..{classes}, the classes of the network{or}",
                self.labels[i],
                i / per_sample
            )));
        }
        Ok(())
    }

    /// SHA-256 of names, shapes and values, in hexadecimal: the same data gives the same text however it is stored.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut columns: Vec<&Column> = self.columns.iter().collect();
        columns.sort_by_key(|c| &c.name);
        for c in columns {
            hash.update(format!("{}{:?}", c.name, c.sample_shape));
            match &c.values {
                Values::Real(v) => hash.update(bytemuck::cast_slice::<f32, u8>(v)),
                Values::Whole(v) => hash.update(bytemuck::cast_slice::<i32, u8>(v)),
            }
        }
        hash.update(bytemuck::cast_slice::<i32, u8>(&self.labels));
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The bytes of a batch for one input, in the plan's type.
    pub fn input_batch(&self, plan: &Plan, input: &InputDecl, samples: &[u32]) -> Vec<u8> {
        let b = buffer(plan, &input.buffer);
        let c = self.column(plan, input).expect("invariant: checked before the first batch");
        let n: usize = c.sample_shape.iter().product();
        let mut out = Vec::with_capacity(b.bytes);
        for &s in samples {
            let range = s as usize * n..(s as usize + 1) * n;
            match (&c.values, b.dtype) {
                (Values::Real(v), _) => out.extend_from_slice(bytemuck::cast_slice(&v[range])),
                (Values::Whole(v), DType::F32) => v[range].iter().for_each(|&x| out.extend((x as f32).to_le_bytes())),
                (Values::Whole(v), _) => out.extend_from_slice(bytemuck::cast_slice(&v[range])),
            }
        }
        out
    }

    /// The labels of a batch.
    pub fn label_batch(&self, samples: &[u32]) -> Vec<i32> {
        let n = self.labels.len() / self.count.max(1);
        samples.iter().flat_map(|&s| self.labels[s as usize * n..(s as usize + 1) * n].iter().copied()).collect()
    }
}

fn buffer<'a>(plan: &'a Plan, id: &str) -> &'a Buffer {
    plan.buffers.iter().find(|b| b.id == id).expect("invariant: plans are validated")
}

fn from_npz(path: &Path) -> Result<Dataset, DataError> {
    let bad = |reason: String| DataError::Malformed { path: path.to_path_buf(), reason };
    let arrays = read_npz(path)?;
    if arrays.is_empty() {
        return Err(bad("it holds no arrays".into()));
    }
    let names: Vec<String> = arrays.iter().map(|a| a.0.clone()).collect();
    let mut columns = Vec::new();
    let mut labels = None;
    for (name, array) in arrays {
        if name == "y" {
            labels = Some(array);
        } else {
            let sample_shape = array.shape.get(1..).unwrap_or(&[]).to_vec();
            let count = array.shape.first().copied().unwrap_or(0);
            columns.push((count, Column { values: values(array, &bad, &name)?, name, sample_shape }));
        }
    }
    let labels = labels.ok_or_else(|| bad(format!("it has no array \"y\" of labels; it has {}", names.join(", "))))?;
    let count = labels.shape.first().copied().unwrap_or(0);
    if let Some((n, c)) = columns.iter().find(|(n, _)| *n != count) {
        return Err(bad(format!("array \"{}\" has {n} samples, \"y\" has {count}", c.name)));
    }
    let labels = match values(labels, &bad, "y")? {
        Values::Whole(v) => v,
        Values::Real(v) => v
            .iter()
            .map(|&x| {
                if x.fract() == 0.0 && x.abs() < 1e9 {
                    Ok(x as i32)
                } else {
                    Err(bad(format!("label {x} is not a class number")))
                }
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Dataset { path: path.to_path_buf(), columns: columns.into_iter().map(|c| c.1).collect(), labels, count })
}

fn values(a: Array, bad: &dyn Fn(String) -> DataError, name: &str) -> Result<Values, DataError> {
    Ok(match a.elements {
        Elements::F32(v) => Values::Real(v),
        Elements::F64(v) => Values::Real(v.into_iter().map(|x| x as f32).collect()),
        Elements::U8(v) => Values::Whole(v.into_iter().map(i32::from).collect()),
        Elements::I64(v) => Values::Whole(
            v.into_iter()
                .map(|x| i32::try_from(x).map_err(|_| bad(format!("array \"{name}\" holds {x}, which is too large"))))
                .collect::<Result<_, _>>()?,
        ),
    })
}

/// The order of samples: a permutation per epoch, or file order.
pub struct Order {
    /// Seed of the permutations.
    pub seed: u64,
    /// Whether to permute.
    pub shuffle: bool,
    /// Samples a batch.
    pub batch: usize,
    /// Samples in all.
    pub count: usize,
}

/// Stream of [`slrc_plan::random`] that shuffles use.
const SHUFFLE_STREAM: u32 = 0x5eed_da7a;

impl Order {
    /// The samples of an epoch. Whole batches of them are used; what is left over waits for another epoch's order.
    pub fn epoch(&self, epoch: u64) -> Vec<u32> {
        if self.shuffle {
            Sequence::new(self.seed, SHUFFLE_STREAM, epoch).permutation(self.count)
        } else {
            (0..self.count as u32).collect()
        }
    }
}
