//! One case: its model, its data, and the comparison of outputs.

use std::collections::BTreeMap;
use std::path::Path;

use onnx_protobuf::{Message as _, ModelProto, TensorProto, ValueInfoProto};
use slrc_compiler::ir::graph::{InputId, Root, RootKind};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::{NodeId, Tensor};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::forward::{Forward, Given, Value, forward};
use slrc_compiler::onnx::import::read_weight;
use slrc_compiler::onnx::tensor::{Const, Elem, elem, read_numbers, type_name};
use slrc_compiler::simplify::{Mode, close, specialise};

pub(crate) struct Case {
    file: OnnxFile,
    inputs: Vec<(String, Const)>,
    outputs: Vec<(Const, i32)>,
    training: bool,
    /// Whether composites are computed as plans write them, where logits are so large that logarithms are lost in them.
    closed: bool,
}

/// A case that ran as it should.
pub(crate) struct Run {
    pub(crate) forward: Forward,
    pub(crate) env: Env,
}

/// What has to be known at import: more and more.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Nothing,
    Integers,
    Flags,
    Scalars,
    Lists,
    Everything,
}

impl Known {
    const ALL: [Known; 6] =
        [Known::Nothing, Known::Integers, Known::Flags, Known::Scalars, Known::Lists, Known::Everything];

    fn holds(self, c: &Const) -> bool {
        match self {
            Known::Nothing => false,
            Known::Integers => c.elem == Elem::Int,
            Known::Flags => c.elem != Elem::Float,
            Known::Scalars => c.elem != Elem::Float || c.shape.is_empty(),
            Known::Lists => c.elem != Elem::Float || c.shape.len() < 2,
            Known::Everything => true,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Known::Nothing => "",
            Known::Integers => " (ints)",
            Known::Flags => " (flags)",
            Known::Scalars => " (scalars)",
            Known::Lists => " (lists)",
            Known::Everything => " (known)",
        }
    }
}

/// Only tensors of numbers have data here.
fn only_tensors(values: &[ValueInfoProto]) -> Result<(), String> {
    for v in values {
        let ty = v.type_.as_ref().ok_or("an input or output without a type")?;
        if !ty.has_tensor_type() {
            return Err("sequences, optionals and maps".into());
        }
        let code = ty.tensor_type().elem_type;
        if elem(code).is_none() {
            return Err(format!("{} data", type_name(code)));
        }
    }
    Ok(())
}

impl Case {
    pub(crate) fn read(folder: &Path, closed: bool) -> Result<Case, String> {
        let path = folder.join("model.onnx");
        let bytes = std::fs::read(&path).expect("a model");
        let proto = ModelProto::parse_from_bytes(&bytes).map_err(|e| e.to_string())?;
        only_tensors(&proto.graph.input)?;
        only_tensors(&proto.graph.output)?;
        let file = OnnxFile::open(&path).map_err(|e| e.to_string())?;
        let load = |kind: &str, i: usize, info: &ValueInfoProto| -> Option<Result<(Const, i32), String>> {
            let bytes = std::fs::read(folder.join(format!("{kind}_{i}.pb"))).ok()?;
            let mut t = TensorProto::parse_from_bytes(&bytes).expect("a tensor");
            // The older wheel has bf16 as the integers of its bits.
            let declared = info.type_.tensor_type().elem_type;
            if type_name(declared) == "bfloat16" && type_name(t.data_type) == "uint16" {
                t.data_type = declared;
            }
            Some(read_numbers(&file, &t).map(|c| (c, t.data_type)).map_err(|e| e.to_string()))
        };
        let mut inputs = Vec::new();
        for (i, v) in proto.graph.input.iter().enumerate() {
            if let Some(c) = load("input", i, v) {
                inputs.push((v.name.clone(), c?.0));
            }
        }
        let outputs = proto
            .graph
            .output
            .iter()
            .enumerate()
            .map(|(i, v)| load("output", i, v).unwrap_or_else(|| Err("an output without data".into())))
            .collect::<Result<_, _>>()?;
        let training = proto.graph.node.iter().any(|n| {
            let on = n.attribute.iter().any(|a| a.name == "training_mode" && a.i != 0);
            n.op_type == "BatchNormalization" && on
        });
        Ok(Case { file, inputs, outputs, training, closed })
    }

