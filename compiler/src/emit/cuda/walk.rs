//! An iteration space with its views, neighbouring dimensions joined wherever every view lets them.

use slrc_plan::View;

use crate::emit::cuda::code::{Code, sum, times};

/// Joined dimensions, outermost first.
pub(super) struct Walk {
    pub(super) extents: Vec<usize>,
    pub(super) reduced: Vec<bool>,
    /// Strides of every view, in the order given.
    strides: Vec<Vec<usize>>,
    offsets: Vec<usize>,
    /// One past the largest element any view touches, or the number of iterations where that is larger.
    pub(super) end: usize,
}

impl Walk {
    pub(super) fn new(space: &[usize], reduce: &[usize], views: &[&View]) -> Walk {
        let mut w = Walk {
            extents: Vec::new(),
            reduced: Vec::new(),
            strides: vec![Vec::new(); views.len()],
            offsets: views.iter().map(|v| v.offset).collect(),
            end: views.iter().filter_map(|v| v.end(space)).max().unwrap_or(0).max(space.iter().product()),
        };
        for (d, &n) in space.iter().enumerate() {
            if n == 1 {
                continue;
            }
            let reduced = reduce.contains(&d);
            let joins = w.reduced.last() == Some(&reduced)
                && views.iter().zip(&w.strides).all(|(v, s)| s.last() == Some(&(v.strides[d] * n)));
            if joins {
                *w.extents.last_mut().expect("invariant: joined to a dimension") *= n;
                for (s, v) in w.strides.iter_mut().zip(views) {
                    *s.last_mut().expect("invariant: joined to a dimension") = v.strides[d];
                }
            } else {
                w.extents.push(n);
                w.reduced.push(reduced);
                w.strides.iter_mut().zip(views).for_each(|(s, v)| s.push(v.strides[d]));
            }
        }
        w
    }

    /// Dimensions that are (or are not) reduced.
    pub(super) fn dimensions(&self, reduced: bool) -> Vec<usize> {
        (0..self.extents.len()).filter(|&d| self.reduced[d] == reduced).collect()
    }

    /// Iterations along some dimensions.
    pub(super) fn count(&self, dims: &[usize]) -> usize {
        dims.iter().map(|&d| self.extents[d]).product()
    }

    /// Declares the coordinates `i<d>` of `dims` from their joint position, an expression.
    pub(super) fn coordinates(&self, code: &mut Code<'_>, ty: &str, position: &str, dims: &[usize]) {
        let mut inner = 1;
        let mut lines = Vec::new();
        for (n, &d) in dims.iter().enumerate().rev() {
            let divided = if inner == 1 { position.to_string() } else { format!("{position} / {inner}") };
            let value = match (n == 0, inner == 1) {
                (true, _) => divided,
                (false, true) => format!("{position} % {}", self.extents[d]),
                (false, false) => format!("{divided} % {}", self.extents[d]),
            };
            lines.push(format!("const {ty} i{d} = {value};"));
            inner *= self.extents[d];
        }
        lines.iter().rev().for_each(|l| code.line(l));
    }

    /// Declares all coordinates from a row of `cols` elements and a column, expressions.
    pub(super) fn row_and_column(&self, code: &mut Code<'_>, ty: &str, [row, col]: [&str; 2], cols: usize) {
        let all: Vec<usize> = (0..self.extents.len()).collect();
        match all.split_last() {
            // Rows are a dimension of their own, so that nothing is to be taken apart.
            Some((last, outer)) if self.extents[*last] == cols && !outer.is_empty() => {
                self.coordinates(code, ty, row, outer);
                code.line(format!("const {ty} i{last} = {col};"));
            }
            _ => {
                code.line(format!("const {ty} at = {row} * {cols} + {col};"));
                self.coordinates(code, ty, "at", &all);
            }
        }
    }

    /// The element of view `v` at the coordinates declared.
    pub(super) fn element(&self, v: usize) -> String {
        let mut terms: Vec<String> = Vec::new();
        for (d, &s) in self.strides[v].iter().enumerate() {
            if s != 0 {
                terms.push(times(&format!("i{d}"), s));
            }
        }
        if self.offsets[v] != 0 {
            terms.push(self.offsets[v].to_string());
        }
        sum(terms)
    }

    /// Whether the last dimension can be walked in vectors of so many: every view steps by one there, from an aligned
    /// place, or not at all.
    pub(super) fn vectors(&self, width: usize) -> bool {
        let Some(last) = self.extents.len().checked_sub(1) else { return false };
        self.extents[last].is_multiple_of(width)
            && self.strides.iter().zip(&self.offsets).all(|(s, o)| match s[last] {
                0 => true,
                1 => o.is_multiple_of(width) && s[..last].iter().all(|s| s.is_multiple_of(width)),
                _ => false,
            })
    }

    /// Whether view `v` varies along the last dimension.
    pub(super) fn steps(&self, v: usize) -> bool {
        self.strides[v].last().is_some_and(|&s| s != 0)
    }

    /// The dimension along which view `from` is consecutive, where view `to` is so along the last and `from` is not: a
    /// transpose worth turning in fast memory.
    pub(super) fn turned(&self, from: usize, to: usize) -> Option<usize> {
        /// Shorter sides leave most of a tile empty.
        const WORTH: usize = 16;
        let last = self.extents.len().checked_sub(1)?;
        let wide = |d: usize| self.extents[d] >= WORTH;
        let d = (0..last).find(|&d| self.strides[from][d] == 1)?;
        (self.strides[to][last] == 1 && self.strides[from][last] > 1 && wide(d) && wide(last)).then_some(d)
    }
}
