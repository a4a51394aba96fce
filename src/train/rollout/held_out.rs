//! Evaluates a policy in training on held-out prompts.

use std::collections::BTreeMap;

use super::{GOLD, SCORE};
use crate::error::Result;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::reward::RewardSource;
use crate::train::Session;
use crate::train::evaluate::Evaluator;
use crate::train::journal::Journal;

/// Means over held-out prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeldOut {
    /// Score: the gold one, if there is a gold source.
    pub(crate) score: f64,
    /// Score of the source that is trained on.
    pub(crate) trained_score: f64,
    /// Gold score.
    pub(crate) gold: Option<f64>,
    /// KL to the reference in nats per response; `None` without a reference.
    pub(crate) kl: Option<f64>,
}

impl HeldOut {
    /// The means that alarms watch.
    pub(crate) fn watched(&self) -> Vec<(&'static str, f64)> {
        let gold = self.gold.map(|gold| ("eval/gold_scores", gold));
        std::iter::once(("eval/scores", self.trained_score))
            .chain(gold)
            .collect()
    }

    /// The means before the first step, as an earlier process logged them; `None` if it had no held-out prompts.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn logged(journal: &mut Journal) -> Result<Option<Self>> {
        let Some(trained_score) = journal.first("eval/scores")? else {
            return Ok(None);
        };
        let gold = journal.first("eval/gold_scores")?;
        Ok(Some(Self {
            score: gold.unwrap_or(trained_score),
            trained_score,
            gold,
            kl: journal.first("eval/kl")?,
        }))
    }

    /// How the means have changed, for a stage's summary; `name` is the score's.
    pub(crate) fn change(first: Option<Self>, last: Option<Self>, name: &str) -> Option<String> {
        let (first, last) = (first?, last?);
        let at_kl = last
            .kl
            .map(|kl| format!(" at KL {kl:.2} nats per response"));
        Some(format!(
            "held-out {name} {:.3} -> {:.3}{}",
            first.score,
            last.score,
            at_kl.unwrap_or_default()
        ))
    }
}

/// Evaluates `model` and reports the result; `None` without held-out prompts.
pub(crate) fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    evaluator: &Evaluator<'_, B>,
    model: &LanguageModel<B>,
    sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
) -> Result<Option<HeldOut>> {
    if evaluator.prompts.is_empty() {
        return Ok(None);
    }
    let device = session.device.clone();
    let reporter = &mut *session.reporter;
    let total = evaluator.prompts.len();
    let result = evaluator.run(model, sources, &device, &mut |done, tokens| {
        reporter.rollout(&RolloutReport {
            what: "evaluation",
            done,
            total,
            tokens,
        });
    });
    session.say_of(sources.values_mut());
    let result = result?;
    let parts: Vec<(String, f64)> = (result.parts.iter())
        .filter_map(|(name, mean)| Some((name.strip_prefix("score/")?, mean)))
        .map(|(part, mean)| (format!("eval/scores/{part}"), *mean))
        .collect();
    let mut metrics = vec![
        ("eval/scores", result.scores[SCORE]),
        ("eval/response_length", result.response_length),
        ("eval/eos_rate", result.eos_rate),
    ];
    metrics.extend(result.kl.map(|kl| ("eval/kl", kl)));
    metrics.extend(parts.iter().map(|(name, mean)| (name.as_str(), *mean)));
    if let Some(gold) = result.scores.get(GOLD) {
        metrics.push(("eval/gold_scores", *gold));
    }
    journal.eval(session, &metrics)?;
    let step = journal.position.step;
    let count = journal.num_samples();
    for mut sample in result.samples.into_iter().take(count) {
        sample.step = step;
        journal.sample(&sample)?;
    }
    let main = result.scores.get(GOLD).unwrap_or(&result.scores[SCORE]);
    Ok(Some(HeldOut {
        score: *main,
        trained_score: result.scores[SCORE],
        gold: result.scores.get(GOLD).copied(),
        kl: result.kl,
    }))
}
