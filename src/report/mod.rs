//! What a run records and shows: `metrics.jsonl`, `samples.jsonl`, progress, `report.html`.
//!
//! Results go to the run folder and to stdout; progress goes to stderr. Nothing here holds a tensor.

mod bars;
mod chart;
mod findings;
mod html;
mod interrupt;
mod jsonl;
mod memory;
mod metrics;
mod number;
mod plain;
mod progress;
mod samples;
mod table;
#[cfg(feature = "tui")]
mod tui;

pub use findings::{Finding, Severity, diverged, findings};
pub use html::{StageReport, write_stage_report};
pub(crate) use interrupt::ENDED_BY_SIGINT;
pub use interrupt::Interrupt;
pub use jsonl::LogMark;
pub(crate) use jsonl::complete_lines;
pub use memory::{Timer, peak_rss_bytes};
pub use metrics::{MetricsLog, MetricsRow, read_metrics, series};
pub use number::grouped;
pub use plain::PlainReporter;
pub use progress::{
    EvalReport, Reporter, ReporterKind, RolloutReport, SilentReporter, StageInfo, StepReport,
    format_value, reporter,
};
pub use samples::{Sample, SamplesLog, read_samples};
pub use table::table;
