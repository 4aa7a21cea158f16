//! A plan within a memory budget: as few modules as fit, then the cuts that need the least work. Where no number of
//! modules fits, as few micro-batches as make one fit; or what is missing.
//!
//! What fits is decided by compiled plans. Costs of segments only say which plans are worth compiling.

use std::fmt;

use slrc_plan::buffer::Space;
use slrc_plan::plan::Memory;

use crate::costs::{Costs, pieces};
use crate::partition::{Aim, Candidate, Found, Table, search};
use crate::pipeline::{CompileError, Compiled, Planner};
use crate::size::readable;
use crate::spec::{OptimizerFile, OptimizerKind, OptimizerRule, PartitionFile, Recompute, ReconcileMode, SpecFile};

/// Compiles within `budget` bytes of peak: with the batch as a whole, or where the spec leaves the number of
/// micro-batches open and nothing fits, with as few as fit.
pub(crate) fn within(
    planner: &mut Planner<'_>,
    budget: usize,
    spec_file: &SpecFile,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Compiled, CompileError> {
    let smallest = match undivided(planner, budget, spec_file, progress)? {
        Fit::Within(c) => return Ok(*c),
        Fit::Over(smallest) => *smallest,
    };
    let batch = planner.network.batch;
    if spec_file.micro_batches.is_some() || batch == 1 {
        return Err(refusal(planner, budget, spec_file, &smallest).into());
    }
    let divided = |n: usize| SpecFile { micro_batches: Some(n), ..spec_file.clone() };
    let mut attempt = |n: usize| {
        let spec_file = divided(n);
        let mut planner = Planner::new(planner.original, &spec_file)?;
        let fit = undivided(&mut planner, budget, &spec_file, progress)?;
        Ok::<_, CompileError>((planner, fit))
    };
    // A sample a pass needs the least: whether anything fits at all.
    let mut best = match attempt(batch)? {
        (_, Fit::Within(c)) => c,
        (planner, Fit::Over(smallest)) => {
            return Err(refusal(&planner, budget, &divided(batch), &smallest).into());
        }
    };
    let counts: Vec<usize> = (2..batch).filter(|&n| batch.is_multiple_of(n)).collect();
    let (mut low, mut high) = (0, counts.len());
    while low < high {
        let middle = low.midpoint(high);
        match attempt(counts[middle])?.1 {
            Fit::Within(c) => (best, high) = (c, middle),
            Fit::Over(_) => low = middle + 1,
        }
    }
    Ok(*best)
}

enum Fit {
    Within(Box<Compiled>),
    /// Nothing fits: the plan of the smallest peak.
    Over(Box<Compiled>),
}

/// As few modules as a peak of at most `budget` bytes allows; of the cuts that allow it, those of the least work. K
/// modules fit if the plan of the smallest peak among those of K modules does.
fn undivided(
    planner: &mut Planner<'_>,
    budget: usize,
    spec_file: &SpecFile,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Fit, CompileError> {
    let whole = planner.compile_at(Vec::new(), spec_file)?;
    let count = planner.found.cuts.len() + 1;
    if whole.plan.memory.peak() <= budget {
        return Ok(Fit::Within(whole.into()));
    }
    if count == 1 {
        return Ok(Fit::Over(whole.into()));
    }
    planner.known.learn_whole(count, &whole.modules[0], &whole.names);
    // What every partition needs: weights, their optimizer state, and the batch.
    let everywhere = whole.plan.memory.parameter + whole.plan.memory.optimizer + whole.plan.memory.input;
    let mut table = Table::new(&pieces(&planner.network, &planner.found));
    let mut best = |planner: &mut Planner<'_>, counts, limit, aim| {
        let spec = spec_file.resolve()?;
        let Planner { network, found, known, .. } = planner;
        let mut costs = Costs { network, found, spec: &spec, known, progress };
        table.learn_whole(&mut costs)?;
        search(&mut table, counts, limit, aim, &mut costs)
    };
    if let Some(limit) = budget.checked_sub(everywhere) {
        for modules in 2..=count {
            let counts = modules..=modules;
            let Some(found) = best(planner, counts.clone(), limit, Aim::Smallest)? else { continue };
            let smallest = planner.compile_at(cuts(planner, &found), spec_file)?;
            if smallest.plan.memory.peak() > budget {
                continue;
            }
            if let Some(found) = best(planner, counts, limit, Aim::Fastest)? {
                let fastest = planner.compile_at(cuts(planner, &found), spec_file)?;
                if fastest.plan.memory.peak() <= budget && work(&fastest) < work(&smallest) {
                    return Ok(Fit::Within(fastest.into()));
                }
            }
            return Ok(Fit::Within(smallest.into()));
        }
    }
    let found = best(planner, 2..=count, usize::MAX, Aim::Smallest)?.expect("invariant: nothing limits it");
    let smallest = planner.compile_at(cuts(planner, &found), spec_file)?;
    let peak = |c: &Compiled| c.plan.memory.peak();
    let smallest = if peak(&whole) <= peak(&smallest) { whole } else { smallest };
    Ok(Fit::Over(smallest.into()))
}

fn cuts(planner: &Planner<'_>, found: &Found) -> Vec<Candidate> {
    found.cuts.iter().map(|c| planner.found.cuts[c - 1].clone()).collect()
}

/// Floating-point operations of a step.
fn work(c: &Compiled) -> u64 {
    c.plan.modules.iter().map(|m| m.step.flops).sum()
}

/// No partition fits a memory budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OverBudget {
    /// Bytes allowed.
    pub budget: usize,
    /// Modules of the plan of the smallest peak.
    pub modules: usize,
    /// Its micro-batches.
    pub micro_batches: usize,
    /// Its memory.
    pub memory: Memory,
    /// What would lower its peak.
    pub ways: Vec<Way>,
}

