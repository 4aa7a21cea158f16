//! Results on stdout. A reader that goes away (`| head`) ends the program quietly.

use std::io::Write;

/// Prints text as it is.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a line.
pub(crate) fn line(text: impl std::fmt::Display) {
    print(&format!("{text}\n"));
}
