//! Licences of everything that is linked.

use crate::root;

/// Licences that ask for no more than a notice (MPL-2.0: that changes to its own files stay open).
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Packages under MPL-2.0, used unchanged.
const MPL: &[&str] = &["onnx-protobuf"];

/// Whether an SPDX expression can be satisfied: `OR` by either side, `AND` by both.
fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let result = any(&words, &mut at, allowed);
    result && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut result = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all(words, at, allowed);
    }
    result
}

fn all(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut result = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at, allowed);
    }
    result
}

fn one(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let result = any(words, at, allowed);
        *at += 1;
        return result && words.get(*at - 1) == Some(&")");
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).unwrap_or(&"");
        *at += 2;
        return allowed(&format!("{word} WITH {exception}"));
    }
    allowed(word)
}

#[test]
fn expressions() {
    let mit = |l: &str| l == "MIT" || l == "Apache-2.0 WITH LLVM-exception";
    for sound in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND MIT", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(satisfied(sound, &mit), "{sound}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR X) AND GPL-3.0", "Apache-2.0 WITH Other", "MIT MIT", "(MIT"]
    {
        assert!(!satisfied(bad, &mit), "{bad}");
    }
}

fn cargo(arguments: &[&str]) -> String {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let run = std::process::Command::new(program).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(run.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("text")
}

#[test]
fn every_dependency_may_be_used() {
    let version = cargo(&["--version", "--verbose"]);
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).expect("cargo names its host");
    // What is built here has been downloaded; packages of other systems may not be.
    let text = cargo(&["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host]);
    let metadata: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "{} packages", packages.len());
    let mut refused = Vec::new();
    for p in packages {
        let (name, licence) = (p["name"].as_str().expect("a name"), p["license"].as_str().unwrap_or_default());
        let allowed = |l: &str| ALLOWED.contains(&l) || (l == "MPL-2.0" && MPL.contains(&name));
        if !satisfied(licence, &allowed) {
            refused.push(format!("{name} {}: \"{licence}\"", p["version"]));
        }
    }
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
}
