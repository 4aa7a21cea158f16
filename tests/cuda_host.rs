//! The stand-in CUDA device, tested through cudarc as the runtime uses it. tests/cuda-host/README.md describes it.
//! That its detectors of mistakes fire is tested in cuda_host_detectors.rs.
#![allow(unsafe_code, reason = "launching a kernel is unsafe in cudarc")]

mod support;

use std::path::PathBuf;

use cudarc::driver::result::mem_get_info;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, DriverError, LaunchConfig, PushKernelArg as _};
use serde::{Deserialize, Serialize};
use support::cuda_host::device::{Device, compile, config, numbers};
use support::cuda_host::{Options, Order, Streams, bits, in_child};

const CAPTURE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];

fn name(error: DriverError) -> String {
    error.error_name().map_or_else(|_| format!("{error:?}"), |n| n.to_string_lossy().into_owned())
}

fn values(bits: &[u32]) -> Vec<f64> {
    bits.iter().map(|&b| f64::from(f32::from_bits(b))).collect()
}

/// A launch of a kernel of good.cu on `numbers(n)`.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Good {
    kernel: String,
    grid: [u32; 3],
    block: [u32; 2],
    shared: u32,
    outputs: usize,
    n: usize,
}

fn good(g: Good) -> Vec<u32> {
    let block_dim = (g.block[0], g.block[1], 1);
    let config = LaunchConfig { grid_dim: g.grid.into(), block_dim, shared_mem_bytes: g.shared };
    bits(&Device::with_case("good.cu").run(&g.kernel, config, g.outputs, &numbers(g.n)).expect("the kernel runs"))
}

/// Runs it in every order and on every kind of stream, which must not matter, and returns the result.
fn in_every_order(test: &str, kernel: &str, grid: [u32; 3], block: [u32; 2], outputs: usize, n: usize) -> Vec<f64> {
    // A float for every thread, of which only one kernel makes use.
    let shared = 4 * block[0] * block[1];
    let input = Good { kernel: kernel.to_string(), grid, block, shared, outputs, n };
    let first = in_child(test, &Options::default(), input.clone(), good);
    assert_eq!(first.counts.launches[kernel], 1);
    for order in ORDERS {
        for streams in [Streams::Eager, Streams::Lazy, Streams::Random(7)] {
            let options = Options { order, streams, ..Options::default() };
            let again = in_child(test, &options, input.clone(), good);
            assert_eq!(again.value, first.value, "{order:?} {streams:?}");
        }
    }
    values(&first.value)
}

#[test]
fn elementwise_computes_the_formula() {
    let y = in_every_order("elementwise_computes_the_formula", "elementwise", [4, 1, 1], [128, 1], 1000, 1000);
    for (x, y) in numbers(1000).iter().zip(y) {
        let t = 1.5 * f64::from(*x) + 0.25;
        let expected = 0.5 * t * (1.0 + (0.797_884_560_8 * (t + 0.044_715 * t * t * t)).tanh());
        // A few roundings of 6e-8 each, on values below 4.
        assert!((y - expected).abs() < 1.2e-6, "x {x}: {y} {expected}");
    }
}

#[test]
fn shuffles_sum_a_block() {
    let y = in_every_order("shuffles_sum_a_block", "reduce_sum", [3, 1, 1], [128, 1], 3, 5000);
    for (block, sum) in y.iter().enumerate() {
        let own = numbers(5000).into_iter().enumerate().filter(|(i, _)| i / 128 % 3 == block);
        let expected: f64 = own.map(|(_, x)| f64::from(x)).sum();
        // Some 1700 numbers up to 2: partial sums stay below 100 and are rounded 20 times by 4e-6 at most.
        assert!((sum - expected).abs() < 1e-4, "block {block}: {sum} {expected}");
    }
}

