//! Reading TensorProto data: every float and integer type, raw, typed or external, as f32 or as numbers.

use onnx_protobuf::{TensorProto, tensor_proto::DataType};
use protobuf::Enum;

use crate::onnx::OnnxError;
use crate::onnx::file::OnnxFile;
use crate::onnx::narrow::Narrow;

/// What a tensor's elements are, as far as the importer distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// Any floating-point type.
    Float,
    /// Any integer type.
    Int,
    /// Booleans.
    Bool,
}

/// A tensor known at import.
#[derive(Clone, Debug, PartialEq)]
pub struct Const {
    /// What the elements are.
    pub elem: Elem,
    /// Extents.
    pub shape: Vec<usize>,
    /// Row-major elements; integers up to 2^53 are exact.
    pub data: Vec<f64>,
}

impl Const {
    /// A tensor of integers.
    pub fn ints(shape: Vec<usize>, data: Vec<f64>) -> Const {
        Const { elem: Elem::Int, shape, data }
    }

    /// The only element of a tensor with one.
    pub fn single(&self) -> Option<f64> {
        (self.data.len() == 1).then(|| self.data[0])
    }

    /// Elements as integers; values beyond i64 saturate.
    pub fn integers(&self) -> Vec<i64> {
        self.data.iter().map(|&x| x as i64).collect()
    }
}

/// Largest tensor the importer accepts, in elements: 16 GiB of f32.
const MAX_ELEMENTS: usize = 1 << 32;

/// Most dimensions.
pub(crate) const MAX_RANK: usize = 64;

/// Extents of a tensor; negative or overflowing ones are an error.
pub fn shape(t: &TensorProto) -> Result<Vec<usize>, OnnxError> {
    let bad = |reason: String| OnnxError::Tensor { name: t.name.clone(), reason };
    if t.dims.len() > MAX_RANK {
        return Err(bad(format!("it has {} dimensions, more than {MAX_RANK}", t.dims.len())));
    }
    let shape: Vec<usize> = t
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| bad(format!("extent {d} is negative"))))
        .collect::<Result<_, _>>()?;
    let count = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
    count.map(|_| shape).ok_or_else(|| bad(format!("shape {:?} is too large", t.dims)))
}

fn unsupported(t: &TensorProto) -> OnnxError {
    OnnxError::Tensor { name: t.name.clone(), reason: type_name(t.data_type) + " data is not supported" }
}

/// A type code's name, for messages.
pub fn type_name(code: i32) -> String {
    let newer = Narrow::name(code).map_or(format!("type {code}"), str::to_string);
    DataType::from_i32(code).map_or(newer, |d| format!("{d:?}").to_lowercase())
}

/// What the importer makes of an ONNX element type.
fn elem_of(d: DataType) -> Option<Elem> {
    match d {
        DataType::FLOAT | DataType::FLOAT16 | DataType::DOUBLE | DataType::BFLOAT16 => Some(Elem::Float),
        DataType::UINT8
        | DataType::INT8
        | DataType::UINT16
        | DataType::INT16
        | DataType::INT32
        | DataType::INT64
        | DataType::UINT32
        | DataType::UINT64 => Some(Elem::Int),
        DataType::BOOL => Some(Elem::Bool),
        DataType::UNDEFINED | DataType::STRING | DataType::COMPLEX64 | DataType::COMPLEX128 => None,
        // Whatever is narrower.
        DataType::FLOAT8E4M3FN
        | DataType::FLOAT8E4M3FNUZ
        | DataType::FLOAT8E5M2
        | DataType::FLOAT8E5M2FNUZ
        | DataType::UINT4
        | DataType::INT4 => Narrow::of(d.value()).map(Narrow::elem),
    }
}

/// Element kind of a type code.
pub fn elem(code: i32) -> Option<Elem> {
    match DataType::from_i32(code) {
        Some(d) => elem_of(d),
        None => Narrow::of(code).map(Narrow::elem),
    }
}

/// Element kind of a tensor.
pub fn tensor_elem(t: &TensorProto) -> Result<Elem, OnnxError> {
    elem(t.data_type).ok_or_else(|| unsupported(t))
}

