//! Which of cuDNN's algorithms computes a convolution: the first of its own ranking that gives the same bits each time,
//! multiplies as the plan does, and needs no more workspace than is allowed.

use cudarc::cudnn::sys::{
    self, cudnnConvolutionFwdAlgo_t as Forward, cudnnDeterminism_t as Determinism, cudnnMathType_t as Math,
    cudnnStatus_t as Status,
};
use slrc_plan::kernel::ConvDirection;

use crate::cuda::library::conv::{Convolution, Finish};
use crate::cuda::library::cudnn::{Descriptors, WORKSPACE_LIMIT};
use crate::cuda::library::owned::called;
use crate::device::DeviceError;

/// An algorithm of the direction that is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    InputGrad(sys::cudnnConvolutionBwdDataAlgo_t),
    WeightGrad(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// What the library says of an algorithm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    pub(super) algorithm: Algorithm,
    /// Bytes.
    pub(super) workspace: usize,
    pub(super) math: Math,
    status: Status,
    determinism: Determinism,
}

/// Most algorithms that the library ranks, each with and without tensor cores.
const MOST: usize = 16;

/// Calls one of the library's three functions that rank algorithms, whose results differ in the algorithm's type.
macro_rules! ranked {
    ($function:ident, $result:ident, $direction:ident, $first:expr, [$($argument:expr),*]) => {{
        let none = sys::$result {
            algo: $first,
            status: Status::CUDNN_STATUS_NOT_SUPPORTED,
            time: -1.0,
            memory: 0,
            determinism: Determinism::CUDNN_NON_DETERMINISTIC,
            mathType: Math::CUDNN_DEFAULT_MATH,
            reserved: [0; 3],
        };
        let (mut found, mut count) = ([none; MOST], 0);
        // SAFETY: all descriptors are alive; the library writes no more results than it is asked for, and their number.
        let status = unsafe { sys::$function($($argument),*, MOST as i32, &raw mut count, found.as_mut_ptr()) };
        called(status, stringify!($function))?;
        let ranked = |p: &sys::$result| Ranked {
            algorithm: Algorithm::$direction(p.algo),
            workspace: p.memory,
            math: p.mathType,
            status: p.status,
            determinism: p.determinism,
        };
        found.iter().take(count.unsigned_abs() as usize).map(ranked).collect::<Vec<Ranked>>()
    }};
}

/// The algorithm that computes a convolution, if the library has one that will do.
pub(super) fn choose(
    handle: sys::cudnnHandle_t,
    d: &Descriptors,
    c: &Convolution<'_>,
    tf32: bool,
) -> Result<Option<Ranked>, DeviceError> {
    let (x, w, y, operation) = (d.x.raw, d.w.raw, d.y.raw, d.operation.raw);
    let ranked = match c.direction {
        ConvDirection::Forward => ranked!(
            cudnnGetConvolutionForwardAlgorithm_v7,
            cudnnConvolutionFwdAlgoPerf_t,
            Forward,
            Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
            [handle, x, w, operation, y]
        ),
        ConvDirection::InputGrad => ranked!(
            cudnnGetConvolutionBackwardDataAlgorithm_v7,
            cudnnConvolutionBwdDataAlgoPerf_t,
            InputGrad,
            sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0,
            [handle, w, y, operation, x]
        ),
        ConvDirection::WeightGrad => ranked!(
            cudnnGetConvolutionBackwardFilterAlgorithm_v7,
            cudnnConvolutionBwdFilterAlgoPerf_t,
            WeightGrad,
            sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0,
            [handle, x, y, operation, w]
        ),
    };
    Ok(ranked.into_iter().find(|r| r.will_do(c.finish, tf32)).map(|r| if tf32 { r } else { r.in_f32() }))
}

impl Ranked {
    fn will_do(&self, finish: Finish<'_>, tf32: bool) -> bool {
        let multiplies = match self.math {
            Math::CUDNN_FMA_MATH | Math::CUDNN_DEFAULT_MATH => true,
            Math::CUDNN_TENSOR_OP_MATH => tf32,
            // To half precision, whose range is not f32's.
            Math::CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION => false,
        };
        // The library has a bias without an activation in one algorithm only.
        let only = Algorithm::Forward(Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM);
        let finishes = !matches!(finish, Finish::Biased(_)) || self.algorithm == only;
        self.status == Status::CUDNN_STATUS_SUCCESS
            && self.determinism == Determinism::CUDNN_DETERMINISTIC
            && self.workspace <= WORKSPACE_LIMIT
            && multiplies
            && finishes
    }

    /// Without the choice between f32 and TF32 that the library's default leaves to itself.
    fn in_f32(self) -> Ranked {
        Ranked { math: Math::CUDNN_FMA_MATH, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(workspace: usize, math: Math, determinism: Determinism) -> Ranked {
        let algorithm = Algorithm::Forward(Forward::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD);
        Ranked { algorithm, workspace, math, status: Status::CUDNN_STATUS_SUCCESS, determinism }
    }

    #[test]
    fn what_will_do() {
        use Determinism::{CUDNN_DETERMINISTIC as SAME, CUDNN_NON_DETERMINISTIC as OTHER};
        use Math::*;
        let plain = Finish::Scaled(1.0);
        let place = crate::cuda::library::gemm::Place { buffer: "b", offset: 0 };
        let (f32, tf32) = (false, true);
        let good = ranked(WORKSPACE_LIMIT, CUDNN_FMA_MATH, SAME);
        assert!(good.will_do(plain, f32) && good.will_do(Finish::BiasedRelu(place), tf32));
        assert!(!ranked(WORKSPACE_LIMIT + 1, CUDNN_FMA_MATH, SAME).will_do(plain, f32));
        assert!(!ranked(0, CUDNN_FMA_MATH, OTHER).will_do(plain, f32));
        assert!(!Ranked { status: Status::CUDNN_STATUS_NOT_SUPPORTED, ..good }.will_do(plain, f32));
        let cores = ranked(0, CUDNN_TENSOR_OP_MATH, SAME);
        assert!(!cores.will_do(plain, f32) && cores.will_do(plain, tf32));
        assert!(!ranked(0, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION, SAME).will_do(plain, tf32));
        assert!(!good.will_do(Finish::Biased(place), f32), "a bias alone by another algorithm");
        assert_eq!(ranked(0, CUDNN_DEFAULT_MATH, SAME).in_f32().math, CUDNN_FMA_MATH);
    }
}