#[test]
fn softmax_with_dynamic_shared_memory() {
    let (rows, columns) = (3, 77);
    let n = rows * columns;
    let y = in_every_order("softmax_with_dynamic_shared_memory", "softmax_row", [3, 1, 1], [64, 1], n, n);
    let x: Vec<f64> = numbers(n).into_iter().map(f64::from).collect();
    for (x, y) in x.chunks(columns).zip(y.chunks(columns)) {
        let sum: f64 = x.iter().map(|x| x.exp()).sum();
        for (x, y) in x.iter().zip(y) {
            // Values below 0.1, each from an exponential, a sum and a division in single precision.
            assert!((y - x.exp() / sum).abs() < 2e-8, "{y} {}", x.exp() / sum);
        }
    }
}

#[test]
fn vector_loads() {
    let y = in_every_order("vector_loads", "axpy4", [2, 1, 1], [32, 1], 200, 200);
    let expected: Vec<f64> = numbers(200).into_iter().map(|x| f64::from(3.0 * x)).collect();
    assert_eq!(y, expected);
}

#[test]
fn blocks_in_three_dimensions() {
    let n = 2 * 20 * 24;
    let y = in_every_order("blocks_in_three_dimensions", "transpose", [2, 2, 2], [16, 16], n, n);
    let x = numbers(n);
    for (i, y) in y.iter().enumerate() {
        let (plane, column, row) = (i / 480, i % 480 / 20, i % 20);
        assert_eq!(*y, f64::from(x[plane * 480 + row * 24 + column]));
    }
}

#[test]
fn integer_atomics_and_ballot() {
    let y = in_every_order("integer_atomics_and_ballot", "extremes", [4, 1, 1], [128, 1], 2, 500);
    let x = numbers(500);
    assert_eq!(y[0], f64::from(x.iter().copied().fold(f32::MIN, f32::max)));
    let positive = x.iter().filter(|x| **x > 0.0).count() as u32;
    assert_eq!(y[1], f64::from(f32::from_bits(positive)));
}

#[test]
fn warps_hand_over_through_shared_memory() {
    let y = in_every_order("warps_hand_over_through_shared_memory", "warp_exchange", [2, 1, 1], [128, 1], 256, 256);
    let x = numbers(256);
    assert!(y.iter().enumerate().all(|(i, y)| *y == f64::from(x[i ^ 1] + 1.0)));
}

/// Captures `y += 3 x` twice, replays it three times, and returns y[0] after the capture and at the end.
fn replay((): ()) -> (f32, f32, f32) {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    device.stream.synchronize().expect("no error");
    device.stream.begin_capture(CAPTURE).expect("the capture begins");
    for _ in 0..2 {
        device.launch("axpy4", config(1, 32, 0), &mut y, &x).expect("a captured launch");
    }
    let graph = device.stream.end_capture(CUgraphInstantiate_flags(0)).expect("the capture ends").expect("a graph");
    let before = device.stream.clone_dtoh(&y).expect("the result")[0];
    graph.upload().expect("the graph's upload");
    for _ in 0..3 {
        graph.launch().expect("a replay");
    }
    (before, x.len() as f32, device.stream.clone_dtoh(&y).expect("the result")[0])
}

#[test]
fn graphs_run_only_when_launched() {
    for streams in [Streams::Eager, Streams::Lazy, Streams::Random(3)] {
        let options = Options { streams, ..Options::default() };
        let ran = in_child("graphs_run_only_when_launched", &options, (), replay);
        assert_eq!(ran.value, (0.0, 64.0, 18.0), "{streams:?}");
        let c = ran.counts;
        assert_eq!((c.graphs_captured, c.graphs_instantiated, c.graph_launches, c.graph_nodes_executed), (1, 1, 3, 6));
        assert_eq!((c.launches["axpy4"], c.calls("cuLaunchKernel")), (6, 2));
    }
}

/// What the host finds in page-locked memory before and after it synchronises.
fn early_read((): ()) -> (f32, f32) {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[7.0f32; 8]).expect("input");
    let mut host = unsafe { device.context.alloc_pinned::<f32>(8) }.expect("page-locked memory");
    host.as_mut_slice().expect("no error").fill(0.0);
    device.stream.memcpy_dtoh(&x, &mut host).expect("the copy");
    let pointer = host.as_ptr().expect("no error");
    let early = unsafe { *pointer };
    device.stream.synchronize().expect("no error");
    (early, unsafe { *pointer })
}

