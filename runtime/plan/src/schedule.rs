//! Numbers that change from step to step: learning rate, reconciliation weight, optimizer bias corrections.

use serde::{Deserialize, Serialize};

/// A scalar the runtime sets before each step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepScalar {
    /// For people: `lr`, `lambda.2` ...
    pub name: String,
    /// The one-element buffer it is written to.
    pub buffer: String,
    /// Its value as a function of the step.
    pub schedule: Schedule,
    /// In which passes of a step it has that value.
    #[serde(default, skip_serializing_if = "Pass::is_every")]
    pub pass: Pass,
}

impl StepScalar {
    /// Value in pass `pass` (from 0) of a run of `run_steps` steps with `micro_batches` passes each.
    pub fn at(&self, pass: u64, micro_batches: u64, run_steps: u64) -> f64 {
        let (step, within) = (pass / micro_batches, pass % micro_batches);
        match self.pass {
            Pass::Only { which: Which::First, otherwise } if within > 0 => otherwise,
            Pass::Only { which: Which::Last, otherwise } if within + 1 < micro_batches => otherwise,
            Pass::Every | Pass::Only { .. } => self.schedule.at(step, run_steps),
        }
    }
}

/// A step takes a pass over each of its micro-batches: in which of them a scalar has its schedule's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pass {
    /// In all.
    #[default]
    Every,
    /// In one.
    Only {
        /// Which one.
        which: Which,
        /// Its value in the others.
        otherwise: f64,
    },
}

impl Pass {
    fn is_every(&self) -> bool {
        *self == Pass::Every
    }
}

/// One pass of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// That of the first micro-batch.
    First,
    /// That of the last: where weights change.
    Last,
}

/// A function of the step number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The value before warm-up and decay.
    pub base: f64,
    /// The first `warmup` steps rise linearly: step `i` (from 0) has `base * (i + 1) / warmup`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub warmup: u64,
    /// What happens after the warm-up.
    pub decay: Decay,
}

fn is_zero(x: &u64) -> bool {
    *x == 0
}

/// The shape of a schedule after its warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    /// Stays at the base.
    Constant,
    /// `last + (base - last) * (1 + cos(pi * progress)) / 2`, where progress runs from 0 after the warm-up to 1 at
    /// `steps` (the run's length when absent).
    Cosine {
        /// Value at the end.
        last: f64,
        /// Step at which the end is reached.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<u64>,
    },
    /// Multiplied by `gamma` after every `every` steps.
    Step {
        /// Steps between drops.
        every: u64,
        /// Factor of each drop.
        gamma: f64,
    },
    /// Adam's bias correction `1 / (1 - beta^(step + 1))`.
    AdamCorrection {
        /// The moment's decay rate.
        beta: f64,
    },
}

impl Schedule {
    /// A value that never changes.
    pub fn constant(base: f64) -> Schedule {
        Schedule { base, warmup: 0, decay: Decay::Constant }
    }

    /// Value at `step` (from 0) of a run of `run_steps` steps.
    pub fn at(&self, step: u64, run_steps: u64) -> f64 {
        if step < self.warmup {
            return self.base * (step + 1) as f64 / self.warmup as f64;
        }
        let after = step - self.warmup;
        match &self.decay {
            Decay::Constant => self.base,
            Decay::Cosine { last, steps } => {
                let end = steps.unwrap_or(run_steps);
                let length = end.saturating_sub(self.warmup).max(1);
                let progress = (after as f64 / length as f64).min(1.0);
                last + (self.base - last) * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0
            }
            Decay::Step { every, gamma } => self.base * gamma.powf((after / (*every).max(1)) as f64),
            Decay::AdamCorrection { beta } => 1.0 / (1.0 - beta.powf((step + 1) as f64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_the_corners() {
        assert_eq!(Schedule::constant(0.1).at(99, 100), 0.1);
        let cosine = Schedule { base: 1.0, warmup: 10, decay: Decay::Cosine { last: 0.0, steps: None } };
        assert_eq!(cosine.at(0, 110), 0.1);
        assert_eq!(cosine.at(9, 110), 1.0);
        assert_eq!(cosine.at(10, 110), 1.0);
        assert!((cosine.at(60, 110) - 0.5).abs() < 1e-12);
        assert!(cosine.at(500, 110).abs() < 1e-12);
        let step = Schedule { base: 1.0, warmup: 0, decay: Decay::Step { every: 5, gamma: 0.5 } };
        assert_eq!((step.at(4, 0), step.at(5, 0), step.at(10, 0)), (1.0, 0.5, 0.25));
        let sum = |which, otherwise| StepScalar {
            name: "s".into(),
            buffer: "scalar/s".into(),
            schedule: Schedule { base: 1.0, warmup: 0, decay: Decay::Step { every: 1, gamma: 0.5 } },
            pass: Pass::Only { which, otherwise },
        };
        let passes = |s: &StepScalar, n: u64| (0..6).map(|p| s.at(p, n, 0)).collect::<Vec<_>>();
        assert_eq!(passes(&sum(Which::First, 7.0), 3), [1.0, 7.0, 7.0, 0.5, 7.0, 7.0]);
        assert_eq!(passes(&sum(Which::Last, 0.0), 3), [0.0, 0.0, 1.0, 0.0, 0.0, 0.5]);
        assert_eq!(passes(&sum(Which::Last, 0.0), 1), passes(&sum(Which::First, 7.0), 1));
        let adam = Schedule { base: 1.0, warmup: 0, decay: Decay::AdamCorrection { beta: 0.9 } };
        assert!((adam.at(0, 0) - 10.0).abs() < 1e-9);
    }
}
