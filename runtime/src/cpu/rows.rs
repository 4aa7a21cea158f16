//! Blocks of rows: what work on a product's operands and results goes through.

use std::ops::Range;

use crate::cpu::parallel::part;
use crate::cpu::tile::TILE;

/// Calls `work` with the first row, the first element's index, the rows and the columns of every block of columns
/// `cols` of rows `rows` of a space, whose last dimension is a row: at most [`TILE`] elements each.
pub(super) fn row_blocks(
    space: &[usize],
    rows: Range<usize>,
    cols: &Range<usize>,
    mut work: impl FnMut(usize, &[usize], usize, usize),
) {
    let (_, outer) = space.split_last().expect("invariant: a row is a dimension");
    // Rows of a block are neighbours along the last outer dimension.
    let line = outer.last().copied().unwrap_or(1);
    let parts = cols.len().div_ceil(TILE);
    let height = (TILE / cols.len().max(1)).max(1);
    let mut index = vec![0; space.len()];
    let mut row = rows.start;
    while row < rows.end {
        let count = height.min(rows.end - row).min(line - row % line);
        let mut rest = row;
        for (i, n) in index.iter_mut().zip(outer).rev() {
            *i = rest % n;
            rest /= n;
        }
        for p in 0..parts {
            let range = part(cols.len(), parts, p);
            index[outer.len()] = cols.start + range.start;
            work(row, &index, count, range.len());
        }
        row += count;
    }
}
