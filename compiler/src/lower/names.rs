//! Buffer ids outside the arenas, the same for every module of a plan.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::view::buffer_id_from;

use crate::ir::constants::Constants;
use crate::ir::graph::{Constant, Input, InputKind, StepScalar};
use crate::ir::numbered::numbered;

/// Hands out ids for variables, constants and scalars, and remembers them.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Variable name to buffer id.
    pub variables: BTreeMap<String, String>,
    constants: Constants,
    /// Step scalars met, in order, with their ids.
    pub scalars: Vec<(StepScalar, String)>,
    taken: BTreeSet<String>,
}

impl Names {
    /// Tensor `i` of what module `k` hands on; tensor 0 is its output.
    pub fn boundary(k: usize, i: usize) -> String {
        numbered(&format!("x{k}"), i)
    }

    /// The gradient of its loss with respect to that.
    pub fn boundary_gradient(k: usize, i: usize) -> String {
        numbered(&format!("e{k}"), i)
    }

    /// A reported number of module `k`.
    pub fn metric(k: usize, name: &str) -> String {
        format!("m{k}.{name}")
    }

    /// The targets.
    pub fn labels() -> String {
        "labels".into()
    }

    /// An ONNX input.
    pub fn data(name: &str) -> String {
        buffer_id_from(&format!("input/{name}"))
    }

    /// The buffer of an input of module `k`.
    pub fn input(input: &Input, k: usize) -> String {
        match input.kind {
            InputKind::Data => Names::data(&input.name),
            InputKind::Labels => Names::labels(),
            InputKind::Boundary(i) => Names::boundary(k - 1, i),
            InputKind::BoundaryGradient(i) => Names::boundary_gradient(k - 1, i),
        }
    }

    /// A weight, statistic or optimizer tensor.
    pub fn variable(&mut self, name: &str) -> String {
        if let Some(id) = self.variables.get(name) {
            return id.clone();
        }
        let base = buffer_id_from(&format!("w/{name}"));
        let mut id = base.clone();
        let mut i = 1;
        while !self.taken.insert(id.clone()) {
            i += 1;
            id = format!("{base}~{i}");
        }
        self.variables.insert(name.to_string(), id.clone());
        id
    }

    /// A constant; equal ones share a buffer.
    pub fn constant(&mut self, c: &Constant) -> String {
        Names::of_constant(self.constants.add(c.clone()).index())
    }

    fn of_constant(index: usize) -> String {
        format!("const/{index}")
    }

    /// Constants met, in order, with their ids.
    pub fn constants(&self) -> impl Iterator<Item = (&Constant, String)> {
        self.constants.iter().enumerate().map(|(i, c)| (c, Names::of_constant(i)))
    }

    /// A step scalar; equal names are equal scalars.
    pub fn scalar(&mut self, s: &StepScalar) -> String {
        if let Some((_, id)) = self.scalars.iter().find(|(t, _)| t.name == s.name) {
            return id.clone();
        }
        let id = buffer_id_from(&format!("scalar/{}", s.name));
        self.scalars.push((s.clone(), id.clone()));
        id
    }
}
