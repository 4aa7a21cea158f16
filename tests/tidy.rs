//! The house rules, as far as a program can see them: every rule looks at every file, and is itself shown a file that
//! breaks it.

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/licences.rs"]
mod licences;
#[path = "tidy/snapshots.rs"]
mod snapshots;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// A text file of the repository; its path has forward slashes and begins at the root.
struct File {
    path: String,
    text: String,
}

/// Every text file, sorted by path. Build output, version control and what editors leave are passed over.
fn files() -> Vec<File> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
            let passed_over =
                ["target", "__pycache__"].contains(&name.as_str()) || name.starts_with('.') && name != ".ci";
            match (passed_over, path.is_dir()) {
                (true, _) => {}
                (false, true) => walk(&path, out),
                (false, false) => out.push(path),
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root(), &mut paths);
    paths.sort();
    let files = paths.into_iter().filter_map(|p| {
        let text = std::fs::read_to_string(&p).ok()?;
        let path = p.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
        Some(File { path, text })
    });
    files.collect()
}

/// Paths of everything, text or not.
fn paths() -> BTreeSet<String> {
    fn walk(folder: &Path, out: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
            if path.is_dir() && !["target", ".git"].contains(&name.as_str()) {
                walk(&path, out);
            }
            out.insert(name);
        }
    }
    let mut out = BTreeSet::new();
    walk(&root(), &mut out);
    out
}

/// What a rule says of a file; a place and a reason each.
type Rule = fn(&File) -> Vec<String>;

const RULES: &[(&str, Rule)] = &[
    ("head", head),
    ("size", size),
    ("unfinished", unfinished),
    ("names", names),
    ("unsafe", unsafe_code),
    ("hash", hash_order),
    ("blanks", blanks),
    ("machine", machine_paths),
];

#[test]
fn every_file_is_tidy() {
    let files = files();
    assert!(files.len() > 100, "{} files", files.len());
    let mut all = Vec::new();
    for (name, rule) in RULES {
        all.extend(files.iter().flat_map(rule).map(|c| format!("{name}: {c}")));
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

fn is_rust(f: &File) -> bool {
    f.path.ends_with(".rs")
}

/// What is compiled into the compiler, the runtime and the command.
fn is_product(f: &File) -> bool {
    let folders = ["compiler/src/", "compiler/cli/", "runtime/src/", "runtime/plan/src/"];
    is_rust(f) && folders.iter().any(|p| f.path.starts_with(p))
}

/// Lines with their numbers, comments left out.
fn code(f: &File) -> impl Iterator<Item = (usize, &str)> {
    f.text.lines().enumerate().map(|(i, line)| {
        // A URL in a string is no comment.
        let comment = line.match_indices("//").map(|m| m.0).find(|&at| !line[..at].ends_with(':'));
        (i + 1, &line[..comment.unwrap_or(line.len())])
    })
}

/// Whether a line holds a word, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word)
        .any(|(at, _)| !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next()))
}

/// Every Rust file says first what it is.
fn head(f: &File) -> Vec<String> {
    let fine = !is_rust(f) || f.text.lines().next().is_some_and(|l| l.starts_with("//! ") && l.len() > 8);
    if fine { vec![] } else { vec![format!("{} does not begin with a //! head", f.path)] }
}

/// Longest Rust file, in lines, and longest comment line, in characters. Code is rustfmt's, which leaves only strings
/// longer.
const MOST_LINES: usize = 600;
const MOST_COLUMNS: usize = 120;

fn size(f: &File) -> Vec<String> {
    if !is_rust(f) {
        return vec![];
    }
    let lines = f.text.lines().count();
    // A line of generated source, in a string, ends with its quote.
    let comment = |l: &str| l.trim_start().starts_with("//") && !l.ends_with("\",");
    let long = f.text.lines().enumerate().filter(|(_, l)| comment(l) && l.chars().count() > MOST_COLUMNS);
    let mut out: Vec<String> =
        long.map(|(i, l)| format!("{}:{} has {} columns", f.path, i + 1, l.chars().count())).collect();
    if lines > MOST_LINES {
        out.push(format!("{} has {lines} lines: one idea a file", f.path));
    }
    out
}

/// Marks of unfinished work. Put together here, so that this file does not hold them.
fn unfinished(f: &File) -> Vec<String> {
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["db", "g!"], ["tod", "o!"], ["unimplemen", "ted!"]];
    let marks = marks.map(|m| m.concat());
    if !is_rust(f) && !f.path.ends_with(".md") && !f.path.ends_with(".py") {
        return vec![];
    }
    let mut out = Vec::new();
    for (i, line) in f.text.lines().enumerate() {
        out.extend(marks.iter().filter(|m| line.contains(*m)).map(|m| format!("{}:{}: {m}", f.path, i + 1)));
    }
    out
}

