//! Snapshots that no test makes any more.

use std::collections::BTreeSet;

use crate::{File, files, paths};

/// Why a snapshot is an orphan, if it is one: its test is gone, or does not mention its name.
fn orphan(f: &File, read: &dyn Fn(&str) -> Option<String>, exports: &BTreeSet<String>) -> Option<String> {
    let source = f.text.lines().find_map(|l| l.strip_prefix("source: "));
    let Some(source) = source.map(|s| s.trim_matches('"')) else {
        return Some(format!("{} names no test", f.path));
    };
    let Some(test) = read(source) else { return Some(format!("{}: {source} does not exist", f.path)) };
    let stem = f.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".snap");
    let name = stem.rsplit("__").next().unwrap_or_default();
    // Names put together from parts are found part by part; those of the exports are file names.
    let mentioned = test.contains(&format!("\"{name}\"")) || name.split(['.', '_']).all(|w| test.contains(w));
    (!mentioned && !exports.contains(name)).then(|| format!("{}: {source} does not mention {name}", f.path))
}

#[test]
fn every_snapshot_has_its_test() {
    let files = files();
    let exports =
        paths().into_iter().filter_map(|p| Some(p.strip_prefix("models/exports/")?.strip_suffix(".onnx.gz")?.into()));
    let exports: BTreeSet<String> = exports.collect();
    let read = |path: &str| files.iter().find(|f| f.path == path).map(|f| f.text.clone());
    let snaps: Vec<&File> = files.iter().filter(|f| f.path.ends_with(".snap")).collect();
    assert!(snaps.len() > 30, "{} snapshots", snaps.len());
    let all: Vec<String> = snaps.iter().filter_map(|f| orphan(f, &read, &exports)).collect();
    assert!(all.is_empty(), "\n{}", all.join("\n"));
    let pending: Vec<&str> = files.iter().map(|f| f.path.as_str()).filter(|p| p.ends_with(".snap.new")).collect();
    assert!(pending.is_empty(), "snapshots that nobody looked at: {pending:?}");
}

#[test]
fn an_orphan_is_seen() {
    let read = |path: &str| (path == "tests/a.rs").then(|| "assert_snapshot!(\"one\", x)".to_string());
    let snap = |name: &str, source: &str| File {
        path: format!("tests/snapshots/a__{name}.snap"),
        text: format!("---\nsource: {source}\n---\n"),
    };
    let of = |name: &str, source: &str| orphan(&snap(name, source), &read, &BTreeSet::from(["net.x".to_string()]));
    assert_eq!(of("one", "tests/a.rs"), None);
    assert_eq!(of("net.x", "tests/a.rs"), None);
    assert!(of("two", "tests/a.rs").is_some());
    assert!(of("one", "tests/b.rs").is_some());
}
