//! Text for a page.

/// Text as it must stand in HTML, in an attribute too. Control characters have no place there.
pub(crate) fn escape(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// At most `most` characters, the middle left out.
pub(crate) fn shortened(s: &str, most: usize) -> String {
    let all: Vec<char> = s.chars().collect();
    if all.len() <= most {
        return s.to_string();
    }
    // Ends of names differ more than their beginnings.
    let head = most / 3;
    let tail = most.saturating_sub(head + 1);
    format!("{}\u{2026}{}", all[..head].iter().collect::<String>(), all[all.len() - tail..].iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_harmless_and_short() {
        assert_eq!(escape("<a href=\"b\">&\n"), "&lt;a href=&quot;b&quot;&gt;&amp; ");
        assert_eq!(shortened("/layer1/conv/Conv", 20), "/layer1/conv/Conv");
        assert_eq!(shortened("0123456789", 7), "01\u{2026}6789");
        assert_eq!(shortened("0123456789", 7).chars().count(), 7);
    }
}
