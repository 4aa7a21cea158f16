//! Data that does not fit: what is said of it before a step is made, and that no run is begun.

#[path = "support/cli.rs"]
mod cli;

use cli::{Array, Transcript, Values, Workspace, npz, samples, zip_of};

/// Sixteen good samples for mnist_mlp, one array changed.
fn data(change: impl Fn(&mut Vec<Array>)) -> Vec<u8> {
    let mut arrays = samples("mnist_mlp", 16, 1);
    change(&mut arrays);
    npz(&arrays)
}

fn pixels(a: &mut [Array]) -> &mut Vec<f32> {
    match &mut a[0].values {
        Values::F32(v) => v,
        _ => panic!("x is f32"),
    }
}

fn labels(a: &mut [Array]) -> &mut Vec<i64> {
    match &mut a[1].values {
        Values::I64(v) => v,
        _ => panic!("y is i64"),
    }
}

fn prepare(model: &str) -> Workspace {
    let work = Workspace::new();
    work.ok(&format!("partition MODELS/{model}/model.onnx --modules 2 --batch 8 -o plan"));
    work.write("good.npz", npz(&samples(model, 16, 1)));
    work.ok("train plan --data good.npz --steps 1 -o run");
    work
}

/// Training and evaluation must both refuse, and say the same.
fn both(t: &mut Transcript<'_>, work: &Workspace, what: &str, file: &str, words: &[&str]) {
    t.fails(what, &format!("train plan --data {file} -o out"), 4, words);
    work.fails(&format!("eval run --data {file} --save-logits out.npz"), 4, words);
}

#[test]
fn files_that_are_no_data() {
    let work = prepare("mnist_mlp");
    let good = data(|_| {});
    let mut t = Transcript::new(&work);
    let refuse = |t: &mut Transcript<'_>, what: &str, bytes: Vec<u8>, words: &[&str]| {
        work.write("d.npz", bytes);
        both(t, &work, what, "d.npz", &[&["d.npz"], words].concat());
    };
    both(&mut t, &work, "missing", "nowhere.npz", &["nowhere.npz"]);
    refuse(&mut t, "empty", Vec::new(), &["not an .npz archive"]);
    refuse(&mut t, "garbage", b"garbage ".repeat(100), &["not an .npz archive"]);
    refuse(&mut t, "cut in half", good[..good.len() / 2].to_vec(), &["not an .npz archive"]);
    refuse(&mut t, "a bare array", samples("mnist_mlp", 16, 1)[0].npy(), &["not an .npz archive"]);
    refuse(&mut t, "an archive of something else", zip_of(&[("readme.txt".into(), b"hello".to_vec())]), &["no arrays"]);
    let mut flipped = good.clone();
    flipped[2000] ^= 0x10;
    refuse(&mut t, "a flipped bit", flipped, &["\"x\""]);
    let member = |name: &str, bytes: Vec<u8>| zip_of(&[(name.to_string(), bytes)]);
    let x = samples("mnist_mlp", 16, 1)[0].npy();
    refuse(&mut t, "an array cut off", member("x.npy", x[..1000].to_vec()), &["\"x\"", "truncated"]);
    refuse(&mut t, "an array that is none", member("x.npy", b"no array at all".to_vec()), &["\"x\"", ".npy"]);
    let header = |text: &str| {
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.bytes());
        out.extend([0; 64]);
        member("x.npy", out)
    };
    let of = |descr: &str, fortran: &str, shape: &str| {
        header(&format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"))
    };
    refuse(&mut t, "columns first", of("<f4", "True", "(4, 4)"), &["Fortran", "ascontiguousarray"]);
    refuse(&mut t, "big-endian", of(">f4", "False", "(4, 4)"), &["big-endian", "astype"]);
    refuse(&mut t, "complex numbers", of("<c8", "False", "(8,)"), &["<c8", "not supported"]);
    refuse(&mut t, "half precision", of("<f2", "False", "(4, 8)"), &["<f2", "astype('float32')"]);
    refuse(&mut t, "strings", of("<U4", "False", "(4,)"), &["<U4", "not supported"]);
    refuse(&mut t, "Python objects", of("|O", "False", "(4,)"), &["|O", "not supported"]);
    refuse(&mut t, "a size beyond all memory", of("<f4", "False", "(4000000000, 4000000000)"), &["\"x\"", "large"]);
    refuse(&mut t, "more than is there", of("<f4", "False", "(1000, 784)"), &["truncated"]);
    refuse(&mut t, "no header", header("nothing"), &["header", "nothing"]);
    std::fs::create_dir(work.path("folder")).expect("a folder");
    t.fails("a folder without data", "train plan --data folder -o out", 4, &["folder", "train-images", "train.npz"]);
    t.fails("a folder without a test part", "eval run --data folder", 4, &["folder", "t10k-images", "test.npz"]);
    insta::assert_snapshot!("no_data", t.finish());
}

