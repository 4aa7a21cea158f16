//! Files: safetensors in and out, and writes that happen entirely or not at all.

use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::session::NamedTensor;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its contents are not what they should be.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// How names of unfinished files and folders begin.
pub const TEMPORARY: &str = ".slrc-";

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError::Read { path: path.to_path_buf(), source })
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_path_buf(), source })
}

/// Maps an error of writing `path`; the name of a temporary file in it is of no use to anybody.
pub fn writing<T>(path: &Path, r: std::io::Result<T>) -> Result<T, FileError> {
    r.map_err(|source| {
        let named = source.get_ref().is_some() && source.kind() != std::io::ErrorKind::Other;
        let source = if named { source.kind().into() } else { source };
        FileError::Write { path: path.to_path_buf(), source }
    })
}

/// Writes a file: after a crash it has its old contents or the new ones.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let attempt = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
        file.write_all(bytes)?;
        readable_by_all(file.path())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync_folder(folder)
    };
    writing(path, attempt())
}

/// Temporary files are private to their owner; what they become should be like any other file.
#[cfg(unix)]
fn readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_by_all(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Makes a folder's entries durable.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Fills a new folder and puts it in place of `path`, entirely or not at all. An existing folder is replaced only if it
/// is empty or holds the first of `names` and nothing but `names`.
pub fn replace_folder(
    path: &Path,
    names: &[&str],
    fill: impl FnOnce(&Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    check_replaceable(path, names)?;
    let exists = path.symlink_metadata().is_ok();
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    writing(parent, std::fs::create_dir_all(parent))?;
    let new = writing(path, tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        writing(path, std::fs::set_permissions(new.path(), std::fs::Permissions::from_mode(0o755)))?;
    }
    fill(new.path())?;
    writing(path, sync_folder(new.path()))?;
    let old = writing(path, tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent))?;
    if exists {
        writing(path, std::fs::rename(path, old.path().join("old")))?;
    }
    if let Err(e) = std::fs::rename(new.path(), path) {
        if exists {
            writing(path, std::fs::rename(old.path().join("old"), path))?;
        }
        return writing(path, Err(e));
    }
    let _ = new.keep();
    writing(path, sync_folder(parent))
}

/// Fails where [`replace_folder`] would not replace what exists.
pub fn check_replaceable(path: &Path, names: &[&str]) -> Result<(), FileError> {
    if path.symlink_metadata().is_ok()
        && let Some(reason) = not_ours(path, names)
    {
        let reason = format!("it exists and {reason}; choose another folder");
        return Err(FileError::Malformed { path: path.to_path_buf(), reason });
    }
    Ok(())
}

/// Why a folder is not one that `names` alone make up, if it is not.
fn not_ours(path: &Path, names: &[&str]) -> Option<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Some("is no folder".into()) };
    let mut found: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    if let Some(other) = found.iter().find(|f| !names.contains(&f.as_str())) {
        return Some(format!("holds \"{other}\", which would be lost"));
    }
    let marker = names.first()?;
    (!found.is_empty() && !found.iter().any(|f| f == marker)).then(|| format!("has no {marker}: slrc did not make it"))
}

/// Reads every tensor of a safetensors file as f32.
pub fn read_safetensors(path: &Path) -> Result<Vec<NamedTensor>, FileError> {
    let bad = |reason: String| FileError::Malformed { path: path.to_path_buf(), reason };
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("not a safetensors file: {e}")))?;
    let mut out = Vec::new();
    for (name, view) in file.tensors() {
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytemuck::pod_collect_to_vec(view.data()),
            Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(view.data()).into_iter().map(|x| x as f32).collect(),
            other => return Err(bad(format!("tensor \"{name}\" has dtype {other:?}; f32 is needed"))),
        };
        out.push(NamedTensor { name, shape: view.shape().to_vec(), data });
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// Tensors as a safetensors file; the same tensors give the same bytes.
pub fn safetensors_bytes(tensors: &[NamedTensor]) -> Result<Vec<u8>, String> {
    let views = tensors
        .iter()
        .map(|t| {
            let view = TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.data));
            view.map(|v| (t.name.as_str(), v)).map_err(|e| e.to_string())
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}

/// Writes a safetensors file, entirely or not at all.
pub fn write_safetensors(path: &Path, tensors: &[NamedTensor]) -> Result<(), FileError> {
    let bytes =
        safetensors_bytes(tensors).map_err(|reason| FileError::Malformed { path: path.to_path_buf(), reason })?;
    write_atomic(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("t.safetensors");
        let t = vec![
            NamedTensor { name: "b".into(), shape: vec![2, 2], data: vec![1.0, -2.5, f32::MIN_POSITIVE, 3.0] },
            NamedTensor { name: "s".into(), shape: vec![], data: vec![7.0] },
        ];
        write_safetensors(&path, &t).expect("write");
        assert_eq!(read_safetensors(&path).expect("read"), t);
        std::fs::write(&path, b"nonsense").expect("write");
        assert!(matches!(read_safetensors(&path), Err(FileError::Malformed { .. })));
    }

    #[test]
    fn a_strangers_folder_is_not_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("out");
        replace_folder(&path, &["mark"], |f| write_atomic(&f.join("mark"), b"1")).expect("new");
        replace_folder(&path, &["mark"], |f| write_atomic(&f.join("mark"), b"2")).expect("again");
        assert_eq!(std::fs::read(path.join("mark")).expect("read"), b"2");
        // Beside the mark, or without it, something of somebody else's.
        std::fs::write(path.join("thesis.tex"), b"x").expect("write");
        assert!(replace_folder(&path, &["mark"], |_| Ok(())).is_err());
        std::fs::remove_file(path.join("mark")).expect("remove");
        assert!(replace_folder(&path, &["mark"], |_| Ok(())).is_err());
        assert!(replace_folder(&path, &["mark", "thesis.tex"], |_| Ok(())).is_err());
        assert_eq!(std::fs::read(path.join("thesis.tex")).expect("read"), b"x");
        // A failure leaves what was there, and nothing beside it.
        let fails = replace_folder(&folder.path().join("new"), &["mark"], |f| {
            Err(FileError::Malformed { path: f.to_path_buf(), reason: "no".into() })
        });
        assert!(fails.is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
    }
}
