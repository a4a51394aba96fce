//! A micro-batch of a rollout: losses, gradients and statistics.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::report::MinibatchReport;
use super::update::{PolicyUpdate, UpdateSettings, ValueUpdate};
use super::value::WithHead;
use super::{PassSettings, Rollout, ValueTargets};
use crate::host::{DeferredReads, floats, indices};
use crate::loss::{kl_loss, log_ratios, ratios, surrogate_loss, value_loss};
use crate::model::{CausalLm, LanguageModel, ScalarModel, Tape, TrainableModel};
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::rl::ResponseLayout;
use crate::rl::rollout::RatioLevel;
use crate::tokens::{Segments, Span, TokenBatch};
use crate::train::shared::{Accumulator, NonFinite, finite};

/// Packed rows of a rollout.
pub(super) struct MicroBatch<'a, B: ModelBackend> {
    rollout: &'a Rollout,
    rows: Vec<usize>,
    /// Positions of these rows.
    layout: ResponseLayout,
    /// `None` until it is uploaded: those of other ranks are reported only.
    batch: Option<TokenBatch<Autodiff<B>>>,
    /// Where each row is in the batch.
    spans: Vec<Span>,
    policy: PolicyUpdate,
    passes: PassSettings,
    device: &'a B::Device,
}

impl<'a, B: ModelBackend> MicroBatch<'a, B> {
    /// A micro-batch of groups of rows.
    pub(super) fn new(
        rollout: &'a Rollout,
        groups: &[Vec<usize>],
        settings: &UpdateSettings<'_>,
        device: &'a B::Device,
    ) -> Self {
        let rows = groups.concat();
        Self {
            batch: None,
            spans: Vec::new(),
            layout: rollout.samples.layout.select(&rows),
            rollout,
            rows,
            policy: settings.policy,
            passes: settings.passes,
            device,
        }
    }

    /// Packs and uploads its rows, to compute with; the common beginning of a group's rows is computed once.
    pub(super) fn upload_rows(&mut self, groups: &[Vec<usize>]) {
        let row = |&row: &usize| self.rollout.samples.rows[row].as_slice();
        let packed: Vec<Vec<&[u32]>> = (groups.iter())
            .map(|group| group.iter().map(row).collect())
            .collect();
        let (batch, spans) = TokenBatch::from_groups(&packed, self.device);
        (self.batch, self.spans) = (Some(batch), spans);
    }

    /// Adds the policy's gradients; pushes the numbers that [`MicroBatch::report_policy`] reads.
    pub(super) fn policy(&self, policy: &mut LanguageModel<Autodiff<B>>, sum: &mut Accumulator<B>) {
        let positions = self.layout.logprob_positions_of(&self.spans);
        let (states, tape) = self.states(policy, &positions);
        let loss = self.policy_loss(policy, states, &mut sum.numbers);
        sum.backward(&loss, tape, policy);
    }

    /// Adds the value network's gradients; pushes the numbers that [`MicroBatch::report_value`] reads.
    pub(super) fn value(
        &self,
        value: &mut ScalarModel<Autodiff<B>>,
        targets: &ValueTargets,
        settings: &ValueUpdate,
        sum: &mut GradientSum<B>,
        numbers: &mut DeferredReads<B>,
    ) {
        let positions = self.layout.value_positions_of(&self.spans);
        let (states, tape) = self.states(value, &positions);
        let loss = self.value_loss(value.scores_of(states), targets, settings, numbers);
        tape.backward(&loss, value, sum);
    }

    /// The same for a value head on the policy, in one pass: adds the gradients of `policy loss + weight * value loss`.
    pub(super) fn both(
        &self,
        model: &mut WithHead<'_, B>,
        targets: &ValueTargets,
        settings: &ValueUpdate,
        weight: f64,
        sum: &mut Accumulator<B>,
    ) {
        let positions = self.layout.value_positions_of(&self.spans);
        let (states, tape) = self.states(model, &positions);
        let responses = indices(&self.layout.responses_among_values(), self.device);
        let at_responses = states.clone().select(0, responses);
        let policy_loss = self.policy_loss(model.policy, at_responses, &mut sum.numbers);
        let values = model.head.values(states);
        let value_loss = self.value_loss(values, targets, settings, &mut sum.numbers);
        sum.backward(&(policy_loss + value_loss * weight), tape, model);
    }

