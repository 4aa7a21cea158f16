//! Official cases with one thing changed: every outcome is a graph or an error, never a panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_protobuf::{Message as _, ModelProto, TensorProto};
use slrc_compiler::ir::verify::{Spec, verify};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::forward::{Given, forward};
use slrc_compiler::onnx::tensor::{Const, Elem, read_numbers};
use slrc_plan::random::Sequence;

/// Numbers that programs trip over.
const NUMBERS: [i64; 9] = [i64::MIN, -(1 << 40), -2, -1, 0, 1, 7, 1 << 33, i64::MAX];

/// Inputs as they are, by name; of the model only what has data.
fn inputs(folder: &Path, file: &OnnxFile, model: &ModelProto) -> Vec<(String, Const)> {
    let read = |(i, v): (usize, &onnx_protobuf::ValueInfoProto)| {
        let bytes = std::fs::read(folder.join(format!("input_{i}.pb"))).ok()?;
        let t = TensorProto::parse_from_bytes(&bytes).ok()?;
        Some((v.name.clone(), read_numbers(file, &t).ok()?))
    };
    model.graph.input.iter().enumerate().filter_map(read).collect()
}

fn pick<'a, T>(rng: &mut Sequence, all: &'a [T]) -> &'a T {
    &all[rng.word() as usize % all.len()]
}

/// Changes an attribute, an operand, a shape or a value.
fn change(model: &mut ModelProto, inputs: &mut [(String, Const)], rng: &mut Sequence) {
    let nodes = &mut model.graph.mut_or_insert_default().node;
    let count = nodes.len().max(1);
    let node = nodes.get_mut(rng.word() as usize % count);
    match (rng.word() % 6, node) {
        (0 | 1, Some(n)) if !n.attribute.is_empty() => {
            let at = rng.word() as usize % n.attribute.len();
            let a = &mut n.attribute[at];
            a.i = *pick(rng, &NUMBERS);
            a.f = *pick(rng, &[f32::NAN, f32::INFINITY, -1.0, 0.0, 1e30]);
            match rng.word() % 3 {
                0 => drop(a.ints.pop()),
                1 => a.ints.push(*pick(rng, &NUMBERS)),
                _ => a.ints.iter_mut().for_each(|x| *x = *pick(rng, &NUMBERS)),
            }
        }
        (2, Some(n)) if !n.input.is_empty() => {
            let at = rng.word() as usize % n.input.len();
            if rng.word().is_multiple_of(2) {
                n.input[at].clear();
            } else {
                n.input[at] = pick(rng, &n.input.clone()).clone();
            }
        }
        (3, Some(n)) => n.input.truncate(1),
        (4, _) if !inputs.is_empty() => {
            let at = rng.word() as usize % inputs.len();
            let c = &mut inputs[at].1;
            match rng.word() % 3 {
                0 => drop(c.shape.pop()),
                1 => c.shape.push(*pick(rng, &[0, 1, 3])),
                _ => c.shape.iter_mut().for_each(|d| *d = *pick(rng, &[0, 1, 2, 5])),
            }
            c.data = vec![0.0; c.shape.iter().product()];
        }
        _ => {
            for (_, c) in inputs.iter_mut().filter(|(_, c)| c.elem == Elem::Int) {
                c.data.iter_mut().for_each(|x| *x = *pick(rng, &NUMBERS) as f64);
            }
        }
    }
}

/// Changes of a case that end in a panic.
pub(crate) fn panics(folder: &Path, changes: u64) -> Vec<u64> {
    let bytes = std::fs::read(folder.join("model.onnx")).expect("a model");
    let (Ok(model), Ok(file)) = (ModelProto::parse_from_bytes(&bytes), OnnxFile::open(&folder.join("model.onnx")))
    else {
        return Vec::new();
    };
    let inputs = inputs(folder, &file, &model);
    let work = tempfile::tempdir().expect("a folder");
    let path: PathBuf = work.path().join("model.onnx");
    let attempt = |seed: u64| {
        let mut rng = Sequence::new(
            seed,
            slrc_plan::random::stream_of(&folder.file_name().unwrap_or_default().to_string_lossy()),
            0,
        );
        let (mut model, mut inputs) = (model.clone(), inputs.clone());
        change(&mut model, &mut inputs, &mut rng);
        std::fs::write(&path, model.write_to_bytes().expect("bytes")).expect("a file");
        let Ok(file) = OnnxFile::open(&path) else { return };
        for known in [false, true] {
            let given = inputs.iter().map(|(name, c)| {
                let held = known && c.elem != Elem::Float;
                (name.clone(), if held { Given::Known(c.clone()) } else { Given::Data(c.elem, c.shape.clone()) })
            });
            if let Ok(f) = forward(&file, &given.collect::<BTreeMap<_, _>>()) {
                verify(&f.graph, Spec::open("import")).expect("what is imported is sound");
            }
        }
    };
    (0..changes).filter(|&seed| std::panic::catch_unwind(|| attempt(seed)).is_err()).collect()
}
