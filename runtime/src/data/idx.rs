//! The idx format of MNIST: big-endian extents, then bytes; plain or gzip'd.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::data::dataset::{Column, Dataset, Values};

/// Names of a part's files, without `.gz`.
const PARTS: [[&str; 2]; 2] =
    [["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]];

/// Largest file read.
const MAX_BYTES: u64 = 1 << 32;

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    [format!("{name}.gz"), name.to_string()].iter().map(|n| folder.join(n)).find(|p| p.is_file())
}

/// Whether a folder holds a part's files, or one of them.
pub fn has_part(folder: &Path, test: bool) -> bool {
    PARTS[usize::from(test)].iter().any(|n| find(folder, n).is_some())
}

/// Reads the training or the test part. Pixels become numbers in [0, 1].
pub fn read_part(folder: &Path, test: bool) -> Result<Dataset, DataError> {
    let [images, labels] = PARTS[usize::from(test)].map(|n| {
        find(folder, n).ok_or_else(|| DataError::Malformed {
            path: folder.to_path_buf(),
            reason: format!("it has no {n} (plain or .gz)"),
        })
    });
    let (images, labels) = (images?, labels?);
    let (shape, pixels) = read_idx(&images)?;
    let (label_shape, label_bytes) = read_idx(&labels)?;
    if label_shape.len() != 1 || shape.is_empty() || label_shape[0] != shape[0] {
        return Err(DataError::Malformed {
            path: labels,
            reason: format!("labels of shape {label_shape:?} for images of shape {shape:?}"),
        });
    }
    Ok(Dataset {
        path: folder.to_path_buf(),
        columns: vec![Column {
            name: "x".into(),
            sample_shape: shape[1..].to_vec(),
            values: Values::Real(pixels.iter().map(|&p| f32::from(p) / 255.0).collect()),
        }],
        labels: label_bytes.iter().map(|&l| i32::from(l)).collect(),
        count: shape[0],
    })
}

fn read_idx(path: &Path) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let read = |source| DataError::Read { path: path.to_path_buf(), source };
    let bad = |reason: &str| DataError::Malformed { path: path.to_path_buf(), reason: reason.into() };
    let file = std::fs::File::open(path).map_err(read)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|e| e == "gz") {
        flate2::read::GzDecoder::new(file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(read)?;
    } else {
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(read)?;
    }
    let &[0, 0, 8, dims, ..] = &bytes[..] else { return Err(bad("it is not an idx file of bytes")) };
    let header = 4 + 4 * usize::from(dims);
    let extents = bytes.get(4..header).ok_or_else(|| bad("it is truncated"))?;
    let shape: Vec<usize> =
        extents.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    let count = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
    let data = bytes.split_off(header);
    if count != Some(data.len()) {
        return Err(bad("its length does not match its extents: it is truncated or damaged"));
    }
    Ok((shape, data))
}
