//! Streams, graphs, memory, errors and devices behave as the driver's documentation says.
#![allow(unsafe_code, reason = "launching a kernel is unsafe in cudarc")]

use std::path::PathBuf;

use cudarc::driver::result::{self, mem_get_info};
use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaContext, DevicePtr as _, PushKernelArg as _, sys};
use cudarc::nvrtc::Ptx;

use crate::support::cuda_host::device::{Device, compile, config};
use crate::support::cuda_host::{Options, Streams, in_child};
use crate::{name, outcome, stand_in};

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
    let test = "driver::lazy_streams_show_a_missing_synchronisation";
    let eager = in_child(test, &stand_in(), (), early_read);
    assert_eq!(eager.value, (7.0, 7.0));
    let lazy = in_child(test, &Options { streams: Streams::Lazy, ..stand_in() }, (), early_read);
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
    let test = "driver::lazy_streams_show_a_missing_event";
    let lazy = Options { streams: Streams::Lazy, ..stand_in() };
    assert_eq!(in_child(test, &stand_in(), false, two_streams).value, 3.0);
    assert_eq!(in_child(test, &lazy, false, two_streams).value, 0.0);
    assert_eq!(in_child(test, &lazy, true, two_streams).value, 3.0);
    // Chance shows the missing event for some seeds, and never a present one.
    let run =
        |seed, wait| in_child(test, &Options { streams: Streams::Random(seed), ..stand_in() }, wait, two_streams).value;
    assert!((0..8).any(|seed| run(seed, false) == 0.0));
    assert!((0..8).all(|seed| run(seed, true) == 3.0));
}

/// A stream is overtaken wherever it may be, and nowhere else; a wait that is left out is none.
#[test]
fn one_stream_is_late_or_early() {
    let test = "driver::one_stream_is_late_or_early";
    let run = |streams, skip: &str, wait| {
        let options = Options { streams, skip: skip.into(), ..stand_in() };
        in_child(test, &options, wait, two_streams).value
    };
    // The first stream writes, the second copies.
    for (streams, without) in
        [(Streams::Late(1), 0.0), (Streams::Early(2), 0.0), (Streams::Late(2), 3.0), (Streams::Early(1), 3.0)]
    {
        assert_eq!(run(streams, "", false), without, "{streams:?}");
        assert_eq!(run(streams, "", true), 3.0, "{streams:?}");
    }
    for skip in ["cuStreamWaitEvent", "cuStreamWaitEvent:1", "cuEventSynchronize:1,cuStreamWaitEvent:1"] {
        assert_eq!(run(Streams::Late(1), skip, true), 0.0, "{skip}");
    }
    assert_eq!(run(Streams::Late(1), "cuStreamWaitEvent:2", true), 3.0);
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
        let options = Options { memory: 10 << 20, pools, ..stand_in() };
        let ran = in_child("driver::memory_ends", &options, (), fill_memory);
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
    for _ in 0..3 {
        let launched = unsafe { device.stream.launch_builder(&f).arg(&mut y).arg(&x).arg(&n).launch(config(1, 32, 0)) };
        results.push(outcome(launched));
        results.push(outcome(device.stream.synchronize()));
    }
    results
}

#[test]
fn errors_are_injected() {
    let run = |fail: &str| {
        let options = Options { fail: fail.to_string(), ..stand_in() };
        in_child("driver::errors_are_injected", &options, (), launches).value
    };
    let illegal = "CUDA_ERROR_ILLEGAL_ADDRESS";
    assert_eq!(run(""), ["ok"; 6]);
    assert_eq!(run("cuLaunchKernel:2:700"), ["ok", "ok", illegal, "ok", "ok", "ok"]);
    assert_eq!(run("cuLaunchKernel:2:700:sticky"), ["ok", "ok", illegal, illegal, illegal, illegal]);
    assert_eq!(run("cuLaunchKernel:2:719:late")[2..4], ["ok", "CUDA_ERROR_LAUNCH_FAILED"]);
    let two = run("cuStreamSynchronize:1:999,cuLaunchKernel:3:2");
    assert_eq!(two, ["ok", "CUDA_ERROR_UNKNOWN", "ok", "ok", "CUDA_ERROR_OUT_OF_MEMORY", "ok"]);
}

