//! The IR's text form, for people and tests. Printing and parsing round-trip.
//!
//! One item a line. Tables come first (`input`, `var`, `const`, `scalar`), then nodes, then roots:
//!
//! ```text
//! graph "example"
//! input in0 "x" data f32[8x4]
//! var var0 "fc.weight" weight f32[4x2] uniform(0.5)
//! %0 = input{index=0} : f32[8x4] @"" forward
//! %1 = variable{index=0} : f32[4x2] @"fc" forward
//! %2 = matmul(%0, %1) : f32[8x2] @"fc" forward
//! root output "logits" %2
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use slrc_plan::kernel::Phase;
use slrc_plan::schedule::{Decay, Pass, Schedule, Which};

use crate::ir::graph::{
    Constant, Graph, Init, Input, InputKind, Node, NodeId, Root, RootKind, StepScalar, VarId, VarKind, Variable,
};
use crate::ir::numbered::{number_of, numbered};
use crate::ir::op::{AttributeReader, Op};
use crate::ir::types::Type;

/// A line of IR text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// Prints a graph.
pub fn print(g: &Graph) -> String {
    let mut out = format!("graph {:?}\n", g.name);
    for (i, x) in g.inputs.iter().enumerate() {
        let _ = writeln!(out, "input in{i} {:?} {} {}", x.name, x.kind.text(), x.ty);
    }
    for (i, v) in g.variables.iter().enumerate() {
        let _ = writeln!(out, "var var{i} {:?} {} {} {}", v.name, v.kind.name(), v.ty, init_text(v.init));
    }
    for (i, c) in g.constants.iter().enumerate() {
        let data: Vec<String> = c.data.iter().map(|x| format!("{x:?}")).collect();
        let _ = writeln!(out, "const const{i} {} {}", c.ty, data.join(" "));
    }
    for (i, s) in g.scalars.iter().enumerate() {
        let _ = writeln!(out, "scalar scalar{i} {:?} {}{}", s.name, pass_text(s.pass), schedule_text(&s.schedule));
    }
    for id in g.ids() {
        let n = g.node(id);
        let _ = write!(out, "{id} = {}", n.op);
        if !n.operands.is_empty() {
            let list: Vec<String> = n.operands.iter().map(NodeId::to_string).collect();
            let _ = write!(out, "({})", list.join(", "));
        }
        let _ = writeln!(out, " : {} @{:?} {}", n.ty, g.origin(id), n.phase.name());
    }
    for r in &g.roots {
        let _ = match &r.kind {
            RootKind::Output(name) => writeln!(out, "root output {name:?} {}", r.value),
            RootKind::Boundary(i) => writeln!(out, "root {} {}", numbered("boundary", *i), r.value),
            RootKind::OutputGradient(i) => writeln!(out, "root {} {}", numbered("output-gradient", *i), r.value),
            RootKind::Update(v) => writeln!(out, "root update {v} {}", r.value),
            RootKind::Report(name) => writeln!(out, "root report {name:?} {}", r.value),
        };
    }
    out
}

fn init_text(init: Init) -> String {
    match init {
        Init::Constant(x) => format!("constant({x:?})"),
        Init::Uniform(x) => format!("uniform({x:?})"),
        Init::Normal(x) => format!("normal({x:?})"),
    }
}

/// Nothing, or the pass and the value in others.
fn pass_text(pass: Pass) -> String {
    match pass {
        Pass::Every => String::new(),
        Pass::Only { which: Which::First, otherwise } => format!("first {otherwise:?} "),
        Pass::Only { which: Which::Last, otherwise } => format!("last {otherwise:?} "),
    }
}

fn schedule_text(s: &Schedule) -> String {
    let decay = match &s.decay {
        Decay::Constant => "constant".to_string(),
        Decay::Cosine { last, steps: None } => format!("cosine {last:?}"),
        Decay::Cosine { last, steps: Some(n) } => format!("cosine {last:?} {n}"),
        Decay::Step { every, gamma } => format!("step {every} {gamma:?}"),
        Decay::AdamCorrection { beta } => format!("adam-correction {beta:?}"),
    };
    format!("{:?} {} {decay}", s.base, s.warmup)
}

