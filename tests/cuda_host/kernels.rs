//! Kernels compute what they should, the same bits in every thread order and on every kind of stream.

use std::path::PathBuf;

use cudarc::driver::LaunchConfig;
use cudarc::driver::sys::CUfunction_attribute::{
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as MAX_THREADS_PER_BLOCK,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as SHARED_SIZE_BYTES,
};
use serde::{Deserialize, Serialize};

use crate::stand_in;
use crate::support::cuda_host::device::{Device, compile, numbers};
use crate::support::cuda_host::{Options, Order, Streams, bits, in_child, real};

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];

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
    if real() {
        return values(&first.value);
    }
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
    let y = in_every_order("kernels::elementwise_computes_the_formula", "elementwise", [4, 1, 1], [128, 1], 1000, 1000);
    for (x, y) in numbers(1000).iter().zip(y) {
        let t = 1.5 * f64::from(*x) + 0.25;
        let expected = 0.5 * t * (1.0 + (0.797_884_560_8 * (t + 0.044_715 * t * t * t)).tanh());
        // A few roundings of 6e-8 each, on values below 4.
        assert!((y - expected).abs() < 1.2e-6, "x {x}: {y} {expected}");
    }
}

#[test]
fn only_fmaf_rounds_once() {
    let y = in_every_order("kernels::only_fmaf_rounds_once", "roundings", [8, 1, 1], [128, 1], 2000, 1000);
    for (x, y) in numbers(1000).into_iter().zip(y.chunks(2)) {
        assert_eq!(y, [f64::from(x * x + 0.25), f64::from(x.mul_add(x, 0.25))]);
    }
}

#[test]
fn shuffles_sum_a_block() {
    let y = in_every_order("kernels::shuffles_sum_a_block", "reduce_sum", [3, 1, 1], [128, 1], 3, 5000);
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
    let y = in_every_order("kernels::softmax_with_dynamic_shared_memory", "softmax_row", [3, 1, 1], [64, 1], n, n);
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
    let y = in_every_order("kernels::vector_loads", "axpy4", [2, 1, 1], [32, 1], 200, 200);
    let expected: Vec<f64> = numbers(200).into_iter().map(|x| f64::from(3.0 * x)).collect();
    assert_eq!(y, expected);
}

#[test]
fn blocks_in_three_dimensions() {
    let n = 2 * 20 * 24;
    let y = in_every_order("kernels::blocks_in_three_dimensions", "transpose", [2, 2, 2], [16, 16], n, n);
    let x = numbers(n);
    for (i, y) in y.iter().enumerate() {
        let (plane, column, row) = (i / 480, i % 480 / 20, i % 20);
        assert_eq!(*y, f64::from(x[plane * 480 + row * 24 + column]));
    }
}

#[test]
fn integer_atomics_and_ballot() {
    let y = in_every_order("kernels::integer_atomics_and_ballot", "extremes", [4, 1, 1], [128, 1], 2, 500);
    let x = numbers(500);
    assert_eq!(y[0], f64::from(x.iter().copied().fold(f32::MIN, f32::max)));
    let positive = x.iter().filter(|x| **x > 0.0).count() as u32;
    assert_eq!(y[1], f64::from(f32::from_bits(positive)));
}

#[test]
fn the_last_block_adds_what_the_others_left() {
    let name = "kernels::the_last_block_adds_what_the_others_left";
    let y = in_every_order(name, "last_block_sums", [4, 1, 1], [128, 1], 6, 500);
    let sum: f64 = numbers(500).iter().map(|&x| f64::from(x)).sum();
    // Roundings of a sum of 500 numbers up to 2.
    assert!((y[0] - sum).abs() < 1e-4, "{} and {sum}", y[0]);
    assert_eq!(y[5].to_bits(), 0, "the counter is as it was");
}