/// A tensor's elements as f32: exact for f32, f16 and bf16, rounded for f64.
pub fn read_f32(file: &OnnxFile, t: &TensorProto) -> Result<Vec<f32>, OnnxError> {
    let count: usize = shape(t)?.iter().product();
    if t.data_type == DataType::FLOAT.value()
        && let Some(raw) = file.raw(t)?
    {
        check_length(t, raw.len(), count, 4)?;
        return Ok(raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
    }
    Ok(read_numbers(file, t)?.data.iter().map(|&x| x as f32).collect())
}

fn check_length(t: &TensorProto, bytes: usize, count: usize, size: usize) -> Result<(), OnnxError> {
    check_bits(t, bytes, count, 8 * size)
}

fn check_bits(t: &TensorProto, bytes: usize, count: usize, bits: usize) -> Result<(), OnnxError> {
    if count.checked_mul(bits).map(|n| n.div_ceil(8)) == Some(bytes) {
        return Ok(());
    }
    let size = if bits < 8 { format!("{bits} bits") } else { format!("{} bytes", bits / 8) };
    let reason = format!("{bytes} bytes of data for {count} elements of {size}");
    Err(OnnxError::Tensor { name: t.name.clone(), reason })
}

/// Bits of an element in raw data, of types that are read.
fn raw_bits(code: i32) -> Option<usize> {
    if let Some(narrow) = Narrow::of(code) {
        return Some(narrow.bits());
    }
    match DataType::from_i32(code)? {
        DataType::DOUBLE | DataType::INT64 | DataType::UINT64 => Some(64),
        DataType::FLOAT | DataType::INT32 | DataType::UINT32 => Some(32),
        DataType::FLOAT16 | DataType::BFLOAT16 | DataType::INT16 | DataType::UINT16 => Some(16),
        DataType::INT8 | DataType::UINT8 | DataType::BOOL => Some(8),
        _ => None,
    }
}

/// Fails where a tensor cannot have so many bytes of raw data.
pub(crate) fn check_bytes(t: &TensorProto, bytes: usize) -> Result<(), OnnxError> {
    match raw_bits(t.data_type) {
        Some(bits) => check_bits(t, bytes, shape(t)?.iter().product(), bits),
        None => Ok(()),
    }
}

/// A tensor's elements as numbers.
pub fn read_numbers(file: &OnnxFile, t: &TensorProto) -> Result<Const, OnnxError> {
    let shape = shape(t)?;
    let count: usize = shape.iter().product();
    let elem = tensor_elem(t)?;
    let raw = file.raw(t)?;
    let data: Vec<f64> = match (Narrow::of(t.data_type), DataType::from_i32(t.data_type), raw) {
        (Some(narrow), _, Some(raw)) => {
            check_bits(t, raw.len(), count, narrow.bits())?;
            narrow.unpack(raw.iter().copied(), count)
        }
        (Some(narrow), _, None) => narrow.unpack(t.int32_data.iter().map(|&x| x as u8), count),
        (None, Some(dtype), Some(raw)) => from_raw(t, dtype, &raw, count)?,
        (None, Some(dtype), None) => from_fields(dtype, t),
        (None, None, _) => return Err(unsupported(t)),
    };
    if data.len() != count {
        let hint = if data.is_empty() { "; was the file stripped of its weights?" } else { "" };
        let reason = format!("{} values for {count} elements{hint}", data.len());
        return Err(OnnxError::Tensor { name: t.name.clone(), reason });
    }
    Ok(Const { elem, shape, data })
}

fn from_raw(t: &TensorProto, dtype: DataType, raw: &[u8], count: usize) -> Result<Vec<f64>, OnnxError> {
    macro_rules! read {
        ($ty:ty) => {{
            check_length(t, raw.len(), count, size_of::<$ty>())?;
            raw.chunks_exact(size_of::<$ty>())
                .map(|b| <$ty>::from_le_bytes(b.try_into().expect("invariant: exact chunk")) as f64)
                .collect()
        }};
    }
    Ok(match dtype {
        DataType::FLOAT => read!(f32),
        DataType::DOUBLE => read!(f64),
        DataType::INT8 => read!(i8),
        DataType::UINT8 | DataType::BOOL => read!(u8),
        DataType::INT16 => read!(i16),
        DataType::UINT16 => read!(u16),
        DataType::INT32 => read!(i32),
        DataType::UINT32 => read!(u32),
        DataType::INT64 => read!(i64),
        DataType::UINT64 => read!(u64),
        DataType::FLOAT16 | DataType::BFLOAT16 => {
            check_length(t, raw.len(), count, 2)?;
            raw.chunks_exact(2).map(|b| half(dtype, u16::from_le_bytes([b[0], b[1]]))).collect()
        }
        _ => Vec::new(),
    })
}

fn from_fields(dtype: DataType, t: &TensorProto) -> Vec<f64> {
    match dtype {
        DataType::FLOAT => t.float_data.iter().map(|&x| f64::from(x)).collect(),
        DataType::DOUBLE => t.double_data.clone(),
        DataType::INT64 => t.int64_data.iter().map(|&x| x as f64).collect(),
        DataType::UINT32 | DataType::UINT64 => t.uint64_data.iter().map(|&x| x as f64).collect(),
        DataType::FLOAT16 | DataType::BFLOAT16 => t.int32_data.iter().map(|&x| half(dtype, x as u16)).collect(),
        _ => t.int32_data.iter().map(|&x| f64::from(x)).collect(),
    }
}

/// A 16-bit float's value.
fn half(dtype: DataType, bits: u16) -> f64 {
    if dtype == DataType::BFLOAT16 {
        return f64::from(f32::from_bits(u32::from(bits) << 16));
    }
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
    }
}

