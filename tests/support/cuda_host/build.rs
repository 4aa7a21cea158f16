//! Builds the stand-in's libraries with the host's C++ compiler, into a folder named by their content.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const COMPILER: &str = "g++";
/// In folders of their own, so that a machine can lack them.
pub(crate) const CUBLASLT: &str = "cublaslt";
pub(crate) const CUDNN: &str = "cudnn";
const FLAGS: [&str; 8] = ["-std=c++20", "-O2", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-c"];

/// Folder of `libcuda.so` and `libnvrtc.so`, with `libcublasLt.so` and `libcudnn.so` in its folders [`CUBLASLT`] and
/// [`CUDNN`]. Panics where there is no compiler or it finds an error.
pub(crate) fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let sources = super::super::root().join("tests/cuda-host");
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(cache).expect("a folder for build results");
        // Several test programs may run at once.
        let lock = File::create(cache.join("cuda-host.lock")).expect("a lock file");
        lock.lock().expect("the lock file is locked");
        let folder = cache.join(format!("cuda-host-{:016x}", content(&sources)));
        if !folder.exists() {
            let work = cache.join("cuda-host-building");
            let _ = fs::remove_dir_all(&work);
            build(&sources, &work);
            fs::rename(&work, &folder).expect("the finished folder takes its name");
        }
        folder
    })
}

/// Libraries to load before a program whose kernels the address sanitizer checks.
pub(crate) fn sanitizer_libraries() -> OsString {
    let mut list = Vec::new();
    for name in ["libasan.so", "libubsan.so"] {
        let output = Command::new(COMPILER).arg(format!("-print-file-name={name}")).output().expect("g++ runs");
        let path = String::from_utf8_lossy(&output.stdout).trim().to_string();
        assert!(path.contains('/'), "{name} is missing: install the sanitizers of g++ (Debian: libgcc-12-dev)");
        list.push(path);
    }
    list.join(":").into()
}

fn version() -> String {
    match Command::new(COMPILER).arg("--version").output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => panic!(
            "the stand-in CUDA device needs {COMPILER} 12 or later, which does not run here: \
             install it (Debian and Ubuntu: apt-get install g++) or skip these tests"
        ),
    }
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a folder's entry").path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn content(sources: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    (version(), FLAGS).hash(&mut hasher);
    for folder in ["", "kernel", "driver", "nvrtc", "library", CUBLASLT, CUDNN] {
        for extension in ["hpp", "cpp"] {
            for file in files(&sources.join(folder), extension) {
                (file.file_name(), fs::read(&file).expect("a source file")).hash(&mut hasher);
            }
        }
    }
    hasher.finish()
}

fn build(sources: &Path, work: &Path) {
    fs::create_dir_all(work.join("kernel")).expect("a folder for the libraries");
    // Kernels are compiled with these later.
    for header in files(&sources.join("kernel"), "hpp") {
        fs::copy(&header, work.join("kernel").join(header.file_name().expect("a name"))).expect("a header is copied");
    }
    let mut driver = vec![sources.join("options.cpp")];
    driver.extend(files(&sources.join("driver"), "cpp"));
    let nvrtc = files(&sources.join("nvrtc"), "cpp");
    let products = [(CUBLASLT, "libcublasLt.so", "libcublasLt.so.12"), (CUDNN, "libcudnn.so", "libcudnn.so.9")]
        .map(|(folder, name, soname)| (folder, name, soname, files(&sources.join(folder), "cpp")));
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<&PathBuf> = driver.iter().chain(&nvrtc).chain(products.iter().flat_map(|p| &p.3)).collect();
    for group in all.chunks(at_once) {
        let running: Vec<_> = group
            .iter()
            .map(|file| {
                let mut command = Command::new(COMPILER);
                command.args(FLAGS).arg("-I").arg(sources).arg(file).arg("-o").arg(object(work, sources, file));
                (command.spawn().expect("g++ starts"), file)
            })
            .collect();
        for (mut child, file) in running {
            assert!(child.wait().expect("g++ ends").success(), "{} does not compile", file.display());
        }
    }
    let objects = |files: &[PathBuf]| files.iter().map(|f| object(work, sources, f)).collect::<Vec<PathBuf>>();
    link(work, &objects(&driver), &["-ldl", "-lpthread"], "libcuda.so", "libcuda.so.1");
    let mut sources_of_nvrtc = nvrtc;
    sources_of_nvrtc.push(driver.swap_remove(0));
    link(work, &objects(&sources_of_nvrtc), &["-ldl", "-lpthread"], "libnvrtc.so", "libnvrtc.so.12");
    // Their products run on the driver's streams.
    let driver = format!("-L{}", work.display());
    for (folder, name, soname, files) in products {
        fs::create_dir(work.join(folder)).expect("a folder for a library");
        link(&work.join(folder), &objects(&files), &[&driver, "-lcuda"], name, soname);
    }
}

/// Named by the source's place: folders may have files of the same name.
fn object(work: &Path, sources: &Path, file: &Path) -> PathBuf {
    let place = file.strip_prefix(sources).expect("a source file").with_extension("o");
    work.join(place.to_string_lossy().replace('/', "-"))
}

/// `name` in a folder and, as a link to it, `soname`.
fn link(folder: &Path, objects: &[PathBuf], libraries: &[&str], name: &str, soname: &str) {
    let mut command = Command::new(COMPILER);
    command.arg("-shared").arg(format!("-Wl,-soname,{soname}")).arg("-o").arg(folder.join(name));
    command.args(objects).args(libraries);
    assert!(command.status().expect("g++ starts").success(), "{name} does not link");
    std::os::unix::fs::symlink(name, folder.join(soname)).expect("a link to the library");
}
