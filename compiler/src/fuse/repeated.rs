//! Values of which neighbours share an element: what is pooled, spread again, such as the gradient of an average pool.
//!
//! No strides describe `[2, 1]` repeated to `[2, 3]` and seen as `[6]`. A region that reads it splits its loops where
//! the shared elements change ([`crate::lower`]), so that nothing is copied; a kernel needs a copy.

use crate::fuse::layout::{Layout, Layouts};
use crate::ir::graph::{Graph, NodeId};
use crate::ir::op::Op;

/// Strided elements of which neighbours along a dimension share one: what is pooled, spread again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// The elements, one step per unit of `index / repeats`.
    pub layout: Layout,
    /// How many neighbours share an element, for each logical dimension.
    pub repeats: Vec<usize>,
    /// The same elements before the dimensions were joined, for whoever copies them.
    pub(super) apart: (Layout, Vec<usize>),
}

impl Repeated {
    /// Elements in memory.
    pub(super) fn stored(&self, shape: &[usize]) -> usize {
        let along = shape.iter().zip(&self.layout.strides).zip(&self.repeats);
        along.filter(|((_, s), _)| **s != 0).map(|((e, _), r)| e / r).product()
    }
}

impl Layouts {
    /// A reshape of `of` that no strides describe, read in place: where neighbours share an element.
    pub(super) fn repeated(&mut self, of: NodeId, base: &Layout, from: &[usize], to: &[usize]) -> Option<Repeated> {
        // Passes over scores walk their operands as they are.
        if !self.scores.passes.is_empty() {
            return None;
        }
        let (_, repeats) = repeated_strides(from, &base.strides, to)?;
        let mut known = self.repeats.clone();
        for (&extent, &r) in to.iter().zip(&repeats).filter(|(_, r)| **r > 1) {
            let along = known.entry(extent).or_default();
            along.insert(r);
            if along.iter().zip(along.iter().skip(1)).any(|(a, b)| !b.is_multiple_of(*a)) {
                return None;
            }
        }
        self.repeats = known;
        let apart = (base.clone(), from.to_vec());
        // Few elements, each read many times: of an image, side by side along the channels.
        let mut base = base.clone();
        if is_image_of(from, to) && base.strides[1] > 1 {
            let few: Vec<usize> = from.iter().zip(&base.strides).map(|(&e, &s)| if s == 0 { 1 } else { e }).collect();
            let copied = self.copy(of, base, few.clone(), &channels_last(few.len()));
            let strides = copied.strides.iter().zip(&few).map(|(&s, &e)| if e == 1 { 0 } else { s }).collect();
            base = Layout { strides, ..copied };
        }
        let (strides, repeats) = repeated_strides(from, &base.strides, to)?;
        Some(Repeated { layout: Layout { strides, ..base }, repeats, apart })
    }
}

/// The memory order of what is only spread over windows of images: side by side along the channels, as it will be read.
pub(super) fn spread_order(g: &Graph, id: NodeId) -> Option<Vec<usize>> {
    let users = g.users(id);
    let spread = |u: &NodeId| {
        let n = g.node(*u);
        let images = |r: NodeId| matches!(g.node(r).op, Op::Reshape(_)) && is_image_of(&n.ty.shape, g.shape(r));
        matches!(n.op, Op::Broadcast(_)) && g.users(*u).into_iter().all(images)
    };
    (!users.is_empty() && users.iter().all(spread)).then(|| channels_last(g.ty(id).rank()))
}

/// Whether `to` is an image whose height and width are parted in `from`.
pub(super) fn is_image_of(from: &[usize], to: &[usize]) -> bool {
    to.len() == 4 && from.len() >= 4 && from[..2] == to[..2]
}

/// `N`, all but the channels, channels.
pub(super) fn channels_last(rank: usize) -> Vec<usize> {
    std::iter::once(0).chain(2..rank).chain([1]).collect()
}

/// Strides and repeats of the same elements where runs of dimensions are joined whose inner part is repeated, if
/// there are any: `[2, 3]` of strides `[1, 0]` as `[6]` has one element for three neighbours.
fn repeated_strides(from: &[usize], strides: &[usize], to: &[usize]) -> Option<(Vec<usize>, Vec<usize>)> {
    let mut dims = from.iter().zip(strides).filter(|(e, _)| **e != 1);
    let (mut out, mut repeats) = (vec![0; to.len()], vec![1; to.len()]);
    for (d, &e) in to.iter().enumerate().filter(|(_, e)| **e != 1) {
        let mut run: Vec<(usize, usize)> = Vec::new();
        while run.iter().map(|(e, _)| e).product::<usize>() < e {
            let (&extent, &stride) = dims.next()?;
            run.push((extent, stride));
        }
        if run.iter().map(|(e, _)| e).product::<usize>() != e {
            return None;
        }
        while let Some((extent, 0)) = run.last().copied() {
            repeats[d] *= extent;
            run.pop();
        }
        match run.last() {
            // The same everywhere.
            None => repeats[d] = 1,
            Some(&(_, stride)) => out[d] = stride,
        }
        if run.windows(2).any(|w| w[0].1 != w[1].1 * w[1].0) {
            return None;
        }
    }
    dims.next().is_none().then_some((out, repeats))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_share_an_element() {
        // Four quarters of an image of 3 channels, spread over 8 x 6 pixels.
        let from = ([5, 3, 2, 4, 2, 3], [12, 4, 2, 0, 1, 0]);
        assert_eq!(repeated_strides(&from.0, &from.1, &[5, 3, 8, 6]), Some((vec![12, 4, 2, 1], vec![1, 1, 4, 3])));
        assert_eq!(repeated_strides(&[2, 3], &[0, 0], &[6]), Some((vec![0], vec![1])));
        // The other way round neighbours differ and distant elements are the same.
        assert_eq!(repeated_strides(&[2, 3], &[0, 1], &[6]), None);
        assert_eq!(repeated_strides(&[4, 6], &[6, 1], &[3, 8]), None);
        assert_eq!(repeated_strides(&[2, 2, 3], &[5, 1, 0], &[12]), None, "no one stride");
        assert_eq!(repeated_strides(&[2, 2, 3], &[2, 1, 0], &[12]), Some((vec![1], vec![3])));
    }
}