/// Name, capability, bytes, and the outcome of loading a module.
type Found = (String, i32, i32, usize, String);

/// What a process finds of devices and driver.
fn survey((): ()) -> (String, i32, Option<Found>) {
    let count = CudaContext::device_count();
    let error = outcome(count.as_ref().map_err(|e| *e));
    let device = CudaContext::new(0).ok().map(|context| {
        let (major, minor) = context.compute_capability().expect("no error");
        let ptx = compile("empty.cu", "extern \"C\" __global__ void empty() {}").expect("an empty kernel compiles");
        let load = outcome(context.load_module(ptx));
        (context.name().expect("no error"), major, minor, context.total_mem().expect("no error"), load)
    });
    (error, count.unwrap_or(0), device)
}

#[test]
fn devices_and_drivers_of_all_kinds() {
    let run = |options: Options| in_child("driver::devices_and_drivers_of_all_kinds", &options, (), survey).value;
    let base = Options { memory: 1 << 30, ..stand_in() };
    let device = |minor, load: &str| Some(("CUDA host stand-in 0".to_string(), 8, minor, 1 << 30, load.to_string()));
    assert_eq!(run(base.clone()), ("ok".to_string(), 1, device(0, "ok")));
    assert_eq!(run(Options { devices: 3, capability: 86, ..base.clone() }), ("ok".to_string(), 3, device(6, "ok")));
    assert_eq!(run(Options { devices: 0, ..base.clone() }), ("CUDA_ERROR_NO_DEVICE".to_string(), 0, None));
    let old = run(Options { driver_version: 12020, ..base.clone() });
    assert_eq!(old.2, device(0, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"));
    let small = run(Options { capability: 75, ..base });
    assert_eq!(small.2.expect("a device").4, "CUDA_ERROR_NO_BINARY_FOR_GPU");
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
    let options = Options { log: Some(PathBuf::new()), ..stand_in() };
    let log = in_child("driver::the_log_is_chronological", &options, (), two_operations).log;
    let expected = [
        "copy to the device 256 bytes staged stream 1",
        "fill 256 bytes stream 2",
        "launch axpy4 grid 2 1 1 block 32 1 1 shared 0 stream 1",
        "synchronize stream 1",
    ];
    assert_eq!(log, expected);
}

/// What page-locked and pageable memory hold on the device after the host overwrites them behind the copy's back.
fn overwritten((): ()) -> (f32, f32) {
    let device = Device::with_case("good.cu");
    let mut pinned = unsafe { device.context.alloc_pinned::<f32>(8) }.expect("page-locked memory");
    pinned.as_mut_slice().expect("no error").fill(1.0);
    let mut pageable = vec![1.0f32; 8];
    let a = device.stream.clone_htod(&pinned).expect("the copy");
    let b = device.stream.clone_htod(&pageable).expect("the copy");
    // Through the pointer: the safe way waits for the copy.
    unsafe { pinned.as_mut_ptr().expect("no error").write(2.0) };
    pageable[0] = 2.0;
    let first = |slice| device.stream.clone_dtoh(slice).expect("the result")[0];
    (first(&a), first(&b))
}

#[test]
fn lazy_streams_show_a_buffer_reused_too_early() {
    let test = "driver::lazy_streams_show_a_buffer_reused_too_early";
    let lazy = Options { streams: Streams::Lazy, ..stand_in() };
    // Only page-locked memory is read when the copy runs.
    assert_eq!(in_child(test, &stand_in(), (), overwritten).value, (1.0, 1.0));
    assert_eq!(in_child(test, &lazy, (), overwritten).value, (2.0, 1.0));
}

/// Page-locked memory is freed below the safe interface while a copy from it waits.
fn freed_too_early((): ()) -> Vec<String> {
    let device = Device::with_case("good.cu");
    let y = device.stream.alloc_zeros::<f32>(8).expect("output");
    let host = unsafe { result::malloc_host(32, 0) }.expect("page-locked memory");
    unsafe { host.cast::<[f32; 8]>().write([1.0; 8]) };
    let source = unsafe { std::slice::from_raw_parts(host.cast::<f32>(), 8) };
    let address = y.device_ptr(&device.stream).0;
    let copy = unsafe { result::memcpy_htod_async(address, source, device.stream.cu_stream()) };
    let free = unsafe { result::free_host(host) };
    vec![outcome(copy), outcome(free), outcome(device.stream.synchronize())]
}

#[test]
fn lazy_streams_show_page_locked_memory_freed_too_early() {
    let test = "driver::lazy_streams_show_page_locked_memory_freed_too_early";
    assert_eq!(in_child(test, &stand_in(), (), freed_too_early).value, ["ok"; 3]);
    let lazy = Options { streams: Streams::Lazy, ..stand_in() };
    assert_eq!(in_child(test, &lazy, (), freed_too_early).value, ["ok", "ok", "CUDA_ERROR_ILLEGAL_ADDRESS"]);
}

/// Dynamic shared memory beyond 48 KiB, before and after it is granted; blocks that fit a multiprocessor with it.
fn large_shared_memory((): ()) -> (Vec<String>, u32) {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    let f = device.function("softmax_row");
    let bytes = 80 << 10;
    let mut run = || {
        let mut builder = device.stream.launch_builder(&f);
        outcome(unsafe { builder.arg(&mut y).arg(&x).arg(&64i32).launch(config(1, 64, bytes)) })
    };
    let before = run();
    let granted = f.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes as i32);
    let too_much = f.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 200 << 10);
    let blocks = f.occupancy_max_active_blocks_per_multiprocessor(64, bytes as usize, None).expect("an answer");
    (vec![before, outcome(granted), outcome(too_much), run()], blocks)
}

