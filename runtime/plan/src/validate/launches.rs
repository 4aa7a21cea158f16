//! Launches of a CUDA device: the kernels' work in order, on their operands, within every device's limits.

use crate::launch::LaunchArg;
use crate::plan::Program;
use crate::validate::{InvalidPlan, fail};

/// Most threads of a block.
pub const MAX_BLOCK: usize = 1024;
/// Most blocks along x, and along y and z.
pub const MAX_GRID: [usize; 3] = [0x7fff_ffff, 0xffff, 0xffff];
/// Dynamic shared memory a block may have on every device without asking for more.
pub const MAX_SHARED: usize = 48 << 10;

/// Launches do the kernels' work in order, touch nothing but the kernels' operands, and are within every device's
/// limits.
pub(super) fn check_launches(p: &Program, place: &str) -> Result<(), InvalidPlan> {
    let mut done: Vec<&str> = Vec::new();
    for (i, l) in p.launches.iter().enumerate() {
        let at = || format!("{place} launch {i} ({})", l.function);
        let grid_fits = l.grid.len() == 3 && l.grid.iter().zip(MAX_GRID).all(|(&n, most)| (1..=most).contains(&n));
        if !grid_fits || !(1..=MAX_BLOCK).contains(&l.block) || l.shared > MAX_SHARED {
            return fail(at(), format!("grid {}, block {} and {} bytes cannot be launched", l.grid, l.block, l.shared));
        }
        let mut allowed: Vec<&str> = Vec::new();
        for id in &l.kernels {
            let Some(k) = p.kernels.iter().find(|k| k.id == *id) else {
                return fail(at(), format!("kernel {id} does not exist"));
            };
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