#[test]
fn lazy_streams_show_a_missing_synchronisation() {
    let test = "lazy_streams_show_a_missing_synchronisation";
    let eager = in_child(test, &Options::default(), (), early_read);
    assert_eq!(eager.value, (7.0, 7.0));
    let lazy = in_child(test, &Options { streams: Streams::Lazy, ..Options::default() }, (), early_read);
    assert_eq!(lazy.value, (0.0, 7.0));
}

/// Two streams, with or without an event between: what the second copies of what the first writes.
fn two_streams(wait: bool) -> f32 {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    let mut z = device.stream.alloc_zeros::<f32>(64).expect("output");
    device.stream.synchronize().expect("no error");
    let other = device.context.new_stream().expect("a stream");
    device.launch("axpy4", config(1, 32, 0), &mut y, &x).expect("the launch");
    if wait {
        other.join(&device.stream).expect("an event");
    }
    other.memcpy_dtod(&y, &mut z).expect("the copy");
    other.clone_dtoh(&z).expect("the result")[0]
}

#[test]
fn lazy_streams_show_a_missing_event() {
    let test = "lazy_streams_show_a_missing_event";
    let lazy = Options { streams: Streams::Lazy, ..Options::default() };
    assert_eq!(in_child(test, &Options::default(), false, two_streams).value, 3.0);
    assert_eq!(in_child(test, &lazy, false, two_streams).value, 0.0);
    assert_eq!(in_child(test, &lazy, true, two_streams).value, 3.0);
    // Chance shows the missing event for some seeds, and never a present one.
    let run = |seed, wait| {
        in_child(test, &Options { streams: Streams::Random(seed), ..Options::default() }, wait, two_streams).value
    };
    assert!((0..8).any(|seed| run(seed, false) == 0.0));
    assert!((0..8).all(|seed| run(seed, true) == 3.0));
}

/// Allocates 1 MiB at a time until it fails.
fn fill_memory((): ()) -> (usize, String, usize, usize) {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.default_stream();
    let mut kept = Vec::new();
    let error = loop {
        match stream.alloc_zeros::<u8>(1 << 20) {
            Ok(slice) => kept.push(slice),
            Err(e) => break name(e),
        }
    };
    let (free, total) = mem_get_info().expect("no error");
    (kept.len(), error, free, total)
}

#[test]
fn memory_ends() {
    for pools in [true, false] {
        let options = Options { memory: 10 << 20, pools, ..Options::default() };
        let ran = in_child("memory_ends", &options, (), fill_memory);
        assert_eq!(ran.value, (10, "CUDA_ERROR_OUT_OF_MEMORY".to_string(), 0, 10 << 20));
        assert_eq!(ran.counts.peak_bytes, 10 << 20);
        assert_eq!(ran.counts.calls("cuMemAllocAsync"), if pools { 11 } else { 0 });
    }
}

/// Names of what six launches and the synchronisation after each return.
fn launches((): ()) -> Vec<String> {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    let (f, n) = (device.function("axpy4"), 64);
    let mut results = Vec::new();
    let text = |r: Result<(), DriverError>| r.map_or_else(name, |()| "ok".to_string());
    for _ in 0..3 {
        let launched = unsafe { device.stream.launch_builder(&f).arg(&mut y).arg(&x).arg(&n).launch(config(1, 32, 0)) };
        results.push(text(launched.map(|_| ())));
        results.push(text(device.stream.synchronize()));
    }
    results
}

