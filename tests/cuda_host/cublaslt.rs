//! The stand-in's cuBLASLt refuses what the library's documents forbid, and its products are work of a stream like any
//! launch: they run in order, are captured, and fail on memory that is not theirs.
#![allow(unsafe_code, reason = "the library's interface is C's")]

use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::Arc;

use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaStream, result};
use serde::{Deserialize, Serialize};

use crate::support::cuda_host::{Options, Streams, in_child};
use crate::{name, outcome, stand_in};

fn library() -> Options {
    Options { cublaslt: true, ..stand_in() }
}

/// A product of the library's, and what is wrong with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Call {
    /// Rows of the first factor and the result; columns of the second and the result; terms.
    extents: [u64; 3],
    leading: [i64; 3],
    /// First element of each matrix in a block of 64 numbers.
    at: [usize; 3],
    products: i32,
    steps: [i64; 3],
    /// Alignment that the heuristic is told of.
    alignment: u32,
    workspace: usize,
    reduction: u32,
    /// Extents that the algorithm is asked for, where they are others.
    asked: Option<[u64; 3]>,
    captured: bool,
}

/// `c = a b` of 2 x 3 and 3 x 4, column by column, one after another in the block.
fn good() -> Call {
    Call {
        extents: [2, 4, 3],
        leading: [2, 3, 2],
        at: [0, 16, 32],
        products: 1,
        steps: [0, 0, 0],
        alignment: 64,
        workspace: 0,
        reduction: 0,
        asked: None,
        captured: false,
    }
}

unsafe fn layout(rows: u64, cols: u64, leading: i64, products: i32, step: i64) -> sys::cublasLtMatrixLayout_t {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let mut out = null_mut();
    unsafe {
        sys::cublasLtMatrixLayoutCreate(&mut out, sys::cudaDataType::CUDA_R_32F, rows, cols, leading);
        let count = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
        sys::cublasLtMatrixLayoutSetAttribute(out, count, from_ref(&products).cast(), 4);
        let stride = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
        sys::cublasLtMatrixLayoutSetAttribute(out, stride, from_ref(&step).cast(), 8);
    }
    out
}

unsafe fn layouts(c: &Call, [m, n, k]: [u64; 3]) -> [sys::cublasLtMatrixLayout_t; 3] {
    let shapes = [(m, k), (k, n), (m, n)];
    [0, 1, 2].map(|i| unsafe { layout(shapes[i].0, shapes[i].1, c.leading[i], c.products, c.steps[i]) })
}

unsafe fn preference(c: &Call) -> sys::cublasLtMatmulPreference_t {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let mut out = null_mut();
    unsafe {
        sys::cublasLtMatmulPreferenceCreate(&mut out);
        let set = |what, value: *const c_void, size| sys::cublasLtMatmulPreferenceSetAttribute(out, what, value, size);
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, from_ref(&c.workspace).cast(), 8);
        set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, from_ref(&c.reduction).cast(), 4);
        for what in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(what, from_ref(&c.alignment).cast(), 4);
        }
    }
    out
}

