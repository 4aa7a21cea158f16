//! Regions: well-formed bodies that one pass over the space can run, and stores that tell elements apart.

use std::collections::BTreeMap;

use crate::attention::Attention;
use crate::buffer::DType;
use crate::kernel::{KernelOp, Matmul, Product};
use crate::prologue::Made;
use crate::region::{Level, Region};
use crate::scalar::ResultKind;
use crate::statement::{Arg, Combine, StatementOp, is_value_name};

pub(super) fn check_region(op: &KernelOp, r: &Region) -> Result<(), String> {
    for (i, &d) in r.reduce.iter().enumerate() {
        if d >= r.space.len() || (i > 0 && r.reduce[i - 1] >= d) {
            return Err("reduced dimensions must be ascending dimensions of the space".into());
        }
    }
    let rank = r.space.len();
    check_views(r)?;
    let levels = r.levels()?;
    match op {
        KernelOp::Map(_) => return check_map(r),
        KernelOp::Row(_) if r.reduce[..] != [rank.wrapping_sub(1)] => {
            return Err("a row kernel reduces the innermost dimension".into());
        }
        KernelOp::Reduce(_) => return check_reduce(r, &levels),
        _ if r.split.is_some() => return Err("only reduce kernels are split".into()),
        _ => {}
    }
    Ok(())
}

fn check_views(r: &Region) -> Result<(), String> {
    if r.stores.is_empty() {
        return Err("a region stores something".into());
    }
    check_ranks(r)
}

fn check_ranks(r: &Region) -> Result<(), String> {
    let rank = r.space.len();
    if r.loads.iter().map(|l| &l.view).chain(r.stores.iter().map(|s| &s.view)).any(|v| v.strides.len() != rank) {
        return Err(format!("every view needs {rank} strides"));
    }
    Ok(())
}

/// A region over rows that finds products, and what is made of its values.
pub(super) fn check_attention_region(a: &Attention) -> Result<(), String> {
    let r = &a.region;
    let rank = r.space.len();
    if rank < 2 || r.reduce[..] != [rank - 1] || r.split.is_some() {
        return Err("attention works on rows and columns, and reduces the columns in one".into());
    }
    if a.results.is_empty() && r.stores.is_empty() {
        return Err("attention yields something".into());
    }
    check_ranks(r)?;
    if let Some(p) = a.products.iter().find(|p| !is_value_name(&p.name)) {
        return Err(format!("`{}` cannot name a value", p.name));
    }
    let levels = r.levels_given(&a.given())?;
    for c in &a.results {
        match levels.get(c.value.as_str()) {
            Some(Level::Element) => {}
            Some(Level::Kept) => return Err(format!("{} does not vary along columns", c.value)),
            None => return Err(format!("{} is multiplied but not defined", c.value)),
        }
    }
    Ok(())
}

fn check_map(r: &Region) -> Result<(), String> {
    if !r.reduce.is_empty() {
        return Err("a map reduces nothing".into());
    }
    if r.split.is_some() {
        return Err("only reduce kernels are split".into());
    }
    Ok(())
}

/// A map over a product's elements, row by row, that finds the product where the kernel puts it; or a reduction of its
/// columns.
pub(super) fn check_epilogue(p: &Product<'_>) -> Result<(), String> {
    let Some(r) = p.epilogue else { return Ok(()) };
    check_views(r)?;
    let levels = r.levels()?;
    if r.reduce.is_empty() {
        check_map(r)?;
    } else {
        check_columns(r, &levels)?;
    }
    let rows = r.space.iter().rev().skip(1).try_fold(1usize, |n, &e| n.checked_mul(e));
    if r.space.last() != Some(&p.cols) || rows != Some(p.rows) {
        return Err(format!("an epilogue over {} does not fit a product of {} rows of {}", r.space, p.rows, p.cols));
    }
    let views = r.loads.iter().map(|l| &l.view).chain(r.stores.iter().map(|s| &s.view));
    for v in views.filter(|v| v.buffer == p.to.buffer) {
        if v.offset != p.to.offset || !v.is_dense(&r.space) {
            return Err(format!("the epilogue's {v} is not the product {}", p.to));
        }
    }
    Ok(())
}

/// A map over an operand's elements that reads, among others, what lies where the operand's view says.
pub(super) fn check_prologue(p: &Made<'_>) -> Result<(), String> {
    let r = p.by.region(&p.space);
    check_ranks(&r)?;
    r.levels()?;
    if !p.by.body.iter().any(|s| s.name == p.by.value) {
        return Err(format!("{} is operand {} but not computed", p.by.value, p.name));
    }
    if !p.by.loads.iter().any(|l| l.view == *p.view) {
        return Err(format!("the prologue of {} does not read {}", p.name, p.view));
    }
    Ok(())
}

