//! cuBLASLt's calls, each checked and named. Its handles and descriptors are given back when dropped.

use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::rc::Rc;

use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use slrc_plan::Precision;

use crate::cuda::library::finish::Finish;
use crate::cuda::library::gemm::{Gemm, Matrix, Place};
use crate::cuda::library::owned::{self, called, create};
use crate::cuda::probe::{self, Version};
use crate::device::DeviceError;

/// Alignment of a bias that every algorithm can read.
const BIAS_ALIGNMENT: u64 = 16;
/// Algorithms to ask for: the first that needs no workspace is taken.
const CANDIDATES: usize = 8;

type Owned<T> = owned::Owned<T, Status>;

/// The library, started for one device.
pub(super) struct Library {
    handle: Owned<sys::cublasLtHandle_t>,
    version: Version,
}

impl Library {
    /// Starts the library for the device whose context is current.
    pub(super) fn start() -> Result<Library, DeviceError> {
        let version = probe::usable_cublaslt()?;
        // SAFETY: the library is there, or its version could not have been told.
        let handle = create("cublasLtCreate", sys::cublasLtDestroy, |out| unsafe { sys::cublasLtCreate(out) })?;
        Ok(Library { handle, version })
    }

    /// Its name and version.
    pub(super) fn name(&self) -> String {
        format!("cuBLASLt {}.{}", self.version.0, self.version.1)
    }
}

/// A product that is ready to be queued.
pub(in crate::cuda) struct Product {
    // Fields are dropped in order, descriptors before the library.
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    first: Operand,
    second: Operand,
    /// What is added, which lies as the result does; read only where `beta` is not zero.
    added: CUdeviceptr,
    result: Operand,
    alpha: f32,
    beta: f32,
    algorithm: sys::cublasLtMatmulAlgo_t,
    library: Rc<Library>,
}

struct Operand {
    at: CUdeviceptr,
    layout: Owned<sys::cublasLtMatrixLayout_t>,
}

impl Product {
    /// Prepares a product; `address` tells where an element lies. `None` where the library has no algorithm for it that
    /// needs no memory besides.
    pub(super) fn prepare(
        library: &Rc<Library>,
        g: &Gemm<'_>,
        precision: Precision,
        address: &dyn Fn(Place<'_>) -> CUdeviceptr,
    ) -> Result<Option<Product>, DeviceError> {
        let compute = match precision {
            Precision::F32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            Precision::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            Precision::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_16BF,
        };
        let operation = create("cublasLtMatmulDescCreate", sys::cublasLtMatmulDescDestroy, |out| {
            // SAFETY: the library is there; it writes a handle.
            unsafe { sys::cublasLtMatmulDescCreate(out, compute, sys::cudaDataType::CUDA_R_32F) }
        })?;
        let (mut alpha, mut beta, mut added) = (1.0, 0.0, address(g.result.at));
        let (mut epilogue, mut bias) = (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT, None);
        match g.finish {
            Finish::Nothing => {}
            Finish::Scaled(factor) => alpha = factor,
            Finish::Added(m) => (beta, added) = (1.0, address(m.at)),
            Finish::Biased(at) => {
                epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                bias = Some(address(at));
            }
            Finish::BiasedRelu(at) => {
                epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU_BIAS;
                bias = Some(address(at));
            }
        }
        if bias.is_some_and(|b| !b.is_multiple_of(BIAS_ALIGNMENT)) {
            return Ok(None);
        }
        describe_all(&operation, [&g.first, &g.second], epilogue, bias)?;
        let operand = |m: &Matrix<'_>| Ok(Operand { at: address(m.at), layout: layout(m, g.count)? });
        let (first, second, result) = (operand(&g.first)?, operand(&g.second)?, operand(&g.result)?);
        let preference = preference([first.at, second.at, added, result.at])?;
        let handles = [&first.layout, &second.layout, &result.layout, &result.layout].map(|l| l.raw);
        let algorithm = choose(library, &operation, handles, &preference)?;
        let library = library.clone();
        Ok(algorithm.map(|algorithm| Product {
            operation,
            first,
            second,
            added,
            result,
            alpha,
            beta,
            algorithm,
            library,
        }))
    }

    /// Queues it.
    pub(in crate::cuda) fn launch(&self, stream: CUstream) -> Result<(), DeviceError> {
        let pointer = |at: CUdeviceptr| at as *mut c_void;
        let number = |x: &f32| from_ref(x).cast::<c_void>();
        // SAFETY: the descriptors live as long as `self`; the two numbers are read during the call. The matrices lie in
        // the plan's buffers: the plan's own kernel of this product touches the same elements and is checked for it.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.library.handle.raw,
                self.operation.raw,
                number(&self.alpha),
                pointer(self.first.at),
                self.first.layout.raw,
                pointer(self.second.at),
                self.second.layout.raw,
                number(&self.beta),
                pointer(self.added),
                self.result.layout.raw,
                pointer(self.result.at),
                self.result.layout.raw,
                &raw const self.algorithm,
                null_mut(),
                0,
                stream.cast(),
            )
        };
        called(status, "cublasLtMatmul")
    }
}

