//! `slrc ops`

use crate::failure::Failure;
use crate::output;
use crate::table::table;

pub(crate) fn run() -> Result<(), Failure> {
    let all = slrc_compiler::onnx::ops::all();
    let rows = all.iter().map(|e| vec![e.op.to_string(), e.note.to_string()]).collect();
    output::print(&table(&["ONNX operator", "how"], &[], rows));
    output::line(format!("\n{} operators", all.len()));
    Ok(())
}
