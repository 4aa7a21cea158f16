//! What a user should know of a model, and for each finding what slrc does about it.

use serde::Serialize;

use crate::diagnose::Network;
use crate::onnx::diagnose::{Equality, Merged, dropout_places, folded_convolutions, gradient_ends, merged, renamed};
use crate::onnx::file::OnnxFile;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind; part of the interface.
    pub kind: &'static str,
    /// How many nodes or weights it is about.
    pub count: usize,
    /// What was found, and how it was judged.
    pub says: String,
    /// The first names.
    pub names: Vec<String>,
    /// What slrc does.
    pub does: String,
    /// The option, or what else changes that.
    pub option: Option<String>,
    /// Weights with several uses: all of them, and all their uses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<Shared>,
}

/// A weight with several uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shared {
    /// Its name.
    pub name: String,
    /// Nodes that use it.
    pub nodes: Vec<String>,
}

/// Names that are listed; the count says how many there are.
const NAMED: usize = 3;

fn first<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    names.into_iter().take(NAMED).cloned().collect()
}

/// `1 node`, `2 nodes`.
fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// All findings, those that may be mistakes of the export first.
pub(super) fn findings(file: &OnnxFile, output: Option<&str>, network: Option<&Network>) -> Vec<Finding> {
    let mut out = Vec::new();
    if let Some(output) = output {
        gradient(file, output, &mut out);
    }
    batch_norm(file, &mut out);
    if let Some(output) = output {
        dropout(file, output, &mut out);
    }
    sharing(file, &mut out);
    names(file, &mut out);
    if let Some(network) = network {
        out.push(cuts(network));
    }
    out
}

fn gradient(file: &OnnxFile, output: &str, out: &mut Vec<Finding>) {
    let ends = gradient_ends(file, output);
    let effect = if ends.unreached.is_empty() {
        "every weight still reaches the output by other ways".to_string()
    } else {
        let names: Vec<String> = first(&ends.unreached).iter().map(|n| format!("\"{n}\"")).collect();
        let more = if ends.unreached.len() > NAMED { ", .." } else { "" };
        let s = if ends.unreached.len() == 1 { "reaches" } else { "reach" };
        let weights = counted(ends.unreached.len(), "weight");
        format!("{weights} {s} the output in no other way: {}{more}", names.join(", "))
    };
    let kinds = [
        ("gradient-ends-discrete", &ends.discrete, "whole numbers or flags of values that depend on weights"),
        ("gradient-ends-step", &ends.steps, "steps of values that depend on weights"),
    ];
    for (kind, nodes, makes) in kinds {
        if nodes.is_empty() {
            continue;
        }
        let verb = if nodes.len() == 1 { "makes" } else { "make" };
        out.push(Finding {
            kind,
            count: nodes.len(),
            says: format!("{} {verb} {makes}, and no gradient passes; {effect}", counted(nodes.len(), "node")),
            names: nodes.iter().take(NAMED).map(|(op, node)| format!("{node} ({op})")).collect(),
            does:
                "takes what comes from such a node as a constant in the backward pass, as PyTorch does; weights that \
                   reach the output in no other way keep their values but for weight decay"
                    .into(),
            option: None,
            shared: Vec::new(),
        });
    }
}

fn batch_norm(file: &OnnxFile, out: &mut Vec<Finding>) {
    let Some(found) = folded_convolutions(file) else { return };
    let n = found.nodes.len();
    let says = if found.by_names {
        format!(
            "names that exporters give where they fold a BatchNormalization into a convolution, on {}",
            counted(n, "convolution")
        )
    } else {
        format!(
            "{n} convolutions without BatchNormalization, in a network without any normalisation. Exporters fold it \
             away by default; a network that never had it (VGG, SqueezeNet) looks the same, and nothing in the file \
             tells which this is"
        )
    };
    out.push(Finding {
        kind: "folded-batch-norm",
        count: n,
        says,
        names: first(&found.nodes),
        does: "trains the convolutions as they are, without normalisation".into(),
        option: Some(
            "--rebn puts BatchNormalization back. Or export with it kept: torch.onnx.export(.., dynamo=False, \
             do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE), or dynamo=True, optimize=False"
                .into(),
        ),
        shared: Vec::new(),
    });
}

fn dropout(file: &OnnxFile, output: &str, out: &mut Vec<Finding>) {
    let found = dropout_places(file, output);
    if found.present > 0 || found.places.is_empty() {
        return;
    }
    let family = if found.blocks > 0 {
        format!(
            "Transformers (this one has {} of attention) usually have it before these residual additions",
            counted(found.blocks, "block")
        )
    } else {
        "Some convolutional networks have it before their classifier".to_string()
    };
    out.push(Finding {
        kind: "no-dropout",
        count: found.places.len(),
        says: format!(
            "no Dropout in the file: exports for inference leave it out, and the file does not tell whether the network \
             had it. {family}"
        ),
        names: first(&found.places),
        does: "trains without dropout".into(),
        option: Some(
            "--dropout P puts it in. Or export in training mode: torch.onnx.export(.., dynamo=False, \
             training=torch.onnx.TrainingMode.TRAINING)"
                .into(),
        ),
        shared: Vec::new(),
    });
}

