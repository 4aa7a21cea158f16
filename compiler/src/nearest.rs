//! The name that was meant, where one matches nothing.

/// Of `names`, the one that resembles `name` most, if any does.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (least, best) = names.into_iter().map(|n| (distance(n, name), n)).min_by_key(|&(d, _)| d)?;
    (least <= 1 + name.len() / 3).then_some(best)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        assert_eq!(distance("relu", "relu2"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_what_resembles_is_named() {
        let names = ["conv1.weight", "fc.weight", "fc.bias"];
        assert_eq!(nearest("conv9.weight", names), Some("conv1.weight"));
        assert_eq!(nearest("fc.bais", names), Some("fc.bias"));
        assert_eq!(nearest("embedding", names), None);
        assert_eq!(nearest("x", []), None);
    }
}
