//! Bytes to an error or a graph that holds together.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use slrc_fuzz::{change_model, import};

fuzz_target!(|data: &[u8]| {
    import(data);
});

// Half of the time a change that keeps a model a model.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed.is_multiple_of(2) {
        return fuzzer_mutate(data, size, max_size);
    }
    let changed = change_model(&data[..size], seed.into());
    let n = changed.len().min(max_size);
    data[..n].copy_from_slice(&changed[..n]);
    n
});
