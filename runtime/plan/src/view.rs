//! A view: which elements of which buffer a kernel operand touches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Elements `offset + sum(index[d] * strides[d])` of a buffer, for an index space that the kernel states.
///
/// Offsets and strides count elements of the buffer's dtype. A stride of zero repeats the same element
/// along that dimension (broadcast). The text form is `buffer@offset(s0,s1,..)`; a zero offset is left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct View {
    /// Id of the buffer.
    pub buffer: String,
    /// First element.
    pub offset: usize,
    /// Elements to step per unit of each index dimension.
    pub strides: Vec<usize>,
}

impl View {
    /// A view of a whole buffer with the given strides.
    pub fn new(buffer: impl Into<String>, strides: Vec<usize>) -> View {
        View { buffer: buffer.into(), offset: 0, strides }
    }

    /// One past the largest element index touched over `space`, or `None` on overflow; zero for an empty space.
    pub fn end(&self, space: &[usize]) -> Option<usize> {
        if space.contains(&0) {
            return Some(0);
        }
        let mut last = self.offset;
        for (&extent, &stride) in space.iter().zip(&self.strides) {
            last = last.checked_add((extent - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Whether the elements over `space` lie one after the other in the order of its indices; extents of 1 do not
    /// matter.
    pub fn is_dense(&self, space: &[usize]) -> bool {
        let mut step = 1usize;
        space.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == step;
            step = step.saturating_mul(extent);
            fits
        })
    }

    /// Whether no element over `space` is named twice. Sufficient, not necessary: every dimension has to step over all
    /// that the dimensions of smaller strides reach.
    pub fn names_each_once(&self, space: &[usize]) -> bool {
        let mut dims: Vec<(usize, usize)> =
            self.strides.iter().copied().zip(space.iter().copied()).filter(|&(_, extent)| extent > 1).collect();
        dims.sort_unstable();
        let mut reach = 0usize;
        dims.into_iter().all(|(stride, extent)| {
            let apart = stride > reach;
            reach = reach.saturating_add(stride.saturating_mul(extent - 1));
            apart
        })
    }

    /// Whether this view over `space` and another of the same buffer over `others` have no element in common, as parts
    /// of one tensor have none. Sufficient, not necessary: the buffer is cut into frames of equal length, of which each
    /// view takes the same range.
    pub fn is_apart(&self, space: &[usize], other: &View, others: &[usize]) -> bool {
        let strides = |v: &View, space: &[usize]| -> Vec<(usize, usize)> {
            v.strides.iter().copied().zip(space.iter().copied()).filter(|&(s, extent)| extent > 1 && s > 0).collect()
        };
        let (own, theirs) = (strides(self, space), strides(other, others));
        // The elements of a frame that a view takes, if they are the same in every frame.
        let range = |v: &View, dims: &[(usize, usize)], frame: usize| {
            let (inner, outer): (Vec<_>, Vec<_>) = dims.iter().partition(|(s, _)| *s < frame);
            let first = v.offset % frame;
            let last = inner.iter().try_fold(first, |n, (s, e)| n.checked_add(s.checked_mul(e - 1)?))?;
            (last < frame && outer.iter().all(|(s, _)| s.is_multiple_of(frame))).then_some((first, last))
        };
        let frames = own.iter().chain(&theirs).map(|(s, _)| *s).chain([usize::MAX]);
        frames.into_iter().any(|frame| match (range(self, &own, frame), range(other, &theirs, frame)) {
            (Some((a, b)), Some((c, d))) => b < c || d < a,
            _ => false,
        })
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.buffer)?;
        if self.offset != 0 {
            write!(f, "@{}", self.offset)?;
        }
        f.write_str("(")?;
        for (i, s) in self.strides.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{s}")?;
        }
        f.write_str(")")
    }
}

impl FromStr for View {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is not a view such as buffer@128(64,1)");
        let (head, tail) = s.split_once('(').ok_or_else(bad)?;
        let inner = tail.strip_suffix(')').ok_or_else(bad)?;
        let strides = if inner.is_empty() {
            Vec::new()
        } else {
            inner.split(',').map(|p| p.parse().map_err(|_| bad())).collect::<Result<Vec<usize>, _>>()?
        };
        let (buffer, offset) = match head.split_once('@') {
            Some((b, o)) => (b, o.parse().map_err(|_| bad())?),
            None => (head, 0),
        };
        if !is_buffer_id(buffer) {
            return Err(bad());
        }
        Ok(View { buffer: buffer.to_string(), offset, strides })
    }
}

/// Characters allowed in a buffer id besides ASCII letters and digits.
const ID_EXTRA: &str = "_./:-#~+*<>";

