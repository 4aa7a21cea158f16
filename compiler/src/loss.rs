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

/// The dimension of logits that counts classes: the last of `[N, classes]` and `[N, tokens, classes]`, the second of
/// images, `[N, classes, H, W]`.
pub fn class_dimension(logits: &Type) -> usize {
    if logits.rank() == 4 { 1 } else { logits.rank() - 1 }
}

/// Adds the labels input for logits: i32, of their shape without the classes.
pub fn add_labels(graph: &mut Graph, logits: &Type) -> NodeId {
    let mut shape = logits.shape.clone();
    shape.remove(class_dimension(logits));
    let ty = Type::new(DType::I32, shape);
    let id = graph.add_input(Input { name: "@labels".into(), kind: InputKind::Labels, ty });
    Builder::new(graph).input(id)
}

/// Softmax cross-entropy, `log-sum-exp(z) - z[label]`, over the classes. A label counts as correct when it is
/// the first largest logit; a NaN logit makes it incorrect. Labels that are `ignored` are left out of every mean; where
/// none is left, it is 0.
pub fn cross_entropy(graph: &mut Graph, logits: NodeId, labels: NodeId, ignored: Option<i32>) -> Loss {
    let mut b = Builder::new(graph);
    b.phase = Phase::Loss;
    let image = b.shape(logits).len() == 4;
    let logits = if image { b.transpose(logits, &[0, 2, 3, 1]) } else { logits };
    let full = b.shape(logits);
    let classes = full[full.len() - 1];
    let rows: usize = full[..full.len() - 1].iter().product();
    let z = b.reshape(logits, &[rows, classes]);
    let wide = [rows, classes];
    let label = b.reshape(labels, &[rows, 1]);
    let label = b.number(label);
    let counts = ignored.map(|l| {
        let l = b.splat(f64::from(l), &[rows, 1]);
        let ignored = b.map(ScalarFn::Eq, &[label, l]);
        let (zero, one) = (b.splat(0.0, &[rows, 1]), b.splat(1.0, &[rows, 1]));
        (ignored, zero, b.select(ignored, zero, one))
    });
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
        let Some((ignored, zero, counts)) = counts else {
            let per_sample = b.reshape(x, &[samples, rows / samples]);
            let mean = b.mean(per_sample, &[1]);
            let all = b.sum_all(x);
            return (b.reshape(mean, &[samples]), b.scale(all, 1.0 / rows as f64));
        };
        let x = b.select(ignored, zero, x);
        let [sums, numbers] = [x, counts].map(|v| {
            let per_sample = b.reshape(v, &[samples, rows / samples]);
            let sum = b.sum(per_sample, &[1]);
            b.reshape(sum, &[samples])
        });
        let [sum, number] = [x, counts].map(|v| b.sum_all(v));
        (mean_of(&mut b, sums, numbers), mean_of(&mut b, sum, number))
    };
    let (per_sample, mean) = reduce(loss);
    let (correct, accuracy) = reduce(correct);
    Loss { mean, accuracy, per_sample, correct }
}

/// A sum over its number of terms; 0 where there are none.
fn mean_of(b: &mut Builder<'_>, sum: NodeId, number: NodeId) -> NodeId {
    let one = b.splat_like(number, 1.0);
    let none = b.map(ScalarFn::Lt, &[number, one]);
    let number = b.select(none, one, number);
    b.div(sum, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;
    use crate::ir::interp::{Env, evaluate};

    /// Mean loss, accuracy, losses and accuracies of samples.
    fn losses(logits: Tensor, labels: Tensor, ignored: Option<i32>) -> Vec<Tensor> {
        let mut g = Graph::new("loss");
        let ty = Type::f32(logits.shape.clone());
        let x = g.add_input(Input { name: "z".into(), kind: InputKind::Data, ty: ty.clone() });
        let z = Builder::new(&mut g).input(x);
        let y = add_labels(&mut g, &ty);
        let loss = cross_entropy(&mut g, z, y, ignored);
        let mut env = Env::default();
        env.inputs.insert(x, logits);
        env.inputs.insert(g.input_of(InputKind::Labels).expect("labels"), labels);
        evaluate(&g, &env, &[loss.mean, loss.accuracy, loss.per_sample, loss.correct])
    }

    /// A class for each pixel is a class for each token, but for where the classes stand.
    #[test]
    fn pixels_are_tokens() {
        let number = |n: usize, c: usize, p: usize| ((n * 31 + c * 17 + p * 7) % 11) as f64 / 3.0;
        let images = Tensor::from_fn(vec![2, 3, 2, 4], |at| number(at[0], at[1], at[2] * 4 + at[3]));
        let tokens = Tensor::from_fn(vec![2, 8, 3], |at| number(at[0], at[2], at[1]));
        let labels: Vec<f64> = (0..16).map(|i| f64::from(i % 3)).collect();
        let of_images = losses(images, Tensor::new([2, 2, 4], labels.clone()), None);
        let of_tokens = losses(tokens, Tensor::new([2, 8], labels), None);
        assert_eq!(of_images, of_tokens);
        assert_ne!(of_images[2].data[0], of_images[2].data[1]);
    }

    /// What is ignored might as well not be there: two tokens of the first sample and none of the second count.
    #[test]
    fn ignored_labels_do_not_count() {
        let number = |n: usize, c: usize, p: usize| ((n * 31 + c * 17 + p * 7) % 11) as f64 / 3.0;
        let all = Tensor::from_fn(vec![2, 4, 3], |at| number(at[0], at[2], at[1]));
        let few = Tensor::from_fn(vec![1, 2, 3], |at| number(0, at[2], 2 * at[1] + 1));
        let labels = vec![-100., 2., -100., 0., -100., -100., -100., -100.];
        let of_all = losses(all, Tensor::new([2, 4], labels), Some(-100));
        let of_few = losses(few, Tensor::new([1, 2], vec![2., 0.]), None);
        for (all, few) in of_all.iter().zip(&of_few) {
            assert!((all.data[0] - few.data[0]).abs() < 1e-12, "{of_all:?} {of_few:?}");
        }
        assert_eq!([of_all[2].data[1], of_all[3].data[1]], [0.0, 0.0]);
    }

    #[test]
    fn loss_and_accuracy() {
        // Right; wrong; tied with a later class (right); tied with an earlier one (wrong).
        let z = Tensor::new([4, 3], vec![3., 1., 0., 3., 1., 0., 2., 2., 0., 2., 2., 0.]);
        let v = losses(z, Tensor::new([4], vec![0., 1., 0., 1.]), None);
        assert_eq!(v[3].data, [1., 0., 1., 0.]);
        assert_eq!(v[1].data, [0.5]);
        let lse = (3f64.exp() + 1f64.exp() + 1.0).ln();
        assert!((v[2].data[0] - (lse - 3.0)).abs() < 1e-12);
        assert!((v[0].data[0] - v[2].data.iter().sum::<f64>() / 4.0).abs() < 1e-12);
    }
}