    /// The states of `model` at `positions` of the batch, and the tape for the backward pass.
    fn states<M: TrainableModel<B>>(
        &self,
        model: &M,
        positions: &[usize],
    ) -> (Tensor<Autodiff<B>, 2>, Tape<B>) {
        let at = Some(indices(positions, self.device));
        let checkpointing = self.passes.gradient_checkpointing;
        let batch = self.batch.clone().expect("uploaded to compute with");
        Tape::states_at(model, batch, at, None, checkpointing)
    }

    /// The entries of a rollout array at these rows.
    fn gather(&self, values: &[f32], segments: &Segments) -> Vec<f32> {
        (self.rows.iter())
            .flat_map(|&row| &values[segments.range(row)])
            .copied()
            .collect()
    }

    /// The entries of an array by response token.
    fn at_tokens(&self, values: &[f32]) -> Vec<f32> {
        self.gather(values, self.rollout.samples.layout.responses())
    }

    /// The entries of an array by value position.
    fn at_values(&self, values: &[f32]) -> Vec<f32> {
        self.gather(values, self.rollout.samples.layout.values())
    }

    fn upload(&self, values: &[f32]) -> Tensor<Autodiff<B>, 1> {
        floats(values, self.device)
    }

    /// The policy's summed loss, `[1]`, from its states at the responses.
    fn policy_loss(
        &self,
        policy: &LanguageModel<Autodiff<B>>,
        states: Tensor<Autodiff<B>, 2>,
        numbers: &mut DeferredReads<B>,
    ) -> Tensor<Autodiff<B>, 1> {
        let samples = &self.rollout.samples;
        let targets: Vec<u32> = (self.rows.iter())
            .flat_map(|&row| &samples.rows[row][samples.query_lens[row]..])
            .copied()
            .collect();
        let temperature = self.policy.temperature;
        let (logprobs, entropy) = policy.logprobs(states, &Arc::new(targets), temperature);
        numbers.push(logprobs.clone().inner());
        numbers.push(entropy.inner());
        // Summed over this micro-batch; the divisor is that of the whole minibatch.
        let weights = self.token_weights().map(|weights| self.upload(&weights));
        let total = |per_token: Tensor<Autodiff<B>, 1>| match &weights {
            Some(weights) => (per_token * weights.clone()).sum(),
            None => per_token.sum(),
        };
        let log_ratios = log_ratios(
            logprobs.clone(),
            self.upload(&self.at_tokens(&samples.logprobs)),
            self.layout.responses(),
            self.policy.ratio,
        );
        let mut loss = total(surrogate_loss(
            logprobs.clone(),
            log_ratios.clone(),
            self.upload(&self.at_tokens(&self.rollout.advantages)),
            self.policy.objective,
        ));
        numbers.push(loss.clone().inner());
        if let Some((coef, ref_logprobs)) = self.kl_in_loss() {
            let reference = self.upload(&self.at_tokens(ref_logprobs));
            let mut kl = kl_loss(logprobs, reference, self.rollout.kl.estimator);
            if self.policy.kl_bias_correction {
                kl = kl * ratios(log_ratios);
            }
            let kl = total(kl);
            numbers.push(kl.clone().inner());
            loss = loss + kl * coef;
        }
        loss
    }

