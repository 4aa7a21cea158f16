//! Proves a plan sound before anything runs: every name resolves, every view stays inside its buffer, live
//! buffers do not overlap, and no module touches another module's memory.

use std::collections::BTreeMap;

use crate::buffer::{ALIGNMENT, Buffer, DType, Space};
use crate::kernel::{Access, Conv, ConvDirection, Kernel, KernelOp, WindowGeometry, WindowOp};
use crate::launch::LaunchArg;
use crate::plan::{FORMAT, ModulePlan, Plan, Program};
use crate::region::{Level, Region};
use crate::statement::{Arg, StatementOp};

/// A plan is malformed. This is either a damaged file or a bug in the compiler that wrote it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {reason}")]
pub struct InvalidPlan {
    /// Module, program and kernel, or the section of the plan.
    pub place: String,
    /// What does not hold.
    pub reason: String,
}

fn fail<T>(place: impl Into<String>, reason: impl Into<String>) -> Result<T, InvalidPlan> {
    Err(InvalidPlan { place: place.into(), reason: reason.into() })
}

type Table<'a> = BTreeMap<&'a str, &'a Buffer>;

/// Checks a whole plan.
pub fn validate(plan: &Plan) -> Result<(), InvalidPlan> {
    if plan.format != FORMAT {
        return fail("format", format!("this slrc reads {FORMAT}, the plan says {}", plan.format));
    }
    let mut table = Table::new();
    for b in plan.all_buffers() {
        check_buffer(b, plan.memory.of(b.space))?;
        if table.insert(&b.id, b).is_some() {
            return fail(format!("buffer {}", b.id), "defined twice");
        }
    }
    check_disjoint(&plan.buffers)?;
    check_references(plan, &table)?;
    for (i, m) in plan.modules.iter().enumerate() {
        if m.index != i + 1 {
            return fail(format!("module {}", m.index), format!("stands at place {}", i + 1));
        }
        check_module(plan, m, &table)?;
    }
    Ok(())
}

fn check_buffer(b: &Buffer, space_bytes: usize) -> Result<(), InvalidPlan> {
    let place = || format!("buffer {}", b.id);
    let count = b.shape.count().ok_or(InvalidPlan { place: place(), reason: "its extents overflow".into() })?;
    if count.checked_mul(b.dtype.size()) != Some(b.bytes) {
        return fail(place(), format!("{} bytes do not hold {}[{}]", b.bytes, b.dtype, b.shape));
    }
    if b.offset % ALIGNMENT != 0 {
        return fail(place(), format!("offset {} is not a multiple of {ALIGNMENT}", b.offset));
    }
    if b.offset.checked_add(b.bytes).is_none_or(|end| end > space_bytes) {
        return fail(place(), format!("ends outside its space of {space_bytes} bytes"));
    }
    if let Some(order) = &b.order {
        let mut sorted = order.0.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..b.shape.len()) {
            return fail(place(), format!("order {order} is not a permutation of its dimensions"));
        }
    }
    if (b.space == Space::Arena) != b.live.is_some() {
        return fail(place(), "arena buffers, and only they, have a live range");
    }
    Ok(())
}

/// Buffers outside the arenas live for the whole run; only the two boundary slots are shared, by alternate boundaries.
fn check_disjoint(buffers: &[Buffer]) -> Result<(), InvalidPlan> {
    let mut sorted: Vec<&Buffer> = buffers.iter().filter(|b| b.bytes > 0 && b.space != Space::Boundary).collect();
    sorted.sort_by_key(|b| (b.space, b.offset));
    for pair in sorted.windows(2) {
        if pair[0].space == pair[1].space && pair[0].offset + pair[0].bytes > pair[1].offset {
            return fail(format!("buffer {}", pair[1].id), format!("overlaps {}", pair[0].id));
        }
    }
    Ok(())
}