#[test]
fn samples_that_do_not_fit() {
    let work = prepare("mnist_mlp");
    let mut t = Transcript::new(&work);
    let refuse = |t: &mut Transcript<'_>, what: &str, bytes: Vec<u8>, words: &[&str]| {
        work.write("d.npz", bytes);
        both(t, &work, what, "d.npz", &[&["d.npz"], words].concat());
    };
    refuse(&mut t, "no labels", data(|a| a.truncate(1)), &["\"y\"", "it has x"]);
    refuse(&mut t, "no samples", data(|a| drop(a.remove(0))), &["\"input\"", "\"x\""]);
    refuse(&mut t, "another name", data(|a| a[0].name = "image"), &["\"input\"", "\"x\"", "image"]);
    refuse(
        &mut t,
        "another size",
        data(|a| {
            a[0].shape = vec![16, 1, 14, 14];
            pixels(a).truncate(16 * 196);
        }),
        &["\"x\"", "[1, 14, 14]", "\"input\"", "784"],
    );
    refuse(
        &mut t,
        "fewer samples than labels",
        data(|a| {
            a[0].shape[0] = 15;
            pixels(a).truncate(15 * 784);
        }),
        &["\"x\" has 15", "\"y\" has 16"],
    );
    refuse(
        &mut t,
        "none at all",
        data(|a| {
            a.iter_mut().for_each(|a| a.shape[0] = 0);
            pixels(a).clear();
            labels(a).clear();
        }),
        &["no samples"],
    );
    refuse(&mut t, "not a number", data(|a| pixels(a)[3 * 784 + 7] = f32::NAN), &["sample 3", "\"x\"", "NaN"]);
    refuse(&mut t, "infinite", data(|a| pixels(a)[15 * 784] = f32::NEG_INFINITY), &["sample 15", "-inf"]);
    refuse(
        &mut t,
        "infinite in f32",
        data(|a| {
            let mut wide: Vec<f64> = pixels(a).iter().map(|&x| f64::from(x)).collect();
            wide[0] = 1e300;
            a[0].values = Values::F64(wide);
        }),
        &["sample 0", "inf"],
    );
    refuse(&mut t, "a label too many", data(|a| labels(a)[5] = 10), &["label 10", "sample 5", "0..10"]);
    refuse(&mut t, "a label below zero", data(|a| labels(a)[0] = -1), &["label -1", "sample 0"]);
    refuse(&mut t, "a label beyond i32", data(|a| labels(a)[0] = 1 << 40), &["\"y\"", "1099511627776"]);
    refuse(
        &mut t,
        "half a label",
        data(|a| {
            let real = labels(a).iter().map(|&l| l as f32 + 0.5).collect();
            a[1].values = Values::F32(real);
        }),
        &["label", "not a class number"],
    );
    refuse(
        &mut t,
        "labels one-hot",
        data(|a| {
            a[1].shape = vec![16, 10];
            a[1].values = Values::U8(vec![0; 160]);
        }),
        &["160 labels for 16 samples", "1 a sample"],
    );
    work.write("seven.npz", npz(&samples("mnist_mlp", 7, 1)));
    t.fails(
        "fewer samples than a batch",
        "train plan --data seven.npz -o out",
        4,
        &["7 samples", "batch of 8", "--batch"],
    );
    work.write("s.yaml", format!("model: {}\nbatch: 8\n", cli::model("mnist_cnn").display()));
    insta::assert_snapshot!("samples", t.finish());
    // With a spec the modules are shown first, and still no run is begun.
    let before = cli::tree(&work.path(""));
    let ran = work.slrc("train s.yaml --data seven.npz -o out");
    assert!(ran.code == Some(4) && ran.stderr.contains("7 samples"), "{}", ran.stderr);
    assert_eq!(cli::tree(&work.path("")), before);
    assert_eq!(work.json("eval run --data seven.npz --json")["samples"], 7, "evaluation needs no whole batch");
}

#[test]
fn tokens_that_do_not_fit() {
    let work = prepare("tokens_bert");
    let mut t = Transcript::new(&work);
    let ids = |a: &mut [Array], f: &dyn Fn(&mut Vec<i64>)| match &mut a[0].values {
        Values::I64(v) => f(v),
        _ => panic!("ids are i64"),
    };
    let refuse = |t: &mut Transcript<'_>, what: &str, change: &dyn Fn(&mut Vec<Array>), words: &[&str]| {
        let mut arrays = samples("tokens_bert", 16, 1);
        change(&mut arrays);
        work.write("d.npz", npz(&arrays));
        both(t, &work, what, "d.npz", words);
    };
    refuse(&mut t, "beyond the table", &|a| ids(a, &|v| v[2 * 16 + 1] = 64), &["sample 2", "input_ids", "64", "0..64"]);
    refuse(&mut t, "below zero", &|a| ids(a, &|v| v[0] = -1), &["sample 0", "input_ids", "-1"]);
    refuse(
        &mut t,
        "real numbers",
        &|a| a[0].values = Values::F32(vec![0.0; 256]),
        &["input_ids", "real numbers", "integers"],
    );
    refuse(&mut t, "no mask", &|a| drop(a.remove(1)), &["attention_mask", "input_ids"]);
    refuse(&mut t, "an x for two inputs", &|a| a[0].name = "x", &["\"input_ids\"", "x, attention_mask"]);
    insta::assert_snapshot!("tokens", t.finish());
}

