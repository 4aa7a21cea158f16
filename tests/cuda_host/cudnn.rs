//! The stand-in's cuDNN refuses what the library's documents forbid, and its convolutions are work of a stream like any
//! launch: they run in order, are captured, and fail on memory that is not theirs.
#![allow(unsafe_code, reason = "the library's interface is C's")]

use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::Arc;

use cudarc::cudnn::sys::{
    self, cudnnConvolutionBwdDataAlgo_t as Data, cudnnConvolutionFwdAlgo_t as Forward, cudnnStatus_t as Status,
};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, result};
use serde::{Deserialize, Serialize};

use crate::support::cuda_host::{Options, Streams, in_child};
use crate::{name, outcome, stand_in};

fn library() -> Options {
    Options { cudnn: true, ..stand_in() }
}

/// Windows of 2 x 2 over 3 x 3 pixels of one channel, one filter, and what is wrong with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Call {
    /// First element of x, w and y in a block of 64 numbers.
    at: [usize; 3],
    output: i32,
    /// Whether channels lie together.
    nhwc: bool,
    stride: i32,
    /// 0 needs no workspace, 1 needs 4096 bytes, 6 is for other problems.
    algorithm: u32,
    captured: bool,
}

fn good() -> Call {
    Call { at: [0, 16, 32], output: 2, nhwc: true, stride: 1, algorithm: 0, captured: false }
}

const BLOCK: usize = 64;

