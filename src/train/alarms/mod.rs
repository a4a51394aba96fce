//! Alarms of on-policy stages: what goes wrong while the score rises.
//!
//! Alarms read the metrics that are logged anyway, and have no state of their own: a resumed stage reads its log again.

mod config;

use std::collections::{BTreeMap, BTreeSet};

use crate::report::MetricsRow;

pub(in crate::train) use config::Unmeasured;
pub use config::{AlarmKind, AlarmsConfig};

/// An alarm that has gone off.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// What it watches.
    pub kind: AlarmKind,
    /// The number that went beyond its limit.
    pub value: f64,
    /// What happened, in words.
    pub message: String,
    /// Whether the recipe ends the run here.
    pub stops: bool,
}

impl Alarm {
    /// Its name in `metrics.jsonl`.
    pub(super) fn metric(&self) -> String {
        format!("{PREFIX}{}", self.kind.name())
    }
}

/// Prefix of alarms in `metrics.jsonl`; the report finds them by it.
const PREFIX: &str = "alarm/";

/// The metrics of an update that alarms read.
const WATCHED: [&str; 9] = [
    "objective/kl",
    "objective/entropy",
    "objective/scores",
    "objective/gold_scores",
    "val/response_length",
    "val/repetition",
    "rollout/frac_reward_zero_std",
    "eval/scores",
    "eval/gold_scores",
];

/// The alarms of a stage.
#[derive(Debug)]
pub struct Alarms {
    config: AlarmsConfig,
    series: BTreeMap<&'static str, Vec<f64>>,
    /// Index and value of the highest number of a series, the first of several; of the gold score, of the highest window.
    highest: BTreeMap<&'static str, (usize, f64)>,
    /// Number of updates before each evaluation.
    evaluations: Vec<usize>,
    /// Those that hold now: an alarm goes off once until it no longer holds.
    ringing: BTreeSet<AlarmKind>,
}

impl Alarms {
    /// Alarms of a stage that begins.
    pub fn new(config: &AlarmsConfig) -> Self {
        Self {
            config: config.clone(),
            series: BTreeMap::new(),
            highest: BTreeMap::new(),
            evaluations: Vec::new(),
            ringing: BTreeSet::new(),
        }
    }

    /// Takes note of a line of metrics that was logged earlier.
    pub fn log(&mut self, row: &MetricsRow) {
        let values: Vec<(&str, f64)> = (row.values.iter())
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
            .collect();
        self.update(&values);
    }

    /// Takes note of a line of metrics; returns the alarms that it sets off.
    pub fn update(&mut self, metrics: &[(&str, f64)]) -> Vec<Alarm> {
        let mut seen = false;
        for name in WATCHED {
            if let Some((_, value)) = metrics.iter().find(|(other, _)| *other == name) {
                let values = self.series.entry(name).or_default();
                values.push(*value);
                seen = true;
                // Kept up to date, since a long stage has too many values to look through at every line.
                let window = match name {
                    "objective/gold_scores" => self.config.window,
                    _ => 1,
                };
                if let Some(at) = values.len().checked_sub(window) {
                    let value = mean(&values[at..]);
                    let highest = self.highest.entry(name).or_insert((at, value));
                    if value > highest.1 || highest.1.is_nan() {
                        *highest = (at, value);
                    }
                }
                if name == "eval/scores" {
                    self.evaluations.push(self.of("objective/scores").len());
                }
            }
        }
        if !seen {
            return Vec::new();
        }
        let found = [
            self.kl(),
            self.entropy(),
            self.length(),
            self.repetition(),
            self.gold(),
            self.variance(),
        ];
        let holding: Vec<Alarm> = found.into_iter().flatten().collect();
        let before = std::mem::take(&mut self.ringing);
        self.ringing = holding.iter().map(|alarm| alarm.kind).collect();
        (holding.into_iter())
            .filter(|alarm| !before.contains(&alarm.kind))
            .collect()
    }

    fn of(&self, name: &str) -> &[f64] {
        self.series.get(name).map_or(&[], Vec::as_slice)
    }

    /// Means of the first and of the last updates; `None` before they are two windows.
    fn ends(&self, name: &str) -> Option<(f64, f64)> {
        let (values, window) = (self.of(name), self.config.window);
        (values.len() >= 2 * window).then(|| {
            (
                mean(&values[..window]),
                mean(&values[values.len() - window..]),
            )
        })
    }