#[test]
fn large_shared_memory_must_be_granted() {
    let ran = in_child("driver::large_shared_memory_must_be_granted", &stand_in(), (), large_shared_memory);
    let value = "CUDA_ERROR_INVALID_VALUE".to_string();
    // Two blocks of 80 KiB, each with 1 KiB of the system's, fit 164 KiB.
    assert_eq!(ran.value, (vec![value.clone(), "ok".into(), value, "ok".into()], 2));
}

/// Answers of an event with two operations before it: asked until it has happened.
fn ask((): ()) -> Vec<String> {
    let device = Device::with_case("good.cu");
    let mut y = device.stream.alloc_zeros::<f32>(64).expect("output");
    device.stream.memset_zeros(&mut y).expect("a fill");
    let event = device.stream.record_event(None).expect("an event");
    let mut answers = vec![event.is_complete().to_string()];
    for _ in 0..4 {
        answers.push(event.is_complete().to_string());
    }
    event.synchronize().expect("no error");
    answers
}

#[test]
fn events_happen_when_the_stream_comes_to_them() {
    let test = "driver::events_happen_when_the_stream_comes_to_them";
    assert_eq!(in_child(test, &stand_in(), (), ask).value, ["true"; 5]);
    let lazy = Options { streams: Streams::Lazy, ..stand_in() };
    // Each question lets one of two fills and the record through.
    assert_eq!(in_child(test, &lazy, (), ask).value, ["false", "false", "false", "true", "true"]);
}

/// Outcomes of calls that a driver refuses, each on a healthy device.
fn misuse(which: String) -> Vec<String> {
    let device = Device::with_case("good.cu");
    let x = device.stream.clone_htod(&[1.0f32; 64]).expect("input");
    let y = device.stream.alloc_zeros::<f32>(64).expect("output");
    let (f, n) = (device.function("elementwise"), 64i32);
    let address = y.device_ptr(&device.stream).0;
    let launch = |config, pointer: u64| {
        let mut builder = device.stream.launch_builder(&f);
        outcome(unsafe { builder.arg(&pointer).arg(&x).arg(&n).launch(config) })
    };
    let host = vec![0.0f32; 64];
    let first = match which.as_str() {
        "threads" => launch(config(1, 288, 0), address),
        "empty grid" => launch(config(0, 32, 0), address),
        "shared memory" => launch(config(1, 32, 49_153), address),
        "host pointer" => launch(config(1, 32, 0), host.as_ptr() as u64),
        "freed pointer" => {
            drop(y);
            launch(config(1, 32, 0), address)
        }
        "copy too long" => outcome(unsafe { result::memcpy_htod_sync(address, &[0.0f32; 65]) }),
        "fill too long" => outcome(unsafe { result::memset_d8_async(address, 0, 257, device.stream.cu_stream()) }),
        "copy to host memory" => outcome(unsafe { result::memcpy_htod_sync(host.as_ptr() as u64, &[0.0f32; 1]) }),
        "no such kernel" => outcome(device.module.load_function("missing")),
        "not an image" => outcome(device.context.load_module(Ptx::from_src(".version 8.0"))),
        other => panic!("no case {other}"),
    };
    vec![first, outcome(device.stream.synchronize())]
}

