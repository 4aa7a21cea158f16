//! The only file that names the YAML crate.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A YAML text could not be read or written; the message carries the path and line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct YamlError(String);

/// Deepest nesting of brackets and of lists on one line; what slrc writes has three. The YAML crate's time grows with
/// the length of a text times its depth, before it looks at the depth.
const DEEPEST: usize = 256;

/// Fails where brackets, wherever they stand, or dashes of a line are nested too deep.
fn check_depth(text: &str) -> Result<(), YamlError> {
    let (mut brackets, mut marks) = (0usize, 0usize);
    for (i, line) in text.lines().enumerate() {
        let bytes = line.as_bytes();
        for (at, c) in bytes.iter().enumerate() {
            match c {
                b'[' | b'{' => brackets += 1,
                b']' | b'}' => brackets = brackets.saturating_sub(1),
                b'-' | b'?' | b':' if bytes.get(at + 1) == Some(&b' ') => marks += 1,
                b' ' | b'\t' => {}
                _ => marks = 0,
            }
            if brackets > DEEPEST || marks > DEEPEST {
                return Err(YamlError(format!("nested more than {DEEPEST} deep at line {}", i + 1)));
            }
        }
        marks = 0;
    }
    Ok(())
}

/// Reads a value.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    check_depth(text)?;
    serde_yaml::from_str(text).map_err(|e| YamlError(e.to_string()))
}

/// Writes a value: the same value always gives the same bytes.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, YamlError> {
    serde_yaml::to_string(value).map_err(|e| YamlError(e.to_string()))
}
