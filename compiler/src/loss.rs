//! The loss and what is reported of it.

use slrc_plan::ScalarFn;
use slrc_plan::kernel::Phase;

use crate::ir::builder::Builder;
use crate::ir::graph::{Graph, Input, InputKind, NodeId};
use crate::ir::types::{DType, Type};

/// The loss of a batch and its accuracy.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Mean over all labels, shape `[]`.
    pub mean: NodeId,
    /// Fraction of labels that are the arg-max, shape `[]`.
    pub accuracy: NodeId,
    /// Mean over each sample's labels, `[N]`.
    pub per_sample: NodeId,
    /// Fraction of each sample's labels that are the arg-max, `[N]`.
    pub correct: NodeId,
}

/// Adds the labels input for logits `[N, .., classes]`: i32 `[N, ..]`.
pub fn add_labels(graph: &mut Graph, logits: &Type) -> NodeId {
    let shape = logits.shape[..logits.rank() - 1].to_vec();
    let ty = Type::new(DType::I32, shape);
    let id = graph.add_input(Input { name: "@labels".into(), kind: InputKind::Labels, ty });
    Builder::new(graph).input(id)
}

/// Softmax cross-entropy, `log-sum-exp(z) - z[label]`, over the last dimension. A label counts as correct when it is
/// the first largest logit; a NaN logit makes it incorrect.
pub fn cross_entropy(graph: &mut Graph, logits: NodeId, labels: NodeId) -> Loss {
    let mut b = Builder::new(graph);
    b.phase = Phase::Loss;
    let full = b.shape(logits);
    let classes = full[full.len() - 1];
    let rows: usize = full[..full.len() - 1].iter().product();
    let z = b.reshape(logits, &[rows, classes]);
    let wide = [rows, classes];
    let label = b.reshape(labels, &[rows, 1]);
    let label = b.number(label);
    let label = b.broadcast(label, &wide);
    let class = b.constant(Type::f32([1, classes]), (0..classes).map(|c| c as f64).collect());
    let class = b.broadcast(class, &wide);
    let is_label = b.map(ScalarFn::Eq, &[label, class]);
    let zero = b.splat(0.0, &wide);
    let one = b.splat(1.0, &wide);

    let lse = b.log_sum_exp(z, &[1]);
    let chosen = b.select(is_label, z, zero);
    let chosen = b.sum(chosen, &[1]);
    let loss = b.sub(lse, chosen);

    // Classes that beat the label: larger logits, and equal ones of a smaller class.
    let label_logit = b.broadcast(chosen, &wide);
    let below = b.map(ScalarFn::Lt, &[z, label_logit]);
    let not_above = b.map(ScalarFn::Le, &[z, label_logit]);
    let earlier = b.map(ScalarFn::Lt, &[class, label]);
    let loses = b.select(earlier, below, not_above);
    let beats = b.select(loses, zero, one);
    let beats = b.select(is_label, zero, beats);
    let rank = b.sum(beats, &[1]);
    let half = b.splat(0.5, &[rows, 1]);
    let correct = b.map(ScalarFn::Lt, &[rank, half]);
    let correct = b.number(correct);

    let samples = full[0];
    let mut reduce = |x: NodeId| {
        let per_sample = b.reshape(x, &[samples, rows / samples]);
        let mean = b.mean(per_sample, &[1]);
        let all = b.sum_all(x);
        (b.reshape(mean, &[samples]), b.scale(all, 1.0 / rows as f64))
    };
    let (per_sample, mean) = reduce(loss);
    let (correct, accuracy) = reduce(correct);
    Loss { mean, accuracy, per_sample, correct }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;
    use crate::ir::interp::{Env, evaluate};

    #[test]
    fn loss_and_accuracy() {
        let mut g = Graph::new("loss");
        let ty = Type::f32([4, 3]);
        let x = g.add_input(Input { name: "z".into(), kind: InputKind::Data, ty: ty.clone() });
        let z = Builder::new(&mut g).input(x);
        let labels = add_labels(&mut g, &ty);
        let loss = cross_entropy(&mut g, z, labels);
        let mut env = Env::default();
        // Right; wrong; tied with a later class (right); tied with an earlier one (wrong).
        env.inputs.insert(x, Tensor::new([4, 3], vec![3., 1., 0., 3., 1., 0., 2., 2., 0., 2., 2., 0.]));
        let y = g.input_of(InputKind::Labels).expect("labels");
        env.inputs.insert(y, Tensor::new([4], vec![0., 1., 0., 1.]));
        let v = evaluate(&g, &env, &[loss.mean, loss.accuracy, loss.per_sample, loss.correct]);
        assert_eq!(v[3].data, [1., 0., 1., 0.]);
        assert_eq!(v[1].data, [0.5]);
        let lse = (3f64.exp() + 1f64.exp() + 1.0).ln();
        assert!((v[2].data[0] - (lse - 3.0)).abs() < 1e-12);
        assert!((v[0].data[0] - v[2].data.iter().sum::<f64>() / 4.0).abs() < 1e-12);
    }
}
