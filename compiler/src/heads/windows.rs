//! The gradient of a head that pools first: the same for all pixels of a window, so that one number a window says it.

use crate::heads::first_pool;
use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::op::Op;
use crate::ir::ops::shape::Slice;
use crate::spec::HeadKind;

/// Rows and columns of windows that cover an image evenly and in each of which the gradient of a head is one number;
/// `None` where every pixel has its own. The kind is not `auto`.
pub fn windows(kind: HeadKind, shape: &[usize]) -> Option<[usize; 2]> {
    let &[_, _, h, w] = shape else { return None };
    let side = first_pool(kind, h, w)?;
    let [rows, cols] = [side.min(h), side.min(w)];
    ([rows, cols] != [h, w] && h % rows == 0 && w % cols == 0).then_some([rows, cols])
}

/// `[N, C, rows, cols]`: a pixel of every window of `e`, an image in which all pixels of a window are the same.
pub fn gather(b: &mut Builder<'_>, e: NodeId, [rows, cols]: [usize; 2]) -> NodeId {
    let shape = b.shape(e);
    let windows = Windows { n: shape[0], c: shape[1], rows, cols, height: shape[2] / rows, width: shape[3] / cols };
    windows.before_spreading(b, e).unwrap_or_else(|| {
        let slice = Slice {
            starts: vec![0; 4],
            steps: vec![1, 1, windows.height, windows.width],
            shape: vec![windows.n, windows.c, rows, cols],
        };
        b.slice(e, slice)
    })
}

/// `[N, C, H, W]` of which every window holds one number of `[N, C, rows, cols]`.
pub fn spread(b: &mut Builder<'_>, few: NodeId, shape: &[usize]) -> NodeId {
    let s = b.shape(few);
    let apart = b.reshape(few, &[s[0], s[1], s[2], 1, s[3], 1]);
    let wide = b.broadcast(apart, &[s[0], s[1], s[2], shape[2] / s[2], s[3], shape[3] / s[3]]);
    b.reshape(wide, shape)
}

struct Windows {
    n: usize,
    c: usize,
    rows: usize,
    cols: usize,
    height: usize,
    width: usize,
}

