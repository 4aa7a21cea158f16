//! Files: safetensors in and out, and writes that happen entirely or not at all.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo};

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
    write_atomic_by(path, |file| writing(path, file.write_all(bytes)))
}

/// Writes a file as [`write_atomic`] does, part by part; an error of `fill` leaves the old contents.
fn write_atomic_by<E: From<FileError>>(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = writing(path, tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder))?;
    fill(file.as_file_mut())?;
    let finish = || -> std::io::Result<()> {
        readable_by_all(file.path())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync_folder(folder)
    };
    Ok(writing(path, finish())?)
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
/// is empty or holds the first of `names` and nothing but `names`, where one `*` in a name stands for any text.
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
    if let Some(other) = found.iter().find(|f| !names.iter().any(|n| has_form(f, n))) {
        return Some(format!("holds \"{other}\", which would be lost"));
    }
    let marker = names.first()?;
    (!found.is_empty() && !found.iter().any(|f| f == marker)).then(|| format!("has no {marker}: slrc did not make it"))
}

/// Whether a name is `form`, in which one `*` stands for any text.
fn has_form(name: &str, form: &str) -> bool {
    match form.split_once('*') {
        None => name == form,
        Some((start, end)) => name.strip_prefix(start).is_some_and(|rest| rest.ends_with(end)),
    }
}

/// Reads every tensor of a safetensors file as f32, in order of names.
pub fn read_safetensors(path: &Path) -> Result<Vec<NamedTensor>, FileError> {
    read_tensors(path, |_| true)
}

/// Reads those tensors of a safetensors file whose names are `wanted`. The file is never in memory as a whole.
pub fn read_tensors(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<NamedTensor>, FileError> {
    let reading = |source| FileError::Read { path: path.to_path_buf(), source };
    let bad = |reason: String| FileError::Malformed { path: path.to_path_buf(), reason };
    let damaged = |e: SafeTensorError| bad(format!("not a safetensors file: {e}"));
    let mut file = File::open(path).map_err(reading)?;
    let mut part = |bytes: usize, short: SafeTensorError| {
        let mut out = Vec::new();
        (&mut file).take(bytes as u64).read_to_end(&mut out).map_err(reading)?;
        if out.len() == bytes { Ok(out) } else { Err(damaged(short)) }
    };
    let length = part(8, SafeTensorError::HeaderTooSmall)?;
    let length = u64::from_le_bytes(length.try_into().expect("invariant: eight bytes"));
    if length > MAX_HEADER {
        return Err(damaged(SafeTensorError::HeaderTooLarge));
    }
    let header = part(length as usize, SafeTensorError::InvalidHeaderLength)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|e| damaged(SafeTensorError::InvalidHeaderDeserialization(e)))?;
    let mut out = Vec::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("invariant: it is one of the names");
        let bytes = part(info.data_offsets.1 - info.data_offsets.0, SafeTensorError::MetadataIncompleteBuffer)?;
        if !wanted(&name) {
            continue;
        }
        let data: Vec<f32> = match info.dtype {
            Dtype::F32 => bytemuck::pod_collect_to_vec(&bytes),
            Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(&bytes).into_iter().map(|x| x as f32).collect(),
            other => return Err(bad(format!("tensor \"{name}\" has dtype {other:?}; f32 is needed"))),
        };
        out.push(NamedTensor { name, shape: info.shape.clone(), data });
    }
    if part(1, SafeTensorError::MetadataIncompleteBuffer).is_ok() {
        return Err(damaged(SafeTensorError::MetadataIncompleteBuffer));
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// Longest header of a safetensors file, by the format.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor to be written, without its elements.
pub struct Outline<'a> {
    /// Its name, unique in the file.
    pub name: &'a str,
    /// Its extents.
    pub shape: &'a [usize],
}

