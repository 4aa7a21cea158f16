//! Every detector of the stand-in CUDA device fires on a mistake planted for it, and none on correct kernels.

use cudarc::driver::DevicePtr as _;
use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;

use crate::support::cuda_host::device::{Device, config, guard, numbers};
use crate::support::cuda_host::{Options, Order, Sanitizer, bits, in_child, in_child_failing};
use crate::{outcome, stand_in, support};

/// Threads of a block in most launches here.
const BLOCK: u32 = 128;

fn options(sanitizer: Sanitizer) -> Options {
    Options { sanitizer, ..stand_in() }
}

/// Runs a kernel of planted.cu with its blocks, threads and bytes of dynamic shared memory. The bits of its output, or
/// the error's name.
fn planted((kernel, blocks, threads, shared): (String, u32, u32, u32)) -> Result<Vec<u32>, String> {
    let n = (blocks * threads) as usize;
    let result = Device::with_case("planted.cu").run(&kernel, config(blocks, threads, shared), n, &numbers(n));
    result.map(|v| bits(&v)).map_err(|e| e.error_name().expect("a name").to_string_lossy().into_owned())
}

type Case = (String, u32, u32, u32);

fn case(kernel: &str, blocks: u32) -> Case {
    (kernel.to_string(), blocks, BLOCK, 4 * BLOCK)
}

/// The kernel must end with the device's error `code` and a message with every one of `parts`.
fn is_error(test: &str, options: &Options, case: Case, code: &str, parts: &[&str]) {
    let ran = in_child(test, options, case, planted);
    assert_eq!(ran.value, Err(code.to_string()), "{}", ran.output);
    for part in parts {
        assert!(ran.output.contains(part), "no {part:?} in\n{}", ran.output);
    }
}

const FAILED: &str = "CUDA_ERROR_LAUNCH_FAILED";
const ILLEGAL: &str = "CUDA_ERROR_ILLEGAL_ADDRESS";

/// The line of planted.cu, from 1, that holds `text` first after the head of `kernel`.
fn line(kernel: &str, text: &str) -> usize {
    let source = std::fs::read_to_string(support::root().join("tests/cuda-host/cases/planted.cu")).expect("the cases");
    let head = source.lines().position(|l| l.contains(&format!("void {kernel}("))).expect("the kernel");
    head + 1 + source.lines().skip(head).position(|l| l.contains(text)).expect("the line")
}

/// The address and undefined-behaviour sanitizers end the process with a report.
fn is_reported(test: &str, kernel: &str, text: &str, parts: &[&str]) {
    let output = in_child_failing(test, &options(Sanitizer::Address), case(kernel, 1), planted);
    let at = format!("planted.cu:{}", line(kernel, text));
    for part in parts.iter().copied().chain([at.as_str()]) {
        assert!(output.contains(part), "no {part:?} in\n{output}");
    }
}

#[test]
fn address_global() {
    is_reported("detectors::address_global", "past_global", "out[i + 1]", &["heap-buffer-overflow", "WRITE of size 4"]);
}

#[test]
fn address_static_shared() {
    is_reported(
        "detectors::address_static_shared",
        "past_static_shared",
        "s[threadIdx.x + 1]",
        &["index 128 out of bounds"],
    );
}

#[test]
fn address_static_shared_through_a_pointer() {
    let test = "detectors::address_static_shared_through_a_pointer";
    is_reported(test, "past_shared_pointer", "p[threadIdx.x + 1]", &["global-buffer-overflow", "WRITE of size 4"]);
}

#[test]
fn address_dynamic_shared() {
    let parts = ["heap-buffer-overflow", "WRITE of size 4"];
    is_reported("detectors::address_dynamic_shared", "past_dynamic_shared", "s[threadIdx.x + 1]", &parts);
}

/// `past_global` on the first half of a block of device memory whose second half is another buffer's.
fn in_one_block(guarded: bool) {
    let device = Device::with_case("planted.cu");
    let x = device.stream.clone_htod(&numbers(BLOCK as usize)).expect("input");
    let mut both = device.stream.alloc_zeros::<f32>(2 * BLOCK as usize).expect("two outputs");
    if guarded {
        guard(both.device_ptr(&device.stream).0 + 4 * u64::from(BLOCK), 4 * BLOCK as usize);
    }
    device.launch("past_global", config(1, BLOCK, 0), &mut both, &x).expect("the launch");
    device.stream.synchronize().expect("no error");
}

#[test]
fn address_guards_within_a_block_of_memory() {
    let test = "detectors::address_guards_within_a_block_of_memory";
    in_child(test, &options(Sanitizer::Address), false, in_one_block);
    let output = in_child_failing(test, &options(Sanitizer::Address), true, in_one_block);
    assert!(output.contains("use-after-poison") && output.contains("WRITE of size 4"), "{output}");
}

