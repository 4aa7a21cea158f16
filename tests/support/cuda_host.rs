//! The stand-in CUDA device for tests: builds it, and runs a test's body in a child process that finds it in place of
//! the driver. tests/cuda-host/README.md says how to write such a test and what every option does.
#![allow(unused_imports, reason = "each test file uses a part")]

#[path = "cuda_host/build.rs"]
mod build;
#[path = "cuda_host/device.rs"]
pub(crate) mod device;
#[path = "cuda_host/options.rs"]
mod options;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use build::libraries;
pub(crate) use options::{Options, Order, Sanitizer, Streams};

/// Set in a child: the folder of `input.json` and `result.json`.
const FOLDER: &str = "SLRC_CUDA_HOST_CHILD";
/// Set in a child: which body it is to run.
const BODY: &str = "SLRC_CUDA_HOST_BODY";

/// Whether tests are to run on a real device instead of the stand-in.
pub(crate) fn real() -> bool {
    std::env::var("SLRC_CUDA").is_ok_and(|v| v == "real")
}

/// What the stand-in counted in a process.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Counts {
    /// Driver calls by name.
    pub(crate) calls: BTreeMap<String, u64>,
    /// Kernels executed by name, those of graphs included.
    pub(crate) launches: BTreeMap<String, u64>,
    /// Blocks executed.
    pub(crate) blocks: u64,
    /// Threads executed.
    pub(crate) threads: u64,
    /// Bytes copied, by direction, and filled.
    pub(crate) host_to_device_bytes: u64,
    pub(crate) device_to_host_bytes: u64,
    pub(crate) device_to_device_bytes: u64,
    pub(crate) memset_bytes: u64,
    pub(crate) graphs_captured: u64,
    pub(crate) graphs_instantiated: u64,
    pub(crate) graph_launches: u64,
    /// Nodes executed by graph launches.
    pub(crate) graph_nodes_executed: u64,
    /// Most device memory allocated at once, of any device.
    pub(crate) peak_bytes: u64,
}

impl Counts {
    /// Reads the file a process wrote because of [`Options::counts`].
    pub(crate) fn read(path: &Path) -> Counts {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("counts in {}: {e}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("counts {text}: {e}"))
    }

    /// Calls of one driver function.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        self.calls.get(name).copied().unwrap_or(0)
    }
}

/// A body that ran to its end.
pub(crate) struct Ran<T> {
    pub(crate) value: T,
    /// Both outputs of the child.
    pub(crate) output: String,
    /// All zero on a real device, and where the body never calls the driver.
    pub(crate) counts: Counts,
    /// The chronological log, where [`Options::log`] asked for it.
    pub(crate) log: Vec<String>,
}

/// Runs `body` with `input` in a child process where cudarc finds the stand-in device, and panics with the child's
/// output where the body does. `test` is the full name of the test that calls; a test may call this as often as it
/// likes, but with one body only, which as a plain function cannot see the parent's variables: the child starts the
/// test from its beginning and runs `body` at the first call.
pub(crate) fn in_child<I, T>(test: &str, options: &Options, input: I, body: fn(I) -> T) -> Ran<T>
where
    I: Serialize + DeserializeOwned,
    T: Serialize + DeserializeOwned,
{
    let (output, folder) = spawn(test, options, &input, body);
    let text = text_of(&output);
    assert!(output.status.success(), "{test} in its child process: {}\n{text}", output.status);
    let result = std::fs::read_to_string(folder.path().join("result.json"))
        .unwrap_or_else(|_| panic!("no test named {test} ran its body in the child process:\n{text}"));
    let counts = folder.path().join("counts.json");
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    Ran {
        value: serde_json::from_str(&result).expect("the body's result"),
        output: text,
        // A body that never calls the driver leaves none.
        counts: if counts.exists() { Counts::read(&counts) } else { Counts::default() },
        log: log.lines().map(str::to_string).collect(),
    }
}

/// As [`in_child`], for a body that must not reach its end. Returns both outputs of the child.
pub(crate) fn in_child_failing<I, T>(test: &str, options: &Options, input: I, body: fn(I) -> T) -> String
where
    I: Serialize + DeserializeOwned,
    T: Serialize + DeserializeOwned,
{
    let (output, folder) = spawn(test, options, &input, body);
    let text = text_of(&output);
    assert!(!output.status.success(), "{test} reached its end in its child process:\n{text}");
    assert!(
        folder.path().join("started").exists(),
        "no test named {test} began its body in the child process:\n{text}"
    );
    text
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn spawn<I, T>(test: &str, options: &Options, input: &I, body: fn(I) -> T) -> (Output, tempfile::TempDir)
where
    I: Serialize + DeserializeOwned,
    T: Serialize + DeserializeOwned,
{
    // Where the body lies in this program, which is loaded elsewhere each time.
    let position = (body as usize).wrapping_sub(real as fn() -> bool as usize).to_string();
    if let Some(folder) = std::env::var_os(FOLDER) {
        let same = std::env::var(BODY).is_ok_and(|b| b == position);
        assert!(same, "{test} runs two bodies in child processes: make it two tests");
        run_body(Path::new(&folder), body);
    }
    let folder = tempfile::tempdir().expect("a folder for the child's files");
    let text = serde_json::to_string(input).expect("the body's input");
    std::fs::write(folder.path().join("input.json"), text).expect("the body's input");
    let mut options = options.clone();
    options.counts = Some(folder.path().join("counts.json"));
    if options.log.is_some() {
        options.log = Some(folder.path().join("log"));
    }
    let program = std::env::current_exe().expect("this test program");
    let mut command = options.command(&program);
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(FOLDER, folder.path()).env(BODY, position);
    (command.output().expect("this test program starts"), folder)
}

/// The child's part: ends the process, so that nothing of the test after the call runs.
fn run_body<I: DeserializeOwned, T: Serialize>(folder: &Path, body: fn(I) -> T) -> ! {
    let input = std::fs::read_to_string(folder.join("input.json")).expect("the body's input");
    std::fs::write(folder.join("started"), "").expect("a mark that the body began");
    let value = body(serde_json::from_str(&input).expect("the body's input"));
    let text = serde_json::to_string(&value).expect("the body's result");
    std::fs::write(folder.join("result.json"), text).expect("the body's result");
    std::process::exit(0)
}

/// Bits of numbers, for results that must agree in every bit or may be NaN.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A command for another program (`slrc` itself, say) that finds the stand-in.
pub(crate) fn command(options: &Options, program: &Path) -> Command {
    options.command(program)
}
