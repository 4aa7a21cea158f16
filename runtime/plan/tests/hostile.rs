//! Texts made to do harm where a plan is read: each is an error, soon.

use slrc_plan::plan::Plan;
use slrc_plan::yaml::from_str;

fn said(text: &str) -> String {
    from_str::<Plan>(text).expect_err("no plan").to_string()
}

/// A small text whose aliases stand for 9^12 words.
#[test]
fn aliases_that_multiply() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..=12 {
        let of = vec![format!("*a{}", i - 1); 9].join(", ");
        text += &format!("a{i}: &a{i} [{of}]\n");
    }
    // Where the reader does not look, and where it does.
    let _ = said(&text);
    let _ = said(&format!("{text}modules: *a12\n"));
    let _ = said(&format!("{text}format: *a12\n"));
}

#[test]
fn an_alias_of_itself() {
    let _ = said("modules: &m [*m, *m]\n");
    let _ = said("modules: *nobody\n");
}

#[test]
fn nesting_without_end() {
    for open in ["[", "{a: ", "- ", "? ", "[\n", "[[{a: [", ": "] {
        let _ = said(&format!("modules: {}", open.repeat(50_000)));
        let _ = said(&open.repeat(50_000));
    }
}

/// What is not nested is not taken for it.
#[test]
fn lines_and_names_may_be_long() {
    let rule = "-".repeat(1000);
    let lists = "  - [[a], {b: c}]\n".repeat(1000);
    let e = said(&format!("# {rule}\nmodules:\n{lists}"));
    assert!(!e.contains("nested"), "{e}");
}

#[test]
fn names_without_end() {
    let long = "n".repeat(1 << 22);
    assert!(!said(&format!("{long}: 1\n")).is_empty());
    let _ = said(&format!("format: \"{long}\"\n"));
    let _ = said(&format!("format: !{long} 1\n"));
    let _ = said("modules: \u{0}\u{feff}\u{7}\n");
}