/// Other settings with the same cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// As options of `slrc partition`.
    pub options: String,
    /// Peak of the plan.
    pub peak: usize,
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |n: usize| format!("{} ({n} bytes)", readable(n));
        let peak = self.memory.peak();
        let s = if self.modules == 1 { "" } else { "s" };
        let passes = match self.micro_batches {
            1 => String::new(),
            n => format!(" and {n} micro-batches"),
        };
        write!(
            f,
            "nothing fits the memory budget of {}; the smallest peak is {}, in {} module{s}{passes}",
            exact(self.budget),
            exact(peak),
            self.modules,
        )?;
        let share = |n: usize| format!("{} ({:.0} %)", readable(n), 100.0 * n as f64 / peak.max(1) as f64);
        let mut parts = [
            (self.memory.of(Space::Arena), "the arena of the largest module"),
            (self.memory.parameter + self.memory.optimizer, "weights and optimizer state"),
            (self.memory.input, "the batch"),
        ];
        parts.sort_by_key(|p| std::cmp::Reverse(p.0));
        let parts = parts.map(|(n, what)| format!("{} {what}", share(n)));
        write!(f, "\n  of it: {}", parts.join(", "))?;
        let (there, short): (Vec<&Way>, Vec<&Way>) = self.ways.iter().partition(|w| w.peak <= self.budget);
        let width = self.ways.iter().map(|w| w.options.len()).max().unwrap_or(0);
        for (title, ways) in
            [("what would get there, with the same cuts:", there), ("what would lower it, but not far enough:", short)]
        {
            if !ways.is_empty() {
                write!(f, "\n  {title}")?;
            }
            for w in ways {
                write!(f, "\n    {:width$}  {}", w.options, readable(w.peak))?;
            }
        }
        Ok(())
    }
}

/// What is said where nothing fits; `smallest` is the plan of the smallest peak.
fn refusal(planner: &Planner<'_>, budget: usize, spec_file: &SpecFile, smallest: &Compiled) -> Box<OverBudget> {
    let memory = smallest.plan.memory.clone();
    let peak = memory.peak();
    let mut ways: Vec<Way> = fewer_samples(planner, budget, spec_file, smallest).into_iter().collect();
    // Nothing is promised of settings whose plan cannot be compiled.
    ways.extend(settings(spec_file, smallest).into_iter().filter_map(|(options, spec)| {
        let other = planner.compile_at(smallest.cuts.clone(), &spec).ok()?;
        Some(Way { options, peak: other.plan.memory.peak() })
    }));
    ways.retain(|w| w.peak < peak);
    let micro_batches = smallest.spec.micro_batches;
    Box::new(OverBudget { budget, modules: smallest.cuts.len() + 1, micro_batches, memory, ways })
}