fn sharing(file: &OnnxFile, out: &mut Vec<Finding>) {
    let all = merged(file);
    let describe = |m: &Merged| format!("{} ({} uses)", m.name, m.nodes.len());
    let shared_by = |list: &[&Merged]| -> Vec<Shared> {
        list.iter().map(|m| Shared { name: m.name.clone(), nodes: m.nodes.clone() }).collect()
    };
    let of = |want: &[Equality]| all.iter().filter(|m| want.contains(&m.equality)).collect::<Vec<_>>();
    let named = |list: &[&Merged]| list.iter().take(NAMED).map(|m| describe(m)).collect();
    let does = "gives every use a weight of its own; the first keeps the name, another is called <initializer>@<node>, or \
                as its Identity says";
    let equal = of(&[Equality::Constant, Equality::Unknown]);
    if !equal.is_empty() {
        let uses: usize = equal.iter().map(|m| m.nodes.len()).sum();
        let identities = if equal.iter().any(|m| m.through_identity) { ", some through Identity nodes" } else { "" };
        let unknown = if equal.iter().any(|m| m.equality == Equality::Unknown) {
            "; the values of some are not in the file"
        } else {
            ""
        };
        out.push(Finding {
            kind: "merged-initializers",
            count: equal.len(),
            says: format!(
                "{} with {uses} uses{identities}: exporters merge tensors that are equal, as norm weights are before \
                 training{unknown}",
                counted(equal.len(), "initializer")
            ),
            names: named(&equal),
            does: does.into(),
            option: Some("--tie NAME,.. keeps one weight".into()),
            shared: shared_by(&equal),
        });
    }
    let shared = of(&[Equality::Shared, Equality::Embedding]);
    if !shared.is_empty() {
        let embedding = if shared.iter().any(|m| m.equality == Equality::Embedding) {
            "; an embedding that is the matrix of a product too is tied in most networks"
        } else {
            ""
        };
        let verb = if shared.len() == 1 { "has" } else { "have" };
        out.push(Finding {
            kind: "shared-weights",
            count: shared.len(),
            says: format!(
                "{} of unequal numbers {verb} several uses: layers do not come to equal numbers by chance, so the network \
                 seems to share them{embedding}",
                counted(shared.len(), "initializer")
            ),
            names: named(&shared),
            does: does.into(),
            option: Some(format!(
                "--tie {} keeps one weight of each",
                shared.iter().take(NAMED).map(|m| m.name.as_str()).collect::<Vec<_>>().join(",")
            )),
            shared: shared_by(&shared),
        });
    }
}

fn names(file: &OnnxFile, out: &mut Vec<Finding>) {
    let all = renamed(file);
    if all.is_empty() {
        return;
    }
    let transposed = all.iter().filter(|r| r.transposed).count();
    let copies = match transposed {
        0 => String::new(),
        n => format!(
            ". {} the matrix of a MatMul, which PyTorch's exporters store transposed, [in, out], where a linear layer has \
             inputs of three dimensions",
            if n == 1 { "1 is".to_string() } else { format!("{n} are") }
        ),
    };
    let verb = if all.len() == 1 { "has a name" } else { "have names" };
    out.push(Finding {
        kind: "renamed-weights",
        count: all.len(),
        says: format!("{} {verb} that the exporter made up{copies}", counted(all.len(), "weight")),
        names: all.iter().take(NAMED).map(|r| format!("{} (of {})", r.name, r.node)).collect(),
        does: "keeps the file's names: checkpoints, freeze and --init-from use them".into(),
        option: None,
        shared: Vec::new(),
    });
}

fn cuts(network: &Network) -> Finding {
    let n = network.cuts;
    let says = match n {
        0 => "the network cannot be cut: no single tensor separates it".to_string(),
        1 => "1 place where the network can be cut".to_string(),
        _ => format!("{n} places where the network can be cut"),
    };
    let (does, option) = match n {
        0 => ("trains it as one module".to_string(), "--modules 1".to_string()),
        _ => (
            format!("cuts it into {} modules unless told otherwise", crate::spec::DEFAULT_MODULES),
            format!("--modules 1 to {}; --at names places, and partition.txt has them all", n + 1),
        ),
    };
    let skips: Vec<String> = network
        .cuts_with_skips
        .iter()
        .enumerate()
        .map(|(i, places)| format!("{places} with --allow-skips {}", i + 1))
        .collect();
    let says = match &skips[..] {
        [] => says,
        _ => format!("{says}; if tensors that cross beside it are carried along, {}", skips.join(", ")),
    };
    let mut names: Vec<String> = network.first_cut.iter().chain(&network.last_cut).cloned().collect();
    names.dedup();
    Finding { kind: "cuts", count: n, says, names, does, option: Some(option), shared: Vec::new() }
}
