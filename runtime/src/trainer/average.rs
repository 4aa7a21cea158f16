//! What a step reports: the means of what its passes report.

use crate::session::{BoundaryReport, ModuleReport};

/// Sums over passes.
#[derive(Debug, Default)]
pub(super) struct Average {
    passes: u32,
    modules: Vec<Sums>,
}

/// Loss, accuracy, and at the boundary discord, cosine and ratio.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    own: [f64; 2],
    boundary: Option<[f64; 3]>,
}

impl Average {
    /// Adds a pass.
    pub(super) fn add(&mut self, modules: &[ModuleReport]) {
        self.passes += 1;
        self.modules.resize(modules.len(), Sums::default());
        for (sum, m) in self.modules.iter_mut().zip(modules) {
            let add = |to: &mut f64, x: f32| *to += f64::from(x);
            add(&mut sum.own[0], m.loss);
            add(&mut sum.own[1], m.accuracy);
            if let Some(b) = m.boundary {
                let to = sum.boundary.get_or_insert_default();
                to.iter_mut().zip([b.discord, b.cosine, b.ratio]).for_each(|(to, x)| add(to, x));
            }
        }
    }

    /// The means, exact for a single pass; begins anew.
    pub(super) fn take(&mut self) -> Vec<ModuleReport> {
        let Average { passes, modules } = std::mem::take(self);
        let mean = |x: f64| (x / f64::from(passes.max(1))) as f32;
        let report = |s: &Sums| ModuleReport {
            loss: mean(s.own[0]),
            accuracy: mean(s.own[1]),
            boundary: s.boundary.map(|b| {
                let [discord, cosine, ratio] = b.map(mean);
                BoundaryReport { discord, cosine, ratio }
            }),
        };
        modules.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_passes_one_step_at_a_time() {
        let pass = |x: f32| ModuleReport {
            loss: x,
            accuracy: 0.1,
            boundary: Some(BoundaryReport { discord: x, cosine: -x, ratio: 0.7 }),
        };
        let mut average = Average::default();
        average.add(&[pass(1.0)]);
        average.add(&[pass(2.0)]);
        let m = average.take()[0];
        assert_eq!((m.loss, m.boundary.map(|b| (b.discord, b.cosine))), (1.5, Some((1.5, -1.5))));
        average.add(&[pass(0.3)]);
        assert_eq!(average.take(), [pass(0.3)]);
    }
}
