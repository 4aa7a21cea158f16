//! Files of one network by both exporters compute the same: weights are filled in, the same for corresponding
//! parameters, and the CPU device's logits are compared.
#![allow(clippy::print_stdout, reason = "measured numbers, for --nocapture")]

mod support;

use std::collections::BTreeMap;
use std::io::Read as _;

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Compiled;
use slrc_plan::random::Sequence;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::session::NamedTensor;
use support::steps::{Batch, compile_spec, session};

fn export(name: &str) -> OnnxFile {
    let path = support::root().join("models/exports").join(format!("{name}.onnx.gz"));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).expect(name)).read_to_end(&mut bytes).expect(name);
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).expect("write");
    OnnxFile::open(&path).expect(name)
}

/// Weights by the place of a parameter among those of its role and extents, which the exporters agree on. A weight that
/// arrives transposed is filled transposed; square ones always arrive alike.
fn filled(c: &Compiled) -> Vec<NamedTensor> {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let shape = |buffer: &str| c.plan.buffers.iter().find(|b| b.id == *buffer).expect("declared").shape.0.clone();
    let parameters = c.plan.parameters.iter().map(|p| {
        let shape = shape(&p.buffer);
        let mut sorted = shape.clone();
        sorted.sort_unstable();
        let key = format!("{:?} {sorted:?}", p.role);
        let place = seen.entry(key.clone()).or_insert(0);
        *place += 1;
        let mut rng = Sequence::new(9, slrc_plan::random::stream_of(&key), *place);
        let fan_in = shape.iter().skip(1).product::<usize>().max(1) as f32;
        let mut data: Vec<f32> =
            (0..shape.iter().product()).map(|_| 2.0 * rng.symmetric(1.0) / fan_in.sqrt()).collect();
        if shape.len() == 1 {
            data.iter_mut().for_each(|x| *x = 0.5 + x.abs());
        }
        if let [rows, columns] = shape[..]
            && rows < columns
        {
            data = (0..rows * columns).map(|i| data[i % columns * rows + i / columns]).collect();
        }
        NamedTensor { name: p.name.clone(), shape, data }
    });
    let parameters: Vec<NamedTensor> = parameters.collect();
    let constants = c.names.constants().map(|(constant, id)| {
        let data = constant.data.iter().map(|&x| x as f32).collect();
        NamedTensor { name: id, shape: constant.ty.shape.clone(), data }
    });
    parameters.into_iter().chain(constants).collect()
}

fn logits(name: &str) -> Vec<f64> {
    let c = compile_spec(&export(name), "partition: {modules: 1}", 2);
    let device = CpuDevice::load(&c.plan, None).expect("device");
    let mut session = session(&c, Box::new(device), &filled(&c), &Batch::random(&c, 6));
    let (_, logits) = session.eval().expect("inference");
    logits.into_iter().map(f64::from).collect()
}

/// The same network in the same order of operations gives the same bits; where the exporters spell attention or GELU
/// differently, f32 rounds differently. Measured 6e-7.
const TOLERANCE: f64 = 5e-6;

#[test]
fn logits_agree() {
    let mut known: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (a, b) in [
        ("mnist_cnn.torchscript", "mnist_cnn.dynamo_raw"),
        ("resnet18_cifar.torchscript", "resnet18_cifar.dynamo_raw"),
        ("vgg11_bn_cifar.torchscript", "vgg11_bn_cifar.dynamo_raw"),
        ("mobilenet_v2.torchscript", "mobilenet_v2.dynamo_raw"),
        ("bert_tiny.torchscript", "bert_tiny.dynamo"),
        ("vit_small_patch16_224.dynamo", "vit_small_patch16_224_sdpa.dynamo"),
        ("vit_small_patch16_224.dynamo", "vit_small_patch16_224_sdpa_opset23.dynamo"),
        ("vit_small_patch16_224.torchscript", "vit_small_patch16_224_sdpa.torchscript"),
    ] {
        for name in [a, b] {
            known.entry(name).or_insert_with(|| logits(name));
        }
        let (x, y) = (&known[a], &known[b]);
        let r = support::relative(x, y);
        println!("{a} {b}: {r:e}");
        assert!(r < TOLERANCE, "{a} and {b}: {r:e}");
    }
}

/// A bottleneck's last convolution makes four times the channels it reads: its result is large for its work.
#[test]
fn large_results_of_little_work_are_computed_again() {
    let [without, with] = ["elementwise", "products"].map(|what| {
        let spec = format!("{{partition: {{modules: 1}}, recompute: {what}}}");
        let c = compile_spec(&export("resnet50.torchscript"), &spec, 2);
        let kernels = &c.plan.modules[0].step.kernels;
        let flops: u64 = kernels.iter().filter(|k| k.run.is_product()).map(|k| k.flops).sum();
        (c.plan.memory.arena, flops)
    });
    println!("ResNet-50: {without:?}, computing products again {with:?}");
    assert!(10 * with.0 < 9 * without.0, "{} of {} bytes", with.0, without.0);
    // A twentieth of the products' multiply-adds, and the work on their results.
    assert!(with.1 > without.1 && 100 * with.1 < 106 * without.1, "{} of {} FLOP", with.1, without.1);
}
