//! Tables and numbers with units, for people.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

pub(crate) use slrc_compiler::size::readable as bytes;

/// A borderless table; columns listed in `right` are aligned to the right.
pub(crate) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut t = Table::new();
    t.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header.to_vec());
    t.add_rows(rows);
    for (i, c) in t.column_iter_mut().enumerate() {
        c.set_padding((0, 2));
        if right.contains(&i) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    t.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// A count with thousands separated.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Floating-point operations in decimal units.
pub(crate) fn flops(n: u64) -> String {
    let x = n as f64;
    match n {
        0..1_000_000 => format!("{:.1} kFLOP", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MFLOP", x / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.2} GFLOP", x / 1e9),
        _ => format!("{:.2} TFLOP", x / 1e12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(flops(2_500_000_000), "2.50 GFLOP");
    }
}
