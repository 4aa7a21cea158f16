//! GPU architectures, written `sm_80`, and which of a compiler's run on a device.

use std::fmt;
use std::str::FromStr;

/// An architecture by the number in its name: 80 is compute capability 8.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture(pub u32);

impl Architecture {
    /// Major number of the compute capability.
    fn major(self) -> u32 {
        self.0 / 10
    }

    /// The newest of `known` whose machine code runs on this architecture: same major number, not a greater minor one.
    pub(super) fn best_of(self, known: &[Architecture]) -> Option<Architecture> {
        known.iter().copied().filter(|k| k.major() == self.major() && *k <= self).max()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

impl FromStr for Architecture {
    type Err = String;
    fn from_str(s: &str) -> Result<Architecture, String> {
        let number = s.strip_prefix("sm_").and_then(|n| n.parse().ok());
        number.map(Architecture).ok_or_else(|| format!("`{s}` is not an architecture such as sm_80"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        assert_eq!("sm_90".parse(), Ok(Architecture(90)));
        assert_eq!(Architecture(120).to_string(), "sm_120");
        assert!("compute_80".parse::<Architecture>().is_err());
    }

    #[test]
    fn machine_code_runs_on_later_minors_of_its_major() {
        let known = [75, 80, 86, 90, 100, 120].map(Architecture);
        for (device, best) in
            [(80, Some(80)), (89, Some(86)), (90, Some(90)), (121, Some(120)), (70, None), (110, None)]
        {
            assert_eq!(Architecture(device).best_of(&known), best.map(Architecture), "sm_{device}");
        }
    }
}
