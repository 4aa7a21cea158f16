//! Compiled kernels on disk, so that a plan is compiled once on a machine.
//!
//! An entry is the machine code followed by its SHA-256; one that does not match its hash is compiled again. Entries
//! are written whole or not at all, so processes may share a folder. Nothing is removed: the folder may be deleted any
//! time.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cuda::architecture::Architecture;
use crate::cuda::probe::Version;
use crate::device::DeviceError;
use crate::files::write_atomic;

/// Bytes of a SHA-256.
const DIGEST: usize = 32;

/// A folder of compiled kernels; without one, kernels are compiled each time.
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// A cache in the folder that the environment names.
    pub(super) fn from_environment() -> Cache {
        let variable = |name: &str| std::env::var_os(name);
        Cache { folder: folder(variable("SLRC_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME")) }
    }

    /// The machine code of `key`, compiled if it is not there.
    pub(super) fn get(
        &self,
        key: &str,
        compile: impl FnOnce() -> Result<Vec<u8>, DeviceError>,
    ) -> Result<Vec<u8>, DeviceError> {
        let Some(folder) = &self.folder else { return compile() };
        let path = folder.join("kernels").join(format!("{key}.cubin"));
        if let Some(code) = std::fs::read(&path).ok().and_then(checked) {
            return Ok(code);
        }
        let code = compile()?;
        // A cache that cannot be written is slower, not wrong.
        let _ = store(&path, &code);
        Ok(code)
    }
}

/// `$SLRC_CACHE`, `$XDG_CACHE_HOME/slrc` or `$HOME/.cache/slrc`; empty variables count as unset.
fn folder(slrc: Option<OsString>, xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let set = |v: Option<OsString>| v.filter(|v| !v.is_empty()).map(PathBuf::from);
    set(slrc).or_else(|| set(xdg).map(|p| p.join("slrc"))).or_else(|| set(home).map(|p| p.join(".cache").join("slrc")))
}

/// An entry's name: everything the machine code depends on.
pub(super) fn key(source: &str, options: &[String], architecture: Architecture, compiler: Version) -> String {
    let mut hash = Sha256::new();
    let version = format!("{}.{}", compiler.0, compiler.1);
    for part in [source, &options.join("\n"), &architecture.to_string(), &version] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// An entry's machine code, if it is whole.
fn checked(mut entry: Vec<u8>) -> Option<Vec<u8>> {
    let digest = entry.split_off(entry.len().checked_sub(DIGEST)?);
    (!entry.is_empty() && Sha256::digest(&entry).as_slice() == digest).then_some(entry)
}

fn store(path: &Path, code: &[u8]) -> Result<(), crate::files::FileError> {
    if let Some(folder) = path.parent() {
        crate::files::writing(folder, std::fs::create_dir_all(folder))?;
    }
    let mut entry = code.to_vec();
    entry.extend_from_slice(&Sha256::digest(code));
    write_atomic(path, &entry)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const CODE: &[u8] = b"machine code";

    /// A cache in a folder, and how often something was compiled for it.
    struct Counted {
        cache: Cache,
        compiled: Cell<usize>,
    }

    impl Counted {
        fn new(folder: &Path) -> Counted {
            Counted { cache: Cache { folder: Some(folder.to_path_buf()) }, compiled: Cell::new(0) }
        }

        /// Gets an entry and returns how often it was compiled for that.
        fn get(&self, key: &str) -> usize {
            let before = self.compiled.get();
            let compile = || {
                self.compiled.set(self.compiled.get() + 1);
                Ok(CODE.to_vec())
            };
            assert_eq!(self.cache.get(key, compile).expect("code"), CODE);
            self.compiled.get() - before
        }
    }

    fn entries(folder: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(folder.join("kernels")).expect("folder").flatten().map(|e| e.path()).collect()
    }

    #[test]
    fn an_entry_is_compiled_once() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(Counted::new(folder.path()).get("a"), 1);
        // Another process.
        let again = Counted::new(folder.path());
        assert_eq!(again.get("a"), 0);
        assert_eq!(again.get("b"), 1);
        // Nothing but the entries is left behind by writing them.
        assert_eq!(entries(folder.path()).len(), 2);
    }

    #[test]
    fn a_damaged_entry_is_compiled_again() {
        let folder = tempfile::tempdir().expect("folder");
        let c = Counted::new(folder.path());
        c.get("a");
        let path = entries(folder.path()).remove(0);
        let whole = std::fs::read(&path).expect("entry");
        let mut flipped = whole.clone();
        flipped[3] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[1..], &flipped, &[], &whole[CODE.len()..]] {
            std::fs::write(&path, damaged).expect("write");
            assert_eq!(c.get("a"), 1, "{damaged:?}");
            assert_eq!(c.get("a"), 0, "repaired");
        }
    }

    #[test]
    fn a_failed_compilation_leaves_no_entry() {
        let folder = tempfile::tempdir().expect("folder");
        let c = Counted::new(folder.path());
        let failed = c.cache.get("a", || Err(DeviceError::Unsupported("no".into())));
        assert!(failed.is_err());
        assert_eq!(c.get("a"), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_only_costs_time() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let c = Counted::new(&file.path().join("below"));
        assert_eq!((c.get("a"), c.get("a")), (1, 1));
    }

    #[test]
    fn the_key_depends_on_every_part() {
        let options = ["-a".to_string(), "-b".to_string()];
        let base = key("source", &options, Architecture(80), (12, 9));
        assert_eq!(base, key("source", &options, Architecture(80), (12, 9)));
        for other in [
            key("sourc", &options, Architecture(80), (12, 9)),
            key("source", &options[..1], Architecture(80), (12, 9)),
            key("source", &options, Architecture(90), (12, 9)),
            key("source", &options, Architecture(80), (12, 8)),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_environment_names_the_folder() {
        let v = |s: &str| Some(OsString::from(s));
        assert_eq!(folder(v("/a"), v("/x"), v("/h")), Some("/a".into()));
        assert_eq!(folder(v(""), v("/x"), v("/h")), Some("/x/slrc".into()));
        assert_eq!(folder(None, None, v("/h")), Some("/h/.cache/slrc".into()));
        assert_eq!(folder(None, None, None), None);
    }
}