    /// The response tokens that are trained on, by their place among all of this micro-batch.
    fn trained_tokens(&self) -> impl Iterator<Item = usize> + '_ {
        let responses = self.layout.responses().iter();
        (self.rows.iter().zip(responses))
            .filter(|(row, _)| (self.rollout.trained.as_ref()).is_none_or(|trained| trained[**row]))
            .flat_map(|(_, tokens)| tokens)
    }

    /// Weight of each response token in the summed loss; `None` if all are 1.
    fn token_weights(&self) -> Option<Vec<f32>> {
        let responses = self.layout.responses();
        let weights = self.policy.mean.weights(responses);
        let Some(trained) = &self.rollout.trained else {
            return weights;
        };
        let mut weights = weights.unwrap_or_else(|| vec![1.0; responses.num_tokens()]);
        for (&row, tokens) in self.rows.iter().zip(responses.iter()) {
            if !trained[row] {
                weights[tokens].fill(0.0);
            }
        }
        Some(weights)
    }

    /// Coefficient of the KL term in the loss, and the reference's log-probabilities.
    fn kl_in_loss(&self) -> Option<(f64, &[f32])> {
        let coef = self.rollout.kl.loss_coef()?;
        Some((coef, self.rollout.samples.ref_logprobs.as_deref()?))
    }

    /// The value function's summed loss, `[1]`, without its weight.
    fn value_loss(
        &self,
        values: Tensor<Autodiff<B>, 1>,
        targets: &ValueTargets,
        settings: &ValueUpdate,
        numbers: &mut DeferredReads<B>,
    ) -> Tensor<Autodiff<B>, 1> {
        numbers.push(values.clone().inner());
        let loss = value_loss(
            values,
            self.upload(&self.at_values(&targets.values)),
            self.upload(&self.at_values(&targets.returns)),
            settings.cliprange_value,
        );
        numbers.push(loss.clone().inner());
        loss
    }

    /// Adds the policy's loss, entropy and statistics to `done`; returns the largest change of a log-probability since the rollout.
    pub(super) fn report_policy(
        &self,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
        done: &mut MinibatchReport,
    ) -> Result<f64, NonFinite> {
        let mut next = || numbers.next().expect("all that was kept");
        let (new, entropy, loss) = (next(), next(), next());
        done.policy_loss += finite("policy loss", f64::from(loss[0]))?;
        if self.kl_in_loss().is_some() {
            let kl = finite("KL loss", f64::from(next()[0]))?;
            *done.kl_loss.get_or_insert_default() += kl;
        }
        let old = self.at_tokens(&self.rollout.samples.logprobs);
        let advantages = self.at_tokens(&self.rollout.advantages);
        let changes: Vec<f64> = (new.iter().zip(&old))
            .map(|(&new, &old)| f64::from(new) - f64::from(old))
            .collect();
        let ratios: Vec<f64> = match self.policy.ratio {
            RatioLevel::Token => changes.clone(),
            level => {
                let narrow = changes.iter().map(|&change| change as f32).collect();
                let ratios = level.log_ratios(narrow, self.layout.responses());
                ratios.into_iter().map(f64::from).collect()
            }
        };
        let trained: Vec<usize> = self.trained_tokens().collect();
        let of = |values: &[f64]| trained.iter().map(|&at| values[at]).collect::<Vec<f64>>();
        let advantages: Vec<f32> = trained.iter().map(|&at| advantages[at]).collect();
        let (kept, ratios) = (of(&changes), of(&ratios));
        (done.stats).add_ratios(&kept, &ratios, &advantages, self.policy.objective);
        done.num_tokens += trained.len();
        done.entropy += trained
            .iter()
            .map(|&at| f64::from(entropy[at]))
            .sum::<f64>();
        Ok(changes.into_iter().map(f64::abs).fold(0.0, f64::max))
    }

    /// Adds the value function's loss and statistics to `done`.
    pub(super) fn report_value(
        &self,
        targets: &ValueTargets,
        settings: &ValueUpdate,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
        done: &mut MinibatchReport,
    ) -> Result<(), NonFinite> {
        let mut next = || numbers.next().expect("all that was kept");
        let (new, loss) = (next(), next());
        done.value_loss += finite("value loss", f64::from(loss[0]))?;
        let old = self.at_values(&targets.values);
        let returns = self.at_values(&targets.returns);
        let cliprange = settings.cliprange_value;
        done.stats.add_value(&new, &old, &returns, cliprange);
        done.num_values += new.len();
        Ok(())
    }
}
