//! What a kernel does with an element of a product: stores it, or works on it first.

use slrc_plan::View;
use slrc_plan::kernel::Product;
use slrc_plan::region::Level;

use crate::emit::cuda::body::{Body, Origin};
use crate::emit::cuda::code::{Code, Table};
use crate::emit::cuda::columns::{Columns, Sharing};

/// Work on a product whose elements are counted row by row: elementwise, and reductions of its columns.
pub(super) struct Epilogue<'a> {
    body: Body<'a>,
    columns: Option<Columns<'a>>,
    to: &'a View,
    cols: usize,
    /// Whether somebody reads the product itself later on.
    keep: bool,
}

impl<'a> Epilogue<'a> {
    pub(super) fn new(table: &Table<'_>, p: &Product<'a>) -> Option<Epilogue<'a>> {
        let r = p.epilogue?;
        let overwritten = r.stores.iter().any(|s| s.view.buffer == p.to.buffer);
        let read_later = table[p.to.buffer.as_str()].live.is_none_or(|l| l.first < l.last);
        let body = Body::new(r);
        let columns = Columns::new(r, &body, p.rows, p.cols);
        Some(Epilogue { body, columns, to: p.to, cols: p.cols, keep: read_later && !overwritten })
    }

    /// Whether it reduces nothing.
    pub(super) fn is_elementwise(&self) -> bool {
        self.columns.is_none()
    }

    /// Before the first element.
    pub(super) fn begin(&self, code: &mut Code<'_>, sharing: Sharing) {
        if let Some(c) = &self.columns {
            c.begin(code, sharing);
        }
    }

    /// After the last one of a tile.
    pub(super) fn end(&self, code: &mut Code<'_>, ty: &str, sharing: Sharing) {
        if let Some(c) = &self.columns {
            c.end(code, &self.body, ty, sharing);
        }
    }

    /// One past the largest position of any operand.
    pub(super) fn last(&self) -> usize {
        self.body.walk.end
    }

    /// The formula, for the head comment.
    pub(super) fn describe(&self, code: &mut Code<'_>) {
        let loads = self.body.region.loads.iter();
        for l in loads.filter(|l| l.view.buffer == self.to.buffer) {
            code.formula(format!("{} is the product", l.name));
        }
        self.body.describe(code);
    }

    /// Works on `value`, the element of row `row` and column `col`.
    pub(super) fn run(&self, code: &mut Code<'_>, ty: &str, row: &str, col: &str, sharing: Sharing) {
        let cols = self.cols;
        self.body.walk.row_and_column(code, ty, [row, col], cols);
        if self.keep {
            let p = code.pointer(&self.to.buffer, true);
            let offset = if self.to.offset == 0 { String::new() } else { format!("{} + ", self.to.offset) };
            code.line(format!("{p}[{offset}{row} * {cols} + {col}] = value;"));
        }
        let stores = self.body.stores(Level::Element);
        let mut targets = self.body.stored(&stores);
        targets.extend(self.columns.iter().flat_map(Columns::targets));
        for i in self.body.closure(&targets, |_| false) {
            let v = &self.body.values[i];
            match v.origin {
                Origin::Load(l) if self.body.region.loads[l].view.buffer == self.to.buffer => {
                    code.line(format!("const float {} = value;", v.name));
                }
                _ => self.body.declare(code, i),
            }
        }
        for s in stores {
            self.body.store(code, s);
        }
        if let Some(c) = &self.columns {
            c.add(code, sharing);
        }
    }
}
