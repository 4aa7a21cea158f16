//! Control flow, sequences and optionals: what is left of them when everything known at import is resolved.

use crate::onnx::node::{Cx, Operand, Out, node_name};
use crate::onnx::ops::Entry;
use crate::onnx::tensor::{Const, Elem};

pub(super) const OPS: &[Entry] = &[
    Entry {
        op: "If",
        note: "the branch that is taken, in the node's place; the condition has to be known at import",
        convert: undecided,
    },
    Entry {
        op: "Loop",
        note: "unrolled, its steps sharing their weights; how many there are has to be known at import, 4096 at most",
        convert: unplaced,
    },
    Entry {
        op: "Scan",
        note: "unrolled, its steps sharing their weights, 4096 at most; in opset 8 sample by sample",
        convert: unplaced,
    },
    Entry { op: "SequenceMap", note: "unrolled; the sequence has to fold away", convert: unplaced },
    Entry { op: "SequenceAt", note: "the element; the place has to be known at import", convert: unplaced },
    Entry { op: "SequenceConstruct", note: "folds away", convert: unplaced },
    Entry { op: "SequenceEmpty", note: "folds away", convert: unplaced },
    Entry { op: "SequenceErase", note: "folds away; the place has to be known at import", convert: unplaced },
    Entry { op: "SequenceInsert", note: "folds away; the place has to be known at import", convert: unplaced },
    Entry { op: "SequenceLength", note: "a constant", convert: unplaced },
    Entry { op: "SplitToSequence", note: "Split; the sizes have to be known at import", convert: unplaced },
    Entry { op: "ConcatFromSequence", note: "Concat of the elements", convert: unplaced },
    Entry { op: "Optional", note: "passed through", convert: optional },
    Entry { op: "OptionalGetElement", note: "passed through", convert: element },
    Entry { op: "OptionalHasElement", note: "known at import", convert: has_element },
];

type R = Result<Vec<Out>, String>;

/// A decided `If` is no node any more ([`crate::onnx::place`]).
fn undecided(_: &mut Cx<'_, '_, '_>) -> R {
    Err("its condition depends on the data, and slrc compiles a fixed graph: export the model with the branch resolved, \
         or, if the condition asks for a shape, pass that shape with --shape"
        .into())
}

/// Nor is what was unrolled or folded away; what was refused is known before.
fn unplaced(_: &mut Cx<'_, '_, '_>) -> R {
    Err("it is in a branch or a body that was not put in place, and slrc compiles a fixed graph".into())
}

fn optional(cx: &mut Cx<'_, '_, '_>) -> R {
    // Its type says nothing that its element does not.
    cx.has("type");
    Ok(vec![Out::Alias(cx.operand(0).clone())])
}

fn element(cx: &mut Cx<'_, '_, '_>) -> R {
    match cx.operand(0).clone() {
        Operand::Absent => Err(format!("\"{}\" has no element", node_name(cx.proto))),
        other => Ok(vec![Out::Alias(other)]),
    }
}

fn has_element(cx: &mut Cx<'_, '_, '_>) -> R {
    let there = f64::from(u8::from(cx.present(0)));
    Ok(vec![Out::Const(Const { elem: Elem::Bool, shape: Vec::new(), data: vec![there] })])
}
