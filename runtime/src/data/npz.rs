//! NumPy's `.npz` archives and the `.npy` arrays in them: reading the numeric types, writing f32.

use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::data::DataError;

/// Elements of an array, in the type they are stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// `f4`
    F32(Vec<f32>),
    /// `f8`
    F64(Vec<f64>),
    /// `i1 i2 i4 i8 u1 u2 u4 u8 b1`
    I64(Vec<i64>),
    /// `u1`, kept small: images.
    U8(Vec<u8>),
}

/// An array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Extents.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub elements: Elements,
}

impl Array {
    /// Elements as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.elements {
            Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Elements::F64(v) => v.clone(),
            Elements::I64(v) => v.iter().map(|&x| x as f64).collect(),
            Elements::U8(v) => v.iter().map(|&x| f64::from(x)).collect(),
        }
    }
}

/// Largest array read, in bytes.
const MAX_BYTES: u64 = 1 << 36;

/// Reads every array of an archive, in archive order, by name without `.npy`.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>, DataError> {
    let bad = |reason: String| DataError::Malformed { path: path.to_path_buf(), reason };
    let file = std::fs::File::open(path).map_err(|source| DataError::Read { path: path.to_path_buf(), source })?;
    let mut zip =
        zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| bad(format!("not an .npz archive: {e}")))?;
    let mut out = Vec::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(|e| bad(e.to_string()))?;
        let name = entry.name().map_err(|e| bad(e.to_string()))?;
        let Some(name) = name.strip_suffix(".npy").map(str::to_string) else { continue };
        let array = read_npy(&mut entry).map_err(|e| bad(format!("array \"{name}\": {e}")))?;
        // The checksum is compared at the end.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| bad(format!("array \"{name}\": {e}")))?;
        out.push((name, array));
    }
    Ok(out)
}

/// Reads one `.npy` stream.
pub fn read_npy(r: &mut impl Read) -> Result<Array, String> {
    let mut magic = [0; 8];
    r.read_exact(&mut magic).map_err(|_| "it is truncated")?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err("it is not in .npy format".into());
    }
    let length = match magic[6] {
        1 => {
            let mut b = [0; 2];
            r.read_exact(&mut b).map_err(|_| "it is truncated")?;
            u32::from(u16::from_le_bytes(b))
        }
        2 | 3 => {
            let mut b = [0; 4];
            r.read_exact(&mut b).map_err(|_| "it is truncated")?;
            u32::from_le_bytes(b)
        }
        v => return Err(format!(".npy version {v} is not supported")),
    };
    if length > 1 << 20 {
        return Err("its header is too long".into());
    }
    let mut header = vec![0; length as usize];
    r.read_exact(&mut header).map_err(|_| "it is truncated")?;
    let header = String::from_utf8_lossy(&header).into_owned();
    let (descr, fortran, shape) =
        parse_header(&header).ok_or_else(|| format!("header {header:?} is not understood"))?;
    if fortran && shape.len() > 1 {
        return Err("it is in Fortran order; save numpy.ascontiguousarray(x)".into());
    }
    let count = shape.iter().try_fold(1u64, |a, &d| a.checked_mul(d as u64)).ok_or("its shape overflows")?;
    let (order, kind) = descr.split_at(1);
    let unsupported = || format!("dtype {descr} is not supported; save x.astype('float32') or integers");
    let size: u64 = kind.get(1..).and_then(|s| s.parse().ok()).ok_or_else(&unsupported)?;
    if order == ">" && size > 1 {
        return Err(format!("dtype {descr} is big-endian; save x.astype('<{kind}')"));
    }
    let bytes = count.checked_mul(size).filter(|&b| b <= MAX_BYTES).ok_or("it is too large")?;
    let mut data = Vec::new();
    r.take(bytes).read_to_end(&mut data).map_err(|e| e.to_string())?;
    if data.len() as u64 != bytes {
        return Err("it is truncated".into());
    }
    macro_rules! ints {
        ($t:ty) => {
            Elements::I64(
                data.chunks_exact(size_of::<$t>())
                    .map(|b| <$t>::from_le_bytes(b.try_into().expect("invariant: exact chunk")) as i64)
                    .collect(),
            )
        };
    }
    let elements = match kind {
        "f4" => Elements::F32(bytemuck::pod_collect_to_vec(&data)),
        "f8" => Elements::F64(bytemuck::pod_collect_to_vec(&data)),
        "i1" => ints!(i8),
        "i2" => ints!(i16),
        "i4" => ints!(i32),
        "i8" => ints!(i64),
        "u1" => Elements::U8(data),
        "u2" => ints!(u16),
        "u4" => ints!(u32),
        "u8" => ints!(u64),
        "b1" => Elements::U8(data),
        _ => return Err(unsupported()),
    };
    Ok(Array { shape, elements })
}

/// The three entries of a header such as `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse_header(h: &str) -> Option<(String, bool, Vec<usize>)> {
    let after = |key: &str| h.split_once(key).map(|(_, rest)| rest.trim_start_matches([' ', ':']));
    let descr = after("'descr'")?.strip_prefix('\'')?.split('\'').next()?.to_string();
    let fortran = after("'fortran_order'")?.starts_with("True");
    let inside = after("'shape'")?.strip_prefix('(')?.split(')').next()?;
    let shape = inside
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.trim_end_matches('L').parse().ok())
        .collect::<Option<Vec<usize>>>()?;
    (descr.len() >= 2 && descr.is_ascii()).then_some((descr, fortran, shape))
}

/// Writes f32 arrays as an archive.
pub fn write_npz<W: Write + Seek>(out: W, arrays: &[(&str, &[usize], &[f32])]) -> std::io::Result<()> {
    let mut zip = zip::ZipWriter::new(out);
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, shape, data) in arrays {
        zip.start_file(format!("{name}.npy"), options)?;
        let dims: Vec<String> = shape.iter().map(|d| format!("{d},")).collect();
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", dims.join(" "));
        // The data begins at a multiple of 64 bytes, after a newline.
        while !(10 + header.len() + 1).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        zip.write_all(b"\x93NUMPY\x01\x00")?;
        zip.write_all(&(header.len() as u16).to_le_bytes())?;
        zip.write_all(header.as_bytes())?;
        zip.write_all(bytemuck::cast_slice(data))?;
    }
    zip.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_archives_are_read() {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let data: Vec<f32> = (0..6).map(|x| x as f32 * 0.5).collect();
        write_npz(&mut bytes, &[("x", &[2, 3], &data), ("s", &[], &[7.0])]).expect("write");
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.npz");
        std::fs::write(&path, bytes.into_inner()).expect("write");
        let read = read_npz(&path).expect("read");
        assert_eq!(read[0], ("x".into(), Array { shape: vec![2, 3], elements: Elements::F32(data) }));
        assert_eq!(read[1].1.to_f64(), [7.0]);
    }

    #[test]
    fn damaged_arrays_are_refused() {
        for bytes in [&b""[..], b"\x93NUMPY", b"PK\x03\x04abcd", b"\x93NUMPY\x01\x00\x05\x00{'a':"] {
            assert!(read_npy(&mut &bytes[..]).is_err());
        }
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000), }";
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        assert!(read_npy(&mut &bytes[..]).is_err_and(|e| e.contains("overflow") || e.contains("large")));
    }
}
