//! Matrix products by NVIDIA's cuBLASLt, in place of a plan's own kernels, where a run asks for it.
//!
//! The plan stays what it is: `gemm.rs` finds kernels that the library computes as they are, `cublaslt.rs` makes the
//! calls. Such a product takes the place of its kernel's launches, on the same stream, in the same graph, and takes no
//! memory: algorithms that need a workspace are not asked for.

mod cublaslt;
mod finish;
mod gemm;

use std::collections::BTreeMap;
use std::rc::Rc;

use cudarc::driver::sys::CUdeviceptr;
use slrc_plan::{Buffer, Kernel, Precision};

pub(super) use self::cublaslt::Product;
use self::cublaslt::{Library, bytes};
use self::gemm::{Place, gemm};
use crate::device::DeviceError;

/// Which libraries compute a plan's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libraries {
    /// None: the plan's own kernels do.
    None,
    /// cuBLASLt; an error where it is missing.
    Cublaslt,
    /// cuBLASLt where it is there.
    Auto,
}

impl Libraries {
    /// Every choice.
    pub const ALL: &'static [Libraries] = &[Libraries::None, Libraries::Cublaslt, Libraries::Auto];

    /// As written after `--libraries`.
    pub fn name(self) -> &'static str {
        match self {
            Libraries::None => "none",
            Libraries::Cublaslt => "cublaslt",
            Libraries::Auto => "auto",
        }
    }
}

impl std::str::FromStr for Libraries {
    type Err = String;
    fn from_str(s: &str) -> Result<Libraries, String> {
        let found = Libraries::ALL.iter().copied().find(|l| l.name() == s);
        found.ok_or_else(|| {
            format!("`{s}` is not one of {}", Libraries::ALL.iter().map(|l| l.name()).collect::<Vec<_>>().join(", "))
        })
    }
}

/// The library that a device uses, or why it uses none.
pub(super) struct Products {
    library: Option<Rc<Library>>,
    precision: Precision,
    /// Why there is none, where one would have been used.
    missing: Option<String>,
}

impl Products {
    /// Starts what is asked for, on the device whose context is current.
    pub(super) fn start(libraries: Libraries, precision: Precision) -> Result<Products, DeviceError> {
        let with = |library, missing| Products { library, precision, missing };
        let started = match libraries {
            Libraries::None => return Ok(with(None, None)),
            Libraries::Cublaslt | Libraries::Auto => Library::start(),
        };
        match (started, libraries) {
            (Ok(library), _) => Ok(with(Some(Rc::new(library)), None)),
            (Err(DeviceError::Unavailable(reason)), Libraries::Auto) => Ok(with(None, Some(reason))),
            (Err(e), _) => Err(e),
        }
    }

    /// The library's name and version.
    pub(super) fn name(&self) -> Option<String> {
        self.library.as_ref().map(|l| l.name())
    }

    /// Why there is no library, where one would have been used.
    pub(super) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// A kernel as a call of the library, where it is one. `address` tells where a buffer lies.
    pub(super) fn prepare(
        &self,
        kernel: &Kernel,
        buffers: &BTreeMap<&str, &Buffer>,
        address: &dyn Fn(&Buffer) -> CUdeviceptr,
    ) -> Result<Option<Product>, DeviceError> {
        let Some(library) = &self.library else { return Ok(None) };
        let Some(g) = gemm(&kernel.run, buffers) else { return Ok(None) };
        let at = |place: Place<'_>| {
            let buffer = buffers.get(place.buffer).expect("invariant: a validated plan has its kernels' buffers");
            address(buffer) + bytes(place)
        };
        Product::prepare(library, &g, self.precision, &at)
    }
}
