//! Files beside a model: opened beneath its folder, never through a link.
//!
//! A model names files, and whoever made it is not trusted. Each part of a name is opened within the folder before it,
//! so that no check of a path can be out of date when the file is opened. What counts is the file that was opened: a
//! regular one, with no second name by which it could be something else.

use std::fs::File;
use std::path::{Component, Path};

/// A file that was opened, and its length.
pub(crate) struct Beside {
    file: File,
    /// Bytes.
    pub(crate) length: usize,
}

impl Beside {
    /// Opens a file by its name relative to a folder.
    pub(crate) fn open(folder: &Path, location: &str) -> Result<Beside, String> {
        let parts: Option<Vec<&str>> = Path::new(location)
            .components()
            .filter(|c| *c != Component::CurDir)
            .map(|c| match c {
                Component::Normal(part) => part.to_str(),
                _ => None,
            })
            .collect();
        let parts = parts.ok_or_else(|| format!("external data \"{location}\" lies outside the model's folder"))?;
        let file = open_beneath(folder, &parts, location)?;
        let meta = file.metadata().map_err(|e| unreadable(location, &e))?;
        if !meta.is_file() {
            return Err(format!("external data \"{location}\" is no regular file"));
        }
        if names(&meta) != 1 {
            return Err(linked(location, "is a hard link: it has several names"));
        }
        let length = usize::try_from(meta.len()).map_err(|_| format!("external data \"{location}\" is too long"))?;
        Ok(Beside { file, length })
    }

    /// Reads bytes that are known to be there.
    pub(crate) fn read(&self, offset: usize, length: usize) -> std::io::Result<Vec<u8>> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset as u64))?;
        let mut out = vec![0; length];
        file.read_exact(&mut out)?;
        Ok(out)
    }
}

fn unreadable(location: &str, e: &std::io::Error) -> String {
    format!("its data should be in \"{location}\" beside the model, which cannot be read: {e}")
}

fn linked(location: &str, what: &str) -> String {
    format!(
        "external data \"{location}\" {what}, which may lead outside the model's folder; put a copy of the file in its place"
    )
}

#[cfg(unix)]
fn names(meta: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(meta)
}

#[cfg(not(unix))]
fn names(_: &std::fs::Metadata) -> u64 {
    1
}

#[cfg(unix)]
fn open_beneath(folder: &Path, parts: &[&str], location: &str) -> Result<File, String> {
    use rustix::fs::{AtFlags, FileType, Mode, OFlags, open, openat, statat};

    let read = |e: rustix::io::Errno| unreadable(location, &e.into());
    let Some((last, folders)) = parts.split_last() else {
        return Err(format!("external data \"{location}\" names no file"));
    };
    let common = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = open(folder, common | OFlags::DIRECTORY, Mode::empty()).map_err(read)?;
    // Neither a queue without a writer nor a terminal may hold the import up.
    let last = (last, OFlags::NONBLOCK | OFlags::NOCTTY);
    for (part, flags) in folders.iter().map(|f| (f, OFlags::DIRECTORY)).chain([last]) {
        at = openat(&at, *part, common | OFlags::NOFOLLOW | flags, Mode::empty()).map_err(|e| {
            let stat = statat(&at, *part, AtFlags::SYMLINK_NOFOLLOW);
            match stat.map(|s| FileType::from_raw_mode(s.st_mode)) {
                Ok(FileType::Symlink) => linked(location, "is reached by a link"),
                _ => read(e),
            }
        })?;
    }
    Ok(File::from(at))
}

#[cfg(not(unix))]
fn open_beneath(folder: &Path, parts: &[&str], location: &str) -> Result<File, String> {
    let mut path = folder.to_path_buf();
    for part in parts {
        path.push(part);
        let meta = path.symlink_metadata().map_err(|e| unreadable(location, &e))?;
        if meta.is_symlink() {
            return Err(linked(location, "is reached by a link"));
        }
    }
    File::open(&path).map_err(|e| unreadable(location, &e))
}
