//! Places named in documents: targets of links, with their headings, and paths in code spans.

use std::collections::BTreeSet;

use crate::{File, files, paths};

/// Files that a document makes up to show what would be added.
const EXAMPLES: &[&str] = &["runtime/src/cpu/scan.rs"];

/// Text outside fenced blocks, with line numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.map(|(i, l)| (i + 1, l)).collect()
}

/// Anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn has_heading(text: &str, wanted: &str) -> bool {
    prose(text).iter().any(|(_, l)| l.starts_with('#') && anchor(l) == wanted)
}

/// A link's path from the document's folder, `..` resolved.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for p in target.split('/') {
        match p {
            "." | "" => {}
            ".." => drop(parts.pop()),
            p => parts.push(p),
        }
    }
    parts.join("/")
}

fn broken(f: &File, paths: &BTreeSet<String>, read: &dyn Fn(&str) -> String) -> Vec<String> {
    let mut out = Vec::new();
    for (i, line) in prose(&f.text) {
        let links = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in links.filter(|t| !t.contains("://") && !t.starts_with("mailto:")) {
            let (path, heading) = target.split_once('#').map_or((target, None), |(p, h)| (p, Some(h)));
            let full = if path.is_empty() { f.path.clone() } else { resolve(&f.path, path) };
            if !paths.contains(&full) {
                out.push(format!("{}:{i}: link to {target}, which does not exist", f.path));
            } else if let Some(h) = heading.filter(|_| full.ends_with(".md"))
                && !has_heading(&read(&full), h)
            {
                out.push(format!("{}:{i}: {full} has no heading #{h}", f.path));
            }
        }
        // A path in a code span may begin anywhere, as long as there is such a file.
        let spans = line.split('`').skip(1).step_by(2);
        let named = spans.filter(|s| s.contains('/') && [".rs", ".md", ".py"].iter().any(|e| s.ends_with(e)));
        for span in named.filter(|s| !s.contains(['*', '<', ' ', '{'])) {
            let known = |p: &String| p == span || p.ends_with(&format!("/{span}"));
            if !paths.iter().any(known) && !EXAMPLES.contains(&span) {
                out.push(format!("{}:{i}: there is no file {span}", f.path));
            }
        }
    }
    out
}

#[test]
fn what_documents_name_exists() {
    let (files, paths) = (files(), paths());
    let read = |path: &str| files.iter().find(|f| f.path == path).map_or_else(String::new, |f| f.text.clone());
    let documents = files.iter().filter(|f| f.path.ends_with(".md"));
    let all: Vec<String> = documents.flat_map(|f| broken(f, &paths, &read)).collect();
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn a_broken_link_is_seen() {
    let paths: BTreeSet<String> = ["docs/a.md", "README.md", "src/x/y.rs"].map(String::from).into();
    let read = |_: &str| "# One, two\n\n## `slrc ops`\n".to_string();
    let of = |text: &str| broken(&File { path: "docs/a.md".into(), text: text.into() }, &paths, &read).len();
    for sound in [
        "[r](../README.md)",
        "[r](../README.md#one-two)",
        "[s](#slrc-ops)",
        "`x/y.rs`",
        "[w](https://x.y/z.md)",
        "```\n[q](nowhere)\n```",
    ] {
        assert_eq!(of(sound), 0, "{sound}");
    }
    for bad in ["[r](README.md)", "[r](../README.md#one)", "`x/z.rs`", "[a](b.md) and [c](d.md)"] {
        assert!(of(bad) > 0, "{bad}");
    }
}
