//! Machine code that was compiled ahead of time and lies beside its plan, as `kernels.sm_80.cubin`: what a device then
//! runs without a compiler on its machine.
//!
//! A file is the compiler's image followed by one line of JSON, its stamp: the hashes of source and image, the
//! options, the compiler. A file whose stamp is not what the plan and this program would make is an error wherever it
//! is found, whether the device would take it or not: it is used or refused, never passed over.

use std::path::Path;

use serde::{Deserialize, Serialize};
use slrc_plan::Plan;
use slrc_plan::plan::files;

use crate::cuda::architecture::Architecture;
use crate::cuda::code::target;
use crate::cuda::probe::Version;
use crate::cuda::source::{check_hash, sha256};
use crate::cuda::{compile, probe};
use crate::device::DeviceError;
use crate::files::{FileError, read};

/// The format of stamps.
const FORMAT: &str = "slrc-cubin/1";

/// What an image was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stamp {
    /// [`FORMAT`].
    format: String,
    /// SHA-256 of the `kernels.cu` it was compiled from.
    source_sha256: String,
    /// SHA-256 of the image.
    image_sha256: String,
    /// Options of the compiler; the architecture is one of them.
    options: Vec<String>,
    /// Its version.
    compiler: Version,
}

/// Machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    architecture: Architecture,
    stamp: Stamp,
    /// The file: image, then stamp.
    bytes: Vec<u8>,
    /// Bytes of the image.
    image: usize,
}

impl Cubin {
    /// Compiles a plan's kernels. Needs NVRTC, but neither a driver nor a GPU.
    pub fn compile(plan: &Plan, source: &str, architecture: Architecture) -> Result<Cubin, DeviceError> {
        check_hash(plan, source)?;
        let wanted = target(plan)?;
        if architecture < wanted {
            return Err(DeviceError::Unsupported(format!(
                "the plan is for {wanted} or later; for {architecture} compile it with slrc partition --target \
                 cuda:{architecture}"
            )));
        }
        let compiler = probe::compiler_version()?;
        let known = compile::known_architectures()?;
        if !known.contains(&architecture) {
            let known: Vec<String> = known.iter().map(Architecture::to_string).collect();
            return Err(DeviceError::Unavailable(format!(
                "the CUDA compiler (libnvrtc {}.{}) cannot compile for {architecture}, only for {}",
                compiler.0,
                compiler.1,
                known.join(", ")
            )));
        }
        let image = compile::compile_cubin(source, architecture)?;
        Ok(Cubin::new(architecture, sha256(source.as_bytes()), image, compiler))
    }

    fn new(architecture: Architecture, source_sha256: String, image: Vec<u8>, compiler: Version) -> Cubin {
        let stamp = Stamp {
            format: FORMAT.into(),
            source_sha256,
            image_sha256: sha256(&image),
            options: compile::options(architecture),
            compiler,
        };
        let (length, mut bytes) = (image.len(), image);
        bytes.push(b'\n');
        bytes.extend(serde_json::to_vec(&stamp).expect("invariant: a stamp is text and numbers"));
        bytes.push(b'\n');
        Cubin { architecture, stamp, bytes, image: length }
    }

    /// A file's contents; an error says what is wrong with them.
    fn parse(architecture: Architecture, bytes: Vec<u8>) -> Result<Cubin, String> {
        let cut_short = "it is cut short or damaged; make it again with slrc compile --cubin, or delete it";
        let rest = bytes.strip_suffix(b"\n").ok_or(cut_short)?;
        let image = rest.iter().rposition(|&b| b == b'\n').ok_or(cut_short)?;
        let stamp: Stamp = serde_json::from_slice(&rest[image + 1..]).map_err(|_| cut_short)?;
        if sha256(&bytes[..image]) != stamp.image_sha256 {
            return Err(cut_short.into());
        }
        Ok(Cubin { architecture, stamp, image, bytes })
    }