#[test]
fn errors_are_injected() {
    let run = |fail: &str| {
        let options = Options { fail: fail.to_string(), ..Options::default() };
        in_child("errors_are_injected", &options, (), launches).value
    };
    let illegal = "CUDA_ERROR_ILLEGAL_ADDRESS";
    assert_eq!(run(""), ["ok"; 6]);
    assert_eq!(run("cuLaunchKernel:2:700"), ["ok", "ok", illegal, "ok", "ok", "ok"]);
    assert_eq!(run("cuLaunchKernel:2:700:sticky"), ["ok", "ok", illegal, illegal, illegal, illegal]);
    assert_eq!(run("cuLaunchKernel:2:719:late")[2..4], ["ok", "CUDA_ERROR_LAUNCH_FAILED"]);
    let two = run("cuStreamSynchronize:1:999,cuLaunchKernel:3:2");
    assert_eq!(two, ["ok", "CUDA_ERROR_UNKNOWN", "ok", "ok", "CUDA_ERROR_OUT_OF_MEMORY", "ok"]);
}

/// What a process finds of devices and driver.
fn survey((): ()) -> (String, i32, Option<(String, i32, i32, usize, String)>) {
    let count = CudaContext::device_count();
    let error = count.as_ref().map_or_else(|e| name(*e), |_| "ok".to_string());
    let device = CudaContext::new(0).ok().map(|context| {
        let (major, minor) = context.compute_capability().expect("no error");
        let ptx = compile("empty.cu", "extern \"C\" __global__ void empty() {}").expect("an empty kernel compiles");
        let load = context.load_module(ptx).map_or_else(name, |_| "ok".to_string());
        (context.name().expect("no error"), major, minor, context.total_mem().expect("no error"), load)
    });
    (error, count.unwrap_or(0), device)
}

#[test]
fn devices_and_drivers_of_all_kinds() {
    let run = |options: Options| in_child("devices_and_drivers_of_all_kinds", &options, (), survey).value;
    let base = Options { memory: 1 << 30, ..Options::default() };
    let device = |minor, load: &str| Some(("CUDA host stand-in 0".to_string(), 8, minor, 1 << 30, load.to_string()));
    assert_eq!(run(base.clone()), ("ok".to_string(), 1, device(0, "ok")));
    assert_eq!(run(Options { devices: 3, capability: 86, ..base.clone() }), ("ok".to_string(), 3, device(6, "ok")));
    assert_eq!(run(Options { devices: 0, ..base.clone() }), ("CUDA_ERROR_NO_DEVICE".to_string(), 0, None));
    let old = run(Options { driver_version: 12020, ..base.clone() });
    assert_eq!(old.2, device(0, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"));
    let small = run(Options { capability: 75, ..base });
    assert_eq!(small.2.expect("a device").4, "CUDA_ERROR_NO_BINARY_FOR_GPU");
}

/// The compiler's log for source that does not compile.
fn compile_log(source: String) -> String {
    match compile("broken.cu", &source).expect_err("source that does not compile") {
        cudarc::nvrtc::CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn compile_errors_name_file_and_line() {
    let run = |source: &str| {
        in_child("compile_errors_name_file_and_line", &Options::default(), source.to_string(), compile_log).value
    };
    let log = run("extern \"C\" __global__ void k(float* p) {\n  p[0] = INFINITY;\n}\n");
    assert!(log.contains("broken.cu:2:") && log.contains("INFINITY"), "{log}");
    let log = run("\n#include <math.h>\n");
    assert!(log.contains("broken.cu:2:"), "{log}");
    let log = run("extern __shared__ float s[];\n");
    assert!(log.contains("broken.cu(1)") && log.contains("inside the kernel"), "{log}");
}

/// The chronological log of a copy and a launch on two streams.
fn two_operations((): ()) {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.context.new_stream().expect("a stream").alloc_zeros::<f32>(64).expect("output");
    device.launch("axpy4", config(2, 32, 0), &mut y, &x).expect("the launch");
    device.stream.synchronize().expect("no error");
}

#[test]
fn the_log_is_chronological() {
    let options = Options { log: Some(PathBuf::new()), ..Options::default() };
    let log = in_child("the_log_is_chronological", &options, (), two_operations).log;
    let expected = [
        "copy to the device 256 bytes staged stream 1",
        "fill 256 bytes stream 2",
        "launch axpy4 grid 2 1 1 block 32 1 1 shared 0 stream 1",
        "synchronize stream 1",
    ];
    assert_eq!(log, expected);
}