/// Writes a safetensors file of f32, entirely or not at all, with one tensor in memory at a time: `elements` is asked
/// for those of one outline after the other. The same tensors give the same bytes.
pub fn write_tensors<'a, E: From<FileError>>(
    path: &Path,
    outlines: &[Outline<'_>],
    mut elements: impl FnMut(usize) -> Result<Cow<'a, [f32]>, E>,
) -> Result<(), E> {
    let bad = |reason: String| FileError::Malformed { path: path.to_path_buf(), reason };
    // As the crate orders tensors of one type.
    let mut order: Vec<usize> = (0..outlines.len()).collect();
    order.sort_by_key(|&i| outlines[i].name);
    let mut end = 0;
    let mut table = Vec::new();
    for &i in &order {
        let Outline { name, shape } = outlines[i];
        let start = end;
        end += shape.iter().product::<usize>() * size_of::<f32>();
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (start, end) };
        table.push((name.to_string(), info));
    }
    let metadata = Metadata::new(None, table).map_err(|e| bad(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| bad(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomic_by(path, |file| {
        let mut file = BufWriter::new(file);
        writing(path, file.write_all(&(header.len() as u64).to_le_bytes()))?;
        writing(path, file.write_all(&header))?;
        for &i in &order {
            let data = elements(i)?;
            if data.len() != outlines[i].shape.iter().product::<usize>() {
                return Err(bad(format!("tensor \"{}\" has {} elements", outlines[i].name, data.len())).into());
            }
            writing(path, file.write_all(bytemuck::cast_slice(&data)))?;
        }
        Ok(writing(path, file.flush())?)
    })
}

/// Writes a safetensors file, entirely or not at all.
pub fn write_safetensors(path: &Path, tensors: &[NamedTensor]) -> Result<(), FileError> {
    let outlines: Vec<Outline<'_>> = tensors.iter().map(|t| Outline { name: &t.name, shape: &t.shape }).collect();
    write_tensors(path, &outlines, |i| Ok(Cow::Borrowed(&tensors[i].data)))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

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
        assert_eq!(read_tensors(&path, |n| n == "s").expect("read"), t[1..]);
        // Shorter or longer by a byte.
        let bytes = std::fs::read(&path).expect("read");
        for damaged in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()] {
            std::fs::write(&path, damaged).expect("write");
            let e = read_safetensors(&path).expect_err("damaged");
            assert!(e.to_string().contains("not fully covered"), "{e}");
        }
        std::fs::write(&path, b"nonsense").expect("write");
        assert!(matches!(read_safetensors(&path), Err(FileError::Malformed { .. })));
    }

    #[test]
    fn bytes_are_those_of_the_crate() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("t.safetensors");
        let tensor = |name: &str, shape: &[usize], from: f32| {
            let data = (0..shape.iter().product()).map(|i| from + i as f32).collect();
            NamedTensor { name: name.into(), shape: shape.to_vec(), data }
        };
        // Not in order of names; a name that JSON escapes; nothing at all.
        for t in [vec![tensor("w", &[3, 5], 0.5), tensor("a\"é", &[], 7.0), tensor("v", &[0], 0.0)], vec![]] {
            write_safetensors(&path, &t).expect("write");
            let view = |t: &NamedTensor| {
                let bytes = bytemuck::cast_slice::<f32, u8>(&t.data).to_vec();
                (t.name.clone(), t.shape.clone(), bytes)
            };
            let views: Vec<(String, Vec<usize>, Vec<u8>)> = t.iter().map(view).collect();
            let views = views.iter().map(|(name, shape, bytes)| {
                (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view"))
            });
            assert_eq!(std::fs::read(&path).expect("read"), safetensors::serialize(views, None).expect("bytes"));
        }
    }

    #[test]
    fn a_tensor_that_cannot_be_had_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("t.safetensors");
        write_atomic(&path, b"old").expect("write");
        let outlines = [Outline { name: "a", shape: &[2] }, Outline { name: "b", shape: &[2] }];
        let lost = |i: usize| match i {
            0 => Ok(Cow::Owned(vec![1.0, 2.0])),
            _ => Err(FileError::Malformed { path: PathBuf::from("device"), reason: "lost".into() }),
        };
        assert!(write_tensors(&path, &outlines, lost).is_err_and(|e| e.to_string() == "device: lost"));
        assert!(write_tensors(&path, &outlines, |_| Ok::<_, FileError>(Cow::Owned(vec![1.0]))).is_err());
        assert_eq!(std::fs::read(&path).expect("read"), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
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
        // Names of a form.
        for (name, ours) in [("a.1.z", true), ("a..z", true), ("a.z", false), ("a.1.zz", false), ("b.1.z", false)] {
            assert_eq!(has_form(name, "a.*.z"), ours, "{name}");
        }
        std::fs::write(path.join("mark"), b"3").expect("write");
        std::fs::rename(path.join("thesis.tex"), path.join("a.1.z")).expect("rename");
        replace_folder(&path, &["mark", "a.*.z"], |_| Ok(())).expect("all ours");
        assert_eq!(std::fs::read_dir(&path).expect("list").count(), 0);
        // A failure leaves what was there, and nothing beside it.
        let fails = replace_folder(&folder.path().join("new"), &["mark"], |f| {
            Err(FileError::Malformed { path: f.to_path_buf(), reason: "no".into() })
        });
        assert!(fails.is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 1);
    }
}
