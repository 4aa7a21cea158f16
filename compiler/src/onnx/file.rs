//! An ONNX file on disk: mapped, guarded, decoded; tensors are read when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use onnx_protobuf::{Message as _, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation};
use sha2::{Digest, Sha256};

use crate::onnx::OnnxError;
use crate::onnx::beside::Beside;
use crate::onnx::inline::inline;
use crate::onnx::scopes::open_scopes;
use crate::onnx::tensor::check_bytes;
use crate::onnx::unique::names_are_unique;
use crate::onnx::wire::{RANGE_KEY, slim};

/// An opened model.
#[derive(Clone)]
pub struct OnnxFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// The decoded model, large raw data left in the file, functions in place of their calls, scopes open.
    pub(crate) proto: ModelProto,
    map: Arc<Bytes>,
    /// Positions of initializers, by name, as the file was opened: repairs may have changed them since.
    initializers: Arc<BTreeMap<String, usize>>,
    /// What became of nodes that steer others.
    pub(crate) placed: Arc<Placed>,
}

/// What import has to know of nodes that were put in place of others ([`crate::onnx::place`]).
#[derive(Default)]
pub(crate) struct Placed {
    /// What steps of a loop read: a weight among these is one, however often it is read.
    pub(crate) shared: BTreeSet<String>,
    /// Why a node stayed, by its first output.
    pub(crate) refused: BTreeMap<String, String>,
}

impl Placed {
    /// Why this node stayed.
    pub(crate) fn refused(&self, n: &NodeProto) -> Option<String> {
        let reason = self.refused.get(n.output.iter().find(|o| !o.is_empty())?)?;
        Some(format!("{reason}, and slrc compiles a fixed graph"))
    }
}

/// The file's bytes: mapped, or held (an empty file cannot be mapped).
enum Bytes {
    Mapped(Mmap),
    Held(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(m) => m,
            Bytes::Held(v) => v,
        }
    }
}

fn map_file(path: &Path) -> Result<Bytes, OnnxError> {
    let read = |source| OnnxError::Read { path: path.to_path_buf(), source };
    // Asked before it is opened: to open a queue is to wait for a writer.
    let meta = std::fs::metadata(path).map_err(read)?;
    if meta.is_dir() {
        return Err(read(std::io::Error::other("it is a folder; name the .onnx file")));
    }
    if !meta.is_file() {
        return Err(read(std::io::Error::other("it is no regular file")));
    }
    let file = std::fs::File::open(path).map_err(read)?;
    let meta = file.metadata().map_err(read)?;
    if meta.len() == 0 {
        return Ok(Bytes::Held(Vec::new()));
    }
    #[allow(unsafe_code, reason = "mapping is how weights are read without a second copy in memory")]
    // SAFETY: the map is read-only. If another process truncates the file meanwhile the program ends with SIGBUS,
    // as any program that maps its input does.
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    Ok(Bytes::Mapped(map))
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether a domain is ONNX's own.
fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

impl OnnxFile {
    /// Opens and decodes a model.
    pub fn open(path: &Path) -> Result<OnnxFile, OnnxError> {
        OnnxFile::decode(path, map_file(path)?)
    }

    /// Decodes a model that is held in memory; `path` says beside what its external data would be.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<OnnxFile, OnnxError> {
        OnnxFile::decode(path, Bytes::Held(bytes))
    }

    fn decode(path: &Path, map: Bytes) -> Result<OnnxFile, OnnxError> {
        let malformed = |reason: String| OnnxError::Malformed { path: path.to_path_buf(), reason };
        let mut proto =
            ModelProto::parse_from_bytes(&slim(&map).map_err(malformed)?).map_err(|e| malformed(e.to_string()))?;
        if proto.graph.is_none() {
            return Err(malformed("it holds no graph".into()));
        }
        if !proto.opset_import.iter().any(|o| is_onnx(&o.domain)) {
            return Err(malformed(
                "it does not say which opset of ONNX it uses: the file is truncated or damaged".into(),
            ));
        }
        inline(&mut proto).map_err(malformed)?;
        names_are_unique(&proto.graph).map_err(malformed)?;
        open_scopes(proto.graph.mut_or_insert_default());
        let sha256 = sha256_hex(&map);
        let initializers = proto.graph.initializer.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(OnnxFile {
            path: path.to_path_buf(),
            sha256,
            proto,
            map: Arc::new(map),
            initializers: Arc::new(initializers),
            placed: Arc::default(),
        })
    }

    /// Name of the first output.
    pub fn first_output(&self) -> Option<&str> {
        self.proto.graph.output.first().map(|o| o.name.as_str())
    }

    /// The initializer of this name.
    pub(crate) fn initializer(&self, name: &str) -> Option<&TensorProto> {
        let all = &self.proto.graph.initializer;
        let at = self.initializers.get(name).and_then(|&i| all.get(i)).filter(|t| t.name == name);
        at.or_else(|| all.iter().find(|t| t.name == name))
    }

    /// Bytes of the file.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// Whether a tensor's data is in a file beside the model.
    pub(crate) fn is_external(&self, t: &TensorProto) -> bool {
        t.data_location.enum_value_or_default() == DataLocation::EXTERNAL
    }

    /// The opset the model uses for ONNX's own ops.
    pub fn opset(&self) -> i64 {
        self.opset_of("")
    }

    pub(crate) fn opset_of(&self, domain: &str) -> i64 {
        let same = |d: &str| d == domain || (is_onnx(domain) && is_onnx(d));
        self.proto.opset_import.iter().find(|o| same(&o.domain)).map_or(1, |o| o.version)
    }

    /// The bytes of a tensor's raw data, wherever it is kept; `None` if it has no raw data at all.
    pub(crate) fn raw<'a>(&'a self, t: &'a TensorProto) -> Result<Option<std::borrow::Cow<'a, [u8]>>, OnnxError> {
        use std::borrow::Cow;
        let bad = |reason: String| OnnxError::Tensor { name: t.name.clone(), reason };
        if self.is_external(t) {
            return self.external(t).map(|v| Some(Cow::Owned(v)));
        }
        if let Some(range) = t.external_data.iter().find(|e| e.key == RANGE_KEY) {
            let range = range.value.split_once(',').and_then(|(a, n)| {
                let (a, n): (usize, usize) = (a.parse().ok()?, n.parse().ok()?);
                self.map.get(a..a.checked_add(n)?)
            });
            return range.map(|r| Some(Cow::Borrowed(r))).ok_or_else(|| bad("its data range leaves the file".into()));
        }
        Ok((!t.raw_data.is_empty()).then(|| Cow::Borrowed(&t.raw_data[..])))
    }

    /// Reads external data: a file beside the model, never outside the model's folder.
    fn external(&self, t: &TensorProto) -> Result<Vec<u8>, OnnxError> {
        let bad = |reason: String| OnnxError::Tensor { name: t.name.clone(), reason };
        let entry = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let location = entry("location").ok_or_else(|| bad("external data without a location".into()))?;
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(v) => {
                v.parse::<usize>().map(Some).map_err(|_| bad(format!("external data {key} `{v}` is not a number")))
            }
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = Beside::open(folder, location).map_err(bad)?;
        let there = file.length.checked_sub(offset).filter(|&there| length.is_none_or(|n| n <= there));
        let there = there
            .ok_or_else(|| bad(format!("\"{location}\" has {} bytes, too few for offset {offset}", file.length)))?;
        let length = length.unwrap_or(there);
        // What does not fit is not read.
        check_bytes(t, length)?;
        file.read(offset, length).map_err(|e| bad(format!("\"{location}\" cannot be read: {e}")))
    }
}