/// Queues the product; the library's answer.
unsafe fn product(c: &Call, block: u64, stream: &CudaStream) -> Status {
    let (mut handle, mut operation) = (null_mut(), null_mut());
    let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
    let at = |i: usize| (block + 4 * c.at[i] as u64) as *mut c_void;
    let (alpha, beta) = (1.0f32, 0.0f32);
    let (mut found, mut count) = (std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(), 0);
    unsafe {
        assert_eq!(sys::cublasLtCreate(&mut handle), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(sys::cublasLtMatmulDescCreate(&mut operation, compute, scale), Status::CUBLAS_STATUS_SUCCESS);
        let [a, b, d] = layouts(c, c.extents);
        let [asked_a, asked_b, asked_d] = layouts(c, c.asked.unwrap_or(c.extents));
        let (preference, found) = (preference(c), found.as_mut_ptr());
        let status = sys::cublasLtMatmulAlgoGetHeuristic(
            handle, operation, asked_a, asked_b, asked_d, asked_d, preference, 1, found, &mut count,
        );
        if status != Status::CUBLAS_STATUS_SUCCESS {
            return status;
        }
        let (alpha, beta) = (from_ref(&alpha).cast(), from_ref(&beta).cast());
        let (algorithm, stream) = (&raw const (*found).algo, stream.cu_stream().cast());
        #[rustfmt::skip]
        let status = sys::cublasLtMatmul(
            handle, operation, alpha, at(0), a, at(1), b, beta, at(2), d, at(2), d, algorithm, null_mut(), 0, stream,
        );
        status
    }
}

/// What the library says, what the device says afterwards, and the result where it is there.
fn multiply(c: Call) -> (String, String, Vec<f32>) {
    let context = CudaContext::new(0).expect("a context");
    unsafe { context.disable_event_tracking() };
    let stream: Arc<CudaStream> = context.new_stream().expect("a stream");
    let numbers: Vec<f32> = (0..64).map(|i| if i < 32 { i as f32 } else { 0.0 }).collect();
    let block = unsafe { result::malloc_sync(256) }.expect("memory");
    unsafe { result::memcpy_htod_sync(block, &numbers) }.expect("a copy");
    if c.captured {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
    }
    let status = format!("{:?}", unsafe { product(&c, block, &stream) });
    if c.captured {
        let captured = stream.end_capture(CUgraphInstantiate_flags(0));
        return (status, outcome(captured), Vec::new());
    }
    let mut found = vec![0.0f32; 64];
    if let Err(e) = stream.synchronize() {
        return (status, name(e), Vec::new());
    }
    unsafe { result::memcpy_dtoh_sync(&mut found, block) }.expect("a copy");
    (status, "ok".into(), found[c.at[2].min(63)..].to_vec())
}

#[test]
fn products_and_what_is_wrong_with_them() {
    let go = |c: Call, streams: Streams| {
        let options = Options { streams, ..library() };
        in_child("cublaslt::products_and_what_is_wrong_with_them", &options, c, multiply).value
    };
    let a = |i: usize, l: usize| (2 * l + i) as f32;
    let b = |l: usize, j: usize| (16 + 3 * j + l) as f32;
    let expected = |i: usize, j: usize| (0..3).map(|l| a(i, l) * b(l, j)).sum::<f32>();
    for streams in [Streams::Eager, Streams::Lazy] {
        let (status, device, found) = go(good(), streams);
        assert_eq!((status.as_str(), device.as_str()), ("CUBLAS_STATUS_SUCCESS", "ok"));
        let column = |j: usize| [expected(0, j), expected(1, j)];
        assert_eq!(found[..8], [0, 1, 2, 3].map(column).concat(), "{streams:?}");
    }
    let refused = [
        ("a leading dimension below the rows", Call { leading: [1, 3, 2], ..good() }, "INVALID_VALUE"),
        ("extents that do not fit", Call { extents: [2, 4, 0], ..good() }, "INVALID_VALUE"),
        ("an algorithm of another problem", Call { asked: Some([2, 4, 2]), ..good() }, "NOT_SUPPORTED"),
        ("matrices aligned less than told", Call { at: [0, 16, 33], ..good() }, "INVALID_VALUE"),
        ("a workspace that is not given", Call { workspace: 1 << 20, ..good() }, "INVALID_VALUE"),
    ];
    for (what, call, expected) in refused {
        let (status, device, _) = go(call, Streams::Eager);
        assert_eq!((status, device.as_str()), (format!("CUBLAS_STATUS_{expected}"), "ok"), "{what}");
    }
    // What only the device sees: the call succeeds, and the next one that waits fails.
    let lost = [
        ("a factor beyond the block", Call { leading: [40, 3, 2], ..good() }, "ILLEGAL_ADDRESS"),
        ("a result beyond the block", Call { leading: [2, 3, 30], ..good() }, "ILLEGAL_ADDRESS"),
        ("products beyond the block", Call { products: 3, steps: [2, 0, 16], ..good() }, "ILLEGAL_ADDRESS"),
        ("a result on a factor", Call { at: [0, 16, 16], ..good() }, "LAUNCH_FAILED"),
        ("results on each other", Call { products: 2, steps: [0, 0, 4], ..good() }, "LAUNCH_FAILED"),
    ];
    for (what, call, expected) in lost {
        for streams in [Streams::Eager, Streams::Lazy] {
            let (_, device, _) = go(call.clone(), streams);
            assert_eq!(device, format!("CUDA_ERROR_{expected}"), "{what}, {streams:?}");
        }
    }
    // Code is loaded by the first product of its kind, which may not happen while a graph is recorded.
    let (status, capture, _) = go(Call { captured: true, ..good() }, Streams::Eager);
    let expected = ("CUBLAS_STATUS_INTERNAL_ERROR", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED");
    assert_eq!((status.as_str(), capture.as_str()), expected);
}

/// Terms of a sum, and how often it is run: once in each order that parts may be added in.
const TERMS: u64 = 16;

/// Results of one product, which the library may cut into parts as `reduction` says.
fn repeated(reduction: u32) -> Vec<u32> {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    let c = Call { extents: [1, 1, TERMS], leading: [1, TERMS as i64, 1], reduction, ..good() };
    let numbers: Vec<f32> = (0..64).map(|i| 1.0 + 1.0 / (3 + i) as f32).collect();
    let block = unsafe { result::malloc_sync(256) }.expect("memory");
    unsafe { result::memcpy_htod_sync(block, &numbers) }.expect("a copy");
    let run = |_| {
        assert_eq!(unsafe { product(&c, block, &stream) }, Status::CUBLAS_STATUS_SUCCESS);
        let mut found = vec![0.0f32; 64];
        stream.synchronize().expect("no error");
        unsafe { result::memcpy_dtoh_sync(&mut found, block) }.expect("a copy");
        found[32].to_bits()
    };
    (0..TERMS).map(run).collect()
}

/// A run that does not forbid sums in parts gets other bits each time.
#[test]
fn sums_in_parts_differ_from_run_to_run() {
    let different = |reduction: u32| {
        let found = in_child("cublaslt::sums_in_parts_differ_from_run_to_run", &library(), reduction, repeated).value;
        found.into_iter().collect::<std::collections::BTreeSet<u32>>().len()
    };
    assert_eq!(different(0), 1);
    assert!(different(7) > 1);
}
