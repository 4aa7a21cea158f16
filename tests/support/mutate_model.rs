//! Seeded changes of models that keep them models.
#![allow(dead_code, reason = "each test file uses a part")]

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto};

use crate::mutate::Dice;

/// Changes one thing in a graph.
pub(crate) fn change(g: &mut GraphProto, dice: &mut Dice) {
    let ops = slrc_compiler::onnx::ops::all();
    let names: Vec<String> = g
        .node
        .iter()
        .flat_map(|n| n.output.clone())
        .chain(g.initializer.iter().map(|t| t.name.clone()))
        .chain(g.input.iter().map(|i| i.name.clone()))
        .collect();
    if g.node.is_empty() || g.input.is_empty() {
        return;
    }
    let at = dice.below(g.node.len());
    match dice.below(15) {
        0 => g.node[at].op_type = ops[dice.below(ops.len())].op.to_string(),
        1 => {
            let n = &mut g.node[at];
            if !n.input.is_empty() {
                let slot = dice.below(n.input.len());
                n.input[slot] = if dice.below(5) == 0 { String::new() } else { dice.pick(&names).clone() };
            }
        }
        2 => g.node[at].input.push(dice.pick(&names).clone()),
        3 => drop(g.node[at].input.pop()),
        4 => {
            let n = &mut g.node[at];
            if dice.below(2) == 0 { n.output.push(format!("extra{at}")) } else { drop(n.output.pop()) }
        }
        5 => drop(g.node.remove(at)),
        6 => {
            let other = dice.below(g.node.len());
            g.node.swap(at, other);
        }
        7 | 8 => {
            let with: Vec<usize> = (0..g.node.len()).filter(|&i| !g.node[i].attribute.is_empty()).collect();
            if with.is_empty() {
                return;
            }
            let n = &mut g.node[*dice.pick(&with)];
            let a = dice.below(n.attribute.len());
            let a = &mut n.attribute[a];
            match dice.below(6) {
                0 => {
                    a.name =
                        dice.pick(&["axis", "axes", "perm", "pads", "strides", "group", "epsilon", "to"]).to_string()
                }
                1 => {
                    a.type_ =
                        dice.pick(&[AttributeType::INT, AttributeType::INTS, AttributeType::FLOAT]).to_owned().into()
                }
                2 => a.f = dice.pick(&[f32::NAN, -1.0, 0.0, 1e30]).to_owned(),
                3 => drop(a.ints.pop()),
                _ if a.ints.is_empty() => a.i = dice.integer(),
                _ => {
                    let i = dice.below(a.ints.len());
                    a.ints[i] = dice.integer();
                }
            }
        }
        9 => {
            if !g.initializer.is_empty() {
                let t = dice.below(g.initializer.len());
                tensor(&mut g.initializer[t], dice);
            }
        }
        10 => {
            let i = dice.below(g.input.len());
            let ty = g.input[i].type_.mut_or_insert_default();
            if let Some(type_proto::Value::TensorType(t)) = &mut ty.value {
                match dice.below(4) {
                    0 => t.elem_type = dice.below(20) as i32,
                    1 => drop(t.shape.mut_or_insert_default().dim.pop()),
                    _ => {
                        let dims = &mut t.shape.mut_or_insert_default().dim;
                        if !dims.is_empty() {
                            let d = dice.below(dims.len());
                            dims[d].set_dim_value(dice.integer());
                        }
                    }
                }
            }
        }
        11 => {
            let constants: Vec<usize> = (0..g.node.len()).filter(|&i| g.node[i].op_type == "Constant").collect();
            if !constants.is_empty() {
                let n = &mut g.node[*dice.pick(&constants)];
                n.attribute.iter_mut().filter_map(|a| a.t.as_mut()).for_each(|t| tensor(t, dice));
            }
        }
        12 => {
            let made = any_node(&names, dice);
            g.node.insert(at, made);
            // Something reads it.
            let reader = at + 1 + dice.below(g.node.len() - at - 1).min(3);
            let result = g.node[at].output[0].clone();
            if let Some(slot) = g.node[reader].input.first_mut() {
                *slot = result;
            }
        }
        13 => branch(g, at, dice),
        _ => {
            // One name in place of another, wherever it stands.
            let (from, to) = (dice.pick(&names).clone(), dice.pick(&names).clone());
            let n = &mut g.node[at];
            for name in n.input.iter_mut().chain(&mut n.output).filter(|name| **name == from) {
                name.clone_from(&to);
            }
        }
    }
}

