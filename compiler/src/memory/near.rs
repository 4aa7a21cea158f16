//! Kernels that can share a launch on a GPU, brought next to each other: a kernel moves up past others that it does not
//! depend on to neighbours that it can run at once with, or to the product on whose rows it works. A gradient of
//! weights, say, waits for LayerNorm's work on the gradient that goes on.
//!
//! Order decides what lives at once. A kernel moves only where no moment becomes fuller than the fullest is anyway.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use slrc_plan::Space;
use slrc_plan::kernel::Kernel;
use slrc_plan::touches::{Place, Touched};

use crate::lower::Draft;
use crate::memory::{Ends, divide, most_live};

/// Kernels that another may move up past.
const FARTHEST: usize = 8;

/// Orders kernels such that few launches do their work.
pub fn bring_near(draft: &mut Draft, ends: &Ends) {
    if !draft.at_once {
        return;
    }
    let most = |draft: &Draft| most_live(&divide(draft, ends).blocks, draft.kernels.len());
    let before = most(draft);
    let order = Order::new(draft, ends).near(before);
    if order.is_sorted() {
        return;
    }
    let kernels = order.iter().map(|&i| draft.kernels[i].clone()).collect();
    let as_it_was = std::mem::replace(&mut draft.kernels, kernels);
    draft.kernels.iter_mut().enumerate().for_each(|(i, k)| k.id = format!("k{i}"));
    if most(draft) > before {
        draft.kernels = as_it_was;
    }
}

/// Kernels in an order, with what lives when.
struct Order<'d> {
    kernels: &'d [Kernel],
    /// Which kernel runs at each position.
    order: Vec<usize>,
    /// By kernel, the buffers of the arena that it touches.
    touched: Vec<Vec<usize>>,
    /// By buffer, its bytes and the positions from which and up to which it lives.
    buffers: Vec<(usize, RangeInclusive<usize>)>,
    /// Bytes that live at each position.
    live: Vec<usize>,
}