    /// Mean of the last updates; `None` before they are a window.
    fn last(&self, name: &str) -> Option<f64> {
        let (values, window) = (self.of(name), self.config.window);
        (values.len() >= window).then(|| mean(&values[values.len() - window..]))
    }

    fn alarm(&self, kind: AlarmKind, value: f64, message: String) -> Option<Alarm> {
        Some(Alarm {
            kind,
            value,
            message,
            stops: self.config.stop.contains(&kind),
        })
    }

    fn kl(&self) -> Option<Alarm> {
        let (limit, kl) = (self.config.kl?, self.last("objective/kl")?);
        let message =
            format!("the KL to the reference is {kl:.1} nats per response, above {limit}");
        (kl > limit).then(|| self.alarm(AlarmKind::Kl, kl, message))?
    }

    fn entropy(&self) -> Option<Alarm> {
        let (share, (start, now)) = (self.config.entropy?, self.ends("objective/entropy")?);
        let message = format!(
            "the entropy fell from {start:.3} to {now:.3} nats per token: the policy's responses become all the same"
        );
        (now < share * start).then(|| self.alarm(AlarmKind::Entropy, now, message))?
    }

    fn length(&self) -> Option<Alarm> {
        let (share, (start, now)) = (self.config.length?, self.ends("val/response_length")?);
        let message = format!("responses went from {start:.1} to {now:.1} tokens");
        ((now - start).abs() > share * start)
            .then(|| self.alarm(AlarmKind::Length, now, message))?
    }

    fn repetition(&self) -> Option<Alarm> {
        let (limit, now) = (self.config.repetition?, self.last("val/repetition")?);
        let message = format!(
            "{:.0} % of the groups of three tokens in a response repeat an earlier one",
            100.0 * now
        );
        (now > limit).then(|| self.alarm(AlarmKind::Repetition, now, message))?
    }

    fn variance(&self) -> Option<Alarm> {
        let name = "rollout/frac_reward_zero_std";
        let (limit, now) = (self.config.variance?, self.last(name)?);
        let message = format!(
            "{:.0} % of the groups have equal rewards: little is left to learn from",
            100.0 * now
        );
        (now > limit).then(|| self.alarm(AlarmKind::Variance, now, message))?
    }

    fn gold(&self) -> Option<Alarm> {
        let share = self.config.gold?;
        let fall = self.gold_fall(share).or_else(|| self.held_out_fall(share));
        let (what, peak, now) = fall?;
        let message = format!(
            "the score rises while {what} fell from {peak:.3} to {now:.3}: the policy may exploit the reward"
        );
        self.alarm(AlarmKind::Gold, now, message)
    }

    /// The gold score of the responses that are trained on: its highest window and the last one, if the score rose between them.
    fn gold_fall(&self, share: f64) -> Option<(&'static str, f64, f64)> {
        let window = self.config.window;
        let (start, now) = self.ends("objective/gold_scores")?;
        let gold = self.of("objective/gold_scores");
        let (at, peak) = *self.highest.get("objective/gold_scores")?;
        let scores = self.of("objective/scores");
        let risen = mean(&scores[scores.len() - window..]) > mean(scores.get(at..at + window)?);
        // A fall within the noise of a mean of so many updates is none.
        let noise = deviation(&gold[gold.len() - window..]) / (window as f64).sqrt();
        let lost = peak - now;
        (risen && lost > (share * (peak - start)).max(3.0 * noise) && lost > 0.0).then_some((
            "the gold score",
            peak,
            now,
        ))
    }

