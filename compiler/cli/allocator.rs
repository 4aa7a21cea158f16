//! Where the command's memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

/// Small blocks come from mimalloc: planning makes and drops millions of small vectors, and takes half as long again
/// with the system's allocator. Large ones come from the system, which gets the largest back as soon as they are
/// dropped: a run holds what its plan says and little of the files that it began with.
pub(crate) struct Allocator;

/// Bytes from which a block is large.
const LARGE: usize = 1 << 20;

fn is_large(bytes: usize) -> bool {
    bytes >= LARGE
}

#[allow(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every block goes back to the allocator that it came from, which its size tells.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller.
        unsafe { if is_large(layout.size()) { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the caller.
        unsafe { if is_large(layout.size()) { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: by the caller.
        unsafe { if is_large(layout.size()) { System.dealloc(block, layout) } else { MiMalloc.dealloc(block, layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        match (is_large(layout.size()), is_large(bytes)) {
            // SAFETY: by the caller.
            (true, true) => unsafe { System.realloc(block, layout, bytes) },
            // SAFETY: by the caller.
            (false, false) => unsafe { MiMalloc.realloc(block, layout, bytes) },
            // SAFETY: by the caller, `bytes` is a size for that alignment; the blocks are two, each of its size.
            (true, false) | (false, true) => unsafe {
                let new = self.alloc(Layout::from_size_align_unchecked(bytes, layout.align()));
                if !new.is_null() {
                    new.copy_from_nonoverlapping(block, layout.size().min(bytes));
                    self.dealloc(block, layout);
                }
                new
            },
        }
    }
}

#[cfg(test)]
mod tests {
    /// The tests' own allocator is this one.
    #[test]
    fn blocks_keep_what_they_hold_as_they_grow_and_shrink() {
        let mut v: Vec<u32> = Vec::new();
        for turn in 0..3u32 {
            (v.len() as u32..1_000_000).for_each(|i| v.push(i));
            assert!(v.iter().enumerate().all(|(i, &x)| i as u32 == x), "turn {turn}");
            v.truncate(1000 + turn as usize);
            v.shrink_to_fit();
            assert!(v.iter().enumerate().all(|(i, &x)| i as u32 == x), "turn {turn}");
        }
        assert!(vec![0u64; 1 << 18].iter().chain(&vec![0u64; 100]).all(|&x| x == 0));
    }
}