impl<'d> Order<'d> {
    fn new(draft: &'d Draft, ends: &Ends) -> Order<'d> {
        let division = divide(draft, ends);
        let lives = division.buffers.iter().map(|b| {
            let live = b.live.expect("invariant: arena buffers have live ranges");
            (b.bytes, live.first..=live.last)
        });
        let index: BTreeMap<&str, usize> =
            division.buffers.iter().enumerate().map(|(i, b)| (b.id.as_str(), i)).collect();
        let touches = |k: &Kernel| {
            let mut ids: Vec<usize> =
                k.run.operands().iter().filter_map(|o| index.get(o.view.buffer.as_str()).copied()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let buffers: Vec<(usize, RangeInclusive<usize>)> = lives.collect();
        let mut live = vec![0; draft.kernels.len()];
        for (bytes, range) in &buffers {
            live[range.clone()].iter_mut().for_each(|n| *n += bytes);
        }
        let touched = draft.kernels.iter().map(touches).collect();
        Order { kernels: &draft.kernels, order: (0..draft.kernels.len()).collect(), touched, buffers, live }
    }

    /// The kernels' new order, in which no more than `most` bytes live where fewer did.
    fn near(mut self, most: usize) -> Vec<usize> {
        let mut first = 0;
        while first < self.order.len() {
            let mut group = first..first;
            let mut touched = Touched::default();
            while self.extend(group.clone(), &mut touched, most) {
                group.end += 1;
            }
            first = group.end;
        }
        self.order
    }

    fn at(&self, position: usize) -> &'d Kernel {
        &self.kernels[self.order[position]]
    }

    /// Moves the next kernel that can run at once with those of a group, which are `touched`, behind them and adds it.
    fn extend(&mut self, group: Range<usize>, touched: &mut Touched<'d>, most: usize) -> bool {
        let end = self.order.len().min(group.end + FARTHEST + 1);
        for at in group.end..end {
            let passed = (group.end..at).map(|p| self.at(p));
            if !apart(self.at(at), passed) || !self.joins(at, group.clone(), touched) {
                continue;
            }
            if at == group.end || self.pull(at, group.end, most) {
                return true;
            }
            // It stays where it is, and out of the group.
            *touched = Touched::default();
            for at in group.clone() {
                self.joins(at, group.start..at, touched);
            }
        }
        false
    }

    /// Adds the kernel at a position to those of a group if it can run at once with them. Nothing shares a place yet.
    fn joins(&self, at: usize, group: Range<usize>, touched: &mut Touched<'d>) -> bool {
        let k = self.at(at);
        touched.admit(k, nowhere) || group.into_iter().any(|p| touched.admit_behind(self.at(p), k, nowhere))
    }

    /// Moves a kernel up, unless a moment becomes fuller for it than it may.
    fn pull(&mut self, from: usize, to: usize, most: usize) -> bool {
        let window = to..from + 1;
        let fullest = most.max(self.live[window.clone()].iter().copied().max().unwrap_or(0));
        let mut ids: Vec<usize> = window.clone().flat_map(|p| self.touched[self.order[p]].iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        let taken = |b: &(usize, RangeInclusive<usize>), at: usize| if b.1.contains(&at) { b.0 } else { 0 };
        // What lives all the time.
        let others = self.live[to] - ids.iter().map(|&b| taken(&self.buffers[b], to)).sum::<usize>();
        let mut order = self.order[window.clone()].to_vec();
        order.rotate_right(1);
        let moved: Vec<(usize, RangeInclusive<usize>)> = ids
            .iter()
            .map(|&b| {
                let (bytes, range) = &self.buffers[b];
                let touches = |k: &&usize| self.touched[**k].binary_search(&b).is_ok();
                let first = order.iter().position(|k| touches(&k)).map_or(to, |p| to + p);
                let last = order.iter().rposition(|k| touches(&k)).map_or(from, |p| to + p);
                let first = if window.contains(range.start()) { first } else { *range.start() };
                let last = if window.contains(range.end()) { last } else { *range.end() };
                (*bytes, first..=last)
            })
            .collect();
        let live: Vec<usize> =
            window.clone().map(|at| others + moved.iter().map(|b| taken(b, at)).sum::<usize>()).collect();
        if live.iter().any(|&n| n > fullest) {
            return false;
        }
        self.order[window.clone()].copy_from_slice(&order);
        self.live[window].copy_from_slice(&live);
        ids.into_iter().zip(moved).for_each(|(b, m)| self.buffers[b] = m);
        true
    }
}

/// Whether a kernel and others may change places.
fn apart<'k>(kernel: &'k Kernel, mut others: impl Iterator<Item = &'k Kernel>) -> bool {
    let mut touched = Touched::default();
    touched.admit(kernel, nowhere);
    others.all(|k| touched.admits(k, nowhere))
}

fn nowhere(_: &str) -> Place {
    (Space::Arena, 0..0)
}

#[cfg(test)]
mod tests {
    use slrc_plan::kernel::{Copy, KernelOp, Phase};
    use slrc_plan::{DType, Dims, View};

    use super::*;
    use crate::lower::DraftBuffer;

    /// Copies from one buffer to another; `w` lies outside the arena, and the others take so many numbers.
    fn ordered(copies: &[[&str; 2]], sizes: &[(&str, usize)]) -> Vec<String> {
        let kernel = |(i, [from, to]): (usize, &[&str; 2])| {
            let view = |b: &str| View::new(b, vec![1]);
            let run = KernelOp::Copy(Copy { space: Dims(vec![8]), from: view(from), to: view(to) });
            Kernel { id: format!("k{i}"), phase: Phase::Forward, nodes: vec![format!("{from}{to}")], flops: 0, run }
        };
        let buffer = |(id, n): &(&str, usize)| {
            let (id, shape) = (id.to_string(), vec![*n]);
            DraftBuffer { id, dtype: DType::F32, shape, order: vec![0], keep: false }
        };
        let mut draft = Draft {
            kernels: copies.iter().enumerate().map(kernel).collect(),
            buffers: sizes.iter().map(buffer).collect(),
            at_once: true,
            ..Draft::default()
        };
        bring_near(&mut draft, &Ends::default());
        assert!(draft.kernels.iter().enumerate().all(|(i, k)| k.id == format!("k{i}")));
        draft.kernels.into_iter().map(|mut k| k.nodes.remove(0)).collect()
    }

    #[test]
    fn kernels_move_up_to_those_they_can_run_with() {
        let sizes = [("a", 64), ("b", 64), ("c", 64), ("d", 512)];
        let copies = [["w", "a"], ["a", "b"], ["w", "c"], ["b", "d"], ["c", "d"]];
        assert_eq!(ordered(&copies, &sizes), ["wa", "wc", "ab", "bd", "cd"]);
        // Not past one that it depends on.
        let sizes = [("a", 64), ("b", 64), ("c", 64), ("d", 64), ("e", 512)];
        let copies = [["w", "a"], ["a", "b"], ["b", "c"], ["w", "d"], ["c", "e"]];
        assert_eq!(ordered(&copies, &sizes), ["wa", "wd", "ab", "bc", "ce"]);
    }

    #[test]
    fn not_where_that_takes_more_memory() {
        // With `a`, `b` and `c` there is more than ever was.
        let sizes = [("a", 64), ("b", 64), ("c", 128)];
        let copies = [["w", "a"], ["a", "b"], ["w", "c"]];
        assert_eq!(ordered(&copies, &sizes), ["wa", "ab", "wc"]);
    }
}
