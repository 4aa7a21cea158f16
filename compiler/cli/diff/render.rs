//! A comparison of plans for people.

use std::collections::BTreeMap;

use crate::diff::kernels::{Regrouped, Work};
use crate::diff::{Change, Diff, ModuleChange, ModuleFigures};
use crate::document::{Document, Section, Span};
use crate::table::{bytes, flops};

/// Most lines about single kernels.
const MOST_LINES: usize = 20;
/// Most nodes named of a kernel.
const MOST_NODES: usize = 4;

impl Diff {
    pub(crate) fn document(&self) -> Document {
        Document {
            headline: self.headline(),
            sections: if self.equal {
                Vec::new()
            } else {
                vec![self.settings(), self.cuts(), self.memory(), self.modules(), self.kernels(), self.rest()]
            },
        }
    }

    fn headline(&self) -> String {
        if self.equal {
            return "the plans are equal".into();
        }
        match self.memory.iter().find(|m| m.name == "peak") {
            Some(p) if p.old != p.new => {
                format!("peak {} -> {} ({})", bytes(p.old), bytes(p.new), change(p.old as f64, p.new as f64))
            }
            Some(p) => format!("peak {}, unchanged; the plans differ", bytes(p.new)),
            None => "the plans differ".into(),
        }
    }

    fn settings(&self) -> Section {
        let short = |s: &str| {
            let hash = s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
            if hash { format!("SHA-256 {}..", &s[..12]) } else { s.to_string() }
        };
        let row = |c: &Change<String>| vec![c.name.to_string(), short(&c.old), short(&c.new)];
        Section {
            title: "settings",
            header: vec!["", "old", "new"],
            names: vec![1, 2],
            rows: self.settings.iter().map(row).collect(),
            ..Section::default()
        }
    }

    fn cuts(&self) -> Section {
        let nodes = |f: &ModuleFigures| (f.first_node.clone(), f.last_node.clone());
        let moved = |m: &&ModuleChange| m.old.as_ref().map(nodes) != m.new.as_ref().map(nodes);
        let rows = self.modules.iter().filter(moved).map(|m| {
            let end =
                |f: &Option<ModuleFigures>| f.as_ref().map_or(["none".into(), String::new()], |f| nodes(f).into());
            let ([a, b], [c, d]): ([String; 2], [String; 2]) = (end(&m.old), end(&m.new));
            vec![m.index.to_string(), a, b, c, d]
        });
        Section {
            title: "cuts moved",
            header: vec!["module", "old first node", "old last node", "new first node", "new last node"],
            right: vec![0],
            names: vec![1, 2, 3, 4],
            rows: rows.collect(),
            ..Section::default()
        }
    }

    fn memory(&self) -> Section {
        let row = |c: &Change<usize>| {
            vec![c.name.to_string(), bytes(c.old), bytes(c.new), difference(c.old, c.new), percent(c.old, c.new)]
        };
        Section {
            title: "memory",
            header: vec!["", "old", "new", "change", ""],
            right: vec![1, 2, 3, 4],
            rows: if self.memory.iter().all(|c| c.old == c.new) {
                Vec::new()
            } else {
                self.memory.iter().map(row).collect()
            },
            ..Section::default()
        }
    }

    fn modules(&self) -> Section {
        let mut header = vec!["module", "arena", "", "kernels", "work a step", ""];
        let launched = |m: &ModuleChange| [&m.old, &m.new].into_iter().flatten().any(|f| f.launches > 0);
        let launches = self.modules.iter().any(launched);
        if launches {
            header.push("launches");
        }
        let arrow = |a: Option<String>, b: Option<String>| match (a, b) {
            (Some(a), Some(b)) if a == b => a,
            (a, b) => format!("{} -> {}", a.unwrap_or("none".into()), b.unwrap_or("none".into())),
        };
        let row = |m: &ModuleChange| {
            let (old, new) = (m.old.as_ref(), m.new.as_ref());
            let both = |f: &dyn Fn(&ModuleFigures) -> String| arrow(old.map(f), new.map(f));
            let ratio = |f: &dyn Fn(&ModuleFigures) -> f64| match (old, new) {
                (Some(a), Some(b)) if f(a) != f(b) => change(f(a), f(b)),
                _ => String::new(),
            };
            let mut row = vec![
                m.index.to_string(),
                both(&|f| bytes(f.arena_bytes)),
                ratio(&|f| f.arena_bytes as f64),
                both(&|f| f.kernels.to_string()),
                both(&|f| flops(f.flops)),
                ratio(&|f| f.flops as f64),
            ];
            if launches {
                row.push(both(&|f| f.launches.to_string()));
            }
            row
        };
        Section {
            title: "modules",
            right: (0..header.len()).collect(),
            header,
            rows: self.modules.iter().filter(|m| m.old != m.new).map(row).collect(),
            ..Section::default()
        }
    }

