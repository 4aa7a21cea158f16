//! External data: files beside the model and nothing else.

use std::path::{Path, PathBuf};

use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{Message as _, ModelProto, StringStringEntryProto};
use slrc_compiler::onnx::export::{Norms, Trained, export, skeleton};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::Planner;
use slrc_compiler::spec::SpecFile;

use crate::protos::{bytes, floats, ints, model, node, open_bytes};
use crate::{refusal_of, taken};

/// A folder with a model's folder in it, and beside that a file which is none of the model's business.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new() -> Work {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("m")).expect("a folder");
        std::fs::write(folder.path().join("secret.bin"), shape()).expect("a file");
        std::fs::write(folder.path().join("m/weights.bin"), shape()).expect("a file");
        Work { folder }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join("m").join(name)
    }

    /// A model of which an import reads a shape from a file.
    fn open(&self, entries: &[(&str, &str)]) -> OnnxFile {
        let mut m = model(&[8, 4], vec![node("Reshape", &["x", "s"], &["y"])], vec![ints("s", &[2], &[])], &["y"]);
        external(&mut m, "s", entries);
        std::fs::write(self.beside("model.onnx"), bytes(&m)).expect("a file");
        OnnxFile::open(&self.beside("model.onnx")).unwrap_or_else(|e| panic!("{e}"))
    }

    fn refused(&self, location: &str, words: &str) {
        let said = refusal_of(&self.open(&[("location", location)]));
        assert!(said.contains(words), "{location}: {said}");
    }
}

/// What the shape's file holds.
fn shape() -> Vec<u8> {
    [8i64, 4].iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn external(m: &mut ModelProto, tensor: &str, entries: &[(&str, &str)]) {
    let mut all = m.graph.mut_or_insert_default().initializer.iter_mut();
    let t = all.find(|t| t.name == tensor).expect("an initializer");
    t.data_location = DataLocation::EXTERNAL.into();
    for (key, value) in entries {
        let (key, value) = (key.to_string(), value.to_string());
        t.external_data.push(StringStringEntryProto { key, value, ..Default::default() });
    }
}

#[test]
fn files_beside_the_model_are_read() {
    let work = Work::new();
    std::fs::create_dir(work.beside("data")).expect("a folder");
    std::fs::write(work.beside("data/weights.bin"), [vec![0; 64], shape()].concat()).expect("a file");
    taken(&work.open(&[("location", "weights.bin")]));
    taken(&work.open(&[("location", "./weights.bin"), ("length", "16")]));
    taken(&work.open(&[("location", "data/weights.bin"), ("offset", "64"), ("checksum", "of any kind")]));
}

/// Most of the file is a hole, which takes no room.
#[test]
fn tensors_behind_four_gigabytes_are_read() {
    let work = Work::new();
    const FAR: u64 = (4 << 30) + 64;
    std::fs::write(work.beside("far.bin"), b"").expect("a file");
    let file = std::fs::OpenOptions::new().write(true).open(work.beside("far.bin")).expect("a file");
    let near: Vec<u8> = [8i64, 3].iter().flat_map(|x| x.to_le_bytes()).collect();
    for (bytes, at) in [(near, FAR - (4 << 30)), (shape(), FAR)] {
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).expect("written");
    }
    let at =
        |offset: u64| [("location", "far.bin".to_string()), ("offset", offset.to_string()), ("length", "16".into())];
    let open = |offset: u64| work.open(&at(offset).each_ref().map(|(k, v)| (*k, v.as_str())));
    taken(&open(FAR));
    // Were 32 bits all that counts of an offset, this would be the same place.
    let said = refusal_of(&open(FAR - (4 << 30)));
    assert!(said.contains("Reshape"), "{said}");
}

#[test]
fn cve_2022_25882_parent_folders() {
    let work = Work::new();
    for location in ["../secret.bin", "..", "../m/weights.bin", "../../../../../../../../etc/hostname"] {
        work.refused(location, "outside the model's folder");
    }
}

#[test]
fn cve_2024_27318_parent_folders_further_on() {
    let work = Work::new();
    std::fs::create_dir(work.beside("data")).expect("a folder");
    for location in ["data/../../secret.bin", "data/../weights.bin", "nowhere/../../secret.bin", "./../secret.bin"] {
        work.refused(location, "outside the model's folder");
    }
}

#[test]
fn absolute_paths() {
    let work = Work::new();
    let secret = work.folder.path().join("secret.bin");
    for location in [secret.to_str().expect("UTF-8"), "/etc/hostname", "//etc/hostname", "/dev/stdin"] {
        work.refused(location, "outside the model's folder");
    }
}

#[cfg(unix)]
#[test]
fn cve_2026_27489_and_34447_symbolic_links() {
    use std::os::unix::fs::symlink;
    let work = Work::new();
    symlink("../secret.bin", work.beside("link.bin")).expect("a link");
    symlink("/dev/zero", work.beside("zero.bin")).expect("a link");
    symlink("weights.bin", work.beside("inside.bin")).expect("a link");
    symlink("nowhere", work.beside("dangling.bin")).expect("a link");
    symlink("..", work.beside("up")).expect("a link");
    for location in ["link.bin", "zero.bin", "inside.bin", "dangling.bin", "up/secret.bin", "up/m/weights.bin"] {
        work.refused(location, "is reached by a link");
    }
    // The user's own way to the model may lead over links.
    symlink(work.folder.path().join("m"), work.folder.path().join("way")).expect("a link");
    work.open(&[("location", "weights.bin")]);
    taken(&OnnxFile::open(&work.folder.path().join("way/model.onnx")).unwrap_or_else(|e| panic!("{e}")));
}

