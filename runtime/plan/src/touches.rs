//! Which kernels may run at once: those of which none writes what another touches, and those that work on the rows of
//! a product as these are completed.

use std::ops::Range;

use crate::buffer::{Buffer, Space};
use crate::follow::{rows_of_product, rows_of_rows, same_rows};
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
    /// By kernel, in the order in which they came.
    operands: Vec<(&'a str, Operand<'a>, Place)>,
}

impl<'a> Touched<'a> {
    /// Adds a kernel, unless one of those that are there writes what it touches, or touches what it writes: then
    /// nothing changes, and the answer is false. `find` tells where a buffer lies, by id.
    pub fn admit(&mut self, kernel: &'a Kernel, find: impl Fn(&str) -> Place) -> bool {
        self.add(kernel, find, |_, _| false)
    }

    /// Whether it would add a kernel.
    pub fn admits(&self, kernel: &Kernel, find: impl Fn(&str) -> Place) -> bool {
        let disturbed = |o: &Operand<'_>| {
            let place = find(&o.view.buffer);
            self.operands.iter().any(|(_, there, lies)| meet((o, &place), (there, lies)))
        };
        !kernel.run.operands().iter().any(disturbed)
    }

    /// Adds a kernel that works on each row of `product`, which is there, as soon as that row is complete: what the
    /// product writes of a row it may read and write. Nothing else may meet.
    pub fn admit_behind(&mut self, product: &Kernel, kernel: &'a Kernel, find: impl Fn(&str) -> Place) -> bool {
        let Some(rows) = rows_of_product(product).filter(|n| rows_of_rows(kernel) == Some(*n)) else { return false };
        self.add(kernel, find, |own, (id, theirs, place)| {
            let (o, lies) = own;
            let one_place = o.view.buffer == theirs.view.buffer
                || lies == place && [o, theirs].iter().all(|o| o.view.is_dense(&o.space));
            *id == product.id && theirs.access == Access::Write && one_place && same_rows(o, theirs, rows)
        })
    }

    fn add(
        &mut self,
        kernel: &'a Kernel,
        find: impl Fn(&str) -> Place,
        may_meet: impl Fn((&Operand<'a>, &Place), &(&'a str, Operand<'a>, Place)) -> bool,
    ) -> bool {
        let operands = kernel.run.operands().into_iter();
        let own: Vec<_> = operands.map(|o| (find(&o.view.buffer), o)).collect();
        let disturbed = |(place, o): &(Place, Operand<'a>)| {
            let meets = |there: &&(&'a str, Operand<'a>, Place)| meet((o, place), (&there.1, &there.2));
            self.operands.iter().filter(meets).any(|there| !may_meet((o, place), there))
        };
        if own.iter().any(disturbed) {
            return false;
        }
        self.operands.extend(own.into_iter().map(|(place, o)| (kernel.id.as_str(), o, place)));
        true
    }
}

/// Whether one of two operands of different kernels is written where the other is used.
fn meet((a, (s, p)): (&Operand<'_>, &Place), (b, (t, q)): (&Operand<'_>, &Place)) -> bool {
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
    use crate::kernel::{Copy, KernelOp, Matmul, Phase};
    use crate::region::Region;
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

    /// `c = a b`, of 8 rows of 2.
    fn product(a: &str, c: &str) -> Kernel {
        let view = |v: &str| v.parse::<View>().expect("a view");
        let (a, b, c) = (view(a), view("w(2,1)"), view(c));
        let (batch, epilogue) = (Dims(Vec::new()), None);
        let (a_prologue, b_prologue, split, b_sums) = (None, None, None, None);
        let m = Matmul { batch, m: 8, n: 2, k: 2, a, b, c, a_prologue, b_prologue, split, epilogue, b_sums };
        Kernel { run: KernelOp::Matmul(m), ..copy("a(1)", "b(1)") }
    }

    /// Sums along rows of 2.
    fn rows(of: &str, extents: &[usize], to: &str) -> Kernel {
        let region = Region {
            space: Dims(extents.to_vec()),
            reduce: vec![extents.len() - 1],
            loads: vec![format!("x0 = {of}").parse().expect("a load")],
            body: vec!["v0 = reduce-sum x0".parse().expect("a statement")],
            stores: vec![format!("{to} = v0").parse().expect("a store")],
            split: None,
        };
        Kernel { id: "k1".into(), run: KernelOp::Row(region), ..copy("a(1)", "b(1)") }
    }

    #[test]
    fn rows_of_a_product_are_worked_on_as_they_are_completed() {
        // The last lies where the second does.
        let buffers = [buffer("a", 0), buffer("b", 64), buffer("c", 128), buffer("w", 192), buffer("d", 64)];
        let find = |id: &str| place(buffers.iter().find(|b| b.id == id).expect("a buffer"));
        let first = product("a(2,1)", "b(2,1)");
        for (then, follows, why) in [
            (rows("b(2,1)", &[8, 2], "c(1,0)"), true, "reads the product's rows"),
            (rows("b(4,2,1)", &[4, 2, 2], "c(2,1,0)"), true, "in two dimensions"),
            (rows("b(2,1)", &[8, 2], "d(2,1)"), true, "in the product's place"),
            (rows("b(1,8)", &[8, 2], "c(1,0)"), false, "reads other rows"),
            (rows("b(1,1)", &[8, 2], "c(1,0)"), false, "reads into the next row"),
            (rows("b(2,1)", &[8, 2], "a(1,0)"), false, "overwrites an operand"),
            (rows("b(2,1)", &[8, 2], "d(1,0)"), false, "overwrites other rows"),
            (rows("b(2,1)", &[4, 2], "c(1,0)"), false, "has fewer rows"),
            (copy("b(1)", "c(1)"), false, "is no work on rows"),
        ] {
            let mut touched = Touched::default();
            assert!(touched.admit(&first, find));
            assert!(!touched.admit(&then, find), "{why}");
            assert_eq!(touched.admit_behind(&first, &then, find), follows, "{why}");
        }
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
