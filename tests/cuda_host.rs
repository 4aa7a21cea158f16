//! The stand-in CUDA device, tested through cudarc as the runtime uses it. tests/cuda-host/README.md describes it.
#![allow(unsafe_code, reason = "launching a kernel is unsafe in cudarc")]

mod support;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaModule, CudaStream, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use support::cuda_host::{Options, Order, bits, in_child};

/// A context with the kernels of a file of tests/cuda-host/cases.
struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

impl Device {
    fn new(file: &str) -> Device {
        let context = CudaContext::new(0).expect("a context");
        // Waits for events of other streams cannot be captured.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        let source = std::fs::read_to_string(support::root().join("tests/cuda-host/cases").join(file)).expect("a case");
        let options = CompileOptions {
            name: Some(file.to_string()),
            options: vec!["--gpu-architecture=compute_80".into(), "--fmad=false".into()],
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(source, options).expect("the case compiles");
        let module = context.load_module(ptx).expect("the module loads");
        Device { context, stream, module }
    }
}

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

/// Numbers in -2 ..= 2, the same everywhere.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4_194_304.0 - 2.0).collect()
}

fn elementwise(n: usize) -> Vec<u32> {
    let device = Device::new("good.cu");
    let x = device.stream.clone_htod(&numbers(n)).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(n).expect("output");
    let f = device.module.load_function("elementwise").expect("the kernel");
    let count = n as i32;
    unsafe {
        device
            .stream
            .launch_builder(&f)
            .arg(&mut y)
            .arg(&x)
            .arg(&1.5f32)
            .arg(&0.25f32)
            .arg(&count)
            .launch(config(4, 128, 0))
    }
    .expect("the launch");
    bits(&device.stream.clone_dtoh(&y).expect("the result"))
}

#[test]
fn elementwise_kernel_computes_the_formula() {
    let n = 1000;
    let ran = in_child("elementwise_kernel_computes_the_formula", &Options::default(), n, elementwise);
    for (x, y) in numbers(n).iter().zip(&ran.value) {
        let t = 1.5 * f64::from(*x) + 0.25;
        let expected = 0.5 * t * (1.0 + (0.797_884_560_8 * (t + 0.044_715 * t * t * t)).tanh());
        // Five roundings of 6e-8 each, on values below 4.
        assert!((f64::from(f32::from_bits(*y)) - expected).abs() < 1.2e-6, "x {x}: {} {expected}", f32::from_bits(*y));
    }
    assert_eq!(ran.counts.launches["elementwise"], 1);
    assert_eq!((ran.counts.blocks, ran.counts.threads), (4, 512));
    assert_eq!((ran.counts.host_to_device_bytes, ran.counts.device_to_host_bytes), (4 * n as u64, 4 * n as u64));
}