#[test]
fn idx_files_that_are_damaged() {
    let work = prepare("mnist_mlp");
    let mut t = Transcript::new(&work);
    let pack = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gz, bytes).expect("gzip");
        gz.finish().expect("gzip")
    };
    let idx = |shape: &[u32], count: usize| {
        let mut out = vec![0, 0, 8, shape.len() as u8];
        shape.iter().for_each(|d| out.extend(d.to_be_bytes()));
        out.resize(out.len() + count, 1);
        out
    };
    let (images, labels) = (idx(&[16, 28, 28], 16 * 784), idx(&[16], 16));
    let mut refuse = |what: &str, images: &[u8], labels: &[u8], words: &[&str]| {
        for part in ["train", "t10k"] {
            work.write(&format!("d/{part}-images-idx3-ubyte.gz"), images);
            work.write(&format!("d/{part}-labels-idx1-ubyte.gz"), labels);
        }
        t.fails(what, "train plan --data d -o out", 4, words);
        work.fails("eval run --data d", 4, &words.iter().map(|w| w.trim_start_matches("train-")).collect::<Vec<_>>());
    };
    let packed = pack(&images);
    refuse("packed images cut off", &packed[..packed.len() / 2], &pack(&labels), &["train-images-idx3-ubyte.gz"]);
    refuse("images that are not packed", &images, &pack(&labels), &["train-images-idx3-ubyte.gz"]);
    refuse("images cut off", &pack(&images[..5000]), &pack(&labels), &["images-idx3", "truncated"]);
    refuse("more images than said", &pack(&[&images[..], &[0]].concat()), &pack(&labels), &["images-idx3", "length"]);
    refuse("no idx file", &pack(b"hello, world"), &pack(&labels), &["images-idx3", "not an idx file"]);
    refuse("nothing", &pack(b""), &pack(&labels), &["images-idx3", "not an idx file"]);
    refuse("half a header", &pack(&images[..6]), &pack(&labels), &["images-idx3", "truncated"]);
    refuse("fewer labels", &packed, &pack(&idx(&[15], 15)), &["labels-idx1", "[15]", "[16, 28, 28]"]);
    refuse("images for labels", &packed, &packed, &["labels-idx1"]);
    let mut high = labels.clone();
    high[8 + 3] = 200;
    refuse("a label out of range", &packed, &pack(&high), &["label 200", "sample 3", "0..10"]);
    refuse("another size", &pack(&idx(&[16, 20, 20], 6400)), &pack(&labels), &["[20, 20]", "784"]);
    std::fs::remove_file(work.path("d/train-labels-idx1-ubyte.gz")).expect("remove");
    t.fails("no labels", "train plan --data d -o out", 4, &["train-labels-idx1-ubyte"]);
    insta::assert_snapshot!("idx", t.finish());
}

#[test]
fn training_that_diverges_leaves_the_last_checkpoint() {
    let work = Workspace::new();
    work.write("good.npz", npz(&samples("mnist_mlp", 64, 1)));
    let mut huge = samples("mnist_mlp", 64, 1);
    pixels(&mut huge).iter_mut().for_each(|x| *x *= 1e18);
    work.write("huge.npz", npz(&huge));
    let mlp = "partition MODELS/mnist_mlp/model.onnx --batch 8";
    work.ok(&format!("{mlp} --modules 2 --lr 1e30 -o steep"));
    work.ok(&format!("{mlp} --modules 1 --lr 1e25 -o whole"));
    // Weights of 1e30 make gradients whose squares no longer fit in f32.
    let mut weights = cli::tensors(&work.path("steep/weights.safetensors"));
    weights.retain(|n, _| n == "fc3.weight");
    weights.values_mut().for_each(|t| t.data.iter_mut().for_each(|x| *x *= 1e25));
    cli::write_tensors(&work.path("large.safetensors"), &weights);
    work.ok(&format!("{mlp} --modules 2 --init-from large.safetensors -o large"));
    for (run, line, word) in [
        ("loss", "steep --data good.npz --steps 20", "the loss of module"),
        ("later", "steep --data good.npz --steps 20 --checkpoint-every 1", "the loss of module"),
        ("weights", "whole --data huge.npz --steps 1", "weight\" is no longer finite after step 1"),
        ("gradients", "large --data good.npz --steps 1", "the gradients at the input of module 2 overflow at step 0"),
    ] {
        let ran = work.slrc(&format!("train {line} -o {run}"));
        assert_eq!(ran.code, Some(4), "{run}: {}", ran.stderr);
        for word in [word, "learning rate", "--lr", "the last checkpoint is intact"] {
            assert!(ran.stderr.contains(word), "{run}: {}", ran.stderr);
        }
        let weights = cli::parameters(&work.path(run));
        assert!(weights.values().all(|t| t.data.iter().all(|x| x.is_finite())), "{run}");
        work.ok(&format!("eval {run} --data good.npz"));
    }
}
