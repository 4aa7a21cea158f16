//! Flags as bits, wherever all that touches them can write and read bits.

use std::collections::BTreeMap;

use slrc_plan::DType;
use slrc_plan::bits::{may_read, may_write};
use slrc_plan::operand::Access;

use crate::lower::Draft;

/// Makes bits of the flags that only elementwise work reads: a mask, say, that the backward pass needs.
pub(super) fn pack_flags(draft: &mut Draft) {
    let mut fit: BTreeMap<&str, bool> = BTreeMap::new();
    let flags = draft.buffers.iter().filter(|b| b.dtype == DType::U8 && !b.keep);
    fit.extend(flags.map(|b| (b.id.as_str(), true)));
    for k in &draft.kernels {
        for o in k.run.operands() {
            if let Some(fits) = fit.get_mut(o.view.buffer.as_str()) {
                *fits &= match o.access {
                    Access::Read => may_read(o.role, o.view),
                    Access::Write => may_write(&k.run, o.view, draft.at_once),
                };
            }
        }
    }
    let fit: Vec<bool> = draft.buffers.iter().map(|b| fit.get(b.id.as_str()) == Some(&true)).collect();
    let packed = draft.buffers.iter_mut().zip(fit).filter(|(_, fits)| *fits);
    packed.for_each(|(b, _)| b.dtype = DType::Bit);
}
