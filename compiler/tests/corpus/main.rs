//! Everything the repository holds, compiled once and looked at from several sides: the text of plans, module tables
//! and partition reports, memory, isolation.

#[path = "../common/mod.rs"]
mod common;
mod exports;
mod isolation;
mod memory;
mod plans;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::pipeline::{Compiled, compile};

/// Samples a step of every plan here.
const BATCH: usize = 8;

/// Cuts of networks whose many candidates make the search for cuts the longest part of the test. Of each such network
/// another export is searched.
const GIVEN_CUTS: &[(&str, &str)] = &[
    ("mobilenet_v2.dynamo_raw", "node_add_78, node_add_158, node_add_265"),
    ("vit_small_patch16_224_sdpa.dynamo", "node_add_6, node_add_12, node_add_18"),
    (
        "vit_small_patch16_224_sdpa.torchscript",
        "/blocks/blocks.2/Add_1, /blocks/blocks.5/Add_1, /blocks/blocks.8/Add_1",
    ),
    ("vit_small_patch16_224_sdpa_opset23.dynamo", "node_add_6, node_add_12, node_add_18"),
];

/// One compiled model.
pub(crate) struct Entry {
    /// Name of its snapshot: `model.setting`, or `model.exporter`.
    pub(crate) name: String,
    /// The result.
    pub(crate) compiled: Compiled,
}

enum Source {
    Small(&'static str, &'static str, &'static str),
    Export(String),
}

impl Source {
    fn compile(&self) -> Entry {
        match self {
            Source::Small(model, setting, spec) => {
                let compiled = compile_text(&common::small(model), spec);
                Entry { name: format!("{model}.{setting}"), compiled }
            }
            Source::Export(name) => {
                let cuts = GIVEN_CUTS.iter().find(|c| c.0 == name);
                let partition = cuts.map_or("modules: 4".to_string(), |c| format!("at: [{}]", c.1));
                let compiled = compile_text(&common::export(name), &format!("partition: {{{partition}}}"));
                Entry { name: name.clone(), compiled }
            }
        }
    }
}

/// Compiles with a spec in YAML.
pub(crate) fn compile_text(file: &OnnxFile, spec: &str) -> Compiled {
    let text = format!("batch: {BATCH}\n{spec}");
    let spec = slrc_plan::yaml::from_str(&text).expect("spec");
    compile(file, &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Every model of the repository in the settings of [`plans::SNAPSHOTS`] and [`plans::CHECKED`].
pub(crate) fn small() -> &'static [Entry] {
    static SMALL: OnceLock<Vec<Entry>> = OnceLock::new();
    SMALL.get_or_init(|| {
        let settings = plans::SNAPSHOTS.iter().chain(plans::CHECKED);
        settings.map(|(model, setting, spec)| Source::Small(model, setting, spec).compile()).collect()
    })
}

/// Every export in four modules.
pub(crate) fn exports() -> &'static [Entry] {
    static EXPORTS: OnceLock<Vec<Entry>> = OnceLock::new();
    EXPORTS.get_or_init(|| {
        let names = common::exports();
        let next = AtomicUsize::new(0);
        // Each thread takes the next name; the results are put in order afterwards.
        let work = || {
            let mut done = Vec::new();
            while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push(Source::Export(name.clone()).compile());
            }
            done
        };
        let mut all: Vec<Entry> = std::thread::scope(|s| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let running: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
            running.into_iter().flat_map(|t| t.join().expect("every export compiles")).collect()
        });
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    })
}

/// Both.
pub(crate) fn corpus() -> impl Iterator<Item = &'static Entry> {
    small().iter().chain(exports())
}

/// Every program of a model, with its module's number.
pub(crate) fn programs(entry: &Entry) -> impl Iterator<Item = (usize, &'static str, &slrc_plan::plan::Program)> {
    let modules = entry.compiled.plan.modules.iter();
    modules.flat_map(|m| [(m.index, "step", &m.step), (m.index, "eval", &m.eval)])
}

/// That a group of snapshots holds these and no others: names are put together from parts, so that one left behind is
/// not seen by its name in the source.
pub(crate) fn no_snapshots_but(group: &str, names: impl Iterator<Item = String>) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/snapshots");
    let files =
        std::fs::read_dir(folder).expect("snapshots").filter_map(|e| e.expect("entry").file_name().into_string().ok());
    let prefix = format!("corpus__{group}__");
    let found = files.filter_map(|f| Some(f.strip_prefix(&prefix)?.strip_suffix(".snap")?.to_string()));
    let (mut found, mut names): (Vec<_>, Vec<_>) = (found.collect(), names.collect());
    found.sort();
    names.sort();
    assert_eq!(found, names);
}
