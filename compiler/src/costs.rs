//! What segments of a network cost as modules: found by compiling them, those of equal structure once.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::buffer::align;

use crate::emit::CompiledModule;
use crate::ir::graph::{Graph, RootKind, VarKind};
use crate::ir::op::{Class, Op};
use crate::ir::types::{DType, Type};
use crate::lower::{Draft, Names, Program};
use crate::memory::Arena;
use crate::onnx::file::sha256_hex;
use crate::onnx::import::Imported;
use crate::parallel;
use crate::partition::{Candidate, Candidates, Cost, Partitioned, Pieces, Segments, Shared, apply, module_graph};
use crate::pipeline::{CompileError, program};
use crate::spec::Spec;
use crate::step::{self, Place};

/// What has been found out about one network with one spec, whatever the partition.
#[derive(Clone, Debug, Default)]
pub struct Known {
    segments: BTreeMap<(usize, usize), Cost>,
    by_structure: BTreeMap<String, Cost>,
    /// Ids of the constants and scalars that segments read, and the bytes of each. Of more than a [`Shared`] has
    /// numbers for, nothing is remembered: they are left out of costs.
    shared: Vec<String>,
    shared_bytes: Vec<usize>,
    names: Names,
}

impl Known {
    /// The whole network's cost, from its compilation as one module.
    pub fn learn_whole(&mut self, pieces: usize, module: &CompiledModule, names: &Names) {
        let (draft, arena) = &module.step;
        let cost = self.of(&module.train, &module.head_variables, draft, arena, names);
        self.segments.insert((0, pieces), cost);
    }

    /// Cost of a training step. `names` are those of its lowering.
    fn of(&mut self, train: &Graph, head: &BTreeSet<String>, draft: &Draft, arena: &Arena, names: &Names) -> Cost {
        let metrics = draft.reports.len() * align(Type::f32([]).bytes());
        let constants = names.constants().map(|(c, _)| (self.names.constant(c), c.ty.bytes()));
        let mut read: Vec<(String, usize)> = constants.collect();
        read.extend(names.scalars.iter().map(|(s, _)| (self.names.scalar(s), Type::f32([]).bytes())));
        let mut shared = Shared::default();
        for (id, bytes) in read {
            let number = self.shared.iter().position(|s| *s == id).unwrap_or(self.shared.len());
            if number < Shared::MOST {
                if number == self.shared.len() {
                    self.shared.push(id);
                    self.shared_bytes.push(align(bytes));
                }
                shared.insert(number);
            }
        }
        let work = draft.kernels.iter().map(|k| k.flops).sum();
        Cost { arena: arena.bytes, kept: head_bytes(train, head) + metrics, shared, work }
    }
}

/// Costs of one network's segments, by compiling what is not [`Known`].
pub struct Costs<'a> {
    /// The network.
    pub network: &'a Imported,
    /// Where it can be cut.
    pub found: &'a Candidates,
    /// What modules are compiled with.
    pub spec: &'a Spec,
    /// What is known.
    pub known: &'a mut Known,
    /// Told how many segments have been costed, and how many there are.
    pub progress: &'a mut dyn FnMut(usize, usize),
}

impl Segments for Costs<'_> {
    type Error = CompileError;

    fn costs(&mut self, segments: &[(usize, usize)]) -> Result<Vec<Cost>, CompileError> {
        let unknown: Vec<(usize, usize)> =
            segments.iter().copied().filter(|at| !self.known.segments.contains_key(at)).collect();
        let (network, found, spec) = (self.network, self.found, self.spec);
        let last = found.cuts.len() + 1;
        let taken = parallel::map(&unknown, |&at| Segment::of(network, found, at));
        // Those of equal structure are compiled once.
        let mut new: Vec<&Segment> = Vec::new();
        for s in &taken {
            let costed = self.known.by_structure.contains_key(&s.signature);
            if !costed && !new.iter().any(|o| o.signature == s.signature) {
                new.push(s);
            }
        }
        let compiled = parallel::map(&new, |s| s.compile(spec));
        for (s, compiled) in new.iter().zip(compiled) {
            let Compiled { train, head_variables, draft, arena, names } = compiled?;
            let cost = self.known.of(&train, &head_variables, &draft, &arena, &names);
            self.known.by_structure.insert(s.signature.clone(), cost);
        }
        for (&at, s) in unknown.iter().zip(&taken) {
            self.known.segments.insert(at, self.known.by_structure[&s.signature]);
            (self.progress)(self.known.segments.len(), last * (last + 1) / 2);
        }
        Ok(segments.iter().map(|at| self.known.segments[at]).collect())
    }

    fn shared_bytes(&self) -> &[usize] {
        &self.known.shared_bytes
    }
}

/// A part of the network, as what a module is made of.
struct Segment {
    /// What its cost depends on.
    signature: String,
    module: Graph,
    place: Place,
}

/// A training step, compiled for its cost.
struct Compiled {
    train: Graph,
    head_variables: BTreeSet<String>,
    draft: Draft,
    arena: Arena,
    names: Names,
}

