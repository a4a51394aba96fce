//! Progress of the subcommands on stderr, shown only for long work.

use std::time::{Duration, Instant};

use crate::report::{Interrupt, Reporter, ReporterKind, RolloutReport, reporter};

/// Shorter work shows nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// A progress counter.
pub(super) struct Progress {
    what: &'static str,
    total: usize,
    started: Instant,
    shown: Option<Box<dyn Reporter>>,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        Self {
            what,
            total,
            started: Instant::now(),
            shown: None,
        }
    }

    /// `done` items of the total, `tokens` so far.
    pub(super) fn update(&mut self, done: usize, tokens: u64) {
        if self.shown.is_none() && self.started.elapsed() >= PATIENCE && done < self.total {
            // Failures of showing progress are ignored.
            self.shown = reporter(ReporterKind::Auto, &Interrupt::default()).ok();
        }
        if let Some(reporter) = &mut self.shown {
            reporter.rollout(&RolloutReport {
                what: self.what,
                done,
                total: self.total,
                tokens,
            });
        }
    }
}
