//! A table of constants, each of its kind once.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::ops::Index;

use crate::ir::graph::{ConstId, Constant, Fnv};
use crate::ir::types::Number;

/// Constants by [`ConstId`], in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct Constants {
    list: Vec<Constant>,
    /// By digest: those that have it.
    known: BTreeMap<u64, Vec<ConstId>>,
}

impl Constants {
    /// Adds a constant, or returns the equal one that exists: the same type and the same bits.
    pub fn add(&mut self, constant: Constant) -> ConstId {
        let digest = digest(&constant);
        match self.find(digest, &constant) {
            Some(id) => id,
            None => self.put(digest, constant),
        }
    }

    /// Adds a constant though an equal one may exist: where the text of a graph says which number it has.
    pub(super) fn push(&mut self, constant: Constant) {
        self.put(digest(&constant), constant);
    }

    fn put(&mut self, digest: u64, constant: Constant) -> ConstId {
        let id = ConstId(self.list.len() as u32);
        self.known.entry(digest).or_default().push(id);
        self.list.push(constant);
        id
    }

    fn find(&self, digest: u64, constant: &Constant) -> Option<ConstId> {
        let bits = |x: &f64| x.to_bits();
        let same = |c: &Constant| c.ty == constant.ty && c.data.iter().map(bits).eq(constant.data.iter().map(bits));
        self.known.get(&digest)?.iter().copied().find(|id| same(&self.list[id.index()]))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The constant of this number, if there is one.
    pub fn get(&self, index: usize) -> Option<&Constant> {
        self.list.get(index)
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Constant> {
        self.list.iter()
    }
}

impl Index<usize> for Constants {
    type Output = Constant;
    fn index(&self, index: usize) -> &Constant {
        &self.list[index]
    }
}

fn digest(c: &Constant) -> u64 {
    let mut hasher = Fnv::default();
    c.ty.hash(&mut hasher);
    for &x in &c.data {
        Number(x).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::types::Type;

    #[test]
    fn equal_constants_are_one_and_zeros_have_signs() {
        let mut table = Constants::default();
        let mut add = |shape: &[usize], data: &[f64]| {
            table.add(Constant { ty: Type::f32(shape.to_vec()), data: data.to_vec() }).0
        };
        assert_eq!([add(&[2], &[0.0, 1.0]), add(&[2], &[-0.0, 1.0]), add(&[1, 2], &[0.0, 1.0])], [0, 1, 2]);
        assert_eq!([add(&[], &[f64::NAN]), add(&[], &[f64::NAN]), add(&[2], &[0.0, 1.0])], [3, 3, 0]);
        assert_eq!(table.len(), 4);
    }
}