/// Says which factors are transposed, and what is done with their product.
fn describe_all(
    operation: &Owned<sys::cublasLtMatmulDesc_t>,
    [first, second]: [&Matrix<'_>; 2],
    epilogue: sys::cublasLtEpilogue_t,
    bias: Option<CUdeviceptr>,
) -> Result<(), DeviceError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    describe(operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposition(first))?;
    describe(operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &transposition(second))?;
    describe(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
    bias.map_or(Ok(()), |b| describe(operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &b))
}

/// `CUBLAS_OP_N` or `CUBLAS_OP_T`, of `cublas_api.h`.
fn transposition(m: &Matrix<'_>) -> i32 {
    i32::from(m.transposed)
}

fn describe<T>(
    to: &Owned<sys::cublasLtMatmulDesc_t>,
    what: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), DeviceError> {
    // SAFETY: the descriptor is alive; the library reads the value, whose type is the attribute's, during the call.
    let status = unsafe { sys::cublasLtMatmulDescSetAttribute(to.raw, what, from_ref(value).cast(), size_of::<T>()) };
    called(status, "cublasLtMatmulDescSetAttribute")
}

fn layout(m: &Matrix<'_>, count: usize) -> Result<Owned<sys::cublasLtMatrixLayout_t>, DeviceError> {
    let layout = create("cublasLtMatrixLayoutCreate", sys::cublasLtMatrixLayoutDestroy, |out| {
        let (rows, cols, leading) = (m.rows as u64, m.cols as u64, m.leading as i64);
        // SAFETY: the library is there; it writes a handle.
        unsafe { sys::cublasLtMatrixLayoutCreate(out, sys::cudaDataType::CUDA_R_32F, rows, cols, leading) }
    })?;
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    if count > 1 {
        set_layout(&layout, Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(count as i32))?;
        set_layout(&layout, Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(m.step as i64))?;
    }
    Ok(layout)
}

fn set_layout<T>(
    to: &Owned<sys::cublasLtMatrixLayout_t>,
    what: sys::cublasLtMatrixLayoutAttribute_t,
    value: &T,
) -> Result<(), DeviceError> {
    // SAFETY: as in `describe`.
    let status = unsafe { sys::cublasLtMatrixLayoutSetAttribute(to.raw, what, from_ref(value).cast(), size_of::<T>()) };
    called(status, "cublasLtMatrixLayoutSetAttribute")
}

/// What is asked of an algorithm: no workspace, no sum that is cut into parts, and no more than the alignment that the
/// factors, what is added and the result have.
fn preference(at: [CUdeviceptr; 4]) -> Result<Owned<sys::cublasLtMatmulPreference_t>, DeviceError> {
    let preference = create("cublasLtMatmulPreferenceCreate", sys::cublasLtMatmulPreferenceDestroy, |out| {
        // SAFETY: the library is there; it writes a handle.
        unsafe { sys::cublasLtMatmulPreferenceCreate(out) }
    })?;
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let no_parts = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
    set_preference(&preference, Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &0usize)?;
    set_preference(&preference, Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_parts)?;
    let attributes = [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ];
    for (attribute, address) in attributes.into_iter().zip(at) {
        set_preference(&preference, attribute, &alignment(address))?;
    }
    Ok(preference)
}

fn set_preference<T>(
    to: &Owned<sys::cublasLtMatmulPreference_t>,
    what: sys::cublasLtMatmulPreferenceAttributes_t,
    value: &T,
) -> Result<(), DeviceError> {
    // SAFETY: as in `describe`.
    let status =
        unsafe { sys::cublasLtMatmulPreferenceSetAttribute(to.raw, what, from_ref(value).cast(), size_of::<T>()) };
    called(status, "cublasLtMatmulPreferenceSetAttribute")
}

/// The largest power of two that divides an address, up to 256, which is the most that the library asks for.
fn alignment(address: CUdeviceptr) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// The first algorithm of the library's own choice that needs no workspace.
fn choose(
    library: &Library,
    operation: &Owned<sys::cublasLtMatmulDesc_t>,
    layouts: [sys::cublasLtMatrixLayout_t; 4],
    preference: &Owned<sys::cublasLtMatmulPreference_t>,
) -> Result<Option<sys::cublasLtMatmulAlgo_t>, DeviceError> {
    let none = sys::cublasLtMatmulHeuristicResult_t {
        algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
        wavesCount: 0.0,
        reserved: [0; 4],
    };
    let mut found = [none; CANDIDATES];
    let mut count = 0;
    let [a, b, c, d] = layouts;
    // SAFETY: all descriptors are alive; the library writes no more results than it is asked for, and their number.
    let status = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            library.handle.raw,
            operation.raw,
            a,
            b,
            c,
            d,
            preference.raw,
            CANDIDATES as i32,
            found.as_mut_ptr(),
            &raw mut count,
        )
    };
    if status == Status::CUBLAS_STATUS_NOT_SUPPORTED {
        return Ok(None);
    }
    called(status, "cublasLtMatmulAlgoGetHeuristic")?;
    let usable =
        |r: &&sys::cublasLtMatmulHeuristicResult_t| r.state == Status::CUBLAS_STATUS_SUCCESS && r.workspaceSize == 0;
    Ok(found.iter().take(count.unsigned_abs() as usize).find(usable).map(|r| r.algo))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU the library starts no handle; it checks the size and kind of every attribute all the same.
    #[test]
    #[ignore = "needs NVIDIA's cuBLASLt on the loader path, 0.6 GB as a Python package: docs/testing.md"]
    fn the_real_library_has_every_function_and_attribute() {
        let version = probe::cublaslt_version().expect("the library");
        assert!((12..100).contains(&version.0), "{version:?}");
        let handle = match Library::start() {
            Ok(library) => library.handle,
            // Without a driver, or without a device.
            Err(DeviceError::Unavailable(_) | DeviceError::Call { call: "cublasLtCreate", .. }) => {
                Owned { raw: null_mut(), destroy: keep }
            }
            Err(other) => panic!("{other}"),
        };
        let library = Library { handle, version };
        let matrix = |transposed| Matrix {
            at: Place { buffer: "x", offset: 0 },
            rows: 8,
            cols: 8,
            leading: 12,
            step: 96,
            transposed,
        };
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32, sys::cudaDataType::CUDA_R_32F);
        let make = |out| unsafe { sys::cublasLtMatmulDescCreate(out, compute, scale) };
        let operation =
            create("cublasLtMatmulDescCreate", sys::cublasLtMatmulDescDestroy, make).expect("a description");
        let finish = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_RELU_BIAS;
        describe_all(&operation, [&matrix(true), &matrix(false)], finish, Some(4096)).expect("attributes");
        // A value of another size than the attribute's is refused: the checks above mean something.
        use sys::cublasLtMatmulDescAttributes_t as Description;
        assert!(describe(&operation, Description::CUBLASLT_MATMUL_DESC_TRANSA, &1u8).is_err());
        let layouts = [(); 4].map(|()| layout(&matrix(false), 3).expect("a layout"));
        let preference = preference([256, 64, 16, 4]).expect("a preference");
        let found = choose(&library, &operation, layouts.each_ref().map(|l| l.raw), &preference);
        let operand = |i: usize| Operand { at: 4096, layout: layout(&matrix(i == 0), 3).expect("a layout") };
        if library.handle.raw.is_null() {
            assert!(found.is_err_and(|e| e.to_string().starts_with("cublasLtMatmulAlgoGetHeuristic failed: ")));
            let algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
            let (first, second, result) = (operand(0), operand(1), operand(2));
            let numbers = (1.0, 0.0);
            let (library, added) = (Rc::new(library), 4096);
            let product = Product {
                operation,
                first,
                second,
                added,
                result,
                alpha: numbers.0,
                beta: numbers.1,
                algorithm,
                library,
            };
            let refused = product.launch(null_mut()).expect_err("no handle").to_string();
            assert!(refused.starts_with("cublasLtMatmul failed: "), "{refused}");
        } else {
            assert!(found.expect("a heuristic").is_some(), "no algorithm without a workspace");
        }
    }

    /// Gives nothing back: there is no handle.
    unsafe fn keep(_: sys::cublasLtHandle_t) -> Status {
        Status::CUBLAS_STATUS_SUCCESS
    }

    #[test]
    fn alignments() {
        assert_eq!([0x100, 0x300, 0x140, 0x10, 0x4, 0x1000].map(alignment), [256, 256, 64, 16, 4, 256]);
    }
}
