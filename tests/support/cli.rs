//! The `slrc` command in a folder of its own, data for it, and what it leaves behind.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use slrc_plan::random::Sequence;

/// A folder in which commands run; it goes away with the value.
pub(crate) struct Workspace {
    folder: tempfile::TempDir,
}

/// What a command printed and how it ended.
pub(crate) struct Ran {
    /// Exit code; absent if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Standard output, paths of this machine replaced.
    pub(crate) stdout: String,
    /// Standard error, likewise.
    pub(crate) stderr: String,
}

/// The repository's models folder.
pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// A model's file.
pub(crate) fn model(name: &str) -> PathBuf {
    models().join(name).join("model.onnx")
}

impl Workspace {
    pub(crate) fn new() -> Workspace {
        Workspace { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).expect("a folder");
        }
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    /// The command for a line of words; `MODELS` stands for the repository's models folder.
    pub(crate) fn command(&self, line: &str) -> Command {
        let models = models().display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_slrc"));
        command
            .args(line.split_whitespace().map(|w| w.replace("MODELS", &models)))
            .current_dir(self.folder.path())
            // The width of help texts.
            .env("COLUMNS", "100")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    /// Runs a line to its end.
    pub(crate) fn slrc(&self, line: &str) -> Ran {
        let out = self.command(line).output().expect("slrc starts");
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("slrc prints UTF-8");
            text.replace(&models().display().to_string(), "MODELS")
                .replace(&self.folder.path().display().to_string(), "WORK")
        };
        Ran { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
    }

    /// Runs a line that must succeed.
    pub(crate) fn ok(&self, line: &str) -> Ran {
        let ran = self.slrc(line);
        assert_eq!(ran.code, Some(0), "slrc {line}\n{}{}", ran.stdout, ran.stderr);
        ran
    }

    /// Runs a line that must print one JSON document.
    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(line).stdout).expect("JSON")
    }

    /// Runs a line that must fail with `code`, say every one of `words`, print no result and leave the folder as it
    /// was.
    pub(crate) fn fails(&self, line: &str, code: i32, words: &[&str]) -> Ran {
        let before = tree(self.folder.path());
        let ran = self.slrc(line);
        assert_eq!(ran.code, Some(code), "slrc {line}\n{}{}", ran.stdout, ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "slrc {line}\ndoes not say {word:?}:\n{}", ran.stderr);
        }
        assert_eq!(ran.stdout, "", "slrc {line} prints a result");
        assert!(ran.stderr.starts_with("error: "), "slrc {line}\n{}", ran.stderr);
        let after = tree(self.folder.path());
        let changed: Vec<&String> =
            before.keys().chain(after.keys()).filter(|k| before.get(*k) != after.get(*k)).collect();
        assert!(changed.is_empty(), "slrc {line} fails but changes {changed:?}");
        ran
    }
}

/// Commands that must fail, with their messages, for a snapshot.
pub(crate) struct Transcript<'a> {
    work: &'a Workspace,
    text: String,
}