/// Reads a graph. The result is well formed text, not yet verified: run [`crate::ir::verify::verify`].
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut g = Graph::new("");
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        parse_line(&mut g, line).map_err(|reason| ParseError { line: i + 1, reason })?;
    }
    Ok(g)
}

/// Splits a line into words; a word in double quotes may hold anything and is unescaped.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&c) = chars.peek() {
        if c.is_whitespace() {
            chars.next();
            continue;
        }
        let mut word = String::new();
        let quoted = c == '"';
        if quoted {
            chars.next();
        }
        loop {
            match chars.next() {
                None if quoted => return Err("a quoted name does not end".into()),
                None => break,
                Some('"') if quoted => break,
                Some('\\') if quoted => word.push(unescape(&mut chars)?),
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => word.push(c),
            }
        }
        out.push(word);
    }
    Ok(out)
}

fn unescape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, String> {
    match chars.next() {
        Some('n') => Ok('\n'),
        Some('t') => Ok('\t'),
        Some('r') => Ok('\r'),
        Some('0') => Ok('\0'),
        Some('u') => {
            let hex: String = chars.by_ref().skip(1).take_while(|&c| c != '}').collect();
            u32::from_str_radix(&hex, 16)
                .ok()
                .and_then(char::from_u32)
                .ok_or_else(|| format!("bad escape \\u{{{hex}}}"))
        }
        Some(c) => Ok(c),
        None => Err("a quoted name does not end".into()),
    }
}

