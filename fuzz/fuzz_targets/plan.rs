//! Text to an error or a validated plan.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use slrc_fuzz::{change_plan, plan};

fuzz_target!(|text: &str| {
    plan(text);
});

// Half of the time a change that keeps a plan nearly a plan.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let text = std::str::from_utf8(&data[..size]).ok().filter(|t| !t.is_empty() && !seed.is_multiple_of(2));
    let Some(text) = text else { return fuzzer_mutate(data, size, max_size) };
    let changed = change_plan(text, seed.into()).into_bytes();
    let n = changed.len().min(max_size);
    data[..n].copy_from_slice(&changed[..n]);
    n
});
