//! The official ONNX tests of nodes and models, against a list of what is expected of each: `cases.txt` says `pass` and
//! how far its gradient was checked, or why the case is left out. A change in either direction fails; `SLRC_BLESS=1`
//! rewrites the list. `.ci/conformance.py` puts the cases where this reads them.

mod case;
mod gradient;
mod mutate;
mod own;
#[path = "../common/protos.rs"]
mod protos;
mod reasons;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use case::Case;

/// Cases of nodes as two packages have them, and models of the newer one.
const SUITES: &[&str] = &["1.17.0", "1.23.2", "pytorch-converted", "pytorch-operator", "simple", LIGHT];
/// Known networks in full size: computed once, without differences.
const LIGHT: &str = "light";

/// What came of a case.
fn outcome(folder: &Path, suite: &str, name: &str) -> String {
    let run = || -> Result<String, String> {
        let whole = suite == LIGHT;
        let case = Case::read(folder, whole)?;
        let (run, known) = case.run()?;
        let gradient = if whole { "large".into() } else { gradient::check(&run) };
        Ok(format!("pass{known} {gradient}"))
    };
    match std::panic::catch_unwind(run) {
        Ok(Ok(pass)) => pass,
        Ok(Err(reason)) if reason.starts_with("WRONG") => match reasons::different(name) {
            Some(why) => format!("out {why}"),
            None => reason,
        },
        Ok(Err(reason)) => format!("out {}", reasons::short(&reason)),
        Err(_) => "PANIC".into(),
    }
}

fn list() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases.txt")
}

/// `suite/case` and what is said of it.
fn parse(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.filter_map(|l| l.split_once(' ')).map(|(case, said)| (case.to_string(), said.to_string())).collect()
}

#[test]
#[ignore = "needs the official cases: .ci/conformance.py FOLDER, then SLRC_CONFORMANCE=FOLDER"]
fn official_cases() {
    let root = PathBuf::from(std::env::var("SLRC_CONFORMANCE").expect("SLRC_CONFORMANCE names the folder of cases"));
    let mut found = BTreeMap::new();
    for &suite in SUITES {
        let folder = root.join(suite);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("a name").trim_start_matches("test_");
            if std::env::var("SLRC_CASE").is_ok_and(|only| !name.contains(&only)) {
                continue;
            }
            found.insert(format!("{suite}/{name}"), outcome(&path, suite, name));
        }
    }
    if std::env::var_os("SLRC_CASE").is_some() {
        panic!("{}", found.iter().map(|(n, o)| format!("{n} {o}\n")).collect::<String>());
    }
    let bad = |o: &str| o == "PANIC" || o.contains("WRONG") || reasons::is_shrug(o);
    let wrong: Vec<String> = found.iter().filter(|(_, o)| bad(o)).map(|(n, o)| format!("{n} {o}")).collect();
    if std::env::var_os("SLRC_BLESS").is_some() {
        let mut text = String::from(
            "# Written by the test in main.rs (SLRC_BLESS=1): what came of every official test.\n\
             # pass: outputs agree. (ints), (known): integers, or all inputs, have to be known at import.\n\
             # grad: first and second derivative agree with differences; kink: differences do not converge there;\n\
             # nan: a derivative is no number, as infinities are; none: no float depends on a float;\n\
             # large: a whole network, not differentiated here. out: why not.\n",
        );
        for (name, said) in &found {
            let _ = writeln!(text, "{name} {said}");
        }
        std::fs::write(list(), text).expect("the list");
    }
    assert!(wrong.is_empty(), "wrong results, or left out without a reason: {wrong:#?}");
    let expected = parse(&std::fs::read_to_string(list()).expect("cases.txt"));
    let all = found.keys().chain(expected.keys()).collect::<std::collections::BTreeSet<_>>();
    let none = "(not there)".to_string();
    let drift: Vec<String> = all
        .into_iter()
        .map(|n| (n, expected.get(n).unwrap_or(&none), found.get(n).unwrap_or(&none)))
        .filter(|(_, was, is)| was != is)
        .map(|(n, was, is)| format!("{n}: expected {was}, found {is}"))
        .collect();
    assert!(drift.is_empty(), "{} cases differ from cases.txt:\n{}", drift.len(), drift.join("\n"));
}

/// Changes of each case.
const CHANGES: u64 = 30;

#[test]
#[ignore = "needs the official cases: .ci/conformance.py FOLDER, then SLRC_CONFORMANCE=FOLDER"]
fn changed_cases_never_panic() {
    let root = PathBuf::from(std::env::var("SLRC_CONFORMANCE").expect("SLRC_CONFORMANCE names the folder of cases"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("1.23.2")).expect("the newest cases") {
        let path = entry.expect("an entry").path();
        let seeds = mutate::panics(&path, CHANGES);
        if !seeds.is_empty() {
            found.push(format!("{} {seeds:?}", path.file_name().unwrap_or_default().to_string_lossy()));
        }
    }
    found.sort();
    assert!(found.is_empty(), "{} cases panic: {found:#?}", found.len());
}
