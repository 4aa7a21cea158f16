//! Lowering: fused items as kernels over named buffers. Offsets are not known yet; [`crate::memory`] assigns them.

mod attention;
mod bits;
mod epilogue;
mod kernels;
mod names;
mod prologue;
mod regions;

pub use names::Names;

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::kernel::{Kernel, KernelOp, Phase};
use slrc_plan::{DType, View};

use crate::fuse::items::lands_in_place;
use crate::fuse::{Item, Items, Layout, Layouts, Owner};
use crate::ir::graph::{Graph, NodeId, RootKind};
use crate::ir::op::Op;

/// A buffer that needs a place in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftBuffer {
    /// Unique in the plan.
    pub id: String,
    /// Element type.
    pub dtype: DType,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Memory order, outermost first.
    pub order: Vec<usize>,
    /// Must survive to the program's end.
    pub keep: bool,
}

/// A program without offsets.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Launches in order.
    pub kernels: Vec<Kernel>,
    /// Arena buffers, in order of first use.
    pub buffers: Vec<DraftBuffer>,
    /// Where reported values went: root name to buffer.
    pub reports: BTreeMap<String, String>,
    /// Whether the device runs neighbours at once that do not depend on each other.
    pub at_once: bool,
}

/// Where a module's roots go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Reports are metrics, outputs are boundaries.
    Step,
    /// Reports are arena buffers that survive.
    Eval,
}

/// Which algorithms convolutions may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convolutions {
    /// Direct ones, in the tiles of a GPU.
    Tiled,
    /// Direct ones only, on the CPU.
    Direct,
    /// What is fastest on the CPU.
    Fastest,
}

/// How a plan computes products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Products {
    /// Which algorithms convolutions may use.
    pub convolutions: Convolutions,
    /// Whether columns of a product are reduced in its kernel.
    pub columns: bool,
    /// Of how many tensors of its size a product may make an operand as it reads it.
    pub made_of: usize,
}

/// What a program is for.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// Its module, from 1.
    pub module: usize,
    /// Where roots go.
    pub program: Program,
    /// How it may compute convolutions.
    pub convolutions: Convolutions,
}

/// Lowers one program of a module, items in the given order.
pub fn lower(g: &Graph, l: &Layouts, items: &Items, order: &[usize], purpose: Purpose, names: &mut Names) -> Draft {
    let Purpose { module: k, program, convolutions } = purpose;
    let mut lowering = Lowering {
        g,
        l,

        k,
        program,
        convolutions,
        names,
        draft: Draft { at_once: convolutions == Convolutions::Tiled, ..Draft::default() },
        buffers: BTreeMap::new(),
        used_ids: BTreeSet::new(),
        readers: readers(g, l, items),
        copied_roots: copied_roots(g, l),
    };
    lowering.reports();
    for &i in order {
        match items.items[i].as_ref().expect("invariant: ordered items are present") {
            Item::Region(r) => lowering.region(i, r),
            Item::Kernel(id, besides) => lowering.kernel(*id, i, besides),
            Item::Attention(a) => lowering.attention(i, a),
            Item::Copy(c) => lowering.copy(*c),
            Item::Export(root) => lowering.export(*root),
        }
    }
    bits::pack_flags(&mut lowering.draft);
    lowering.draft
}

/// Items that read each owner's memory.
fn readers(g: &Graph, l: &Layouts, items: &Items) -> BTreeMap<Owner, BTreeSet<usize>> {
    let mut out: BTreeMap<Owner, BTreeSet<usize>> = BTreeMap::new();
    for i in 0..items.items.len() {
        for owner in items.owners_read(g, l, i) {
            out.entry(owner).or_default().insert(i);
        }
    }
    out
}

fn copied_roots(g: &Graph, l: &Layouts) -> BTreeMap<usize, Vec<usize>> {
    let mut out: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, r) in g.roots.iter().enumerate() {
        if let Some(Owner::Copy(c)) = l.memory(r.value).map(|m| m.owner) {
            out.entry(c).or_default().push(i);
        }
    }
    out
}

struct Lowering<'a> {
    g: &'a Graph,
    l: &'a Layouts,
    k: usize,
    program: Program,
    convolutions: Convolutions,
    names: &'a mut Names,
    draft: Draft,
    /// Buffer of every owner met so far.
    buffers: BTreeMap<Owner, String>,
    used_ids: BTreeSet<String>,
    readers: BTreeMap<Owner, BTreeSet<usize>>,
    /// By copy, the roots whose value lies in it.
    copied_roots: BTreeMap<usize, Vec<usize>>,
}

