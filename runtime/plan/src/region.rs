//! Fused regions: elementwise work and reductions over one iteration space, run as a single kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::dims::Dims;
use crate::statement::{Arg, Statement, StatementOp, is_value_name};
use crate::view::View;

/// The work of a `map`, `row` or `reduce` kernel.
///
/// `space` is the iteration space, outermost first, in the memory order of the main operand. `reduce`
/// lists the dimensions of `space` that reductions run over. A value is at *element* level when it
/// differs along a reduced dimension and at *kept* level otherwise; see [`Region::levels`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Extents of the iteration space.
    pub space: Dims,
    /// Reduced dimensions, ascending; empty in a `map`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reduce: Vec<usize>,
    /// What is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loads: Vec<Load>,
    /// What is computed, in order.
    pub body: Vec<Statement>,
    /// What is written. At kept level the view's strides are zero along reduced dimensions.
    pub stores: Vec<Store>,
    /// Set when the reduced elements are summed in fixed groups whose partial results are then combined
    /// in order. The count is part of the plan, so the result does not depend on the thread count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// A fixed split of the outermost reduced dimension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Number of groups; each takes a contiguous range of the outermost dimension.
    pub count: usize,
    /// f32 workspace for `count * reductions * kept elements` partial results.
    pub partials: View,
}

/// `name = view`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Load {
    /// Value defined by the load.
    pub name: String,
    /// Where it is read.
    pub view: View,
}

/// `view = value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Store {
    /// Where it is written.
    pub view: View,
    /// Value written.
    pub value: String,
}

/// Where a value of a region varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Constant along every reduced dimension.
    Kept,
    /// Differs along a reduced dimension, or the region reduces nothing.
    Element,
}

impl Region {
    /// The level of every value, or the reason the body is malformed: an undefined or redefined value,
    /// or a reduction of something that does not vary.
    pub fn levels(&self) -> Result<BTreeMap<&str, Level>, String> {
        self.levels_given(&[])
    }

    /// The same for a region that finds values of these names, which differ from element to element.
    pub fn levels_given<'a>(&'a self, given: &[&'a str]) -> Result<BTreeMap<&'a str, Level>, String> {
        let mut levels = BTreeMap::new();
        for &name in given {
            if levels.insert(name, Level::Element).is_some() {
                return Err(format!("value {name} is defined twice"));
            }
        }
        for load in &self.loads {
            let mut varies = self.reduce.is_empty();
            for &d in &self.reduce {
                let (Some(extent), Some(stride)) = (self.space.get(d), load.view.strides.get(d)) else {
                    return Err(format!("{} has no dimension {d}, which is reduced", load.name));
                };
                varies |= *extent > 1 && *stride != 0;
            }
            let level = if varies { Level::Element } else { Level::Kept };
            if levels.insert(load.name.as_str(), level).is_some() {
                return Err(format!("value {} is defined twice", load.name));
            }
        }
        for s in &self.body {
            let mut widest = if self.reduce.is_empty() { Level::Element } else { Level::Kept };
            for arg in &s.args {
                if let Arg::Value(v) = arg {
                    let level = levels.get(v.as_str()).ok_or_else(|| format!("`{s}` uses {v} before it is defined"))?;
                    widest = widest.max(*level);
                }
            }
            let level = match s.op {
                StatementOp::Scalar(_) => widest,
                StatementOp::Reduce(_) if self.reduce.is_empty() => return Err(format!("`{s}` reduces in a map")),
                StatementOp::Reduce(_) => Level::Kept,
            };
            if levels.insert(s.name.as_str(), level).is_some() {
                return Err(format!("value {} is defined twice", s.name));
            }
        }
        for s in &self.stores {
            if !levels.contains_key(s.value.as_str()) {
                return Err(format!("{} is stored but not defined", s.value));
            }
        }
        Ok(levels)
    }

    /// Number of reduction statements.
    pub fn reductions(&self) -> usize {
        self.body.iter().filter(|s| matches!(s.op, StatementOp::Reduce(_))).count()
    }

    /// Extents of the kept dimensions.
    pub fn kept_count(&self) -> usize {
        self.space.iter().enumerate().filter(|(d, _)| !self.reduce.contains(d)).map(|(_, &e)| e).product()
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.view)
    }
}

impl FromStr for Load {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, view) = s.split_once(" = ").ok_or_else(|| format!("`{s}` is not `value = view`"))?;
        if !is_value_name(name) {
            return Err(format!("`{name}` cannot name a value"));
        }
        Ok(Load { name: name.to_string(), view: view.parse()? })
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.view, self.value)
    }
}

impl FromStr for Store {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (view, value) = s.split_once(" = ").ok_or_else(|| format!("`{s}` is not `view = value`"))?;
        if !is_value_name(value) {
            return Err(format!("`{value}` cannot name a value"));
        }
        Ok(Store { view: view.parse()?, value: value.to_string() })
    }
}

macro_rules! string_form {
    ($t:ty) => {
        impl From<$t> for String {
            fn from(v: $t) -> String {
                v.to_string()
            }
        }
        impl TryFrom<String> for $t {
            type Error = String;
            fn try_from(s: String) -> Result<Self, String> {
                s.parse()
            }
        }
    };
}
string_form!(Load);
string_form!(Store);

#[cfg(test)]
mod tests {
    use super::*;

    fn region(reduce: Vec<usize>, loads: &[&str], body: &[&str], stores: &[&str]) -> Region {
        Region {
            space: Dims(vec![8, 4]),
            reduce,
            loads: loads.iter().map(|s| s.parse().expect("load")).collect(),
            body: body.iter().map(|s| s.parse().expect("statement")).collect(),
            stores: stores.iter().map(|s| s.parse().expect("store")).collect(),
            split: None,
        }
    }

    #[test]
    fn levels_follow_the_reduced_dimensions() {
        let r = region(
            vec![1],
            &["x = a(4,1)", "c = b(1,0)"],
            &["e = mul x c", "s = reduce-sum e", "t = mul s c", "y = sub x t"],
            &["o(4,1) = y", "p(1,0) = t"],
        );
        let levels = r.levels().expect("well formed");
        assert_eq!(levels["x"], Level::Element);
        assert_eq!(levels["c"], Level::Kept);
        assert_eq!(levels["t"], Level::Kept);
        assert_eq!(levels["y"], Level::Element);
        assert_eq!(r.kept_count(), 8);
    }

    #[test]
    fn malformed_bodies_are_named() {
        assert!(region(vec![], &[], &["v = neg w"], &[]).levels().is_err_and(|e| e.contains("before it is defined")));
        assert!(region(vec![], &["x = a(4,1)"], &["v = reduce-sum x"], &[]).levels().is_err());
        assert!(region(vec![], &["x = a(4,1)"], &["x = neg x"], &[]).levels().is_err_and(|e| e.contains("twice")));
        assert!(region(vec![], &["x = a(4,1)"], &[], &["o(4,1) = y"]).levels().is_err());
        let without = |reduce: usize, x: &str| region(vec![reduce], &[x], &[], &["o(4,1) = x"]);
        for r in [without(2, "x = a(4,1,1)"), without(1, "x = a(4)"), without(usize::MAX, "x = a(4,1)")] {
            assert!(r.levels().is_err_and(|e| e.contains("no dimension")));
        }
    }
}
