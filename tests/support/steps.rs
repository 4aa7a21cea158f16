//! Whole training steps from one set of weights and one batch: by the f64 interpreter on the modules' graphs, and by
//! the CPU device on the plan.

use std::collections::BTreeMap;

use slrc_compiler::emit::CompiledModule;
use slrc_compiler::ir::graph::{InputId, InputKind, RootKind, ScalarId, VarId};
use slrc_compiler::ir::interp::{Env, evaluate};
use slrc_compiler::ir::{Graph, NodeId, Tensor};
use slrc_compiler::onnx::file::OnnxFile;
use slrc_compiler::onnx::import::read_weight;
use slrc_compiler::pipeline::{Compiled, compile};
use slrc_compiler::spec::SpecFile;
use slrc_compiler::step::report;
use slrc_compiler::weights::initial_weights;
use slrc_plan::DType;
use slrc_plan::random::Sequence;
use slrc_runtime::device::Device;
use slrc_runtime::session::{NamedTensor, Session};

use super::Goldens;

/// Data and labels.
pub(crate) struct Batch {
    /// By input name.
    pub(crate) inputs: BTreeMap<String, Tensor>,
    /// Labels.
    pub(crate) labels: Tensor,
}

impl Batch {
    /// That of the goldens.
    pub(crate) fn golden(g: &Goldens) -> Batch {
        let tensor = |name: &str| Tensor::new(g.shape(name), g.get(name));
        Batch { inputs: BTreeMap::from([("input".to_string(), tensor("x"))]), labels: tensor("y") }
    }

    /// Normal numbers, legal indices and legal labels.
    pub(crate) fn random(c: &Compiled, seed: u64) -> Batch {
        let mut rng = Sequence::new(seed, 1, 0);
        let buffer = |id: &str| c.plan.buffers.iter().find(|b| b.id == *id).expect("declared");
        let inputs = c.plan.inputs.iter().map(|i| {
            let b = buffer(&i.buffer);
            let below = i.index_below.unwrap_or(2) as u32;
            let real = b.dtype == DType::F32;
            let draw = |_: &[usize]| if real { f64::from(rng.normal()) } else { f64::from(rng.word() % below) };
            (i.name.clone(), Tensor::from_fn(b.shape.0.clone(), draw))
        });
        let inputs = inputs.collect();
        let classes = c.plan.labels.classes as u32;
        let labels =
            Tensor::from_fn(buffer(&c.plan.labels.buffer).shape.0.clone(), |_| f64::from(rng.word() % classes));
        Batch { inputs, labels }
    }
}

