//! One update: responses are compared, and the policy learns from the pairs.

use burn::backend::Autodiff;

use super::OnlineDpoConfig;
use super::pairs::pairs;
use crate::data::Comparisons;
use crate::error::Result;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::rl::rollout::repetition;
use crate::rl::{apply_missing_eos, mean, variance};
use crate::train::preference::{MicroBatch, Objective, Step, StepTaken};
use crate::train::rollout::Episodes;
use crate::train::shared::Training;

/// What all updates of a stage share.
pub(super) struct Update<'a, B: ModelBackend> {
    pub(super) config: &'a OnlineDpoConfig,
    /// The loss.
    pub(super) objective: Objective,
    /// The policy before training.
    pub(super) reference: &'a LanguageModel<B>,
    pub(super) device: &'a B::Device,
}

impl<B: ModelBackend> Update<'_, B> {
    /// Updates `policy` on the pairs of `episodes`, if there are any. Returns the update's metrics, and the tokens that it trained on: none
    /// where all responses to each prompt have one score.
    ///
    /// # Errors
    /// `Error::NonFinite`.
    pub(super) fn take(
        &self,
        training: &mut Training<B>,
        policy: &mut LanguageModel<Autodiff<B>>,
        episodes: &Episodes,
    ) -> Result<(Vec<(&'static str, f64)>, u64)> {
        let config = self.config;
        let has_eos: Vec<bool> = episodes.responses.iter().map(|r| r.stopped).collect();
        let mut scores = episodes.scores.clone();
        apply_missing_eos(&mut scores, &has_eos, config.missing_eos);
        let (items, margins) = pairs(episodes, &scores, config.num_generations);
        let missing = has_eos.iter().filter(|&&has| !has).count() as f64;
        let num_prompts = scores.len() / config.num_generations;
        let ties = num_prompts - items.len();
        let responses = || episodes.responses.iter().map(|r| r.ids.as_slice());
        let lens: Vec<f32> = responses().map(|ids| ids.len() as f32).collect();
        // This update's are not logged yet.
        let episodes_done = (training.journal.position.step + 1) * scores.len();
        let mut metrics = vec![
            ("objective/scores", mean(&scores)),
            ("objective/scores_std", variance(&scores).sqrt()),
            ("val/missing_eos_rate", missing / scores.len() as f64),
            ("val/tie_rate", ties as f64 / num_prompts as f64),
            ("episode", episodes_done as f64),
            ("val/response_length", mean(&lens)),
            ("val/repetition", repetition(responses())),
        ];
        if items.is_empty() {
            return Ok((metrics, 0));
        }
        let items: Vec<&Comparisons> = items.iter().collect();
        let of_reference =
            |micro: &MicroBatch<'_>, _: &[usize]| Some(micro.logprobs(self.reference, self.device));
        let step = Step {
            objective: &self.objective,
            micro_batch_tokens: config.micro_batch_tokens,
            gradient_checkpointing: config.gradient_checkpointing,
            device: self.device,
        };
        let StepTaken {
            metrics: of_pairs,
            tokens,
        } = step.take(training, policy, &items, of_reference)?;
        let margin = margins.iter().sum::<f64>() / margins.len() as f64;
        metrics.push(("objective/scores_margin", margin));
        metrics.extend(kl_of(&of_pairs, config.beta).map(|kl| ("objective/kl", kl)));
        metrics.extend(of_pairs);
        Ok((metrics, tokens))
    }
}

/// Mean log ratio of the compared responses, nats, from their mean rewards.
fn kl_of(metrics: &[(&'static str, f64)], beta: f64) -> Option<f64> {
    let of = |name: &str| {
        metrics
            .iter()
            .find(|(known, _)| *known == name)
            .map(|m| m.1)
    };
    Some((of("rewards/chosen")? + of("rewards/rejected")?) / (2.0 * beta))
}
