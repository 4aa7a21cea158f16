//! Fused regions as `map`, `row` and `reduce` kernels.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::kernel::KernelOp;
use slrc_plan::region::{Load, Region as PlanRegion, Split, Store};
use slrc_plan::statement::{Arg, Statement, StatementOp};
use slrc_plan::{Dims, View};

use crate::fuse::expression::{Leaf, Map, Step, step};
use crate::fuse::regions::{Sink, operand_map};
use crate::fuse::{Owner, Region};
use crate::ir::graph::NodeId;
use crate::ir::op::Op;
use crate::ir::ops::map::Map as Elementwise;
use crate::lower::{DraftBuffer, Lowering};

/// A reduction over fewer elements than this is not split.
const SPLIT_ELEMENTS: usize = 1 << 15;
/// Most groups of a split.
const MAX_SPLIT: usize = 16;

struct Body<'a, 'b> {
    low: &'a mut Lowering<'b>,
    region: &'a Region,
    /// Products it finds, by the names `score0`, `score1` and so on.
    products: &'a [(NodeId, Map)],
    loads: Vec<(Leaf, String)>,
    statements: Vec<Statement>,
    values: BTreeMap<(NodeId, Map), Arg>,
    sinks: BTreeMap<NodeId, Arg>,
}

impl Body<'_, '_> {
    fn value(&mut self, id: NodeId, map: &Map) -> Arg {
        if let Some(v) = self.values.get(&(id, map.clone())) {
            return v.clone();
        }
        let v = match step(self.low.g, self.low.l, id, map, self.region.space.len()) {
            Step::Number(x) => Arg::Number(x as f32),
            Step::Leaf(leaf) => match leaf.owner {
                Owner::Node(n) if self.sinks.contains_key(&n) => self.sinks[&n].clone(),
                _ => self.load(leaf),
            },
            Step::Score => {
                let at = self.products.iter().position(|(n, m)| *n == id && m == map);
                Arg::Value(format!("score{}", at.expect("invariant: a pass knows its products")))
            }
            Step::Through(inner, map) => self.value(inner, &map),
            Step::Apply => self.apply(id, map),
        };
        self.values.insert((id, map.clone()), v.clone());
        v
    }

    fn load(&mut self, leaf: Leaf) -> Arg {
        if let Some((_, name)) = self.loads.iter().find(|(l, _)| *l == leaf) {
            return Arg::Value(name.clone());
        }
        let name = format!("x{}", self.loads.len());
        self.loads.push((leaf, name.clone()));
        Arg::Value(name)
    }

    fn apply(&mut self, id: NodeId, map: &Map) -> Arg {
        let n = self.low.g.node(id);
        let op = match &n.op {
            Op::Map(Elementwise(f)) => StatementOp::Scalar(*f),
            Op::Reduce(r) => StatementOp::Reduce(r.combine),
            op => unreachable!("invariant: {op} is not part of a region"),
        };
        let operands = n.operands.clone();
        let args: Vec<Arg> = operands.iter().map(|&o| self.value(o, map)).collect();
        let name = format!("v{}", self.statements.len());
        self.statements.push(Statement { name: name.clone(), op, args });
        Arg::Value(name)
    }
}

/// The dimensions of a region's loops, outermost first: its item dimensions, those along which neighbours share an
/// element parted into which of the shared ones and which of the neighbours.
struct Parts(Vec<Part>);

struct Part {
    /// The item dimension.
    dim: usize,
    extent: usize,
    /// Elements of the item dimension that a step goes over.
    step: usize,
}

impl Parts {
    fn of<'l>(region: &Region, leaves: impl Iterator<Item = &'l Leaf> + Clone) -> Parts {
        let mut parts = Vec::new();
        for &dim in &region.order {
            // From the whole dimension down to single elements; each divides the one before.
            let steps: BTreeSet<usize> = leaves.clone().map(|x| x.repeats[dim]).chain([1]).collect();
            let mut whole = region.space[dim];
            for &step in steps.iter().rev() {
                debug_assert!(whole.is_multiple_of(step), "repeats of one extent divide each other");
                parts.push(Part { dim, extent: whole / step, step });
                whole = step;
            }
        }
        Parts(parts)
    }

    fn strides(&self, leaf: &Leaf) -> Vec<usize> {
        // Within what neighbours share nothing is stepped.
        self.0.iter().map(|p| leaf.strides[p.dim] * (p.step / leaf.repeats[p.dim])).collect()
    }
}

