//! cuDNN's calls, each checked and named. Its handle and descriptors are given back when dropped.
//!
//! Of the library's interfaces this is the one with a function for each direction. It answers for every algorithm,
//! before anything is computed, whether it gives the same bits each time, how it multiplies, and what memory it needs.

use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::rc::Rc;

use cudarc::cudnn::sys::{self, cudnnMathType_t as Math, cudnnStatus_t as Status};
use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use slrc_plan::Precision;

use crate::cuda::error::Called;
use crate::cuda::library::algorithm::{self, Algorithm};
use crate::cuda::library::conv::{Convolution as Described, Finish};
use crate::cuda::library::gemm::Place;
use crate::cuda::library::owned::{self, called, create};
use crate::cuda::probe::{self, Version};
use crate::device::DeviceError;

/// Most bytes that all convolutions together, one at a time, may use beside the plan's.
pub(super) const WORKSPACE_LIMIT: usize = 64 << 20;

pub(super) type Owned<T> = owned::Owned<T, Status>;

/// The library, started for one device.
pub(super) struct Library {
    handle: Owned<sys::cudnnHandle_t>,
    version: Version,
    /// Whether operands may be rounded to TF32.
    tf32: bool,
    /// Most bytes that a prepared convolution asked for.
    needed: Cell<usize>,
    workspace: OnceCell<Workspace>,
}

/// Device memory for one convolution at a time.
struct Workspace {
    at: CUdeviceptr,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: allocated by `Library::allocate`; the device waits for its stream before it lets go of its libraries.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

impl Library {
    /// Starts the library for the device whose context is current; its work goes to `stream`.
    pub(super) fn start(stream: CUstream, precision: Precision) -> Result<Library, DeviceError> {
        let version = probe::usable_cudnn()?;
        let tf32 = match precision {
            Precision::F32 => false,
            Precision::Tf32 => true,
            Precision::Bf16 => {
                return Err(DeviceError::Unavailable(
                    "cuDNN multiplies tensors of f32 in f32 or TF32, and the plan asks for bf16: use --libraries cublaslt, \
                     or compile the plan with --precision tf32"
                        .into(),
                ));
            }
        };
        // SAFETY: the library is there, or its version could not have been told.
        let handle = create("cudnnCreate", sys::cudnnDestroy, |out| unsafe { sys::cudnnCreate(out) })?;
        // SAFETY: the handle is alive, and so is the stream while the device is.
        called(unsafe { sys::cudnnSetStream(handle.raw, stream.cast()) }, "cudnnSetStream")?;
        Ok(Library { handle, version, tf32, needed: Cell::new(0), workspace: OnceCell::new() })
    }

    /// Its name and version.
    pub(super) fn name(&self) -> String {
        format!("cuDNN {}.{}", self.version.0, self.version.1)
    }

    /// Bytes of its workspace, beside the plan's memory.
    pub(super) fn workspace(&self) -> usize {
        self.needed.get()
    }