impl Windows {
    /// What was spread to become `x`, whose windows may be dimensions of their own; elementwise work in between is done
    /// on the few. `None` where that cannot be seen.
    fn before_spreading(&self, b: &mut Builder<'_>, x: NodeId) -> Option<NodeId> {
        let (n, c) = (self.n, self.c);
        let few = [n, c, self.rows, self.cols];
        let apart = [n, c, self.rows, self.height, self.cols, self.width];
        let node = b.graph().node(x).clone();
        if let Some(v) = node.op.splat() {
            return Some(b.splat(v, &few));
        }
        match &node.op {
            Op::Map(f) => {
                let operands: Option<Vec<NodeId>> =
                    node.operands.iter().map(|&o| self.before_spreading(b, o)).collect();
                Some(b.map(f.0, &operands?))
            }
            Op::Reshape(_) if b.shape(node.operands[0]) == apart => self.before_spreading(b, node.operands[0]),
            Op::Broadcast(_) => {
                let from = b.shape(node.operands[0]);
                match from[..] {
                    [_, _, 1, 1] => Some(b.broadcast(node.operands[0], &few)),
                    [_, _, _, 1, _, 1] if node.ty.shape == apart => {
                        let whole = b.broadcast(node.operands[0], &[n, c, self.rows, 1, self.cols, 1]);
                        Some(self.together(b, whole))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// `x` of one element a window without the dimensions within windows. Elementwise work comes last, so that it
    /// writes what is handed on.
    fn together(&self, b: &mut Builder<'_>, x: NodeId) -> NodeId {
        let few = [self.n, self.c, self.rows, self.cols];
        let node = b.graph().node(x).clone();
        match (&node.op, node.op.splat()) {
            (_, Some(v)) => b.splat(v, &few),
            (Op::Map(f), None) => {
                let operands: Vec<NodeId> = node.operands.iter().map(|&o| self.together(b, o)).collect();
                b.map(f.0, &operands)
            }
            _ => b.reshape(x, &few),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autodiff::gradients;
    use crate::heads::attach;
    use crate::ir::graph::{Graph, Input, InputId, InputKind};
    use crate::ir::interp::{Env, evaluate};
    use crate::ir::tensor::Tensor;
    use crate::ir::types::Type;
    use slrc_plan::random::Sequence;

    const KINDS: [HeadKind; 4] = [HeadKind::GapLinear, HeadKind::PoolLinear, HeadKind::Linear, HeadKind::MlpSr];

    /// The gradient of a random projection of a head's logits at its boundary, and what comes of it by `f`.
    fn gradient(kind: HeadKind, shape: [usize; 4], f: impl Fn(&mut Builder<'_>, NodeId) -> NodeId) -> [Tensor; 2] {
        let mut g = Graph::new("head");
        let input = g.add_input(Input { name: "x".into(), kind: InputKind::Data, ty: Type::f32(shape) });
        let x = Builder::new(&mut g).input(input);
        let y = attach(&mut g, x, kind, 1, &Type::f32([shape[0], 3])).expect("a head");
        let mut rng = Sequence::new(3, 1, 0);
        let mut b = Builder::new(&mut g);
        let weights =
            b.constant(Type::f32([shape[0], 3]), (0..shape[0] * 3).map(|_| f64::from(rng.normal())).collect());
        let product = b.mul(y, weights);
        let sum = b.sum_all(product);
        let e = gradients(&mut b, sum, &[x])[0];
        let g2 = f(&mut b, e);
        let mut env = Env::default();
        env.inputs.insert(InputId(0), Tensor::from_fn(shape.to_vec(), |_| f64::from(rng.normal())));
        for (i, v) in g.variables.iter().enumerate() {
            let t = Tensor::from_fn(v.ty.shape.clone(), |_| f64::from(rng.normal()));
            env.variables.insert(crate::ir::graph::VarId(i as u32), t);
        }
        let mut values = evaluate(&g, &env, &[e, g2]);
        let last = values.remove(1);
        [values.remove(0), last]
    }

    /// What is handed on says all of the gradient, whatever the head and the image.
    #[test]
    fn one_number_a_window_is_the_whole_gradient() {
        let mut seen = 0;
        for kind in KINDS {
            for shape in
                [[3, 3, 8, 8], [3, 3, 4, 12], [3, 5, 7, 7], [3, 3, 6, 4], [3, 3, 2, 2], [3, 2, 8, 2], [3, 2, 1, 6]]
            {
                let Some(w) = windows(kind, &shape) else { continue };
                seen += 1;
                let [whole, again] = gradient(kind, shape, |b, e| {
                    let few = gather(b, e, w);
                    assert_eq!(b.shape(few), [shape[0], shape[1], w[0], w[1]]);
                    spread(b, few, &shape)
                });
                let norm = whole.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                assert!(norm > 0.0, "{kind:?} {shape:?}");
                // Elementwise work is done once a window instead of once a pixel: the same numbers.
                assert_eq!(whole, again, "{kind:?} {shape:?}: {w:?}");
            }
        }
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn nothing_of_the_image_is_computed_for_it() {
        for kind in [HeadKind::GapLinear, HeadKind::PoolLinear, HeadKind::MlpSr] {
            let shape = [2, 3, 16, 16];
            gradient(kind, shape, |b, e| {
                let few = gather(b, e, windows(kind, &shape).expect("windows"));
                assert!(!matches!(b.graph().node(few).op, Op::Slice(_)), "{kind:?}: a part of the whole");
                few
            });
        }
    }

    #[test]
    fn pixels_of_their_own() {
        assert_eq!(windows(HeadKind::PoolLinear, &[2, 3, 7, 8]), None, "windows overlap");
        assert_eq!(windows(HeadKind::PoolLinear, &[2, 3, 2, 2]), None, "windows of a pixel");
        assert_eq!(windows(HeadKind::Conv, &[2, 3, 8, 8]), None, "a convolution comes first");
        assert_eq!(windows(HeadKind::Linear, &[2, 3, 8, 2]), None, "small images are not pooled");
        assert_eq!(windows(HeadKind::Token, &[2, 5, 8]), None);
    }
}