    /// Every file of a plan or run folder that is named as machine code, by architecture.
    pub fn read_all(folder: &Path) -> Result<Vec<Cubin>, FileError> {
        let mut found = Cubin::read_each(folder)?.into_iter().collect::<Result<Vec<_>, _>>()?;
        found.sort_by_key(|c| c.architecture);
        Ok(found)
    }

    /// The same, each file by itself, in order of names.
    pub fn read_each(folder: &Path) -> Result<Vec<Result<Cubin, FileError>>, FileError> {
        let reading = |source| FileError::Read { path: folder.to_path_buf(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(reading)? {
            names.push(entry.map_err(reading)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        let named = names.iter().filter_map(|n| Some((n, files::architecture_of(n)?)));
        let one = |(name, architecture): (&String, &str)| {
            let path = folder.join(name);
            let bad = |reason: String| FileError::Malformed { path: path.clone(), reason };
            let architecture = architecture.parse().map_err(bad)?;
            Cubin::parse(architecture, read(&path)?).map_err(bad)
        };
        Ok(named.map(one).collect())
    }

    /// Fails where the code was made of other kernels than the plan's, or in another way than this program would.
    pub fn check(&self, plan: &Plan) -> Result<(), DeviceError> {
        let expected = plan.kernels_sha256.as_deref().unwrap_or("none");
        let options = compile::options(self.architecture);
        let reason = if self.stamp.format != FORMAT {
            format!("its format is {}, this slrc reads {FORMAT}", self.stamp.format)
        } else if self.stamp.source_sha256 != expected {
            format!(
                "it was compiled from a kernels.cu of SHA-256 {}, the plan's has {expected}",
                self.stamp.source_sha256
            )
        } else if self.stamp.options != options {
            format!("it was compiled with {}, this slrc uses {}", self.stamp.options.join(" "), options.join(" "))
        } else {
            return Ok(());
        };
        Err(DeviceError::StaleCubin { file: self.file(), reason })
    }

    /// Name of the file.
    pub fn file(&self) -> String {
        files::cubin(&self.architecture.to_string())
    }

    /// Contents of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a driver loads.
    pub fn image(&self) -> &[u8] {
        &self.bytes[..self.image]
    }

    /// What it was compiled for.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Version of the compiler that made it.
    pub fn compiler(&self) -> Version {
        self.stamp.compiler
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cubin() -> Cubin {
        // Line ends and braces in an image are no stamp.
        Cubin::new(Architecture(80), "abc".into(), b"\x7fELF\n{\"format\": 1}\n\0".to_vec(), (12, 9))
    }

    #[test]
    fn files_survive() {
        let folder = tempfile::tempdir().expect("folder");
        let (older, newer) = (cubin(), Cubin::new(Architecture(90), "abc".into(), b"x".to_vec(), (12, 9)));
        for c in [&newer, &older] {
            std::fs::write(folder.path().join(c.file()), c.bytes()).expect("write");
        }
        std::fs::write(folder.path().join("kernels.cu"), "").expect("write");
        assert_eq!(older.file(), "kernels.sm_80.cubin");
        assert_eq!(older.image(), b"\x7fELF\n{\"format\": 1}\n\0");
        assert_eq!(Cubin::read_all(folder.path()).expect("read"), [older, newer]);
        std::fs::write(folder.path().join("kernels.volta.cubin"), "").expect("write");
        let e = Cubin::read_all(folder.path()).expect_err("no architecture").to_string();
        assert!(e.contains("kernels.volta.cubin") && e.contains("`volta` is not an architecture"), "{e}");
    }

    #[test]
    fn every_changed_byte_of_an_image_and_every_cut_is_seen() {
        let whole = cubin().bytes().to_vec();
        assert!(Cubin::parse(Architecture(80), whole.clone()).is_ok());
        for cut in 0..whole.len() {
            assert!(Cubin::parse(Architecture(80), whole[..cut].to_vec()).is_err(), "{cut} bytes");
        }
        for at in 0..cubin().image {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(Cubin::parse(Architecture(80), changed).is_err(), "byte {at}");
        }
    }
}