impl Lowering<'_> {
    /// Names the buffers of reported values.
    fn reports(&mut self) {
        for (i, r) in self.g.roots.iter().enumerate() {
            if let RootKind::Report(name) = &r.kind {
                let id = self.root_buffer(i);
                self.draft.reports.insert(name.clone(), id);
            }
        }
    }

    /// The buffer a root's value ends in.
    fn root_buffer(&mut self, root: usize) -> String {
        let r = &self.g.roots[root];
        match (&r.kind, self.program) {
            (RootKind::Output(_), _) => Names::boundary(self.k, 0),
            (RootKind::Boundary(i), _) => Names::boundary(self.k, *i),
            (RootKind::OutputGradient(i), _) => Names::boundary_gradient(self.k, *i),
            (RootKind::Update(v), _) => self.names.variable(&self.g.variables[v.index()].name),
            (RootKind::Report(name), Program::Step) => Names::metric(self.k, name),
            (RootKind::Report(name), Program::Eval) => {
                let id = format!("m{}.eval/{name}", self.k);
                if self.used_ids.insert(id.clone()) {
                    let ty = self.g.ty(r.value);
                    let order = self.l.required_order(self.g, r.value).unwrap_or_default();
                    self.draft.buffers.push(DraftBuffer {
                        id: id.clone(),
                        dtype: ty.dtype,
                        shape: ty.shape.clone(),
                        order,
                        keep: true,
                    });
                }
                id
            }
        }
    }

    /// Roots whose value lands in place when `id` is computed.
    fn roots_of(&self, id: NodeId) -> Vec<usize> {
        self.l.roots[id.index()].iter().copied().filter(|&r| lands_in_place(self.g, self.l, r)).collect()
    }

    /// The buffer of an owner: a leaf's own, a root's where the value lands there, or a new one in the arena.
    fn buffer(&mut self, owner: Owner) -> String {
        if let Some(id) = self.buffers.get(&owner) {
            return id.clone();
        }
        let id = self.new_buffer(owner);
        self.buffers.insert(owner, id.clone());
        id
    }

    fn new_buffer(&mut self, owner: Owner) -> String {
        let (node, shape, strides) = match owner {
            Owner::Copy(c) => {
                let lands = |r: &usize| lands_in_place(self.g, self.l, *r);
                if let Some(root) = self.copied_roots.get(&c).into_iter().flatten().copied().find(lands) {
                    return self.root_buffer(root);
                }
                let copy = &self.l.copies[c];
                (copy.of, copy.shape.clone(), copy.to.clone())
            }
            Owner::Node(node) => {
                if let Some(whole) = self.l.whole(node) {
                    return self.buffer(Owner::Node(whole));
                }
                if let Some(id) = self.leaf_buffer(node) {
                    return id;
                }
                // Readers may use a boundary or a report directly, but never a variable: it still holds its old value.
                let direct =
                    self.roots_of(node).into_iter().find(|&r| !matches!(self.g.roots[r].kind, RootKind::Update(_)));
                if let Some(root) = direct {
                    return self.root_buffer(root);
                }
                let layout = self.l.memory(node).expect("invariant: owners are in memory");
                (node, self.g.shape(node).to_vec(), layout.strides.clone())
            }
        };
        let mut order: Vec<usize> = (0..shape.len()).collect();
        order.sort_by_key(|&d| std::cmp::Reverse(if shape[d] == 1 { 0 } else { strides[d] }));
        let id = self.arena_id(node, owner);
        let dtype = self.g.ty(node).dtype;
        self.draft.buffers.push(DraftBuffer { id: id.clone(), dtype, shape, order, keep: false });
        id
    }

    fn leaf_buffer(&mut self, node: NodeId) -> Option<String> {
        match &self.g.node(node).op {
            Op::Input(i) => Some(Names::input(&self.g.inputs[i.index()], self.k)),
            Op::Variable(v) => Some(self.names.variable(&self.g.variables[v.index()].name)),
            Op::Constant(c) => Some(self.names.constant(&self.g.constants[c.index()])),
            Op::StepScalar(s) => Some(self.names.scalar(&self.g.scalars[s.index()])),
            _ => None,
        }
    }

    /// A readable, unique id: module, ONNX node, what it is.
    fn arena_id(&mut self, node: NodeId, owner: Owner) -> String {
        let n = self.g.node(node);
        let origin = match self.g.origin(node) {
            "" => n.phase.name(),
            name => name.trim_start_matches('/'),
        };
        let what = match owner {
            Owner::Copy(_) => "copy",
            Owner::Node(_) => short_name(&n.op),
        };
        let part = match (n.phase, n.phase.name()) {
            (Phase::Forward, _) => String::new(),
            (_, name) if name == origin => String::new(),
            (_, name) => format!("{name}."),
        };
        let program = if self.program == Program::Eval { ".eval" } else { "" };
        let base = slrc_plan::view::buffer_id_from(&format!("m{}{program}/{origin}:{part}{what}", self.k));
        let mut id = base.clone();
        let mut i = 1;
        while !self.used_ids.insert(id.clone()) {
            i += 1;
            id = format!("{base}~{i}");
        }
        id
    }

    /// A view of a layout over all its logical dimensions.
    fn view(&mut self, layout: &Layout) -> View {
        View { buffer: self.buffer(layout.owner), offset: layout.offset, strides: layout.strides.clone() }
    }

    /// Appends a kernel that does the work of `nodes`.
    fn push(&mut self, nodes: &[NodeId], flops: u64, run: KernelOp) {
        let first = self.g.node(nodes[0]);
        let mut origins: Vec<String> = Vec::new();
        for &n in nodes {
            let name = self.g.origin(n);
            if !name.is_empty() && !origins.iter().any(|o| o == name) {
                origins.push(name.to_string());
            }
        }
        let id = format!("k{}", self.draft.kernels.len());
        self.draft.kernels.push(Kernel { id, phase: first.phase, nodes: origins, flops, run });
    }
}

/// What a node's result is called in buffer ids.
fn short_name(op: &Op) -> &'static str {
    match op {
        Op::Conv(_) => "conv",
        Op::ConvInputGrad(_) => "dx",
        Op::ConvWeightGrad(_) => "dw",
        Op::MatMul(_) => "matmul",
        Op::Map(_) => "map",
        Op::Reduce(r) => r.combine.name(),
        Op::WindowMaxIndex(_) => "winner",
        Op::WindowSelect(_) | Op::WindowSum(_) => "pool",
        Op::WindowUnselect(_) | Op::WindowSpread(_) => "unpool",
        Op::Splat(_) => "fill",
        other => other.rule().name(),
    }
}