/// Whether `id` can name a buffer: non-empty, no space, none of the characters the view syntax uses.
pub fn is_buffer_id(id: &str) -> bool {
    !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || ID_EXTRA.contains(c))
}

/// The nearest legal buffer id to an arbitrary name: every illegal character becomes `_`.
pub fn buffer_id_from(name: &str) -> String {
    if name.is_empty() {
        return "_".into();
    }
    name.chars().map(|c| if c.is_ascii_alphanumeric() || ID_EXTRA.contains(c) { c } else { '_' }).collect()
}

impl From<View> for String {
    fn from(v: View) -> String {
        v.to_string()
    }
}

impl TryFrom<String> for View {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_round_trips() {
        for (offset, strides) in [(0, vec![]), (5, vec![1]), (0, vec![64, 0, 1])] {
            let v = View { buffer: "m1/conv.1:y".into(), offset, strides };
            assert_eq!(v.to_string().parse::<View>().as_ref(), Ok(&v));
        }
        for bad in ["", "a", "a(1", "a b(1)", "(1)", "a@x(1)", "a(1,)"] {
            assert!(bad.parse::<View>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_of_a_tensor_are_apart() {
        let view = |offset: usize, strides: &[usize]| View { offset, ..View::new("b", strides.to_vec()) };
        // Columns of a matrix of 10, in parts of 3 and 7; rows in parts of 2 and 4; one part inside another's columns.
        assert!(view(0, &[10, 1]).is_apart(&[6, 3], &view(3, &[10, 1]), &[6, 7]));
        assert!(view(0, &[10, 1]).is_apart(&[2, 10], &view(20, &[1, 10]), &[10, 4]));
        assert!(!view(0, &[10, 1]).is_apart(&[6, 4], &view(3, &[10, 1]), &[6, 7]));
        assert!(!view(0, &[10, 1]).is_apart(&[6, 3], &view(3, &[10, 1]), &[6, 8]));
    }

    proptest! {
        #[test]
        fn views_said_to_be_apart_share_nothing(
            a in (0usize..40, prop::collection::vec((0usize..20, 1usize..5), 0..4)),
            b in (0usize..40, prop::collection::vec((0usize..20, 1usize..5), 0..4)),
        ) {
            let view = |(offset, dims): &(usize, Vec<(usize, usize)>)| {
                let (strides, extents): (Vec<usize>, Vec<usize>) = dims.iter().copied().unzip();
                (View { offset: *offset, ..View::new("b", strides) }, extents)
            };
            let elements = |v: &View, space: &[usize]| {
                let mut out = std::collections::BTreeSet::from([v.offset]);
                for (s, e) in v.strides.iter().zip(space) {
                    out = out.iter().flat_map(|x| (0..*e).map(move |i| x + i * s)).collect();
                }
                out
            };
            let ((v, space), (w, others)) = (view(&a), view(&b));
            let shared = elements(&v, &space).intersection(&elements(&w, &others)).count();
            prop_assert!(!v.is_apart(&space, &w, &others) || shared == 0);
        }
    }

    #[test]
    fn end_is_one_past_the_last_element() {
        let v = View { buffer: "b".into(), offset: 2, strides: vec![10, 0, 1] };
        assert_eq!(v.end(&[3, 100, 4]), Some(2 + 20 + 3 + 1));
        assert_eq!(v.end(&[0, 1, 1]), Some(0));
        assert_eq!(View::new("b", vec![usize::MAX]).end(&[3]), None);
    }

    #[test]
    fn dense_views_and_views_that_repeat_elements() {
        let view = |strides: &[usize]| View { buffer: "b".into(), offset: 7, strides: strides.to_vec() };
        assert!(view(&[12, 4, 1]).is_dense(&[2, 3, 4]));
        assert!(view(&[12, 99, 1]).is_dense(&[2, 1, 12]));
        assert!(!view(&[12, 1, 3]).is_dense(&[2, 3, 4]));
        // In any order, with gaps, but neither repeated nor interleaved.
        assert!(view(&[12, 1, 3]).names_each_once(&[2, 3, 4]));
        assert!(view(&[100, 0, 2]).names_each_once(&[2, 1, 4]));
        assert!(!view(&[0, 1]).names_each_once(&[2, 3]));
        assert!(!view(&[2, 1]).names_each_once(&[2, 3]));
        assert!(view(&[]).names_each_once(&[]));
    }

    #[test]
    fn any_name_becomes_an_id() {
        for name in ["", "/layer1/conv 1", "a(b)@c=é"] {
            assert!(is_buffer_id(&buffer_id_from(name)), "{name}");
        }
    }
}