    /// Allocates the workspace, once all convolutions are prepared. `device` names the device in messages.
    pub(super) fn allocate(&self, device: &str) -> Result<(), DeviceError> {
        let needed = self.needed.get();
        if needed == 0 {
            return Ok(());
        }
        let (free, _) = result::mem_get_info().called("cuMemGetInfo")?;
        if needed > free {
            return Err(DeviceError::Unsupported(format!(
                "cuDNN needs {needed} bytes of {device} beside the plan's, where {free} are free: use --libraries without \
                 cudnn, or more modules or a smaller batch"
            )));
        }
        // SAFETY: the size is not zero, and the device's context is current.
        let at = unsafe { result::malloc_sync(needed) }.called("cuMemAlloc")?;
        assert!(self.workspace.set(Workspace { at }).is_ok(), "invariant: a device allocates once");
        Ok(())
    }
}

/// A convolution that is ready to be queued.
pub(in crate::cuda) struct Convolution {
    // Fields are dropped in order, descriptors before the library.
    x: Operand<sys::cudnnTensorDescriptor_t>,
    w: Operand<sys::cudnnFilterDescriptor_t>,
    y: Operand<sys::cudnnTensorDescriptor_t>,
    operation: Owned<sys::cudnnConvolutionDescriptor_t>,
    bias: Option<Bias>,
    alpha: f32,
    beta: f32,
    algorithm: Algorithm,
    /// Bytes of workspace that the algorithm needs.
    workspace: usize,
    library: Rc<Library>,
}

struct Operand<D: Copy> {
    at: CUdeviceptr,
    descriptor: Owned<D>,
}

struct Bias {
    vector: Operand<sys::cudnnTensorDescriptor_t>,
    activation: Owned<sys::cudnnActivationDescriptor_t>,
}

/// The descriptors of a convolution.
pub(super) struct Descriptors {
    pub(super) x: Owned<sys::cudnnTensorDescriptor_t>,
    pub(super) w: Owned<sys::cudnnFilterDescriptor_t>,
    pub(super) y: Owned<sys::cudnnTensorDescriptor_t>,
    pub(super) operation: Owned<sys::cudnnConvolutionDescriptor_t>,
}

impl Convolution {
    /// Prepares a convolution; `address` tells where an element lies. `None` where the library has no algorithm for it
    /// that gives the same bits each time in as much workspace as is allowed.
    pub(super) fn prepare(
        library: &Rc<Library>,
        c: &Described<'_>,
        address: &dyn Fn(Place<'_>) -> CUdeviceptr,
    ) -> Result<Option<Convolution>, DeviceError> {
        let descriptors = Descriptors::of(c, library.tf32)?;
        let chosen = algorithm::choose(library.handle.raw, &descriptors, c, library.tf32)?;
        let Some(chosen) = chosen else { return Ok(None) };
        let Descriptors { x, w, y, operation } = descriptors;
        multiply_by(&operation, chosen.math)?;
        let (mut alpha, mut beta, mut bias) = (1.0, 0.0, None);
        match c.finish {
            Finish::Scaled(factor) => alpha = factor,
            Finish::Added => beta = 1.0,
            Finish::Biased(at) => bias = Some(Bias::of(c, address(at), false)?),
            Finish::BiasedRelu(at) => bias = Some(Bias::of(c, address(at), true)?),
        }
        library.needed.set(library.needed.get().max(chosen.workspace));
        Ok(Some(Convolution {
            x: Operand { at: address(c.x), descriptor: x },
            w: Operand { at: address(c.w), descriptor: w },
            y: Operand { at: address(c.y), descriptor: y },
            operation,
            bias,
            alpha,
            beta,
            algorithm: chosen.algorithm,
            workspace: chosen.workspace,
            library: library.clone(),
        }))
    }

    /// Queues it on the library's stream.
    pub(in crate::cuda) fn launch(&self) -> Result<(), DeviceError> {
        let pointer = |at: CUdeviceptr| at as *mut c_void;
        let number = |x: &f32| from_ref(x).cast::<c_void>();
        let (alpha, beta, handle) = (number(&self.alpha), number(&self.beta), self.library.handle.raw);
        let workspace = match self.workspace {
            0 => null_mut(),
            _ => pointer(self.library.workspace.get().expect("invariant: allocated before programs run").at),
        };
        let bytes = self.workspace;
        let (x, w, y) = (pointer(self.x.at), pointer(self.w.at), pointer(self.y.at));
        let (dx, dw, dy, op) =
            (self.x.descriptor.raw, self.w.descriptor.raw, self.y.descriptor.raw, self.operation.raw);
        // SAFETY, of all four calls: the descriptors live as long as `self`; the two numbers are read during the call.
        // The tensors lie in the plan's buffers: the plan's own kernel of this convolution touches the same elements
        // and is checked for it. Work on one stream has the workspace one after another.
        match (self.algorithm, &self.bias) {
            (Algorithm::Forward(algorithm), None) => called(
                unsafe {
                    sys::cudnnConvolutionForward(
                        handle, alpha, dx, x, dw, w, op, algorithm, workspace, bytes, beta, dy, y,
                    )
                },
                "cudnnConvolutionForward",
            ),
            (Algorithm::Forward(algorithm), Some(Bias { vector, activation })) => {
                let (bias, db) = (pointer(vector.at), vector.descriptor.raw);
                called(
                    unsafe {
                        sys::cudnnConvolutionBiasActivationForward(
                            handle,
                            alpha,
                            dx,
                            x,
                            dw,
                            w,
                            op,
                            algorithm,
                            workspace,
                            bytes,
                            beta,
                            dy,
                            y,
                            db,
                            bias,
                            activation.raw,
                            dy,
                            y,
                        )
                    },
                    "cudnnConvolutionBiasActivationForward",
                )
            }
            (Algorithm::InputGrad(algorithm), _) => called(
                unsafe {
                    sys::cudnnConvolutionBackwardData(
                        handle, alpha, dw, w, dy, y, op, algorithm, workspace, bytes, beta, dx, x,
                    )
                },
                "cudnnConvolutionBackwardData",
            ),
            (Algorithm::WeightGrad(algorithm), _) => called(
                unsafe {
                    sys::cudnnConvolutionBackwardFilter(
                        handle, alpha, dx, x, dy, y, op, algorithm, workspace, bytes, beta, dw, w,
                    )
                },
                "cudnnConvolutionBackwardFilter",
            ),
        }
    }
}

impl Descriptors {
    pub(super) fn of(c: &Described<'_>, tf32: bool) -> Result<Descriptors, DeviceError> {
        let (kernel, depth) = (c.kernel, c.in_channels / c.groups);
        let w = create("cudnnCreateFilterDescriptor", sys::cudnnDestroyFilterDescriptor, |out| {
            // SAFETY: the library is there; it writes a handle. So in the other calls that create.
            unsafe { sys::cudnnCreateFilterDescriptor(out) }
        })?;
        let (float, by_channels) =
            (sys::cudnnDataType_t::CUDNN_DATA_FLOAT, sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC);
        // SAFETY: the descriptor is alive. So in the other calls that set.
        let set = unsafe {
            sys::cudnnSetFilter4dDescriptor(w.raw, float, by_channels, c.out_channels, depth, kernel[0], kernel[1])
        };
        called(set, "cudnnSetFilter4dDescriptor")?;
        let operation = create("cudnnCreateConvolutionDescriptor", sys::cudnnDestroyConvolutionDescriptor, |out| {
            // SAFETY: as above.
            unsafe { sys::cudnnCreateConvolutionDescriptor(out) }
        })?;
        let ([pad_h, pad_w], [step_h, step_w], [apart_h, apart_w]) = (c.pads, c.strides, c.dilations);
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        // SAFETY: as above.
        let set = unsafe {
            sys::cudnnSetConvolution2dDescriptor(
                operation.raw,
                pad_h,
                pad_w,
                step_h,
                step_w,
                apart_h,
                apart_w,
                mode,
                float,
            )
        };
        called(set, "cudnnSetConvolution2dDescriptor")?;
        // SAFETY: as above.
        let set = unsafe { sys::cudnnSetConvolutionGroupCount(operation.raw, c.groups) };
        called(set, "cudnnSetConvolutionGroupCount")?;
        // On tensor cores where the device has them.
        multiply_by(&operation, if tf32 { Math::CUDNN_DEFAULT_MATH } else { Math::CUDNN_FMA_MATH })?;
        let x = tensor(c.batch, c.in_channels, c.input)?;
        let y = tensor(c.batch, c.out_channels, c.output)?;
        Ok(Descriptors { x, w, y, operation })
    }
}

fn multiply_by(operation: &Owned<sys::cudnnConvolutionDescriptor_t>, math: Math) -> Result<(), DeviceError> {
    // SAFETY: the descriptor is alive.
    called(unsafe { sys::cudnnSetConvolutionMathType(operation.raw, math) }, "cudnnSetConvolutionMathType")
}

/// A dense tensor over `N, H, W, C`.
fn tensor(batch: i32, channels: i32, [h, w]: [i32; 2]) -> Result<Owned<sys::cudnnTensorDescriptor_t>, DeviceError> {
    let made = create("cudnnCreateTensorDescriptor", sys::cudnnDestroyTensorDescriptor, |out| {
        // SAFETY: the library is there; it writes a handle.
        unsafe { sys::cudnnCreateTensorDescriptor(out) }
    })?;
    let (float, by_channels) = (sys::cudnnDataType_t::CUDNN_DATA_FLOAT, sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC);
    // SAFETY: the descriptor is alive.
    let set = unsafe { sys::cudnnSetTensor4dDescriptor(made.raw, by_channels, float, batch, channels, h, w) };
    called(set, "cudnnSetTensor4dDescriptor")?;
    Ok(made)
}

impl Bias {
    fn of(c: &Described<'_>, at: CUdeviceptr, relu: bool) -> Result<Bias, DeviceError> {
        let activation = create("cudnnCreateActivationDescriptor", sys::cudnnDestroyActivationDescriptor, |out| {
            // SAFETY: the library is there; it writes a handle.
            unsafe { sys::cudnnCreateActivationDescriptor(out) }
        })?;
        use sys::cudnnActivationMode_t as Mode;
        let mode = if relu { Mode::CUDNN_ACTIVATION_RELU } else { Mode::CUDNN_ACTIVATION_IDENTITY };
        // The plan's ReLU makes zero of what is not above it, NaN included.
        let nan = sys::cudnnNanPropagation_t::CUDNN_NOT_PROPAGATE_NAN;
        // SAFETY: the descriptor is alive.
        let set = unsafe { sys::cudnnSetActivationDescriptor(activation.raw, mode, nan, 0.0) };
        called(set, "cudnnSetActivationDescriptor")?;
        let vector = Operand { at, descriptor: tensor(1, c.out_channels, [1, 1])? };
        Ok(Bias { vector, activation })
    }
}

#[cfg(test)]
#[path = "cudnn_tests.rs"]
mod tests;
