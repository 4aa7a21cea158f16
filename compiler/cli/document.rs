//! A short document of tables and lines, as text for a terminal, as Markdown for a pull request, or
//! as part of a page.

use std::fmt::Write as _;

use crate::html::escape;
use crate::table::table;

/// A part of a document under a title.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) header: Vec<&'static str>,
    /// Columns aligned to the right.
    pub(crate) right: Vec<usize>,
    /// Columns that hold names of somebody else's: Markdown shows them as code.
    pub(crate) names: Vec<usize>,
    pub(crate) rows: Vec<Vec<String>>,
    /// Lines below the table, of words and names.
    pub(crate) lines: Vec<Vec<Span>>,
}

/// A part of a line.
#[derive(Debug)]
pub(crate) enum Span {
    Words(String),
    /// A name of somebody else's.
    Name(String),
}

/// A headline and its sections; sections without content are left out.
pub(crate) struct Document {
    pub(crate) headline: String,
    pub(crate) sections: Vec<Section>,
}

impl Document {
    fn filled(&self) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(|s| !s.rows.is_empty() || !s.lines.is_empty())
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("{}\n", self.headline);
        for s in self.filled() {
            let _ = write!(out, "\n{}\n\n", s.title);
            if !s.rows.is_empty() {
                let rows = s.rows.iter().map(|r| r.iter().map(|c| one_line(c)).collect()).collect();
                out.push_str(&table(&s.header, &s.right, rows));
            }
            if !s.rows.is_empty() && !s.lines.is_empty() {
                out.push('\n');
            }
            for l in &s.lines {
                let words = l.iter().map(|span| match span {
                    Span::Words(w) | Span::Name(w) => one_line(w),
                });
                let _ = writeln!(out, "{}", words.collect::<String>());
            }
        }
        out
    }

    /// For a comment on a pull request.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("### {}\n", plain(&self.headline));
        for s in self.filled() {
            let _ = write!(out, "\n**{}**\n\n", s.title);
            if !s.rows.is_empty() {
                let rule = (0..s.header.len()).map(|i| if s.right.contains(&i) { "---:" } else { "---" });
                let _ = writeln!(out, "| {} |\n| {} |", s.header.join(" | "), rule.collect::<Vec<_>>().join(" | "));
            }
            for row in &s.rows {
                let cell = |(i, c): (usize, &String)| if s.names.contains(&i) { code(c) } else { plain(c) };
                let _ = writeln!(out, "| {} |", row.iter().enumerate().map(cell).collect::<Vec<_>>().join(" | "));
            }
            if !s.rows.is_empty() && !s.lines.is_empty() {
                out.push('\n');
            }
            for l in &s.lines {
                let spans = l.iter().map(|span| match span {
                    Span::Words(w) => plain(w),
                    Span::Name(n) => code(n),
                });
                let _ = writeln!(out, "- {}", spans.collect::<String>());
            }
        }
        out
    }
}

impl Section {
    /// For a page: title, table, and lines below it.
    pub(crate) fn html(&self) -> String {
        let mut out = format!("<h2>{}</h2>\n", escape(self.title));
        let class = |i: usize| match (self.right.contains(&i), self.names.contains(&i)) {
            (true, _) => " class=\"right\"",
            (false, true) => " class=\"name\"",
            (false, false) => "",
        };
        if !self.rows.is_empty() {
            out.push_str("<table>\n<tr>");
            for (i, h) in self.header.iter().enumerate() {
                let right = if self.right.contains(&i) { " class=\"right\"" } else { "" };
                let _ = write!(out, "<th{right}>{}</th>", escape(h));
            }
            out.push_str("</tr>\n");
            for row in &self.rows {
                let cells = row.iter().enumerate().map(|(i, c)| format!("<td{}>{}</td>", class(i), escape(c)));
                let _ = writeln!(out, "<tr>{}</tr>", cells.collect::<String>());
            }
            out.push_str("</table>\n");
        }
        for l in &self.lines {
            let spans = l.iter().map(|span| match span {
                Span::Words(w) => escape(w),
                Span::Name(n) => format!("<code>{}</code>", escape(n)),
            });
            let _ = writeln!(out, "<p>{}</p>", spans.collect::<String>());
        }
        out
    }
}

/// Control characters would break a table, or a terminal.
fn one_line(s: &str) -> String {
    s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Words that Markdown must not take for marks.
fn plain(s: &str) -> String {
    let mut out = String::new();
    for c in one_line(s).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            // A mention would send somebody a message.
            '@' => out.push_str("&#64;"),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '~' | '#' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// A code span. In a table, a bar ends the cell even there unless a backslash stands before it.
fn code(s: &str) -> String {
    let s = one_line(s).replace('`', "'").replace('|', "\\|");
    if s.trim().is_empty() { String::new() } else { format!("`{}`", s.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_in_their_cells() {
        let s = Section {
            title: "cuts",
            header: vec!["module", "node"],
            right: vec![0],
            names: vec![1],
            rows: vec![vec!["1".into(), "a|b`c\n<d>".into()]],
            lines: vec![vec![Span::Words("@you * ".into()), Span::Name("@me".into())]],
        };
        let d = Document { headline: "x_y".into(), sections: vec![s, Section::default()] };
        let expected = "### x\\_y\n\n**cuts**\n\n| module | node |\n| ---: | --- |\n| 1 | `a\\|b'c <d>` |\n\n\
                        - &#64;you \\* `@me`\n";
        assert_eq!(d.markdown(), expected);
        assert_eq!(d.text(), "x_y\n\ncuts\n\nmodule  node\n     1  a|b`c <d>\n\n@you * @me\n");
    }
}
