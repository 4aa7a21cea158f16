//! Launches of a CUDA device: the kernels' work in order, on their operands, within every device's limits; side by side
//! only what does not depend on each other, and behind a product only what works on its rows.

use crate::launch::LaunchArg;
use crate::plan::Program;
use crate::touches::{Touched, place as lies};
use crate::validate::{InvalidPlan, Table, fail};

/// Most threads of a block.
pub const MAX_BLOCK: usize = 1024;
/// Most blocks along x, and along y and z.
pub const MAX_GRID: [usize; 3] = [0x7fff_ffff, 0xffff, 0xffff];
/// Dynamic shared memory a block may have on every device without asking for more.
pub const MAX_SHARED: usize = 48 << 10;

/// Launches do the kernels' work in order, touch nothing but the kernels' operands, and are within every device's
/// limits. Kernels that share one do not touch what the others write, but for rows of the product that they follow;
/// those that follow none have all of its blocks between them.
pub(super) fn check_launches(p: &Program, table: &Table<'_>, place: &str) -> Result<(), InvalidPlan> {
    let mut done: Vec<&str> = Vec::new();
    for (i, l) in p.launches.iter().enumerate() {
        let at = || format!("{place} launch {i} ({})", l.function);
        let grid_fits = l.grid.len() == 3 && l.grid.iter().zip(MAX_GRID).all(|(&n, most)| (1..=most).contains(&n));
        if !grid_fits || !(1..=MAX_BLOCK).contains(&l.block) || l.shared > MAX_SHARED {
            return fail(at(), format!("grid {}, block {} and {} bytes cannot be launched", l.grid, l.block, l.shared));
        }
        let shares = if l.kernels.len() > 1 { l.kernels.len() } else { 0 };
        let add = |sum: usize, n: usize| if n == 0 { None } else { sum.checked_add(n) };
        let grid = l.kernels.iter().zip(&l.blocks).filter(|(id, _)| !l.follows.contains_key(*id));
        let sum = grid.map(|(_, n)| *n).try_fold(0usize, add);
        let all = l.blocks.iter().copied().try_fold(0usize, add);
        let whole = sum.map(|n| vec![n, 1, 1]).as_ref() == Some(&l.grid.0) && all.is_some_and(|n| n <= MAX_GRID[0]);
        if l.blocks.len() != shares || (shares > 0 && !whole) {
            return fail(
                at(),
                format!("{} kernels do not share a grid of {} in {:?}", l.kernels.len(), l.grid, l.blocks),
            );
        }
        if l.args.contains(&LaunchArg::First) != (shares > 0) {
            return fail(at(), "takes $first if and only if kernels share it");
        }
        if l.args.contains(&LaunchArg::Alone) == l.follows.is_empty() {
            return fail(at(), "takes $alone if and only if a kernel follows another");
        }
        if let Some(id) = l.follows.keys().find(|id| !l.kernels.contains(id)) {
            return fail(at(), format!("kernel {id} follows another, but has no part in it"));
        }
        let mut allowed: Vec<&str> = Vec::new();
        let mut touched = Touched::default();
        for (position, id) in l.kernels.iter().enumerate() {
            let Some(k) = p.kernels.iter().find(|k| k.id == *id) else {
                return fail(at(), format!("kernel {id} does not exist"));
            };
            let find = |id: &str| lies(table[id]);
            let admitted = match l.follows.get(id) {
                None => touched.admit(k, find),
                Some(of) => {
                    let Some(product) = p.kernels.iter().find(|k| k.id == *of && l.kernels[..position].contains(of))
                    else {
                        return fail(at(), format!("kernel {id} follows {of}, which is no kernel before it"));
                    };
                    touched.admit_behind(product, k, find)
                }
            };
            if !admitted {
                return fail(at(), format!("kernel {id} touches what another writes at the same time"));
            }
            allowed.extend(k.run.operands().into_iter().map(|o| o.view.buffer.as_str()));
            if done.last() != Some(&id.as_str()) {
                done.push(id);
            }
        }
        for a in &l.args {
            if let LaunchArg::Buffer(id) = a
                && !allowed.contains(&id.as_str())
            {
                return fail(at(), format!("buffer {id} is no operand of its kernels"));
            }
        }
    }
    if !p.launches.is_empty() && !done.iter().copied().eq(p.kernels.iter().map(|k| k.id.as_str())) {
        return fail(place, "the launches do not do the kernels' work in order");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::buffer::{Buffer, DType, Space};
    use crate::dims::Dims;
    use crate::kernel::{Copy, Kernel, KernelOp, Phase};
    use crate::launch::Launch;
    use crate::view::View;

    fn kernel(id: &str, from: &str, to: &str) -> Kernel {
        let view = |b: &str| View::new(b, vec![1]);
        let run = KernelOp::Copy(Copy { space: Dims(vec![8]), from: view(from), to: view(to) });
        Kernel { id: id.into(), phase: Phase::Forward, nodes: Vec::new(), flops: 0, run }
    }

    /// Two kernels in one launch, and a third that needs the second's result.
    fn program() -> Program {
        let launch = |kernels: &[&str], blocks: &[usize], args: &[&str]| Launch {
            kernels: kernels.iter().map(|k| k.to_string()).collect(),
            function: "f".into(),
            grid: Dims(vec![blocks.iter().sum::<usize>().max(1), 1, 1]),
            blocks: blocks.to_vec(),
            follows: BTreeMap::new(),
            block: 256,
            shared: 0,
            args: args.iter().map(|a| a.parse().expect("an argument")).collect(),
        };
        Program {
            arena_bytes: 0,
            live_bytes: 0,
            flops: 0,
            buffers: Vec::new(),
            kernels: vec![kernel("k0", "a", "b"), kernel("k1", "a", "c"), kernel("k2", "c", "d")],
            launches: vec![
                launch(&["k0", "k1"], &[3, 4], &["a", "b", "c", "$first"]),
                launch(&["k2"], &[], &["c", "d"]),
            ],
        }
    }

    fn check(p: &Program) -> Result<(), InvalidPlan> {
        let of = |(i, id): (usize, &str)| {
            let (space, dtype, shape) = (Space::Arena, DType::F32, Dims(vec![8]));
            Buffer { id: id.into(), space, dtype, shape, order: None, offset: 64 * i, bytes: 32, live: None }
        };
        let buffers: Vec<Buffer> = ["a", "b", "c", "d"].into_iter().enumerate().map(of).collect();
        check_launches(p, &buffers.iter().map(|b| (b.id.as_str(), b)).collect(), "step")
    }

    #[test]
    fn what_shares_a_launch_is_told_apart() {
        check(&program()).expect("sound launches");
        let refused = |change: &dyn Fn(&mut Program), reason: &str| {
            let mut p = program();
            change(&mut p);
            match check(&p) {
                Ok(()) => panic!("accepted, though {reason}"),
                Err(e) => assert!(e.reason.contains(reason), "{e}\nexpected: {reason}"),
            }
        };
        let shared = |p: &mut Program, change: &dyn Fn(&mut Launch)| change(&mut p.launches[0]);
        refused(&|p| shared(p, &|l| l.blocks = vec![3, 5]), "do not share a grid");
        refused(&|p| shared(p, &|l| l.blocks = vec![7, 0]), "do not share a grid");
        refused(&|p| shared(p, &|l| l.blocks = vec![7]), "do not share a grid");
        refused(&|p| shared(p, &|l| l.blocks = vec![usize::MAX, 8]), "do not share a grid");
        refused(&|p| shared(p, &|l| l.blocks.clear()), "do not share a grid");
        refused(&|p| shared(p, &|l| l.grid = Dims(vec![1, 7, 1])), "do not share a grid");
        refused(&|p| p.launches[1].blocks = vec![1], "do not share a grid");
        refused(&|p| shared(p, &|l| drop(l.args.pop())), "takes $first if and only if");
        refused(&|p| p.launches[1].args.push(LaunchArg::First), "takes $first if and only if");
        refused(&|p| shared(p, &|l| l.kernels.reverse()), "in order");
        refused(&|p| shared(p, &|l| l.kernels[1] = "k2".into()), "in order");
        refused(&|p| shared(p, &|l| l.args[0] = LaunchArg::Buffer("d".into())), "no operand of its kernels");
        refused(&|p| p.kernels[1] = kernel("k1", "b", "c"), "touches what another writes");
        refused(&|p| p.kernels[1] = kernel("k1", "c", "b"), "touches what another writes");
        refused(&|p| p.kernels[1] = kernel("k1", "c", "a"), "touches what another writes");
        let follows = |l: &mut Launch, id: &str, of: &str| drop(l.follows.insert(id.into(), of.into()));
        refused(&|p| shared(p, &|l| l.args.push(LaunchArg::Alone)), "takes $alone if and only if");
        refused(&|p| shared(p, &|l| follows(l, "k1", "k0")), "do not share a grid");
        let behind = |p: &mut Program, id: &str, of: &str| {
            shared(p, &|l| {
                follows(l, id, of);
                l.grid = Dims(vec![if id == "k1" { 3 } else { 4 }, 1, 1]);
                l.args.push(LaunchArg::Alone);
            });
        };
        refused(&|p| behind(p, "k1", "k0"), "touches what another writes");
        refused(&|p| behind(p, "k1", "k2"), "which is no kernel before it");
        refused(&|p| behind(p, "k0", "k1"), "which is no kernel before it");
        refused(
            &|p| {
                behind(p, "k1", "k0");
                shared(p, &|l| drop(l.args.pop()));
            },
            "takes $alone if and only if",
        );
    }
}
