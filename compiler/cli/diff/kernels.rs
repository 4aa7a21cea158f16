//! Which kernels of one plan are those of another, and which were fused or split, by ONNX nodes and family.

use serde::Serialize;
use slrc_plan::Plan;
use slrc_plan::kernel::{ConvDirection, Kernel, KernelOp};

/// A kernel as far as it can be recognised in another plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Work {
    pub(crate) module: usize,
    pub(crate) phase: &'static str,
    /// Family, and of a convolution which of its products.
    pub(crate) family: &'static str,
    /// ONNX nodes; empty for work slrc added.
    pub(crate) nodes: Vec<String>,
}

impl Work {
    fn of(module: usize, k: &Kernel) -> Work {
        let family = match &k.run {
            KernelOp::Conv(c) => match c.direction {
                ConvDirection::Forward => "conv",
                ConvDirection::InputGrad => "conv input-grad",
                ConvDirection::WeightGrad => "conv weight-grad",
            },
            run => run.family(),
        };
        Work { module, phase: k.phase.name(), family, nodes: k.nodes.clone() }
    }

    /// Whether both are the same work; cuts may have moved between the plans.
    fn is(&self, other: &Work) -> bool {
        (self.phase, self.family, &self.nodes) == (other.phase, other.family, &other.nodes)
    }
}

/// Kernels of a step that became one, or the one that became several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Regrouped {
    /// The single kernel.
    pub(crate) whole: Work,
    /// The several; the first is the one whose family the single kernel has.
    pub(crate) parts: Vec<Work>,
}

/// How the kernels of training steps differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct KernelChanges {
    /// Several kernels of the old plan are one in the new.
    pub(crate) fused: Vec<Regrouped>,
    /// One kernel of the old plan is several in the new.
    pub(crate) split: Vec<Regrouped>,
    /// Other kernels of the old plan without a counterpart in the new.
    pub(crate) gone: Vec<Work>,
    /// Other kernels of the new plan without a counterpart in the old.
    pub(crate) added: Vec<Work>,
}

/// Compares the kernels of two plans' training steps.
pub(crate) fn compare(old: &Plan, new: &Plan) -> KernelChanges {
    let all = |p: &Plan| -> Vec<Work> {
        p.modules.iter().flat_map(|m| m.step.kernels.iter().map(|k| Work::of(m.index, k))).collect()
    };
    changes(all(old), all(new))
}

fn changes(old: Vec<Work>, new: Vec<Work>) -> KernelChanges {
    let mut gone = old;
    let mut added = Vec::new();
    // Counterparts in the same module first: only where there is none has a kernel changed its module.
    for same_module in [true, false] {
        let left = if same_module { new.clone() } else { std::mem::take(&mut added) };
        for n in left {
            match gone.iter().position(|o| o.is(&n) && (!same_module || o.module == n.module)) {
                Some(i) => drop(gone.remove(i)),
                None => added.push(n),
            }
        }
    }
    let fused = regroup(&mut added, &mut gone);
    let split = regroup(&mut gone, &mut added);
    KernelChanges { fused, split, gone, added }
}

/// Takes from `wholes` every kernel that several of `parts` make up together, and these from `parts`.
fn regroup(wholes: &mut Vec<Work>, parts: &mut Vec<Work>) -> Vec<Regrouped> {
    let mut out = Vec::new();
    wholes.retain(|whole| {
        let Some(found) = make_up(whole, parts) else { return true };
        // From the back, so that positions stay right.
        let mut sorted = found.clone();
        sorted.sort_unstable();
        let taken: Vec<Work> = found.iter().map(|&i| parts[i].clone()).collect();
        sorted.into_iter().rev().for_each(|i| drop(parts.remove(i)));
        out.push(Regrouped { whole: whole.clone(), parts: taken });
        false
    });
    out
}

/// Positions of parts of the same phase that have the whole's nodes and no others, each with a node that those before
/// it lack; the first has the whole's family.
fn make_up(whole: &Work, parts: &[Work]) -> Option<Vec<usize>> {
    let inside =
        |p: &Work| p.phase == whole.phase && !p.nodes.is_empty() && p.nodes.iter().all(|n| whole.nodes.contains(n));
    let candidates: Vec<usize> = (0..parts.len()).filter(|&i| inside(&parts[i])).collect();
    let first = *candidates.iter().find(|&&i| parts[i].family == whole.family)?;
    let mut taken = vec![first];
    let mut have: Vec<&String> = parts[first].nodes.iter().collect();
    for &i in candidates.iter().filter(|&&i| i != first) {
        if parts[i].nodes.iter().any(|n| !have.contains(&n)) {
            have.extend(&parts[i].nodes);
            taken.push(i);
        }
    }
    (taken.len() > 1 && whole.nodes.iter().all(|n| have.contains(&n))).then_some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(module: usize, family: &'static str, nodes: &[&str]) -> Work {
        Work { module, phase: "forward", family, nodes: nodes.iter().map(|n| n.to_string()).collect() }
    }

    #[test]
    fn fused_and_split() {
        let apart = vec![work(1, "conv", &["c"]), work(1, "map", &["r"]), work(1, "map", &["a"]), work(1, "row", &[])];
        let one = vec![work(1, "conv", &["c", "r", "a"]), work(1, "row", &[])];
        let there = changes(apart.clone(), one.clone());
        assert_eq!(there.fused, [Regrouped { whole: one[0].clone(), parts: apart[..3].to_vec() }]);
        assert!(there.split.is_empty() && there.gone.is_empty() && there.added.is_empty());
        let back = changes(one.clone(), apart.clone());
        assert_eq!(back.split, there.fused);
        assert!(back.fused.is_empty() && back.gone.is_empty() && back.added.is_empty());
    }

    #[test]
    fn neither_fused_nor_split() {
        // Another phase, another family, a node that nobody has, a node too many.
        let later = Work { phase: "backward", ..work(1, "map", &["r"]) };
        for parts in [
            vec![work(1, "conv", &["c"]), later],
            vec![work(1, "map", &["c"]), work(1, "map", &["r"])],
            vec![work(1, "conv", &["c"]), work(1, "map", &["x"])],
            vec![work(1, "conv", &["c"]), work(1, "map", &["r", "x"])],
        ] {
            let whole = vec![work(1, "conv", &["c", "r"])];
            let c = changes(parts.clone(), whole.clone());
            assert_eq!((c.gone, c.added), (parts, whole));
            assert!(c.fused.is_empty() && c.split.is_empty());
        }
    }

    #[test]
    fn a_moved_cut_changes_no_kernel() {
        let old = vec![work(1, "conv", &["c"]), work(1, "map", &["r"]), work(2, "map", &["r"])];
        let new = vec![work(1, "conv", &["c"]), work(2, "map", &["r"])];
        let c = changes(old.clone(), new);
        assert_eq!((c.gone, c.added), (vec![old[1].clone()], vec![]), "the one in the same module is the counterpart");
        assert_eq!(changes(vec![work(1, "conv", &["c"])], vec![work(3, "conv", &["c"])]), KernelChanges::default());
    }
}