impl<'a> Transcript<'a> {
    pub(crate) fn new(work: &'a Workspace) -> Transcript<'a> {
        Transcript { work, text: String::new() }
    }

    /// See [`Workspace::fails`].
    pub(crate) fn fails(&mut self, what: &str, line: &str, code: i32, words: &[&str]) {
        let ran = self.work.fails(line, code, words);
        self.text.push_str(&format!("# {what}\n$ slrc {line}\n{}exit {code}\n\n", ran.stderr));
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// Every file and link below a folder with its contents, folders included.
pub(crate) fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(at) = left.pop() {
        for entry in std::fs::read_dir(&at).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(folder).expect("inside").display().to_string();
            let kind = path.symlink_metadata().expect("metadata").file_type();
            if kind.is_symlink() {
                let to = std::fs::read_link(&path).expect("a link");
                out.insert(format!("{name} ->"), to.display().to_string().into_bytes());
            } else if kind.is_dir() {
                out.insert(format!("{name}/"), Vec::new());
                left.push(path);
            } else {
                out.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    out
}

/// Elements of an array in a data file.
pub(crate) enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

/// One array of a data file.
pub(crate) struct Array {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Values,
}

impl Array {
    pub(crate) fn new(name: &'static str, shape: &[usize], values: Values) -> Array {
        Array { name, shape: shape.to_vec(), values }
    }

    /// In NumPy's `.npy` format, version 1.0.
    pub(crate) fn npy(&self) -> Vec<u8> {
        let (descr, data): (&str, Vec<u8>) = match &self.values {
            Values::F32(v) => ("<f4", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Values::F64(v) => ("<f8", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Values::I64(v) => ("<i8", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Values::U8(v) => ("|u1", v.clone()),
        };
        let shape: Vec<String> = self.shape.iter().map(|d| format!("{d},")).collect();
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend((header.len() as u16).to_le_bytes());
        out.extend(header.bytes());
        out.extend(data);
        out
    }
}

/// An `.npz` archive.
pub(crate) fn npz(arrays: &[Array]) -> Vec<u8> {
    let files: Vec<(String, Vec<u8>)> = arrays.iter().map(|a| (format!("{}.npy", a.name), a.npy())).collect();
    zip_of(&files)
}

/// A zip archive of uncompressed files.
pub(crate) fn zip_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(name.as_str(), options).expect("zip entry");
        zip.write_all(bytes).expect("zip data");
    }
    zip.finish().expect("zip").into_inner()
}

/// Labelled samples for one of the repository's models: noise with a mark that depends on the label.
pub(crate) fn samples(model: &str, count: usize, seed: u64) -> Vec<Array> {
    let mut rng = Sequence::new(seed, 1, 0);
    let classes = if model == "tokens_bert" { 4 } else { 10 };
    let labels: Vec<i64> = (0..count).map(|_| i64::from(rng.word() % classes)).collect();
    let mut arrays = if model == "tokens_bert" {
        let mut ids = Vec::new();
        let mut mask = Vec::new();
        for &l in &labels {
            let length = 8 + rng.word() % 9;
            for t in 0..16 {
                let noise = i64::from(rng.word() % 64);
                ids.push(if t % 3 == 1 { 10 * l + 3 } else { noise });
                mask.push(i64::from(t < length));
            }
        }
        vec![
            Array::new("input_ids", &[count, 16], Values::I64(ids)),
            Array::new("attention_mask", &[count, 16], Values::I64(mask)),
        ]
    } else {
        let mut x = Vec::new();
        for &l in &labels {
            for p in 0..28 * 28 {
                let mark = if p / 28 / 3 == l as usize % 9 && p % 28 < 14 + l as usize { 1.0 } else { 0.0 };
                x.push(mark + 0.2 * rng.normal());
            }
        }
        vec![Array::new("x", &[count, 1, 28, 28], Values::F32(x))]
    };
    arrays.push(Array::new("y", &[count], Values::I64(labels)));
    arrays
}

/// A tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f32>,
}

/// Every tensor of a safetensors file of f32.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let read = |v: &safetensors::tensor::TensorView<'_>| {
        assert_eq!(v.dtype(), safetensors::Dtype::F32);
        let data = v.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Tensor { shape: v.shape().to_vec(), data }
    };
    file.tensors().iter().map(|(name, v)| (name.clone(), read(v))).collect()
}

/// Writes tensors as a safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(n, t)| (n, t.data.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views: Vec<(&String, safetensors::tensor::TensorView<'_>)> = tensors
        .iter()
        .map(|(n, t)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.shape.clone(), &bytes[n]);
            (n, view.expect("a tensor"))
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).expect("safetensors")).expect("a file");
}

/// A run's current weights.
pub(crate) fn parameters(run: &Path) -> BTreeMap<String, Tensor> {
    tensors(&run.join("checkpoint/params.safetensors"))
}

/// Asserts that two files hold the same bytes.
pub(crate) fn same_file(a: &Path, b: &Path) {
    let read = |p: &Path| std::fs::read(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
    assert!(read(a) == read(b), "{} and {} differ", a.display(), b.display());
}

/// Asserts that two runs computed the same: weights, optimizer state and logged numbers.
pub(crate) fn same_run(a: &Path, b: &Path) {
    for name in ["checkpoint/params.safetensors", "checkpoint/optimizer.safetensors", "metrics.jsonl"] {
        same_file(&a.join(name), &b.join(name));
    }
}
