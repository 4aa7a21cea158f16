//! What leads to what among items, while items become parts of others.
//!
//! Of all that follows from an item no list is kept: that would be as long as the program, for every item. A longest
//! path through all items, the *spine*, says it for nearly all of them: each item knows the first place of the spine
//! that it leads to and the last one that leads to it. What leads past the spine is searched for, between these places.

use std::collections::BTreeSet;

/// Items that come before others, directly and not.
pub(super) struct Paths {
    /// Items directly after each, as they were called before they became parts of others.
    after: Vec<Vec<usize>>,
    before: Vec<Vec<usize>>,
    /// Where each item went when it became part of another.
    into: Vec<usize>,
    /// The first place of the spine that an item is at or leads to.
    first: Vec<usize>,
    /// One more than the last place of the spine that an item is at or that leads to it.
    last: Vec<usize>,
}

/// No place of the spine.
const NOWHERE: usize = usize::MAX;

impl Paths {
    /// Those of items that must come after others, in an order that respects this.
    pub(super) fn new(order: &[usize], before: Vec<Vec<usize>>) -> Paths {
        let n = before.len();
        let mut after = vec![Vec::new(); n];
        for (i, b) in before.iter().enumerate() {
            b.iter().for_each(|&x| after[x].push(i));
        }
        // Items of the longest path that ends in each.
        let mut length = vec![1usize; n];
        for &i in order {
            length[i] += before[i].iter().map(|&b| length[b]).max().unwrap_or(0);
        }
        let (mut first, mut last) = (vec![NOWHERE; n], vec![0; n]);
        let mut at = order.iter().copied().max_by_key(|&i| length[i]);
        while let Some(i) = at {
            (first[i], last[i]) = (length[i], length[i] + 1);
            at = before[i].iter().copied().find(|&b| length[b] + 1 == length[i]);
        }
        for &i in order {
            last[i] = before[i].iter().map(|&b| last[b]).max().unwrap_or(0).max(last[i]);
        }
        for &i in order.iter().rev() {
            first[i] = after[i].iter().map(|&a| first[a]).min().unwrap_or(NOWHERE).min(first[i]);
        }
        Paths { after, before, into: (0..n).collect(), first, last }
    }

    /// The item that item `i` is now part of.
    pub(super) fn find(&self, mut i: usize) -> usize {
        while self.into[i] != i {
            i = self.into[i];
        }
        i
    }

    /// Items directly after an item; some more than once.
    pub(super) fn after(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        self.after[i].iter().map(|&x| self.find(x)).filter(move |&x| x != i)
    }

    /// Whether a path leads from one to the other through a third item.
    pub(super) fn through_others(&self, a: usize, b: usize) -> bool {
        let through = |from: usize, to: usize| self.after(from).any(|x| x != to && self.leads(x, to));
        through(a, b) || through(b, a)
    }

    /// Whether a path leads from one to the other.
    pub(super) fn leads(&self, from: usize, to: usize) -> bool {
        if from == to || self.first[from] < self.last[to] {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(x) = open.pop() {
            if x == to || self.first[x] < self.last[to] {
                return true;
            }
            // What leads there is reached by no more of the spine, and reaches no less.
            if self.last[x] > self.last[to] || self.first[x] > self.first[to] {
                continue;
            }
            if seen.insert(x) {
                open.extend(self.after(x));
            }
        }
        false
    }

    /// Item `gone` is now part of `into`.
    pub(super) fn absorb(&mut self, into: usize, gone: usize) {
        self.into[gone] = into;
        for lists in [&mut self.after, &mut self.before] {
            let of_gone = std::mem::take(&mut lists[gone]);
            lists[into].extend(of_gone);
        }
        let first = self.first[into].min(self.first[gone]);
        let last = self.last[into].max(self.last[gone]);
        (self.first[into], self.last[into]) = (first, last);
        let mut open = vec![into];
        while let Some(x) = open.pop() {
            for i in 0..self.before[x].len() {
                let b = self.find(self.before[x][i]);
                if self.first[b] > first {
                    self.first[b] = first;
                    open.push(b);
                }
            }
        }
        open.push(into);
        while let Some(x) = open.pop() {
            for i in 0..self.after[x].len() {
                let a = self.find(self.after[x][i]);
                if self.last[a] < last {
                    self.last[a] = last;
                    open.push(a);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a path of two steps or more leads from one item to the other, either way: by looking everywhere.
    fn by_force(before: &[BTreeSet<usize>], part_of: &[usize], a: usize, b: usize) -> bool {
        let n = before.len();
        let next = |x: usize| {
            let from = (0..n).filter(move |&i| before[i].iter().any(|&p| part_of[p] == x));
            from.map(|i| part_of[i]).filter(move |&i| i != x)
        };
        let through = |from: usize, to: usize| {
            let mut open: Vec<usize> = next(from).filter(|&x| x != to).collect();
            let mut seen = BTreeSet::new();
            while let Some(x) = open.pop() {
                if x == to {
                    return true;
                }
                if seen.insert(x) {
                    open.extend(next(x));
                }
            }
            false
        };
        through(a, b) || through(b, a)
    }

    #[test]
    fn paths_are_found_whatever_became_part_of_what() {
        let mut rng = slrc_plan::random::Sequence::new(11, 0, 0);
        let (mut joined, mut refused) = (0, 0);
        for _ in 0..60 {
            let mut draw = |below: usize| rng.word() as usize % below;
            let n = 4 + draw(20);
            let near = 2 + draw(6);
            let before: Vec<BTreeSet<usize>> =
                (0..n).map(|i| (0..draw(3)).filter_map(|_| i.checked_sub(1 + draw(near))).collect()).collect();
            let order: Vec<usize> = (0..n).collect();
            let mut paths = Paths::new(&order, before.iter().map(|b| b.iter().copied().collect()).collect());
            let mut part_of = order;
            for _ in 0..40 {
                let (a, b) = (part_of[draw(n)], part_of[draw(n)]);
                if a == b {
                    continue;
                }
                let through = by_force(&before, &part_of, a, b);
                assert_eq!(paths.through_others(a, b), through, "{before:?} {part_of:?} {a} {b}");
                if through {
                    refused += 1;
                    continue;
                }
                paths.absorb(a, b);
                part_of.iter_mut().filter(|x| **x == b).for_each(|x| *x = a);
                joined += 1;
            }
        }
        assert!(joined > 300 && refused > 300, "{joined} {refused}");
    }
}
