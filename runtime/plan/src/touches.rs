//! Which kernels may run at once: those of which none writes what another touches.

use std::ops::Range;

use crate::buffer::{Buffer, Space};
use crate::kernel::{Access, Kernel};
use crate::operand::Operand;

/// Where a buffer lies: bytes of a space.
pub type Place = (Space, Range<usize>);

/// Where a buffer of a plan lies.
pub fn place(b: &Buffer) -> Place {
    (b.space, b.offset..b.offset.saturating_add(b.bytes))
}

/// What kernels touch that run at once.
#[derive(Debug, Default)]
pub struct Touched<'a> {
    operands: Vec<(Operand<'a>, Place)>,
}

impl<'a> Touched<'a> {
    /// Adds a kernel, unless one of those that are there writes what it touches, or touches what it writes: then
    /// nothing changes, and the answer is false. `find` tells where a buffer lies, by id.
    pub fn admit(&mut self, kernel: &'a Kernel, find: impl Fn(&str) -> Place) -> bool {
        let operands = kernel.run.operands().into_iter();
        let own: Vec<_> = operands.map(|o| (find(&o.view.buffer), o)).map(|(place, o)| (o, place)).collect();
        if own.iter().any(|a| self.operands.iter().any(|b| meet(a, b))) {
            return false;
        }
        self.operands.extend(own);
        true
    }
}

/// Whether one of two operands of different kernels is written where the other is used.
fn meet((a, (s, p)): &(Operand<'_>, Place), (b, (t, q)): &(Operand<'_>, Place)) -> bool {
    if [a.access, b.access] == [Access::Read; 2] {
        return false;
    }
    if a.view.buffer == b.view.buffer {
        return !a.view.is_apart(&a.space, b.view, &b.space);
    }
    s == t && p.start < q.end && q.start < p.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{DType, Space};
    use crate::dims::Dims;
    use crate::kernel::{Copy, KernelOp, Phase};
    use crate::view::View;

    fn buffer(id: &str, offset: usize) -> Buffer {
        let (space, dtype, shape) = (Space::Arena, DType::F32, Dims(vec![16]));
        Buffer { id: id.into(), space, dtype, shape, order: None, offset, bytes: 64, live: None }
    }

    fn copy(from: &str, to: &str) -> Kernel {
        let view = |v: &str| v.parse::<View>().expect("a view");
        let run = KernelOp::Copy(Copy { space: Dims(vec![8]), from: view(from), to: view(to) });
        Kernel { id: "k0".into(), phase: Phase::Forward, nodes: Vec::new(), flops: 0, run }
    }

    #[test]
    fn what_is_written_is_touched_by_one() {
        // The last lies on half of the first and half of the second.
        let buffers = [buffer("a", 0), buffer("b", 64), buffer("c", 128), buffer("d", 32)];
        let find = |id: &str| place(buffers.iter().find(|b| b.id == id).expect("a buffer"));
        for (first, second, together) in [
            (copy("a(1)", "b(1)"), copy("a(1)", "c(1)"), true),
            (copy("a(1)", "b(1)"), copy("b(1)", "c(1)"), false),
            (copy("b(1)", "c(1)"), copy("a(1)", "b(1)"), false),
            (copy("b(1)", "a(1)"), copy("b(1)", "d(1)"), false),
            (copy("b(1)", "a(1)"), copy("d(1)", "c(1)"), false),
            (copy("a(1)", "b(1)"), copy("d(1)", "c(1)"), false),
            (copy("a(1)", "c(1)"), copy("d(1)", "b(1)"), true),
            (copy("a(1)", "b(1)"), copy("a(1)", "b@8(1)"), true),
            (copy("a(1)", "b(1)"), copy("a(1)", "b@7(1)"), false),
        ] {
            let mut touched = Touched::default();
            assert!(touched.admit(&first, find));
            assert_eq!(touched.admit(&second, find), together, "{:?} and {:?}", first.run, second.run);
        }
    }
}
