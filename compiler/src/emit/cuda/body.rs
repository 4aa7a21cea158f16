//! A region's statements in the form kernels need: levels, passes, fused multiply-adds, and what depends on what.

use std::collections::{BTreeMap, BTreeSet};

use slrc_plan::region::{Level, Region};
use slrc_plan::statement::{Arg, Combine, Statement, StatementOp};
use slrc_plan::{DType, ScalarFn};

use crate::emit::cuda::code::{Code, number};
use crate::emit::cuda::scalar::expression;
use crate::emit::cuda::walk::Walk;

/// Where a value comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// Load `i` of the region.
    Load(usize),
    /// A place outside memory, as an expression.
    Given(String),
    /// An expression of other values.
    Compute(String),
    /// A reduction of a value or a number.
    Reduce(Combine, Arg),
}

/// A value of the region.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) name: String,
    pub(super) origin: Origin,
    pub(super) level: Level,
    /// Passes over the elements that must be complete before it is known.
    pub(super) stage: usize,
    pub(super) needs: Vec<String>,
}

/// The values of a region in order.
pub(super) struct Body<'a> {
    pub(super) region: &'a Region,
    pub(super) walk: Walk,
    pub(super) values: Vec<Value>,
    at: BTreeMap<String, usize>,
}

impl<'a> Body<'a> {
    pub(super) fn new(region: &'a Region) -> Body<'a> {
        Body::between(region, &[])
    }

    /// A region that finds values elsewhere: their names, and expressions of them at every element.
    pub(super) fn between(region: &'a Region, given: &[(&str, String)]) -> Body<'a> {
        let views: Vec<_> = region.loads.iter().map(|l| &l.view).chain(region.stores.iter().map(|s| &s.view)).collect();
        let walk = Walk::new(&region.space, &region.reduce, &views);
        let given_names: Vec<&str> = given.iter().map(|g| g.0).collect();
        let levels = region.levels_given(&given_names).expect("invariant: plans are validated");
        let mut body = Body { region, walk, values: Vec::new(), at: BTreeMap::new() };
        for (name, text) in given {
            body.push(name, Origin::Given(text.clone()), Level::Element, 0, Vec::new());
        }
        for (i, l) in region.loads.iter().enumerate() {
            body.push(&l.name, Origin::Load(i), levels[l.name.as_str()], 0, Vec::new());
        }
        let fused = fused_products(region, &levels);
        let product_of: BTreeMap<&str, &Statement> =
            region.body.iter().filter(|s| fused.contains_key(s.name.as_str())).map(|s| (s.name.as_str(), s)).collect();
        for s in &region.body {
            if product_of.contains_key(s.name.as_str()) {
                continue;
            }
            let level = levels[s.name.as_str()];
            match s.op {
                StatementOp::Reduce(c) => {
                    let needs = names(&s.args);
                    let stage = body.stage(&needs) + 1;
                    body.push(&s.name, Origin::Reduce(c, s.args[0].clone()), level, stage, needs);
                }
                StatementOp::Scalar(f) => {
                    let product = s.args.iter().find_map(|a| match a {
                        Arg::Value(v) if fused.get(v.as_str()) == Some(&s.name.as_str()) => product_of.get(v.as_str()),
                        _ => None,
                    });
                    let (text, needs) = match product {
                        Some(p) => multiply_add(f, s, p),
                        None => (expression(f, &texts(&s.args)), names(&s.args)),
                    };
                    let stage = body.stage(&needs);
                    body.push(&s.name, Origin::Compute(text), level, stage, needs);
                }
            }
        }
        body
    }

    fn push(&mut self, name: &str, origin: Origin, level: Level, stage: usize, needs: Vec<String>) {
        self.at.insert(name.to_string(), self.values.len());
        self.values.push(Value { name: name.to_string(), origin, level, stage, needs });
    }

    fn stage(&self, needs: &[String]) -> usize {
        needs.iter().map(|n| self.value(n).stage).max().unwrap_or(0)
    }

    pub(super) fn value(&self, name: &str) -> &Value {
        &self.values[self.at[name]]
    }

    /// Values that `targets` need, themselves included, not looking past those that `known` holds of.
    pub(super) fn closure(&self, targets: &[String], known: impl Fn(&Value) -> bool) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&str> = targets.iter().map(String::as_str).collect();
        while let Some(name) = open.pop() {
            let i = self.at[name];
            if known(&self.values[i]) || !found.insert(i) {
                continue;
            }
            open.extend(self.values[i].needs.iter().map(String::as_str));
        }
        found
    }

    /// Declares a load or an expression as a float of its name.
    pub(super) fn declare(&self, code: &mut Code<'_>, i: usize) {
        let v = &self.values[i];
        let text = self.text(code, i);
        code.line(format!("const float {} = {text};", v.name));
    }

    /// A load or an expression.
    pub(super) fn text(&self, code: &mut Code<'_>, i: usize) -> String {
        match &self.values[i].origin {
            Origin::Load(l) => {
                let id = &self.region.loads[*l].view.buffer;
                let (p, at) = (code.pointer(id, false), self.walk.element(*l));
                match code.dtype(id) {
                    DType::F32 => format!("{p}[{at}]"),
                    DType::I32 | DType::U8 => format!("(float){p}[{at}]"),
                    DType::Bit => format!("(float)({p}[({at}) / 8] >> ({at}) % 8 & 1)"),
                }
            }
            Origin::Compute(text) | Origin::Given(text) => text.clone(),
            Origin::Reduce(..) => unreachable!("reductions are accumulated"),
        }
    }

    /// Writes store `s` at the coordinates declared. Where it stores bits, a whole warp does, of neighbours.
    pub(super) fn store(&self, code: &mut Code<'_>, s: usize) {
        let store = &self.region.stores[s];
        let p = code.pointer(&store.view.buffer, true);
        let at = self.walk.element(self.region.loads.len() + s);
        let (dtype, value) = (code.dtype(&store.view.buffer), &store.value);
        if dtype == DType::Bit {
            code.line(format!("const unsigned int s{s}_b = __ballot_sync(0xffffffffu, {value} != 0.0f);"));
            code.open("if (threadIdx.x % 32 == 0)");
            code.line(format!("reinterpret_cast<unsigned int*>({p})[({at}) / 32] = s{s}_b;"));
            code.close();
        } else {
            code.line(format!("{p}[{at}] = {};", converted(dtype, value)));
        }
    }

    /// Stores of values at a level, by index.
    pub(super) fn stores(&self, level: Level) -> Vec<usize> {
        (0..self.region.stores.len()).filter(|&s| self.value(&self.region.stores[s].value).level == level).collect()
    }

    /// Names of the values of stores.
    pub(super) fn stored(&self, stores: &[usize]) -> Vec<String> {
        stores.iter().map(|&s| self.region.stores[s].value.clone()).collect()
    }

    /// Reductions of a stage.
    pub(super) fn reductions(&self, stage: usize) -> Vec<usize> {
        let is = |v: &Value| matches!(v.origin, Origin::Reduce(..)) && v.stage == stage;
        (0..self.values.len()).filter(|&i| is(&self.values[i])).collect()
    }

    /// The formula, for the head comment.
    pub(super) fn describe(&self, code: &mut Code<'_>) {
        let r = self.region;
        let over = if r.reduce.is_empty() { String::new() } else { format!(", reduced along {:?}", r.reduce) };
        code.formula(format!("over {}{over}", r.space));
        for s in &r.body {
            code.formula(s.to_string());
        }
        for s in &r.stores {
            code.formula(format!("store {}", s.value));
        }
    }
}

/// A float as a value of a buffer's type.
pub(super) fn converted(to: DType, value: &str) -> String {
    match to {
        DType::F32 => value.to_string(),
        DType::I32 => format!("(int){value}"),
        DType::U8 => format!("(unsigned char){value}"),
        DType::Bit => unreachable!("invariant: bits are stored with their neighbours"),
    }
}

/// Start and step of an accumulation, as C source.
pub(super) fn identity(c: Combine) -> String {
    match c {
        Combine::Sum => number(0.0),
        Combine::Max => number(f32::NEG_INFINITY),
    }
}

/// `a` combined with `b`.
pub(super) fn combined(c: Combine, a: &str, b: &str) -> String {
    match c {
        Combine::Sum => format!("{a} + {b}"),
        Combine::Max => format!("larger({a}, {b})"),
    }
}

pub(super) fn arg_text(a: &Arg) -> String {
    match a {
        Arg::Value(v) => v.clone(),
        Arg::Number(x) => number(*x),
    }
}

fn texts(args: &[Arg]) -> Vec<String> {
    args.iter().map(arg_text).collect()
}

fn names(args: &[Arg]) -> Vec<String> {
    args.iter().filter_map(|a| if let Arg::Value(v) = a { Some(v.clone()) } else { None }).collect()
}

/// Products whose only use is a sum or difference at the same level, with that use.
fn fused_products<'r>(r: &'r Region, levels: &BTreeMap<&str, Level>) -> BTreeMap<&'r str, &'r str> {
    let mut out: BTreeMap<&str, &str> = BTreeMap::new();
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    for s in r.body.iter().filter(|s| s.op == StatementOp::Scalar(ScalarFn::Mul)) {
        let uses: Vec<&Statement> = r
            .body
            .iter()
            .flat_map(|u| u.args.iter().filter(|a| **a == Arg::Value(s.name.clone())).map(move |_| u))
            .collect();
        let &[only] = &uses[..] else { continue };
        let sum = matches!(only.op, StatementOp::Scalar(ScalarFn::Add | ScalarFn::Sub));
        let stored = r.stores.iter().any(|st| st.value == s.name);
        if sum && !stored && levels[s.name.as_str()] == levels[only.name.as_str()] && taken.insert(&only.name) {
            out.insert(&s.name, &only.name);
        }
    }
    out
}

/// `sum` (an add or a subtract) with the product among its arguments, as one rounding.
fn multiply_add(f: ScalarFn, sum: &Statement, product: &Statement) -> (String, Vec<String>) {
    let is_product = |a: &Arg| *a == Arg::Value(product.name.clone());
    let first = is_product(&sum.args[0]);
    let other = if first { &sum.args[1] } else { &sum.args[0] };
    let (a, b, c) = (arg_text(&product.args[0]), arg_text(&product.args[1]), arg_text(other));
    let text = match (f, first) {
        (ScalarFn::Add, _) => format!("fmaf({a}, {b}, {c})"),
        (_, true) => format!("fmaf({a}, {b}, -{c})"),
        (_, false) => format!("fmaf(-{a}, {b}, {c})"),
    };
    let mut needs = names(&product.args);
    needs.extend(names(std::slice::from_ref(other)));
    (text, needs)
}