#[test]
fn misuse_is_refused() {
    let test = "driver::misuse_is_refused";
    let value = "CUDA_ERROR_INVALID_VALUE";
    let cases = [
        ("threads", value, "ok", "more threads than __launch_bounds__ says"),
        ("empty grid", value, "ok", "a dimension is zero"),
        ("shared memory", value, "ok", "more shared memory than granted"),
        ("host pointer", "ok", "CUDA_ERROR_ILLEGAL_ADDRESS", "is not device memory"),
        ("freed pointer", "ok", "CUDA_ERROR_ILLEGAL_ADDRESS", "is not device memory"),
        ("copy too long", value, "ok", "260 bytes from offset 0 of a block of 256 bytes"),
        ("fill too long", value, "ok", "257 bytes from offset 0 of a block of 256 bytes"),
        ("copy to host memory", value, "ok", "is in no block of device memory"),
        ("no such kernel", "CUDA_ERROR_NOT_FOUND", "ok", ""),
        ("not an image", "CUDA_ERROR_INVALID_IMAGE", "ok", "was not made by the stand-in"),
    ];
    for (which, first, then, message) in cases {
        let ran = in_child(test, &stand_in(), which.to_string(), misuse);
        assert_eq!(ran.value, [first, then], "{which}: {}", ran.output);
        assert!(ran.output.contains(message), "{which}: {}", ran.output);
    }
}

/// Fills of one byte and of four, of parts of a block.
fn fills((): ()) -> Vec<u32> {
    let device = Device::with_case("good.cu");
    let y = device.stream.alloc_zeros::<u32>(6).expect("output");
    let (address, stream) = (y.device_ptr(&device.stream).0, device.stream.cu_stream());
    unsafe { sys::cuMemsetD32Async(address + 4, 0x0102_0304, 2, stream) }.result().expect("a fill");
    unsafe { sys::cuMemsetD8Async(address + 13, 0x55, 6, stream) }.result().expect("a fill");
    device.stream.clone_dtoh(&y).expect("the result")
}

#[test]
fn fills_write_their_bytes_and_no_other() {
    let ran = in_child("driver::fills_write_their_bytes_and_no_other", &stand_in(), (), fills);
    assert_eq!(ran.value, [0, 0x0102_0304, 0x0102_0304, 0x5555_5500, 0x0055_5555, 0]);
    assert_eq!(ran.counts.memset_bytes, 24 + 8 + 6);
}

/// A stream of one device used with the other's context current.
fn two_devices((): ()) -> (usize, String) {
    let first = CudaContext::new(0).expect("a context");
    let second = CudaContext::new(1).expect("a context");
    let stream = first.new_stream().expect("a stream");
    let _kept = stream.alloc_zeros::<u8>(1 << 20).expect("memory");
    second.bind_to_thread().expect("no error");
    let free = mem_get_info().expect("no error").0;
    (free, outcome(unsafe { result::stream::synchronize(stream.cu_stream()) }))
}

#[test]
fn devices_are_separate() {
    let options = Options { devices: 2, memory: 4 << 20, ..stand_in() };
    let ran = in_child("driver::devices_are_separate", &options, (), two_devices);
    assert_eq!(ran.value, (4 << 20, "CUDA_ERROR_INVALID_HANDLE".to_string()));
}
