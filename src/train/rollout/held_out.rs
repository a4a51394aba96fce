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

/// Mean held-out score (the gold one if there is one) and KL; `None` without held-out prompts.
pub(crate) fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    evaluator: &Evaluator<'_, B>,
    model: &LanguageModel<B>,
    sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
) -> Result<Option<(f64, f64)>> {
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
    })?;
    let mut metrics = vec![
        ("eval/scores", result.scores[SCORE]),
        ("eval/kl", result.kl),
        ("eval/response_length", result.response_length),
        ("eval/eos_rate", result.eos_rate),
    ];
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
    Ok(Some((*main, result.kl)))
}
