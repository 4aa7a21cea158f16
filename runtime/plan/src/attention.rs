//! Attention: products over a small inner extent whose results are worked on and multiplied again, strip by strip, so
//! that no matrix of all rows and columns is ever stored.

use serde::{Deserialize, Serialize};

use crate::region::Region;
use crate::view::View;

/// Products of rows and columns, work on them, and further products of what that yields.
///
/// The region's space is batch extents, rows, columns; it reduces the columns, and finds each of the `products` as a
/// value of its name. Softmax, its gradient and what differentiating it again takes are of this form: scores are a
/// product of queries and keys, and their softmax is multiplied by values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// What the region works on besides its loads.
    pub products: Vec<Score>,
    /// Work on rows. It may store nothing.
    pub region: Region,
    /// What is made of the region's values.
    pub results: Vec<Contraction>,
    /// Rows worked on at a time. Results over rows are summed strip by strip, so they depend on it.
    pub strip: usize,
}

/// `name[b, r, c] = sum over k of a[b, r, k] * b[b, k, c]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// The value the region finds.
    pub name: String,
    /// Terms of a sum.
    pub k: usize,
    /// Over batch extents, rows, `k`.
    pub a: View,
    /// Over batch extents, `k`, columns.
    pub b: View,
}

/// Which dimension of a value is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// `to[b, r, e] = sum over c of value[b, r, c] * by[b, c, e]`.
    Cols,
    /// `to[b, c, e] = sum over r of value[b, r, c] * by[b, r, e]`.
    Rows,
}

/// A product of a value of the region and an operand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contraction {
    /// A value of the region that varies along its columns.
    pub value: String,
    /// What is summed over.
    pub over: Over,
    /// Columns of `by` and of the result.
    pub width: usize,
    /// Over batch extents, what is summed over, `width`.
    pub by: View,
    /// Over batch extents, what is left, `width`.
    pub to: View,
}

impl Attention {
    /// Batch extents.
    pub fn batch(&self) -> &[usize] {
        &self.region.space[..self.region.space.len().saturating_sub(2)]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.region.space.iter().rev().nth(1).copied().unwrap_or(0)
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.region.space.last().copied().unwrap_or(0)
    }

    /// Batch extents and two more.
    pub fn with(&self, tail: [usize; 2]) -> Vec<usize> {
        [self.batch(), &tail].concat()
    }

    /// Names of the values that are products.
    pub fn given(&self) -> Vec<&str> {
        self.products.iter().map(|p| p.name.as_str()).collect()
    }

    /// Matrices of a strip's rows and all columns that a device holds at a time: a result takes a product's place.
    pub fn held(&self) -> usize {
        self.products.len().max(self.results.len())
    }
}

impl Contraction {
    /// Extents of `by` and of `to` after the batch.
    pub fn extents(&self, rows: usize, cols: usize) -> ([usize; 2], [usize; 2]) {
        match self.over {
            Over::Cols => ([cols, self.width], [rows, self.width]),
            Over::Rows => ([rows, self.width], [cols, self.width]),
        }
    }
}
