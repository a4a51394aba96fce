//! What the server counts, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of times, in seconds.
const BOUNDS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

/// A histogram of times.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// By bucket, not cumulative; the last one is of what is above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Adds a time.
    pub(crate) fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut sum = 0;
        for (at, count) in self.counts.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            match BOUNDS.get(at) {
                Some(bound) => line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), sum as f64),
                None => line(out, &format!("{name}_bucket{{le=\"+Inf\"}}"), sum as f64),
            }
        }
        let seconds = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        line(out, &format!("{name}_sum"), seconds);
        line(out, &format!("{name}_count"), sum as f64);
    }
}

/// The server's numbers since its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Answers, by endpoint, model and status.
    requests: Mutex<BTreeMap<(&'static str, String, u16), u64>>,
    /// Responses that nobody waited for any more.
    pub(crate) aborted: AtomicU64,
    /// Tokens of prompts and rows that were computed.
    pub(crate) prompt_tokens: AtomicU64,
    /// Tokens that were sampled.
    pub(crate) generated_tokens: AtomicU64,
    /// Responses in progress.
    pub(crate) running: AtomicU64,
    /// From a response's coming to its place in the batch.
    pub(crate) queue_time: Histogram,
    /// From its coming to its first token.
    pub(crate) first_token: Histogram,
    /// Between its tokens.
    pub(crate) between_tokens: Histogram,
    /// From its coming to its end.
    pub(crate) whole: Histogram,
}

impl Metrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, endpoint: &'static str, model: &str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests
            .entry((endpoint, model.to_owned(), status))
            .or_default() += 1;
    }

    /// All numbers as text; `waiting`: responses and rows in the queue.
    pub(crate) fn text(&self, waiting: usize) -> String {
        let mut out = String::new();
        let name = "temper_requests_total";
        head(
            &mut out,
            name,
            "counter",
            "Answers by endpoint, model and status.",
        );
        {
            let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            for ((endpoint, model, status), count) in requests.iter() {
                let model = model
                    .replace('\\', "\\\\")
                    .replace('"', "\\\"")
                    .replace('\n', " ");
                let labels =
                    format!("endpoint=\"{endpoint}\",model=\"{model}\",status=\"{status}\"");
                line(&mut out, &format!("{name}{{{labels}}}"), *count as f64);
            }
        }
        let counters = [
            (
                "temper_aborted_total",
                &self.aborted,
                "Responses whose clients have left.",
            ),
            (
                "temper_prompt_tokens_total",
                &self.prompt_tokens,
                "Tokens read by models.",
            ),
            (
                "temper_generated_tokens_total",
                &self.generated_tokens,
                "Tokens sampled.",
            ),
        ];
        for (name, value, help) in counters {
            head(&mut out, name, "counter", help);
            line(&mut out, name, value.load(Ordering::Relaxed) as f64);
        }
        let running = self.running.load(Ordering::Relaxed) as f64;
        let gauges = [
            (
                "temper_responses_running",
                running,
                "Responses in progress.",
            ),
            (
                "temper_queue_waiting",
                waiting as f64,
                "Responses and rows that wait.",
            ),
        ];
        for (name, value, help) in gauges {
            head(&mut out, name, "gauge", help);
            line(&mut out, name, value);
        }
        let times = [
            (
                "temper_queue_seconds",
                &self.queue_time,
                "From a response's coming to its place.",
            ),
            (
                "temper_first_token_seconds",
                &self.first_token,
                "From its coming to its first token.",
            ),
            (
                "temper_between_tokens_seconds",
                &self.between_tokens,
                "Between its tokens.",
            ),
            (
                "temper_response_seconds",
                &self.whole,
                "From its coming to its end.",
            ),
        ];
        for (name, histogram, help) in times {
            histogram.write(&mut out, name, help);
        }
        out
    }
}

/// Writing to a `String` does not fail.
fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, value: f64) {
    let _ = writeln!(out, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_prometheus_text_format() {
        let metrics = Metrics::default();
        metrics.answered("completions", "a\"b", 200);
        metrics.answered("completions", "a\"b", 200);
        metrics.answered("score", "", 429);
        metrics.first_token.add(Duration::from_millis(3));
        metrics.first_token.add(Duration::from_millis(70));
        metrics.first_token.add(Duration::from_secs(200));
        let text = metrics.text(4);
        for line in [
            "temper_requests_total{endpoint=\"completions\",model=\"a\\\"b\",status=\"200\"} 2",
            "temper_requests_total{endpoint=\"score\",model=\"\",status=\"429\"} 1",
            "# TYPE temper_first_token_seconds histogram",
            "temper_first_token_seconds_bucket{le=\"0.0025\"} 0",
            "temper_first_token_seconds_bucket{le=\"0.005\"} 1",
            "temper_first_token_seconds_bucket{le=\"0.1\"} 2",
            "temper_first_token_seconds_bucket{le=\"120\"} 2",
            "temper_first_token_seconds_bucket{le=\"+Inf\"} 3",
            "temper_first_token_seconds_sum 200.073",
            "temper_first_token_seconds_count 3",
            "temper_queue_waiting 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
