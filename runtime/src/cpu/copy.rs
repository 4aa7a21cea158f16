//! Strided copies and constant fills.

use slrc_plan::DType;
use slrc_plan::kernel::{Copy as CopyPlan, Fill as FillPlan};

use crate::cpu::memory::{Memory, Operand};
use crate::cpu::parallel::{for_each, part, tasks_for};

/// Side of the square tiles in which a transposing copy works.
const SIDE: usize = 32;

/// A prepared `copy` kernel.
pub(super) struct Copy {
    space: Vec<usize>,
    from: Operand,
    to: Operand,
    /// The dimension along which reads are consecutive, where it is not the last.
    read_along: Option<usize>,
}

fn with_dimension(space: &[usize], operands: &mut [&mut Operand]) -> Vec<usize> {
    let mut space = space.to_vec();
    if space.is_empty() {
        space.push(1);
        operands.iter_mut().for_each(|o| o.strides.push(0));
    }
    space
}

impl Copy {
    pub(super) fn new(memory: &Memory, c: &CopyPlan) -> Copy {
        let (mut from, mut to) = (memory.operand(&c.from), memory.operand(&c.to));
        let space = with_dimension(&c.space, &mut [&mut from, &mut to]);
        let n = space.len();
        let read_along = (0..n - 1).find(|&d| from.strides[d] == 1 && space[d] >= SIDE);
        let read_along = read_along.filter(|_| from.strides[n - 1] > 1);
        Copy { space, from, to, read_along }
    }

    pub(super) fn run(&self) {
        if self.space.contains(&0) {
            return;
        }
        match self.from.dtype.bytes(1) {
            4 => self.copy::<u32>(),
            _ => self.copy::<u8>(),
        }
    }

    fn copy<T: std::marker::Copy>(&self) {
        let n = self.space.len();
        // Rows of the target; with a transposition, bundles of rows whose sources are neighbours.
        let along = self.read_along;
        let bundle = along.map_or(1, |_| SIDE);
        let outer: Vec<usize> =
            (0..n - 1).map(|d| if Some(d) == along { self.space[d].div_ceil(bundle) } else { self.space[d] }).collect();
        let rows: usize = outer.iter().product();
        let tasks = tasks_for(rows, self.space[n - 1] * bundle);
        let (from, to) = (self.from.bytes(0) as usize, self.to.bytes(0) as usize);
        for_each(tasks, |t| {
            let mut index = vec![0; n - 1];
            for row in part(rows, tasks, t) {
                let mut rest = row;
                for d in (0..n - 1).rev() {
                    index[d] = rest % outer[d] * if Some(d) == along { bundle } else { 1 };
                    rest /= outer[d];
                }
                let start = |o: &Operand| index.iter().zip(&o.strides).map(|(i, s)| i * s).sum::<usize>();
                let (f, g) = (start(&self.from), start(&self.to));
                let (sf, st) = (self.from.strides[n - 1], self.to.strides[n - 1]);
                let length = self.space[n - 1];
                let from = (from as *const T).wrapping_add(f);
                let to = (to as *mut T).wrapping_add(g);
                // SAFETY: views lie in their buffers; tasks write disjoint rows.
                unsafe {
                    match along {
                        Some(d) => {
                            let height = bundle.min(self.space[d] - index[d]);
                            let row_step = self.to.strides[d];
                            for c in (0..length).step_by(SIDE) {
                                for r in 0..height {
                                    for i in c..(c + SIDE).min(length) {
                                        *to.add(r * row_step + i * st) = *from.add(r + i * sf);
                                    }
                                }
                            }
                        }
                        None if sf == 1 && st == 1 => std::ptr::copy_nonoverlapping(from, to, length),
                        None => (0..length).for_each(|i| *to.add(i * st) = *from.add(i * sf)),
                    }
                }
            }
        });
    }
}

/// A prepared `fill` kernel.
pub(super) struct Fill {
    space: Vec<usize>,
    value: f32,
    to: Operand,
}

impl Fill {
    pub(super) fn new(memory: &Memory, f: &FillPlan) -> Fill {
        let mut to = memory.operand(&f.to);
        let space = with_dimension(&f.space, &mut [&mut to]);
        Fill { space, value: f.value, to }
    }

    pub(super) fn run(&self) {
        if self.space.contains(&0) {
            return;
        }
        let n = self.space.len();
        let rows: usize = self.space[..n - 1].iter().product();
        let length = self.space[n - 1];
        let tasks = tasks_for(rows, length);
        for_each(tasks, |t| {
            for row in part(rows, tasks, t) {
                let (mut rest, mut at) = (row, 0);
                for d in (0..n - 1).rev() {
                    at += rest % self.space[d] * self.to.strides[d];
                    rest /= self.space[d];
                }
                for i in 0..length {
                    let p = at + i * self.to.strides[n - 1];
                    // SAFETY: views lie in their buffers; tasks write disjoint rows.
                    unsafe {
                        match self.to.dtype {
                            DType::F32 => *self.to.f32(p) = self.value,
                            DType::I32 => *self.to.i32(p) = self.value as i32,
                            DType::U8 => *self.to.u8(p) = self.value as u8,
                            DType::Bit => unreachable!("invariant: plans are validated"),
                        }
                    }
                }
            }
        });
    }
}
