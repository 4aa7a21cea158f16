//! Which kernels may follow a product in its launch: those that work on its rows, each row by itself.
//!
//! A row of a product is there when the tiles along it are. The block that finishes the last of them can go on with
//! what is done to rows, such as LayerNorm, while other tiles are still computed; no block waits for another. For that
//! it is enough that nothing of a row depends on other rows, and that what the product writes of a row and what
//! follows touches of it is the same memory.

use crate::kernel::{Kernel, KernelOp};
use crate::operand::Operand;
use crate::region::Region;

/// Longest row, in elements, that is worked on behind a product: one block has a tile's rows to itself.
pub const LONGEST_ROW: usize = 1024;

/// Rows of a matrix product that is computed in one piece, by tiles that share nothing: whose rows are there when a
/// row of tiles is.
pub fn rows_of_product(k: &Kernel) -> Option<usize> {
    let KernelOp::Matmul(m) = &k.run else { return None };
    let single = m.batch.iter().all(|&n| n == 1) && m.split.is_none() && m.b_sums.is_none();
    let elementwise = m.epilogue.as_ref().is_none_or(|r| r.reduce.is_empty());
    (single && elementwise).then_some(m.m)
}

/// Rows that a kernel works on, each by itself.
pub fn rows_of_rows(k: &Kernel) -> Option<usize> {
    let KernelOp::Row(r) = &k.run else { return None };
    let innermost = r.reduce.iter().rev().zip((0..r.space.len()).rev()).all(|(&d, last)| d == last);
    let length = length(r)?;
    (innermost && r.split.is_none() && length <= LONGEST_ROW).then(|| r.kept_count())
}

fn length(r: &Region) -> Option<usize> {
    r.reduce.iter().try_fold(1usize, |n, &d| n.checked_mul(*r.space.get(d)?))
}

/// Elements from one of `rows` rows to the next, where an operand walks rows one after the other and stays inside them.
fn pitch(o: &Operand<'_>, rows: usize) -> Option<usize> {
    let strides = &o.view.strides;
    let mut count = 1usize;
    let outer = o.space.iter().position(|&extent| {
        count = count.saturating_mul(extent);
        count == rows
    })? + 1;
    let mut pitch: Option<(usize, usize)> = None;
    for d in (0..outer).rev().filter(|&d| o.space[d] > 1) {
        match pitch {
            None => pitch = Some((strides[d], strides[d].checked_mul(o.space[d])?)),
            Some((step, next)) if strides[d] == next => pitch = Some((step, next.checked_mul(o.space[d])?)),
            Some(_) => return None,
        }
    }
    let inside = |d: usize| strides[d].checked_mul(o.space[d].saturating_sub(1));
    let reach = (outer..o.space.len()).try_fold(0usize, |n, d| n.checked_add(inside(d)?))?;
    let (step, _) = pitch?;
    (reach < step).then_some(step)
}

/// Whether two operands over the same rows touch the same memory of each row, if they begin at the same place.
pub(crate) fn same_rows(a: &Operand<'_>, b: &Operand<'_>, rows: usize) -> bool {
    let (of_a, of_b) = (pitch(a, rows), pitch(b, rows));
    of_a.is_some() && of_a == of_b && a.view.offset == b.view.offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operand::{Access, Role};
    use crate::view::View;

    #[test]
    fn rows_are_walked_in_order_and_not_left() {
        let check = |space: &[usize], view: &str, rows: usize| {
            let view: View = view.parse().expect("a view");
            let o = Operand {
                access: Access::Read,
                role: Role::Own,
                view: &view,
                space: space.to_vec(),
                dtypes: &[],
                dense: false,
            };
            pitch(&o, rows)
        };
        assert_eq!(check(&[12, 5], "a(5,1)", 12), Some(5));
        assert_eq!(check(&[3, 4, 5], "a(20,5,1)", 12), Some(5));
        assert_eq!(check(&[3, 4, 5], "a(24,6,1)", 12), Some(6), "rows need not touch");
        assert_eq!(check(&[3, 4, 1, 5], "a(20,5,0,1)", 12), Some(5));
        assert_eq!(check(&[1, 12, 5], "a(0,5,1)", 12), Some(5));
        for (space, view, why) in [
            (&[12, 5][..], "a(1,12)", "columns"),
            (&[3, 4, 5], "a(0,5,1)", "rows again"),
            (&[3, 4, 5], "a(5,15,1)", "in another order"),
            (&[12, 5], "a(4,1)", "into the next row"),
            (&[12, 5], "a(0,1)", "one for all"),
            (&[8, 5], "a(5,1)", "other rows"),
        ] {
            assert_eq!(check(space, view, 12), None, "{why}");
        }
    }
}
