//! Batched matrix products with any strides.

use slrc_plan::kernel::Matmul;
use slrc_plan::{Precision, View};

use crate::emit::cuda::code::{Call, Code, Table, index_type, sum, times};
use crate::emit::cuda::epilogue::Epilogue;
use crate::emit::cuda::operand_sums::OperandSums;
use crate::emit::cuda::product::{Product, Side, Store, Sum};
use crate::emit::cuda::prologue;

pub(super) fn emit(table: &Table<'_>, p: &Matmul, precision: Precision) -> Vec<Call> {
    let count: usize = p.batch.iter().product();
    let with = |tail: [usize; 2]| [&p.batch[..], &tail].concat();
    let ends = [p.a.end(&with([p.m, p.k])), p.b.end(&with([p.k, p.n])), p.c.end(&with([p.m, p.n]))];
    let epilogue = Epilogue::new(table, &p.product());
    let made = p.made().map(|m| prologue::last(&m));
    let sums = p.b_sums.as_ref().map(OperandSums::new);
    let made = made.chain(sums.as_ref().map(OperandSums::last));
    let end = ends.into_iter().flatten().chain(made).chain(epilogue.as_ref().map(Epilogue::last)).max();
    let ty = index_type(end.unwrap_or(0));
    let mut code = Code::new(table);
    let batch = if count > 1 { format!(", {} products", p.batch) } else { String::new() };
    code.formula(format!("c[{}, {}] = sum of {} terms a[m, k] b[k, n]{batch}", p.m, p.n, p.k));
    p.made().for_each(|m| prologue::describe(&mut code, &m));
    if let Some(e) = &epilogue {
        e.describe(&mut code);
    }
    if let Some(s) = &sums {
        s.describe(&mut code);
    }
    let d = p.batch.len();
    let place = |v: &View, row: &str, col: &str| {
        let mut terms: Vec<String> = Vec::new();
        for (i, &s) in v.strides[..d].iter().enumerate() {
            if s != 0 && count > 1 {
                terms.push(times(&format!("z{i}"), s));
            }
        }
        for (name, s) in [(row, v.strides[d]), (col, v.strides[d + 1])] {
            if s != 0 {
                terms.push(times(name, s));
            }
        }
        if v.offset != 0 {
            terms.push(v.offset.to_string());
        }
        sum(terms)
    };
    let element = |p: &str, v: &View, row: &str, col: &str| format!("{p}[{}]", place(v, row, col));
    let factor = |code: &mut Code<'_>, name: &str, v: &View, rows: usize, [row, col]: [&str; 2]| {
        let made = p.made().find(|m| m.name == name);
        let all = if count > 1 { format!("(z * {rows} + {row})") } else { row.into() };
        prologue::element(code, ty, v, made.as_ref(), [&all, col], &place(v, row, col))
    };
    let mut setup = Vec::new();
    let mut inner = 1;
    for i in (0..d).rev() {
        if count > 1 {
            setup.push(format!("const {ty} z{i} = z / {inner} % {};", p.batch[i]));
        }
        inner *= p.batch[i];
    }
    let a_side = Side {
        lines: factor(&mut code, "a", &p.a, p.m, ["m", "k"]),
        along_terms: p.a.strides[d + 1] <= p.a.strides[d],
        made: p.a_prologue.is_some(),
    };
    let b_side = Side {
        lines: factor(&mut code, "b", &p.b, p.k, ["k", "n"]),
        along_terms: p.b.strides[d] < p.b.strides[d + 1],
        made: p.b_prologue.is_some(),
    };
    let mut product = Product {
        family: "matmul",
        precision,
        ty,
        rows: p.m,
        cols: p.n,
        terms: p.k,
        count,
        setup,
        ranged: false,
        a: a_side,
        b: b_side,
        store: Box::new(|_, _| {}),
        epilogue: epilogue.as_ref(),
        sum: None,
        sums: sums.as_ref(),
    };
    let Some(split) = &p.split else {
        product.store = match &epilogue {
            Some(e) => {
                let row = if count > 1 { format!("(z * {} + m)", p.m) } else { "m".into() };
                Box::new(move |code, sharing| e.run(code, ty, &row, "n", sharing))
            }
            None => {
                let c = code.pointer(&p.c.buffer, true);
                let to = element(&c, &p.c, "m", "n");
                Box::new(move |code, _| code.line(format!("{to} = value;")))
            }
        };
        return vec![product.emit(code)];
    };
    // Only single products are split.
    let each = p.k.div_ceil(split.count);
    let size = p.m * p.n;
    let partials = code.pointer(&split.partials.buffer, true);
    let at = split.partials.offset;
    product.count = split.count;
    product.ranged = true;
    product.setup = vec![
        format!("const {ty} begin = z * {each};"),
        format!("const {ty} end = min(({ty})(begin + {each}), ({ty}){});", p.k),
    ];
    let part = move |of: &str| format!("{partials}[{at} + {of} * {size} + m * {} + n]", p.n);
    let own = part("z");
    product.store = Box::new(move |code, _| code.line(format!("{own} = value;")));
    let store: Store<'_> = match &epilogue {
        Some(e) => Box::new(move |code, sharing| e.run(code, ty, "m", "n", sharing)),
        None => {
            let c = code.pointer(&p.c.buffer, true);
            let to = element(&c, &p.c, "m", "n");
            Box::new(move |code, _| code.line(format!("{to} = value;")))
        }
    };
    product.sum = Some(Sum { ranges: split.count, partial: part("range"), store });
    vec![product.emit(code)]
}
