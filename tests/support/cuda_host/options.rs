//! Options of the stand-in as environment variables of a child process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::build::{CUBLASLT, CUDNN, libraries, sanitizer_libraries};

/// In what order threads and blocks run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Order {
    #[default]
    Forward,
    /// Last thread of the last block first.
    Reverse,
    /// Blocks, threads and wake-ups drawn by a generator with this seed.
    Random(u64),
}

/// When operations of a stream run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Streams {
    /// At once.
    #[default]
    Eager,
    /// Only when something waits for them.
    Lazy,
    /// Those of the stream of this number, by the order of creation from 1, only when something waits for them; those
    /// of the others at once: they overtake it wherever they may.
    Late(u64),
    /// The other way round: that stream's at once, those of the others only when something waits for them.
    Early(u64),
    /// Streams advance at any call, drawn by a generator with this seed.
    Random(u64),
}

/// What kernels are compiled to detect.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Sanitizer {
    #[default]
    None,
    /// Accesses out of bounds or after a free, misalignment, undefined arithmetic.
    Address,
    /// Data races within a block and between blocks.
    Thread,
}

/// The device a child process finds, and how it behaves.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The stand-in even where `SLRC_CUDA` asks for a real device.
    pub(crate) always: bool,
    pub(crate) order: Order,
    pub(crate) streams: Streams,
    pub(crate) sanitizer: Sanitizer,
    pub(crate) devices: u32,
    /// Bytes of each device.
    pub(crate) memory: u64,
    /// 1000 x major + 10 x minor.
    pub(crate) driver_version: u32,
    /// 10 x major + minor.
    pub(crate) capability: u32,
    pub(crate) multiprocessors: u32,
    /// Whether the device has memory pools (`cuMemAllocAsync`).
    pub(crate) pools: bool,
    /// Whether the machine has cuBLASLt.
    pub(crate) cublaslt: bool,
    /// Whether the machine has cuDNN.
    pub(crate) cudnn: bool,
    /// `FUNCTION:CALL:CODE[:sticky|:late]`, several separated by commas.
    pub(crate) fail: String,
    /// `FUNCTION[:CALL]`, several separated by commas: calls that succeed without doing anything.
    pub(crate) skip: String,
    /// Where to write counts. Set by `in_child` itself.
    pub(crate) counts: Option<PathBuf>,
    /// Where to write a chronological log. `in_child` takes any path as a wish and returns the lines.
    pub(crate) log: Option<PathBuf>,
    /// A real NVRTC library, which must accept every source first.
    pub(crate) real_nvrtc: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            always: false,
            order: Order::Forward,
            streams: Streams::Eager,
            sanitizer: Sanitizer::None,
            devices: 1,
            memory: 16 << 30,
            driver_version: 12080,
            capability: 80,
            multiprocessors: 108,
            pools: true,
            cublaslt: false,
            cudnn: false,
            fail: String::new(),
            skip: String::new(),
            counts: None,
            log: None,
            real_nvrtc: std::env::var_os("CUDA_HOST_REAL_NVRTC").map(PathBuf::from),
        }
    }
}

impl Options {
    /// Variables that a process needs. Empty for a real device.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        if super::real() && !self.always {
            return Vec::new();
        }
        let mut path = OsString::from(libraries());
        for (there, folder) in [(self.cublaslt, CUBLASLT), (self.cudnn, CUDNN)] {
            if there {
                path.push(":");
                path.push(libraries().join(folder));
            }
        }
        if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(rest);
        }
        let seeded = |name: &str, seed: u64| OsString::from(format!("{name}:{seed}"));
        let mut variables: Vec<(&'static str, OsString)> = vec![
            ("LD_LIBRARY_PATH", path),
            (
                "CUDA_HOST_ORDER",
                match self.order {
                    Order::Forward => "forward".into(),
                    Order::Reverse => "reverse".into(),
                    Order::Random(seed) => seeded("random", seed),
                },
            ),
            (
                "CUDA_HOST_STREAMS",
                match self.streams {
                    Streams::Eager => "eager".into(),
                    Streams::Lazy => "lazy".into(),
                    Streams::Late(number) => seeded("late", number),
                    Streams::Early(number) => seeded("early", number),
                    Streams::Random(seed) => seeded("random", seed),
                },
            ),
            ("CUDA_HOST_DEVICES", self.devices.to_string().into()),
            ("CUDA_HOST_MEMORY", self.memory.to_string().into()),
            ("CUDA_HOST_DRIVER_VERSION", self.driver_version.to_string().into()),
            ("CUDA_HOST_CAPABILITY", self.capability.to_string().into()),
            ("CUDA_HOST_MULTIPROCESSORS", self.multiprocessors.to_string().into()),
            ("CUDA_HOST_POOLS", u8::from(self.pools).to_string().into()),
            ("CUDA_HOST_FAIL", self.fail.clone().into()),
            ("CUDA_HOST_SKIP", self.skip.clone().into()),
            // What this compiler makes must not get into the user's cache; a folder that cannot be made is no cache.
            ("SLRC_CACHE", "/dev/null/none".into()),
        ];
        let files = [
            ("CUDA_HOST_COUNTS", &self.counts),
            ("CUDA_HOST_LOG", &self.log),
            ("CUDA_HOST_REAL_NVRTC", &self.real_nvrtc),
        ];
        variables.extend(files.into_iter().filter_map(|(name, file)| Some((name, file.clone()?.into()))));
        match self.sanitizer {
            Sanitizer::None => {}
            Sanitizer::Address => {
                variables.push(("CUDA_HOST_SANITIZE", "address".into()));
                variables.push(("LD_PRELOAD", sanitizer_libraries()));
                // What a test leaves allocated is not this suite's matter.
                variables.push(("ASAN_OPTIONS", "detect_leaks=0".into()));
                variables.push(("UBSAN_OPTIONS", "print_stacktrace=1".into()));
            }
            Sanitizer::Thread => variables.push(("CUDA_HOST_SANITIZE", "thread".into())),
        }
        variables
    }

    /// A command for `program` in this environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        // Shadow memory has a fixed place, which programs may be loaded over where addresses are too random.
        let fixed_addresses = self.sanitizer == Sanitizer::Address && random_address_bits() > 28;
        let mut command = Command::new(if fixed_addresses { Path::new("setarch") } else { program });
        if fixed_addresses {
            command.arg("--addr-no-randomize").arg(program);
        }
        // Nothing but what is set here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CUDA_HOST_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment());
        command
    }
}

fn random_address_bits() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/vm/mmap_rnd_bits").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}
