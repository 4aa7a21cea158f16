//! Seeded changes of plans, as text.
#![allow(dead_code, reason = "each test file uses a part")]

use crate::mutate::Dice;

/// How large the numbers are that are put in.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Size {
    /// As in a plan.
    Small,
    /// As in no plan.
    Large,
}

/// Places of the text's words: numbers, and what may name something.
fn words_of(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut start = None;
    for (i, c) in text.char_indices() {
        let inside = c.is_ascii_alphanumeric() || "_/.#".contains(c);
        match (inside, start) {
            (true, None) => start = Some(i),
            (false, Some(from)) => {
                out.push(from..i);
                start = None;
            }
            _ => {}
        }
    }
    out
}

/// Replaces a number or a name of a plan, or moves a line.
pub(crate) fn replace(text: &str, dice: &mut Dice, size: Size) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    if size == Size::Small && dice.below(4) == 0 {
        // A line lost, repeated, or moved.
        let mut lines = lines;
        let at = dice.below(lines.len());
        match dice.below(3) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at]),
            _ => {
                let to = (at + 1 + dice.below(8)).min(lines.len() - 1);
                lines.swap(at, to);
            }
        }
        return lines.concat();
    }
    let words = words_of(text);
    let is_number = |w: &std::ops::Range<usize>| text[w.clone()].bytes().all(|b| b.is_ascii_digit());
    // Extents are written 2x16x14x14: one of them counts as a number, too.
    let extents = |w: &std::ops::Range<usize>| {
        let t = &text[w.clone()];
        t.contains('x') && t.split('x').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
    };
    let numbers: Vec<_> = words.iter().filter(|w| is_number(w) || extents(w)).cloned().collect();
    // A text that a search has made may have neither.
    if numbers.is_empty() || words.iter().all(is_number) {
        return text.to_string();
    }
    let number = |dice: &mut Dice, old: &str| -> String {
        let n: u64 = old.parse().unwrap_or(1);
        if size == Size::Large {
            return match dice.below(5) {
                0 => u64::MAX.to_string(),
                1 => (u64::MAX / 4 + 1).to_string(),
                2 => (1u64 << (32 + dice.below(31))).to_string(),
                3 => n.saturating_mul(1 << 40).to_string(),
                _ => (i64::MAX as u64).saturating_sub(n).to_string(),
            };
        }
        let other = dice.pick(&numbers).clone();
        match dice.below(7) {
            0 => n.saturating_add(1).to_string(),
            1 => n.saturating_sub(1).to_string(),
            2 => n.saturating_mul(2).min(1 << 20).to_string(),
            3 => (n / 2).to_string(),
            4 => dice.below(5).to_string(),
            5 => n.saturating_add(64).to_string(),
            _ => text[other].split('x').next().unwrap_or("1").to_string(),
        }
    };
    let pick = if size == Size::Large || dice.below(3) > 0 { dice.pick(&numbers) } else { dice.pick(&words) }.clone();
    let old = &text[pick.clone()];
    let new = if extents(&pick) {
        let mut parts: Vec<String> = old.split('x').map(str::to_string).collect();
        let at = dice.below(parts.len());
        match dice.below(6) {
            0 if size == Size::Small => drop(parts.remove(at)),
            1 if size == Size::Small => parts.insert(at, "1".into()),
            _ => parts[at] = number(dice, &parts[at].clone()),
        }
        parts.join("x")
    } else if is_number(&pick) {
        number(dice, old)
    } else {
        let others: Vec<_> = words.iter().filter(|w| !is_number(w)).collect();
        text[(*dice.pick(&others)).clone()].to_string()
    };
    format!("{}{new}{}", &text[..pick.start], &text[pick.end..])
}