    /// The same of the gold or the plain score on held-out prompts, against the score that is trained on.
    fn held_out_fall(&self, share: f64) -> Option<(&'static str, f64, f64)> {
        let scores = self.of("objective/scores");
        for (name, what) in [
            ("eval/gold_scores", "the gold score on held-out prompts"),
            ("eval/scores", "the score on held-out prompts"),
        ] {
            let held_out = self.of(name);
            let [start, .., now] = held_out else { continue };
            let (at, peak) = *self.highest.get(name)?;
            let (before, updates) = (*self.evaluations.get(at)?, scores.len());
            let window = self.config.window.min(updates);
            let then = match before {
                0 => scores.get(..window)?,
                before => &scores[before.saturating_sub(window)..before],
            };
            let risen = mean(&scores[updates - window..]) > mean(then);
            let lost = peak - now;
            if at > 0 && risen && lost > share * (peak - start) {
                return Some((what, peak, *now));
            }
        }
        None
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation with divisor `n - 1`.
fn deviation(values: &[f64]) -> f64 {
    let centre = mean(values);
    let squares: f64 = values.iter().map(|x| (x - centre).powi(2)).sum();
    (squares / (values.len().max(2) - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarms(config: AlarmsConfig) -> Alarms {
        Alarms::new(&AlarmsConfig {
            window: 2,
            ..config
        })
    }

    /// Feeds one metric, update by update; the alarms of each.
    fn feed(alarms: &mut Alarms, name: &str, values: &[f64]) -> Vec<Vec<AlarmKind>> {
        (values.iter())
            .map(|&value| {
                alarms
                    .update(&[(name, value)])
                    .iter()
                    .map(|a| a.kind)
                    .collect()
            })
            .collect()
    }

    #[test]
    fn an_alarm_goes_off_once_until_it_no_longer_holds() {
        let mut alarms = alarms(AlarmsConfig {
            kl: Some(5.0),
            ..Default::default()
        });
        // Means of two: -, 4, 6, 7, 5, 4, 6.
        let found = feed(
            &mut alarms,
            "objective/kl",
            &[4.0, 4.0, 8.0, 6.0, 4.0, 4.0, 8.0],
        );
        let kl = vec![AlarmKind::Kl];
        assert_eq!(
            found,
            [vec![], vec![], kl.clone(), vec![], vec![], vec![], kl]
        );
    }

    #[test]
    fn changes_are_measured_from_the_first_updates() {
        let entropy = [2.0, 2.0, 1.0, 0.5, 0.3, 0.3];
        let found = feed(
            &mut alarms(Default::default()),
            "objective/entropy",
            &entropy,
        );
        // A fifth of 2 is 0.4: reached by the mean of the last two.
        assert_eq!(found[4], []);
        assert_eq!(found[5], [AlarmKind::Entropy]);
        for end in [31.0, 9.0] {
            let found = feed(
                &mut alarms(Default::default()),
                "val/response_length",
                &[20.0, 20.0, end, end],
            );
            assert_eq!(found[3], [AlarmKind::Length], "{end}");
        }
    }

    #[test]
    fn a_gold_score_that_falls_while_the_score_rises() {
        let scores = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        let gold = [0.0, 0.2, 0.4, 0.41, 0.40, 0.1, 0.1];
        let mut both = alarms(Default::default());
        let found: Vec<usize> = (0..7)
            .filter(|&i| {
                let line = [
                    ("objective/scores", scores[i]),
                    ("objective/gold_scores", gold[i]),
                ];
                !both.update(&line).is_empty()
            })
            .collect();
        // Highest mean 0.405 from 0.1. At 5 the fall is within the noise of (0.4, 0.1); at 6 both are 0.1.
        assert_eq!(found, [6]);
        // The same fall with a falling score is no exploit.
        let mut both = alarms(Default::default());
        for (score, gold) in scores.iter().rev().zip(gold) {
            let line = [
                ("objective/scores", *score),
                ("objective/gold_scores", gold),
            ];
            assert_eq!(both.update(&line), []);
        }
    }

    #[test]
    fn a_held_out_score_that_falls() {
        let mut alarms = alarms(Default::default());
        let mut found = Vec::new();
        found.extend(alarms.update(&[("eval/scores", 0.0)]));
        for (score, held_out) in [(0.1, 0.4), (0.2, 0.35), (0.6, 0.1)] {
            found.extend(alarms.update(&[("objective/scores", score)]));
            found.extend(alarms.update(&[("eval/scores", held_out)]));
        }
        // 0.35 lost an eighth of the gain, 0.1 three quarters.
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, found[0].value), (AlarmKind::Gold, 0.1));
    }

    #[test]
    fn a_resumed_log_rings_no_bell_twice() {
        let config = AlarmsConfig {
            window: 1,
            variance: Some(0.5),
            stop: vec![AlarmKind::Variance],
            ..Default::default()
        };
        let name = "rollout/frac_reward_zero_std";
        let mut first = Alarms::new(&config);
        let rung = first.update(&[(name, 0.75)]);
        assert!(rung[0].stops && rung[0].metric() == "alarm/variance");
        let row = MetricsRow {
            step: 1,
            values: serde_json::json!({ name: 0.75 })
                .as_object()
                .unwrap()
                .clone(),
        };
        let mut again = Alarms::new(&config);
        again.log(&row);
        assert_eq!(again.update(&[(name, 0.8)]), []);
    }
}