fn check_references(plan: &Plan, table: &Table) -> Result<(), InvalidPlan> {
    let expect = |place: &str, id: &str, space: Space, dtype: Option<DType>| match table.get(id) {
        None => fail(place, format!("buffer {id} does not exist")),
        Some(b) if b.space != space => fail(place, format!("buffer {id} is not in the {space:?} space")),
        Some(b) if dtype.is_some_and(|d| d != b.dtype) => fail(place, format!("buffer {id} has dtype {}", b.dtype)),
        Some(_) => Ok(()),
    };
    for i in &plan.inputs {
        expect("inputs", &i.buffer, Space::Input, None)?;
    }
    expect("labels", &plan.labels.buffer, Space::Input, Some(DType::I32))?;
    for s in &plan.scalars {
        expect("scalars", &s.buffer, Space::Scalar, Some(DType::F32))?;
    }
    for p in &plan.parameters {
        expect("parameters", &p.buffer, Space::Parameter, None)?;
    }
    for o in &plan.optimizer_state {
        expect("optimizer_state", &o.buffer, Space::Optimizer, Some(DType::F32))?;
    }
    for c in &plan.constants {
        expect("constants", &c.buffer, Space::Constant, None)?;
    }
    for b in &plan.boundaries {
        expect("boundaries", &b.x, Space::Boundary, None)?;
        if let Some(e) = &b.e {
            expect("boundaries", e, Space::Boundary, Some(DType::F32))?;
        }
    }
    if plan.boundaries.len() + 1 != plan.modules.len() {
        return fail("boundaries", format!("{} for {} modules", plan.boundaries.len(), plan.modules.len()));
    }
    for pair in plan.boundaries.windows(2) {
        for a in std::iter::once(&pair[0].x).chain(&pair[0].e) {
            for b in std::iter::once(&pair[1].x).chain(&pair[1].e) {
                if overlap(table[a.as_str()], table[b.as_str()]) {
                    return fail("boundaries", format!("{a} and {b} are needed together but overlap"));
                }
            }
        }
    }
    for b in &plan.boundaries {
        if b.e.as_ref().is_some_and(|e| overlap(table[b.x.as_str()], table[e.as_str()])) {
            return fail("boundaries", format!("x and e of boundary {} overlap", b.index));
        }
    }
    Ok(())
}

fn overlap(a: &Buffer, b: &Buffer) -> bool {
    a.bytes > 0 && b.bytes > 0 && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
}

fn check_module(plan: &Plan, m: &ModulePlan, table: &Table) -> Result<(), InvalidPlan> {
    for (name, program) in [("step", &m.step), ("eval", &m.eval)] {
        let place = format!("module {} {name}", m.index);
        check_program(plan, m, program, table, &place)?;
        let arena = if name == "step" { plan.memory.arena } else { plan.memory.eval_arena };
        if program.arena_bytes > arena {
            return fail(place, format!("needs {} bytes of an arena of {arena}", program.arena_bytes));
        }
    }
    let own = |id: &String, space: Space| match table.get(id.as_str()) {
        Some(b) if b.space == space && b.dtype == DType::F32 => Ok(()),
        _ => fail(format!("module {}", m.index), format!("{id} is not an f32 buffer of the {space:?} space")),
    };
    own(&m.metrics.loss, Space::Metric)?;
    own(&m.metrics.accuracy, Space::Metric)?;
    if let Some(b) = &m.metrics.boundary {
        own(&b.discord, Space::Metric)?;
        own(&b.cosine, Space::Metric)?;
        own(&b.ratio, Space::Metric)?;
    }
    for id in [&m.eval_outputs.logits, &m.eval_outputs.loss, &m.eval_outputs.correct] {
        own(id, Space::Arena)?;
        let b = table[id.as_str()];
        if !m.eval.buffers.iter().any(|x| x.id == b.id) || b.live.map(|l| l.last + 1) != Some(m.eval.kernels.len()) {
            return fail(format!("module {}", m.index), format!("{id} is not live at the end of its eval program"));
        }
    }
    Ok(())
}