impl Segment {
    /// Pieces `i..j`.
    fn of(network: &Imported, found: &Candidates, (i, j): (usize, usize)) -> Segment {
        let last = found.cuts.len() + 1;
        let cuts: Vec<Candidate> =
            [i, j].into_iter().filter(|&c| c > 0 && c < last).map(|c| found.cuts[c - 1].clone()).collect();
        let parts = apply(network, &cuts);
        let index = if i == 0 { 1 } else { 2 };
        let mut module = module_graph(&parts, index);
        module.name = String::new();
        let place = Place { index, last: j == last, logits: parts.graph.ty(parts.logits).clone() };
        let signature = format!("{} {index} {}", place.last, structure(&module));
        Segment { signature, module, place }
    }

    fn compile(&self, spec: &Spec) -> Result<Compiled, CompileError> {
        let (train, head_variables) = step::build_train(self.module.clone(), &self.place, spec)?;
        let mut names = Names::default();
        let (draft, arena) = program(&train, self.place.index, Program::Step, spec.products(), &mut names);
        Ok(Compiled { train, head_variables, draft, arena, names })
    }
}

/// The network's pieces between one possible cut and the next: floating-point operations and bytes of the results of
/// their products and convolutions, and the boundaries between them.
pub fn pieces(network: &Imported, found: &Candidates) -> Pieces {
    let parts = apply(network, &found.cuts);
    let n = found.cuts.len() + 1;
    let (mut work, mut results) = (vec![0; n], weights_of_pieces(&parts));
    for (id, module) in parts.graph.ids().zip(&parts.module) {
        let (n, Some(k)) = (parts.graph.node(id), module) else { continue };
        let terms = match (&n.op, &n.operands[..]) {
            (Op::MatMul(_), [a, _]) => parts.graph.shape(*a).last().copied().unwrap_or(1),
            (Op::Conv(_), [_, w]) => parts.graph.shape(*w).iter().skip(1).product(),
            _ => 0,
        };
        work[k - 1] += 2 * (n.ty.count() * terms) as u64;
        if n.op.rule().class() == Class::Kernel {
            results[k - 1] += n.ty.bytes();
        }
    }
    let mut seen: BTreeMap<Vec<(DType, &[usize])>, usize> = BTreeMap::new();
    let between = found.cuts.iter().map(|c| {
        let types = c.values().map(|v| network.graph.ty(v)).map(|ty| (ty.dtype, &ty.shape[..])).collect();
        let next = seen.len() + 2;
        *seen.entry(types).or_insert(next)
    });
    let types = std::iter::once(0).chain(between).chain([1]).collect();
    let between = found.cuts.iter().map(|c| c.values().map(|v| network.graph.ty(v).bytes()).sum());
    let boundaries = std::iter::once(0).chain(between).chain([0]).collect();
    let beside = |c: &Candidate| c.carried.iter().map(|c| network.graph.ty(c.value).bytes()).sum();
    let carried = std::iter::once(0).chain(found.cuts.iter().map(beside)).chain([0]).collect();
    Pieces { work, results, boundaries, carried, types }
}

/// By piece, bytes of the weights it uses.
fn weights_of_pieces(parts: &Partitioned) -> Vec<usize> {
    let g = &parts.graph;
    // Of what is computed of weights alone, the module that uses it.
    let mut user: Vec<Option<usize>> = parts.module.clone();
    let mut out = vec![0; parts.boundaries.len() + 1];
    for id in g.ids().rev() {
        let Some(k) = user[id.index()] else { continue };
        match g.node(id).op {
            Op::Variable(v) if g.variables[v.index()].kind == VarKind::Weight => out[k - 1] += g.ty(id).bytes(),
            _ => {}
        }
        for o in &g.node(id).operands {
            user[o.index()].get_or_insert(k);
        }
    }
    out
}

/// What of a graph its cost depends on: everything but names.
fn structure(g: &Graph) -> String {
    let mut out = String::new();
    for id in g.ids() {
        let n = g.node(id);
        let what = match &n.op {
            Op::Variable(v) => format!("variable {:?}", g.variables[v.index()].kind),
            Op::Input(i) => format!("input {:?}", g.inputs[i.index()].kind),
            op => op.to_string(),
        };
        out.push_str(&format!("{what}{:?}:{};", n.operands, n.ty));
    }
    let handed_on = g.roots.iter().filter(|r| matches!(r.kind, RootKind::Boundary(_))).count();
    out.push_str(&format!("{handed_on}{:?}", g.roots.iter().map(|r| r.value).collect::<Vec<_>>()));
    sha256_hex(out.as_bytes())
}

/// Bytes of a head's parameters and their optimizer state.
fn head_bytes(train: &Graph, head: &BTreeSet<String>) -> usize {
    let of_head = |name: &str| head.contains(name);
    let state_of_head = |name: &str| name.rsplit_once('.').is_some_and(|(parameter, _)| of_head(parameter));
    let kept = train.variables.iter().filter(|v| of_head(&v.name) || state_of_head(&v.name));
    kept.map(|v| align(v.ty.bytes())).sum()
}
