//! What can be seen of the real library without a GPU: descriptors need no device.

use slrc_plan::kernel::ConvDirection;

use super::*;

fn place(offset: usize) -> Place<'static> {
    Place { buffer: "b", offset }
}

/// 3 x 3 and 3 x 5 windows, two and one apart, of 29 x 40 pixels, in groups.
fn described(direction: ConvDirection, finish: Finish<'static>) -> Described<'static> {
    Described {
        direction,
        batch: 8,
        in_channels: 16,
        out_channels: 32,
        groups: 2,
        input: [29, 40],
        output: [15, 38],
        kernel: [3, 5],
        pads: [1, 1],
        strides: [2, 1],
        dilations: [1, 1],
        x: place(0),
        w: place(1),
        y: place(2),
        finish,
    }
}

/// The library works out the extents of a result itself. It starts no handle without a GPU: calls with none answer so,
/// which shows that they are there; those that rank algorithms do not even answer.
#[test]
#[ignore = "needs NVIDIA's cuDNN 9 on the loader path, 1 GB as a Python package: docs/testing.md"]
fn the_real_library_has_every_function_and_understands_descriptors() {
    let version = probe::cudnn_version().expect("the library");
    assert!((9..20).contains(&version.0), "{version:?}");
    let c = described(ConvDirection::Forward, Finish::Scaled(1.0));
    for tf32 in [false, true] {
        let d = Descriptors::of(&c, tf32).expect("descriptors");
        let mut found = [0; 4];
        let [n, channels, h, w] = found.each_mut();
        // SAFETY: the descriptors are alive, and the library writes four numbers.
        let status =
            unsafe { sys::cudnnGetConvolution2dForwardOutputDim(d.operation.raw, d.x.raw, d.w.raw, n, channels, h, w) };
        assert_eq!((status, found), (Status::CUDNN_STATUS_SUCCESS, [8, 32, 15, 38]));
    }
    Bias::of(&c, 4096, true).expect("a bias");
    for ranks in ["Forward", "BackwardData", "BackwardFilter"] {
        let name = format!("cudnnGetConvolution{ranks}Algorithm_v7");
        // SAFETY: the library is there; what is found is not called.
        let found = unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) };
        assert!(found.is_ok(), "{name}");
    }
    // A value that no convolution has is refused: the checks above mean something.
    let steps = Descriptors::of(&Described { strides: [0, 1], ..c.clone() }, false);
    assert!(steps.is_err_and(|e| e.to_string().starts_with("cudnnSetConvolution2dDescriptor failed: ")));

    let library = match Library::start(null_mut(), Precision::F32) {
        Ok(library) => library,
        // Without a driver, or without a device.
        Err(DeviceError::Unavailable(_) | DeviceError::Call { call: "cudnnCreate", .. }) => Library {
            handle: Owned { raw: null_mut(), destroy: keep },
            version,
            tf32: false,
            needed: Cell::new(0),
            workspace: OnceCell::new(),
        },
        Err(other) => panic!("{other}"),
    };
    let there = !library.handle.raw.is_null();
    let library = Rc::new(library);
    use sys::{cudnnConvolutionBwdDataAlgo_t as Data, cudnnConvolutionBwdFilterAlgo_t as Filter};
    let forward = Algorithm::Forward(sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM);
    let (data, filter) = (Data::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1, Filter::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1);
    for (algorithm, direction, finish, function) in [
        (forward, ConvDirection::Forward, Finish::Scaled(2.0), "cudnnConvolutionForward"),
        (forward, ConvDirection::Forward, Finish::Biased(place(3)), "cudnnConvolutionBiasActivationForward"),
        (Algorithm::InputGrad(data), ConvDirection::InputGrad, Finish::Added, "cudnnConvolutionBackwardData"),
        (Algorithm::WeightGrad(filter), ConvDirection::WeightGrad, Finish::Added, "cudnnConvolutionBackwardFilter"),
    ] {
        let c = described(direction, finish);
        if there {
            let prepared = Convolution::prepare(&library, &c, &|p| 4096 + 256 * p.offset as u64);
            assert!(prepared.expect("an answer").is_some(), "no algorithm: {c:?}");
            continue;
        }
        let d = Descriptors::of(&c, false).expect("descriptors");
        let bias = matches!(finish, Finish::Biased(_)).then(|| Bias::of(&c, 8192, false).expect("a bias"));
        let (x, w, y) = (d.x, d.w, d.y);
        let ready = Convolution {
            x: Operand { at: 4096, descriptor: x },
            w: Operand { at: 4096, descriptor: w },
            y: Operand { at: 4096, descriptor: y },
            operation: d.operation,
            bias,
            alpha: 1.0,
            beta: 0.0,
            algorithm,
            workspace: 0,
            library: library.clone(),
        };
        let refused = ready.launch().expect_err("no handle").to_string();
        assert!(refused.starts_with(&format!("{function} failed: CUDNN_STATUS_")), "{refused}");
    }
}

/// Gives nothing back: there is no handle.
unsafe fn keep(_: sys::cudnnHandle_t) -> Status {
    Status::CUDNN_STATUS_SUCCESS
}
