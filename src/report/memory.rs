//! Memory and speed of this process.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The highest peak that was seen before one began anew.
static EARLIER: AtomicU64 = AtomicU64::new(0);

/// Peak resident memory of this process in bytes; `None` on other systems than Linux.
pub fn peak_rss_bytes() -> Option<u64> {
    recent_peak_rss_bytes().map(|peak| peak.max(EARLIER.load(Ordering::Relaxed)))
}

/// Peak resident memory in bytes since [`begin_peak`] was called last (`VmHWM` of Linux); `None` on other systems.
pub fn recent_peak_rss_bytes() -> Option<u64> {
    peak_from_status(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Begins a peak of its own, for a stage. Where the kernel cannot, peaks stay those since the start of the process.
pub fn begin_peak() {
    if let Some(peak) = recent_peak_rss_bytes() {
        EARLIER.fetch_max(peak, Ordering::Relaxed);
        // "5" sets the peak to what is resident now: proc_pid_clear_refs(5).
        let _ = fs::write("/proc/self/clear_refs", "5");
    }
}

fn peak_from_status(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Time and tokens per second since it was made.
#[derive(Debug, Clone, Copy)]
pub struct Timer {
    start: Instant,
    first_tokens: u64,
    first_s: f64,
}

impl Timer {
    /// Starts now, with `tokens` already processed (before a resume, for example).
    pub fn start(tokens: u64) -> Self {
        Self {
            start: Instant::now(),
            first_tokens: tokens,
            first_s: 0.0,
        }
    }

    /// The same with `seconds` that were spent before a resume.
    pub fn after(self, seconds: f64) -> Self {
        Self {
            first_s: seconds,
            ..self
        }
    }

    /// Seconds spent, those before a resume included.
    pub fn elapsed_s(&self) -> f64 {
        self.first_s + self.since_start_s()
    }

    /// Seconds since the start.
    pub fn since_start_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Tokens per second, given all `tokens` processed until now; 0 before any time has passed.
    pub fn tokens_per_s(&self, tokens: u64) -> f64 {
        rate(
            tokens.saturating_sub(self.first_tokens),
            self.since_start_s(),
        )
    }
}

fn rate(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        tokens as f64 / seconds
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_kibibytes() {
        let status = "VmPeak:\t  900 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 4 kB\n";
        assert_eq!(peak_from_status(status), Some(2_097_152));
        assert_eq!(peak_from_status("VmRSS:\t 4 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_what_is_held() {
        let before = peak_rss_bytes().unwrap();
        let held = vec![1u8; 256 << 20];
        let after = peak_rss_bytes().unwrap();
        assert!(held.contains(&1));
        assert!(after >= 256 << 20, "{before} then {after}");
        drop(held);
        begin_peak();
        // Not `after`: the kernel's counts are off by some pages, and its mark may fall by these.
        assert!(peak_rss_bytes().unwrap() >= 256 << 20);
        // Other tests hold memory of their own; kernels without this reset keep the peak.
        assert!(recent_peak_rss_bytes().unwrap() <= peak_rss_bytes().unwrap());
    }

    #[test]
    fn the_rate_counts_tokens_since_the_start() {
        assert_eq!(rate(600, 2.0), 300.0);
        assert_eq!(rate(600, 0.0), 0.0);
        assert_eq!(Timer::start(100).tokens_per_s(100), 0.0);
        assert!(Timer::start(0).after(60.0).elapsed_s() >= 60.0);
    }
}