/// Whether a module may touch a buffer outside its own arena, and how.
fn permitted(plan: &Plan, m: &ModulePlan, b: &Buffer, access: Access) -> bool {
    let boundary = |k: usize| (k >= 1).then(|| plan.boundaries.get(k - 1)).flatten();
    let is = |d: Option<&crate::plan::BoundaryDecl>| d.is_some_and(|d| d.x == b.id || d.e.as_ref() == Some(&b.id));
    match b.space {
        Space::Parameter => plan.parameters.iter().any(|p| p.buffer == b.id && p.module == m.index),
        Space::Optimizer => plan.optimizer_state.iter().any(|o| o.buffer == b.id && o.module == m.index),
        Space::Constant | Space::Input | Space::Scalar => access == Access::Read,
        Space::Metric => {
            let bm = m.metrics.boundary.as_ref();
            b.id == m.metrics.loss
                || b.id == m.metrics.accuracy
                || bm.is_some_and(|x| [&x.discord, &x.cosine, &x.ratio].contains(&&b.id))
        }
        Space::Boundary => is(boundary(m.index)) || (access == Access::Read && is(boundary(m.index - 1))),
        Space::Arena => false,
    }
}

fn check_program(plan: &Plan, m: &ModulePlan, p: &Program, table: &Table, place: &str) -> Result<(), InvalidPlan> {
    let own: BTreeMap<&str, &Buffer> = p.buffers.iter().map(|b| (b.id.as_str(), b)).collect();
    for b in &p.buffers {
        if b.space != Space::Arena || b.live.is_none_or(|l| l.last >= p.kernels.len()) {
            return fail(place, format!("buffer {} is no arena buffer of this program", b.id));
        }
        if b.offset + b.bytes > p.arena_bytes {
            return fail(place, format!("buffer {} ends outside the arena", b.id));
        }
    }
    for (i, k) in p.kernels.iter().enumerate() {
        let at = || format!("{place} kernel {}", k.id);
        check_shape(k, table).map_err(|reason| InvalidPlan { place: at(), reason })?;
        for o in k.run.operands() {
            let Some(b) = table.get(o.view.buffer.as_str()) else {
                return fail(at(), format!("buffer {} does not exist", o.view.buffer));
            };
            if o.view.strides.len() != o.space.len() {
                return fail(at(), format!("view {} does not have {} dimensions", o.view, o.space.len()));
            }
            if o.view.end(&o.space).is_none_or(|end| end > b.count()) {
                return fail(at(), format!("view {} leaves its buffer of {} elements", o.view, b.count()));
            }
            match own.get(b.id.as_str()) {
                Some(b) => {
                    let live = b.live.expect("checked above");
                    if i < live.first || i > live.last || (o.access == Access::Read && i == live.first) {
                        return fail(at(), format!("buffer {} is not live here", b.id));
                    }
                }
                None if permitted(plan, m, b, o.access) => {}
                None => return fail(at(), format!("isolation: module {} may not touch {}", m.index, b.id)),
            }
        }
    }
    let cuda = plan.settings.target.starts_with("cuda");
    if cuda == p.launches.is_empty() && !p.kernels.is_empty() {
        return fail(place, format!("target {} with {} launches", plan.settings.target, p.launches.len()));
    }
    check_launches(p, place)?;
    check_arena(p, place)
}

/// Most threads of a block.
pub const MAX_BLOCK: usize = 1024;
/// Most blocks along x, and along y and z.
pub const MAX_GRID: [usize; 3] = [0x7fff_ffff, 0xffff, 0xffff];
/// Dynamic shared memory a block may have on every device without asking for more.
pub const MAX_SHARED: usize = 48 << 10;

