//! `slrc check`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use slrc_compiler::diagnose::{Finding, Network, Report, diagnose};
use slrc_compiler::onnx::diagnose::{Missing, Opset, Port, Tensors};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::simplify::{Mode, close, specialise};

use crate::args::{CheckArgs, CutArgs, SpecArgs};
use crate::compile::Request;
use crate::failure::Failure;
use crate::output;
use crate::table::{bytes, count, table};

pub(crate) fn run(a: &CheckArgs) -> Result<(), Failure> {
    let options = SpecArgs { batch: a.batch, shape: a.shape.clone(), ..SpecArgs::default() };
    let request = Request::new(a.spec.as_deref(), a.model.as_deref(), &CutArgs::default(), &options)?;
    // A spec that makes no sense is told apart from a model that does not.
    request.spec.resolve()?;
    request.spec.import_options()?;
    let started = Instant::now();
    let file = OnnxFile::open(&request.model)?;
    let opened = started.elapsed();
    if a.times {
        times(&file, &request, opened)?;
    }
    let diagnosis = diagnose(&file, &request.spec);
    if a.json {
        let json = serde_json::to_string_pretty(&diagnosis.report).map_err(|e| Failure::Run(e.to_string()))?;
        output::line(json);
    } else {
        let name = request.model.file_name().unwrap_or(request.model.as_os_str());
        output::print(&text(&name.to_string_lossy(), &diagnosis.report));
    }
    diagnosis.error.map_or(Ok(()), |e| Err(e.into()))
}

/// How long the stages take that come before any cut: to a graph in which every cut is known, and to the one of
/// inference.
fn times(file: &OnnxFile, request: &Request, opened: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    let planner = Planner::new(file, &request.spec)?;
    let imported = started.elapsed();
    let started = Instant::now();
    let nodes = close(&specialise(&planner.network().graph, Mode::Eval)).len();
    let simplified = started.elapsed();
    let [opened, imported, simplified] = [opened, imported, simplified].map(|t| t.as_secs_f64());
    eprintln!("opened in {opened:.3} s, imported in {imported:.3} s, simplified in {simplified:.3} s to {nodes} nodes");
    Ok(())
}

/// Widest line of running text.
const COLUMNS: usize = 110;

fn text(name: &str, r: &Report) -> String {
    let verdict = if r.trainable { "can be trained" } else { "cannot be trained as it is" };
    let mut out = format!("{name} {verdict}\n\n");
    let mut rows = about(r);
    if let Some(n) = &r.network {
        rows.extend(weights(n));
    }
    out.push_str(&plain_table(rows));
    if let Some(e) = r.error.as_ref().filter(|_| r.missing.is_empty() && r.refused.is_empty()) {
        let _ = write!(out, "\nWhy not\n\n{}", wrapped(e, 2));
    }
    for (title, nodes) in [
        ("Operators slrc does not know", &r.missing),
        ("Nodes slrc does not import; what depends on a node that is not imported was not looked at", &r.refused),
    ] {
        if !nodes.is_empty() {
            let _ = write!(out, "\n{title}\n\n{}", missing(nodes));
        }
    }
    for f in &r.findings {
        out.push_str(&finding(f));
    }
    for note in r.network.iter().flat_map(|n| &n.notes) {
        let _ = write!(out, "\nnote\n{}", wrapped(note, 2));
    }
    out
}

fn row(what: &str, is: String) -> Vec<String> {
    vec![what.into(), is]
}

fn about(r: &Report) -> Vec<Vec<String>> {
    let c = &r.contents;
    let beside = if c.external_data { ", and tensors in files beside it" } else { "" };
    let opset = |o: &Opset| match o.domain.as_str() {
        "" => format!("opset {}", o.version),
        domain => format!("{domain} {}", o.version),
    };
    let opsets: Vec<String> = c.opsets.iter().map(opset).collect();
    let by = format!("{} {}", c.producer, c.producer_version);
    let exporter = c.exporter.map_or(String::new(), |e| format!(", {e} exporter"));
    let by = if by.trim().is_empty() { "the file does not say".into() } else { format!("{}{exporter}", by.trim()) };
    let port = |p: &Port| {
        let shape = p.shape.as_ref().map_or("shape not declared".into(), |s| format!("[{}]", s.join(", ")));
        format!("{}  {} {shape}", p.name, p.ty)
    };
    let mut rows = vec![
        row("file", format!("{}{beside}", bytes(c.file_bytes))),
        row("format", format!("{}, IR version {}", opsets.join(", "), c.ir_version)),
        row("written by", by),
        row("graph", format!("{}, {}", c.graph, counted(c.nodes, "node"))),
    ];
    rows.extend(c.inputs.iter().map(|p| row("input", port(p))));
    rows.extend(c.outputs.iter().map(|p| row("output", port(p))));
    rows.push(row("initializers", tensors(&c.initializers)));
    rows
}

fn tensors(t: &Tensors) -> String {
    format!("{} in {}, {}", counted(t.numbers, "number"), counted(t.tensors, "tensor"), bytes(t.bytes))
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{} {what}s", count(n)) }
}

fn weights(n: &Network) -> Vec<Vec<String>> {
    let mut rows: Vec<_> = n.repairs.iter().map(|r| row("repaired", r.clone())).collect();
    rows.push(row("trained", tensors(&n.trained)));
    for (what, t) in [("statistics", &n.statistics), ("frozen", &n.frozen)] {
        if t.tensors > 0 {
            rows.push(row(what, tensors(t)));
        }
    }
    rows
}

fn plain_table(rows: Vec<Vec<String>>) -> String {
    let width = rows.iter().map(|r| r[0].len()).max().unwrap_or(0);
    rows.iter().map(|r| format!("{:width$}  {}\n", r[0], one_line(&r[1]))).collect()
}

fn missing(nodes: &[Missing]) -> String {
    let named = |m: &Missing| {
        let more = if m.count > m.nodes.len() { ", .." } else { "" };
        one_line(&format!("{}{more}", m.nodes.join(", ")))
    };
    let row = |m: &Missing| vec![one_line(&m.op), m.opset.to_string(), count(m.count), named(m), one_line(&m.reason)];
    table(&["operator", "opset", "nodes", "first", "why"], &[1, 2], nodes.iter().map(row).collect())
}

fn finding(f: &Finding) -> String {
    let more = if f.count > f.names.len() && !f.names.is_empty() { ", .." } else { "" };
    let names = if f.names.is_empty() { String::new() } else { format!(": {}{more}", f.names.join(", ")) };
    let mut out = format!("\n{}\n{}", f.kind.replace('-', " "), wrapped(&format!("{}{names}", f.says), 2));
    out.push_str(&wrapped(&format!("slrc {}", f.does), 2));
    if let Some(option) = &f.option {
        out.push_str(&wrapped(&format!("to change that: {option}"), 2));
    }
    out
}

/// A paragraph in lines of at most [`COLUMNS`], indented. Names are not broken.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in one_line(paragraph).split_whitespace() {
            if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > COLUMNS {
                let _ = writeln!(out, "{:indent$}{line}", "");
                // What goes on is set apart from what begins.
                line = "  ".into();
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let _ = writeln!(out, "{:indent$}{line}", "");
    }
    out
}

/// Control characters would break a line, or a terminal.
fn one_line(s: &str) -> String {
    s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
