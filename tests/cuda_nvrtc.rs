//! The runtime's compilation with NVIDIA's own compiler, which needs no GPU. Run by `.ci/run`, which installs it:
//!
//!     LD_LIBRARY_PATH=FOLDER_OF_LIBNVRTC cargo test --test cuda_nvrtc -- --ignored

mod support;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::compile;
use slrc_compiler::spec::SpecFile;
use slrc_runtime::cuda::architecture::Architecture;
use slrc_runtime::cuda::compile::{compile_cubin, known_architectures};
use slrc_runtime::cuda::cubin::Cubin;
use slrc_runtime::cuda::probe::compiler_version;

#[test]
#[ignore = "needs NVIDIA's NVRTC on the loader path; .ci/run installs and names it"]
fn kernels_become_machine_code() {
    let version = compiler_version().expect("a compiler");
    assert!(version.0 >= 12, "{version:?}");
    let known = known_architectures().expect("architectures");
    assert!(known.contains(&Architecture(80)) && known.is_sorted(), "{known:?}");

    let file = OnnxFile::open(&support::root().join("models/mnist_mlp/model.onnx")).expect("model");
    let spec: SpecFile = slrc_plan::yaml::from_str("{batch: 8, partition: {modules: 2}, target: cuda}").expect("spec");
    let c = compile(&file, &spec, &mut |_, _| {}).expect("a plan");
    let cubin = Cubin::compile(&c.plan, &c.kernels.expect("kernels"), Architecture(90)).expect("machine code");
    assert_eq!(cubin.compiler(), version);
    let cubin = cubin.image();
    assert!(cubin.starts_with(b"\x7fELF"));
    let holds = |name: &str| cubin.windows(name.len()).any(|w| w == name.as_bytes());
    for l in c.plan.modules.iter().flat_map(|m| m.step.launches.iter().chain(&m.eval.launches)) {
        assert!(holds(&l.function), "{} is missing", l.function);
    }

    let source = "extern \"C\" __global__ void f(float* x) {\n  x[0] = nothing;\n}\n";
    let e = compile_cubin(source, Architecture(80)).expect_err("an undefined name").to_string();
    assert!(e.starts_with("the kernels do not compile for sm_80:\n"), "{e}");
    assert!(e.contains("kernels.cu(2)") && e.contains("nothing"), "{e}");
    assert!(compile_cubin("", Architecture(33)).is_err(), "there is no such architecture");
}