/// Queues the convolution; the library's answer.
unsafe fn queue(c: &Call, block: u64, stream: &CudaStream) -> Status {
    let format =
        if c.nhwc { sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC } else { sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW };
    let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
    let at = |i: usize| (block + 4 * c.at[i] as u64) as *mut c_void;
    let (alpha, beta) = (1.0f32, 0.0f32);
    let (alpha, beta) = (from_ref(&alpha).cast::<c_void>(), from_ref(&beta).cast::<c_void>());
    let (mut handle, mut x, mut y, mut w, mut operation) = (null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
    let algorithm = match c.algorithm {
        0 => Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
        1 => Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
        _ => Forward::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD,
    };
    let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
    unsafe {
        let set = [
            sys::cudnnCreate(&mut handle),
            sys::cudnnSetStream(handle, stream.cu_stream().cast()),
            sys::cudnnCreateTensorDescriptor(&mut x),
            sys::cudnnCreateTensorDescriptor(&mut y),
            sys::cudnnCreateFilterDescriptor(&mut w),
            sys::cudnnCreateConvolutionDescriptor(&mut operation),
            sys::cudnnSetTensor4dDescriptor(x, format, float, 1, 1, 3, 3),
            sys::cudnnSetTensor4dDescriptor(y, format, float, 1, 1, c.output, 2),
            sys::cudnnSetFilter4dDescriptor(w, float, format, 1, 1, 2, 2),
            sys::cudnnSetConvolution2dDescriptor(operation, 0, 0, c.stride, 1, 1, 1, mode, float),
        ];
        if let Some(&refused) = set.iter().find(|s| **s != Status::CUDNN_STATUS_SUCCESS) {
            return refused;
        }
        #[rustfmt::skip]
        let status = sys::cudnnConvolutionForward(
            handle, alpha, x, at(0), w, at(1), operation, algorithm, null_mut(), 0, beta, y, at(2),
        );
        status
    }
}

fn numbers() -> Vec<f32> {
    (0..BLOCK).map(|i| if i < 32 { i as f32 } else { 0.0 }).collect()
}

/// What the library says, what the device says afterwards, and the result where it is there.
fn convolve(c: Call) -> (String, String, Vec<f32>) {
    let context = CudaContext::new(0).expect("a context");
    unsafe { context.disable_event_tracking() };
    let stream: Arc<CudaStream> = context.new_stream().expect("a stream");
    let block = unsafe { result::malloc_sync(4 * BLOCK) }.expect("memory");
    unsafe { result::memcpy_htod_sync(block, &numbers()) }.expect("a copy");
    if c.captured {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    }
    let status = format!("{:?}", unsafe { queue(&c, block, &stream) });
    if c.captured {
        let captured = stream.end_capture(CUgraphInstantiate_flags(0));
        return (status, outcome(captured), Vec::new());
    }
    if let Err(e) = stream.synchronize() {
        return (status, name(e), Vec::new());
    }
    let mut found = vec![0.0f32; BLOCK];
    unsafe { result::memcpy_dtoh_sync(&mut found, block) }.expect("a copy");
    (status, "ok".into(), found[32..36].to_vec())
}

#[test]
fn convolutions_and_what_is_wrong_with_them() {
    let go = |c: Call, streams: Streams| {
        let options = Options { streams, ..library() };
        in_child("cudnn::convolutions_and_what_is_wrong_with_them", &options, c, convolve).value
    };
    let (x, w) = (|h: usize, v: usize| (3 * h + v) as f32, |r: usize, s: usize| (16 + 2 * r + s) as f32);
    let taps = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let expected = taps.map(|(p, q)| taps.iter().map(|&(r, s)| x(p + r, q + s) * w(r, s)).sum::<f32>());
    for streams in [Streams::Eager, Streams::Lazy] {
        let (status, device, found) = go(good(), streams);
        assert_eq!((status.as_str(), device.as_str(), &found[..]), ("CUDNN_STATUS_SUCCESS", "ok", &expected[..]));
    }
    let refused = [
        ("channels apart", Call { nhwc: false, ..good() }, "BAD_PARAM"),
        ("more results than windows", Call { output: 3, ..good() }, "BAD_PARAM"),
        ("no step", Call { stride: 0, ..good() }, "BAD_PARAM"),
        ("a workspace that is not given", Call { algorithm: 1, ..good() }, "BAD_PARAM"),
        ("an algorithm for other problems", Call { algorithm: 6, ..good() }, "NOT_SUPPORTED"),
    ];
    for (what, call, expected) in refused {
        let (status, device, _) = go(call, Streams::Eager);
        assert_eq!((status, device.as_str()), (format!("CUDNN_STATUS_{expected}"), "ok"), "{what}");
    }
    // What only the device sees: the call succeeds, and the next one that waits fails.
    let lost = [
        ("pixels beyond the block", Call { at: [60, 16, 32], ..good() }, "ILLEGAL_ADDRESS"),
        ("results beyond the block", Call { at: [0, 16, 62], ..good() }, "ILLEGAL_ADDRESS"),
        ("a result on the filter", Call { at: [0, 16, 19], ..good() }, "LAUNCH_FAILED"),
    ];
    for (what, call, expected) in lost {
        for streams in [Streams::Eager, Streams::Lazy] {
            let (_, device, _) = go(call.clone(), streams);
            assert_eq!(device, format!("CUDA_ERROR_{expected}"), "{what}, {streams:?}");
        }
    }
    // Code is loaded by the first convolution of its kind, which may not happen while a graph is recorded.
    let (status, capture, _) = go(Call { captured: true, ..good() }, Streams::Eager);
    let expected = ("CUDNN_STATUS_INTERNAL_ERROR", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
    assert_eq!((status.as_str(), capture.as_str()), expected);
}

/// Results of one input gradient by one of the library's algorithms, again and again.
fn repeated(algorithm: u32) -> Vec<Vec<u32>> {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    let numbers: Vec<f32> = (0..BLOCK).map(|i| 1.0 + 1.0 / (3 + i) as f32).collect();
    let block = unsafe { result::malloc_sync(4 * BLOCK) }.expect("memory");
    let workspace = unsafe { result::malloc_sync(4096) }.expect("memory");
    unsafe { result::memcpy_htod_sync(block, &numbers) }.expect("a copy");
    let at = |i: u64| (block + 4 * i) as *mut c_void;
    let (format, float) = (sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC, sys::cudnnDataType_t::CUDNN_DATA_FLOAT);
    let algorithm =
        if algorithm == 0 { Data::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 } else { Data::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1 };
    let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
    let (alpha, beta) = (1.0f32, 0.0f32);
    let (alpha, beta) = (from_ref(&alpha).cast::<c_void>(), from_ref(&beta).cast::<c_void>());
    let (mut handle, mut x, mut y, mut w, mut operation) = (null_mut(), null_mut(), null_mut(), null_mut(), null_mut());
    let run = |_| unsafe {
        sys::cudnnCreate(&mut handle);
        sys::cudnnSetStream(handle, stream.cu_stream().cast());
        sys::cudnnCreateTensorDescriptor(&mut x);
        sys::cudnnCreateTensorDescriptor(&mut y);
        sys::cudnnCreateFilterDescriptor(&mut w);
        sys::cudnnCreateConvolutionDescriptor(&mut operation);
        sys::cudnnSetTensor4dDescriptor(x, format, float, 1, 1, 3, 3);
        sys::cudnnSetTensor4dDescriptor(y, format, float, 1, 1, 3, 3);
        sys::cudnnSetFilter4dDescriptor(w, float, format, 1, 1, 3, 3);
        sys::cudnnSetConvolution2dDescriptor(operation, 1, 1, 1, 1, 1, 1, mode, float);
        // Of operands rounded to TF32, few sums are rounded at all.
        sys::cudnnSetConvolutionMathType(operation, sys::cudnnMathType_t::CUDNN_FMA_MATH);
        #[rustfmt::skip]
        let status = sys::cudnnConvolutionBackwardData(
            handle, alpha, w, at(0), y, at(16), operation, algorithm, workspace as *mut c_void, 4096, beta, x, at(32),
        );
        assert_eq!(status, Status::CUDNN_STATUS_SUCCESS);
        stream.synchronize().expect("no error");
        let mut found = vec![0.0f32; BLOCK];
        result::memcpy_dtoh_sync(&mut found, block).expect("a copy");
        found[32..41].iter().map(|x| x.to_bits()).collect()
    };
    (0..4).map(run).collect()
}

/// A run that does not ask which algorithms give the same bits each time gets other ones.
#[test]
fn an_algorithm_that_is_not_deterministic_differs_from_run_to_run() {
    let test = "cudnn::an_algorithm_that_is_not_deterministic_differs_from_run_to_run";
    let different = |algorithm: u32| {
        let found = in_child(test, &library(), algorithm, repeated).value;
        found.into_iter().collect::<std::collections::BTreeSet<Vec<u32>>>().len()
    };
    assert_eq!(different(1), 1);
    assert!(different(0) > 1);
}