const PRODUCTS_AGAIN: (&str, Recompute) = ("--recompute products", Recompute::Products);

/// Settings that hold less, where they are not made already.
fn settings(spec_file: &SpecFile, smallest: &Compiled) -> Vec<(String, SpecFile)> {
    let mut out = Vec::new();
    let mut add = |options: &str, change: &dyn Fn(&mut SpecFile)| {
        let mut spec = spec_file.clone();
        change(&mut spec);
        out.push((options.to_string(), spec));
    };
    let options = match smallest.spec.optimizer.rule {
        OptimizerRule::Sgd { momentum: 0.0, .. } => None,
        OptimizerRule::Sgd { .. } => Some("--momentum 0"),
        OptimizerRule::AdamW { .. } => Some("--optimizer sgd --momentum 0"),
    };
    if let Some(options) = options {
        let stateless =
            |o: &OptimizerFile| OptimizerFile { kind: Some(OptimizerKind::Sgd), momentum: Some(0.0), ..o.clone() };
        let optimizer = stateless(&spec_file.optimizer);
        // Options leave the spec's other fields as they are, which may belong to what there was.
        if (SpecFile { optimizer: optimizer.clone(), ..spec_file.clone() }).resolve().is_ok() {
            add(options, &|s| s.optimizer = optimizer.clone());
        } else {
            let options = "optimizer: {kind: sgd, momentum: 0} in the spec";
            add(options, &|s| s.optimizer = stateless(&OptimizerFile::default()));
        }
    }
    let reconcile = &smallest.spec.reconcile;
    if reconcile.mode != ReconcileMode::Off {
        add("--reconcile off --no-monitor", &|s| {
            s.reconcile.mode = Some(ReconcileMode::Off);
            s.reconcile.monitor = Some(false);
        });
    } else if reconcile.monitor {
        add("--no-monitor", &|s| s.reconcile.monitor = Some(false));
    }
    let more: &[(&str, Recompute)] = match smallest.spec.recompute {
        Recompute::None => &[("--recompute elementwise", Recompute::Elementwise), PRODUCTS_AGAIN],
        Recompute::Elementwise => &[PRODUCTS_AGAIN],
        Recompute::Products => &[],
    };
    for &(options, recompute) in more {
        add(options, &|s| s.recompute = Some(recompute));
    }
    out
}

/// Plans that are compiled at most to find a batch that fits.
const BATCHES_TRIED: usize = 6;

/// The same cuts with fewer samples: as many as are found to fit, or one.
fn fewer_samples(planner: &Planner<'_>, budget: usize, spec_file: &SpecFile, smallest: &Compiled) -> Option<Way> {
    let at: Vec<String> = smallest.cuts.iter().map(|c| c.name.clone()).collect();
    if smallest.spec.micro_batches > 1 {
        return None;
    }
    let peak = |batch: usize| {
        let allow_skips = spec_file.partition.allow_skips;
        let partition = PartitionFile { at: at.clone(), allow_skips, ..PartitionFile::default() };
        let partition = if at.is_empty() { PartitionFile { modules: Some(1), ..partition } } else { partition };
        let spec = SpecFile { batch: Some(batch), partition: partition.clone(), ..spec_file.clone() };
        let plan =
            Planner::new(planner.original, &spec).and_then(|mut p| p.compile(&partition, &mut |_, _| {})).ok()?.plan;
        (plan.settings.batch == batch).then(|| plan.memory.peak())
    };
    let (mut too_many, mut too_much) = (smallest.plan.settings.batch, smallest.plan.memory.peak());
    if too_many == 1 {
        return None;
    }
    let (mut fits, mut takes) = (1, peak(1)?);
    for _ in 1..BATCHES_TRIED {
        if takes > budget || fits + 1 >= too_many {
            break;
        }
        // Bytes are nearly linear in samples.
        let room = (budget - takes) as f64 / (too_much - takes).max(1) as f64;
        let next = fits + ((too_many - fits) as f64 * room) as usize;
        let next = next.clamp(fits + 1, too_many - 1);
        let bytes = peak(next)?;
        if bytes <= budget {
            (fits, takes) = (next, bytes);
        } else {
            (too_many, too_much) = (next, bytes);
        }
    }
    Some(Way { options: format!("--batch {fits}"), peak: takes })
}