impl Lowering<'_> {
    pub(super) fn region(&mut self, item: usize, region: &Region) {
        let mut plan = self.plan_region(item, region);
        let nodes: Vec<NodeId> = region.sinks.iter().map(|s| s.node).collect();
        let elements: usize = plan.space.iter().product();
        let flops = (elements * plan.body.len()) as u64;
        let run = if plan.reduce.is_empty() {
            KernelOp::Map(plan)
        } else if region.is_row() {
            KernelOp::Row(plan)
        } else {
            self.split(&mut plan, nodes[0]);
            KernelOp::Reduce(plan)
        };
        self.push(&nodes, flops, run);
    }

    /// A region's work over named buffers, dimensions joined; not split.
    pub(super) fn plan_region(&mut self, item: usize, region: &Region) -> PlanRegion {
        let (mut plan, _) = self.region_with(item, region, &[], &[], &BTreeSet::new());
        collapse(&mut plan);
        plan
    }

    /// What values are computed from and how, over a region's dimensions; of the region itself, nothing.
    pub(super) fn values_with(
        &mut self,
        region: &Region,
        values: &[(NodeId, Map)],
    ) -> (Vec<(Leaf, String)>, Vec<Statement>, Vec<Arg>) {
        let mut body = Body {
            low: self,
            region,
            products: &[],
            loads: Vec::new(),
            statements: Vec::new(),
            values: BTreeMap::new(),
            sinks: BTreeMap::new(),
        };
        let found = values.iter().map(|(id, map)| body.value(*id, map)).collect();
        (body.loads, body.statements, found)
    }

    /// A region's work over named buffers, dimensions as they are, in which `values` are computed too; and what those
    /// are. What the values of the numbers `again` are computed from is stored where it is the same along rows, for
    /// whoever computes them again column by column.
    pub(super) fn region_with(
        &mut self,
        item: usize,
        region: &Region,
        products: &[(NodeId, Map)],
        values: &[(NodeId, Map)],
        again: &BTreeSet<usize>,
    ) -> (PlanRegion, Vec<Arg>) {
        let (g, l) = (self.g, self.l);
        let mut body = Body {
            low: self,
            region,
            products,
            loads: Vec::new(),
            statements: Vec::new(),
            values: BTreeMap::new(),
            sinks: BTreeMap::new(),
        };
        for sink in &region.sinks {
            let operands = operand_map(g, sink, region);
            let v = body.apply(sink.node, &operands);
            body.sinks.insert(sink.node, v);
        }
        let found: Vec<Arg> = values.iter().map(|(id, map)| body.value(*id, map)).collect();
        let Body { loads, statements, sinks, .. } = body;
        let names = |i: &usize| if let Arg::Value(v) = &found[*i] { Some(v.clone()) } else { None };
        let needed_again = reached(&statements, again.iter().filter_map(names).collect(), &sinks);
        let parts = Parts::of(region, loads.iter().map(|(leaf, _)| leaf));
        let mut plan = PlanRegion {
            space: Dims(parts.0.iter().map(|p| p.extent).collect()),
            reduce: (0..parts.0.len()).filter(|&i| region.axes.contains(&parts.0[i].dim)).collect(),
            loads: Vec::new(),
            body: statements,
            stores: Vec::new(),
            split: None,
        };
        for (leaf, name) in loads {
            let strides = parts.strides(&leaf);
            plan.loads
                .push(Load { name, view: View { buffer: self.buffer(leaf.owner), offset: leaf.offset, strides } });
        }
        for Sink { node: sink, map, .. } in &region.sinks {
            let Arg::Value(value) = &sinks[sink] else { unreachable!("invariant: sinks are statements") };
            let layout = l.memory(*sink).expect("invariant: sinks are stored");
            let strides = parts.strides(&Leaf::along(layout, None, map, region.space.len()));
            let mut targets: Vec<String> = Vec::new();
            let read_elsewhere = self.readers.get(&Owner::Node(*sink)).is_some_and(|r| r.iter().any(|&i| i != item));
            for root in self.roots_of(*sink) {
                targets.push(self.root_buffer(root));
            }
            if read_elsewhere || needed_again.contains(value) {
                let own = self.buffer(Owner::Node(*sink));
                if !targets.contains(&own) {
                    targets.push(own);
                }
            }
            for buffer in targets {
                let view = View { buffer, offset: layout.offset, strides: strides.clone() };
                plan.stores.push(Store { view, value: value.clone() });
            }
        }
        prune(&mut plan, (0..found.len()).filter_map(|i| names(&i)));
        (plan, found)
    }

    /// Splits the outermost reduced dimension where too few kept elements lie outside it to work on at once.
    fn split(&mut self, plan: &mut PlanRegion, node: NodeId) {
        let elements: usize = plan.space.iter().product();
        let first = plan.reduce[0];
        let outside: usize = plan.space[..first].iter().product();
        if elements < SPLIT_ELEMENTS || outside >= MAX_SPLIT / 2 {
            return;
        }
        let count = MAX_SPLIT.min(plan.space[first]).min(elements / (SPLIT_ELEMENTS / 4));
        if count < 2 {
            return;
        }
        self.cut(plan, node, count);
    }

    /// Cuts what a region reduces into groups, whose results lie in memory of their own.
    pub(super) fn cut(&mut self, plan: &mut PlanRegion, node: NodeId, count: usize) {
        let (reductions, kept) = (plan.reductions(), plan.kept_count());
        let id = self.workspace(node, count * reductions * kept);
        plan.split = Some(Split { count, partials: View::new(id, vec![reductions * kept, kept, 1]) });
    }

    /// Arena memory used only while one kernel runs.
    pub(super) fn workspace(&mut self, node: NodeId, count: usize) -> String {
        let base = self.arena_id(node, Owner::Node(node));
        let id = format!("{base}.partials");
        self.draft.buffers.push(DraftBuffer {
            id: id.clone(),
            dtype: slrc_plan::DType::F32,
            shape: vec![count],
            order: vec![0],
            keep: false,
        });
        id
    }
}

