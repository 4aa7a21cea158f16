//! What this machine can do at most, measured: arithmetic by a large matrix product on every thread at once, memory by
//! streaming arrays that no cache holds. A measurement; results of a plan depend on none of it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rayon::{BroadcastContext, ThreadPool};

use crate::cpu::product::{Matrix, product};
use crate::device::DeviceError;

/// The most that a machine's threads reach together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Floating-point operations a second in f32, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes a second, read and written.
    pub bandwidth: f64,
    /// Threads it was measured with.
    pub threads: usize,
}

/// Measures with as many threads as [`crate::cpu::CpuDevice::load`] takes. Lasts less than a second on an idle machine
/// of today, and gives its memory back.
pub fn measure(threads: Option<usize>) -> Result<Roof, DeviceError> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    let pool = builder.build().map_err(|e| DeviceError::Unsupported(format!("threads cannot be started: {e}")))?;
    let threads = pool.current_num_threads();
    Ok(Roof { flops: flops(&pool)?, bandwidth: bandwidth(&pool)?, threads })
}

/// Times that each measurement is repeated; the fastest counts, being the least disturbed.
const ROUNDS: usize = 24;

/// What all threads reach together, each by its own fastest product while the others work: unlike memory, arithmetic is
/// not shared, and a product is so short that other programs leave one alone.
fn flops(pool: &ThreadPool) -> Result<f64, DeviceError> {
    let work = 2.0 * (SIDE * SIDE * SIDE) as f64;
    let each = pool.broadcast(|_| {
        let mut product = Product::new()?;
        let seconds = (0..ROUNDS).map(|_| timed(|| product.run()));
        Ok(work / seconds.fold(f64::INFINITY, f64::min))
    });
    each.into_iter().sum()
}

/// What all threads reach together, by the fastest time in which all of them have streamed. Each allocates its own
/// arrays, which are so in memory near it.
fn bandwidth(pool: &ThreadPool) -> Result<f64, DeviceError> {
    let threads = pool.current_num_threads();
    let (count, moved) = (streamed(threads), 3 * streamed(threads) * threads * size_of::<f32>());
    let own = pool.broadcast(|_| Stream::new(count).map(Mutex::new));
    let own = own.into_iter().collect::<Result<Vec<_>, DeviceError>>()?;
    let all = |thread: BroadcastContext<'_>| own[thread.index()].lock().unwrap_or_else(PoisonError::into_inner).run();
    let seconds = (0..ROUNDS).map(|_| timed(|| pool.broadcast(all)));
    Ok(moved as f64 / seconds.fold(f64::INFINITY, f64::min))
}

fn timed<R>(work: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Elements, all written.
fn floats(count: usize) -> Result<Vec<f32>, DeviceError> {
    let mut v = Vec::new();
    v.try_reserve_exact(count).map_err(|_| {
        DeviceError::Unavailable(format!("{} bytes to stream could not be allocated", count * size_of::<f32>()))
    })?;
    v.resize(count, 1.0);
    Ok(v)
}

/// Rows, columns and terms of the product: large enough for its packing to cost next to nothing.
const SIDE: usize = 512;

/// One thread's matrices.
struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    fn new() -> Result<Product, DeviceError> {
        Ok(Product { a: floats(SIDE * SIDE)?, b: floats(SIDE * SIDE)?, c: floats(SIDE * SIDE)? })
    }

    fn run(&mut self) {
        let matrix = |m: &mut Vec<f32>| Matrix { at: m.as_mut_ptr(), row: SIDE, col: 1 };
        let (c, a, b) = (matrix(&mut self.c), matrix(&mut self.a), matrix(&mut self.b));
        // SAFETY: three matrices of SIDE rows of SIDE elements, none of which overlaps another.
        unsafe { product(SIDE, SIDE, SIDE, c, a, b, false) };
    }
}

/// One thread's arrays: two are read and one of them is written, as in a weight's update.
struct Stream {
    from: Vec<f32>,
    to: Vec<f32>,
}

impl Stream {
    fn new(count: usize) -> Result<Stream, DeviceError> {
        Ok(Stream { from: floats(count)?, to: floats(count)? })
    }

    fn run(&mut self) {
        for (to, from) in self.to.iter_mut().zip(&self.from) {
            *to += 0.5 * from;
        }
    }
}

/// Elements of a thread's array: all threads' arrays are together eight times as large as the last cache, within
/// reason.
fn streamed(threads: usize) -> usize {
    let bytes = (8 * last_cache().unwrap_or(32 << 20)).clamp(64 << 20, 2 << 30);
    bytes / (2 * size_of::<f32>()) / threads
}

/// Bytes of the largest cache, where the system tells.
fn last_cache() -> Option<usize> {
    let folder = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = folder.flatten().filter_map(|e| size(&std::fs::read_to_string(e.path().join("size")).ok()?));
    sizes.max()
}

/// A size as the system writes it: `32768K`.
fn size(text: &str) -> Option<usize> {
    let text = text.trim();
    let scale = match text.chars().next_back()? {
        'K' => 1 << 10,
        'M' => 1 << 20,
        _ => 1,
    };
    text.trim_end_matches(['K', 'M']).parse::<usize>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_roof() {
        let roof = measure(Some(2)).expect("memory enough");
        assert!(roof.threads == 2 && roof.flops > 0.0 && roof.bandwidth > 0.0, "{roof:?}");
        assert!(roof.flops.is_finite() && roof.bandwidth.is_finite(), "{roof:?}");
    }

    #[test]
    fn what_is_timed_is_computed() {
        let mut p = Product::new().expect("memory");
        p.run();
        assert!(p.c.iter().all(|&x| x == SIDE as f32));
        let mut s = Stream::new(1000).expect("memory");
        s.run();
        assert!(s.to.len() == 1000 && s.to.iter().all(|&x| x == 1.5));
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("32768K\n"), Some(32 << 20));
        assert_eq!(
            (size("3M"), size("512"), size(""), size("K"), size("x")),
            (Some(3 << 20), Some(512), None, None, None)
        );
    }
}