/// Compiles a spec in YAML for a batch size.
pub(crate) fn compile_spec(file: &OnnxFile, text: &str, batch: usize) -> Compiled {
    let mut spec: SpecFile = slrc_plan::yaml::from_str(text).expect("spec");
    spec.batch = Some(batch);
    compile(file, &spec, &mut |_, _| {}).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Compiles a golden network, cut where the goldens cut it unless the spec says otherwise.
pub(crate) fn compile_golden(g: &Goldens, text: &str) -> Compiled {
    let file = OnnxFile::open(&g.model()).expect("model");
    let own = text.contains("partition:");
    let text = if own {
        text.to_string()
    } else {
        format!("{text}\npartition: {{at: [{}], allow-skips: 2}}", g.cuts().join(", "))
    };
    compile_spec(&file, &text, g.shape("x")[0])
}

/// The goldens' initial weights for everything a plan loads.
pub(crate) fn golden_weights(g: &Goldens, c: &Compiled) -> Vec<NamedTensor> {
    let file = OnnxFile::open(&g.model()).expect("model");
    let parameters = c.plan.parameters.iter().map(|p| {
        let (shape, data) = if let Some(s) = c.network.sources.get(&p.name) {
            let v = c.network.graph.variable(&p.name).expect("variable");
            (c.network.graph.variables[v.index()].ty.shape.clone(), read_weight(&file, &s.source).expect("weight"))
        } else {
            let key = format!("init/{}", p.name);
            (g.shape(&key).to_vec(), g.get(&key).iter().map(|&x| x as f32).collect())
        };
        NamedTensor { name: p.name.clone(), shape, data }
    });
    let constants = c.names.constants().map(|(constant, id)| {
        let data = constant.data.iter().map(|&x| x as f32).collect();
        NamedTensor { name: id, shape: constant.ty.shape.clone(), data }
    });
    parameters.chain(constants).collect()
}

/// What `slrc partition` writes to the plan's weights.
pub(crate) fn weights(c: &Compiled, file: &OnnxFile) -> Vec<NamedTensor> {
    let (tensors, unused) = initial_weights(c, file, &[]).expect("weights");
    assert!(unused.is_empty());
    tensors.into_iter().map(|t| NamedTensor { name: t.name, shape: t.shape, data: t.data }).collect()
}

/// A plan on a device, with weights and a batch.
pub(crate) fn session(c: &Compiled, device: Box<dyn Device>, weights: &[NamedTensor], batch: &Batch) -> Session {
    let mut session = Session::new(c.plan.clone(), device, weights).expect("session");
    for (name, t) in &batch.inputs {
        let dtype = session.input_buffer(name).expect("an input").dtype;
        let bytes: Vec<u8> = match dtype {
            DType::F32 => t.data.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::I32 => t.data.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            DType::U8 => t.data.iter().map(|&x| x as u8).collect(),
            DType::Bit => unreachable!("inputs are of whole bytes"),
        };
        session.set_input(name, &bytes).expect("input");
    }
    let labels: Vec<i32> = batch.labels.data.iter().map(|&x| x as i32).collect();
    session.set_labels(&labels).expect("labels");
    session
}

/// Tensors by name, as f64.
pub(crate) fn by_name(tensors: Vec<NamedTensor>) -> BTreeMap<String, Vec<f64>> {
    tensors.into_iter().map(|t| (t.name, t.data.into_iter().map(f64::from).collect())).collect()
}

/// Training state for the interpreter.
pub(crate) struct Oracle {
    train: Vec<Graph>,
    eval: Vec<Graph>,
    /// Tensors by name: weights, statistics, optimizer state.
    pub(crate) state: BTreeMap<String, Tensor>,
}

/// What crosses a boundary, and the gradient that comes with each tensor, if it is wanted.
#[derive(Default)]
pub(crate) struct Handed {
    /// x.
    pub(crate) x: Vec<Tensor>,
    /// e.
    pub(crate) e: Vec<Tensor>,
}

/// What a step of the interpreter reports: one entry a module.
pub(crate) struct OracleReport {
    /// Losses.
    pub(crate) loss: Vec<f64>,
    /// Fractions of labels that are the arg-max.
    pub(crate) accuracy: Vec<f64>,
    /// Discord, cosine and ratio; one entry a boundary.
    pub(crate) boundary: Vec<[f64; 3]>,
    /// What each module but the last hands on.
    pub(crate) handed: Vec<Handed>,
}

impl Oracle {
    pub(crate) fn new(c: &Compiled, weights: &[NamedTensor]) -> Oracle {
        let widen = |t: &NamedTensor| Tensor::new(t.shape.clone(), t.data.iter().map(|&x| f64::from(x)).collect());
        let state = weights.iter().map(|t| (t.name.clone(), widen(t))).collect();
        let graphs = |of: fn(&CompiledModule) -> &Graph| c.modules.iter().map(|m| of(m).clone()).collect();
        Oracle { train: graphs(|m| &m.train), eval: graphs(|m| &m.eval), state }
    }

    /// One step of a run of five.
    pub(crate) fn step(&mut self, batch: &Batch, number: u64) -> OracleReport {
        let mut out = OracleReport { loss: vec![], accuracy: vec![], boundary: vec![], handed: vec![] };
        for m in &self.train {
            let env = self.env(m, batch, out.handed.last(), number);
            let targets: Vec<NodeId> = m.roots.iter().map(|r| r.value).collect();
            let values = evaluate(m, &env, &targets);
            let mut boundary = [f64::NAN; 3];
            let mut next = Handed::default();
            for (r, v) in m.roots.iter().zip(values) {
                match &r.kind {
                    RootKind::Output(name) => panic!("output {name}"),
                    RootKind::Boundary(_) => next.x.push(v),
                    RootKind::OutputGradient(_) => next.e.push(v),
                    RootKind::Update(var) => {
                        self.state.insert(m.variables[var.index()].name.clone(), v);
                    }
                    RootKind::Report(name) => match name.as_str() {
                        report::LOSS => out.loss.push(v.data[0]),
                        report::ACCURACY => out.accuracy.push(v.data[0]),
                        report::DISCORD => boundary[0] = v.data[0],
                        report::COSINE => boundary[1] = v.data[0],
                        report::RATIO => boundary[2] = v.data[0],
                        other => panic!("report {other}"),
                    },
                }
            }
            if !boundary[0].is_nan() {
                out.boundary.push(boundary);
            }
            if !next.x.is_empty() {
                out.handed.push(next);
            }
        }
        out
    }

    /// Inference: logits and loss of each sample, of every head.
    pub(crate) fn infer(&self, batch: &Batch) -> Vec<(Tensor, Tensor)> {
        let mut out = Vec::new();
        let mut handed = Handed::default();
        for m in &self.eval {
            let env = self.env(m, batch, Some(&handed), 0);
            let value = |wanted: &RootKind| m.root(|k| k == wanted).map(|id| evaluate(m, &env, &[id]).remove(0));
            let reported = |name: &str| value(&RootKind::Report(name.into())).expect("reported");
            out.push((reported(report::LOGITS), reported(report::SAMPLE_LOSS)));
            let x = (0..).map_while(|i| value(&RootKind::Boundary(i))).collect();
            handed = Handed { x, e: Vec::new() };
        }
        out
    }

    fn env(&self, m: &Graph, batch: &Batch, handed: Option<&Handed>, number: u64) -> Env {
        let mut env = Env::default();
        for (i, input) in m.inputs.iter().enumerate() {
            let value = match input.kind {
                InputKind::Data => batch.inputs[&input.name].clone(),
                InputKind::Labels => batch.labels.clone(),
                InputKind::Boundary(i) => handed.expect("boundary").x[i].clone(),
                InputKind::BoundaryGradient(i) => handed.expect("boundary").e[i].clone(),
            };
            env.inputs.insert(InputId(i as u32), value);
        }
        for (i, v) in m.variables.iter().enumerate() {
            // Only optimizer state is not there at first.
            let start = || Tensor::full(v.ty.shape.clone(), 0.0);
            env.variables.insert(VarId(i as u32), self.state.get(&v.name).cloned().unwrap_or_else(start));
        }
        for (i, x) in m.scalars.iter().enumerate() {
            env.scalars.insert(ScalarId(i as u32), x.schedule.at(number, 5));
        }
        env
    }

    /// Data of a tensor.
    pub(crate) fn data(&self, name: &str) -> &[f64] {
        &self.state[name].data
    }
}

/// `|a - b| / |c|` over several tensors together.
pub(crate) fn norm_ratio<'a>(pairs: impl Iterator<Item = (&'a [f64], &'a [f64], &'a [f64])>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (a, b, c) in pairs {
        difference += a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        size += c.iter().map(|c| c.powi(2)).sum::<f64>();
    }
    (difference / size).sqrt()
}

/// Error of the penalty's gradient alone, by norm over all tensors together: the local gradient, by far the larger
/// part, would hide it.
pub(crate) fn penalty_error<'a>(g: &Goldens, gradient: impl Fn(&str) -> &'a [f64]) -> f64 {
    let names = g.below("exact_squared/grad1/");
    let golden: Vec<[Vec<f64>; 2]> =
        names.iter().map(|n| ["exact_squared", "local"].map(|m| g.get(&format!("{m}/grad1/{n}")))).collect();
    let penalty: Vec<Vec<f64>> =
        golden.iter().map(|[exact, local]| exact.iter().zip(local).map(|(e, l)| e - l).collect()).collect();
    let ours = names.iter().map(|n| gradient(n));
    norm_ratio(ours.zip(&golden).zip(&penalty).map(|((o, [exact, _]), p)| (o, &exact[..], &p[..])))
}
