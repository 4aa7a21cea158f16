//! A context with the kernels of one source file, for tests that launch kernels themselves.
#![allow(unsafe_code, reason = "launching a kernel and calling a library by name")]

use std::path::Path;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg as _,
};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};

pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) module: Arc<CudaModule>,
}

/// Compiles source with the options of the runtime.
pub(crate) fn compile(name: &str, source: &str) -> Result<Ptx, CompileError> {
    let options = CompileOptions {
        name: Some(name.to_string()),
        options: vec!["--gpu-architecture=compute_80".into(), "--fmad=false".into()],
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source, options)
}

pub(crate) fn config(grid: u32, block: u32, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes }
}

impl Device {
    /// With the kernels of a file of tests/cuda-host/cases.
    pub(crate) fn with_case(file: &str) -> Device {
        let source = std::fs::read_to_string(crate::support::root().join("tests/cuda-host/cases").join(file));
        Device::with_source(file, &source.expect("a case"))
    }

    pub(crate) fn with_source(name: &str, source: &str) -> Device {
        let context = CudaContext::new(0).expect("a context");
        // Event tracking would have captured streams wait for events outside the capture.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        let module = context.load_module(compile(name, source).expect("the source compiles")).expect("the module");
        Device { context, stream, module }
    }

    pub(crate) fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap_or_else(|e| panic!("kernel {name}: {e}"))
    }

    /// Launches `name(out, x, n)` with `n` the length of `x`.
    pub(crate) fn launch(
        &self,
        name: &str,
        config: LaunchConfig,
        out: &mut CudaSlice<f32>,
        x: &CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        let n = x.len() as i32;
        let f = self.function(name);
        unsafe { self.stream.launch_builder(&f).arg(out).arg(x).arg(&n).launch(config) }.map(|_| ())
    }

    /// The same, from and to host memory, with an output that starts as zeros.
    pub(crate) fn run(
        &self,
        name: &str,
        config: LaunchConfig,
        outputs: usize,
        x: &[f32],
    ) -> Result<Vec<f32>, DriverError> {
        let x = self.stream.clone_htod(x)?;
        let mut out = self.stream.alloc_zeros::<f32>(outputs)?;
        self.launch(name, config, &mut out, &x)?;
        self.stream.synchronize()?;
        self.stream.clone_dtoh(&out)
    }
}

/// Numbers in -2 .. 2, the same everywhere.
pub(crate) fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4_194_304.0 - 2.0).collect()
}

/// Forbids kernels the bytes at a device address, which are otherwise part of some larger block: under
/// `Sanitizer::Address` an access ends the process with a report. Nothing happens otherwise, nor on a real device.
pub(crate) fn guard(address: u64, bytes: usize) {
    // SAFETY: where the function exists it is the stand-in's, has this signature, and checks the range.
    unsafe {
        let f = cudarc::driver::sys::culib().get::<unsafe extern "C" fn(u64, usize)>(b"cuda_host_guard\0");
        if let Ok(f) = f {
            f(address, bytes);
        }
    }
}
