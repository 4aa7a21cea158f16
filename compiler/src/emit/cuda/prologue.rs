//! What a kernel reads of a product's operand: an element of memory, or one made of others.

use slrc_plan::View;
use slrc_plan::prologue::Made;
use slrc_plan::region::Store;

use crate::emit::cuda::body::Body;
use crate::emit::cuda::code::Code;

/// Lines that set `v` to an operand's element of row `row` and column `col`, which lies at `at` of its memory or would.
/// Rows are counted over all dimensions but the last.
pub(super) fn element(
    code: &mut Code<'_>,
    ty: &str,
    view: &View,
    made: Option<&Made<'_>>,
    [row, col]: [&str; 2],
    at: &str,
) -> Vec<String> {
    let Some(made) = made else {
        let p = code.pointer(&view.buffer, false);
        return vec![format!("v = {p}[{at}];")];
    };
    let mut region = made.by.region(&made.space);
    // The element itself is a result.
    region.stores.push(Store { view: view.clone(), value: made.by.value.clone() });
    let body = Body::new(&region);
    let cols = made.space.last().copied().unwrap_or(1);
    code.apart(|code| {
        body.walk.row_and_column(code, ty, [row, col], cols);
        for i in body.closure(std::slice::from_ref(&made.by.value), |_| false) {
            body.declare(code, i);
        }
        code.line(format!("v = {};", made.by.value));
    })
}

/// The formula, for the head comment.
pub(super) fn describe(code: &mut Code<'_>, made: &Made<'_>) {
    code.formula(format!("{} is made as it is read, over {:?}", made.name, made.space));
    for s in &made.by.body {
        code.formula(s.to_string());
    }
    code.formula(format!("{} = {}", made.name, made.by.value));
}

/// One past the largest position that making an operand reads.
pub(super) fn last(made: &Made<'_>) -> usize {
    made.by.loads.iter().filter_map(|l| l.view.end(&made.space)).max().unwrap_or(0)
}
