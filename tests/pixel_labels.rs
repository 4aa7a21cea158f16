//! Networks that classify every pixel of an image: heads at images of that size, of fewer pixels and of more, whole
//! steps against the f64 interpreter, and the command.

#[path = "support/cli.rs"]
mod cli;
#[path = "support/made.rs"]
mod made;
mod support;

use cli::{Array, Values, Workspace, npz};
use made::Made;
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::spec::HeadKind;
use slrc_plan::random::Sequence;
use slrc_runtime::cpu::CpuDevice;
use slrc_runtime::data::npz::read_npz;
use support::steps::{Batch, Oracle, by_name, compile_spec, session, weights};

/// A U-Net of one step down and up, of half the image's height and width, four classes. It can be cut at images of more
/// pixels than the logits (`n_a`), of as many (`n_b`, from which the skip goes; `n_f`) and of fewer (`n_g`).
fn unet() -> Made {
    let conv = |m: Made, x: &str, name: &str, dims: [i64; 4], stride: i64| {
        let pad = dims[2] / 2;
        m.weight(&format!("{name}.weight"), &dims)
            .weight(&format!("{name}.bias"), &dims[..1])
            .node("Conv", &format!("{x} {name}.weight {name}.bias"), &format!("{name}_conv"))
            .ints("pads", &[pad; 4])
            .ints("strides", &[stride; 2])
            .node("Relu", &format!("{name}_conv"), name)
    };
    let up = |m: Made, x: &str, name: &str, dims: [i64; 4]| {
        m.weight(&format!("{name}.weight"), &dims)
            .node("ConvTranspose", &format!("{x} {name}.weight"), name)
            .ints("strides", &[2; 2])
    };
    let m = conv(Made::new(&[0, 2, 16, 12], &[0, 4, 8, 6]), "x", "a", [3, 2, 3, 3], 1);
    let m = conv(m, "a", "b", [4, 3, 3, 3], 2);
    let m = m.node("MaxPool", "b", "c").ints("kernel_shape", &[2; 2]).ints("strides", &[2; 2]);
    let m = conv(m, "c", "d", [5, 4, 3, 3], 1);
    let m = up(m, "d", "e", [5, 4, 2, 2]).node("Concat", "b e", "skipped").int("axis", 1);
    let m = conv(m, "skipped", "f", [5, 8, 3, 3], 1);
    let m = conv(m, "f", "g", [6, 5, 3, 3], 2);
    let m = up(m, "g", "h", [6, 5, 2, 2]);
    m.weight("last.weight", &[4, 5, 1, 1]).node("Conv", "h last.weight", "y")
}

fn open(m: Made) -> OnnxFile {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, m.bytes()).expect("a file");
    OnnxFile::open(&path).expect("a model")
}

#[test]
fn steps_by_the_interpreter_and_by_the_device() {
    let file = open(unet());
    for (mode, limit) in [("off", 1e-5), ("exact", 1e-4), ("finite-difference", 1e-3)] {
        let text = format!("partition: {{at: [n_a, n_b, n_f, n_g]}}\nreconcile: {{mode: {mode}}}");
        let c = compile_spec(&file, &text, 3);
        for m in &c.plan.modules[..4] {
            assert_eq!(m.head, HeadKind::Pixel.name());
        }
        let (weights, batch) = (weights(&c, &file), Batch::random(&c, 5));
        assert_eq!(batch.labels.shape, [3, 8, 6]);
        let mut oracle = Oracle::new(&c, &weights);
        let device = CpuDevice::load(&c.plan, None).expect("device");
        let mut session = session(&c, Box::new(device), &weights, &batch);
        let losses: Vec<f64> = session.pass(0, 5).expect("step").iter().map(|m| f64::from(m.loss)).collect();
        let r = support::relative(&losses, &oracle.step(&batch, 0).loss);
        assert!(r < 1e-5, "{mode}: losses {r:e}");
        for (name, ours) in by_name(session.optimizer_state().expect("read")) {
            let r = support::relative(&ours, oracle.data(&name));
            assert!(r < limit, "{mode}: {name} {r:e}");
        }
        let (reports, _) = session.eval().expect("inference");
        for (ours, (_, theirs)) in reports.iter().zip(oracle.infer(&batch)) {
            let ours: Vec<f64> = ours.loss.iter().map(|&x| f64::from(x)).collect();
            assert!(support::relative(&ours, &theirs.data) < 1e-4, "{mode}: losses of samples");
        }
    }
}

#[test]
fn trains_and_goes_back() {
    let work = Workspace::new();
    work.write("unet.onnx", unet().bytes());
    work.ok("partition unet.onnx --batch 4 --modules 3 -o plan");
    let mut rng = Sequence::new(2, 0, 0);
    let x = (0..10 * 384).map(|_| rng.normal()).collect();
    let y = (0..10 * 48).map(|_| i64::from(rng.word() % 4)).collect();
    let arrays = [Array::new("x", &[10, 2, 16, 12], Values::F32(x)), Array::new("y", &[10, 8, 6], Values::I64(y))];
    work.write("data.npz", npz(&arrays));
    work.ok("train plan --data data.npz --steps 3 -o run");
    work.ok("eval run --data data.npz --save-logits logits.npz");
    let saved = read_npz(&work.path("logits.npz")).expect("logits");
    assert_eq!(saved[0].1.shape, [10, 4, 8, 6], "the network's own output");
    work.ok("export run -o back.onnx");
}

/// A final softmax is left out of the loss where it is over the classes.
#[test]
fn a_softmax_over_something_else_stays() {
    let left_out = |axis: i64| {
        let mut m = unet();
        m.graph.node.last_mut().expect("a node").output = vec!["z".into()];
        let file = open(m.node("Softmax", "z", "y").int("axis", axis));
        let options = slrc_compiler::onnx::import::ImportOptions::default();
        let net = slrc_compiler::onnx::import::import(&file, &options).expect("a network");
        net.notes.iter().any(|n| n.contains("ends in a softmax"))
    };
    assert_eq!([1, -3, 3, -1, 2].map(left_out), [true, true, false, false, false]);
}

#[test]
fn what_does_not_fit() {
    let work = Workspace::new();
    work.write("unet.onnx", unet().bytes());
    let line = "partition unet.onnx --batch 4 -o plan";
    let why = "head pool-linear is not for networks that classify every pixel of an image; use --head auto";
    work.fails(&format!("{line} --at n_a --head pool-linear"), 3, &[why]);
    let why = "head pixel is for networks that classify every pixel of an image; use --head auto";
    work.fails("partition MODELS/mnist_cnn/model.onnx --modules 2 --head pixel -o plan", 3, &[why]);
    // Rows and columns that no whole factor leads to.
    let odd = unet().node("Pad", "y pads", "z");
    work.write("odd.onnx", padded(odd).bytes());
    let why = "the network classifies 8x7 pixels, and a local head needs an image of as many, or more or fewer by a whole \
               factor, here";
    work.fails("partition odd.onnx --batch 4 --at n_f -o plan", 3, &[why]);
    work.ok("partition odd.onnx --batch 4 --modules 1 -o plan");
}

/// Its last node pads a column, which is the output.
fn padded(mut m: Made) -> Made {
    m.graph.initializer.push(onnx_protobuf::TensorProto {
        name: "pads".into(),
        dims: vec![8],
        data_type: 7,
        int64_data: vec![0, 0, 0, 0, 0, 0, 0, 1],
        ..Default::default()
    });
    m.graph.output[0].name = "z".into();
    m.graph.output[0].type_ = Default::default();
    m
}
