//! Programs: every kernel touches only what its module may, when it is live, as the kernel's family needs it.

use std::collections::BTreeMap;

use crate::bits::{may_read, may_write};
use crate::buffer::{Buffer, DType, Space};
use crate::kernel::{Access, Kernel};
use crate::operand::Role;
use crate::plan::{BoundaryDecl, ModulePlan, Plan, Program};
use crate::validate::kernels::{check_kernel, check_types};
use crate::validate::launches::check_launches;
use crate::validate::memory::check_arena;
use crate::validate::{InvalidPlan, Table, fail};

pub(super) fn check_program(
    plan: &Plan,
    m: &ModulePlan,
    p: &Program,
    table: &Table,
    place: &str,
) -> Result<(), InvalidPlan> {
    let own: BTreeMap<&str, &Buffer> = p.buffers.iter().map(|b| (b.id.as_str(), b)).collect();
    for b in &p.buffers {
        if b.space != Space::Arena || b.live.is_none_or(|l| l.last >= p.kernels.len()) {
            return fail(place, format!("buffer {} is no arena buffer of this program", b.id));
        }
    }
    let cuda = plan.settings.target.starts_with("cuda");
    let mut ids: Vec<&str> = p.kernels.iter().map(|k| k.id.as_str()).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return fail(place, format!("two kernels are called {}", pair[0]));
    }
    for (i, k) in p.kernels.iter().enumerate() {
        let at = || format!("{place} kernel {}", k.id);
        let named = |reason: String| InvalidPlan { place: at(), reason };
        check_kernel(k).map_err(named)?;
        check_operands(k, table, cuda).map_err(named)?;
        for o in k.run.operands() {
            let b = table[o.view.buffer.as_str()];
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
    if cuda == p.launches.is_empty() && !p.kernels.is_empty() {
        return fail(place, format!("target {} with {} launches", plan.settings.target, p.launches.len()));
    }
    check_launches(p, table, place)?;
    let handed = plan.handed(m.index, p);
    for (b, live) in handed.iter().filter(|(b, _)| is(boundary(plan, m.index), b)) {
        let k = &p.kernels[live.first];
        if k.run.operands().iter().any(|o| o.access == Access::Read && o.view.buffer == b.id) {
            return fail(format!("{place} kernel {}", k.id), format!("buffer {} is read before it is written", b.id));
        }
    }
    check_arena(p, &handed, place)
}

/// Operands lie in their buffers and are of the types and the density that the family works on; what a kernel writes it
/// writes once, and reads only where it is about to write it.
fn check_operands(k: &Kernel, table: &Table, gpu: bool) -> Result<(), String> {
    let operands = k.run.operands();
    for o in &operands {
        let v = o.view;
        let Some(b) = table.get(v.buffer.as_str()) else { return Err(format!("buffer {} does not exist", v.buffer)) };
        if v.strides.len() != o.space.len() {
            return Err(format!("view {v} does not have {} dimensions", o.space.len()));
        }
        if v.end(&o.space).is_none_or(|end| end > b.count()) {
            return Err(format!("view {v} leaves its buffer of {} elements", b.count()));
        }
        if !o.dtypes.contains(&b.dtype) {
            let want: Vec<&str> = o.dtypes.iter().map(|d| d.name()).collect();
            return Err(format!("view {v} is of {}, not {}", b.dtype, want.join(" or ")));
        }
        let as_bits = match o.access {
            Access::Read => may_read(o.role, v),
            Access::Write => may_write(&k.run, v, gpu),
        };
        if b.dtype == DType::Bit && (b.space != Space::Arena || !as_bits) {
            return Err(format!("view {v} is of bits, which cannot be used so"));
        }
        if o.dense && !v.is_dense(&o.space) {
            return Err(format!("view {v} is not dense"));
        }
    }
    check_types(k, |id| table[id].dtype)?;
    for (i, w) in operands.iter().enumerate().filter(|(_, o)| o.access == Access::Write) {
        // What a region stores may be constant along reduced dimensions, which `check_types` allows for.
        if w.role == Role::Own && !w.view.names_each_once(&w.space) {
            return Err(format!("view {} names an element twice", w.view));
        }
        for (j, other) in operands.iter().enumerate() {
            let apart = || w.view.is_apart(&w.space, other.view, &other.space);
            if i == j || other.view.buffer != w.view.buffer || apart() {
                continue;
            }
            let of_one_work = matches!((w.role, other.role), (Role::Store(a), Role::Load(b)) if a == b);
            let in_step = of_one_work && w.walks_with(other.view);
            if !in_step {
                return Err(format!("view {} is written while {} is used", w.view, other.view));
            }
        }
    }
    Ok(())
}

/// What module `k` hands on.
fn boundary(plan: &Plan, k: usize) -> Option<&BoundaryDecl> {
    (k >= 1).then(|| plan.boundaries.get(k - 1)).flatten()
}

fn is(d: Option<&BoundaryDecl>, b: &Buffer) -> bool {
    d.is_some_and(|d| d.holds(&b.id))
}

/// Whether a module may touch a buffer that is not its program's own, and how.
fn permitted(plan: &Plan, m: &ModulePlan, b: &Buffer, access: Access) -> bool {
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
        Space::Arena => {
            is(boundary(plan, m.index), b) || (access == Access::Read && is(boundary(plan, m.index - 1), b))
        }
    }
}
