//! Products by NVIDIA's libraries, in place of a plan's own kernels, where a run asks for it: matrix products by
//! cuBLASLt, convolutions by cuDNN.
//!
//! The plan stays what it is: `gemm.rs` and `conv.rs` find kernels that a library computes as they are, `cublaslt.rs`
//! and `cudnn.rs` make the calls. Such a product takes the place of its kernel's launches, on the same stream, in the
//! same graph. Matrix products take no memory: algorithms that need a workspace are not asked for. Convolutions share
//! one.

mod algorithm;
mod choice;
mod conv;
mod cublaslt;
mod cudnn;
mod finish;
mod gemm;
mod owned;

use std::collections::BTreeMap;
use std::rc::Rc;

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use slrc_plan::{Buffer, Kernel, Precision};

pub use self::choice::{Libraries, Library};
use self::conv::convolution;
use self::gemm::{Place, gemm};
use crate::device::DeviceError;

/// The libraries that a device uses, or why it uses none.
pub(super) struct Products {
    cublaslt: Option<Rc<cublaslt::Library>>,
    cudnn: Option<Rc<cudnn::Library>>,
    precision: Precision,
    /// Why one is not there that would have been used.
    missing: Vec<String>,
}

/// A product that is ready to be queued.
pub(super) enum Product {
    Gemm(cublaslt::Product),
    Convolution(cudnn::Convolution),
}

impl Product {
    /// Queues it on the device's stream.
    pub(super) fn launch(&self, stream: CUstream) -> Result<(), DeviceError> {
        match self {
            Product::Gemm(p) => p.launch(stream),
            Product::Convolution(p) => p.launch(),
        }
    }

    /// Who computes it.
    pub(super) fn library(&self) -> Library {
        match self {
            Product::Gemm(_) => Library::Cublaslt,
            Product::Convolution(_) => Library::Cudnn,
        }
    }
}

impl Products {
    /// Starts what is asked for, on the device whose context is current and whose stream this is.
    pub(super) fn start(libraries: Libraries, precision: Precision, stream: CUstream) -> Result<Products, DeviceError> {
        let mut missing = Vec::new();
        let cublaslt = started(libraries, Library::Cublaslt, &mut missing, cublaslt::Library::start)?;
        let cudnn = started(libraries, Library::Cudnn, &mut missing, || cudnn::Library::start(stream, precision))?;
        Ok(Products { cublaslt, cudnn, precision, missing })
    }

    /// Libraries that are used, with their versions.
    pub(super) fn names(&self) -> BTreeMap<Library, String> {
        let cublaslt = self.cublaslt.iter().map(|l| (Library::Cublaslt, l.name()));
        cublaslt.chain(self.cudnn.iter().map(|l| (Library::Cudnn, l.name()))).collect()
    }

    /// Why one is not there that would have been used.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Bytes of device memory that libraries work in, beside the plan's.
    pub(super) fn workspace(&self) -> usize {
        self.cudnn.as_ref().map_or(0, |l| l.workspace())
    }

    /// Allocates what libraries work in, once everything is prepared. `device` names the device in messages.
    pub(super) fn allocate(&self, device: &str) -> Result<(), DeviceError> {
        self.cudnn.as_ref().map_or(Ok(()), |l| l.allocate(device))
    }

    /// A kernel as a call of a library, where it is one. `address` tells where a buffer lies.
    pub(super) fn prepare(
        &self,
        kernel: &Kernel,
        buffers: &BTreeMap<&str, &Buffer>,
        address: &dyn Fn(&Buffer) -> CUdeviceptr,
    ) -> Result<Option<Product>, DeviceError> {
        let at = |place: Place<'_>| {
            let buffer = buffers.get(place.buffer).expect("invariant: a validated plan has its kernels' buffers");
            address(buffer) + bytes(place)
        };
        if let Some((library, g)) = self.cublaslt.as_ref().zip(gemm(&kernel.run, buffers))
            && let Some(product) = cublaslt::Product::prepare(library, &g, self.precision, &at)?
        {
            return Ok(Some(Product::Gemm(product)));
        }
        let Some((library, c)) = self.cudnn.as_ref().zip(convolution(&kernel.run, buffers)) else { return Ok(None) };
        Ok(cudnn::Convolution::prepare(library, &c, &at)?.map(Product::Convolution))
    }
}

/// Starts a library, where it is asked for. One that may be missing and is, is noted.
fn started<T>(
    libraries: Libraries,
    library: Library,
    missing: &mut Vec<String>,
    start: impl FnOnce() -> Result<T, DeviceError>,
) -> Result<Option<Rc<T>>, DeviceError> {
    if !libraries.includes(library) {
        return Ok(None);
    }
    match start() {
        Ok(started) => Ok(Some(Rc::new(started))),
        Err(DeviceError::Unavailable(reason)) if libraries == Libraries::Auto => {
            missing.push(reason);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Bytes from a buffer's first to a place in it.
fn bytes(at: Place<'_>) -> CUdeviceptr {
    (at.offset * size_of::<f32>()) as CUdeviceptr
}