#[test]
fn address_misaligned() {
    is_reported("detectors::address_misaligned", "misaligned", "quads[", &["misaligned address"]);
}

#[test]
fn address_overflow() {
    is_reported("detectors::address_overflow", "overflow", "int row", &["signed integer overflow"]);
}

#[test]
fn uninitialised_shared_memory_is_nan() {
    let run = |sanitizer, kernel| {
        let ran =
            in_child("detectors::uninitialised_shared_memory_is_nan", &options(sanitizer), case(kernel, 1), planted);
        ran.value.expect("the kernel runs").into_iter().filter(|b| f32::from_bits(*b).is_nan()).count()
    };
    for sanitizer in [Sanitizer::None, Sanitizer::Address, Sanitizer::Thread] {
        assert_eq!(run(sanitizer, "uninitialised_shared"), 128, "{sanitizer:?}");
        assert_eq!(run(sanitizer, "uninitialised_dynamic"), 128, "{sanitizer:?}");
    }
}

#[test]
fn order_shows_a_missing_barrier() {
    let run = |order| {
        let options = Options { order, ..stand_in() };
        in_child("detectors::order_shows_a_missing_barrier", &options, case("missing_barrier", 1), planted).value
    };
    let forward = run(Order::Forward);
    assert_ne!(forward, run(Order::Reverse));
    assert_ne!(forward, run(Order::Random(1)));
}

/// Two places of a race, in either order.
fn is_race(test: &str, kernel: &str, blocks: u32, parts: &[&str], first: &str, second: &str) {
    let at = [first, second].map(|text| format!("planted.cu:{}", line(kernel, text)));
    let all: Vec<&str> =
        ["race in kernel", kernel].iter().chain(parts).copied().chain(at.iter().map(|a| a.as_str())).collect();
    is_error(test, &options(Sanitizer::Thread), case(kernel, blocks), FAILED, &all);
}

#[test]
fn race_missing_barrier() {
    let (write, read) = ("s[threadIdx.x] =", "s[127 -");
    is_race(
        "detectors::race_missing_barrier",
        "missing_barrier",
        1,
        &["shared memory", "write by thread"],
        write,
        read,
    );
}

#[test]
fn race_write_after_read() {
    let both = "s[threadIdx.x] +=";
    is_race(
        "detectors::race_write_after_read",
        "write_after_read",
        1,
        &["shared memory", "read by thread"],
        both,
        both,
    );
}

#[test]
fn race_between_lanes() {
    is_race("detectors::race_between_lanes", "missing_syncwarp", 1, &["shared memory"], "s[threadIdx.x] =", "^ 1");
}

#[test]
fn race_between_warps() {
    is_race("detectors::race_between_warps", "syncwarp_for_block", 1, &["shared memory"], "s[threadIdx.x] =", "^ 64");
}

#[test]
fn race_between_blocks_adding() {
    let parts = ["global memory, offset 0", "block (0, 0, 0)", "block (1, 0, 0)"];
    is_race("detectors::race_between_blocks_adding", "blocks_add", 2, &parts, "out[0] +=", "out[0] +=");
}

#[test]
fn race_between_blocks_reading() {
    is_race("detectors::race_between_blocks_reading", "blocks_read", 2, &["global memory"], "out[i] =", "out[i] +=");
}

#[test]
fn race_between_blocks_atomic_and_plain() {
    let parts = ["global memory", "atomic operation"];
    is_race(
        "detectors::race_between_blocks_atomic_and_plain",
        "blocks_atomic_and_plain",
        2,
        &parts,
        "atomicAdd",
        "out[1 +",
    );
}

#[test]
fn race_last_block_without_fence() {
    let parts = ["global memory", "write by thread (1, 0, 0) of block (0, 0, 0)"];
    let kernel = "last_block_without_fence";
    is_race("detectors::race_last_block_without_fence", kernel, 2, &parts, "out[1 +", "out[0] =");
}

#[test]
fn race_last_block_without_barrier() {
    let parts = ["global memory", "write by thread (1, 0, 0) of block (0, 0, 0)"];
    let kernel = "last_block_without_barrier";
    is_race("detectors::race_last_block_without_barrier", kernel, 2, &parts, "out[1 +", "out[0] =");
}

#[test]
fn barrier_divergence() {
    let parts = ["barrier divergence", "16 wait at __syncthreads", "16 wait at a warp operation", "0 returned"];
    let one_warp = ("barrier_and_shuffle".to_string(), 1, 32, 0);
    is_error("detectors::barrier_divergence", &stand_in(), one_warp, FAILED, &parts);
}

#[test]
fn different_barriers() {
    let first = line("two_barriers", "__syncthreads");
    let place = format!("different __syncthreads: line {first} and line {}", first + 2);
    is_error("detectors::different_barriers", &stand_in(), case("two_barriers", 1), FAILED, &[&place]);
}