#[cfg(unix)]
#[test]
fn cve_2026_34446_hard_links() {
    let work = Work::new();
    std::fs::hard_link(work.folder.path().join("secret.bin"), work.beside("hard.bin")).expect("a link");
    work.refused("hard.bin", "is a hard link");
    std::fs::remove_file(work.folder.path().join("secret.bin")).expect("a file");
    taken(&work.open(&[("location", "hard.bin")]));
}

#[test]
fn cve_2026_34445_entries_of_external_data() {
    let work = Work::new();
    let location = ("location", "weights.bin");
    for (entries, words) in [
        (vec![], "without a location"),
        (vec![("basepath", "/etc"), ("path", "/etc/hostname"), ("__class__", "x")], "without a location"),
        (vec![location, ("length", "-1")], "`-1` is not a number"),
        (vec![location, ("offset", "-16")], "`-16` is not a number"),
        (vec![location, ("offset", "1e3")], "`1e3` is not a number"),
        (vec![location, ("length", "9223372036854775807")], "has 16 bytes"),
        (vec![location, ("length", "18446744073709551616")], "is not a number"),
        (vec![location, ("offset", "8"), ("length", "18446744073709551608")], "has 16 bytes"),
        (vec![location, ("offset", "17")], "too few for offset 17"),
        (vec![location, ("offset", "16")], "0 bytes of data for 2 elements of 8 bytes"),
        (vec![location, ("length", "8")], "8 bytes of data for 2 elements of 8 bytes"),
        (vec![location, ("location", "../secret.bin"), ("offset", "1")], "15 bytes of data"),
    ] {
        let said = refusal_of(&work.open(&entries));
        assert!(said.contains(words), "{entries:?}: {said}");
    }
}

#[test]
fn the_key_of_ranges_in_the_file_is_not_for_files() {
    let mut m = model(&[8, 4], vec![node("Reshape", &["x", "s"], &["y"])], vec![ints("s", &[2], &[])], &["y"]);
    external(&mut m, "s", &[("slrc.range", "0,16")]);
    let e = open_bytes(&bytes(&m)).err().expect("refused");
    assert!(e.contains("slrc.range"), "{e}");
}

#[cfg(unix)]
#[test]
fn queues_sockets_and_folders() {
    let work = Work::new();
    let made = std::process::Command::new("mkfifo").arg(work.beside("queue.bin")).status();
    assert!(made.expect("mkfifo runs").success());
    let _socket = std::os::unix::net::UnixListener::bind(work.beside("socket.bin")).expect("a socket");
    std::fs::create_dir(work.beside("folder")).expect("a folder");
    work.refused("queue.bin", "no regular file");
    work.refused("folder", "no regular file");
    work.refused("socket.bin", "cannot be read");
    work.refused("queue.bin/weights.bin", "cannot be read");
    let e = OnnxFile::open(&work.beside("queue.bin")).err().expect("no model").to_string();
    assert!(e.contains("no regular file"), "{e}");
    let e = OnnxFile::open(Path::new("/dev/zero")).err().expect("no model").to_string();
    assert!(e.contains("no regular file"), "{e}");
}

#[test]
fn names_that_are_none() {
    let work = Work::new();
    for location in ["", ".", "./."] {
        work.refused(location, "names no file");
    }
    for location in ["weights.bin\0.png", "nowhere.bin", &"a".repeat(100_000), &"a/".repeat(100_000)] {
        work.refused(location, "cannot be read");
    }
}

#[test]
fn a_file_of_another_size_is_not_read() {
    let work = Work::new();
    // No disk is used, but reading it would take sixteen gigabytes of memory.
    let file = std::fs::File::create(work.beside("sparse.bin")).expect("a file");
    file.set_len(1 << 34).expect("a sparse file");
    work.refused("sparse.bin", "17179869184 bytes of data for 2 elements of 8 bytes");
}

#[test]
fn cve_2025_51480_exports_write_to_no_file_a_model_names() {
    let work = Work::new();
    let w: Vec<u8> = (0..4 * 3).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(work.beside("weights.bin"), &w).expect("a file");
    let nodes = vec![node("MatMul", &["x", "w"], &["h"]), node("Add", &["h", "b"], &["y"])];
    let initializers = vec![floats("w", &[4, 3], &[]), floats("b", &[3], &[0.0; 3])];
    let mut m = model(&[8, 4], nodes, initializers, &["y"]);
    external(&mut m, "w", &[("location", "weights.bin")]);
    std::fs::write(work.beside("model.onnx"), bytes(&m)).expect("a file");
    let file = OnnxFile::open(&work.beside("model.onnx")).expect("a model");
    let planner = Planner::new(&file, &SpecFile::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut bare = ModelProto::parse_from_bytes(&skeleton(&file, &planner.network().sources).expect("a skeleton"))
        .expect("a model");
    // A plan folder may have been changed too.
    external(&mut bare, "w", &[("location", "../secret.bin")]);
    let bare = bytes(&bare);
    let data = [0.5; 12];
    let trained =
        [Trained { name: "w", shape: &[4, 3], data: &data }, Trained { name: "b", shape: &[3], data: &data[..3] }];
    let before = std::fs::read(work.folder.path().join("secret.bin")).expect("a file");
    if let Ok(out) = export(&open_bytes(&bare).expect("a model"), &trained, Norms::Kept) {
        let out = ModelProto::parse_from_bytes(&out).expect("a model");
        assert!(out.graph.initializer.iter().all(|t| t.external_data.is_empty()));
    }
    assert_eq!(std::fs::read(work.folder.path().join("secret.bin")).expect("a file"), before);
    assert_eq!(std::fs::read(work.beside("weights.bin")).expect("a file"), w);
}