/// Sums along the columns of a product's second operand as it is read.
pub(super) fn check_operand_sums(m: &Matmul, r: &Region) -> Result<(), String> {
    if !m.batch.is_empty() || m.b_prologue.is_some() || !m.b.is_dense(&[m.k, m.n]) {
        return Err(format!("only a single matrix that lies densely is summed as it is read, {} is not", m.b));
    }
    check_views(r)?;
    let levels = r.levels()?;
    if r.space[..] != [m.k, m.n] || r.reduce[..] != [0] {
        return Err(format!("sums over {} do not fit an operand of {} rows of {}", r.space, m.k, m.n));
    }
    check_one_pass(r, &levels)?;
    let operand = |name: &str| r.loads.iter().any(|l| l.name == name && l.view == m.b);
    for s in
        r.body.iter().filter(|s| levels[s.name.as_str()] == Level::Element || matches!(s.op, StatementOp::Reduce(_)))
    {
        let sums = s.op == StatementOp::Reduce(Combine::Sum);
        if !sums || !matches!(&s.args[..], [Arg::Value(v)] if operand(v)) {
            return Err(format!("`{s}` is not a sum of the operand"));
        }
    }
    let counts = [r.split.as_ref().map(|s| s.count), m.split.as_ref().map(|s| s.count)];
    if counts[0] != counts[1] {
        return Err("an operand is summed in the ranges of its product".into());
    }
    Ok(())
}

/// A reduction of columns, in groups of rows.
fn check_columns(r: &Region, levels: &BTreeMap<&str, Level>) -> Result<(), String> {
    if r.space.is_empty() || !r.reduce.iter().copied().eq(0..r.space.len() - 1) {
        return Err("an epilogue reduces all dimensions but the last".into());
    }
    check_one_pass(r, levels)?;
    match &r.split {
        Some(s) if s.count > 0 => Ok(()),
        _ => Err("an epilogue reduces in groups of rows".into()),
    }
}

/// Everything before the reductions, and everything after them, must be one pass.
fn check_one_pass(r: &Region, levels: &BTreeMap<&str, Level>) -> Result<(), String> {
    if r.reductions() == 0 || r.reduce.is_empty() {
        return Err("a reduce kernel needs a reduction".into());
    }
    let mut after: Vec<&str> = Vec::new();
    for s in &r.body {
        let depends = s.args.iter().any(|a| matches!(a, Arg::Value(v) if after.contains(&v.as_str())));
        let reduces = matches!(s.op, StatementOp::Reduce(_));
        if depends && (reduces || levels[s.name.as_str()] == Level::Element) {
            return Err(format!("`{s}` needs a second pass over the elements"));
        }
        if depends || reduces {
            after.push(&s.name);
        }
    }
    Ok(())
}

fn check_reduce(r: &Region, levels: &BTreeMap<&str, Level>) -> Result<(), String> {
    check_one_pass(r, levels)?;
    let extent = r.space[r.reduce[0]];
    match &r.split {
        Some(s) if s.count < 2 || s.count > extent => {
            Err(format!("an extent of {extent} cannot be reduced in {} groups", s.count))
        }
        _ => Ok(()),
    }
}

/// Stores of a region whose views have been checked: of computed values, each element once, in a type that can hold
/// them.
pub(super) fn check_stores(r: &Region, given: &[&str], dtype: impl Fn(&str) -> DType) -> Result<(), String> {
    let levels = r.levels_given(given)?;
    let mut kept = r.space.0.clone();
    r.reduce.iter().for_each(|&d| kept[d] = 1);
    for s in &r.stores {
        let Some(from) = r.body.iter().find(|b| b.name == s.value) else {
            return Err(format!("{} is stored but not computed", s.value));
        };
        let element = levels[s.value.as_str()] == Level::Element;
        if !element && r.reduce.iter().any(|&d| s.view.strides[d] != 0) {
            return Err(format!("{} is stored along a reduced dimension but does not vary there", s.value));
        }
        if !s.view.names_each_once(if element { &r.space } else { &kept }) {
            return Err(format!("view {} names an element twice", s.view));
        }
        let flag = matches!(from.op, StatementOp::Scalar(f) if f.result() == ResultKind::Flag);
        if matches!(dtype(&s.view.buffer), DType::U8 | DType::Bit) && !flag {
            return Err(format!("{} is no flag but stored as one", s.value));
        }
    }
    Ok(())
}
