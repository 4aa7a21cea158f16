//! Between row-major tensors of files and the memory order of buffers.

use std::borrow::Cow;

use slrc_plan::Buffer;

/// A row-major tensor's bytes in the buffer's memory order.
pub fn to_memory<'a>(b: &Buffer, row_major: &'a [u8]) -> Cow<'a, [u8]> {
    reorder(b, row_major, true)
}

/// A buffer's bytes as a row-major tensor.
pub fn to_row_major<'a>(b: &Buffer, memory: &'a [u8]) -> Cow<'a, [u8]> {
    reorder(b, memory, false)
}

fn reorder<'a>(b: &Buffer, from: &'a [u8], into_memory: bool) -> Cow<'a, [u8]> {
    if b.order.is_none() {
        return Cow::Borrowed(from);
    }
    let (size, strides) = (b.dtype.bytes(1), b.strides());
    let mut to = vec![0; from.len()];
    let mut index = vec![0; b.shape.len()];
    for row_major in 0..b.count() {
        let memory: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        let (f, t) = if into_memory { (row_major, memory) } else { (memory, row_major) };
        to[t * size..(t + 1) * size].copy_from_slice(&from[f * size..(f + 1) * size]);
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < b.shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Cow::Owned(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use slrc_plan::{DType, Dims, Space};

    #[test]
    fn there_and_back() {
        let b = Buffer {
            id: "b".into(),
            space: Space::Parameter,
            dtype: DType::U8,
            shape: Dims(vec![2, 3, 2, 2]),
            order: Some(Dims(vec![0, 2, 3, 1])),
            offset: 0,
            bytes: 24,
            live: None,
        };
        let x: Vec<u8> = (0..24).collect();
        let m = to_memory(&b, &x);
        assert_eq!(m[..4], [0, 4, 8, 1]);
        assert_eq!(to_row_major(&b, &m)[..], x);
    }
}
