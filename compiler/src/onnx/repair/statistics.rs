//! What reaches each BatchNormalization that a repair put in: a model that computes it, and the tensors that follow.
//!
//! Of a channel with mean `m` and variance `v` the running mean becomes `m`, the running variance `v`, the scale
//! `sqrt(v + epsilon)`, and `m` is added to the bias. In inference the function stays as it was; in training, where the
//! batch's own statistics take their place, it is that function but for the difference between the two.

use std::collections::BTreeMap;

use onnx_protobuf::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType,
};
use protobuf::Enum as _;

use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::import::Imported;
use crate::onnx::links::Links;
use crate::onnx::node::node_name;
use crate::onnx::repair::{Names, REBN, has_mark};
use crate::weights::WeightTensor;

/// The opset from which on ReduceMean has its axes as an operand.
const AXES_ARE_AN_OPERAND: i64 = 18;

/// A repaired model whose output has, sample by sample, the mean of every channel that enters a BatchNormalization that
/// was put in, and behind these the variances.
pub struct Measured {
    /// The model.
    pub file: OnnxFile,
    /// Its output.
    pub output: String,
    norms: Vec<Norm>,
}

/// One BatchNormalization, with its index in the repaired model.
struct Norm {
    index: usize,
    name: String,
    channels: usize,
    epsilon: f32,
    /// What enters it: a convolution's result, and its dimensions.
    convolved: String,
    rank: usize,
}

impl Measured {
    /// Of a repaired model; none if no BatchNormalization was put in.
    pub fn of(file: &OnnxFile) -> Result<Option<Measured>, OnnxError> {
        let mut file = file.clone();
        let newer = file.opset() >= AXES_ARE_AN_OPERAND;
        let graph = file.proto.graph.mut_or_insert_default();
        let norms = norms(graph)?;
        if norms.is_empty() {
            return Ok(None);
        }
        let mut names = Names::of(graph);
        let mut new = |what: &str| names.new_name(format!("slrc.statistics.{what}"));
        let mut means = Vec::new();
        let mut variances = Vec::new();
        for norm in &norms {
            let (x, rank) = (&norm.convolved, norm.rank);
            let mut put = |op: &str, input: Vec<String>| {
                let output = new(&format!("{}.{op}", norm.name));
                graph.node.push(NodeProto {
                    name: output.clone(),
                    op_type: op.into(),
                    input,
                    output: vec![output.clone()],
                    ..Default::default()
                });
                if op == "ReduceMean" {
                    average(graph, rank, newer);
                }
                output
            };
            let mean = put("ReduceMean", vec![x.clone()]);
            let away = put("Sub", vec![x.clone(), mean.clone()]);
            let square = put("Mul", vec![away.clone(), away]);
            let variance = put("ReduceMean", vec![square]);
            for (all, value) in [(&mut means, mean), (&mut variances, variance)] {
                let flat = put("Flatten", vec![value]);
                all.push(flat);
            }
        }
        let output = new("all");
        graph.node.push(NodeProto {
            name: output.clone(),
            op_type: "Concat".into(),
            input: means.into_iter().chain(variances).collect(),
            output: vec![output.clone()],
            attribute: vec![AttributeProto {
                name: "axis".into(),
                type_: AttributeType::INT.into(),
                i: 1,
                ..Default::default()
            }],
            ..Default::default()
        });
        graph.output.push(ValueInfoProto { name: output.clone(), ..Default::default() });
        Ok(Some(Measured { file, output, norms }))
    }

    /// Statistics of no samples yet.
    pub fn statistics(&self) -> Statistics {
        let channels = self.norms.iter().map(|n| n.channels).sum();
        Statistics { samples: 0, means: vec![0.0; channels], between: vec![0.0; channels], within: vec![0.0; channels] }
    }