#[test]
fn return_before_a_barrier() {
    let parts = ["barrier divergence", "100 wait at __syncthreads", "28 returned"];
    is_error("detectors::return_before_a_barrier", &stand_in(), case("return_before_barrier", 1), FAILED, &parts);
}

#[test]
fn products_of_numbers_nobody_rounded() {
    let parts = ["multiplies 0x", "never rounded"];
    let test = "detectors::products_of_numbers_nobody_rounded";
    is_error(test, &stand_in(), case("unrounded_product", 1), FAILED, &parts);
}

#[test]
fn products_without_all_lanes() {
    let test = "detectors::products_without_all_lanes";
    let parts = ["barrier divergence", "wait at a warp operation"];
    is_error(test, &stand_in(), case("product_of_half_a_warp", 1), FAILED, &parts);
    // A block that ends within a warp.
    let short = ("unrounded_product".to_string(), 1, 16, 0);
    is_error(test, &stand_in(), short, FAILED, &["mma.sync needs all 32 lanes", "0x0000ffff"]);
}

#[test]
fn warp_operations_disagree() {
    let test = "detectors::warp_operations_disagree";
    // Forward, the lower half has gone on before the upper names it; the other orders meet the two masks.
    for (order, part) in [(Order::Forward, "wait at a warp operation"), (Order::Reverse, "lane 16 waits with mask")] {
        let options = Options { order, ..stand_in() };
        is_error(test, &options, case("mask_conflict", 1), FAILED, &[part]);
    }
    let parts = ["leaves out the calling lane 16"];
    is_error(test, &stand_in(), case("own_lane_missing", 1), FAILED, &parts);
}

#[test]
fn a_shuffle_from_outside_the_mask_is_nan() {
    let test = "detectors::a_shuffle_from_outside_the_mask_is_nan";
    let ran = in_child(test, &stand_in(), case("shuffle_from_outside", 1), planted);
    let nan = |b: &u32| f32::from_bits(*b).is_nan();
    let found: Vec<bool> = ran.value.expect("the kernel runs").iter().map(nan).collect();
    assert!(found.iter().enumerate().all(|(i, nan)| *nan == (i % 32 < 16)));
}

#[test]
fn a_fault_becomes_the_devices_error() {
    let test = "detectors::a_fault_becomes_the_devices_error";
    let parts = ["kernel null_pointer", "fault at address"];
    is_error(test, &stand_in(), case("null_pointer", 1), ILLEGAL, &parts);
    is_error(test, &stand_in(), case("stack_overflow", 1), ILLEGAL, &["kernel stack_overflow", "fault at address"]);
    is_error(test, &stand_in(), case("divide_by_zero", 1), FAILED, &["integer division by zero"]);
}

/// Outcomes of calls after a launch that faults.
fn after_a_fault((): ()) -> Vec<String> {
    let device = Device::with_case("planted.cu");
    let x = device.stream.clone_htod(&numbers(BLOCK as usize)).expect("input");
    let mut out = device.stream.alloc_zeros::<f32>(BLOCK as usize).expect("output");
    let f = device.function("past_global");
    let launch = device.launch("null_pointer", config(1, BLOCK, 0), &mut out, &x);
    vec![
        outcome(launch),
        outcome(device.stream.alloc_zeros::<f32>(1)),
        outcome(device.stream.memset_zeros(&mut out)),
        outcome(f.get_attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)),
        outcome(device.stream.clone_dtoh(&x)),
    ]
}

#[test]
fn a_fault_is_sticky() {
    let ran = in_child("detectors::a_fault_is_sticky", &stand_in(), (), after_a_fault);
    // The launch itself is asynchronous.
    assert_eq!(ran.value, ["ok", ILLEGAL, ILLEGAL, ILLEGAL, ILLEGAL], "{}", ran.output);
}

/// Bits of what the kernels of good.cu compute.
fn good((): ()) -> Vec<Vec<u32>> {
    let device = Device::with_case("good.cu");
    let run = |kernel: &str, blocks, outputs| {
        bits(&device.run(kernel, config(blocks, BLOCK, 4 * BLOCK), outputs, &numbers(512)).expect("the kernel runs"))
    };
    vec![
        run("elementwise", 3, 512),
        run("roundings", 4, 1024),
        run("reduce_sum", 3, 3),
        run("softmax_row", 4, 512),
        run("axpy4", 1, 512),
        run("extremes", 4, 2),
        run("warp_exchange", 4, 512),
        run("last_block_sums", 4, 6),
    ]
}

#[test]
fn correct_kernels_are_not_reported() {
    let run = |sanitizer| in_child("detectors::correct_kernels_are_not_reported", &options(sanitizer), (), good);
    let plain = run(Sanitizer::None);
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        let ran = run(sanitizer);
        assert_eq!(ran.value, plain.value, "{sanitizer:?}");
        assert!(!ran.output.contains("runtime error") && !ran.output.contains("cuda-host:"), "{}", ran.output);
    }
}