/// Values of sinks that `values` are computed from, without looking past them.
fn reached(body: &[Statement], values: Vec<String>, sinks: &BTreeMap<NodeId, Arg>) -> BTreeSet<String> {
    let stop: BTreeSet<&String> =
        sinks.values().filter_map(|a| if let Arg::Value(v) = a { Some(v) } else { None }).collect();
    let mut out = BTreeSet::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut open = values;
    while let Some(v) = open.pop() {
        if stop.contains(&v) {
            out.insert(v);
        } else if let Some(s) = body.iter().find(|s| s.name == v)
            && seen.insert(v)
        {
            open.extend(s.args.iter().filter_map(|a| if let Arg::Value(v) = a { Some(v.clone()) } else { None }));
        }
    }
    out
}

/// Drops statements and loads that neither a store nor one of `values` needs.
fn prune(r: &mut PlanRegion, values: impl Iterator<Item = String>) {
    let mut needed: BTreeSet<String> = r.stores.iter().map(|s| s.value.clone()).chain(values).collect();
    for s in r.body.iter().rev() {
        if needed.contains(&s.name) {
            for a in &s.args {
                if let Arg::Value(v) = a {
                    needed.insert(v.clone());
                }
            }
        }
    }
    r.body.retain(|s| needed.contains(&s.name));
    r.loads.retain(|l| needed.contains(&l.name));
}

/// Joins neighbouring dimensions that every view walks as one, and drops extents of 1.
pub(super) fn collapse(r: &mut PlanRegion) {
    let mut d = 0;
    while d + 1 < r.space.len() {
        let (outer, inner) = (r.space.0[d], r.space.0[d + 1]);
        let same_kind = r.reduce.contains(&d) == r.reduce.contains(&(d + 1));
        let views = || r.loads.iter().map(|l| &l.view).chain(r.stores.iter().map(|s| &s.view));
        let joins = |v: &View| v.strides[d] == v.strides[d + 1] * inner;
        if same_kind && views().all(joins) {
            r.space.0[d] = outer * inner;
            r.space.0.remove(d + 1);
            for v in r.loads.iter_mut().map(|l| &mut l.view).chain(r.stores.iter_mut().map(|s| &mut s.view)) {
                v.strides.remove(d);
            }
            let gone = d + 1;
            r.reduce.retain(|&x| x != gone);
            r.reduce.iter_mut().filter(|x| **x > gone).for_each(|x| *x -= 1);
        } else {
            d += 1;
        }
    }
}
