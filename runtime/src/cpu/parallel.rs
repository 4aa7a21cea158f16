//! Tasks over rayon's threads, and each thread's scratch memory.

use std::cell::RefCell;

use rayon::prelude::*;

/// Runs `work(task)` for every task; in one thread where there is only one task.
pub(super) fn for_each(tasks: usize, work: impl Fn(usize) + Send + Sync) {
    if tasks <= 1 {
        (0..tasks).for_each(work);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// Bounds of part `i` of `n` items cut into `parts` nearly equal ranges.
pub(super) fn part(n: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    let (each, rest) = (n / parts, n % parts);
    let start = i * each + i.min(rest);
    start..start + each + usize::from(i < rest)
}

/// A number of tasks for `units` units of work of `cost` elements each: enough to balance, few enough to be worth it.
/// It depends on the work alone.
pub(super) fn tasks_for(units: usize, cost: usize) -> usize {
    /// Elements worth handing to another thread.
    const WORTH: usize = 16 << 10;
    /// More tasks than any thread count this is tuned for.
    const MOST: usize = 64;
    (units.saturating_mul(cost) / WORTH).clamp(1, MOST).min(units.max(1))
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Elements of a cache line.
pub(super) const LINE: usize = 16;

/// Lends this thread's scratch memory, `count` elements from a cache line's start on with unspecified contents. Not to
/// be nested.
pub(super) fn scratch<R>(count: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with(|s| lend(s, count, work))
}

/// The same of other memory, for what a product brings into another order.
pub(super) fn panels<R>(count: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    PANELS.with(|s| lend(s, count, work))
}

fn lend<R>(memory: &RefCell<Vec<f32>>, count: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = memory.borrow_mut();
    if memory.len() < count + LINE {
        memory.resize(count + LINE, 0.0);
    }
    let start = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    work(&mut memory[start..start + count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (n, parts) in [(10, 3), (3, 5), (0, 2), (64, 8)] {
            let all: Vec<usize> = (0..parts).flat_map(|i| part(n, parts, i)).collect();
            assert!(all.iter().copied().eq(0..n), "{n} in {parts}");
        }
    }
}