/// A name, and where it may be used in code that ships.
const NAMES: &[(&str, &[&str])] = &[
    ("onnx_protobuf", &["compiler/src/onnx/"]),
    ("protobuf", &["compiler/src/onnx/"]),
    ("petgraph", &["compiler/src/ir/graph.rs"]),
    ("serde_yaml", &["runtime/plan/src/yaml.rs"]),
    ("cudarc", &["runtime/src/cuda/"]),
    ("gemm::gemm", &["runtime/src/cpu/"]),
    ("rayon", &["runtime/src/cpu/"]),
    ("slrc_compiler", &["compiler/cli/"]),
    ("slrc_runtime", &["compiler/cli/"]),
    ("clap", &["compiler/cli/"]),
    ("std::process", &["compiler/cli/"]),
    ("std::net", &[]),
    // Passes read and write nothing.
    ("std::fs", &["compiler/cli/", "compiler/src/onnx/file.rs", "compiler/src/onnx/beside.rs", "runtime/src/"]),
    // Files that a model names are opened in one place.
    ("rustix", &["compiler/src/onnx/beside.rs"]),
];

fn names(f: &File) -> Vec<String> {
    if !is_product(f) {
        return vec![];
    }
    let mut out = Vec::new();
    for (name, places) in NAMES.iter().filter(|(_, places)| !places.iter().any(|p| f.path.starts_with(p))) {
        let used = code(f).filter(|(_, line)| has_word(line, name));
        out.extend(used.map(|(i, _)| format!("{}:{i} names {name}, which is for {places:?} alone", f.path)));
    }
    out
}

/// Where unsafe code may be; an allocator, tests of a driver's interface, and benchmarks beside a crate whose interface
/// is pointers, cannot do without.
const UNSAFE: &[&str] = &[
    "benches/",
    "compiler/cli/allocator.rs",
    "runtime/src/cpu/",
    "runtime/src/cuda/",
    "compiler/src/onnx/file.rs",
    "tests/cuda_host/",
    "tests/support/cuda_host",
];

fn unsafe_code(f: &File) -> Vec<String> {
    let word = ["un", "safe"].concat();
    if !is_rust(f) || UNSAFE.iter().any(|p| f.path.starts_with(p)) {
        return vec![];
    }
    let used = code(f).filter(|(_, line)| has_word(line, &word) && line.contains(&format!("{word} ")));
    used.map(|(i, _)| format!("{}:{i} is {word}", f.path)).collect()
}

/// Tables looked up and never walked: there the order cannot show.
const LOOKED_UP: &[&str] = &["compiler/src/ir/graph.rs", "compiler/src/onnx/import.rs"];

fn hash_order(f: &File) -> Vec<String> {
    let folders = ["compiler/src/", "runtime/plan/src/"];
    if !folders.iter().any(|p| f.path.starts_with(p)) || LOOKED_UP.contains(&f.path.as_str()) {
        return vec![];
    }
    let used = code(f).filter(|(_, line)| has_word(line, "HashMap") || has_word(line, "HashSet"));
    used.map(|(i, _)| format!("{}:{i}: the order of a hash table differs from run to run", f.path)).collect()
}

/// No blanks at the ends of lines, and a newline at the end.
fn blanks(f: &File) -> Vec<String> {
    if ![".rs", ".md", ".py", ".toml", ".yaml"].iter().any(|e| f.path.ends_with(e)) {
        return vec![];
    }
    let trailing = f.text.lines().enumerate().filter(|(_, l)| l.ends_with([' ', '\t']));
    let mut out: Vec<String> = trailing.map(|(i, _)| format!("{}:{} ends in blanks", f.path, i + 1)).collect();
    if !f.text.ends_with('\n') {
        out.push(format!("{} does not end with a newline", f.path));
    }
    out
}

/// Paths of the machine something was made on. Put together here, so that this file does not hold them.
fn machine_paths(f: &File) -> Vec<String> {
    let places = ["work", "root", "home", "tmp", "Users"].map(|p| format!("/{p}/"));
    let mut out = Vec::new();
    for (i, line) in f.text.lines().enumerate() {
        let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || ".-_)}".contains(c));
        let found = places.iter().filter(|p| line.match_indices(p.as_str()).any(|(at, _)| begins(at)));
        out.extend(found.map(|p| format!("{}:{}: {p}", f.path, i + 1)));
    }
    out
}

