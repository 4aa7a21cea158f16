//! Sequences of tensors as far as they fold away: which tensors a sequence holds, and in what order, is known at import
//! wherever no place in one depends on the data. Then its elements are values like all others, and the operators that
//! put sequences together and take them apart are none.

use std::collections::BTreeMap;

use onnx_protobuf::NodeProto;

use crate::onnx::inline::Spare;
use crate::onnx::place::Placing;
use crate::onnx::protos::{call, flag, identity, int_attribute, int_of, integer, integers, ints_of, is_onnx_op, named};

/// Elements of sequences, by the sequence's name.
#[derive(Default)]
pub(crate) struct Sequences(BTreeMap<String, Vec<String>>);

impl Sequences {
    pub(crate) fn get(&self, name: &str) -> Option<&[String]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub(crate) fn insert(&mut self, name: &str, elements: Vec<String>, spare: &mut Spare) -> Result<(), String> {
        spare.spend(0, elements.len() as u64 + 1)?;
        self.0.insert(name.to_string(), elements);
        Ok(())
    }
}

const OPS: &[&str] = &[
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
];

/// Operators that take a sequence where others have a tensor.
const EITHER: &[&str] = &["Identity", "Optional", "OptionalGetElement", "OptionalHasElement"];

/// Whether a node is about sequences, whatever it reads.
pub(crate) fn is_sequence_op(n: &NodeProto) -> bool {
    is_onnx_op(n) && OPS.contains(&n.op_type.as_str())
}

/// Whether a node reads a sequence in the place of a tensor.
pub(crate) fn passes_sequence(n: &NodeProto, p: &Placing<'_>) -> bool {
    is_onnx_op(n) && EITHER.contains(&n.op_type.as_str()) && named(n, 0).is_some_and(|s| p.sequences.get(s).is_some())
}

/// Nodes in the place of one that is about sequences.
pub(crate) fn fold(n: &NodeProto, p: &mut Placing<'_>) -> Result<Vec<NodeProto>, String> {
    let out = n.output.first().map(String::as_str).unwrap_or_default();
    let known = |p: &Placing<'_>| -> Result<usize, String> {
        let name = named(n, 0).ok_or("it has no sequence")?;
        Ok(p.sequences.get(name).ok_or("the elements of its sequence are not known")?.len())
    };
    let element = |p: &Placing<'_>, i: usize| {
        named(n, 0).and_then(|s| p.sequences.get(s)).and_then(|all| all.get(i)).cloned().unwrap_or_default()
    };
    let elements = |p: &mut Placing<'_>| -> Result<Vec<String>, String> {
        let count = known(p)?;
        p.affordable(count)?;
        Ok(named(n, 0).and_then(|s| p.sequences.get(s)).unwrap_or_default().to_vec())
    };
    match n.op_type.as_str() {
        "SequenceEmpty" => p.define(out, Vec::new()),
        "SequenceConstruct" => p.define(out, n.input.clone()),
        "Identity" | "Optional" | "OptionalGetElement" => {
            let all = elements(p)?;
            p.define(out, all)
        }
        "OptionalHasElement" => Ok(vec![flag(out, true)]),
        "SequenceInsert" => {
            let mut all = elements(p)?;
            let at = p.place(n, 2, all.len() + 1, all.len())?;
            all.insert(at, named(n, 1).ok_or("it has no element")?.to_string());
            p.define(out, all)
        }
        "SequenceErase" => {
            let mut all = elements(p)?;
            let last = all.len().checked_sub(1).ok_or("its sequence is empty")?;
            all.remove(p.place(n, 1, last + 1, last + 1)?);
            p.define(out, all)
        }
        "SequenceAt" => {
            let last = known(p)?.checked_sub(1).ok_or("its sequence is empty")?;
            let at = p.place(n, 1, last + 1, last + 1)?;
            Ok(vec![identity(&element(p, at), out)])
        }
        "SequenceLength" => Ok(vec![integer(out, known(p)? as i64)]),
        "ConcatFromSequence" => {
            let all = elements(p)?;
            let axis = int_attribute(n, "axis").ok_or("it has no axis")?;
            if int_attribute(n, "new_axis").unwrap_or(0) != 0 {
                return p.stack(&all, axis, out);
            }
            if all.is_empty() {
                return Err("a sequence without elements has no shape".into());
            }
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            Ok(vec![call("Concat", &all, &[out], vec![int_of("axis", axis)])])
        }
        _ => split(n, out, p),
    }
}

/// `SplitToSequence`.
fn split(n: &NodeProto, out: &str, p: &mut Placing<'_>) -> Result<Vec<NodeProto>, String> {
    let x = named(n, 0).ok_or("it has no input")?;
    let axis = int_attribute(n, "axis").unwrap_or(0);
    let extent = |p: &Placing<'_>| -> Result<usize, String> {
        let shape = p.shape(x).ok_or("the shape of what it splits is not known")?;
        let at = if axis < 0 { axis + shape.len() as i64 } else { axis };
        let found = usize::try_from(at).ok().and_then(|a| shape.get(a)).copied();
        found.ok_or_else(|| format!("axis {axis} does not exist in {shape:?}"))
    };
    let mut keeps = true;
    let sizes: Vec<i64> = match named(n, 1) {
        None => {
            keeps = int_attribute(n, "keepdims").unwrap_or(1) != 0;
            let extent = extent(p)?;
            vec![1; p.affordable(extent)?]
        }
        Some(sizes) => {
            let count = p.shape(sizes).map_or(0, |s| s.iter().product());
            p.affordable(count)?;
            let sizes = p.known(sizes).ok_or("the sizes of its parts depend on the data")?;
            match (sizes.shape.len(), sizes.integers().first()) {
                (0, Some(&size)) if size > 0 => {
                    let (extent, size) = (extent(p)?, size as usize);
                    let count = p.affordable(extent.div_ceil(size))?;
                    (0..count).map(|i| size.min(extent - i * size) as i64).collect()
                }
                (0, _) => return Err("the size of its parts is none".into()),
                _ => sizes.integers(),
            }
        }
    };
    let parts: Vec<String> = (0..sizes.len()).map(|i| p.fresh(out, i as u64)).collect();
    p.define(out, parts.clone())?;
    let mut nodes = Vec::new();
    if !keeps {
        for (i, part) in parts.iter().enumerate() {
            let at = p.helper(out, "at", i as u64);
            nodes.push(integer(&at, i as i64));
            nodes.push(call("Gather", &[x, &at], &[part], vec![int_of("axis", axis)]));
        }
        return Ok(nodes);
    }
    let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
    if p.opset() < 13 {
        return Ok(vec![call("Split", &[x], &outputs, vec![int_of("axis", axis), ints_of("split", sizes)])]);
    }
    let name = p.helper(out, "sizes", 0);
    nodes.push(integers(&name, sizes));
    nodes.push(call("Split", &[x, &name], &outputs, vec![int_of("axis", axis)]));
    Ok(nodes)
}
