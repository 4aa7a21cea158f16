//! A law of matrix products that the builder applies as they are made; see `identities.rs` for the rules of laws.

use crate::ir::builder::Builder;
use crate::ir::graph::NodeId;
use crate::ir::identities::as_scaled;
use crate::ir::op::Op;

/// Products of scaled matrices are scaled products, where the product is the larger of the two: queries times keys are
/// scaled, rather than each of them. Products of a batch are mostly scores, which are worked on where they are made,
/// and what is multiplied is then read as it lies.
pub(crate) fn matmul(b: &mut Builder<'_>, x: NodeId, y: NodeId) -> Option<NodeId> {
    let (left, right) = (b.shape(x), b.shape(y));
    let (&[.., m, k], &[.., l, n]) = (&left[..], &right[..]) else { return None };
    if left.len() < 3 || left.len() != right.len() || k != l {
        return None;
    }
    let larger = |own: &[usize], lost: usize, gained: usize| own.iter().product::<usize>() > 0 && gained > lost;
    let scaled = |b: &mut Builder<'_>, z: NodeId, pays: bool| if pays { unscaled(b, z) } else { None };
    let (a, c) = (scaled(b, x, larger(&left, k, n)), scaled(b, y, larger(&right, k, m)));
    if a.is_none() && c.is_none() {
        return None;
    }
    let ((x, f), (y, g)) = (a.unwrap_or((x, 1.0)), c.unwrap_or((y, 1.0)));
    let product = b.matmul(x, y);
    Some(b.scale(product, f * g))
}

/// `y` and `c`, where a value is `y * c` or a view of it.
fn unscaled(b: &mut Builder<'_>, x: NodeId) -> Option<(NodeId, f64)> {
    if let Some(found) = as_scaled(b, x) {
        return Some(found);
    }
    let n = b.graph().node(x);
    let (op, operand) = match (&n.op, &n.operands[..]) {
        (Op::Transpose(_) | Op::Reshape(_) | Op::Broadcast(_), &[o]) => (n.op.clone(), o),
        _ => return None,
    };
    let (y, c) = unscaled(b, operand)?;
    Some((b.replay(&op, &[y]), c))
}

#[cfg(test)]
mod tests {
    use crate::ir::builder::Builder;
    use crate::ir::graph::{Graph, Input, InputKind, NodeId, Root, RootKind};
    use crate::ir::text;
    use crate::ir::types::Type;

    /// The text of what `build` makes of inputs of these shapes.
    fn made(shapes: &[&[usize]], build: impl Fn(&mut Builder<'_>, &[NodeId]) -> NodeId) -> String {
        let mut graph = Graph::new("product");
        let mut b = Builder::new(&mut graph);
        let inputs: Vec<NodeId> = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| {
                let input = Input { name: format!("x{i}"), kind: InputKind::Data, ty: Type::f32(shape.to_vec()) };
                let id = b.graph_mut().add_input(input);
                b.input(id)
            })
            .collect();
        let value = build(&mut b, &inputs);
        graph.roots = vec![Root { kind: RootKind::Output("y".into()), value }];
        let closed = crate::simplify::close(&graph);
        text::print(&closed)
    }

    /// Steps of work on numbers before and after the product.
    fn around(text: &str) -> (usize, usize) {
        let (before, after) = text.split_once("matmul").expect("a product");
        (before.matches("fn=mul}").count(), after.matches("fn=mul}").count())
    }

    #[test]
    fn queries_times_keys_are_scaled_once() {
        let (q, k) = ([2, 3, 17, 8], [2, 3, 17, 8]);
        let text = made(&[&q, &k], |b, x| {
            let (q, k) = (b.scale(x[0], 0.5), b.scale(x[1], 0.5));
            let k = b.matrix_transpose(k);
            b.matmul(q, k)
        });
        assert_eq!(around(&text), (0, 1), "{text}");
        assert!(text.contains("0.25"), "{text}");
    }

    #[test]
    fn other_scaled_factors_stay() {
        // A product that is smaller than what is scaled, and one that is none of a batch.
        let cases: [&[&[usize]]; 2] = [&[&[2, 3, 17, 17], &[2, 3, 17, 8]], &[&[4, 10], &[10, 64]]];
        for shapes in cases {
            let text = made(shapes, |b, x| {
                let scaled = b.scale(x[0], 0.5);
                b.matmul(scaled, x[1])
            });
            assert_eq!(around(&text), (1, 0), "{text}");
        }
    }
}