/// A rule, a file that breaks it, and one that does not.
#[test]
fn every_rule_sees_what_it_is_for() {
    let join = |parts: &[&str]| parts.concat();
    let head = "//! A file of some sort.\n";
    let cases: Vec<(&str, &str, String, String)> = vec![
        ("head", "tests/a.rs", "use std::fs;\n".into(), head.into()),
        ("size", "tests/a.rs", "\n".repeat(MOST_LINES + 1), "\n".repeat(MOST_LINES)),
        (
            "size",
            "tests/a.rs",
            format!("/// {}", "x".repeat(MOST_COLUMNS)),
            format!("// {}", "x".repeat(MOST_COLUMNS - 3)),
        ),
        ("unfinished", "docs/a.md", join(&["- TO", "DO: more\n"]), "- to do: more\n".into()),
        ("unfinished", "tests/a.rs", join(&["db", "g!(x);"]), "debug(x);".into()),
        ("names", "compiler/src/heads/mod.rs", "use petgraph::graph;".into(), "// as petgraph does\n".into()),
        ("names", "compiler/src/fuse/mod.rs", "let x = std::fs::read(p);".into(), "let x = offs::read(p);".into()),
        ("names", "runtime/src/session.rs", "use slrc_compiler::ir;".into(), "use slrc_plan::Plan;".into()),
        ("names", "compiler/src/partition/mod.rs", "use onnx_protobuf::M;".into(), "use crate::onnx::M;".into()),
        ("names", "runtime/plan/src/plan.rs", "serde_yaml::to_string(p)".into(), "yaml::to_string(p)".into()),
        ("names", "runtime/src/cpu/mod.rs", "use cudarc::driver;".into(), "use gemm::gemm;".into()),
        ("unsafe", "runtime/src/data/idx.rs", join(&["un", "safe { x }"]), "safe { x }".into()),
        ("unsafe", "tests/a.rs", join(&["un", "safe fn f() {}"]), "fn un_safe() {}".into()),
        ("hash", "compiler/src/memory/mod.rs", "use std::collections::HashMap;".into(), "use x::BTreeMap;".into()),
        ("blanks", "docs/a.md", "words \n".into(), "words\n".into()),
        ("blanks", "docs/a.md", "words".into(), "words\n".into()),
        ("machine", "docs/a.md", join(&["see /ho", "me/me/x\n"]), "see runtime/tmp/x and target/home/x\n".into()),
        ("machine", "tests/snapshots/a.snap", join(&["\"/tm", "p/x\""]), "TMP/x".into()),
    ];
    for (name, path, broken, sound) in &cases {
        let rule = RULES.iter().find(|r| r.0 == *name).unwrap_or_else(|| panic!("rule {name}")).1;
        let file = |text: &str| File { path: path.to_string(), text: text.to_string() };
        assert!(!rule(&file(broken)).is_empty(), "{name} sees nothing in {path}: {broken:.80}");
        assert_eq!(rule(&file(sound)), Vec::<String>::new(), "{name}");
    }
    let tried: BTreeSet<&str> = cases.iter().map(|c| c.0).collect();
    assert_eq!(tried, RULES.iter().map(|r| r.0).collect(), "every rule is tried");
}

/// Keys of a manifest's `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut out = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_end() == "[dependencies]";
        } else if inside && let Some((key, _)) = line.split_once(['.', ' ', '=']) {
            out.insert(key.to_string());
        }
    }
    out
}

/// The dependency arrows, in the manifests. `cargo tree` in .ci/run sees what the linker sees.
#[test]
fn manifests_keep_the_arrows() {
    let of = |folder: &str| {
        dependencies(&std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("manifest"))
    };
    let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(of("runtime/plan"), set(&["serde", "serde_yaml", "thiserror"]), "the plan is a leaf");
    for (folder, never) in [
        ("runtime", &["slrc-compiler", "onnx-protobuf", "protobuf", "petgraph", "serde_yaml", "clap"][..]),
        ("compiler", &["slrc-runtime", "cudarc", "gemm", "rayon", "serde_yaml", "clap"]),
    ] {
        let found = of(folder);
        assert!(found.contains("slrc-plan"), "{folder}: {found:?}");
        let wrong: Vec<_> = found.intersection(&set(never)).cloned().collect();
        assert!(wrong.is_empty(), "{folder} depends on {wrong:?}");
    }
}
