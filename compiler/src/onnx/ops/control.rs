//! Control flow: what is left of it when everything known at import is resolved.

use crate::onnx::node::{Cx, Out};
use crate::onnx::ops::Entry;

pub(super) const OPS: &[Entry] = &[Entry {
    op: "If",
    note: "the branch that is taken, in the node's place; the condition has to be known at import",
    convert: undecided,
}];

/// A decided `If` is no node any more ([`crate::onnx::branches`]).
fn undecided(_: &mut Cx<'_, '_, '_>) -> Result<Vec<Out>, String> {
    Err("its condition depends on the data, and slrc compiles a fixed graph: export the model with the branch resolved, \
         or, if the condition asks for a shape, pass that shape with --shape"
        .into())
}
