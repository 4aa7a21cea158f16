//! How much main memory this process has: what the kernel counts as resident, where it is Linux.

/// Watches from now on.
pub(crate) struct Resident {
    /// Whether the kernel forgot what was before.
    from_now: bool,
}

impl Resident {
    /// Begins.
    pub(crate) fn watch() -> Resident {
        // proc(5): "5" sets the high-water mark back to what is resident now.
        Resident { from_now: std::fs::write("/proc/self/clear_refs", "5").is_ok() }
    }

    /// Most bytes since it began; nothing where the system does not tell.
    pub(crate) fn most(&self) -> Option<usize> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        self.from_now.then(|| high_water(&status)).flatten()
    }
}

/// The high-water mark in the text of `/proc/self/status`.
fn high_water(status: &str) -> Option<usize> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_found() {
        assert_eq!(high_water("Name:\tslrc\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n"), Some(2 << 20));
        assert_eq!((high_water(""), high_water("VmHWM:\t2048\n")), (None, None));
    }
}