fn number<T: std::str::FromStr>(w: &[String], i: usize) -> Result<T, String> {
    let text = w.get(i).ok_or("the line is too short")?;
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

fn word(w: &[String], i: usize) -> Result<&str, String> {
    w.get(i).map(String::as_str).ok_or_else(|| "the line is too short".into())
}

fn parse_line(g: &mut Graph, line: &str) -> Result<(), String> {
    if line.starts_with('%') {
        return parse_node(g, line);
    }
    let w = words(line)?;
    match word(&w, 0)? {
        "graph" => g.name = word(&w, 1)?.to_string(),
        "input" => {
            let kind = w.get(3).and_then(|x| InputKind::parse(x));
            let kind = kind.ok_or("an input is data, labels, boundary or boundary-gradient")?;
            g.inputs.push(Input { name: word(&w, 2)?.to_string(), kind, ty: word(&w, 4)?.parse()? });
        }
        "var" => {
            let kind = VarKind::ALL.iter().find(|k| w.get(3).is_some_and(|x| x == k.name()));
            let kind = *kind.ok_or("a variable is weight, running-statistic, frozen or optimizer")?;
            let init = parse_init(word(&w, 5)?)?;
            g.add_variable(Variable { name: word(&w, 2)?.to_string(), kind, ty: word(&w, 4)?.parse()?, init });
        }
        "const" => {
            let ty: Type = word(&w, 2)?.parse()?;
            let data = (3..w.len()).map(|i| number(&w, i)).collect::<Result<Vec<f64>, _>>()?;
            g.constants.push(Constant { ty, data });
        }
        "scalar" => {
            let which = match word(&w, 3)? {
                "first" => Some(Which::First),
                "last" => Some(Which::Last),
                _ => None,
            };
            let pass = match which {
                Some(which) => Pass::Only { which, otherwise: number(&w, 4)? },
                None => Pass::Every,
            };
            let at = if which.is_some() { 5 } else { 3 };
            let decay = match word(&w, at + 2)? {
                "constant" => Decay::Constant,
                "cosine" => {
                    let steps = if w.len() > at + 4 { Some(number(&w, at + 4)?) } else { None };
                    Decay::Cosine { last: number(&w, at + 3)?, steps }
                }
                "step" => Decay::Step { every: number(&w, at + 3)?, gamma: number(&w, at + 4)? },
                "adam-correction" => Decay::AdamCorrection { beta: number(&w, at + 3)? },
                other => return Err(format!("`{other}` is not a schedule")),
            };
            let schedule = Schedule { base: number(&w, at)?, warmup: number(&w, at + 1)?, decay };
            g.scalars.push(StepScalar { name: word(&w, 2)?.to_string(), schedule, pass });
        }
        "root" => {
            let last = word(&w, w.len() - 1)?.strip_prefix('%').and_then(|n| n.parse().ok());
            let value = NodeId(last.ok_or("a root ends with its value, such as %7")?);
            let kind = match word(&w, 1)? {
                "output" => RootKind::Output(word(&w, 2)?.to_string()),
                "report" => RootKind::Report(word(&w, 2)?.to_string()),
                "update" => {
                    let v = word(&w, 2)?.strip_prefix("var").and_then(|n| n.parse().ok());
                    RootKind::Update(VarId(v.ok_or("an update names a variable, such as var3")?))
                }
                other => match (number_of("boundary", other), number_of("output-gradient", other)) {
                    (Some(i), _) => RootKind::Boundary(i),
                    (_, Some(i)) => RootKind::OutputGradient(i),
                    _ => return Err(format!("`{other}` is not a root")),
                },
            };
            if value.index() >= g.len() {
                return Err(format!("{value} is not defined"));
            }
            g.roots.push(Root { kind, value });
        }
        other => return Err(format!("`{other}` begins no line")),
    }
    Ok(())
}

fn parse_init(text: &str) -> Result<Init, String> {
    let (name, rest) = text.split_once('(').ok_or_else(|| format!("`{text}` is not an init"))?;
    let x: f64 =
        rest.strip_suffix(')').and_then(|n| n.parse().ok()).ok_or_else(|| format!("`{text}` is not an init"))?;
    match name {
        "constant" => Ok(Init::Constant(x)),
        "uniform" => Ok(Init::Uniform(x)),
        "normal" => Ok(Init::Normal(x)),
        _ => Err(format!("`{name}` is not an init")),
    }
}

/// `%id = op{k=v ..}(%a, %b) : type @"origin" phase`
fn parse_node(g: &mut Graph, line: &str) -> Result<(), String> {
    let (id, rest) = line.split_once(" = ").ok_or("a node is `%id = op ..`")?;
    let (body, tail) = rest.split_once(" : ").ok_or("a node needs ` : type`")?;
    if id != NodeId(g.len() as u32).to_string() {
        return Err(format!("nodes are numbered in order: {id} should be %{}", g.len()));
    }
    let (head, operands) = match body.find('(') {
        Some(at) => (&body[..at], body[at + 1..].strip_suffix(')').ok_or("operands end with )")?),
        None => (body, ""),
    };
    let (name, attributes) = match head.find('{') {
        Some(at) => (&head[..at], head[at + 1..].strip_suffix('}').ok_or("attributes end with }")?),
        None => (head, ""),
    };
    let mut values = BTreeMap::new();
    for a in attributes.split_ascii_whitespace() {
        let (k, v) = a.split_once('=').ok_or_else(|| format!("attribute `{a}` has no value"))?;
        values.insert(k, v);
    }
    let op = Op::parse(name, &AttributeReader { values })?;
    let operands = operands
        .split(", ")
        .filter(|o| !o.is_empty())
        .map(|o| {
            let n = o.strip_prefix('%').and_then(|n| n.parse().ok()).ok_or_else(|| format!("`{o}` is not a node"))?;
            if n as usize >= g.len() { Err(format!("{o} is not defined")) } else { Ok(NodeId(n)) }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let w = words(tail)?;
    let ty: Type = word(&w, 0)?.parse()?;
    // `@"name"` is one word that begins with @ when the name has no blanks, else the rest of the words up to the phase.
    let after = tail.split_once(" @").map(|x| x.1).ok_or("a node needs its origin, @\"name\"")?;
    let w = words(after)?;
    let origin = g.add_origin(word(&w, 0)?);
    let phase =
        *Phase::ALL.iter().find(|p| w.get(1).is_some_and(|x| x == p.name())).ok_or("a node ends with its phase")?;
    let before = g.len();
    g.add(Node { op, operands, ty, origin, phase });
    if g.len() == before {
        return Err("an equal node exists already".into());
    }
    Ok(())
}