    /// Changes the tensors of the BatchNormalizations among the weights of the network that the repaired model was
    /// imported as. Returns how many there are.
    pub fn calibrate(
        &self,
        network: &Imported,
        statistics: &Statistics,
        weights: &mut [WeightTensor],
    ) -> Result<usize, OnnxError> {
        let bad = |n: &Norm, what: &str| OnnxError::Graph(format!("calibrate: \"{}\": {what}", n.name));
        let names: BTreeMap<(usize, usize), (&str, usize)> = (network.sources.iter())
            .flat_map(|(name, s)| s.uses.iter().map(|&u| (u, (name.as_str(), s.uses.len()))))
            .collect();
        let mut of_name: BTreeMap<String, &mut WeightTensor> =
            weights.iter_mut().map(|w| (w.name.clone(), w)).collect();
        let mut first = 0;
        for n in &self.norms {
            // What does not lead to the trained output is not there.
            if !names.contains_key(&(n.index, 1)) {
                first += n.channels;
                continue;
            }
            let mut set = |slot: usize, value: &dyn Fn(usize, f32) -> f64| {
                let Some(&(name, uses)) = names.get(&(n.index, slot)) else {
                    return Err(bad(n, "its bias is computed by the file, and no weight"));
                };
                if uses > 1 {
                    return Err(bad(n, "its bias is tied to others; leave it out of tie"));
                }
                let w = of_name.get_mut(name).filter(|w| w.data.len() == n.channels);
                let w = w.ok_or_else(|| bad(n, "the plan lacks its tensors"))?;
                w.data.iter_mut().enumerate().for_each(|(c, x)| *x = value(c, *x) as f32);
                Ok(())
            };
            let mean = |c: usize| f64::from(statistics.means[first + c] as f32);
            let variance = |c: usize| f64::from(statistics.variance(first + c) as f32);
            set(1, &|c, _| (variance(c) + f64::from(n.epsilon)).sqrt())?;
            set(2, &|c, old| f64::from(old) + mean(c))?;
            set(3, &|c, _| mean(c))?;
            set(4, &|c, _| variance(c))?;
            first += n.channels;
        }
        Ok(self.norms.len())
    }
}

/// Means and variances of channels, over samples and places.
pub struct Statistics {
    samples: usize,
    means: Vec<f64>,
    /// Sums of squares of the samples' distances from their mean.
    between: Vec<f64>,
    /// Sums of the variances within the samples.
    within: Vec<f64>,
}

impl Statistics {
    /// Takes a sample's means and variances, as the model of [`Measured`] has them.
    pub fn add(&mut self, sample: &[f32]) {
        self.samples += 1;
        let (means, variances) = sample.split_at(self.means.len());
        for (c, (&m, &v)) in means.iter().zip(variances).enumerate() {
            let before = f64::from(m) - self.means[c];
            self.means[c] += before / self.samples as f64;
            self.between[c] += before * (f64::from(m) - self.means[c]);
            self.within[c] += f64::from(v);
        }
    }

    /// Whether all are numbers that can be used.
    pub fn are_finite(&self) -> bool {
        (0..self.means.len()).all(|c| (self.means[c] as f32).is_finite() && (self.variance(c) as f32).is_finite())
    }

    /// Of a channel: every sample has as many places.
    fn variance(&self, c: usize) -> f64 {
        (self.between[c] + self.within[c]) / self.samples.max(1) as f64
    }
}

fn norms(graph: &GraphProto) -> Result<Vec<Norm>, OnnxError> {
    let links = Links::new(graph);
    let norm = |(index, n): (usize, &NodeProto)| {
        let extents = |node: &NodeProto| node.input.get(1).and_then(|w| links.initializer(w)).map(|t| &t.dims[..]);
        let channels = extents(n)?.first().copied().and_then(|c| usize::try_from(c).ok())?;
        let convolved = n.input.first()?.clone();
        // As many dimensions as the weight of the convolution.
        let rank = extents(&graph.node[links.maker(&convolved)?])?.len();
        let epsilon = n.attribute.iter().find(|a| a.name == "epsilon").map_or(1e-5, |a| a.f);
        Some(Norm { index, name: node_name(n), channels, epsilon, convolved, rank })
    };
    let put = graph.node.iter().enumerate().filter(|(_, n)| has_mark(n, REBN));
    put.map(|(i, n)| {
        let damaged =
            || OnnxError::Graph(format!("no convolution stands before \"{}\", which rebn put in", node_name(n)));
        norm((i, n)).ok_or_else(damaged)
    })
    .collect()
}

/// Lets the last node, a ReduceMean, average all dimensions behind the channels.
fn average(graph: &mut GraphProto, rank: usize, newer: bool) {
    let axes: Vec<i64> = (2..rank as i64).collect();
    let Some(node) = graph.node.last_mut() else { return };
    if newer {
        let name = format!("{}.axes", node.name);
        graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: vec![axes.len() as i64],
            data_type: DataType::INT64.value(),
            int64_data: axes,
            ..Default::default()
        });
        node.input.push(name);
    } else {
        node.attribute.push(AttributeProto {
            name: "axes".into(),
            type_: AttributeType::INTS.into(),
            ints: axes,
            ..Default::default()
        });
    }
}