    /// Runs it with as little known at import as will do, and compares its outputs.
    pub(crate) fn run(&self) -> Result<(Run, &'static str), String> {
        let mut last = String::new();
        let mut tried: Vec<Vec<bool>> = Vec::new();
        for known in Known::ALL {
            let held: Vec<bool> = self.inputs.iter().map(|(_, c)| known.holds(c)).collect();
            if tried.contains(&held) {
                continue;
            }
            tried.push(held);
            let given = self.inputs.iter().map(|(name, c)| {
                let given = if known.holds(c) { Given::Known(c.clone()) } else { Given::Data(c.elem, c.shape.clone()) };
                (name.clone(), given)
            });
            match forward(&self.file, &given.collect::<BTreeMap<_, _>>()) {
                Ok(f) => {
                    let run = self.evaluate(f)?;
                    return Ok((run, known.text()));
                }
                Err(e) => last = e.to_string(),
            }
        }
        Err(last)
    }

    /// Inference, unless a BatchNormalization is in training mode.
    fn choose_mode(&self, f: &mut Forward) {
        let nodes: Vec<NodeId> = f
            .outputs
            .iter()
            .filter_map(|o| match o {
                Value::Node(id, _) => Some(*id),
                Value::Known(_) => None,
            })
            .collect();
        f.graph.roots = nodes.iter().map(|&value| Root { kind: RootKind::Report("output".into()), value }).collect();
        f.graph = specialise(&f.graph, if self.training { Mode::Train } else { Mode::Eval });
        if self.closed {
            f.graph = close(&f.graph);
        }
        let mut values = f.graph.roots.iter().map(|r| r.value);
        for o in &mut f.outputs {
            if let Value::Node(id, _) = o {
                *id = values.next().expect("a root for every computed output");
            }
        }
        let by_name = |name: &str| f.graph.inputs.iter().position(|i| i.name == name).map(|i| InputId(i as u32));
        f.inputs = f.inputs.keys().filter_map(|n| by_name(n).map(|id| (n.clone(), id))).collect();
    }

    fn evaluate(&self, mut f: Forward) -> Result<Run, String> {
        self.choose_mode(&mut f);
        let mut env = Env::default();
        for (name, c) in &self.inputs {
            if let Some(id) = f.inputs.get(name) {
                env.inputs.insert(*id, Tensor::new(c.shape.clone(), c.data.clone()));
            }
        }
        for (name, source) in &f.sources {
            let id = f.graph.variable(name).expect("a variable");
            let data = read_weight(&self.file, &source.source).map_err(|e| e.to_string())?;
            let shape = f.graph.variables[id.index()].ty.shape.clone();
            env.variables.insert(id, Tensor::new(shape, data.iter().map(|&x| f64::from(x)).collect()));
        }
        for (i, (value, (expected, code))) in f.outputs.iter().zip(&self.outputs).enumerate() {
            let (elem, shape, data) = match value {
                Value::Known(c) => (c.elem, c.shape.clone(), c.data.clone()),
                Value::Node(id, elem) => {
                    let t = evaluate(&f.graph, &env, &[*id]).remove(0);
                    (*elem, t.shape, t.data)
                }
            };
            if elem != expected.elem {
                return Err(format!("WRONG: output {i} is {elem:?}, not {:?}", expected.elem));
            }
            if shape != expected.shape {
                return Err(format!("WRONG: output {i} has shape {shape:?}, not {:?}", expected.shape));
            }
            let tolerance = relative(*code);
            let close =
                |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 + tolerance * b.abs();
            if let Some(at) = (0..data.len()).find(|&j| !close(data[j], expected.data[j])) {
                return Err(format!("WRONG: output {i}, element {at}: {} instead of {}", data[at], expected.data[at]));
            }
        }
        Ok(Run { forward: f, env })
    }
}

/// The official runner's tolerance is 1e-3. Where results have fewer digits, it is one and a half units of the last.
fn relative(code: i32) -> f64 {
    match type_name(code).as_str() {
        "float16" => 1.5e-3,
        "bfloat16" => 1.2e-2,
        _ => 1e-3,
    }
}
