//! Prologues: elementwise work on an operand of a product, done as the operand is read.

use serde::{Deserialize, Serialize};

use crate::dims::Dims;
use crate::kernel::{Conv, ConvDirection, KernelOp, Matmul};
use crate::region::{Load, Region};
use crate::statement::Statement;
use crate::view::View;

/// Elementwise work that makes the elements of an operand: the operand itself is in no memory.
///
/// It is a map over the operand's index space. One of its loads is what lies where the operand's view says, so that the
/// view stays what a device knows of the operand's memory; where an operand is padded, padding is zero and nothing is
/// done. How often an element is made is up to the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prologue {
    /// What is read, over the operand's index space.
    pub loads: Vec<Load>,
    /// What is computed, in order.
    pub body: Vec<Statement>,
    /// The value that is the operand's element.
    pub value: String,
}

impl Prologue {
    /// As a map over a space, without its result.
    pub fn region(&self, space: &[usize]) -> Region {
        Region {
            space: Dims(space.to_vec()),
            reduce: Vec::new(),
            loads: self.loads.clone(),
            body: self.body.clone(),
            stores: Vec::new(),
            split: None,
        }
    }
}

/// An operand of a product that a prologue makes.
#[derive(Clone, Debug)]
pub struct Made<'a> {
    /// Its name in the plan.
    pub name: &'static str,
    /// Where the memory lies that it is made of, one element for one.
    pub view: &'a View,
    /// Its index space.
    pub space: Vec<usize>,
    /// How it is made.
    pub by: &'a Prologue,
}

impl Matmul {
    /// Operands made as they are read.
    pub fn made(&self) -> impl Iterator<Item = Made<'_>> {
        let with = |tail: [usize; 2]| [&self.batch[..], &tail].concat();
        let a = self.a_prologue.as_ref().map(|by| Made { name: "a", view: &self.a, space: with([self.m, self.k]), by });
        let b = self.b_prologue.as_ref().map(|by| Made { name: "b", view: &self.b, space: with([self.k, self.n]), by });
        a.into_iter().chain(b)
    }
}

impl Conv {
    /// Operands made as they are read.
    pub fn made(&self) -> impl Iterator<Item = Made<'_>> {
        let g = &self.geometry;
        let image = |extents: &[usize], channels| [&[self.batch], extents, &[channels]].concat();
        let (x, y) = (image(&g.input, self.in_channels), image(&g.output, self.out_channels));
        let x = self.x_prologue.as_ref().map(|by| Made { name: "x", view: &self.x, space: x, by });
        let y = self.y_prologue.as_ref().map(|by| Made { name: "y", view: &self.y, space: y, by });
        x.into_iter().chain(y)
    }

    /// Whether the direction reads `x`, and `y`.
    pub fn reads(&self) -> [bool; 2] {
        match self.direction {
            ConvDirection::Forward => [true, false],
            ConvDirection::InputGrad => [false, true],
            ConvDirection::WeightGrad => [true, true],
        }
    }
}

impl KernelOp {
    /// Operands made as they are read; of other families than products none.
    pub fn made(&self) -> Vec<Made<'_>> {
        match self {
            KernelOp::Matmul(m) => m.made().collect(),
            KernelOp::Conv(c) => c.made().collect(),
            _ => Vec::new(),
        }
    }

    /// Prologues, to be changed.
    pub(crate) fn prologues_mut(&mut self) -> impl Iterator<Item = &mut Prologue> {
        let [first, second] = match self {
            KernelOp::Matmul(m) => [&mut m.a_prologue, &mut m.b_prologue].map(Option::as_mut),
            KernelOp::Conv(c) => [&mut c.x_prologue, &mut c.y_prologue].map(Option::as_mut),
            _ => [None, None],
        };
        first.into_iter().chain(second)
    }
}