/// Launches do the kernels' work in order, touch nothing but the kernels' operands, and are within every device's limits.
fn check_launches(p: &Program, place: &str) -> Result<(), InvalidPlan> {
    let mut done: Vec<&str> = Vec::new();
    for (i, l) in p.launches.iter().enumerate() {
        let at = || format!("{place} launch {i} ({})", l.function);
        let grid_fits = l.grid.len() == 3 && l.grid.iter().zip(MAX_GRID).all(|(&n, most)| (1..=most).contains(&n));
        if !grid_fits || !(1..=MAX_BLOCK).contains(&l.block) || l.shared > MAX_SHARED {
            return fail(at(), format!("grid {}, block {} and {} bytes cannot be launched", l.grid, l.block, l.shared));
        }
        let mut allowed: Vec<&str> = Vec::new();
        for id in &l.kernels {
            let Some(k) = p.kernels.iter().find(|k| k.id == *id) else {
                return fail(at(), format!("kernel {id} does not exist"));
            };
            allowed.extend(k.run.operands().into_iter().map(|o| o.view.buffer.as_str()));
            if done.last() != Some(&id.as_str()) {
                done.push(id);
            }
        }
        for a in &l.args {
            if let LaunchArg::Buffer(id) = a
                && !allowed.contains(&id.as_str())
            {
                return fail(at(), format!("buffer {id} is no operand of its kernels"));
            }
        }
    }
    if !p.launches.is_empty() && !done.iter().copied().eq(p.kernels.iter().map(|k| k.id.as_str())) {
        return fail(place, "the launches do not do the kernels' work in order");
    }
    Ok(())
}

/// Two buffers may share bytes only if their live ranges do not meet, or meet in one elementwise kernel that reads the
/// old one and writes the new one at the very same places.
fn check_arena(p: &Program, place: &str) -> Result<(), InvalidPlan> {
    let mut sorted: Vec<&Buffer> = p.buffers.iter().filter(|b| b.bytes > 0).collect();
    sorted.sort_by_key(|b| (b.offset, b.id.as_str()));
    for (i, a) in sorted.iter().enumerate() {
        for b in &sorted[i + 1..] {
            if b.offset >= a.offset + a.bytes {
                break;
            }
            let (la, lb) = (a.live.expect("checked"), b.live.expect("checked"));
            if la.last < lb.first || lb.last < la.first {
                continue;
            }
            let (old, new, at) = if la.last == lb.first { (a, b, la.last) } else { (b, a, lb.last) };
            let meet = la.last == lb.first || lb.last == la.first;
            if !(meet && in_place(&p.kernels[at], old, new)) {
                return fail(place, format!("buffers {} and {} are live together and overlap", a.id, b.id));
            }
        }
    }
    Ok(())
}

/// Whether `kernel` may write `new` over `old`: both elementwise, same bytes, same walk.
pub fn in_place(kernel: &Kernel, old: &Buffer, new: &Buffer) -> bool {
    let (KernelOp::Map(r) | KernelOp::Row(r)) = &kernel.run else { return false };
    let stores: Vec<_> = r.stores.iter().filter(|s| s.view.buffer == new.id).collect();
    let loads: Vec<_> = r.loads.iter().filter(|l| l.view.buffer == old.id).collect();
    let dense = |v: &crate::View| r.space.iter().zip(&v.strides).all(|(&e, &s)| e == 1 || s != 0);
    old.dtype.size() == new.dtype.size()
        && old.offset == new.offset
        && old.bytes == new.bytes
        && stores.len() == 1
        && !loads.is_empty()
        && dense(&stores[0].view)
        && loads.iter().all(|l| l.view.offset == stores[0].view.offset && l.view.strides == stores[0].view.strides)
}

fn check_shape(k: &Kernel, table: &Table) -> Result<(), String> {
    let dtype = |view: &crate::View| table.get(view.buffer.as_str()).map(|b| b.dtype);
    match &k.run {
        KernelOp::Map(r) | KernelOp::Row(r) | KernelOp::Reduce(r) => check_region(&k.run, r),
        KernelOp::Conv(c) => check_conv(c),
        KernelOp::Window(w) => {
            check_geometry(&w.geometry)?;
            let needs_index = matches!(w.op, WindowOp::Select | WindowOp::Unselect);
            if needs_index != w.index.is_some() {
                return Err("an index operand is for select and unselect".into());
            }
            let index = if w.op == WindowOp::MaxIndex { Some(&w.small) } else { w.index.as_ref() };
            let taps = w.geometry.kernel[0] * w.geometry.kernel[1];
            match index.map(|v| dtype(v)) {
                Some(Some(DType::F32)) => Err("window positions must be integers".into()),
                Some(Some(DType::U8)) if taps > 256 => Err(format!("{taps} window positions do not fit in a byte")),
                _ => Ok(()),
            }
        }
        KernelOp::Gather(g) | KernelOp::ScatterAdd(g) => match dtype(&g.index) {
            Some(DType::I32) | None => Ok(()),
            Some(d) => Err(format!("indices are i32, not {d}")),
        },
        KernelOp::Copy(c) => {
            if dtype(&c.from) == dtype(&c.to) {
                Ok(())
            } else {
                Err("a copy keeps the dtype".into())
            }
        }
        KernelOp::Matmul(_) | KernelOp::Fill(_) | KernelOp::Random(_) => Ok(()),
    }
}