fn tensor(t: &mut TensorProto, dice: &mut Dice) {
    match dice.below(5) {
        0 => t.data_type = dice.below(24) as i32,
        1 => drop(t.dims.pop()),
        2 => t.dims.push(dice.integer()),
        3 if !t.dims.is_empty() => {
            let d = dice.below(t.dims.len());
            t.dims[d] = dice.integer();
        }
        _ if t.raw_data.len() >= 8 => {
            let at = 8 * dice.below(t.raw_data.len() / 8);
            t.raw_data[at..at + 8].copy_from_slice(&dice.integer().to_le_bytes());
        }
        _ => t.raw_data.push(0),
    }
}

/// Attributes that operators have.
const ATTRIBUTES: &[&str] = &[
    "allowzero",
    "alpha",
    "auto_pad",
    "axes",
    "axis",
    "batch_dims",
    "beta",
    "blocksize",
    "ceil_mode",
    "direction",
    "count_include_pad",
    "dilations",
    "end",
    "epsilon",
    "equation",
    "exclusive",
    "fmod",
    "group",
    "hidden_size",
    "is_causal",
    "k",
    "keepdims",
    "kernel_shape",
    "largest",
    "layout",
    "max",
    "min",
    "mode",
    "num_groups",
    "num_outputs",
    "output_padding",
    "pads",
    "perm",
    "reverse",
    "sorted",
    "split",
    "start",
    "storage_order",
    "strides",
    "to",
    "transA",
    "transB",
    "upper",
    "value_float",
    "value_int",
    "value_ints",
];
const WORDS: &[&str] =
    &["SAME_UPPER", "linear", "bidirectional", "ij,jk->ik", "...i->i...", "reflect", "sum", "DCR", "é"];

/// A node of any operator.
fn any_node(names: &[String], dice: &mut Dice) -> NodeProto {
    let ops = slrc_compiler::onnx::ops::all();
    let mut n = NodeProto { op_type: ops[dice.below(ops.len())].op.to_string(), ..Default::default() };
    n.input = (0..dice.below(5)).map(|_| dice.pick(names).clone()).collect();
    n.output = vec![format!("made{}", dice.below(1 << 20))];
    for _ in 0..dice.below(4) {
        let mut a = AttributeProto { name: dice.pick(ATTRIBUTES).to_string(), ..Default::default() };
        if n.attribute.iter().any(|b| b.name == a.name) {
            continue;
        }
        match dice.below(4) {
            0 => (a.type_, a.i) = (AttributeType::INT.into(), dice.integer()),
            1 => (a.type_, a.f) = (AttributeType::FLOAT.into(), *dice.pick(&[0.0, 1.0, -1.0, 0.5, f32::NAN, 1e30])),
            2 => (a.type_, a.s) = (AttributeType::STRING.into(), dice.pick(WORDS).as_bytes().to_vec()),
            _ => {
                a.type_ = AttributeType::INTS.into();
                a.ints = (0..dice.below(6)).map(|_| dice.integer()).collect();
            }
        }
        n.attribute.push(a);
    }
    n
}

/// A node moves into a branch of an If, the condition of which is known, or not.
fn branch(g: &mut GraphProto, at: usize, dice: &mut Dice) {
    let inside = g.node[at].clone();
    let output = |name: &String| ValueInfoProto { name: name.clone(), ..Default::default() };
    let graph = GraphProto {
        output: inside.output.iter().map(output).collect(),
        node: vec![inside.clone()],
        ..Default::default()
    };
    let attribute = |name: &str| AttributeProto {
        name: name.into(),
        type_: AttributeType::GRAPH.into(),
        g: Some(graph.clone()).into(),
        ..Default::default()
    };
    let condition = format!("condition{}", dice.below(1 << 20));
    let known = TensorProto {
        name: condition.clone(),
        data_type: 9,
        int32_data: vec![dice.below(2) as i32],
        ..Default::default()
    };
    let input = if dice.below(4) == 0 { inside.input.first().cloned().unwrap_or_default() } else { condition };
    g.initializer.push(known);
    g.node[at] = NodeProto {
        op_type: "If".into(),
        input: vec![input],
        output: inside.output,
        attribute: vec![attribute("then_branch"), attribute("else_branch")],
        ..Default::default()
    };
}
