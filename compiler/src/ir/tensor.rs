//! Dense f64 tensors, the values of the oracle interpreter.

/// A row-major tensor of f64. Integers and flags are held exactly as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements, last dimension fastest.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor; the number of elements must match the shape.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "tensor of shape {shape:?}");
        Tensor { shape, data }
    }

    /// Every element `value`.
    pub fn full(shape: impl Into<Vec<usize>>, value: f64) -> Tensor {
        let shape = shape.into();
        let n = shape.iter().product();
        Tensor { shape, data: vec![value; n] }
    }

    /// Element `f(index)` at every multi-index.
    pub fn from_fn(shape: impl Into<Vec<usize>>, mut f: impl FnMut(&[usize]) -> f64) -> Tensor {
        let shape = shape.into();
        let mut data = Vec::with_capacity(shape.iter().product());
        for_each_index(&shape, |i| data.push(f(i)));
        Tensor { shape, data }
    }

    /// Row-major position of a multi-index.
    pub fn position(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.shape).fold(0, |at, (&i, &e)| at * e + i)
    }

    /// The element at a multi-index.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.position(index)]
    }

    /// Every element mapped.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Tensor {
        Tensor { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// Sum of products of corresponding elements.
    pub fn dot(&self, other: &Tensor) -> f64 {
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }
}

/// Calls `f` with every multi-index of `shape` in row-major order.
pub fn for_each_index(shape: &[usize], mut f: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        f(&index);
        let mut d = shape.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_run_row_major() {
        let t = Tensor::from_fn([2, 3], |i| (10 * i[0] + i[1]) as f64);
        assert_eq!(t.data, [0., 1., 2., 10., 11., 12.]);
        assert_eq!(t.at(&[1, 2]), 12.0);
        let mut n = 0;
        for_each_index(&[], |_| n += 1);
        for_each_index(&[3, 0], |_| n += 10);
        assert_eq!(n, 1);
    }
}