fn check_region(op: &KernelOp, r: &Region) -> Result<(), String> {
    for (i, &d) in r.reduce.iter().enumerate() {
        if d >= r.space.len() || (i > 0 && r.reduce[i - 1] >= d) {
            return Err("reduced dimensions must be ascending dimensions of the space".into());
        }
    }
    let rank = r.space.len();
    if r.loads.iter().map(|l| &l.view).chain(r.stores.iter().map(|s| &s.view)).any(|v| v.strides.len() != rank) {
        return Err(format!("every view needs {rank} strides"));
    }
    let levels = r.levels()?;
    for s in &r.stores {
        if levels[s.value.as_str()] == Level::Kept && r.reduce.iter().any(|&d| s.view.strides[d] != 0) {
            return Err(format!("{} is stored along a reduced dimension but does not vary there", s.value));
        }
    }
    match op {
        KernelOp::Map(_) if !r.reduce.is_empty() => Err("a map reduces nothing".into()),
        KernelOp::Row(_) if !r.reduces_rows() => Err("a row kernel reduces the innermost dimensions".into()),
        KernelOp::Reduce(_) => {
            if r.reductions() == 0 || r.reduce.is_empty() {
                return Err("a reduce kernel needs a reduction".into());
            }
            let mut after: Vec<&str> = Vec::new();
            for s in &r.body {
                let depends = s.args.iter().any(|a| matches!(a, Arg::Value(v) if after.contains(&v.as_str())));
                let reduces = matches!(s.op, StatementOp::Reduce(_));
                if depends && (reduces || levels[s.name.as_str()] == Level::Element) {
                    return Err(format!("`{s}` needs a second pass over the elements"));
                }
                if depends || reduces {
                    after.push(&s.name);
                }
            }
            if r.split.as_ref().is_some_and(|s| s.count < 2) {
                return Err("a split has at least two groups".into());
            }
            Ok(())
        }
        _ if r.split.is_some() => Err("only reduce kernels are split".into()),
        _ => Ok(()),
    }
}

fn check_geometry(g: &WindowGeometry) -> Result<(), String> {
    if [&g.input, &g.output, &g.kernel, &g.strides, &g.pads, &g.dilations].iter().any(|d| d.len() != 2) {
        return Err("windows have two spatial dimensions".into());
    }
    if g.strides.contains(&0) || g.dilations.contains(&0) || g.kernel.contains(&0) {
        return Err("kernel extents, strides and dilations are at least 1".into());
    }
    Ok(())
}

fn check_conv(c: &Conv) -> Result<(), String> {
    check_geometry(&c.geometry)?;
    if c.groups == 0 || c.in_channels % c.groups != 0 || c.out_channels % c.groups != 0 {
        return Err(format!("{} groups do not divide {} and {} channels", c.groups, c.in_channels, c.out_channels));
    }
    let depthwise = c.groups > 1 && c.groups == c.in_channels && c.groups == c.out_channels;
    let packs = c.direction == ConvDirection::InputGrad && !c.geometry.is_pointwise() && !depthwise;
    if packs != c.packed.is_some() {
        return Err("an input gradient whose windows are not single elements, and only it, packs its weights".into());
    }
    if c.split.is_some() && c.direction != ConvDirection::WeightGrad {
        return Err("only a weight gradient is split".into());
    }
    Ok(())
}