#[test]
fn warps_hand_over_through_shared_memory() {
    let y = in_every_order(
        "kernels::warps_hand_over_through_shared_memory",
        "warp_exchange",
        [2, 1, 1],
        [128, 1],
        256,
        256,
    );
    let x = numbers(256);
    assert!(y.iter().enumerate().all(|(i, y)| *y == f64::from(x[i ^ 1] + 1.0)));
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
    let options = Options { real_nvrtc: None, ..stand_in() };
    let run = |source: &str| {
        in_child("kernels::compile_errors_name_file_and_line", &options, source.to_string(), compile_log).value
    };
    let log = run("extern \"C\" __global__ void k(float* p) {\n  p[0] = INFINITY;\n}\n");
    assert!(log.contains("broken.cu:2:") && log.contains("INFINITY"), "{log}");
    let log = run("\n#include <math.h>\n");
    assert!(log.contains("broken.cu:2:") && log.contains("no include path in which to search for math.h"), "{log}");
    let log = run("extern \"C\" __global__ void k(float* p) {\n  asm(\"ex2.approx.f32 %0, %0;\" : \"+f\"(p[0]));\n}\n");
    assert!(
        log.contains("broken.cu(2)") && log.contains("unknown inline PTX: ex2.approx.f32 %0, %0; with +f"),
        "{log}"
    );
    let log = run("extern \"C\" __global__ void k(float* p) {\n  {\n    const int p = 1;\n  }\n}\n");
    assert!(log.contains("broken.cu:3:") && log.contains("shadows a parameter"), "{log}");
    let log = run("extern __shared__ float s[];\n");
    assert!(log.contains("broken.cu(1)") && log.contains("inside the kernel"), "{log}");
}

#[test]
fn a_real_compiler_is_asked_first() {
    let test = "kernels::a_real_compiler_is_asked_first";
    let source = "extern \"C\" __global__ void k(float* p) { p[0] = INFINITY; }";
    let missing = Options { real_nvrtc: Some(PathBuf::from("/nowhere/libnvrtc.so.12")), ..stand_in() };
    let log = in_child(test, &missing, source.to_string(), compile_log).value;
    assert!(log.contains("/nowhere/libnvrtc.so.12: cannot open"), "{log}");
    // Where the environment names one, the message is in its words.
    if stand_in().real_nvrtc.is_some() {
        let log = in_child(test, &stand_in(), source.to_string(), compile_log).value;
        assert!(log.contains("identifier \"INFINITY\" is undefined"), "{log}");
    }
}

/// Names, launch bounds and static shared memory of kernels whose heads are written in every way.
fn heads((): ()) -> Vec<(String, i32, i32)> {
    let source = r#"
        // __global__ void commented(int) { }
        #define THREADS 64
        static __device__ float helper(float v) { __shared__ float s[8]; s[threadIdx.x % 8] = v; return s[threadIdx.x % 8]; }
        extern "C" __global__ void plain(float* y, const float* x, int n) { y[0] = helper(x[0]); }
        extern "C" __global__ void __launch_bounds__(128) after(float* y) { __shared__ float s[16]; s[0] = y[0]; y[1] = s[0]; }
        extern "C" __global__ __launch_bounds__(THREADS * 2, 2) void before() {}
        extern "C" {
          __global__ void declared(const char* text);
          __global__ void declared(const char* text) { if (text[0] == '"') { } }
        }
        extern "C" __global__ void
        wrapped(float* y)
        {
          __shared__ __align__(16) float4 s[4];
          s[threadIdx.x] = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
          y[threadIdx.x] = s[threadIdx.x].w;
        }
    "#;
    let device = Device::with_source("heads.cu", source);
    let attribute = |name: &str, a| device.function(name).get_attribute(a).expect("an attribute");
    ["plain", "after", "before", "declared", "wrapped"]
        .map(|k| (k.to_string(), attribute(k, MAX_THREADS_PER_BLOCK), attribute(k, SHARED_SIZE_BYTES)))
        .to_vec()
}

#[test]
fn heads_of_every_form_are_found() {
    let ran = in_child("kernels::heads_of_every_form_are_found", &stand_in(), (), heads);
    // 32 bytes belong to the device function, which any kernel may call.
    let expected =
        [("plain", 1024, 32), ("after", 128, 96), ("before", 128, 32), ("declared", 1024, 32), ("wrapped", 1024, 96)];
    assert_eq!(ran.value, expected.map(|(k, threads, shared)| (k.to_string(), threads, shared)));
}
