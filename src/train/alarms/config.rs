//! The recipe keys of alarms.

use serde::{Deserialize, Serialize};

use crate::train::checks::Checks;

/// What an alarm watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AlarmKind {
    /// KL to the reference.
    Kl,
    /// Entropy of the policy.
    Entropy,
    /// Length of responses.
    Length,
    /// Repeated word groups in responses.
    Repetition,
    /// The score against the gold score or the held-out score.
    Gold,
    /// Groups whose responses have equal rewards.
    Variance,
}

impl AlarmKind {
    /// Its name in recipes and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kl => "kl",
            Self::Entropy => "entropy",
            Self::Length => "length",
            Self::Repetition => "repetition",
            Self::Gold => "gold",
            Self::Variance => "variance",
        }
    }
}

/// Limits of the alarms of an on-policy stage; `None` turns an alarm off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlarmsConfig {
    /// Updates whose mean is compared.
    pub window: usize,
    /// KL to the reference above this, nats per response.
    pub kl: Option<f64>,
    /// Entropy below this share of that of the first updates.
    pub entropy: Option<f64>,
    /// Length changed by more than this share of that of the first updates.
    pub length: Option<f64>,
    /// Share of repeated groups of three tokens in a response above this.
    pub repetition: Option<f64>,
    /// The score rises, and the gold or held-out score has lost more than this share of what it had gained.
    pub gold: Option<f64>,
    /// Share of groups with equal rewards above this.
    pub variance: Option<f64>,
    /// Alarms that end the run with a checkpoint.
    pub stop: Vec<AlarmKind>,
}

impl Default for AlarmsConfig {
    /// KL: the collapsed runs of arXiv:2403.17031 (fig. 10) end at 50 to 85 nats, sound ones below 20. The others are those of the
    /// report's warnings.
    fn default() -> Self {
        Self {
            window: 5,
            kl: Some(30.0),
            entropy: Some(0.2),
            length: Some(0.5),
            repetition: Some(0.5),
            gold: Some(0.25),
            variance: Some(0.9),
            stop: Vec::new(),
        }
    }
}

/// An alarm that reads a number which a stage does not log.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct Unmeasured {
    pub(in crate::train) alarm: AlarmKind,
    pub(in crate::train) reason: &'static str,
    /// The key that this depends on.
    pub(in crate::train) key: &'static str,
}

impl Unmeasured {
    /// The alarm `gold` of a stage without a second source and without held-out prompts.
    const GOLD: Self = Self {
        alarm: AlarmKind::Gold,
        reason: "the stage has neither `gold` nor `eval_data`",
        key: "gold",
    };
    /// The alarm `variance` of a stage that is no group method.
    pub(in crate::train) const VARIANCE: Self = Self {
        alarm: AlarmKind::Variance,
        reason: "only group methods measure the share of groups with equal rewards",
        key: "alarms.variance",
    };
}

impl AlarmsConfig {
    /// Checks the limits; `path` is the stage's key path. None of the `unmeasured` alarms may be one that is to stop the run, nor `gold`
    /// unless the stage has a second source or held-out prompts.
    pub(in crate::train) fn check(
        &self,
        checks: &mut Checks,
        path: &str,
        has_gold: bool,
        unmeasured: &[Unmeasured],
    ) {
        checks.positive(path, "alarms.window", self.window);
        for (key, limit) in [
            ("kl", self.kl),
            ("entropy", self.entropy),
            ("length", self.length),
            ("repetition", self.repetition),
            ("gold", self.gold),
            ("variance", self.variance),
        ] {
            if let Some(limit) = limit {
                checks.not_negative(path, &format!("alarms.{key}"), limit);
            }
        }
        for (key, share) in [
            ("entropy", self.entropy),
            ("repetition", self.repetition),
            ("variance", self.variance),
        ] {
            if let Some(share) = share.filter(|share| *share > 1.0) {
                checks.must(
                    format!("{path}.alarms.{key}"),
                    false,
                    "a share, from 0 to 1",
                    share,
                );
            }
        }
        for kind in &self.stop {
            let no_gold = (!has_gold).then_some(&Unmeasured::GOLD);
            let mut never = unmeasured.iter().chain(no_gold);
            let never = never.find(|other| other.alarm == *kind);
            if self.limit(*kind).is_none() {
                checks.problem(
                    format!("{path}.alarms.stop"),
                    format!("names `{}`, which is turned off", kind.name()),
                );
                checks.depends_on(format!("{path}.alarms.{}", kind.name()));
            } else if let Some(Unmeasured { reason, key, .. }) = never {
                checks.problem(
                    format!("{path}.alarms.stop"),
                    format!("names `{}`, which can never go off: {reason}", kind.name()),
                );
                checks.depends_on(format!("{path}.{key}"));
            }
        }
    }

    /// The limit of an alarm.
    pub(super) fn limit(&self, kind: AlarmKind) -> Option<f64> {
        match kind {
            AlarmKind::Kl => self.kl,
            AlarmKind::Entropy => self.entropy,
            AlarmKind::Length => self.length,
            AlarmKind::Repetition => self.repetition,
            AlarmKind::Gold => self.gold,
            AlarmKind::Variance => self.variance,
        }
    }
}