/// Whether weights may be of a type: [`encode`] knows it.
pub(crate) fn is_weight_type(code: i32) -> bool {
    const TYPES: [DataType; 4] = [DataType::FLOAT, DataType::FLOAT16, DataType::DOUBLE, DataType::BFLOAT16];
    TYPES.iter().any(|t| t.value() == code)
}

/// Bytes of numbers as a float type of ONNX, each rounded to the nearest, halves to even; none for another type, or
/// where a number is beyond the type's range.
pub(crate) fn encode(code: i32, data: &[f32]) -> Option<Vec<u8>> {
    let short = |of: fn(f32) -> u16, infinity: u16| {
        let bits: Vec<u16> = data.iter().map(|&x| of(x)).collect();
        let beyond = data.iter().zip(&bits).any(|(x, b)| x.is_finite() && b & 0x7fff == infinity);
        (!beyond).then(|| bits.iter().flat_map(|b| b.to_le_bytes()).collect())
    };
    match DataType::from_i32(code)? {
        DataType::FLOAT => Some(data.iter().flat_map(|x| x.to_le_bytes()).collect()),
        DataType::DOUBLE => Some(data.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect()),
        DataType::FLOAT16 => short(to_float16, 0x7c00),
        DataType::BFLOAT16 => short(to_bfloat16, 0x7f80),
        _ => None,
    }
}

fn to_bfloat16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

fn to_float16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let size = f64::from(x.abs());
    if x.is_nan() {
        return sign | 0x7e00;
    }
    if size >= 65520.0 {
        return sign | 0x7c00;
    }
    // What is below 2^-14 has the smallest exponent's steps.
    let exponent = ((x.to_bits() >> 23 & 0xff) as i32 - 127).max(-14);
    let steps = (size * 2f64.powi(10 - exponent)).round_ties_even() as u16;
    // The leading one of a normal number is carried into the exponent.
    sign | ((((exponent + 14) as u16) << 10) + steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_come_back() {
        for dtype in [DataType::FLOAT16, DataType::BFLOAT16] {
            let bytes = |x: f32| encode(dtype.value(), &[x]);
            for code in 0..=u16::MAX {
                let x = half(dtype, code) as f32;
                if x.is_nan() {
                    let back = u16::from_le_bytes(bytes(x).expect("bytes").try_into().expect("two"));
                    assert!(half(dtype, back).is_nan());
                } else {
                    assert_eq!(bytes(x).expect("bytes"), code.to_le_bytes(), "{x}");
                }
            }
            // Between neighbours the nearer, and in the middle the even one.
            for code in [0u16, 1, 0x3ff, 0x400, 0x3c00, 0x3c01, 0x7000] {
                let (low, high) = (half(dtype, code), half(dtype, code + 1));
                let middle = ((low + high) / 2.0) as f32;
                let even = code + (code & 1);
                assert_eq!(bytes(middle), Some(even.to_le_bytes().to_vec()));
                assert_eq!(bytes(middle.next_down()), Some(code.to_le_bytes().to_vec()));
                assert_eq!(bytes(middle.next_up()), Some((code + 1).to_le_bytes().to_vec()));
            }
            assert_eq!(bytes(f32::MAX), None, "beyond the range");
        }
        assert_eq!(encode(DataType::FLOAT16.value(), &[65519.9]), Some(0x7bffu16.to_le_bytes().to_vec()));
        assert_eq!(encode(DataType::FLOAT16.value(), &[65520.0]), None);
        assert_eq!(encode(DataType::DOUBLE.value(), &[0.1]), Some(f64::from(0.1f32).to_le_bytes().to_vec()));
        assert_eq!(encode(DataType::INT32.value(), &[1.0]), None);
    }

    #[test]
    fn sixteen_bit_floats() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 2f64.powi(-24)), (0x7c00, f64::INFINITY)]
        {
            assert_eq!(half(DataType::FLOAT16, bits), value);
        }
        assert!(half(DataType::FLOAT16, 0x7e00).is_nan());
        assert_eq!(half(DataType::BFLOAT16, 0x3fc0), 1.5);
    }
}
