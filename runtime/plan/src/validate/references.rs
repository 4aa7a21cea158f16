//! What the plan's sections name: buffers that exist, each with one purpose, in the form in which a runtime reads and
//! writes them as a whole.

use crate::buffer::{Buffer, DType, Space};
use crate::plan::{ModulePlan, Plan};
use crate::validate::{InvalidPlan, Table, fail};

/// Checks the sections outside the modules, and that no buffer serves two of them.
pub(super) fn check_references(plan: &Plan, table: &Table) -> Result<(), InvalidPlan> {
    let batch = plan.settings.batch;
    if batch == 0 {
        return fail("settings", "a batch has at least one sample");
    }
    if plan.settings.micro_batches == 0 || batch.checked_mul(plan.settings.micro_batches).is_none() {
        return fail("settings", format!("a step does not take {} micro-batches", plan.settings.micro_batches));
    }
    let mut purposes = Purposes { table, taken: std::collections::BTreeSet::new() };
    for i in &plan.inputs {
        let b = purposes.take("inputs", &i.buffer, Space::Input, &[DType::F32, DType::I32])?;
        check_batch("inputs", b, batch)?;
    }
    let labels = purposes.take("labels", &plan.labels.buffer, Space::Input, &[DType::I32])?;
    check_batch("labels", labels, batch)?;
    for s in &plan.scalars {
        let b = purposes.take("scalars", &s.buffer, Space::Scalar, &[DType::F32])?;
        check_number("scalars", b)?;
    }
    for p in &plan.parameters {
        purposes.take("parameters", &p.buffer, Space::Parameter, &[DType::F32])?;
    }
    for o in &plan.optimizer_state {
        purposes.take("optimizer_state", &o.buffer, Space::Optimizer, &[DType::F32])?;
    }
    for c in &plan.constants {
        purposes.take("constants", &c.buffer, Space::Constant, &[DType::F32, DType::I32, DType::U8])?;
    }
    for (i, b) in plan.boundaries.iter().enumerate() {
        if b.index != i + 1 {
            return fail("boundaries", format!("boundary {} stands at place {}", b.index, i + 1));
        }
        for id in b.buffers() {
            purposes.take("boundaries", id, Space::Arena, &[DType::F32])?;
        }
    }
    for m in &plan.modules {
        let place = format!("module {}", m.index);
        let boundary = m.metrics.boundary.iter().flat_map(|b| [&b.discord, &b.cosine, &b.ratio]);
        for id in [&m.metrics.loss, &m.metrics.accuracy].into_iter().chain(boundary) {
            let b = purposes.take(&place, id, Space::Metric, &[DType::F32])?;
            check_number(&place, b)?;
        }
    }
    if plan.boundaries.len() + 1 != plan.modules.len() {
        return fail("boundaries", format!("{} for {} modules", plan.boundaries.len(), plan.modules.len()));
    }
    Ok(())
}

/// Buffers that are spoken for.
struct Purposes<'a> {
    table: &'a Table<'a>,
    taken: std::collections::BTreeSet<&'a str>,
}

impl<'a> Purposes<'a> {
    /// The buffer of this id, for one purpose only.
    fn take(
        &mut self,
        place: &str,
        id: &str,
        space: Space,
        dtypes: &'static [DType],
    ) -> Result<&'a Buffer, InvalidPlan> {
        let Some((&id, &b)) = self.table.get_key_value(id) else {
            return fail(place, format!("buffer {id} does not exist"));
        };
        if b.space != space {
            return fail(place, format!("buffer {id} is not in the {space:?} space"));
        }
        if !dtypes.contains(&b.dtype) {
            return fail(place, format!("buffer {id} has dtype {}", b.dtype));
        }
        if !self.taken.insert(id) {
            return fail(place, format!("buffer {id} has another purpose already"));
        }
        Ok(b)
    }
}

/// Samples are copied into the buffer one after the other.
fn check_batch(place: &str, b: &Buffer, batch: usize) -> Result<(), InvalidPlan> {
    if b.shape.first() != Some(&batch) || b.order.is_some() {
        return fail(place, format!("buffer {} of shape {} is not row-major with {batch} samples", b.id, b.shape));
    }
    Ok(())
}

fn check_number(place: &str, b: &Buffer) -> Result<(), InvalidPlan> {
    if b.count() == 1 { Ok(()) } else { fail(place, format!("buffer {} is not one number", b.id)) }
}

/// What a module reads of the boundary before it, the module before has written, in the same kind of program.
pub(super) fn check_handed_over(plan: &Plan) -> Result<(), InvalidPlan> {
    for pair in plan.modules.windows(2) {
        let programs = [("step", &pair[0].step, &pair[1].step), ("eval", &pair[0].eval, &pair[1].eval)];
        for (name, giver, taker) in programs {
            let given = plan.handed(pair[0].index, giver);
            for (b, _) in plan.handed(pair[1].index, taker) {
                let received = plan.boundaries[pair[0].index - 1].holds(&b.id);
                if received && !given.iter().any(|(g, _)| g.id == b.id) {
                    return fail(format!("module {} {name}", pair[1].index), format!("nothing writes {}", b.id));
                }
            }
        }
    }
    Ok(())
}

/// What inference yields: arena buffers of the eval program that outlive it, with a result for every sample.
pub(super) fn check_reports(plan: &Plan, m: &ModulePlan, table: &Table) -> Result<(), InvalidPlan> {
    let place = format!("module {}", m.index);
    let batch = plan.settings.batch;
    let o = &m.eval_outputs;
    for (id, exactly) in [(&o.logits, false), (&o.loss, true), (&o.correct, true)] {
        let Some(b) = table.get(id.as_str()).filter(|b| b.space == Space::Arena && b.dtype == DType::F32) else {
            return fail(place, format!("{id} is not an f32 buffer of the arena"));
        };
        if !m.eval.buffers.iter().any(|x| x.id == b.id) || b.live.map(|l| l.last + 1) != Some(m.eval.kernels.len()) {
            return fail(place, format!("{id} is not live at the end of its eval program"));
        }
        if b.shape.first() != Some(&batch) || (exactly && b.count() != batch) {
            return fail(place, format!("{id} of shape {} is no result for {batch} samples", b.shape));
        }
    }
    Ok(())
}
