//! Names of one of several: the tensors that cross a boundary.

/// The name of one of several: of the first, the name alone.
pub(crate) fn numbered(name: &str, i: usize) -> String {
    if i == 0 { name.into() } else { format!("{name}.{i}") }
}

/// Which of those of this name it is.
pub(crate) fn number_of(name: &str, text: &str) -> Option<usize> {
    match text.strip_prefix(name)? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse().ok().filter(|&i| i > 0),
    }
}
