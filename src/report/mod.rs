//! What a run records and shows: `metrics.jsonl`, `samples.jsonl`, progress, `report.html`.
//!
//! Results go to the run folder and to stdout; progress goes to stderr. Nothing here holds a tensor.

mod axis;
mod bars;
mod calibration;
mod chart;
mod comparison;
mod contest;
mod curves;
mod findings;
mod frontier;
mod histogram;
mod interrupt;
mod jsonl;
mod memory;
mod metrics;
mod noted;
mod number;
mod page;
mod panels;
mod pictures;
mod pipeline;
mod plain;
mod points;
mod progress;
mod rating_page;
mod ratings;
mod record;
mod run_page;
mod sample_table;
mod samples;
mod stage_page;
mod table;
mod thinned;
mod tracking;
#[cfg(feature = "tui")]
mod tui;

pub use calibration::{AccuracyGroup, Calibration, GoldAgreement, ReliabilityBin};
pub use comparison::{ComparedPolicy, Comparison, Estimate, PolicyResponses, responses_text};
pub use contest::{Contest, ContestRules, JudgeContest, Judged, Rating, SourceContest};
pub use curves::SampleCurves;
pub use findings::{Finding, Severity, diverged, findings};
pub use histogram::{BinCounts, Histogram};
pub(crate) use interrupt::ENDED_BY_SIGINT;
pub use interrupt::Interrupt;
pub use jsonl::LogMark;
pub(crate) use jsonl::{complete_lines, each_row};
pub use memory::{Timer, begin_peak, peak_rss_bytes, recent_peak_rss_bytes};
pub use metrics::{MetricsLog, MetricsRow, read_metrics, series};
pub use noted::{NotedReporter, Position};
pub use number::{duration, grouped};
pub use page::{escape as text_of_html, page_style};
pub use plain::PlainReporter;
pub use progress::{
    EvalReport, Reporter, ReporterKind, RolloutReport, SilentReporter, StageInfo, StepReport,
    format_value, reporter,
};
pub use rating_page::write_rating_page;
pub use ratings::{PolicyRatings, PromptGame, RatedPolicy, RatingRules, response_scores};
pub use record::{StageLogs, StageRecord};
pub use run_page::{
    Flow, FlowSource, RunReport, StageSection, StageState, run_body, write_run_report,
};
pub use samples::{Sample, SamplesLog, read_samples};
pub use stage_page::{StageReport, stage_body, write_stage_report};
pub use table::{Table, table};
pub use tracking::{Ending, ReportTo, TrackedStage, Trackers, write_events};