    fn kernels(&self) -> Section {
        let k = &self.kernels;
        let mut lines = Vec::new();
        for m in &self.modules {
            if let (Some(old), Some(new)) = (&m.old, &m.new)
                && old.kernels != new.kernels
            {
                let n = old.kernels.abs_diff(new.kernels);
                let s = if n == 1 { "" } else { "s" };
                let word = if new.kernels < old.kernels { "fewer" } else { "more" };
                lines.push(vec![Span::Words(format!("module {}: {n} kernel{s} {word}", m.index))]);
            }
        }
        let mut single: Vec<Vec<Span>> = Vec::new();
        single.extend(k.fused.iter().map(|r| regrouped(r, r.whole.module, "joined")));
        single.extend(k.split.iter().map(|r| regrouped(r, r.parts[0].module, "left")));
        let only = |works: &[Work], which: &str| {
            let mut counts: BTreeMap<&Work, usize> = BTreeMap::new();
            works.iter().for_each(|w| *counts.entry(w).or_default() += 1);
            counts.into_iter().map(|(w, n)| alone(w, n, which)).collect::<Vec<_>>()
        };
        single.extend(only(&k.gone, "old"));
        single.extend(only(&k.added, "new"));
        let more = single.len().saturating_sub(MOST_LINES);
        lines.extend(single.into_iter().take(MOST_LINES));
        if more > 0 {
            lines.push(vec![Span::Words(format!("and {more} more lines; --format json has all of them"))]);
        }
        Section { title: "kernels", lines, ..Section::default() }
    }

    /// Where nothing above says what differs, the parts of the plan that do.
    fn rest(&self) -> Section {
        let said = !self.settings.is_empty()
            || self.memory.iter().any(|c| c.old != c.new)
            || self.modules.iter().any(|m| m.old != m.new)
            || self.kernels != Default::default();
        let lines = if said { &[][..] } else { &self.sections };
        Section {
            title: "same settings, cuts, memory and work; the text differs in",
            lines: lines.iter().map(|s| vec![Span::Words(s.clone())]).collect(),
            ..Section::default()
        }
    }
}

fn names(nodes: &[String]) -> Vec<Span> {
    let mut out = Vec::new();
    for (i, n) in nodes.iter().take(MOST_NODES).enumerate() {
        if i > 0 {
            out.push(Span::Words(", ".into()));
        }
        out.push(Span::Name(n.clone()));
    }
    if nodes.len() > MOST_NODES {
        out.push(Span::Words(format!(" and {} more", nodes.len() - MOST_NODES)));
    }
    out
}

/// `module 2: forward map /relu joined conv /conv`: the parts but the first, and the first.
fn regrouped(r: &Regrouped, module: usize, verb: &str) -> Vec<Span> {
    let host = &r.parts[0];
    let mut line = vec![Span::Words(format!("module {module}: {} ", r.whole.phase))];
    for (i, p) in r.parts[1..].iter().enumerate() {
        let and = if i > 0 { " and " } else { "" };
        line.push(Span::Words(format!("{and}{} ", p.family)));
        line.extend(names(&p.nodes));
    }
    line.push(Span::Words(format!(" {verb} {} ", host.family)));
    line.extend(names(&host.nodes));
    line
}

fn alone(w: &Work, count: usize, which: &str) -> Vec<Span> {
    let times = if count > 1 { format!("{count} times ") } else { String::new() };
    let mut line =
        vec![Span::Words(format!("module {}: only in the {which}: {times}{} {}", w.module, w.phase, w.family))];
    if !w.nodes.is_empty() {
        line.push(Span::Words(" ".into()));
        line.extend(names(&w.nodes));
    }
    line
}

/// A signed difference of bytes.
pub(crate) fn difference(old: usize, new: usize) -> String {
    match new.cmp(&old) {
        std::cmp::Ordering::Less => format!("-{}", bytes(old - new)),
        std::cmp::Ordering::Equal => "0".into(),
        std::cmp::Ordering::Greater => format!("+{}", bytes(new - old)),
    }
}

fn percent(old: usize, new: usize) -> String {
    if old == new { String::new() } else { change(old as f64, new as f64) }
}

/// A signed relative change; from nothing there is none.
fn change(old: f64, new: f64) -> String {
    if old == 0.0 { "from 0".into() } else { format!("{:+.1} %", 100.0 * (new - old) / old) }
}
