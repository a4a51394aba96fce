//! Progress of the subcommands on stderr, shown only when the work takes long enough to wonder.

use std::time::{Duration, Instant};

use crate::report::{Interrupt, Reporter, ReporterKind, RolloutReport, reporter};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// Counts what is done.
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
            // The work goes on unseen where progress cannot be shown.
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
